"""Every command and example of the README runs; the docstrings run as doctests of their modules."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

import jsoftmax

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [c for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for c in block.splitlines()]


def test_the_readme_shows_code_first():
    assert README.index("```python") < 400


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_prints_what_its_comments_say(example):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), np.printoptions():
        exec(example, {})
    expected = re.findall(r"print\(.*\)  # (.*)", example)
    assert expected
    assert printed.getvalue().splitlines() == expected


def test_the_commands_are_the_ones_the_package_has():
    assert COMMANDS == [
        'pip install -e ".[demo]" && python -m jsoftmax train',
        'pip install -e ".[test]" && pytest',
    ]


def test_every_public_function_is_in_the_table_and_documented():
    for name in jsoftmax.__all__:
        assert re.search(rf"[`.]{name}\b", README), name
        assert getattr(jsoftmax, name).__doc__, name
    for name in jsoftmax.rules.__all__:
        assert getattr(jsoftmax.rules, name).__doc__, name


@pytest.mark.parametrize("name", [n for n in jsoftmax.__all__ if callable(getattr(jsoftmax, n))])
def test_every_public_function_has_an_example(name):
    assert ">>> " in getattr(jsoftmax, name).__doc__


def test_the_layout_in_the_readme_is_the_layout():
    tree = README[README.index("## Layout") :]
    for path in re.findall(r"^(jsoftmax/\S+|tests/\S*)", tree, re.MULTILINE):
        assert (Path(__file__).parents[1] / path).exists(), path
