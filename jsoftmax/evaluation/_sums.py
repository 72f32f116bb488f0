"""Sums in two words: what the high word rounds away, the low word keeps.

In float32 that is 48 bits: whole numbers are exact up to 2⁴⁸, and adding two sums of one sign is right to
1e-14, whatever was added before, and in whatever order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.transforms._autodiff import with_tangent

Static = tuple[int, ...]  # the axes to sum over


class Sum(NamedTuple):
    """``high + low``, where high is the sum rounded."""

    high: Array
    low: Array


def zero(shape: Sequence[int], dtype: Any) -> Sum:
    """The sum of nothing: the neutral element of `add`."""
    return Sum(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def add(a: Sum, b: Sum) -> Sum:
    """The sum of two sums, to 3·2⁻⁴⁸ of it in float32; commutative to the last bit. Infinities and NaN stay.

    Source: AccurateDWPlusDW, of Joldes, Muller & Popescu (2017).
    """
    plain = a.high + b.high
    high, lost = _two_sum(a.high, b.high)
    low, lost_of_low = _two_sum(a.low, b.low)
    high, lost = _renormalised(high, lost + low)
    high, low = _renormalised(high, lost + lost_of_low)
    finite = jnp.isfinite(plain)
    return Sum(jnp.where(finite, high, plain), jnp.where(finite, low, 0))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The sum rounded, and what the rounding took away, exactly (Knuth)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _renormalised(a: Array, b: Array) -> tuple[Array, Array]:
    """`_two_sum` where a is the larger in size (Dekker)."""
    total = a + b
    return total, b - (total - a)


def total(values: Array, axes: Sequence[int], dtype: Any) -> Sum:
    """The sum over `axes`. A value that has more digits than `dtype` is added as two words."""
    high = values.astype(dtype)
    if jnp.finfo(values.dtype).bits <= jnp.finfo(dtype).bits:
        return fold(Sum(high, jnp.zeros_like(high)), axes)
    low = (values - high.astype(values.dtype)).astype(dtype)
    return fold(Sum(high, jnp.where(jnp.isfinite(high), low, 0)), axes)


def count(flags: Array, axes: Sequence[int], dtype: Any) -> Sum:
    """How many of the flags are up, exactly."""
    number = jnp.sum(flags, tuple(axes), dtype=jnp.int32)
    low = number & 0xFFFF
    return Sum(*_renormalised((number - low).astype(dtype), low.astype(dtype)))


def fold(sums: Sum, axes: Sequence[int]) -> Sum:
    """An array of sums added up over `axes`, in one reduction, which any sharding of the array keeps."""
    found: Sum = _fold(tuple(axes), sums)
    return found


def _folded(static: Static, sums: Sum) -> Sum:
    def added(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        high, low = add(Sum(*a), Sum(*b))
        return high, low

    start = jnp.zeros((), sums.high.dtype)
    return Sum(*lax.reduce(tuple(sums), (start, start), added, static))


def _tangent(static: Static, arguments: tuple[Sum], tangents: Sum) -> Sum:
    """Of the high word: the low one is a rounding, and constant."""
    high = jnp.sum(tangents.high + tangents.low, static)
    return Sum(high, jnp.zeros_like(high))


_fold = with_tangent(_folded, _tangent)
