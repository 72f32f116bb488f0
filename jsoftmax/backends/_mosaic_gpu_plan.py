"""How the rows of a kernel for a Hopper GPU are spread over clusters, blocks and warps.

The unit is a *part*: the classes of one row that one warp holds in shared memory. A warpgroup holds four
parts: of four short rows, or of one long row, which then has 4 · `warpgroups` · `cluster` parts.

Counted for an H200 (132 multiprocessors, 227 KB of shared memory each, 32 GB/s of its memory for each):
- A part of 4 KB, so a block of 64 KB, lets two blocks of 512 threads with up to 64 registers each reside on
  a multiprocessor, and one loads while the other computes. 64 KB in and out take 4 µs; to launch a block
  takes less than 1 µs, behind the other block. So a long row has a cluster of its own, and the hardware
  balances clusters better than a persistent grid, which would have to know how many clusters of eight fit.
- A short row takes less time than a launch. Blocks of one warpgroup stay and take four rows at a time; the
  next four rows load meanwhile into a second stage.
"""

from __future__ import annotations

from typing import NamedTuple

WARPS = 4  # of a warpgroup, hence also its parts
TILE = 256  # classes of a part that one step computes, 8 per thread
SHARED_MEMORY = 227 * 1024  # bytes of a block, and of a multiprocessor
RESERVED = 4 * 1024  # for barriers and what parts exchange
LARGEST_CLUSTER = 8
WARPGROUP_BYTES = 16 * 1024
BLOCK_BYTES = 4 * WARPGROUP_BYTES
SHORT_BYTES = 9 * 1024  # of a row in shared memory


class Limits(NamedTuple):
    """Sizes at which the form of a kernel changes; tests scale them down."""

    short: int = SHORT_BYTES
    warpgroup: int = WARPGROUP_BYTES
    block: int = BLOCK_BYTES
    blocks: int = 7  # that reside on a multiprocessor, if the rows are short: 128 threads of 73 registers
    multiprocessors: int = 132


class Plan(NamedTuple):
    """The shape of a kernel."""

    rows: int
    classes: int
    cluster: int  # blocks that share a row
    warpgroups: int  # of a block
    width: int  # classes of a part in shared memory, a multiple of `TILE`
    size: int  # the classes of them that are loaded
    stages: int  # groups of rows in shared memory at a time
    grid: int  # clusters
    short: bool  # whether a part is a row

    @property
    def parts(self) -> int:
        """The parts of a row."""
        return 1 if self.short else WARPS * self.warpgroups * self.cluster

    @property
    def ragged(self) -> bool:
        """Whether some part is not filled with classes of its own."""
        return self.parts * self.width != self.classes

    @property
    def tail(self) -> int:
        """The classes of the last part that has any, if it is not full."""
        return self.classes % self.size


def plan(rows: int, classes: int, class_bytes: int, limits: Limits) -> Plan:
    """The plan for rows whose classes take `class_bytes` bytes each in shared memory."""
    padded = -(-classes // TILE) * TILE
    if padded * class_bytes <= limits.short:
        groups = -(-rows // WARPS)
        resident = min(limits.blocks, SHARED_MEMORY // (2 * WARPS * padded * class_bytes + 1024))
        grid = min(groups, limits.multiprocessors * resident)
        stages = 1 if grid == groups else 2
        return Plan(rows, classes, 1, 1, padded, classes, stages, grid, True)
    cluster = 1
    while cluster < LARGEST_CLUSTER and classes * class_bytes > cluster * limits.block:
        cluster *= 2
    warpgroups = 1
    while warpgroups < 8 and classes * class_bytes > cluster * warpgroups * limits.warpgroup:
        warpgroups *= 2
    width = -(-classes // (WARPS * warpgroups * cluster * TILE)) * TILE
    while 0 < classes % width < 128:  # one store of a warpgroup, in a row that the copy engine cannot address
        width += TILE
    return Plan(rows, classes, cluster, warpgroups, width, width, 1, rows, False)


def block_bytes(plan: Plan, class_bytes: int) -> int:
    """The shared memory of a block."""
    return plan.stages * plan.warpgroups * WARPS * plan.width * class_bytes + RESERVED
