"""The largest logits of a row, the position of its label among them, and the rank of the label."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _events
from jsoftmax.rows._events import Events
from jsoftmax.transforms._sharding import ids_of_shard

Axes = tuple[int | str, ...]  # the last axis, and the mesh axes of the shards of the classes


class Label(NamedTuple):
    """The label of every row, [..., 1] each."""

    place: Array  # the index of its event; −1 for an invalid class id
    rank: Array  # 1 plus the number of classes with a larger z; 0 for an invalid class id


class Largest(NamedTuple):
    """The k largest classes of every row, the largest first, and their events.

    With labels there is one more event before the tail: the label, or no class if it is among the k largest.
    """

    events: Events
    ids: Array  # [..., k], over all shards
    label: Label | None


def of_arrays(u: Array, top: Array, ids: Array, *label_terms: Array) -> Largest:
    """`Largest` from its arrays; `label_terms` are those of `Label`, or nothing."""
    return Largest(Events(u, top), ids, Label(*label_terms) if label_terms else None)


def largest(axes: Axes, k: int, x: Array, labels: Array | None, scaling: Scaling) -> Largest:
    """The k classes with the largest z, lower ids first among ties; labels are ids over all shards."""
    _, names = rules.split_axes(axes)
    ordered = lax.stop_gradient(_scaling.ordered_live(x, scaling))
    ids = _ids_of_largest(ordered, k, names)
    if labels is None:
        here = ids_of_shard(ids, x.shape[-1], names)
        return Largest(_events.events(axes, x, here, scaling, None), ids, None)
    among = ids == labels
    is_among = jnp.any(among, -1, keepdims=True)
    place = jnp.where(is_among, jnp.argmax(among, -1, keepdims=True), k)
    of_all = jnp.concatenate([ids, jnp.where(is_among, -1, labels)], -1)
    found = _events.events(axes, x, ids_of_shard(of_all, x.shape[-1], names), scaling, None)
    labels = ids_of_shard(labels, x.shape[-1], names)
    is_here = ((labels >= 0) & (labels < x.shape[-1])).astype(jnp.int32)
    logit, known = _events.picked(ordered, labels), is_here
    if names:
        logit, known = lax.psum(logit, names), lax.psum(known, names)
    above = jnp.sum(ordered > logit, -1, keepdims=True, dtype=jnp.int32)
    rank = 1 + (lax.psum(above, names) if names else above)
    place = jnp.where(known > 0, place, -1).astype(jnp.int32)
    return Largest(found, ids, Label(place, jnp.where(known > 0, rank, 0)))


def _ids_of_largest(ordered: Array, k: int, names: tuple[str, ...]) -> Array:
    """The ids, over all shards, of the k largest logits; each shard sends its own k largest."""
    classes = ordered.shape[-1]
    values, ids = lax.top_k(ordered, min(k, classes))
    ids = ids.astype(jnp.int32)
    if not names:
        return ids
    count, mine = lax.axis_size(names), lax.axis_index(names)
    width = values.shape[-1]
    place = jnp.arange(count * width) // width == mine
    place = jnp.broadcast_to(place, (*values.shape[:-1], count * width))

    def of_all(a: Array) -> Array:
        return lax.psum(jnp.where(place, jnp.tile(a, (1,) * (a.ndim - 1) + (count,)), 0), names)

    values, ids = of_all(values), of_all(ids + mine * classes)
    _, best = lax.top_k(values, k)
    return jnp.take_along_axis(ids, best, -1)
