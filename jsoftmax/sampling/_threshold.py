"""The fewest of the largest classes that reach a total weight, without a sort: bisection for a threshold.

Floats are compared as integers of the same order, so a bisection over 32 bits ends after 32 passes. It ends
earlier, typically after log₂ V + 10, if only one class is left next to the threshold.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Row = Array  # one number per row, with length 1 along the classes, the last axis
LARGEST_EXACT_COUNT = (
    2**24
)  # float32 counts exactly up to this, and its sums are faster on CPU than integer sums


def keys(x: Array) -> Array:
    """Integers in the order of the floats; −0 counts as 0."""
    bits = x.dtype.itemsize * 8
    signed = lax.bitcast_convert_type(jnp.where(x == 0, 0, x), np.dtype(f"int{bits}"))
    ordered = signed ^ ((signed >> (bits - 1)) & np.array(2 ** (bits - 1) - 1, signed.dtype))
    return ordered.astype(np.int32) if bits < 32 else ordered


def largest_reaching(keys: Array, live: Array, weights: Array | None, target: Row) -> Array:
    """A mask of the fewest of the largest live classes whose total weight reaches the target.

    Without `weights`, each class has weight 1. Among classes with equal keys, lower ids count as larger, and
    their weights are equal. The target is above 0, and all live classes together reach it.
    """
    dtype = jnp.float32 if keys.shape[-1] <= LARGEST_EXACT_COUNT else jnp.int32
    ones = live.astype(dtype)
    weighed = ones if weights is None else jnp.where(live, weights, 0)
    bracket = _bracket(keys, live, ones, weighed, target, counted=weights is None)
    above, reached = keys >= bracket.high, keys >= bracket.low
    above, edge = above & live, reached & ~above & live
    if weights is None:
        wanted = target.astype(dtype) - bracket.above
    else:
        of_one = jnp.max(jnp.where(edge, weighed, 0), -1, keepdims=True)
        wanted = jnp.clip(jnp.ceil((target - bracket.above) / of_one), 1, bracket.between)
    # Keep the classes above, and the first `wanted` ones at the edge: one class, or several with equal keys.
    size = keys.shape[-1]
    first = size - 1 - lax.broadcasted_iota(jnp.int32, keys.shape, keys.ndim - 1)
    of_edge = edge.astype(dtype)
    place = _bracket(first, edge, of_edge, of_edge, wanted.astype(dtype), counted=True)
    return above | (edge & (first >= place.low))


class _Bracket(NamedTuple):
    """Two thresholds per row: the classes with keys ≥ `low` reach the target, those ≥ `high` do not."""

    low: Row
    high: Row
    reached: Row  # the weight of the classes with keys ≥ `low`
    above: Row  # the weight of the classes with keys ≥ `high`
    number: Row  # the number of classes with keys ≥ `low`
    number_above: Row  # the number of classes with keys ≥ `high`

    @property
    def between(self) -> Row:
        """The number of classes between the two thresholds."""
        return self.number - self.number_above


def _bracket(
    keys: Array, live: Array, ones: Array, weights: Array, target: Row, *, counted: bool
) -> _Bracket:
    """Bisects until the thresholds are adjacent, one class is between them, or a count meets the target."""
    limits = jnp.iinfo(keys.dtype)

    def total(values: Array) -> Row:
        return jnp.sum(values, -1, keepdims=True)

    def middle(bracket: _Bracket) -> Row:
        return (bracket.low & bracket.high) + ((bracket.low ^ bracket.high) >> 1)

    def is_open(bracket: _Bracket) -> Row:
        is_wide = (middle(bracket) > bracket.low) & (bracket.between > 1)
        return is_wide & (bracket.reached != target) if counted else is_wide

    def halve(bracket: _Bracket) -> _Bracket:
        at = middle(bracket)
        from_there = keys >= at
        weight = total(jnp.where(from_there, weights, 0))
        reaches = weight >= target
        number = weight if counted else total(jnp.where(from_there, ones, 0))
        halved = _Bracket(
            jnp.where(reaches, at, bracket.low),
            jnp.where(reaches, bracket.high, at),
            jnp.where(reaches, weight, bracket.reached),
            jnp.where(reaches, bracket.above, weight),
            jnp.where(reaches, number, bracket.number),
            jnp.where(reaches, bracket.number_above, number),
        )
        goes_on = is_open(bracket)
        return _Bracket(*(jnp.where(goes_on, a, b) for a, b in zip(halved, bracket, strict=True)))

    all_weights, number = total(weights), total(ones)
    start = _Bracket(
        jnp.min(jnp.where(live, keys, limits.max), -1, keepdims=True),
        jnp.max(jnp.where(live, keys, limits.min), -1, keepdims=True) + 1,
        all_weights,
        jnp.zeros_like(all_weights),
        number,
        jnp.zeros_like(number),
    )
    return lax.while_loop(lambda bracket: jnp.any(is_open(bracket)), halve, start)
