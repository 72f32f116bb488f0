"""The calls of the kernels for a TPU: blocks of rows, copied in and out while another block is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax.backends import _mosaic_tpu_blocks as blocks
from jsoftmax.backends._kernel_rows import Row
from jsoftmax.backends._mosaic_tpu_blocks import LANES, Group
from jsoftmax.transforms._sharding import varying

MEMORY = 56 * 2**20  # in bytes, of blocks: a core of v7x has 64 MiB, of v5e and v6e 128 MiB
SPARE = 4 * 2**20  # in bytes, for what the compiler stores
WANTED = 8 * 2**20  # in bytes, of blocks: so large, they hide the start of a copy
MASK_ROWS = 32  # of a tile of int8
LOGITS = frozenset({"x", "g"})  # the names of arguments in the shape and the dtype of the logits

# Of a group of rows, of references to further arguments by name, and of references to results.
Kernel = Callable[[Group, dict[str, Any], list[Any]], None]


def refuses(row: Row, wide: int) -> str | None:
    """Why no kernel can take these rows, or None; `wide` counts its arrays in the shape of the logits."""
    rows, classes = row.x.shape
    if jax.__version_info__ < (0, 11):
        return f"the kernels for a TPU need jax 0.11 or later, not {jax.__version__}"
    if row.x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"the kernels for a TPU take bfloat16 and float32, not {row.x.dtype}"
    if not rows * classes:
        return "the kernels for a TPU take at least one row and one class"
    if _bytes(row, wide, _tile(row, wide)) > MEMORY:
        return f"rows of {classes} classes in {row.x.dtype} do not fit the memory of a TPU core"
    return None


def call(
    kernel: Kernel, name: str, row: Row, given: dict[str, Any], numbers: int, values: int, interpret: Any
) -> list[Array]:
    """The results of a kernel: so many float32 numbers of every row, then so many values of every class."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    named = {"x": row.x, "where": row.where, "temperature": row.temperature, **given}
    arguments = {key: varying(a, named) for key, a in named.items() if a is not None}
    rows, classes = row.x.shape
    wide = len(LOGITS & set(arguments)) + values
    size = _group_size(row, wide)
    # The compiler reads a mask of every row from multiples of its tile, of 32 rows, or from the first row.
    one_group = _masks_rows(row) and size % MASK_ROWS > 0
    height = size * (1 if one_group else max(min(WANTED // _bytes(row, wide, size), -(-rows // size)), 1))
    width = _padded(classes, LANES)
    placed = jax.typeof(arguments["x"]).manual_axis_type

    def spec(key: str, a: Array) -> Any:
        of_class = key == "where" or key in LOGITS
        if a.shape[0] == 1 < rows:
            return pl.BlockSpec((1, width), lambda i: (0, 0))
        return pl.BlockSpec((height, width if of_class else 1), lambda i: (i, 0))

    def body(*refs: Any) -> None:
        of = dict(zip(arguments, refs, strict=False))
        further = {key: of[key] for key in given if key in of}

        def group(start: Array | int) -> None:
            rows_of = Group(of["x"], of.get("where"), None, start, size, classes)
            if "temperature" in of:
                rows_of = rows_of._replace(temperature=rows_of.number(of["temperature"]))
            kernel(rows_of, further, list(refs[len(arguments) :]))

        blocks.over_groups(height, size, group)

    number = jax.ShapeDtypeStruct((rows, 1), jnp.float32, manual_axis_type=placed)
    value = jax.ShapeDtypeStruct(row.x.shape, row.x.dtype, manual_axis_type=placed)
    return pl.pallas_call(
        body,
        out_shape=[number] * numbers + [value] * values,
        grid=(-(-rows // height),),
        in_specs=[spec(key, a) for key, a in arguments.items()],
        out_specs=[spec("", row.x)] * numbers + [spec("x", row.x)] * values,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=_bytes(row, wide, height) + SPARE
        ),
        name=f"jsoftmax_{name}",
        interpret=interpret or False,
    )(*arguments.values())


def _group_size(row: Row, wide: int) -> int:
    """How many rows are computed together: those of a tile, and of several tiles if rows are short."""
    tile = _tile(row, wide)
    if row.x.shape[0] <= tile:
        return row.x.shape[0]
    in_registers = blocks.REGISTERS * 8 * LANES // _padded(row.x.shape[1], LANES)
    return max(min(in_registers // tile * tile, _padded(row.x.shape[0], tile)), tile)


def _tile(row: Row, wide: int) -> int:
    """The rows of a tile of every array: 32 with a mask of every row, 16 in 16 bits, 8 if more do not fit."""
    tile = MASK_ROWS if _masks_rows(row) else 32 // row.x.dtype.itemsize
    while tile > 8 and _bytes(row, wide, tile) > MEMORY:
        tile //= 2
    return tile


def _masks_rows(row: Row) -> bool:
    return row.where is not None and row.where.shape[0] > 1


def _bytes(row: Row, wide: int, rows: int) -> int:
    """The memory of a block of rows, of which two are in use: one is computed while another is copied."""
    rows, classes = _padded(rows, 8), _padded(row.x.shape[1], LANES)
    of_mask = 0 if row.where is None else (8 if row.where.shape[0] == 1 else rows) * classes
    of_numbers = 6 * rows * LANES * 4
    return 2 * (wide * rows * classes * row.x.dtype.itemsize + of_mask + of_numbers)


def _padded(n: int, to: int) -> int:
    return n + -n % to
