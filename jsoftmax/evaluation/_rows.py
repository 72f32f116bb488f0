"""Adds the numbers of rows to the sums of a state."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.backends import _reading
from jsoftmax.evaluation import _draws, _sums
from jsoftmax.evaluation._labels import Labels
from jsoftmax.evaluation._state import (
    CELLS,
    CELLS_PER_OCTAVE,
    FIRST_OCTAVE,
    Bins,
    Calibration,
    Classes,
    RowGroups,
    State,
)
from jsoftmax.evaluation._sums import Sum, added


class Rows(NamedTuple):
    """The numbers of each row that enter the sums; None for those that the state does not need."""

    nll: Array
    rank: Array
    prediction: Any  # −1 without a live class
    brier: Any
    confidence: Any
    odds: Any  # confidence/(1 − confidence), with more digits than the confidence has near 1
    groups: Any
    draws: Any  # how often each replicate draws the row


def absorb(state: State, rows: Rows, labels: Labels, class_bins: Bins | None = None) -> State:
    """The state after rows are added. Without weights, rows are counted in integers."""
    axes, dtype = range(rows.nll.ndim), state.nll.high.dtype
    ids, weights, counted = labels
    every, right = jnp.ones(rows.nll.shape, bool), rows.rank == 0
    used = every if counted is None else counted

    def along(per_row: Array, like: Array) -> Array:
        return per_row if like.ndim == per_row.ndim else jnp.expand_dims(per_row, -1)

    def tally(flags: Array) -> Sum:
        if weights is not None:
            return _sums.total(jnp.where(flags, along(weights, flags), 0), axes, dtype)
        return _sums.count(flags if counted is None else flags & along(counted, flags), axes, dtype)

    def weighted(values: Array) -> Array:
        if counted is not None:
            values = jnp.where(counted, values, 0)
        if weights is not None:
            wide = jnp.promote_types(values.dtype, weights.dtype)
            values = values.astype(wide) * weights.astype(wide)
        return values

    def total(values: Array, members: Array | None = None) -> Sum:
        values = weighted(values)
        if members is not None:
            values = jnp.where(members, along(values, members), 0)
        return _sums.total(values, axes, dtype)

    def members(index: Array, size: int) -> Array:
        return _reading.is_label(jnp.expand_dims(index, -1), index.ndim, size)

    def flagged(flags: Array) -> Array:
        return flags & used if weights is None else jnp.where(flags, weights, 0)

    def by_class(index: Array, size: int, *flags: Array) -> list[Sum]:
        if weights is not None:
            is_member = members(index, size)
            return [tally(is_member & along(of, is_member)) for of in flags]
        return _sums.totals_of_groups([of & used for of in flags], index, size, dtype)

    def of_many(index: Array, size: int, *columns: Array) -> list[Sum]:
        """The totals of groups, for so many that `by_class` would take too long."""
        numbers = [flagged(of) if of.dtype == jnp.bool_ else weighted(of) for of in columns]
        return _sums.totals_of_groups(numbers, index, size, dtype)

    calibration = classes = confusion = cells = groups = replicates = None
    if state.calibration is not None:
        in_bin = _in_bins(rows.confidence, state.calibration.bins.weight.high.shape[-1])
        bins = Bins(tally(in_bin), tally(in_bin & along(right, in_bin)), total(rows.confidence, in_bin))
        calibration = Calibration(total(rows.brier), bins)
    if state.classes is not None:
        size = state.classes.weight.high.shape[-1]
        classes = Classes(*by_class(ids, size, every, right), *by_class(rows.prediction, size, every))
        if state.confusion is not None:
            is_cell = (ids >= 0) & (rows.prediction >= 0)
            cell = jnp.where(is_cell, ids * size + rows.prediction, -1)
            confusion = Sum(*(word.reshape(size, size) for word in of_many(cell, size * size, every)[0]))
    if state.cells is not None:
        cells = Bins(*of_many(_cells(rows.odds), CELLS, every, right, rows.confidence))
    if state.groups is not None:
        size = state.groups.weight.high.shape[-1]
        groups = RowGroups(*of_many(rows.groups, size, every, right, rows.nll))
    ranks = members(rows.rank, state.ranks.high.shape[-1])
    if state.replicates is not None:
        brier = None if state.calibration is None else rows.brier
        w = used if weights is None else weights
        replicates = _draws.resampled(rows.draws, w, used, rows.nll, ranks, brier, dtype)
    more = State(
        tally(every),
        total(rows.nll),
        tally(ranks),
        calibration,
        classes,
        confusion,
        class_bins,
        cells,
        groups,
        replicates,
    )
    return added(state, more)


def edges_of(bins: int) -> list[tuple[float, float]]:
    """The edges of bins of equal width: the lower one is outside, the upper one inside."""
    inner = [i / bins for i in range(1, bins)]
    return list(zip([-math.inf, *inner], [*inner, math.inf], strict=True))


def _in_bins(confidence: Array, bins: int) -> Array:
    """For each row and bin i of n: i/n < confidence <= (i + 1)/n, with edges in the confidence's dtype."""
    lower, upper = (
        jnp.asarray(bounds, confidence.dtype).reshape((1,) * confidence.ndim + (bins,))
        for bounds in zip(*edges_of(bins), strict=True)
    )
    confidence = jnp.expand_dims(confidence, -1)
    return (lower < confidence) & (confidence <= upper)


def _cells(odds: Array) -> Array:
    """The cell of each row: the exponent of its odds, and the first bits of the digits after it."""
    odds = jnp.clip(odds.astype(jnp.float32), 2.0**FIRST_OCTAVE, jnp.finfo(jnp.float32).max)
    digits = 23 - (CELLS_PER_OCTAVE.bit_length() - 1)
    steps = lax.bitcast_convert_type(odds, jnp.int32) >> digits
    return jnp.minimum(steps - (127 + FIRST_OCTAVE) * CELLS_PER_OCTAVE, CELLS - 1)
