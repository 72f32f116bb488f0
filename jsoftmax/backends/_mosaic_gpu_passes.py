"""The passes over a row in shared memory, in tiles of 4 parts × 256 classes, one part per warp.

The numbers of a row are scalars if its parts are spread over warps, or vectors of 4 rows, one per warp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends._mosaic_gpu_moves import Place, pl_slice
from jsoftmax.backends._mosaic_gpu_plan import TILE, WARPS
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling


def tile_layout(plgpu: Any, dtype: Any) -> Any:
    """The layout of a tile: a thread holds 16 bytes of the logits at a time."""
    vector = 16 // jnp.dtype(dtype).itemsize
    tiling = plgpu.Tiling(((WARPS, 32 * vector), (vector,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-3,), lane_dims=(-2,), vector_dim=-1)


def parts_layout(plgpu: Any, parts: int) -> Any:
    """The layout of one number for each part of a block: every warp holds all of them, so it can sum them."""
    lanes = (plgpu.Replicated(32 // parts), -2) if parts < 32 else (-2,)
    tiling = plgpu.Tiling(((parts,), (1,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(plgpu.Replicated(WARPS),), lane_dims=lanes, vector_dim=-1)


class Slots(NamedTuple):
    """Where parts exchange numbers: per number, one array with an entry for each part of the block.

    `arrays` are in shared memory, where the blocks of a cluster read each other's. The interpreter of Mosaic
    GPU does not know such reads; for it, `stand_in` is an array in device memory.
    """

    arrays: tuple[Any, ...]
    barrier: Any
    stand_in: Any = None


def across(tile: Array) -> Callable[[Array], Array]:
    """A function that broadcasts a number of a row to a tile."""
    return lambda a: lax.broadcast_in_dim(a, tile.shape, (0,) if a.ndim else ())


def shifted(x: Array, scaling: Scaling, top: Array) -> Array:
    """``(z − top)/|T|``, as `_scaling.shift` computes it."""
    z, z_top = _scaling.ordered(x, scaling, top)
    if scaling.temperature is None:
        return z - z_top
    return 2 * plain(rules.divided)(z / 2 - z_top / 2, scaling.temperature)


def plain(function: Any) -> Callable[..., Array]:
    """The function without its derivative rule, which jax 0.11 does not take in a kernel."""
    return function.__wrapped__


class Passes:
    """The passes of one warpgroup over the parts that it holds; `x`, `where` and `g` are in shared memory."""

    def __init__(
        self,
        place: Place,
        x: Any,
        where: Any = None,
        g: Any = None,
        temperature: Array | None = None,
    ) -> None:
        self.place, self.x, self.where, self.g, self.temperature = place, x, where, g, temperature
        self.layout = tile_layout(place.plgpu, x.dtype)
        self.tiles = place.plan.width // TILE

    def load(self, array: Any, i: Array) -> Array:
        return self.place.plgpu.load(array.at[:, pl_slice(i * TILE, TILE)], layout=self.layout)

    def store(self, array: Any, i: Array, tile: Array) -> None:
        array[:, pl_slice(i * TILE, TILE)] = tile.astype(array.dtype)

    def filled(self, value: float, dtype: Any = jnp.float32) -> Array:
        tile = jnp.full((WARPS, TILE), value, dtype)
        return self.place.plgpu.layout_cast(tile, self.layout)

    def scaling(self, tile: Array) -> Scaling:
        """The scaling of a tile that is masked already."""
        return Scaling(None, None if self.temperature is None else across(tile)(self.temperature))

    def index(self, axis: int) -> Array:
        plgpu = self.place.plgpu
        return plgpu.broadcasted_iota(jnp.int32, (WARPS, TILE), axis, layout=self.layout)

    def class_ids(self) -> Array:
        """The class of every entry of the first tile."""
        column, plan = self.index(1), self.place.plan
        if plan.short:
            return column
        start = (self.place.first_part() + self.index(0)) * plan.width
        return jnp.minimum(start, plan.classes - plan.width) + column

    def own(self) -> Callable[[Array], Array] | None:
        """A function of the index of a tile: where the tile has classes of its own part. None: everywhere."""
        plan, column = self.place.plan, self.index(1)
        if not plan.ragged:
            return None
        if plan.short:
            return lambda i: column < plan.classes - i * TILE
        start = (self.place.first_part() + self.index(0)) * plan.width
        column = column + jnp.minimum(plan.classes - plan.width - start, 0)
        return lambda i: column >= -i * TILE

    def each(self, step: Callable[..., Any], initial: Any = None) -> Any:
        return lax.fori_loop(0, self.tiles, step, initial)

    def masked(self, i: Array, own: Any) -> Array:
        """A tile of the logits with −inf at classes that are masked or of another part, also stored so."""
        x = self.load(self.x, i)
        live = None if own is None else own(i)
        if self.where is not None:
            counts = self.load(self.where, i).astype(jnp.int32) != 0
            live = counts if live is None else live & counts
        if live is None:
            return x
        x = jnp.where(live, x, -jnp.inf)
        self.store(self.x, i, x)
        if self.g is not None:
            self.store(self.g, i, jnp.where(live, self.load(self.g, i), 0.0))
        return x

    def top(self) -> Array:
        """The largest live logit of each part, in the order of z."""
        own = self.own()

        def step(i: Array, largest: Array) -> Array:
            x = self.masked(i, own)
            return jnp.maximum(largest, _scaling.ordered_live(x, self.scaling(x)))

        largest = self.each(step, self.filled(-jnp.inf, self.x.dtype))
        return jnp.max(largest.astype(jnp.float32), axis=1)

    def shifted(self, i: Array, top: Array) -> Array:
        x = self.load(self.x, i)
        return shifted(x, self.scaling(x), across(x)(top))

    def exp(self, u: Array) -> Array:
        """``exp(u)``; for 16 bits, whose u is nearly exact, by half the instructions, to 2 + |u| ulp."""
        return jnp.exp2(u * (1 / math.log(2))) if self.x.dtype.itemsize == 2 else jnp.exp(u)

    def state(self, top: Array) -> online.State:
        """The state of each part. A term is left out of the rest if u is 0, as in `online.rest_terms`."""

        def step(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            u = self.shifted(i, top)
            term = self.exp(u)
            return sums[0] + term, sums[1] + jnp.where(u < 0, term, 0.0)

        sums = self.each(step, (self.filled(0), self.filled(0)))
        total, rest = (jnp.sum(a, axis=1) for a in sums)
        return online.from_sums(top, total, rest, scale=1)


def exchanged(place: Place, slots: Slots, numbers: tuple[Array, ...]) -> list[list[Array]]:
    """The given numbers of every part of a row: a vector for each block of the cluster, for each number."""
    plgpu, plan = place.plgpu, place.plan
    count = WARPS * plan.warpgroups
    layout = parts_layout(plgpu, count)
    own = pl_slice(place.warpgroup * WARPS, WARPS)
    for i, number in enumerate(numbers):
        if slots.stand_in is None:
            slots.arrays[i][own] = number
        else:
            slots.stand_in[place.block, i, own] = number
    plgpu.commit_smem()
    meet(place, slots)

    def read(i: int, block: int) -> Array:
        if slots.stand_in is not None:
            array = slots.stand_in.at[block, i]
        else:
            array = slots.arrays[i]
            array = array if plan.cluster == 1 else plgpu.cluster_ref(array, {"block": block})
        return plgpu.load(array, layout=layout, optimized=False)

    return [[read(i, block) for block in range(plan.cluster)] for i in range(len(numbers))]


def meet(place: Place, slots: Slots) -> None:
    """Waits for the warpgroups that share the row."""
    if place.plan.cluster * place.plan.warpgroups > 1:
        place.plgpu.barrier_arrive(slots.barrier)
        place.plgpu.barrier_wait(slots.barrier)


def merged(place: Place, slots: Slots, part: online.State, temperature: Array | None) -> online.State:
    """The state of the whole row, from that of every part."""
    if place.plan.short:
        return part
    tops, rests = exchanged(place, slots, part)
    top = jnp.max(reduce(jnp.maximum, tops))
    scaling = Scaling(None, None if temperature is None else jnp.abs(temperature))
    shares = []
    for of_top, of_rest in zip(tops, rests, strict=True):
        scale = jnp.exp(shifted(of_top, scaling, top))
        shares.append(online.shares(online.State(of_top, of_rest), top, scale))
    rest, leading = (jnp.sum(reduce(jnp.add, terms)) for terms in zip(*shares, strict=True))
    return online.State(top, rest + (leading - 1))


def summed(place: Place, slots: Slots, *sums: Array) -> tuple[Array, ...]:
    """Sums over the whole row, from those over every part."""
    if place.plan.short:
        return sums
    return tuple(jnp.sum(reduce(jnp.add, parts)) for parts in exchanged(place, slots, sums))


def reciprocal_total(rest: Array) -> Array:
    """``1/(1 + rest)``; 0 in an empty row."""
    return jnp.where(rest < 0, 0.0, 1 / (1 + jnp.where(rest < 0, 0.0, rest)))


def log_total(rest: Array) -> Array:
    """As `online.log_total`."""
    return plain(rules.log1p)(jnp.where(rest < 0, 0.0, rest))


def label_gradient(state: online.State, label: Array, temperature: Array | None) -> Array:
    """`rules.label_residual` at the label, whose logit in the order of z is `label`."""
    scaling = Scaling(None, None if temperature is None else jnp.abs(temperature))
    nll = log_total(state.rest) - shifted(label, scaling, state.max)
    return rules.expm1(-nll)
