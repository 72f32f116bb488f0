"""The sizes of blocks on CPU: of the classes of a row, and of rows."""

from __future__ import annotations

import os

from jsoftmax.backends._request import BLOCK_STRIDE, Request
from jsoftmax.transforms._sharding import on_one_device


def _cores() -> int:
    """The number of cores that XLA:CPU uses."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SHORTEST_IN_BLOCKS = 513  # in a shorter row, reading one block again costs as much as a second pass
LONGEST_ARGMAX = 16  # in classes: in many longer rows, XLA compares them one by one
BLOCK = 128  # the approximate block size: one block of every row is read twice
ROW_BLOCK = 2**18 * _cores()  # in logits, over all rows: several arrays of so many stay in the caches
LEAST_PIECE = 256  # in logits that lie side by side in memory: shorter pieces take longer to copy
FEWEST_ROW_BLOCKS = 4  # of fewer logits, all that XLA stores stays in the caches


def block_size(classes: int) -> int | None:
    """The block size of a row: a divisor of its length near `BLOCK`, a multiple of 16 if possible.

    None if the row is short or has no such divisor.
    """
    if classes < SHORTEST_IN_BLOCKS:
        return None
    sizes = [n for n in range(BLOCK // 2, 8193) if classes % n == 0]
    return min(sizes, key=lambda n: (n % 16 > 0, abs(n - BLOCK)), default=None)


def root_size(classes: int) -> int | None:
    """The size of blocks with the fewest blocks and classes of a block together, which divides a row.

    None if the row is short or has no such divisor.
    """
    if classes <= LONGEST_ARGMAX:
        return None
    sizes = [n for n in range(4, classes // 4 + 1) if classes % n == 0]
    return min(sizes, key=lambda n: (n + classes // n, -n), default=None)


def row_block_size(request: Request, *, closer: bool) -> int | None:
    """The number of rows in a block, which divides the length of its axis if possible.

    None if the rows are few, or if a block would be many short pieces of memory. If `closer`, the classes of
    a row lie at most `BLOCK_STRIDE` apart in a block.
    """
    x, axis = request.x, request.row_axis
    if axis is None or x.size < FEWEST_ROW_BLOCKS * ROW_BLOCK or not on_one_device(x, *range(x.ndim)):
        return None
    rows = x.shape[axis]
    most = ROW_BLOCK * rows // x.size
    most = min(most, BLOCK_STRIDE // request.stride_in_block(axis, 1)) if closer else most
    piece = most * request.inner(axis)
    if rows <= most or most < 2 or piece < LEAST_PIECE:
        return None
    return max((n for n in range(max(most // 2, 2), most + 1) if rows % n == 0), default=most)
