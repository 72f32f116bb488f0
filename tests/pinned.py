"""Virtual environments with pinned versions, and the examples of a page in them."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def environment(program, description, versions, other):
    """The interpreter and the versions, from the options ``[--environment DIR] [NAME==VERSION ...]``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replaced = f"instead of the pinned version, such as {other}"
    parser.add_argument("pins", nargs="*", metavar="NAME==VERSION", help=replaced)
    kept = "make the virtual environment there, or use the one there is"
    parser.add_argument("--environment", type=Path, metavar="DIR", help=kept)
    options = parser.parse_args()
    versions = versions | dict(pin.split("==") for pin in options.pins)
    with tempfile.TemporaryDirectory() as folder:
        made = (options.environment or Path(folder) / "environment").absolute()
        yield install(made, versions), versions


def install(environment, versions):
    """The interpreter of an environment with these versions, jaxlib in that of jax; made if there is none."""
    python = environment / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pins = [f"{name}=={version}" for name, version in {"jaxlib": versions["jax"], **versions}.items()]
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, *pins], check=True)
    return python


def run(python, *arguments, **options):
    """Run a program with this repository in the environment of an interpreter."""
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_TRACEBACK_FILTERING": "off",  # the last line of a traceback is the error
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return subprocess.run([python, *arguments], cwd=ROOT, env=os.environ | settings, text=True, **options)


def examples(page):
    """The examples of a page by heading, with the example above all headings in front of each."""
    text = (ROOT / ".docs/pages" / page).read_text()
    first, *sections = ("\n" + text).split("\n## ")
    codes = {s.partition("\n")[0]: re.findall(r"```python\n(.*?)```", s, re.DOTALL) for s in sections}
    before = re.findall(r"```python\n(.*?)```", first, re.DOTALL)
    return {heading: "\n".join(before + parts) for heading, parts in codes.items() if parts}


def expected(code):
    """What an example says that it prints: next to the call, or in the lines below it."""
    return [one or line for one, line in re.findall(r"print\(.*\)  # (.*)|^# (.*)", code, re.MULTILINE)]


def problem(python, code):
    """The error of an example in an environment, or what else it prints; None if it is as it says."""
    ran = run(python, "-c", code, capture_output=True)
    if ran.returncode:
        return ran.stderr.strip().splitlines()[-1]
    printed = ran.stdout.splitlines()
    return None if printed == expected(code) else f"prints {printed}, not {expected(code)}"
