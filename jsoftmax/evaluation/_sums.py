"""Sums in two words: the high word is the rounded sum, and the low word holds its rounding error.

In float32 this gives 48 bits. Integers are exact up to 2⁴⁸. The sum of two sums of the same sign has a
relative error of about 1e-14, in any order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.transforms._autodiff import with_tangent
from jsoftmax.transforms._sharding import is_known, replicated

CHUNK = 2**16  # the most rows that one scatter adds
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


@jax.jit
def added(a: Any, b: Any) -> Any:
    """The tree whose sums are those of the tree a plus those of b."""
    return jax.tree.map(add, a, b, is_leaf=is_sum)


def is_sum(node: Any) -> bool:
    """Whether a node of a tree is a `Sum`."""
    return isinstance(node, Sum)


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
    return fold(_in_two_words(values, dtype), axes)


def _in_two_words(values: Array, dtype: Any) -> Sum:
    high = values.astype(dtype)
    if jnp.finfo(values.dtype).bits <= jnp.finfo(dtype).bits:
        return Sum(high, jnp.zeros_like(high))
    low = (values - high.astype(values.dtype)).astype(dtype)
    return Sum(high, jnp.where(jnp.isfinite(high), low, 0))


def count(flags: Array, axes: Sequence[int], dtype: Any) -> Sum:
    """The exact number of flags that are True, over `axes`."""
    number = jnp.sum(flags, tuple(axes), dtype=jnp.int32)
    low = number & 0xFFFF
    return Sum(*_renormalised((number - low).astype(dtype), low.astype(dtype)))


def totals_of_groups(columns: Sequence[Array], index: Array, groups: int, dtype: Any) -> list[Sum]:
    """The sum of each column over the rows of each group; a row with index outside [0, groups) is in none.

    One scatter adds all columns. Flags are counted exactly. A scatter that adds n equal numbers may lose
    log₂ n bits, so numbers are cut into pieces of so few bits that the sums of all but the last are exact.
    The error of a sum is about a rounding of the largest number of its column, times the rows of the group.
    """
    wide = jnp.dtype(jnp.float32)
    for column in columns:
        wide = wide if column.dtype == jnp.bool_ else jnp.promote_types(wide, column.dtype)
    index = replicated(index).ravel()
    chunk = min(1 << max(len(index) - 1, 1).bit_length(), CHUNK) if is_known(index) else CHUNK
    chunks = max(-(-len(index) // chunk), 1) if is_known(index) else 1
    cut = [_pieces(replicated(column).ravel(), chunk, wide) for column in columns]
    rows = jnp.stack([piece for pieces, _ in cut for piece in pieces], -1)
    index = jnp.where((index >= 0) & (index < groups), index, groups)
    index = index + (groups + 1) * (lax.iota(index.dtype, len(index)) // chunk)
    table = jnp.zeros((chunks * (groups + 1), rows.shape[-1]), wide)
    table = table.at[index].add(rows, mode="promise_in_bounds").reshape(chunks, groups + 1, -1)[:, :groups]
    of_pieces = iter(jnp.moveaxis(table, -1, 0))
    found = []
    for pieces, exponent in cut:
        words = fold(functools.reduce(add, (_in_two_words(next(of_pieces), dtype) for _ in pieces)), (0,))
        found.append(Sum(*(jnp.ldexp(word, exponent) for word in words)))
    return found


def _pieces(values: Array, rows: int, dtype: Any) -> tuple[list[Array], Array]:
    """Arrays that add up to ``values/2^exponent``; of all but the last, sums of so many rows are exact."""
    if values.dtype == jnp.bool_:
        return [values.astype(dtype)], jnp.zeros((), jnp.int32)
    rest = values.astype(dtype)
    finite = jnp.isfinite(rest)
    largest = lax.stop_gradient(jnp.max(jnp.where(finite, jnp.abs(rest), 0), initial=0))
    _, exponent = jnp.frexp(largest)
    rest = jnp.ldexp(rest, -exponent)  # below 1
    bits = jnp.finfo(dtype).nmant + 1 - (rows - 1).bit_length()
    pieces = []
    for scale in (2.0**bits, 4.0**bits):
        piece = jnp.where(finite, jnp.floor(rest * scale) * (1 / scale), 0)
        pieces.append(piece)
        rest = rest - piece
    return [*pieces, rest], exponent


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
