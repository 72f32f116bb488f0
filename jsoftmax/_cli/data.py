"""The images: scikit-learn's 8x8 digits, or a set in MNIST's format, four IDX files in a folder.

The files of MNIST, Fashion-MNIST and KMNIST have bare names such as `train-images-idx3-ubyte`. In EMNIST and
QMNIST the name of the set comes first, as in `emnist-letters-test-images-idx3-ubyte`. A name may have dots
instead of dashes, `.gz` may follow, and the file may lie in a folder of its own name, as in some archives.
"""

import gzip
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jsoftmax._cli.errors import UserError

BARE = "mnist"  # the set of files with bare names
NAME = re.compile(
    r"(?:(?P<set>\w.*?)[-._])?(?P<part>train|t10k|test)[-._](?P<kind>images|labels)[-._]"
    r"idx\d[-._](?:ubyte|int)(?:\.gz)?",
    re.IGNORECASE,
)
LISTED = 8  # the most names in a message
MOST_CLASSES = 1000  # the confusion matrix and the Jacobians have one entry for every pair of classes

IMAGES_MAGIC = (0x0803,)  # unsigned bytes in three dimensions
LABELS_MAGIC = (0x0801, 0x0C01, 0x0C02)  # unsigned bytes in one dimension; int32 in one, or two (QMNIST)
QMNIST_COLUMNS = 8  # the class comes first, then the writer and the position in NIST's collection

Files = dict[tuple[str, str, str], Path]  # by set, part (train, t10k or test) and kind (images or labels)


@dataclass(frozen=True)
class Examples:
    """Labelled images: float32 [count, rows, columns] in [0, 1] and int32 [count]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int32]  # indices into `classes`
    classes: tuple[int, ...]  # the labels in the files

    @property
    def inputs(self) -> NDArray[np.float32]:
        """Every image as one row of pixels, [count, rows * columns]."""
        return self.images.reshape(len(self.images), -1)

    def first(self, count: int) -> "Examples":
        """The first `count` examples, or all if there are fewer."""
        return Examples(self.images[:count], self.labels[:count], self.classes)


@dataclass(frozen=True)
class Dataset:
    """The examples for training and the examples held out for the test."""

    name: str
    train: Examples
    test: Examples


def digits() -> Dataset:
    """1797 digits, with a fifth of each class held out; the split is the same in every run."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels.astype(np.int32), test_size=0.2, stratify=labels, random_state=0
    )
    classes = tuple(range(10))
    return Dataset(
        "digits", Examples(train_images, train_labels, classes), Examples(test_images, test_labels, classes)
    )


def mnist(folder: Path | None, chosen: str | None = None, transpose: bool = False) -> Dataset:
    """Read the set in a folder, or the chosen one of several sets.

    Its classes are the labels of its training images in increasing order, such as 0 to 9 or 1 to 26.
    `transpose` exchanges the rows and columns of every image: EMNIST stores its images transposed.
    """
    if folder is None:
        raise UserError("--data mnist needs --path DIR, the folder of its four IDX files")
    if not folder.is_dir():
        fault = "not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {fault}, expected one of four IDX files, as MNIST's")
    files = _find(folder)
    name = _choose(folder, sorted({name for name, _, _ in files}), chosen)
    parts = {part for found, part, _ in files if found == name}
    held_back = next((p for p in ("t10k", "test") if p in parts), "t10k" if name == BARE else "test")
    (train_images, train_labels), (test_images, test_labels) = (
        _read_part(folder, files, name, part) for part in ("train", held_back)
    )
    shapes = (test_images.shape[1:], train_images.shape[1:])
    if shapes[0] != shapes[1]:
        words = (" x ".join(map(str, shape)) for shape in shapes)
        raise UserError("{}: test images of {} pixels, training images of {}".format(folder, *words))
    classes = np.unique(train_labels)
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise UserError(
            f"{files[name, 'train', 'labels']}: {len(classes)} different labels ({spans(classes.tolist())}), "
            f"expected 2 to {MOST_CLASSES}"
        )
    unknown = np.flatnonzero(~np.isin(test_labels, classes))
    if len(unknown):
        raise UserError(
            f"{files[name, held_back, 'labels']}: label {test_labels[unknown[0]]} at position {unknown[0]}, "
            f"expected a label of the training images, {spans(classes.tolist())}"
        )

    def examples(images: NDArray[np.uint8], labels: NDArray[Any]) -> Examples:
        if transpose:
            images = images.swapaxes(1, 2)
        places = np.searchsorted(classes, labels).astype(np.int32)
        return Examples((images / np.float32(255)).astype(np.float32), places, tuple(classes.tolist()))

    return Dataset(name, examples(train_images, train_labels), examples(test_images, test_labels))


