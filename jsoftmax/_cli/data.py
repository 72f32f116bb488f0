"""The images: scikit-learn's 8x8 digits, or a set in MNIST's format, four IDX files in a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jsoftmax._cli import idx_files
from jsoftmax._cli.errors import UserError
from jsoftmax._cli.image_sets import BARE, IMAGE_SETS

MOST_CLASSES = 1000  # the confusion matrix and the Jacobians have one entry for every pair of classes


@dataclass(frozen=True)
class Examples:
    """Labelled images: float32 [count, rows, columns] in [0, 1] and int32 [count]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int32]  # indices into `classes`
    classes: tuple[Any, ...]  # the labels in the files as integers, or the names of the classes

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


def read(data: str, folder: Path | None, chosen: str | None = None, transpose: bool = False) -> Dataset:
    """Read a set of `IMAGE_SETS` in a folder, or the chosen one of several sets.

    Its classes are the labels of its training images in increasing order, such as 0 to 9, or their names.
    `transpose` exchanges the rows and columns of every image; those of EMNIST always need it.
    """
    known = IMAGE_SETS[data]
    if folder is None or not folder.is_dir():
        fault = f"--data {data} needs --path DIR, the folder"
        if folder is not None:
            fault = f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}, expected one"
        raise UserError(f"{fault} of {data}'s files ({known.file}.gz and three more), from {known.page}")
    files = idx_files.find(folder)
    name = _choose(folder, data, sorted({name for name, _, _ in files}), chosen)
    parts = {part for found, part, _ in files if found == name}
    held_back = next((p for p in ("t10k", "test") if p in parts), "t10k" if name == BARE else "test")
    (train_images, train_labels), (test_images, test_labels) = (
        idx_files.read_part(folder, files, name, part) for part in ("train", held_back)
    )
    shapes = (test_images.shape[1:], train_images.shape[1:])
    if shapes[0] != shapes[1]:
        words = (" x ".join(map(str, shape)) for shape in shapes)
        raise UserError("{}: test images of {} pixels, training images of {}".format(folder, *words))
    classes = np.unique(train_labels).tolist()
    names = known.sets.get(name) or {label: label for label in classes}
    _check(files[name, "train", "labels"], train_labels, list(names), f"label of {name}")
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise UserError(
            f"{files[name, 'train', 'labels']}: {len(classes)} different labels ({described(classes)}), "
            f"expected 2 to {MOST_CLASSES}"
        )
    _check(files[name, held_back, "labels"], test_labels, classes, "label of the training images")

    def examples(images: NDArray[np.uint8], labels: NDArray[Any]) -> Examples:
        if transpose or known.transposed:
            images = images.swapaxes(1, 2)
        places = np.searchsorted(classes, labels).astype(np.int32)
        named = tuple(names[label] for label in classes)
        return Examples((images / np.float32(255)).astype(np.float32), places, named)

    name = data if name == BARE else name
    return Dataset(name, examples(train_images, train_labels), examples(test_images, test_labels))


def described(classes: Sequence[Any]) -> str:
    """Increasing integers or characters as text, "0 to 9" or "A, B, F to Z"; longer names one by one."""
    numbers = [ord(c) if isinstance(c, str) and len(c) == 1 else c for c in classes]
    if any(isinstance(number, str) for number in numbers):
        return ", ".join(map(str, classes))
    ends = [place for place, (a, b) in enumerate(pairwise(numbers), 1) if b > a + 1]
    runs = [classes[begin:end] for begin, end in pairwise((0, *ends, len(classes)))]
    words = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return idx_files.listed(words)


def _check(file: Path, labels: NDArray[Any], expected: Sequence[int], what: str) -> None:
    unknown = np.flatnonzero(~np.isin(labels, expected))
    if len(unknown):
        place = unknown[0]
        raise UserError(
            f"{file}: label {labels[place]} at position {place}, expected a {what}, {described(expected)}"
        )


def _choose(folder: Path, data: str, found: Sequence[str], chosen: str | None) -> str:
    known = IMAGE_SETS[data]
    names = [name for name in found if name in known.sets or not known.sets]
    if not names:
        content = idx_files.content_of(folder)
        raise UserError(
            f"{folder}: no IDX file of {data}, expected {known.file}; {content}; from {known.page}"
        )
    if chosen is None:
        if len(names) == 1:
            return names[0]
        if known.preferred in names:
            return known.preferred
        raise UserError(f"{folder}: {len(names)} sets, choose one by --set {' or '.join(names)}")
    for name in (chosen.lower(), f"{data}-{chosen.lower()}"):
        if name in names:
            return name
    raise UserError(f"{folder}: no set {chosen}, expected --set {' or '.join(names)}")
