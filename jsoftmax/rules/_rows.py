"""Sums over a row, also over a row whose classes are sharded, and small operations on floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
from jax import Array, lax, tree

T = TypeVar("T")
Axes = int | tuple[int | str, ...]
# The axes of a row; or the function that `row_sums` calls: for segments, or to compute the sums otherwise.
Rows = Axes | Callable[..., tuple[Array, ...]]

SCALE = 2.0**64  # factor for a sum of exponentials: no term that matters to the sum underflows


def split_axes(axes: Axes) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The array axes (ints) and the mesh axes (names) among `axes`; the names are those of class shards."""
    axes = (axes,) if isinstance(axes, int) else axes
    return tuple(a for a in axes if isinstance(a, int)), tuple(a for a in axes if not isinstance(a, int))


def row_sums(axes: Rows, *terms: Array) -> tuple[Array, ...]:
    """The sum over a row of each term, in a shape that broadcasts against it: length 1 on the class axes.

    Pass terms that are linear in a tangent in a call of their own: shards add all sums of a call in one
    all-reduce, which JAX cannot split into a linear and a nonlinear part.
    """
    if callable(axes):
        return axes(*terms)
    own, _ = split_axes(axes)
    return across(axes, *(jnp.sum(t, own, keepdims=True) for t in terms))


def across(axes: Axes, *sums: Array) -> tuple[Array, ...]:
    """The sums over all shards, from the sums of one: a single all-reduce; without shards the sums given."""
    _, names = split_axes(axes)
    return tuple(lax.psum(jnp.stack(sums), names)) if names and sums else sums


def per_row(axes: Rows, function: Callable[..., T], *numbers: Any) -> T:
    """``function(*numbers)`` of trees of numbers per row, each with length 1 on the class axes, or a scalar.

    The function gets them without these axes. XLA's library on CPU computes along the last axis: it would run
    one operation for each row if that axis had length 1, and one for many rows without it.
    """
    if callable(axes):
        return function(*numbers)
    own, _ = split_axes(axes)
    rows = tree.map(lambda a: jnp.squeeze(a, own) if jnp.ndim(a) else a, numbers)
    found: T = tree.map(lambda a: jnp.expand_dims(a, own), function(*rows))
    return found


def compensated(total: Array, lost: Array, term: Array) -> tuple[Array, Array]:
    """Kahan summation: the total with a term added, and the rounding error, which the next call corrects."""
    term = term - lost
    longer = total + term
    return longer, jnp.where(jnp.isfinite(longer), (longer - total) - term, 0.0)


def scaled(half: Array) -> Array:
    """``SCALE·exp(u)`` from half = exp(u/2)."""
    return jnp.square(half * SCALE**0.5)


def rounded(x: Array, top: Array) -> Array:
    """x, to be used in ``x − top``, where `top` is the maximum of x.

    If x is a product, XLA may compute it again inside the difference, without rounding it, and the difference
    at the maximum is then not 0. A minimum with a larger number prevents this fusion. x is its second
    argument: on CPU, XLA's minimum returns that one if either is NaN.
    """
    return jnp.minimum(top + jnp.abs(top) + 1, x)


def below_infinity(x: Array) -> Array:
    """x, with +inf replaced by the largest finite number."""
    return jnp.where(x == jnp.inf, jnp.finfo(x.dtype).max, x)


def nan_where(bad: Array, values: Array) -> Array:
    """The values, replaced by NaN where `bad`.

    The NaN is the quotient 0/0. A constant NaN would trigger `jax_debug_nans` outside jit even if no value is
    bad.
    """
    zero_if_bad = jnp.where(bad, 0, 1).astype(values.dtype)
    return jnp.where(bad, zero_if_bad / zero_if_bad, values)


def computing_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The float dtype to compute in: float32 for narrower dtypes, else the dtype itself."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
