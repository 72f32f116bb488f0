"""Run the notebooks, all or those named, and store what they print and draw, in few bytes.

python .ci/notebooks.py [--check] [NOTEBOOK ...]

With --check nothing is stored. Needs the extra "notebooks".
"""

import argparse
import base64
import io
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
LIMIT = 100_000  # bytes of a file
COLOURS = 64  # of a picture: its palette makes it a quarter as large


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook, with what its cells gave."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                assert output.name == "stdout", f"{path.name} warns: {output.text}"
            elif "image/png" in output.get("data", ()):
                output.data = {"image/png": smaller(output.data["image/png"])}
    del notebook.metadata["language_info"]  # the version of Python
    return notebook


def smaller(png: str) -> str:
    """The picture with a palette of its own."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    stored = io.BytesIO()
    picture.quantize(COLOURS).save(stored, "png", optimize=True)
    return base64.b64encode(stored.getvalue()).decode()


def main() -> None:
    """Stop at the first cell that fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    arguments = parser.parse_args()
    for path in arguments.notebooks:
        begun = time.perf_counter()
        text = nbformat.writes(run(path)) + "\n"
        size = len(text.encode())
        assert size < LIMIT, f"{path.name} has {size} bytes"
        print(f"{path.name}: {time.perf_counter() - begun:.0f} s, {size / 1000:.0f} kB", flush=True)
        if not arguments.check:
            path.write_text(text)


if __name__ == "__main__":
    main()
