"""The plan of the blocks of logits of a linear head, and loops over blocks of rows and of classes.

The logits, ``hidden @ weight``, have B rows and V classes. A block has some of the rows and usually all
classes, so that the forward pass can compute its loss and its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.transforms._platforms import reconverted_on_cpu
from jsoftmax.transforms._sharding import most_shards, zeros

SMALL_BLOCK = 2**26  # bytes of logits: a smaller block saves no memory that matters
LARGE_BLOCK = 2**30  # bytes of logits: the most of a block, unless a single row has more
FEWEST_ROWS = 64  # of a block with all classes: with fewer rows, products are slow
ENOUGH_ROWS = 512  # of a block: products with more rows are not faster


class BlockPlan(NamedTuple):
    """The blocks of the logits of a linear head.

    Every block reads the weight once and, for a gradient, the running sum of the weight's gradient. Relative
    to the arithmetic of a product, this is 1/block_rows. So a block has at least 512 rows, with gradients
    also at least half as many as features, and more if they fit in 64 MiB; but at most 1 GiB of logits. If
    1 GiB holds fewer than 64 rows, a block does not have all classes, and gradients need a fourth product.

    >>> import jsoftmax
    >>> print(jsoftmax.linear_plan(8192, 512, 128256))
    16 blocks of 512 rows × 128256 classes, 250.5 MiB of logits each
    """

    rows: int
    classes: int
    block_rows: int
    block_classes: int
    itemsize: int

    @property
    def row_blocks(self) -> int:
        """The number of blocks along the rows."""
        return 1 if self.rows in (0, self.block_rows) else -(-self.rows // self.block_rows)

    @property
    def class_blocks(self) -> int:
        """The number of blocks along the classes."""
        return 1 if self.classes == self.block_classes else -(-self.classes // self.block_classes)

    @property
    def block_bytes(self) -> int:
        """The bytes of one block of logits."""
        return self.block_rows * self.block_classes * self.itemsize

    def __str__(self) -> str:
        count = self.row_blocks * self.class_blocks
        block = f"{self.block_rows} rows × {self.block_classes} classes"
        size = f"{self.block_bytes / 2**20:.1f} MiB of logits"
        return f"1 block of {block}, {size}" if count == 1 else f"{count} blocks of {block}, {size} each"


def plan(
    rows: int,
    features: int,
    classes: int,
    *,
    itemsize: int = 4,
    gradient: bool = True,
    block_size: int | tuple[int, int] | None = None,
) -> BlockPlan:
    """The plan for these sizes; `block_size`, if given, is the rows of a block, or its rows and classes."""
    row_bytes = classes * itemsize
    block_classes = classes
    if block_size is None:
        enough = max(ENOUGH_ROWS, features // 2 if gradient else 0, SMALL_BLOCK // row_bytes)
        block_rows = min(enough, LARGE_BLOCK // row_bytes)
        if block_rows < min(FEWEST_ROWS, rows):
            block_rows = min(ENOUGH_ROWS, rows)
            block_classes = max(LARGE_BLOCK // (itemsize * block_rows), 1)
    elif isinstance(block_size, tuple):
        block_rows, block_classes = block_size
    else:
        block_rows = block_size
    return BlockPlan(rows, classes, _even(rows, block_rows), _even(classes, block_classes), itemsize)


def of_two_heads(plan: BlockPlan) -> BlockPlan:
    """The plan of one head for two: half as many rows in a block, if two blocks take more than 1 GiB."""
    if 2 * plan.block_bytes <= LARGE_BLOCK:
        return plan
    return plan._replace(block_rows=_even(plan.rows, max(plan.block_rows // 2, FEWEST_ROWS)))


def shortened(plan: BlockPlan, block_rows: int) -> BlockPlan:
    """Blocks of at most this many rows."""
    return plan._replace(block_rows=_even(plan.rows, min(plan.block_rows, block_rows)))


def _even(total: int, size: int) -> int:
    """The size of equal blocks of at most `size`, so that they divide the total if possible.

    To divide it, there may be up to twice as many blocks as needed.
    """
    if not total:
        return 1
    count = -(-total // max(min(size, total), 1))
    count = next((n for n in range(count, 2 * count) if total % n == 0), count)
    return -(-total // count)


def over_rows(
    plan: BlockPlan, body: Callable[[Any, Any, Array | None], tuple[Any, Any]], carry: Any, rows: Any
) -> tuple[Any, Any]:
    """``carry, outputs = body(carry, rows of a block, counted)``, over all blocks; outputs have all rows.

    Each block is a slice of the rows, and its outputs are written into a slice of the outputs: no array of
    all rows is copied. If the rows may be sharded, a block takes the same number of rows of every shard. If
    the blocks do not divide the rows, the first two overlap. The second writes the shared rows again, and
    `counted`, [B, 1], is False there in the first.
    """
    if plan.row_blocks == 1:
        return body(carry, rows, None)
    groups = math.gcd(plan.rows, math.lcm(*(most_shards(a, 0) for a in jax.tree.leaves(rows))))
    length, size = plan.rows // groups, -(-plan.block_rows // groups)
    count = -(-length // size)
    spare = count * size - length

    def begin(i: Array) -> Array:
        return jnp.maximum(i * size - spare, 0) if spare else i * size

    def read(i: Array, a: Array) -> Array:
        if a.dtype.itemsize < 4 and a.dtype != bool:
            a = reconverted_on_cpu(a, i)  # else XLA converts all blocks at once, before the loop
        return lax.dynamic_slice_in_dim(a, begin(i), size, 1).reshape(groups * size, *a.shape[2:])

    def write(i: Array, a: Array, block: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(a, block, begin(i), 1)

    def counted(i: Array) -> Array | None:
        if not spare:
            return None
        place = lax.broadcasted_iota(jnp.int32, (groups, size), 1)
        return ((i > 0) | (place < size - spare)).reshape(-1, 1)

    body = jax.jit(body)  # traced once

    def of_block(i: Array, carry: Any) -> tuple[Any, Any]:
        carry, outputs = body(carry, jax.tree.map(partial(read, i), rows), counted(i))
        return carry, jax.tree.map(lambda a: a.reshape(groups, size, *a.shape[1:]), outputs)

    def step(state: tuple[Any, Any], i: Array) -> tuple[tuple[Any, Any], None]:
        carry, outputs = state
        carry, blocks = of_block(i, carry)
        return (carry, jax.tree.map(partial(write, i), outputs, blocks)), None

    rows = jax.tree.map(lambda a: a.reshape(groups, length, *a.shape[1:]), rows)
    _, blocks = jax.eval_shape(of_block, jnp.int32(0), carry)
    outputs = jax.tree.map(lambda a: zeros((groups, length, *a.shape[2:]), a), blocks)
    # A derivative of this loop keeps only the rows of a block, and computes all other residuals again.
    step = jax.checkpoint(step, prevent_cse=False)
    (carry, outputs), _ = lax.scan(step, (carry, outputs), jnp.arange(count, dtype=jnp.int32))
    return carry, jax.tree.map(lambda a: a.reshape(plan.rows, *a.shape[2:]), outputs)


def over_classes(classes: int, size: int, body: Callable[[Any, Array | int, int], Any], carry: Any) -> Any:
    """``carry = body(carry, first class, number of classes)`` over blocks of `size`, after a shorter one."""
    if size == classes:
        return body(carry, 0, size)
    steps = (classes - 1) // size
    first = classes - steps * size
    carry = body(carry, 0, first)
    return lax.fori_loop(0, steps, lambda i, carry: body(carry, first + i * size, size), carry)


def part(array: Array | None, start: Array | int, size: int, axis: int) -> Any:
    """The slice of an array along an axis; the array itself if it is no longer than `size`."""
    if array is None or array.shape[axis] == size:
        return array
    return lax.dynamic_slice_in_dim(array, start, size, axis)


def with_part(array: Array | None, part: Array | None, start: Array | int, axis: int) -> Any:
    """The array with a slice replaced by `part`; `part` itself if it has the shape of the array."""
    if array is None or part is None or array.shape == part.shape:
        return part
    return lax.dynamic_update_slice_in_dim(array, part, start, axis)
