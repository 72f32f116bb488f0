"""Lets pages quote the README: ``{README: heading}`` becomes the text below that heading."""

import re
from pathlib import Path
from typing import Any

README = (Path(__file__).parents[1] / "README.md").read_text()


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the quotations by their text."""
    return re.sub(r"^\{README: (.+)\}$", lambda match: section(match[1]), markdown, flags=re.MULTILINE)


def section(heading: str) -> str:
    """The text below a heading, up to the next heading of any level."""
    return re.split(rf"^#+ {re.escape(heading)}\n", README, flags=re.MULTILINE)[1].split("\n#")[0].strip()
