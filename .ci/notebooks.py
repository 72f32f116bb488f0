"""Run all notebooks, or the named ones, and store their outputs in few bytes.

python .ci/notebooks.py [--check | --check-changed] [NOTEBOOK ...]

With --check nothing is stored. With --check-changed a notebook is left out if its stored outputs are from the
same cells, the same code of the package, and the same version of JAX. As many notebooks run at once as there
are processors, each in an empty folder, so that it needs no other file. It needs the extra "notebooks".
"""

import argparse
import ast
import base64
import hashlib
import importlib.metadata
import io
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
LIMIT = 100_000  # bytes of a file
TOLERANCE = 10  # of 255: the largest difference of a channel of a stored pixel


def made_by(notebook: nbformat.NotebookNode) -> str:
    """A digest of the inputs of a notebook: its cells, the package without its comments, JAX's version."""
    found = hashlib.sha256(importlib.metadata.version("jax").encode())
    for cell in notebook.cells:
        found.update(f"\n{cell.cell_type}\n{cell.source}".encode())
    for path in sorted((ROOT / "jsoftmax").rglob("*.py")):
        found.update(f"\n{path.relative_to(ROOT)}\n{ast.dump(ast.parse(path.read_text()))}".encode())
    return found.hexdigest()


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of its cells."""
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=300, resources=resources, coalesce_streams=True).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the time of the run
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                assert output.name == "stdout", f"{path.name} warns: {output.text}"
            elif "image/png" in output.get("data", ()):
                output.data = {"image/png": smaller(output.data["image/png"])}
    del notebook.metadata["language_info"]  # the version of Python
    notebook.metadata["made_by"] = made_by(notebook)
    return notebook


def smaller(png: str) -> str:
    """The picture with its own palette, which makes it a third as large."""
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
    """The most frequent of these colours, enough of them that each other colour is near to one of them."""
    palette = colours[:1]
    for colour in colours[1:]:
        if np.abs(palette - colour).max(axis=1).min() >= TOLERANCE:
            palette = np.append(palette, colour[None], axis=0)
    return palette


def text_of(path: Path) -> str:
    """The text of the file to store, and a line about the changes."""
    begun = time.perf_counter()
    text = nbformat.writes(run(path)) + "\n"
    size = len(text.encode())
    assert size < LIMIT, f"{path.name} has {size} bytes"
    print(f"{path.name}: {time.perf_counter() - begun:.0f} s, {size / 1000:.0f} kB", flush=True)
    return text


def main() -> None:
    """Run the notebooks; stop at the first cell that fails."""
    parser = argparse.ArgumentParser()
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--check", action="store_true")
    which.add_argument("--check-changed", action="store_true")
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    arguments = parser.parse_args()
    paths = arguments.notebooks
    if arguments.check_changed:
        stored = {path: nbformat.read(path, as_version=4) for path in paths}
        paths = [path for path in paths if stored[path].metadata.get("made_by") != made_by(stored[path])]
        print(
            f"{len(stored) - len(paths)} of {len(stored)} notebooks are as this code makes them", flush=True
        )
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        for path, text in zip(paths, processes.map(text_of, paths), strict=True):
            if not (arguments.check or arguments.check_changed):
                path.write_text(text)


if __name__ == "__main__":
    main()
