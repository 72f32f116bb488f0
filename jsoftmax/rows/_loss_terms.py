"""The loss of a row from its numbers: label weights, smoothing and z-loss; and the reduction over rows."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.border._call import Call, Logits
from jsoftmax.border._label_checks import are_classes, is_other
from jsoftmax.logits import _moments
from jsoftmax.rows import _weights
from jsoftmax.rows._statistics import Numbers
from jsoftmax.rows._unused import product, quotient
from jsoftmax.transforms import _sharding
from jsoftmax.transforms._platforms import hidden

Reduction = Literal["none", "mean", "sum"]
Axes = tuple[int, ...]


class LossTerms(NamedTuple):
    """The options of a loss that act on the numbers of a row: each is one number, one per row, or None.

    loss = w·(w_y·(1 − α)·nll + α/live·spread + λ·log_normalizer²)

    The products are computed in an order that overflows only if the loss overflows.
    """

    label_weights: Array | None = None  # 0 in a row that does not count
    label_smoothing: Array | None = None
    z_loss: Array | None = None
    weights: Array | None = None  # w, one per row; 0 in a row that does not count

    @property
    def wanted(self) -> frozenset[str]:
        """The names of the numbers that the loss needs."""
        options = (("spread", self.label_smoothing), ("log_normalizer", self.z_loss))
        return frozenset({"nll", *(name for name, option in options if option is not None)})

    def losses(self, found: Numbers) -> Array:
        """The loss of every row, from its numbers."""
        losses = found["nll"]
        if self.label_weights is not None:
            losses = self._scaled(self.label_weights, losses)
        if self.label_smoothing is not None:
            alpha = self.label_smoothing
            smooth = alpha / jnp.maximum(found["live"], 1) * found["spread"] / _moments.MOMENT_SCALE
            losses = self._scaled(1 - alpha, losses) + smooth
        if self.z_loss is not None:
            normalizer = jnp.where(found["log_normalizer"] == -jnp.inf, 0, found["log_normalizer"])
            losses = losses + self.z_loss * normalizer * normalizer
        return self.weighted(losses)

    def weighted(self, losses: Array) -> Array:
        """The losses times the weights of their rows."""
        return losses if self.weights is None else self._scaled(self.weights, losses)

    def _scaled(self, weight: Array, loss: Array) -> Array:
        """``weight·loss``, but 0 if the weight is 0 and the loss +inf, as for a dead label."""
        nothing = (weight == 0) & (loss == jnp.inf)
        of_rows = weight + jnp.zeros_like(loss)  # as `loss` on every mesh, for the cotangent of `product`
        scaled: Array = product(None, of_rows, jnp.where(nothing, 0, loss), beside=self)
        return scaled


class Loss(NamedTuple):
    """The loss that a call specifies: labels, weights, rows that count, terms and reduction."""

    labels: Any
    class_weights: Array | None
    counted: Array | None  # the result of `counted_rows`
    hidden: Array | None  # True in rows of weight 0
    terms: LossTerms  # without the class axes
    reduction: Reduction
    row_names: tuple[str, ...]  # the mesh axes of the shards of the rows, over which to reduce

    def reduced(self, losses: Array, axes: Axes) -> Array:
        """The losses of all rows, their sum, or their mean, as the reduction says."""
        if self.reduction == "none":
            return losses
        return self.of_sum(jnp.sum(losses), losses.shape, axes)

    def of_sum(self, total: Array, rows: tuple[int, ...], axes: Axes) -> Array:
        """The sum, or the mean, from the sum on this shard.

        The mean divides by the number of counted rows, or by the sum of their weights.
        """
        if self.reduction == "sum":
            return rules.across(self.row_names, total)[0]
        counts = self.counts(rows, axes, total.dtype)
        if counts is None:
            (total,) = rules.across(self.row_names, total)
            return total / self.number_of_rows(rows)
        total, *of_all = rules.across(self.row_names, total, *counts)
        mean: Array = quotient(None, total, divisor(*of_all), beside=self.terms)
        return mean

    def counts(self, rows: tuple[int, ...], axes: Axes, dtype: jnp.dtype) -> tuple[Array, ...] | None:
        """The arguments of `divisor`, summed over the rows of this shard; None for `number_of_rows`."""
        of_labels = self.terms.label_weights
        if (weights := self.terms.weights) is not None:
            return counts_of(weights if of_labels is None else _moments.times(weights, of_labels))
        if of_labels is not None:
            return (jnp.sum(of_labels),)
        if self.counted is not None:
            return (jnp.sum(jnp.broadcast_to(jnp.squeeze(self.counted, axes), rows), dtype=dtype),)
        return None

    def number_of_rows(self, rows: tuple[int, ...]) -> int:
        """The number of rows on all shards, but at least 1."""
        return max(math.prod(rows) * _sharding.shard_count(self.row_names), 1)


def counts_of(weights: Array) -> tuple[Array, Array]:
    """The arguments of `divisor` for the weights of rows."""
    both = jnp.stack([weights, jnp.abs(lax.stop_gradient(weights))])  # one kernel on GPU
    count, size = jnp.sum(both, tuple(range(1, both.ndim)))
    return count, size


def divisor(count: Array, size: Array | None = None) -> Array:
    """What a mean divides by: the sum of the weights; 1 if all weights are 0, but 0 if they only cancel.

    `size` is the sum of their absolute values, by default the count.
    """
    return jnp.where((count if size is None else size) == 0, 1, count)


def counted_rows(
    labels: Any, ignored: Array | None, where: Array | None, axes: Axes, names: tuple[str, ...] = ()
) -> Array | None:
    """Which rows count, as booleans with length 1 on the class axes; None if all rows count.

    A row does not count if its class id is `ignored`, or if `where` masks all its classes, on all shards.
    """
    counted = None if ignored is None else is_other(labels, ignored)
    if where is None:
        return counted
    # Without the barrier, XLA evaluates this at compile time if the mask is a constant, which takes minutes.
    live = jnp.any(hidden(where), axes, keepdims=True)
    if names := tuple(name for name in names if name in _sharding.varies(live)):
        live = lax.pmax(live.astype(jnp.int32), names) > 0
    return live if counted is None else counted & live


def ids_of_live_rows(ids: Array, where: Array | None, axes: Axes, names: tuple[str, ...]) -> Array:
    """The class ids, 0 in rows that `where` masks completely: such a row is padding, and its id anything."""
    counted = counted_rows(None, None, where, axes, names)
    return ids if counted is None else jnp.where(counted, ids, 0)


def of_call(
    call: Call,
    logits: Logits,
    axes: Axes,
    names: tuple[str, ...],
    row_names: tuple[str, ...],
    where: Array | None = None,
    labels: Any = None,
) -> Loss:
    """The loss that the arguments of a public call specify.

    `names` are the mesh axes of the shards of the classes, `row_names` those of the rows. `labels`, if
    given, replaces the labels of the call.
    """
    labels = call.labels(logits.shape, axes) if labels is None else labels
    dtype = rules.computing_dtype(logits.dtype)
    weights = call.class_weights(logits.shape, axes, dtype)
    if weights is not None and len(axes) == 1:
        weights = _sharding.sharded_like(weights, logits, *axes)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labels = _sharding.sharded_like(labels, logits)
    ignored = call.ignore_index(labels)
    reduction = reduction_of(call)
    counted = counted_rows(labels, ignored, where, axes, names)
    row_weights, hidden = _weights.of_rows(call, logits, axes, counted)
    smoothing, z_loss = (
        None if given is None else jnp.squeeze(_sharding.sharded_like(given, logits), axes)
        for given in (
            call.coefficient(name, logits, axes, dtype, counted) for name in ("label_smoothing", "z_loss")
        )
    )
    if hidden is not None:
        is_hidden = jnp.squeeze(hidden, axes)
        smoothing, z_loss = (
            given if given is None else jnp.where(is_hidden & jnp.isnan(given), 0, given)
            for given in (smoothing, z_loss)
        )
        if jnp.issubdtype(labels.dtype, jnp.integer):
            classes = math.prod(logits.shape[axis] for axis in axes)
            known = are_classes(labels, classes, names) | ~hidden
            counted = known if counted is None else counted & known
    label_weights = None
    if jnp.issubdtype(labels.dtype, jnp.integer):
        if counted is not None:
            labels = jnp.where(counted, labels, 0)
        if weights is not None:
            label_weights = _weights.of_labels(weights, jnp.squeeze(labels, axes), names)
            if counted is not None:
                label_weights = jnp.where(jnp.squeeze(counted, axes), label_weights, 0.0)
    terms = LossTerms(label_weights, smoothing, z_loss, row_weights)
    return Loss(labels, weights, counted, hidden, terms, reduction, row_names)


def labels_of_call(call: Call, shape: tuple[int, ...], axes: Axes) -> tuple[Array, Array | None]:
    """The labels, 0 in rows to ignore; and a mask of the other rows, None if no row is to be ignored."""
    labels = call.labels(shape, axes)
    ignored = call.ignore_index(labels)
    if ignored is None:
        return labels, None
    counted = is_other(labels, ignored)
    return jnp.where(counted, labels, 0), counted


def of_rows(
    call: Call,
    logits: Logits,
    axes: Axes,
    names: tuple[str, ...],
    row_names: tuple[str, ...],
    where: Array | None,
) -> Loss:
    """`of_call` for a function without labels: which rows count, their weights, and the reduction."""
    counted = counted_rows(None, None, where, axes, names)
    weights, hidden = _weights.of_rows(call, logits, axes, counted)
    return Loss(None, None, counted, hidden, LossTerms(weights=weights), reduction_of(call), row_names)


def reduction_of(call: Call) -> Reduction:
    """The reduction of the call, checked."""
    reduction: Reduction = call.arguments["reduction"]
    if reduction not in get_args(Reduction):
        choices = ", ".join(map(repr, get_args(Reduction)))
        raise call.error(ValueError, f"there is no reduction {reduction!r}", f"write one of {choices}")
    return reduction
