"""The stored notebooks: small, with text, and run; `.ci/notebooks.py` runs them."""

import json
import re
from pathlib import Path

import matplotlib.style
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = (
    "1-softmax-and-its-jacobian",
    "2-cross-entropy-and-p-minus-t",
    "3-training-a-classifier",
    "4-language-models",
    "5-many-devices",
    "6-in-your-model",
    "7-distillation-and-rl",
)


def test_there_are_these():
    assert sorted(p.name for p in FOLDER.iterdir() if p.is_file()) == [f"{name}.ipynb" for name in NAMES]


def test_the_package_brings_their_style():
    with matplotlib.style.context("jsoftmax.style"):
        assert matplotlib.rcParams["figure.constrained_layout.use"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_teaches_and_shows_what_it_gave(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 100_000
    cells = json.loads(path.read_text())["cells"]
    opening = "".join(cells[0]["source"])
    assert re.match(rf"# {name[0]} · .+\n\nAfter this notebook you will be able to\n\n- ", opening)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {o["output_type"] for o in outputs} <= {"stream", "display_data"}
    assert {o["name"] for o in outputs if o["output_type"] == "stream"} == {"stdout"}
    assert sum("image/png" in o.get("data", ()) for o in outputs) >= 2
    source = "\n".join("".join(cell["source"]) for cell in code)
    # It runs in another folder, with only the package installed.
    assert re.findall(r"plt\.style\.use\((.*)\)", source) == ['"jsoftmax.style"']
    assert "jsoftmax._" not in source
    assert "_src" not in source


@pytest.mark.parametrize("name", NAMES[:3])
def test_each_exercise_has_a_folded_answer_that_runs(name):
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    first = next(i for i, text in enumerate(texts) if text.startswith("## Exercises\n"))
    numbers = [int(n) for n in re.findall(r"^(\d)\. ", texts[first], re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert 3 <= len(numbers) <= 5
    for number, answer, program in zip(
        numbers, range(first + 1, len(cells), 2), texts[first + 2 :: 2], strict=True
    ):
        opening = f"<details>\n<summary><b>Answer {number}</b></summary>\n\n"
        assert texts[answer].startswith(opening)
        assert texts[answer].endswith("\n\n</details>")
        assert program.startswith(f"# Answer {number}\n")
        folded = cells[answer + 1]["metadata"]["jupyter"]
        assert folded == {"outputs_hidden": True, "source_hidden": True}
