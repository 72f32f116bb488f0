"""Moves of rows between device memory and the shared memory of one warpgroup.

Shared memory has the shape ``[stages, warpgroups, 4, width]``: each warp reads and writes its own part. The
copy engine moves what begins at multiples of 16 bytes, without a thread. The rows of an array whose row is
not a multiple of 16 bytes are moved by the threads, element by element.

A part that is not full is loaded from where it would end if the row ended with a full part. So no load
leaves the row, and every load has one static size. What a part loads before its own first class belongs to
another part, and is dead in this one.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.backends._mosaic_gpu_plan import TILE, WARPS, Plan

STEP = 2 * TILE  # elements that the threads of a warpgroup move at a time


def by_engine(classes: int, itemsize: int) -> bool:
    """Whether the copy engine can address the rows of an array."""
    return classes * itemsize % 16 == 0


class Place(NamedTuple):
    """The warpgroup that runs a kernel, in its plan; `plgpu` is the module ``pallas.mosaic_gpu``."""

    plgpu: Any
    plan: Plan
    block: Array  # in the cluster
    warpgroup: Array

    def first_part(self) -> Array:
        """The index of the first of the four parts of this warpgroup in their row."""
        return (self.block * self.plan.warpgroups + self.warpgroup) * WARPS

    def row_of(self, group: Array, warp: int) -> Array:
        """The row of one of the four parts; rows that do not exist are the last row."""
        return jnp.minimum(group * WARPS + warp, self.plan.rows - 1) if self.plan.short else group

    def start_of(self, warp: int) -> Array | int:
        """The class where the load of one of the four parts begins."""
        if self.plan.short:
            return 0
        return jnp.minimum((self.first_part() + warp) * self.plan.width, self.plan.classes - self.plan.width)


def loads(place: Place, source: Any, target: Any, group: Array, barrier: Any) -> None:
    """Begins to load the four parts of an array, which has either all rows or one for all of them."""
    plgpu, plan = place.plgpu, place.plan
    engine = by_engine(plan.classes, source.dtype.itemsize)
    for warp in range(WARPS):
        row = 0 if source.shape[0] == 1 else place.row_of(group, warp)
        start = place.start_of(warp)
        if engine:
            plgpu.copy_gmem_to_smem(
                source.at[row, pl_slice(start, plan.size)],
                target.at[warp, pl_slice(0, plan.size)],
                barrier,
                oob_mode=plgpu.OOBFillMode.PROMISE_IN_BOUNDS,
            )
        else:
            _by_threads(plgpu, source.at[row], start, target.at[warp], 0, plan.size)


def stores(place: Place, source: Any, target: Any, group: Array) -> None:
    """Begins to store the four parts of the result. Its copies form a group of the copy engine."""
    from jax.experimental import pallas as pl

    plgpu, plan = place.plgpu, place.plan
    engine = by_engine(plan.classes, target.dtype.itemsize)

    def store(warp: int, row: Array, start: Array | int, offset: int, size: int) -> None:
        if not engine:
            return _by_threads(plgpu, source.at[warp], offset, target.at[row], start, size)
        plgpu.copy_smem_to_gmem(
            source.at[warp, pl_slice(offset, size)],
            target.at[row, pl_slice(start, size)],
            commit_group=False,
        )

    for warp in range(WARPS):
        if plan.short:
            row = group * WARPS + warp
            pl.when(row < plan.rows)(partial(store, warp, row, 0, 0, plan.classes))
            continue
        start = (place.first_part() + warp) * plan.width
        full = start + plan.width <= plan.classes
        pl.when(full)(partial(store, warp, group, start, 0, plan.width))
        if plan.tail:
            at = plan.classes - plan.tail, plan.width - plan.tail, plan.tail
            pl.when(start == at[0])(partial(store, warp, group, *at))
    if engine:
        plgpu.commit_smem_to_gmem_group()


def _by_threads(plgpu: Any, source: Any, at: Any, target: Any, to: Any, size: int) -> None:
    """Moves `size` elements; the last step overlaps the one before it if the size is no multiple of it."""

    def move(offset: Any, count: int) -> None:
        layout = plgpu.Layout.WG_STRIDED((count,), 1)
        values = plgpu.load(source.at[pl_slice(at + offset, count)], layout=layout, optimized=False)
        store(plgpu, target.at[pl_slice(to + offset, count)], values)

    whole = size // STEP
    if whole:
        lax.fori_loop(0, whole, lambda i, _: move(i * STEP, STEP), None)
    for offset in range(whole * STEP, size, 128):
        move(min(offset, size - 128), 128)


def store(plgpu: Any, target: Any, values: Array) -> None:
    """Stores a vector where its layout is not the one that the memory prefers."""
    if hasattr(plgpu, "store"):  # jax 0.12; jax 0.11 does not check what its assignment prefers
        plgpu.store(target, values, optimized=False)
    else:
        target[...] = values


def pl_slice(start: Any, size: int) -> Any:
    """``pl.ds``."""
    from jax.experimental import pallas as pl

    return pl.ds(start, size)
