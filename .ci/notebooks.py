"""Run the notebooks, all or those named, and store what they print and draw, in few bytes.

python .ci/notebooks.py [--check] [NOTEBOOK ...]

With --check nothing is stored. Each runs in an empty folder: it needs no file beside it. Needs the extra
"notebooks".
"""

import argparse
import base64
import io
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
LIMIT = 100_000  # bytes of a file
TOLERANCE = 10  # of 255: no channel of a stored pixel is off by as much


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook, with what its cells gave."""
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=300, resources=resources, coalesce_streams=True).execute()
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
    """The picture with a palette of its own, which makes it a third as large."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")).astype(int)
    colours, places, counts = np.unique(
        pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    palette = covering(colours[np.argsort(-counts, kind="stable")])
    assert len(palette) <= 256, f"a picture needs {len(palette)} colours"
    nearest = np.abs(colours[:, None] - palette).max(axis=2).argmin(axis=1)
    picture = Image.fromarray(nearest[places].reshape(pixels.shape[:2]).astype(np.uint8))
    picture.putpalette(palette.astype(np.uint8).tobytes())
    stored = io.BytesIO()
    picture.save(stored, "png", optimize=True)
    error = np.abs(np.asarray(Image.open(stored).convert("RGB")) - pixels).max()
    assert error < TOLERANCE, f"a channel is off by {error}"
    return base64.b64encode(stored.getvalue()).decode()


def covering(colours: np.ndarray) -> np.ndarray:
    """Of these colours, most frequent first, so many that each of the others is near to one of them."""
    palette = colours[:1]
    for colour in colours[1:]:
        if np.abs(palette - colour).max(axis=1).min() >= TOLERANCE:
            palette = np.append(palette, colour[None], axis=0)
    return palette


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
