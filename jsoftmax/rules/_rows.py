"""Sums over a row, wherever its classes lie."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

Axes = int | tuple[int | str, ...]

SCALE = 2.0**64  # of a sum of exponentials, so that none of the terms that matter underflows


def split_axes(axes: Axes) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The axes of an array, and the mesh axes over which the shards of its classes lie."""
    axes = (axes,) if isinstance(axes, int) else axes
    return tuple(a for a in axes if isinstance(a, int)), tuple(a for a in axes if not isinstance(a, int))


def row_sums(axes: Axes, *terms: Array) -> tuple[Array, ...]:
    """The sums over a row of each of the terms, with length 1 along it.

    What is linear in a tangent stays apart from what is not: JAX sees no line between parts of one sum.
    """
    own, _ = split_axes(axes)
    return across(axes, *(jnp.sum(t, own, keepdims=True) for t in terms))


def across(axes: Axes, *sums: Array) -> tuple[Array, ...]:
    """The sums over all shards of sums over each: one all-reduce of them all, if there are any shards."""
    _, names = split_axes(axes)
    return tuple(lax.psum(jnp.stack(sums), names)) if names and sums else sums


def compensated(total: Array, lost: Array, term: Array) -> tuple[Array, Array]:
    """A term added to a total, and what the addition lost, which the next one gets (Kahan)."""
    term = term - lost
    longer = total + term
    return longer, jnp.where(jnp.isfinite(longer), (longer - total) - term, 0.0)


def scaled(half: Array) -> Array:
    """``exp(u)``, times `SCALE`, from half = exp(u/2)."""
    return jnp.square(half * SCALE**0.5)


def rounded(x: Array, top: Array) -> Array:
    """x itself, of which `top` is the maximum, before ``x − top``.

    Where x is a product, XLA may compute it once more along with the difference, unrounded, and the maximum
    would not be 0 above itself. A minimum with something larger keeps the two operations apart; XLA's on CPU
    gives the second number where either is NaN.
    """
    return jnp.minimum(top + jnp.abs(top) + 1, x)


def below_infinity(x: Array) -> Array:
    """The largest finite number in place of +inf."""
    return jnp.where(x == jnp.inf, jnp.finfo(x.dtype).max, x)


def nan_where(bad: Array, values: Array) -> Array:
    """The values, NaN where they are bad.

    A quotient makes the NaN: a constant would stop `jax_debug_nans` outside jit where nothing is bad.
    """
    zero_if_bad = jnp.where(bad, 0, 1).astype(values.dtype)
    return jnp.where(bad, zero_if_bad / zero_if_bad, values)


def computing_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """At least float32, whatever comes in."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
