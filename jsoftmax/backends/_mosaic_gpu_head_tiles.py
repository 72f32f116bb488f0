"""A tile of the logits of a linear head on a Hopper GPU: its size, its place in the order, its reduction."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends._accelerators import Part

_ROW_BLOCKS_IN_CACHE = 8  # 16 MB if the hidden states have a length of 4096


class Sizes(NamedTuple):
    """The sizes of the kernel; tests interpret it with smaller ones."""

    rows: int = 64  # of a warpgroup
    classes: int = 256  # of a tile
    depth: int = 64  # of a slab
    stages: int = 4  # slabs in shared memory
    lead: int = 2  # slabs by which the first warpgroup is ahead of the second
    cluster: int = 2  # blocks
    processors: int = 132

    def plan(self, rows: int, classes: int) -> Plan:
        """The longest runs with which the last cluster ends at most 1 % later than it could."""
        row_blocks = -(-rows // (2 * self.rows * self.cluster))
        tiles = -(-classes // self.classes)
        clusters = self.processors // self.cluster
        steps = {n: -(-row_blocks * -(-tiles // n) // clusters) * n for n in range(1, tiles + 1)}
        length = max(n for n, count in steps.items() if count <= 1.01 * min(steps.values()))
        runs = -(-tiles // length)
        return Plan(row_blocks, tiles, length, runs, min(clusters, row_blocks * runs))


class Plan(NamedTuple):
    """How the tiles are divided into runs. Cluster k takes the runs k, k + clusters, and so on."""

    row_blocks: int  # of the rows of one cluster
    tiles: int  # of classes
    length: int  # of a run, in tiles
    runs: int  # of a block of rows
    clusters: int

    def place(self, index: Array) -> tuple[Array, Array]:
        """The run and the block of rows of one of all runs.

        All runs of some blocks of rows precede those of the next blocks, so that these rows stay in the cache
        while all classes pass.
        """
        group = _ROW_BLOCKS_IN_CACHE * self.runs
        before = index // group * _ROW_BLOCKS_IN_CACHE
        blocks = jnp.minimum(_ROW_BLOCKS_IN_CACHE, self.row_blocks - before)
        return index % group // blocks, before + index % group % blocks


def pallas() -> tuple[Any, Any]:
    """Pallas and its part for Hopper GPUs, whose types differ between versions of JAX; loaded when needed."""
    from jax.experimental import pallas
    from jax.experimental.pallas import mosaic_gpu

    return pallas, mosaic_gpu


def part(top: Array, rest: Array, label_logit: Array) -> Part:
    """A `Part` without scaling and moments."""
    return Part(top, None, None, rest, None, (), label_logit)


def rest_terms(half: Array) -> Array:
    """`online.rest_terms`, with a comparison in place of floor, which Mosaic GPU lacks."""
    return rules.scaled(jnp.where(half < 1, half, 0.0))


def tile_part(z: Array, label: Array, has_label: Array, live: Array | None) -> Part:
    """The `Part` of every row of a tile of logits. Labels count from the first class of the tile.

    Only the first `live` classes exist, or all if None. If not `has_label`, no row has its label in the tile.
    The rest of a row whose logits are all −inf is NaN, which `merged` does not use.
    """
    _, plgpu = pallas()
    spread = partial(lax.broadcast_in_dim, shape=z.shape, broadcast_dimensions=(0,))
    ids = plgpu.broadcasted_iota(jnp.int32, z.shape, 1, layout=plgpu.Layout.WGMMA)

    def at_label(z: Array) -> Array:
        return jnp.sum(jnp.where(ids == spread(label), z, 0.0), 1)

    label_logit = lax.cond(has_label, at_label, lambda z: per_row(label.shape, 0), z)
    z = z if live is None else jnp.where(ids < live, z, -jnp.inf)
    top = jnp.max(z, 1)
    half = jnp.exp2((z - spread(top)) * (math.log2(math.e) / 2))
    state = online.from_sums(top, jnp.sum(half * half, 1), jnp.sum(rest_terms(half), 1))
    return part(state.max, state.rest, label_logit)


def per_row(shape: tuple[int, ...], value: float) -> Array:
    """A number for each row of a tile, where the sum over the classes of the tile would be."""
    _, plgpu = pallas()
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
