"""Rows that are segments: entries along the first axis, each with the id of its segment.

A plain scatter adds the entries of a segment one after the other, and its rounding error grows with their
number: 100 000 terms lose about 100 ulp. Here a segment with more than about `BUCKET` entries has further
buckets. One scatter adds each entry to its segment, or to a further bucket of it; the next adds the further
buckets in the same way, until few are left. So the error is that of a few short sums. The first scatter takes
most of the time, as in a plain sum.

- Sorted ids are cut into blocks of `BUCKET` entries. An entry goes to the bucket of its block if the first
  entry of the block has the same segment, else to the segment: then the segment begins in this block.
- Of other ids, the entries are counted, and a segment of c entries has ``(c − 1) // BUCKET`` further buckets.
  Its entries take turns by their positions times the golden ratio, modulo 1: a sequence that is evenly
  spread, whichever positions the segment has. The further buckets are in the order of the segments.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.border import _mesh_axes, _segment_ids
from jsoftmax.border._call import Call
from jsoftmax.logits._scaling import Scaling
from jsoftmax.transforms._autodiff import with_tangent
from jsoftmax.transforms._sharding import is_known

BUCKET = 16
_GOLDEN = 2654435769  # 2³² divided by the golden ratio


class Kind(NamedTuple):
    """What is known about segments before the program runs."""

    size: int
    is_sorted: bool
    names: tuple[str, ...] = ()  # the mesh axes of the shards of the entries; each shard knows all segments


class Labels(NamedTuple):
    """The position of the label of each segment, −1 on a shard that does not have it; and which are bad."""

    position: Array
    is_bad: Array  # where the label is no entry of its segment


class Segments(NamedTuple):
    """The segment of each entry, and the way from the entries to the segments."""

    ids: Array
    exists: Array  # whether the entry has a segment; else its id is any
    parents: tuple[Array, ...]  # of entries, of buckets, …: the segment s, or size + k for bucket k

    def sum(self, kind: Kind, terms: Array) -> Array:
        """The sum of the terms of the entries of each segment, on all shards."""
        total = jnp.zeros((kind.size, *terms.shape[1:]), terms.dtype)
        for parent, buckets in zip(self.parents, (*map(len, self.parents[1:]), 0), strict=True):
            table = jnp.concatenate([total, jnp.zeros((buckets, *terms.shape[1:]), terms.dtype)])
            table = table.at[parent].add(terms, mode="promise_in_bounds")
            total, terms = table[: kind.size], table[kind.size :]
        return rules.across(kind.names, total)[0]

    def maximum(self, kind: Kind, entries: Array, least: float) -> Array:
        """The maximum of the entries of each segment, on all shards; `least` if there is none."""
        table = jnp.full((kind.size, *entries.shape[1:]), least, entries.dtype)
        table = table.at[self.ids].max(entries, mode="promise_in_bounds", indices_are_sorted=kind.is_sorted)
        return lax.pmax(table, kind.names) if kind.names else table

    def spread(self, numbers: Array) -> Array:
        """The number of its segment for each entry; its transpose is `sum`, which is as accurate."""
        return _spread(None, numbers, self)

    def looked_up(self, numbers: Array) -> Array:
        """As `spread`, of numbers that no derivative passes through."""
        return _gathered(None, lax.stop_gradient(numbers), self)

    def any(self, kind: Kind, flags: Array) -> Array:
        """Whether any entry of each segment has a flag."""
        return self.maximum(kind, flags.astype(jnp.int32), 0) > 0

    def labels(self, kind: Kind, positions: Array, counted: Array) -> Labels:
        """Positions of entries on this shard, one per segment; bad where it counts and has no such entry."""
        at = jnp.clip(positions, 0, len(self.ids) - 1)
        rows = jnp.arange(len(at), dtype=self.ids.dtype).reshape(-1, *(1,) * (at.ndim - 1))
        is_own = (at == positions) & (self.ids[at] == rows) & self.exists[at]
        (found,) = rules.across(kind.names, is_own.astype(jnp.int32))
        return Labels(jnp.where(is_own, at, -1), counted & (found == 0))

    def rows(self, kind: Kind) -> rules.Rows:
        """The rows, as `rules` takes them for an axis."""
        return lambda *terms: tuple(self.spread(self.sum(kind, a)) for a in terms)

    def scaling(self, scaling: Scaling) -> Scaling:
        """The scaling with the temperature of every entry, from that of every segment."""
        temperature = scaling.temperature
        if temperature is None or temperature.shape[0] == 1:
            return scaling
        return scaling._replace(temperature=self.spread(temperature))


class Entries(NamedTuple):
    """What a call says about its entries: the logits, the segments, the mask and the temperature."""

    x: Array
    segments: Segments
    scaling: Scaling
    kind: Kind


def of_call(call: Call, name: str) -> Entries:
    """The entries of a public call, whose logits have this name."""
    x = call.floats(name)
    names = _mesh_axes.of_classes(call, (name, "segment_ids"))
    ids, exists, count = _segment_ids.of_call(call, x.shape)
    kind = Kind(count, bool(call.arguments["indices_are_sorted"]), names)
    where, of_entries = call.mask(x.shape), jnp.expand_dims(exists, range(1, x.ndim))
    rows = jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)
    temperature = call.per_row("temperature", rows, (), rules.computing_dtype(x.dtype))
    scaling = Scaling(of_entries if where is None else of_entries & where, temperature)
    return Entries(x, grouped(ids, exists, kind), scaling, kind)


def _gathered(_: None, numbers: Array, segments: Segments) -> Array:
    return numbers.at[segments.ids].get(mode="promise_in_bounds")


def _tangent_of_spread(_: None, primals: tuple[Array, Segments], of_segments: Array) -> Array:
    tangent = of_segments
    for parent in reversed(primals[1].parents):
        of_parents = tangent if tangent is of_segments else jnp.concatenate([of_segments, tangent])
        tangent = of_parents.at[parent].get(mode="promise_in_bounds")
    return tangent


_spread = with_tangent(_gathered, _tangent_of_spread)


def grouped(ids: Array, exists: Array, kind: Kind) -> Segments:
    """The segments of entries with these ids, all of them in [0, size)."""
    segment, parents, in_order = ids, [], kind.is_sorted
    while is_known(segment) and len(segment) > BUCKET:
        parent, segment = _in_blocks(segment, kind.size) if in_order else _in_turns(segment, kind.size)
        parents.append(parent)
        in_order = True
    return Segments(ids, exists, (*parents, segment))


def _in_blocks(ids: Array, size: int) -> tuple[Array, Array]:
    """The parents of sorted ids, and the segments of the buckets, one per block."""
    of_blocks = ids[::BUCKET]
    of_block = jnp.repeat(of_blocks, BUCKET)[: len(ids)]
    block = lax.iota(ids.dtype, len(ids)) // BUCKET
    return jnp.where(ids == of_block, size + block, ids), of_blocks


def _in_turns(ids: Array, size: int) -> tuple[Array, Array]:
    """The parents of ids in any order, and the segments of the buckets."""
    segments, zeros = lax.iota(ids.dtype, size), jnp.zeros(size, ids.dtype)
    more = jnp.maximum(zeros.at[ids].add(1, mode="promise_in_bounds") - 1, 0) // BUCKET
    # XLA on CPU stores what a scatter returns. It would compute these sums again for every entry.
    first = zeros.at[segments].set(jnp.cumsum(more) - more, mode="promise_in_bounds")
    # Each bucket has as many of the 2²⁴ positions of the sequence, rounded up, so that none is left over.
    width = (2.0**24 * (1 + 2.0**-22)) / (more + 1).astype(jnp.float32)
    turn = (lax.iota(jnp.uint32, len(ids)) * jnp.uint32(_GOLDEN)) >> 8
    first_bucket, width = (a.at[ids].get(mode="promise_in_bounds") for a in (first, width))
    bucket = (turn.astype(jnp.float32) / width).astype(ids.dtype)
    parent = jnp.where(bucket == 0, ids, size + first_bucket + bucket - 1)
    begins = jnp.zeros((len(ids) - 1) // BUCKET, ids.dtype).at[first].max(segments, mode="drop")
    return parent, lax.cummax(begins)
