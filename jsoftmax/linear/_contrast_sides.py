"""One direction of the contrastive loss: the state of each row, and the gap to its positives.

A row with n positives has the loss, before it is divided by n,

    −Σ log p = n·log(1 + rest) + gap        gap = Σ (max − z) over the positives

Sides merge like states: ``gap = Σₖ gapₖ + nₖ·(max − maxₖ)``. No term is negative, so a sure pair keeps its
digits. A column of the logits is a row of the other direction.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _reductions
from jsoftmax.rows._probabilities import of_shifted
from jsoftmax.rows._weights import taken
from jsoftmax.transforms._sharding import replicated, varying

ROWS, COLUMNS = 1, 0  # the axis of a block along which a row, or a column, is reduced


class Rows(NamedTuple):
    """The rows of `a`; also their tangents or cotangents."""

    features: Any  # [N, D]
    ids: Any = None  # [N, 1]: the positives are the columns with this id, or the column with this index
    hits: Any = None  # [N, M], instead of ids: True for the positives
    itself: Any = None  # [N, 1]: the index of the column that is the row itself, which is left out
    counted: Any = None  # [N, 1]: False in a row that is left out


class Columns(NamedTuple):
    """The rows of `b`, which are the columns of the logits; also their tangents or cotangents."""

    features: Any  # [M, D]
    ids: Any = None  # [1, M]; None if the ids of the rows are indices
    counted: Any = None  # [1, M]


class Side(NamedTuple):
    """The numbers of one direction, [N, 1] or [1, M] each."""

    state: online.State
    positives: Array  # n, their number
    gap: Array

    @property
    def loss(self) -> Array:
        """``−Σ log p`` over the positives; 0 without any."""
        loss = self.positives * online.log_total(self.state.rest) + self.gap
        return jnp.where(self.positives > 0, loss, 0)


def masks(rows: Rows, columns: Columns, counted: Array | None, count: int) -> tuple[Array | None, Array]:
    """Which pairs of a block of `count` columns count, None if all do; and which of these are positives."""
    given = [mask for mask in (rows.counted, columns.counted, counted) if mask is not None]
    indices = lax.broadcasted_iota(jnp.int32, (1, count), 1)
    if rows.itself is not None:
        given.append(indices != rows.itself)
    ids = indices if columns.ids is None else columns.ids
    hits = rows.ids == ids if rows.hits is None else rows.hits
    if not given:
        return None, hits
    live = functools.reduce(jnp.logical_and, given)
    return jnp.broadcast_to(live, hits.shape), hits & live


def state(z: Array, live: Array | None, axis: int) -> online.State:
    """The state of each row, or of each column, of a block."""
    return _reductions.reduce(z, Scaling(live), (axis,))[0]


def side(z: Array, live: Array | None, hits: Array, axis: int) -> Side:
    """The side of a block, with any number of positives."""
    of_block = state(z, live, axis)
    terms = hits.astype(z.dtype), jnp.where(hits, of_block.max - z, 0)
    return Side(of_block, *(jnp.sum(term, axis, keepdims=True) for term in terms))


def merge(a: Side, b: Side) -> Side:
    """The side of the pairs of both."""
    of_both = online.merge(a.state, b.state)
    return Side(of_both, a.positives + b.positives, _gap(a, of_both) + _gap(b, of_both))


def merge_across(part: Side, names: tuple[str, ...]) -> Side:
    """The side of the pairs of all shards."""
    if not names:
        return part
    of_all = online.merge_across(part.state, names)
    return Side(of_all, *rules.across(names, part.positives, _gap(part, of_all)))


def _gap(part: Side, whole: online.State) -> Array:
    """The gap of a part, to the maximum of the whole."""
    return part.gap + jnp.where(part.positives > 0, part.positives * (whole.max - part.state.max), 0)


def empty(columns: Columns, *like: Any) -> Side:
    """The neutral element of `merge`, for every column."""
    dtype = rules.computing_dtype(columns.features.dtype)
    nothing = varying(jnp.zeros((1, columns.features.shape[0]), dtype), columns, *like)
    return Side(online.State(nothing - jnp.inf, nothing - 1), nothing, nothing)


def have_positive(rows: Rows, columns: Columns) -> Array:
    """Whether each row counts, and the column with its index too; [N, 1]."""
    found = (rows.ids >= 0) & (rows.ids < columns.features.shape[0])
    if rows.counted is not None:
        found &= rows.counted
    if columns.counted is not None:
        found &= taken(columns.counted[0], rows.ids[:, 0])[:, None]
    return found if rows.itself is None else found & (rows.ids != rows.itself)


def of_rows(of_block: online.State, has_positive: Array, logit: Array) -> Side:
    """The side of rows with one positive each, from its logit."""
    gap = jnp.where(has_positive, of_block.max - logit, 0)
    return Side(of_block, has_positive.astype(gap.dtype), gap)


def of_columns(of_all: online.State, ids: Array, has_positive: Array, logits: Array) -> Side:
    """The side of the columns, from rows with one positive each; several may have the same."""
    ids, has_positive, logits = (replicated(a[:, 0]) for a in (ids, has_positive, logits))
    size = of_all.max.size
    gaps = jnp.where(has_positive, of_all.max[0, jnp.clip(ids, 0, size - 1)] - logits, 0)

    def added(terms: Array) -> Array:
        begun = varying(jnp.zeros(size, terms.dtype), terms)
        return begun.at[jnp.where(has_positive, ids, size)].add(terms, mode="drop")[None, :]

    return Side(of_all, added(has_positive.astype(gaps.dtype)), added(gaps))


def residual(z: Array, live: Array | None, hits: Array, part: Side) -> Array:
    """The gradient in z of the losses of one direction; it sums to 0 over each row, or each column."""
    p = of_shifted(_scaling.shifted(z, Scaling(live), part.state.max), part.state.rest)
    return rules.positives_residual(p, part.loss, hits, part.positives)
