"""The largest logit of every row, and its class."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _cpu_loops
from jsoftmax.logits._scaling import Scaling, ordered_live

Axes = tuple[int | str, ...]


def peak(x: Array, scaling: Scaling, axes: Axes, *, bounded: bool = False) -> Array:
    """The maximum over the live classes of x (of −x where T < 0), exact in x's dtype; −inf if empty.

    If `bounded`, it is at most the largest finite number. Shifted by it, the exponentials of a row with +inf
    add up to +inf, and to NaN where there is a NaN too.
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
    """The largest over shards; +inf stands for a NaN too, which a maximum over shards may lose."""
    return lax.pmax(jnp.where(jnp.isnan(top), jnp.inf, top), names)


def prediction(ordered: Array, axes: Axes) -> Array:
    """The first of the largest along one axis, and its shards, of logits in the order of z."""
    (axis,), names = rules.split_axes(axes)
    ordered = lax.stop_gradient(ordered)
    index = jnp.argmax(ordered, axis, keepdims=True).astype(jnp.int32)
    if not names:
        return index
    largest = jnp.max(ordered, axis, keepdims=True)
    leads = jnp.isnan(largest) | (largest == _highest(largest, names))
    index = index + lax.axis_index(names) * ordered.shape[axis]
    return lax.pmin(jnp.where(leads, index, jnp.iinfo(jnp.int32).max), names)
