"""The images: scikit-learn's 8x8 digits, or MNIST's four IDX files read from a folder."""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jsoftmax._cli.errors import UserError

CLASSES = 10
IMAGES_MAGIC = 2051  # 0x0803: unsigned bytes in three dimensions
LABELS_MAGIC = 2049  # 0x0801: unsigned bytes in one


@dataclass(frozen=True)
class Examples:
    """Labelled images: float32 [count, rows, columns] in [0, 1] and int32 [count]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int32]

    @property
    def inputs(self) -> NDArray[np.float32]:
        """Every image as one row of pixels, [count, rows * columns]."""
        return self.images.reshape(len(self.images), -1)


@dataclass(frozen=True)
class Dataset:
    """The examples to learn from and those kept back."""

    train: Examples
    test: Examples


def load(name: str, folder: Path | None) -> Dataset:
    """Load "digits", or "mnist" from a folder."""
    if name == "digits":
        if folder is not None:
            raise UserError("--path does not apply to --data digits, which scikit-learn brings along")
        return digits()
    if folder is None:
        raise UserError("--data mnist needs --path DIR, the folder of its four IDX files")
    return mnist(folder)


def digits() -> Dataset:
    """1797 digits, a fifth of each class kept back; the split is the same in every run."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels.astype(np.int32), test_size=0.2, stratify=labels, random_state=0
    )
    return Dataset(Examples(train_images, train_labels), Examples(test_images, test_labels))


def mnist(folder: Path) -> Dataset:
    """MNIST, or any set of images in its format."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the four MNIST IDX files in it")
    train, test = _read_examples(folder, "train"), _read_examples(folder, "t10k")
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = (" x ".join(map(str, examples.images.shape[1:])) for examples in (test, train))
        raise UserError("{}: test images of {} pixels, training images of {}".format(folder, *shapes))
    return Dataset(train, test)


def _read_examples(folder: Path, prefix: str) -> Examples:
    images_file = _find(folder, f"{prefix}-images", "idx3-ubyte")
    labels_file = _find(folder, f"{prefix}-labels", "idx1-ubyte")
    images = _read_idx(images_file, IMAGES_MAGIC, dimensions=3)
    labels = _read_idx(labels_file, LABELS_MAGIC, dimensions=1)
    if images.size == 0:
        raise UserError(f"{images_file}: no images (dimensions {images.shape}), expected some")
    if len(labels) != len(images):
        raise UserError(
            f"{labels_file}: {len(labels)} labels, expected one for each of the "
            f"{len(images)} images of {images_file.name}"
        )
    if labels.max() >= CLASSES:
        place = int(np.argmax(labels >= CLASSES))
        raise UserError(f"{labels_file}: label {labels[place]} at position {place}, expected 0 to 9")
    return Examples((images / np.float32(255)).astype(np.float32), labels.astype(np.int32))


def _find(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{mark}{kind}{suffix}" for mark in "-." for suffix in ("", ".gz")]
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder / names[0]}: no such file, nor {', '.join(names[1:])}")


def _read_idx(path: Path, magic: int, dimensions: int) -> NDArray[Any]:
    """Read big-endian 32-bit words, the magic number and the lengths, then the bytes."""
    content = _read_bytes(path)
    header = 4 * (1 + dimensions)
    # The magic number before the length: it tells a wrong file from a cut one.
    if len(content) >= 4 and (found := int.from_bytes(content[:4], "big")) != magic:
        raise UserError(f"{path}: magic number {found}, expected {magic}")
    if len(content) < header:
        raise UserError(f"{path}: truncated, {len(content)} bytes, expected a header of {header}")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    expected = header + math.prod(shape)
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "trailing bytes"
        raise UserError(f"{path}: {fault}, {len(content)} bytes, expected {expected} for dimensions {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        # By its first bytes, not its name: browsers unpack a download and keep the `.gz`.
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: broken gzip file, expected a whole one ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
