"""Prepares docstrings for Markdown: examples and formulas as blocks, names of this package as links."""

import re

import griffe

import jsoftmax

MODULES = {"jsoftmax": jsoftmax} | {
    f"jsoftmax.{n}": getattr(jsoftmax, n) for n in ("rules", "online", "evaluation", "plots")
}
PLACES = {
    path.removeprefix("jsoftmax.").removeprefix("jsoftmax") + "." + name: f"{path}.{name}"
    for path, module in MODULES.items()
    for name in module.__all__
    if f"{path}.{name}" not in MODULES
}
SECTIONS = "Args|Returns|Raises"


class Ready(griffe.Extension):
    """Changes every docstring of the package."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for each object after it has been loaded."""
        if obj.docstring is not None:
            module = obj.path.removeprefix("jsoftmax.").partition(".")[0]
            obj.docstring.value = ready(obj.docstring.value, module)


def ready(docstring: str, module: str) -> str:
    """The docstring in Markdown, paragraph by paragraph."""
    return "\n\n".join(_paragraph(part, module) for part in re.split(r"\n\s*\n", _sectioned(docstring)))


def _sectioned(docstring: str) -> str:
    """A line such as ``Args, Returns: as for `softmax`.`` is a sentence, not a section."""
    return re.sub(rf"^((?:(?:{SECTIONS})(?:, )?)+): (?=\S)", r"\1 ", docstring, flags=re.MULTILINE)


def _paragraph(part: str, module: str) -> str:
    lines = part.splitlines()
    if lines[0].startswith(">>> "):
        return "\n".join(["```pycon", *lines, "```"])
    if all(line.startswith("    ") for line in lines):
        return "\n".join(['<pre class="formula">', *(line[4:] for line in lines), "</pre>"])

    def link(match: re.Match[str]) -> str:
        name = match[1].removeprefix("jsoftmax.")
        place = PLACES.get(f"{module}.{name}") or PLACES.get(name) or PLACES.get(f".{name}")
        return f"[{match[0]}][{place}]" if place else match[0]

    return re.sub(r"(?<!`)`([\w.]+)`(?!`)", link, part)
