"""Rows whose classes lie far apart in memory: on CPU their maximum is found class by class."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.transforms._platforms import by_platform
from jsoftmax.transforms._sharding import is_whole

LEAST_STRIDE = 2**16  # elements from one class to the next


def crosses(x: Array, axis: int) -> bool:
    """Whether the classes along an axis lie that far apart, on one device."""
    return is_whole(x, *range(x.ndim)) and math.prod(x.shape[axis + 1 :]) >= LEAST_STRIDE


def maximum(x: Array, axes: tuple[int, ...]) -> Array:
    """The maximum of every row."""

    def plain(x: Array) -> Array:
        return jnp.max(x, axes, keepdims=True)

    def by_class(x: Array) -> Array:
        axis = axes[0]

        def higher(i: Array, top: Array) -> Array:
            return jnp.maximum(top, lax.dynamic_index_in_dim(x, i, axis))

        return lax.fori_loop(1, x.shape[axis], higher, lax.dynamic_index_in_dim(x, 0, axis))

    if len(axes) != 1 or not crosses(x, *axes):
        return plain(x)
    return by_platform(
        "the maximum of every row",
        x,
        plain=plain,
        cpu=(by_class, "class by class: the next class lies far away"),
    )
