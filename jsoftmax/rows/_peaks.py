"""The largest logit of every row, and its class index."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _blocks, _cpu_loops
from jsoftmax.backends._choice import choose
from jsoftmax.backends._request import Request
from jsoftmax.logits._scaling import Scaling, ordered_live
from jsoftmax.transforms._platforms import by_platform

Axes = tuple[int | str, ...]


def peak(x: Array, scaling: Scaling, axes: Axes, *, bounded: bool = False) -> Array:
    """The maximum of x over the live classes (of −x where T < 0), exact in x's dtype; −inf in an empty row.

    If `bounded`, it is at most the largest finite number. Then the exponentials of a row with +inf, shifted
    by it, add up to +inf, or to NaN if the row also contains NaN.
    """
    own, names = rules.split_axes(axes)
    ordered = lax.stop_gradient(ordered_live(x, scaling))
    bare = scaling.where is None and scaling.temperature is None
    top = _cpu_loops.maximum(ordered, own, bare=bare)
    top = rules.below_infinity(top) if bounded else top
    if not names:
        return top
    top = _highest(top, names)
    return rules.nan_where(top == jnp.inf, top)


def _highest(top: Array, names: tuple[str, ...]) -> Array:
    """The maximum over shards; +inf also stands for a NaN, which a maximum over shards may lose."""
    return lax.pmax(jnp.where(jnp.isnan(top), jnp.inf, top), names)


def first_of_largest(x: Array, axis: int) -> Array:
    """The index of the first largest entry along an axis, which has length 1 then; any one beside a NaN."""
    axis %= x.ndim

    def in_one(x: Array) -> Array:
        return jnp.argmax(x, axis, keepdims=True)

    def in_blocks(size: int, x: Array) -> Array:
        largest = jnp.max(_blocks.in_blocks(size, x, axis), axis + 1)
        best = jnp.argmax(largest, axis, keepdims=True)
        return best * size + jnp.argmax(_blocks.block(size, x, best, axis), axis, keepdims=True)

    def apart(x: Array) -> Array:
        index: Array = _blocks.not_fused(in_one, x.astype(rules.computing_dtype(x.dtype)))
        return index

    named: dict[str, Callable[..., Array]] = {"block of the largest": in_blocks, "entries first": apart}
    forms = choose(Request("largest class", x, (axis,))).functions(named)
    index: Array = by_platform("the largest of every row", x, plain=in_one, **forms)
    return index.astype(jnp.int32)


def prediction(ordered: Array, axes: Axes) -> Array:
    """The index of the first largest logit along one axis and its shards, for logits in the order of z."""
    (axis,), names = rules.split_axes(axes)
    ordered = lax.stop_gradient(ordered)
    index = first_of_largest(ordered, axis)
    if not names:
        return index
    largest = jnp.max(ordered, axis, keepdims=True)
    leads = jnp.isnan(largest) | (largest == _highest(largest, names))
    index = index + lax.axis_index(names) * ordered.shape[axis]
    return lax.pmin(jnp.where(leads, index, jnp.iinfo(jnp.int32).max), names)
