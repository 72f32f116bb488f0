"""Files in MNIST's format, IDX: finding those of a folder, and reading them.

The files of MNIST, Fashion-MNIST and KMNIST have bare names such as `train-images-idx3-ubyte`. In EMNIST and
QMNIST the name of the set comes first, as in `emnist-letters-test-images-idx3-ubyte`. A name may have dots
instead of dashes, `.gz` may follow, and the file may lie in a folder of its own name, as in some archives.
"""

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jsoftmax._cli.errors import UserError
from jsoftmax._cli.image_sets import BARE

NAME = re.compile(
    r"(?:(?P<set>\w.*?)[-._])?(?P<part>train|t10k|test)[-._](?P<kind>images|labels)[-._]"
    r"idx\d[-._](?:ubyte|int)(?:\.gz)?",
    re.IGNORECASE,
)
LISTED = 8  # the most names in a message

IMAGES_MAGIC = (0x0803,)  # unsigned bytes in three dimensions
LABELS_MAGIC = (0x0801, 0x0C01, 0x0C02)  # unsigned bytes in one dimension; int32 in one, or two (QMNIST)
QMNIST_COLUMNS = 8  # the class comes first, then the writer and the position in NIST's collection

Files = dict[tuple[str, str, str], Path]  # by set, part (train, t10k or test) and kind (images or labels)


def find(folder: Path) -> Files:
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


def content_of(folder: Path) -> str:
    names = [path.name + "/" * path.is_dir() for path in _entries(folder)]
    return f"the folder holds {listed(names)}" if names else "the folder is empty"


def read_part(folder: Path, files: Files, name: str, part: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The images and labels of one part of a set: for training or for the test."""
    for kind, ending in (("images", "idx3-ubyte"), ("labels", "idx1-ubyte")):
        if (name, part, kind) not in files:
            wanted = "-".join([*([] if name == BARE else [name]), part, kind, ending])
            raise UserError(f"{folder / wanted}: no such file, nor {wanted}.gz; {content_of(folder)}")
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


def listed(words: list[str]) -> str:
    """The words with commas, but only the first of many."""
    return ", ".join(words if len(words) <= LISTED else [*words[:LISTED], f"{len(words) - LISTED} more"])
