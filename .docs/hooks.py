"""Lets pages quote the README and the command line.

``{README: heading}`` becomes the text below that heading, and ``{help: command}`` the output of the command's
``--help``; ``{help: others}`` becomes that of every command that the page does not name, with its heading.
"""

import argparse
import functools
import re
from pathlib import Path
from typing import Any

from jsoftmax import _cli

README = (Path(__file__).parents[1] / "README.md").read_text()
WIDTH = 96  # of a help, in characters


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the quotations by their text."""
    named = re.findall(r"^\{help: (.+)\}$", markdown, flags=re.MULTILINE)
    others = (f"## {name}\n\n{help_of(name)}" for name in commands() if name not in named)
    markdown = markdown.replace("{help: others}", "\n\n".join(others))
    for pattern, text in ((r"\{README: (.+)\}", section), (r"\{help: (.+)\}", help_of)):
        markdown = re.sub(rf"^{pattern}$", lambda m, text=text: text(m[1]), markdown, flags=re.MULTILINE)
    return markdown


def section(heading: str) -> str:
    """The text below a heading of the README, up to the next heading, with links from the pages."""
    text = re.split(rf"^##+ {re.escape(heading)}\n", README, flags=re.MULTILINE)[1]
    return re.split(r"^##+ ", text, flags=re.MULTILINE)[0].strip().replace("(.docs/pages/", "(")


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command."""
    (of_commands,) = (a for a in _cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(of_commands.choices)


def help_of(name: str) -> str:
    """What a command prints with ``--help``."""
    parser = commands()[name]
    parser.formatter_class = functools.partial(argparse.HelpFormatter, width=WIDTH)
    return f"```text\n{parser.format_help().rstrip()}\n```"
