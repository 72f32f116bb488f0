"""The largest logit of every row, and its class index."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _cpu_loops
from jsoftmax.logits._scaling import Scaling, ordered_live

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


def prediction(ordered: Array, axes: Axes) -> Array:
    """The index of the first largest logit along one axis and its shards, for logits in the order of z."""
    (axis,), names = rules.split_axes(axes)
    ordered = lax.stop_gradient(ordered)
    index = jnp.argmax(ordered, axis, keepdims=True).astype(jnp.int32)
    if not names:
        return index
    largest = jnp.max(ordered, axis, keepdims=True)
    leads = jnp.isnan(largest) | (largest == _highest(largest, names))
    index = index + lax.axis_index(names) * ordered.shape[axis]
    return lax.pmin(jnp.where(leads, index, jnp.iinfo(jnp.int32).max), names)
