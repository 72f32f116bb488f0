"""What the numbers of a row come to as a loss: label weights, smoothing, z-loss; and the sum over rows."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax._arguments import Call, Logits
from jsoftmax._reports import is_other
from jsoftmax._sharding import ids_of_shard, shard_count
from jsoftmax._statistics import Numbers

Reduction = Literal["none", "mean", "sum"]
Axes = tuple[int, ...]


class LossTerms(NamedTuple):
    """The options of a loss that act on the numbers of a row: each one number, one a row, or None.

    loss = w_y·(1 − α)·nll + α/live·spread + λ·log_normalizer²
    """

    label_weights: Array | None = None
    label_smoothing: Array | None = None
    z_loss: Array | None = None

    @property
    def wanted(self) -> frozenset[str]:
        """The numbers that the loss is made of."""
        options = (("spread", self.label_smoothing), ("log_normalizer", self.z_loss))
        return frozenset({"nll", *(name for name, option in options if option is not None)})

    def losses(self, found: Numbers) -> Array:
        """The loss of every row."""
        losses = found["nll"]
        if self.label_weights is not None:
            losses = _scaled(self.label_weights, losses)
        if self.label_smoothing is not None:
            alpha = self.label_smoothing
            losses = _scaled(1 - alpha, losses) + alpha * found["spread"] / jnp.maximum(found["live"], 1)
        if self.z_loss is not None:
            normalizer = jnp.where(found["log_normalizer"] == -jnp.inf, 0, found["log_normalizer"])
            losses = losses + self.z_loss * jnp.square(normalizer)
        return losses


def _scaled(weight: Array, loss: Array) -> Array:
    """``weight·loss``, where 0 times the +inf of a dead label is 0."""
    nothing = (weight == 0) & (loss == jnp.inf)
    return weight * jnp.where(nothing, 0, loss)


class Loss(NamedTuple):
    """A loss as a call asks for it: the numbers it takes, in which rows, and their reduction."""

    labels: Array
    class_weights: Array | None
    counted: Array | None  # with length 1 along the row; False where the class id is to be ignored
    terms: LossTerms  # without the class axes
    reduction: Reduction
    row_names: tuple[str, ...]  # the mesh axes of the shards of the rows that are reduced

    def reduced(self, losses: Array, axes: Axes) -> Array:
        """The losses of all rows, their sum, or their mean."""
        if self.reduction == "none":
            return losses
        return self.of_sum(jnp.sum(losses), losses.shape, axes)

    def of_sum(self, total: Array, rows: tuple[int, ...], axes: Axes) -> Array:
        """The sum, or the mean: over the rows counted, or over the sum of their labels' weights."""
        if self.reduction == "sum":
            return rules.across(self.row_names, total)[0]
        if self.counted is None and self.terms.label_weights is None:
            (total,) = rules.across(self.row_names, total)
            return total / max(math.prod(rows) * shard_count(self.row_names), 1)
        count = jnp.ones_like(total) if self.terms.label_weights is None else self.terms.label_weights
        counted = True if self.counted is None else jnp.squeeze(self.counted, axes)
        count = jnp.sum(jnp.where(counted, count, 0))
        total, count = rules.across(self.row_names, total, count)
        return total / jnp.where(count == 0, 1, count)


def of_call(
    call: Call, logits: Logits, axes: Axes, names: tuple[str, ...], row_names: tuple[str, ...]
) -> Loss:
    """The loss that the arguments of a public function ask for.

    The classes are sharded over mesh axes of some names, the rows over others.
    """
    labels = call.labels(logits.shape, axes)
    dtype = rules.computing_dtype(logits.dtype)
    weights = call.class_weights(logits.shape, axes, dtype)
    ignored = call.ignore_index(labels)
    reduction = call.arguments["reduction"]
    if reduction not in get_args(Reduction):
        choices = ", ".join(map(repr, get_args(Reduction)))
        raise call.error(ValueError, f"there is no reduction {reduction!r}", f"write one of {choices}")
    counted = None
    if ignored is not None:
        counted = is_other(labels, ignored)
        labels = jnp.where(counted, labels, 0)
    smoothing, z_loss = (
        call.coefficient(name, logits, axes, dtype, counted) for name in ("label_smoothing", "z_loss")
    )
    label_weights = None
    if weights is not None and jnp.issubdtype(labels.dtype, jnp.integer):
        label_weights = _of_labels(weights, jnp.squeeze(labels, axes), names)
    of_rows = (None if a is None else jnp.squeeze(a, axes) for a in (smoothing, z_loss))
    terms = LossTerms(label_weights, *of_rows)
    return Loss(labels, weights, counted, terms, reduction, row_names)


def _of_labels(weights: Array, labels: Array, names: tuple[str, ...]) -> Array:
    """The weight of each label, wherever its class lies."""
    if not names:
        return jnp.take(weights, labels, mode="clip")
    last = weights.size * shard_count(names) - 1
    labels = jnp.clip(labels, 0, min(last, jnp.iinfo(labels.dtype).max))
    labels = ids_of_shard(labels, weights.size, names)
    here = (labels >= 0) & (labels < weights.size)
    return rules.across(names, jnp.where(here, jnp.take(weights, labels, mode="clip"), 0))[0]
