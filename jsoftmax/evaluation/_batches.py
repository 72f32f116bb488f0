"""Adds batches of rows to a state: from logits, or from the statistics of the rows."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.backends._cpu_loops import sums
from jsoftmax.border._call import Call
from jsoftmax.evaluation import _labels
from jsoftmax.evaluation._state import Rows, State, absorb, check_states, check_type
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _probabilities, _reductions
from jsoftmax.rows._row_numbers import RowStatistics, numbers

# The largest valid numbers, with room for rounding to 16 bits.
LARGEST = {"rank": jnp.inf, "confidence": 1.01, "brier": 2.02}


def update(
    state: State,
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
) -> State:
    """The state after a batch of rows is added, from their logits and class ids.

    A row does not count if its weight is 0, its label is `ignore_index`, or `where` masks all its classes:
    then its values have no effect. A class id outside [0, V), NaN or +inf in a live class, or a weight below
    0 makes every metric except `weight` NaN, in this state and in every state it is merged into. A row
    without a live class has loss 0, as in `cross_entropy`; its prediction counts as wrong, with confidence 0
    and a Brier score of 1.

    The rank of the label counts the classes with a larger logit, and those with an equal logit and a smaller
    index, as argmax and ``jax.lax.top_k`` order them; nothing is sorted. A dead label is in no top k.

    Derivative: nll, Brier score and confidence are differentiable; counts have no derivative.

    Args:
      state: a state from `empty`, or any later one.
      logits: any shape.
      labels: class ids as integers, in the shape of `logits` without `axis`.
      axis: the class axis, a single one.
      ignore_index: rows with this class id do not count.
      weights: at least 0, in the shape of `labels`; 1 if not given. Their sums, and their products with the
        losses, have to be normal numbers.
      where: True for the classes that count, as in `jsoftmax.cross_entropy`.
      soft_cap: as in `jsoftmax.cross_entropy`.
      temperature: as in `jsoftmax.cross_entropy`.

    Returns:
      `State`, in the dtype it had.

    Raises:
      TypeError, ValueError: as `jsoftmax.cross_entropy`; also if the state has another number of classes.

    >>> import jax, jax.numpy as jnp
    >>> from jsoftmax import evaluation
    >>> logits = jnp.array([[2.0, 1.0, 0.1], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
    >>> state = evaluation.update(evaluation.empty(3), logits, jnp.array([0, 1, 0]))
    >>> metrics = evaluation.compute(state)
    >>> print(f"{metrics.nll:.4f}", metrics.top_k_accuracy[:2], metrics.per_class_accuracy)
    0.6878 [0.6666667 1.       ] [0.5 1.  0. ]
    """
    check_states("update", state=state)
    call = Call(
        "evaluation.update",
        logits=logits,
        labels=labels,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        soft_cap=soft_cap,
        temperature=temperature,
    )
    x = call.floats("logits")
    along = _labels.class_axis(call, x)
    ids = call.class_ids(x.shape, (along,))
    if state.classes is not None:
        given, classes = x.shape[along], state.classes.weight.high.shape[-1]
        if given != classes:
            problem = f"the logits have {given} classes, and the state is for {classes}"
            raise call.error(ValueError, problem, f"begin with evaluation.empty({given})")
    scaling = _scaling.of_call(call, x, (along,))
    weight = _labels.row_weights(call)
    return _update(along, state, x, ids, scaling, weight, call.ignore_index(ids))


@partial(jax.jit, static_argnums=0)
def _update(
    axis: int,
    state: State,
    x: Array,
    ids: Array,
    scaling: Scaling,
    weights: Array | None,
    ignored: Array | None,
) -> State:
    labels = _labels.of_rows(ids, weights, ignored, x.shape[axis], axis, scaling.where)
    if labels.counted is not None:
        x = jnp.where(labels.counted, x, 0)
        ids = jnp.where(labels.counted, ids, 0)  # not `labels.ids`: `numbers` reports bad ids itself
    found = numbers((axis,), frozenset({"nll"}), x, ids, scaling, None, labels.counted, beside=labels.weights)
    nll = found["nll"]
    brier = confidence = None
    if state.calibration is not None:
        index = lax.broadcasted_iota(jnp.int32, [n if i == axis else 1 for i, n in enumerate(x.shape)], axis)

        state_of_row, _ = _reductions.reduce(x, scaling, (axis,))
        empty = state_of_row.rest < 0

        def of_others(row: tuple[Array, Array | None, Array, Array]) -> tuple[Array]:
            x, where, index, ids = row
            z = _scaling.shifted(x, scaling._replace(where=where), state_of_row.max)
            p = _probabilities.of_shifted(z, state_of_row.rest)
            return (jnp.where(index == ids, 0, p * p),)

        (squares,) = sums(of_others, (x, scaling.where, index, labels.ids), (axis,))
        of_label = jnp.where(empty, 1, jnp.square(rules.expm1(-jnp.expand_dims(nll, axis))))
        brier = jnp.squeeze(of_label + squares, axis)
        confidence = jnp.squeeze(jnp.where(empty, 0, 1 / (1 + state_of_row.rest)), axis)
    rank = jnp.squeeze(_rank(x, labels.ids, scaling, axis), axis)
    by_row = jax.tree.map(lambda a: jnp.squeeze(a, axis), labels)
    return absorb(state, Rows(nll, rank, brier, confidence), by_row)


def _rank(x: Array, ids: Array, scaling: Scaling, axis: int) -> Array:
    """The number of classes that come before the label; for a dead label the largest int32."""
    x = lax.stop_gradient(_scaling.ordered_live(x, scaling))
    own = _reductions.logit_of_label(x, ids, axis)
    index = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    before = (x > own) | ((x == own) & (index < ids))
    rank = jnp.sum(before, axis, keepdims=True, dtype=jnp.int32)
    return jnp.where(own == -jnp.inf, jnp.iinfo(jnp.int32).max, rank)


def update_from_statistics(
    state: State,
    statistics: RowStatistics,
    labels: ArrayLike,
    *,
    ignore_index: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    rank: ArrayLike | None = None,
    confidence: ArrayLike | None = None,
    brier: ArrayLike | None = None,
) -> State:
    """The state after a batch of rows is added, from their `RowStatistics`, without their logits.

    Row statistics contain the loss and the prediction: enough for ``empty(top_k=1, bins=None)``. A state that
    measures more needs more numbers per row. All else is as in `update`, except for a fully masked row:
    statistics cannot tell it from a row whose logits are all −inf, so give it weight 0.

    Args:
      state: a state from `empty`, or any later one.
      statistics: the result of `row_statistics` or `linear_row_statistics`.
      labels: the class ids of the rows.
      ignore_index: rows with this class id do not count.
      weights: at least 0, in the shape of `labels`; 1 if not given.
      rank: the number of classes that come before the label. A rank, confidence or Brier score out of its
        range, for example below 0, makes every metric NaN.
      confidence: the largest probability.
      brier: ``Σⱼ (pⱼ − tⱼ)²``.

    Returns:
      `State`, in the dtype it had.

    Raises:
      TypeError, ValueError: for labels that are not integers, for an array of another shape, and if the state
        measures a quantity that is not given.

    >>> import jax.numpy as jnp, jsoftmax
    >>> from jsoftmax import evaluation
    >>> hidden, weight = jnp.eye(3), jnp.array([[2.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    >>> labels = jnp.array([0, 1, -100])
    >>> found = jsoftmax.linear_row_statistics(hidden, weight, labels)
    >>> state = evaluation.empty(top_k=1, bins=None)
    >>> state = evaluation.update_from_statistics(state, found, labels, ignore_index=-100)
    >>> metrics = evaluation.compute(state)
    >>> print(f"{metrics.nll:.4f} {metrics.accuracy:.1f}")
    1.6809 0.5
    """
    check_states("update_from_statistics", state=state)
    remedy = "pass the result of row_statistics or linear_row_statistics, or call evaluation.update"
    check_type("update_from_statistics", RowStatistics, remedy, statistics=statistics)
    call = Call(
        "evaluation.update_from_statistics",
        nll=statistics.nll,
        labels=labels,
        ignore_index=ignore_index,
        weights=weights,
        rank=rank,
        confidence=confidence,
        brier=brier,
    )
    nll = call.floats("nll")
    ids = call.class_ids(nll.shape, ())
    if rank is None and state.ranks.high.shape[-1] > 1:
        problem = "row statistics do not contain the rank of the label, and the state measures top-k accuracy"
        raise call.error(ValueError, problem, "give rank=, or begin with evaluation.empty(top_k=1)")
    if (confidence is None or brier is None) and state.calibration is not None:
        problem = "row statistics contain no confidence or Brier score, and the state measures calibration"
        remedy = "give confidence= and brier=, or begin with evaluation.empty(bins=None)"
        raise call.error(ValueError, problem, remedy)
    for name in ("log_normalizer", "prediction"):
        shape = jnp.shape(getattr(statistics, name))
        if shape != nll.shape:
            problem = f"statistics with a {name} of shape {shape} for rows of shape {nll.shape}"
            raise call.error(ValueError, problem, "give the row_statistics of these rows")
    more = {name: _labels.of_each_row(call, name) for name in ("rank", "confidence", "brier")}
    ignored, weight = call.ignore_index(ids), _labels.row_weights(call)
    return _from_statistics(state, statistics, ids, weight, ignored, more)


@jax.jit
def _from_statistics(
    state: State,
    statistics: RowStatistics,
    ids: Array,
    weights: Array | None,
    ignored: Array | None,
    more: dict[str, Array | None],
) -> State:
    classes = None if state.classes is None else state.classes.weight.high.shape[-1]
    labels = _labels.of_rows(ids, weights, ignored, classes)
    nll, prediction = rules.nan_where(labels.ids < 0, statistics.nll), statistics.prediction
    for name, number in more.items():
        if number is not None:
            nll = rules.nan_where(~((number >= 0) & (number <= LARGEST[name])), nll)
    rank = more["rank"]
    if rank is None:
        wrong = (prediction != labels.ids) | (statistics.log_normalizer == -jnp.inf)
        rank = wrong.astype(jnp.int32)
    return absorb(state, Rows(nll, rank.astype(jnp.int32), more["brier"], more["confidence"]), labels)
