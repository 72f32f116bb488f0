"""The cross-entropy of segments."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax import online, rules
from jsoftmax.border import _segment_ids
from jsoftmax.border._call import Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._label_checks import are_classes, is_other, reported_ids
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _loss_terms, _probabilities, _segments
from jsoftmax.rows._loss_terms import Reduction
from jsoftmax.rows._segment_numbers import Asked, Saved, Tangents, reduced
from jsoftmax.rows._segments import Kind, Labels, Segments
from jsoftmax.transforms._autodiff import with_rules


@_segment_ids.counted
@compiled("num_segments", "ignore_index", "reduction", "indices_are_sorted", "axis_name")
@_segment_ids.placed(by_entry=False)
def segment_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    segment_ids: ArrayLike,
    num_segments: int | None = None,
    *,
    temperature: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "none",
    indices_are_sorted: bool = False,
    axis_name: MeshAxes = None,
) -> Array:
    """The cross-entropy of the softmax over each segment with one target, or with target probabilities.

        loss = −log p_y                       y, the position of the target of the segment
        loss = Σ t·(−log p)                   target probabilities t, the sum over the segment

    The loss of lists, such as the documents of a query. It has the contract of `cross_entropy`, with a
    segment for a row and the positions of its entries for class ids: a position that is no entry of its
    segment makes the loss of that segment NaN. A segment without entries, or with masked entries only, does
    not count: its loss is 0 whatever its label, and the mean excludes it.

    Derivative: ``p − t`` in the logits (`rules.label_residual`, `rules.cross_entropy_residual`), and
    ``−log p`` in t. Residuals: the arguments and a few numbers per segment.

    Args:
      logits: any shape, entries along the first axis.
      labels: one position along the first axis of `logits` for each segment, integers of shape
        ``(num_segments, *logits.shape[1:])``; or target probabilities as floats, in the shape of `logits`.
      segment_ids: the segment of each entry, as in `segment_softmax`.
      num_segments: the number of segments; None for the largest id + 1, if the ids are not traced.
      temperature: T, a number, or one per segment.
      where: True for the entries that count; broadcasts to the shape of `logits`.
      ignore_index: segments with this label have loss 0, and the mean excludes them.
      weights: a number, or one per segment, which multiplies its loss, as the row weights of `cross_entropy`:
        0 hides a segment whatever it contains, and the gradient of a weight is the loss.
      reduction: "none" for one loss per segment, "sum", or "mean": the sum divided by the number of segments
        that count, or by the sum of their weights; 0 if none counts.
      indices_are_sorted: promises that the ids do not decrease.
      axis_name: the mesh axes of the shards of the entries, as in `segment_softmax`; positions count the
        entries of all shards.

    Returns:
      The losses, shape ``(num_segments, *logits.shape[1:])``, in at least float32, or their mean or sum.

    Raises:
      TypeError, ValueError: as in `segment_softmax` and in `cross_entropy`.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> logits, query = jnp.array([2.0, 1.0, 0.1, 30.0, 0.0]), jnp.array([0, 0, 0, 1, 1])
    >>> loss = jsoftmax.segment_cross_entropy(logits, jnp.array([0, 3]), query)
    >>> print(f"{loss[0]:.5f}, {loss[1]:.5e}")
    0.41703, 9.35762e-14
    >>> relevance = jnp.array([1.0, 0.0, 0.0, 0.5, 0.5])
    >>> print(jnp.round(1000 * jsoftmax.segment_cross_entropy(logits, relevance, query)))
    [  417. 15000.]

    Source: Cao et al., *Learning to rank: from pairwise approach to listwise approach*, ICML (2007).
    """
    call = Call(
        "segment_cross_entropy",
        logits=logits,
        labels=labels,
        segment_ids=segment_ids,
        num_segments=num_segments,
        temperature=temperature,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        reduction=reduction,
        indices_are_sorted=indices_are_sorted,
        axis_name=axis_name,
    )
    x, segments, scaling, kind = _segments.of_call(call, "logits")
    y = _segment_ids.labels(call, x.shape, kind.size)
    counted = segments.any(kind, jnp.broadcast_to(jnp.asarray(scaling.where), x.shape))
    ignored = call.ignore_index(y)
    if ignored is not None:
        counted &= is_other(y, ignored)
    rows = jax.ShapeDtypeStruct(counted.shape, x.dtype)
    loss = _loss_terms.of_rows(call, rows, (), (), (), counted)
    are_positions = jnp.issubdtype(y.dtype, jnp.integer)
    if loss.hidden is not None and are_positions:
        counted &= are_classes(y, len(x), kind.names) | ~loss.hidden
    if ignored is not None or loss.hidden is not None:
        scaling = _scaling.mask_rows(scaling, segments.looked_up(counted))[0]
        scaling = Scaling(scaling.where, *_scaling.of_used_rows(scaling[1:], counted, loss.hidden))
    if not (x.size and kind.size):
        return loss.reduced(jnp.zeros(counted.shape, rules.computing_dtype(x.dtype)), ())
    arguments = kind, x, segments, scaling
    if are_positions:
        y = reported_ids(jnp.where(counted, y, 0), len(x), kind.names)
        of_segments = segments.labels(kind, y, counted)
        losses = _of_positions(*arguments, of_segments, loss.hidden, beside=loss.terms)
    else:
        of_entries = segments.looked_up(counted) & jnp.expand_dims(segments.exists, range(1, x.ndim))
        losses = _of_targets(*arguments, jnp.where(of_entries, y, 0), loss.hidden, beside=loss.terms)
    return loss.reduced(loss.terms.weighted(losses), ())


class _OfPositions(NamedTuple):
    row: Saved
    y: Array  # the position of the label on this shard, or −1
    nll: Array

    def residual(self) -> tuple[Array, Array]:
        """p − e_y, and u."""
        (p, u), segments = self.row.restored(), self.row.segments
        nll = segments.spread(self.nll)
        positions = jnp.arange(len(p), dtype=self.y.dtype).reshape(-1, *(1,) * (p.ndim - 1))
        residual = rules.label_residual(p, nll, segments.looked_up(self.y) == positions)
        return rules.nan_where(jnp.isnan(nll), residual), u


def _positions_save(
    kind: Kind, x: Array, segments: Segments, scaling: Scaling, y: Labels, hidden: Array | None
) -> tuple[Array, _OfPositions]:
    u, saved = reduced(kind, x, segments, scaling)
    of_label = jnp.take_along_axis(u, jnp.maximum(y.position, 0), 0, mode="promise_in_bounds")
    (of_label,) = rules.across(kind.names, jnp.where(y.position < 0, 0, of_label))
    is_empty = saved.state.rest < 0
    nll = jnp.where(is_empty, 0, online.log_total(saved.state.rest) - jnp.where(is_empty, 0, of_label))
    nll, saved = saved.without(hidden, rules.nan_where(y.is_bad, nll))
    return nll, _OfPositions(saved, y.position, nll)


def _positions_pull(
    kind: Kind, asked: Asked, saved: _OfPositions, g: Array
) -> tuple[Array, None, Scaling, None, None]:
    residual, u = saved.residual()
    return *saved.row.pull(kind, asked, u, saved.row.segments.spread(g) * residual), None, None


def _positions_push(kind: Kind, saved: _OfPositions, tangents: Tangents) -> Array:
    residual, u = saved.residual()
    return saved.row.segments.sum(kind, residual * saved.row.push(u, tangents))


_of_positions = with_rules(_positions_save, _positions_pull, _positions_push, selective=True, sweeps=False)


class _OfTargets(NamedTuple):
    row: Saved
    t: Array

    def residuals(self, kind: Kind) -> tuple[Array, Array, Array]:
        """The gradients in z and in t, ``(Σt)·p − t`` and ``−log p``, and u."""
        (p, u), segments, t = self.row.restored(), self.row.segments, self.t.astype(self.row.state.rest.dtype)
        live = segments.looked_up(_probabilities.is_live(self.row.state.rest))
        in_t = _scaling.masked(_surprise(segments, u, self.row.state.rest, t), self.row.scaling.where)
        return rules.cross_entropy_residual(p, t, segments.rows(kind)) * live, in_t, u


def _surprise(segments: Segments, u: Array, rest: Array, t: Array) -> Array:
    """``−log p``; 0 where a target of 0 meets a dead entry, as 0·log 0 is 0, and without a live entry."""
    nothing = (u == -jnp.inf) & ((t == 0) | segments.looked_up(rest < 0))
    return jnp.where(nothing, 0, segments.spread(online.log_total(rest)) - jnp.where(nothing, 0, u))


def _targets_save(
    kind: Kind, x: Array, segments: Segments, scaling: Scaling, t: Array, hidden: Array | None
) -> tuple[Array, _OfTargets]:
    u, saved = reduced(kind, x, segments, scaling)
    wide = t.astype(u.dtype)
    out = segments.sum(kind, wide * _surprise(segments, u, saved.state.rest, wide))
    out, saved = saved.without(hidden, out)
    return out, _OfTargets(saved, t if hidden is None else _scaling.masked(t, saved.scaling.where))


def _targets_pull(
    kind: Kind, asked: Asked, saved: _OfTargets, g: Array
) -> tuple[Array, None, Scaling, Array, None]:
    in_z, in_t, u = saved.residuals(kind)
    of_entries = saved.row.segments.spread(g)
    dt = (of_entries * in_t).astype(saved.t.dtype)
    return *saved.row.pull(kind, asked, u, of_entries * in_z), dt, None


def _targets_push(kind: Kind, saved: _OfTargets, tangents: Tangents) -> Array:
    in_z, in_t, u = saved.residuals(kind)
    terms = in_z * saved.row.push(u, tangents)
    if (dt := tangents[3]) is not None:
        terms = terms + in_t * dt.astype(terms.dtype)
    return saved.row.segments.sum(kind, terms)


_of_targets = with_rules(_targets_save, _targets_pull, _targets_push, selective=True, sweeps=False)
