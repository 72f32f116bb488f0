"""Sums in two words: the high word is the rounded sum, and the low word holds its rounding error.

In float32 this gives 48 bits. Integers are exact up to 2⁴⁸. The sum of two sums of the same sign has a
relative error of about 1e-14, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.transforms._autodiff import with_tangent

Static = tuple[int, ...]  # the axes to sum over


class Sum(NamedTuple):
    """The number ``high + low``; high is this sum, rounded."""

    high: Array
    low: Array


def zero(shape: Sequence[int], dtype: Any) -> Sum:
    """The sum 0, the neutral element of `add`."""
    return Sum(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def add(a: Sum, b: Sum) -> Sum:
    """The sum of two sums, with a relative error of at most 3·2⁻⁴⁸ in float32; infinities and NaN propagate.

    It is commutative to the last bit. Source: AccurateDWPlusDW in Joldes, Muller & Popescu (2017).
    """
    plain = a.high + b.high
    high, lost = _two_sum(a.high, b.high)
    low, lost_of_low = _two_sum(a.low, b.low)
    high, lost = _renormalised(high, lost + low)
    high, low = _renormalised(high, lost + lost_of_low)
    finite = jnp.isfinite(plain)
    return Sum(jnp.where(finite, high, plain), jnp.where(finite, low, 0))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum and its exact rounding error (Knuth)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _renormalised(a: Array, b: Array) -> tuple[Array, Array]:
    """`_two_sum` for |a| ≥ |b| (Dekker)."""
    total = a + b
    return total, b - (total - a)


def total(values: Array, axes: Sequence[int], dtype: Any) -> Sum:
    """The sum of values over `axes`. Values with more digits than `dtype` are added as two words."""
    high = values.astype(dtype)
    if jnp.finfo(values.dtype).bits <= jnp.finfo(dtype).bits:
        return fold(Sum(high, jnp.zeros_like(high)), axes)
    low = (values - high.astype(values.dtype)).astype(dtype)
    return fold(Sum(high, jnp.where(jnp.isfinite(high), low, 0)), axes)


def count(flags: Array, axes: Sequence[int], dtype: Any) -> Sum:
    """The exact number of flags that are True, over `axes`."""
    number = jnp.sum(flags, tuple(axes), dtype=jnp.int32)
    low = number & 0xFFFF
    return Sum(*_renormalised((number - low).astype(dtype), low.astype(dtype)))


def fold(sums: Sum, axes: Sequence[int]) -> Sum:
    """The total of an array of sums over `axes`, in one reduction, which works on any sharding."""
    found: Sum = _fold(tuple(axes), sums)
    return found


def _folded(static: Static, sums: Sum) -> Sum:
    def added(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        high, low = add(Sum(*a), Sum(*b))
        return high, low

    start = jnp.zeros((), sums.high.dtype)
    return Sum(*lax.reduce(tuple(sums), (start, start), added, static))


def _tangent(static: Static, arguments: tuple[Sum], tangents: Sum) -> Sum:
    """The tangent of the high word; the low word is a rounding error and counts as constant."""
    high = jnp.sum(tangents.high + tangents.low, static)
    return Sum(high, jnp.zeros_like(high))


_fold = with_tangent(_folded, _tangent)
