"""Arrays in .npy, .npz and .safetensors files, read block by block: memory holds one block.

The files are streams. A file mapped into memory would count towards the memory of the process until the
system needs its pages; and an array in a compressed .npz cannot be mapped. All three formats hold an array
row after row, so one reader is enough for them.
"""

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from jsoftmax._cli.errors import UserError

SUFFIXES = (".npy", ".npz", ".safetensors")
SHOWN = 8  # names of arrays in a message
SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
Header = tuple[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True)
class StoredArray:
    """An array in a file: its name in messages, shape and dtype, and how to open it at its first byte."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[], IO[bytes]]

    def blocks(self, rows: int, axes: int) -> Iterator[NDArray[Any]]:
        """Consecutive blocks of so many rows; the first `axes` axes are flattened to one axis of rows."""
        total, row = math.prod(self.shape[:axes]), self.shape[axes:]
        try:
            with self.open() as stream:
                for start in range(0, total, rows):
                    block = np.empty((min(rows, total - start), *row), self.dtype)
                    self._fill(stream, block)
                    native = self.dtype.newbyteorder("=")
                    yield block if native == self.dtype else block.astype(native)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{self.name}: cannot be read ({error})") from None

    def _fill(self, stream: IO[bytes], block: NDArray[Any]) -> None:
        left = block.reshape(-1).view(np.uint8).data
        while left:
            count = stream.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise EOFError("it ends too early")
            left = left[count:]


def find(given: str, role: str) -> StoredArray:
    """The array that ``FILE`` or ``FILE:NAME`` names; of several in a file, the one named as its role."""
    path, name = _split(given)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{given}: unknown file type; give one of {', '.join(SUFFIXES)}")
    try:
        size = path.stat().st_size
        if not size:
            raise UserError(f"{path}: the file is empty")
        if path.suffix == ".npy":
            return _in_npy(path, size)
        if path.suffix == ".npz":
            return _in_npz(path, name, role)
        return _in_safetensors(path, size, name, role)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _split(given: str) -> tuple[Path, str | None]:
    """``FILE:NAME`` in its parts; the name is None for a file alone."""
    file, colon, name = given.rpartition(":")
    if colon and Path(file).suffix in SUFFIXES and Path(given).suffix not in SUFFIXES:
        return Path(file), name
    return Path(given), None


def _chosen(path: Path, name: str | None, names: Iterable[str], role: str) -> str:
    """The name of the array to read."""
    known = list(names)
    if name in known:
        return str(name)
    shown = ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
    if not known:
        raise UserError(f"{path}: holds no array")
    if name is not None:
        raise UserError(f"{path}: holds no array {name!r}, but {shown}")
    if len(known) == 1:
        return known[0]
    if role in known:
        return role
    raise UserError(f"{path}: holds {shown}; write which one has the {role}, as {path}:{known[0]}")


def _in_npy(path: Path, size: int) -> StoredArray:
    with path.open("rb") as stream:
        shape, dtype = _npy_header(stream, str(path))
        start = stream.tell()
    _check_size(str(path), size - start, shape, dtype)

    def open_array() -> IO[bytes]:
        stream = path.open("rb", buffering=0)
        stream.seek(start)
        return stream

    return StoredArray(str(path), shape, dtype, open_array)


def _in_npz(path: Path, name: str | None, role: str) -> StoredArray:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.removesuffix(".npy"): member for member in archive.namelist()}
            chosen = _chosen(path, name, members, role)
            shown = f"{path}:{chosen}"
            with archive.open(members[chosen]) as stream:
                shape, dtype = _npy_header(stream, shown)
                start = stream.tell()
            size = archive.getinfo(members[chosen]).file_size
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{path}: is truncated, or no .npz file ({error})") from None
    _check_size(shown, size - start, shape, dtype)

    def open_array() -> IO[bytes]:
        with zipfile.ZipFile(path) as archive:  # the stream of a member keeps the file open
            stream = archive.open(members[chosen])
        stream.read(start)
        return stream

    return StoredArray(shown, shape, dtype, open_array)


def _npy_header(stream: IO[bytes], name: str) -> Header:
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
    except (ValueError, EOFError) as error:
        raise UserError(f"{name}: is truncated, or no .npy file ({error})") from None
    if is_fortran and len(shape) > 1:
        remedy = "save numpy.ascontiguousarray of it"
        raise UserError(f"{name}: the array is stored column by column (Fortran order); {remedy}")
    if dtype.hasobject or dtype.names:
        raise UserError(f"{name}: holds {dtype} and not numbers; save an array of numbers")
    if dtype == np.dtype("V2"):
        dtype = np.dtype(jnp.bfloat16)  # which NumPy's files do not name
    return shape, dtype


def _in_safetensors(path: Path, size: int, name: str | None, role: str) -> StoredArray:
    """Source: https://huggingface.co/docs/safetensors, the format: a length, JSON, and the bytes."""
    with path.open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            entries = {key: (e["dtype"], tuple(e["shape"]), e["data_offsets"]) for key, e in header.items()}
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: is truncated, or no .safetensors file ({error})") from None
    chosen = _chosen(path, name, entries, role)
    shown = f"{path}:{chosen}"
    kind, shape, (begin, end) = entries[chosen]
    if kind not in SAFETENSORS:
        raise UserError(f"{shown}: has dtype {kind}; save it in one of {', '.join(SAFETENSORS)}")
    dtype, start = jnp.dtype(SAFETENSORS[kind]), 8 + length + begin
    _check_size(shown, min(end - begin, size - start), shape, dtype)

    def open_array() -> IO[bytes]:
        stream = path.open("rb", buffering=0)
        stream.seek(start)
        return stream

    return StoredArray(shown, shape, dtype, open_array)


def _check_size(name: str, size: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    needed = math.prod(shape) * dtype.itemsize
    if size < needed:
        raise UserError(f"{name}: is truncated: {dtype}{list(shape)} takes {needed} bytes, it has {size}")