def spans(numbers: Sequence[int]) -> str:
    """Increasing integers as text: "0 to 9", or "0, 2, 5 to 9"."""
    ends = [place for place, (a, b) in enumerate(pairwise(numbers), 1) if b > a + 1]
    runs = [numbers[begin:end] for begin, end in pairwise((0, *ends, len(numbers)))]
    words = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return _listed(words)


def _listed(words: list[str]) -> str:
    return ", ".join(words if len(words) <= LISTED else [*words[:LISTED], f"{len(words) - LISTED} more"])


def _find(folder: Path) -> Files:
    """The IDX files in a folder; of a file and its packed copy, the file."""
    files: Files = {}
    for path in _entries(folder):
        if NAME.fullmatch(path.name):
            for inner in _entries(path) if path.is_dir() else [path]:
                if (match := NAME.fullmatch(inner.name)) and not inner.is_dir():
                    key = ((match["set"] or BARE).lower(), match["part"].lower(), match["kind"].lower())
                    files.setdefault(key, inner)
    return files


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


def _content(folder: Path) -> str:
    names = [path.name + "/" * path.is_dir() for path in _entries(folder)]
    return f"the folder holds {_listed(names)}" if names else "the folder is empty"


def _choose(folder: Path, names: list[str], chosen: str | None) -> str:
    if not names:
        raise UserError(f"{folder}: no IDX file, expected train-images-idx3-ubyte; {_content(folder)}")
    if chosen is not None and chosen.lower() not in names:
        raise UserError(f"{folder}: no set {chosen}, expected --set {' or '.join(names)}")
    if chosen is None and len(names) > 1:
        raise UserError(f"{folder}: {len(names)} sets, choose one by --set {' or '.join(names)}")
    return names[0] if chosen is None else chosen.lower()


def _read_part(folder: Path, files: Files, name: str, part: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The images and labels of one part of a set: for training or for the test."""
    for kind, ending in (("images", "idx3-ubyte"), ("labels", "idx1-ubyte")):
        if (name, part, kind) not in files:
            wanted = "-".join([*([] if name == BARE else [name]), part, kind, ending])
            raise UserError(f"{folder / wanted}: no such file, nor {wanted}.gz; {_content(folder)}")
    images_file, labels_file = files[name, part, "images"], files[name, part, "labels"]
    images, labels = _read_idx(images_file, IMAGES_MAGIC), _read_idx(labels_file, LABELS_MAGIC)
    if images.size == 0:
        raise UserError(f"{images_file}: no images (dimensions {images.shape}), expected some")
    if labels.ndim == 2:
        if labels.shape[1] != QMNIST_COLUMNS:
            raise UserError(
                f"{labels_file}: {labels.shape[1]} columns, expected QMNIST's {QMNIST_COLUMNS}, "
                "of which the first is the class"
            )
        labels = labels[:, 0]
    if len(labels) != len(images):
        raise UserError(
            f"{labels_file}: {len(labels)} labels, expected one for each of the "
            f"{len(images)} images of {images_file.name}"
        )
    if labels.min() < 0:
        place = int(np.argmax(labels < 0))
        raise UserError(f"{labels_file}: label {labels[place]} at position {place}, expected none below 0")
    return images, labels


def _read_idx(path: Path, magic: tuple[int, ...]) -> NDArray[Any]:
    """Read an IDX file: big-endian 32-bit words for the magic number and the lengths, then the numbers."""
    content = _read_bytes(path)
    # Check the magic number before the length, to distinguish a wrong file from a truncated one.
    found = int.from_bytes(content[:4], "big")
    if len(content) >= 4 and found not in magic:
        raise UserError(f"{path}: magic number {found}, expected {' or '.join(map(str, magic))}")
    # Its last byte is the number of dimensions, the byte before it the type.
    dimensions = found & 0xFF
    header = 4 * (1 + max(dimensions, 1))
    if len(content) < header:
        raise UserError(f"{path}: truncated, {len(content)} bytes, expected a header of {header}")
    kind = np.dtype(">i4" if found >> 8 == 0x0C else ">u1")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    expected = header + math.prod(shape) * kind.itemsize
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "trailing bytes"
        raise UserError(f"{path}: {fault}, {len(content)} bytes, expected {expected} for dimensions {shape}")
    return np.frombuffer(content, kind, offset=header).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        # The first bytes decide, not the name: browsers unpack a download but keep the suffix `.gz`.
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: broken gzip file, expected a whole one ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
