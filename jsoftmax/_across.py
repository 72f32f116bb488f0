"""Rows that lie across memory, on CPU: class by class, all of them at once.

XLA would go down one row after the other, and take ten times as long where the next class is far away.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax._sharding import is_whole

LEAST_STRIDE = 2**14  # elements from one class to the next


def crosses(x: Array, axis: int) -> bool:
    """Whether the rows along an axis do, on one device."""
    return is_whole(x, *range(x.ndim)) and math.prod(x.shape[axis + 1 :]) >= LEAST_STRIDE


def maximum(x: Array, axes: tuple[int, ...]) -> Array:
    """Of every row, wherever it lies, on any platform."""

    def plain(x: Array) -> Array:
        return jnp.max(x, axes, keepdims=True)

    def by_class(x: Array) -> Array:
        axis = axes[0]
        highest = _class(x, 0, axis)
        return lax.fori_loop(1, x.shape[axis], lambda i, top: jnp.maximum(top, _class(x, i, axis)), highest)

    if len(axes) != 1 or not crosses(x, *axes):
        return plain(x)
    return lax.platform_dependent(x, cpu=by_class, default=plain)


def sum_of_exponentials(x: Array, axis: int) -> Array:
    """In float64, not shifted."""

    def term(i: Array | int) -> Array:
        return lax.exp(_class(x, i, axis).astype(jnp.float64))

    def add(i: Array, total: Array) -> Array:
        with jax.enable_x64(True):
            return total + term(i)

    with jax.enable_x64(True):
        begun = term(0)
    return lax.fori_loop(1, x.shape[axis], add, begun)


def sum_of_others(x: Array, top: Array, center: Array, axis: int, ids: Array | None) -> Array:
    """``Σ exp(x − center)`` but for the class with a row's id, or else for the first that is `top`."""

    def term(i: Array | int, led: Array) -> tuple[Array, Array]:
        column = _class(x, i, axis).astype(center.dtype)
        leaves = (column == top) & (top < jnp.inf) & ~led if ids is None else ids == i
        half = jnp.where(leaves, 0, jnp.exp((column - center) * 0.5))
        with jax.enable_x64(True):
            half = half.astype(jnp.float64)
            return half * half, led | leaves

    def add(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        total, led = state
        of_class, led = term(i, led)
        with jax.enable_x64(True):
            return total + of_class, led

    total, _ = lax.fori_loop(1, x.shape[axis], add, term(0, top > jnp.inf))
    with jax.enable_x64(True):
        return total.astype(center.dtype)


def _class(x: Array, i: Array | int, axis: int) -> Array:
    return lax.dynamic_index_in_dim(x, i, axis)
