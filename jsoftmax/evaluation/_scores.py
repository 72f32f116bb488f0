"""The numbers of each row of logits that enter the sums: ranks, Brier scores, bins of all classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends._cpu_loops import sums
from jsoftmax.evaluation import _sums
from jsoftmax.evaluation._labels import Labels
from jsoftmax.evaluation._rows import edges_of
from jsoftmax.evaluation._state import Bins
from jsoftmax.evaluation._sums import Sum
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _probabilities, _reductions
from jsoftmax.transforms._sharding import is_known, partition_spec

BLOCK = 128  # rows
MOST_OFF = 0.01  # how far the sum of given probabilities may be from 1


def log(p: Array, where: Array | None, axis: int) -> Array:
    """The logarithms of probabilities; NaN in a row that does not hold probabilities.

    Masked classes have any values. The others then add up to at most 1.
    """
    p = p.astype(rules.computing_dtype(p.dtype))
    if where is not None:
        p = jnp.where(where, p, 0)
    total = jnp.sum(p, axis, keepdims=True)
    least = 1 - MOST_OFF if where is None else 0
    log_p = jnp.where(p == 0, -jnp.inf, jnp.log(jnp.where(p == 0, 1, p)))
    return rules.nan_where(~((total >= least) & (total <= 1 + MOST_OFF)) | (p < 0), log_p)


def brier(
    x: Array,
    scaling: Scaling,
    axis: int,
    row_state: online.State,
    ids: Array,
    targets: Array | None,
    nll: Array,
) -> Array:
    """Σⱼ (pⱼ − tⱼ)² of every row; for a class id, the term of the label is expm1(−nll)²."""
    index = lax.broadcasted_iota(jnp.int32, [n if i == axis else 1 for i, n in enumerate(x.shape)], axis)

    def squares(row: tuple[Array, Array | None, Array | None, Array, Array]) -> tuple[Array]:
        x, where, targets, index, ids = row
        z = _scaling.shifted(x, scaling._replace(where=where), row_state.max)
        p = _probabilities.of_shifted(z, row_state.rest)
        return (
            jnp.where(index == ids, 0, p * p) if targets is None else jnp.square(p - targets.astype(p.dtype)),
        )

    (total,) = sums(squares, (x, scaling.where, targets, index, ids), (axis,))
    if targets is not None:
        return total
    is_empty = row_state.rest < 0
    return total + jnp.where(is_empty, 1, jnp.square(rules.expm1(-jnp.expand_dims(nll, axis))))


def bins_of_classes(
    like: Array, x: Array, scaling: Scaling, axis: int, row_state: online.State, labels: Labels
) -> Bins:
    """For every class and bin of its probability: the weight of the rows, of those with this label, Σ w·p.

    `like` has the shape [V, bins] and the dtype of the result.
    """
    classes, bins = like.shape
    z = _scaling.shifted(x, scaling, row_state.max)
    p = jnp.moveaxis(_probabilities.of_shifted(z, row_state.rest), axis, -1)
    ids, weights = (jnp.moveaxis(a, axis, -1) for a in (labels.ids, jnp.ones_like(labels.ids, p.dtype)))
    of_rows = labels.counted if labels.weights is None else labels.weights
    if of_rows is not None:
        weights = weights * jnp.moveaxis(of_rows, axis, -1).astype(p.dtype)
    weights = jnp.broadcast_to(weights, p.shape)

    def of_bin(edges: tuple[Array, Array]) -> tuple[Sum, Sum]:
        lower, upper = edges
        w = jnp.where((lower < p) & (p <= upper), weights, 0)
        return _total_of_rows(w, like.dtype), _total_of_rows(jnp.where(w == 0, 0, w * p), like.dtype)

    edges = tuple(jnp.asarray(ends, p.dtype) for ends in zip(*edges_of(bins), strict=True))
    weight, confidence = jax.tree.map(lambda words: jnp.moveaxis(words, 0, -1), lax.map(of_bin, edges))

    # A row has one label: one scatter counts all classes.
    p_of_label = jnp.squeeze(_reductions.logit_of_label(p, ids, p.ndim - 1), -1)
    in_bin = sum((p_of_label > upper).astype(jnp.int32) for _, upper in edges_of(bins)[:-1])
    ids, weights = jnp.squeeze(ids, -1), weights[..., 0]
    index = jnp.where(ids < 0, -1, ids * bins + in_bin)
    (correct,) = _sums.totals_of_groups([weights], index, classes * bins, like.dtype)
    return Bins(weight, Sum(*(word.reshape(classes, bins) for word in correct)), confidence)


def _total_of_rows(values: Array, dtype: jnp.dtype) -> Sum:
    """The sum over all axes but the last: plain sums of `BLOCK` rows, which are then added in two words."""
    rows = range(values.ndim - 1)
    if partition_spec(values, *(None,) * values.ndim) is not None or not is_known(values):
        return _sums.total(values, rows, dtype)
    values = values.reshape(-1, values.shape[-1])
    values = jnp.pad(values, [(0, -len(values) % BLOCK), (0, 0)])
    return _sums.total(jnp.sum(values.reshape(-1, BLOCK, values.shape[-1]), 1), (0,), dtype)


def rank(x: Array, ids: Array, scaling: Scaling, axis: int) -> Array:
    """The number of classes that come before the label; for a dead label the largest int32."""
    x = lax.stop_gradient(_scaling.ordered_live(x, scaling))
    own = _reductions.logit_of_label(x, ids, axis)
    index = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    before = (x > own) | ((x == own) & (index < ids))
    number = jnp.sum(before, axis, keepdims=True, dtype=jnp.int32)
    return jnp.where(own == -jnp.inf, jnp.iinfo(jnp.int32).max, number)
