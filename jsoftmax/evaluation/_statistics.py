"""Adds batches of rows to a state from the statistics of the rows, without their logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border._call import Call
from jsoftmax.evaluation import _draws, _labels
from jsoftmax.evaluation._rows import Rows, absorb
from jsoftmax.evaluation._state import State, check_states, check_type
from jsoftmax.rows._row_numbers import RowStatistics

# The largest valid numbers, with room for rounding to 16 bits.
LARGEST = {"rank": jnp.inf, "confidence": 1.01, "brier": 2.02}


def update_from_statistics(
    state: State,
    statistics: RowStatistics,
    labels: ArrayLike,
    *,
    ignore_index: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    rank: ArrayLike | None = None,
    confidence: ArrayLike | None = None,
    brier: ArrayLike | None = None,
    key: Array | None = None,
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
      groups: as in `update`.
      rank: the number of classes that come before the label. A rank, confidence or Brier score out of its
        range, for example below 0, makes every metric NaN.
      confidence: the largest probability.
      brier: ``Σⱼ (pⱼ − tⱼ)²``.
      key: as in `update`.

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
        groups=groups,
        rank=rank,
        confidence=confidence,
        brier=brier,
        key=key,
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
    if confidence is None and state.cells is not None:
        problem = "row statistics contain no confidence, and the state measures risk and coverage"
        raise call.error(ValueError, problem, "give confidence=, or begin without selective=True")
    if state.class_bins is not None:
        problem = "row statistics contain no probabilities of all classes, and the state has class_bins"
        raise call.error(ValueError, problem, "begin without class_bins, or call evaluation.update")
    for name in ("log_normalizer", "prediction"):
        shape = jnp.shape(getattr(statistics, name))
        if shape != nll.shape:
            problem = f"statistics with a {name} of shape {shape} for rows of shape {nll.shape}"
            raise call.error(ValueError, problem, "give the row_statistics of these rows")
    more = {
        name: _labels.of_each_row(call, name, nll.shape)
        for name in ("rank", "confidence", "brier", "weights")
    }
    groups_of_rows, key = _labels.group_ids(call, nll.shape, state), _labels.draw_key(call, state)
    return _from_statistics(state, statistics, ids, call.ignore_index(ids), groups_of_rows, key, more)


@jax.jit
def _from_statistics(
    state: State,
    statistics: RowStatistics,
    ids: Array,
    ignored: Array | None,
    groups: Array | None,
    key: Array | None,
    more: dict[str, Array | None],
) -> State:
    classes = None if state.classes is None else state.classes.weight.high.shape[-1]
    labels = _labels.of_rows(ids, more.pop("weights"), ignored, classes)
    nll, prediction = rules.nan_where(labels.ids < 0, statistics.nll), statistics.prediction
    for name, number in more.items():
        if number is not None:
            nll = rules.nan_where(~((number >= 0) & (number <= LARGEST[name])), nll)
    nll = _labels.nan_in_bad_groups(nll, groups, labels.counted)
    has_class = statistics.log_normalizer != -jnp.inf
    rank, confidence = more["rank"], more["confidence"]
    if rank is None:
        rank = ((prediction != labels.ids) | ~has_class).astype(jnp.int32)
    odds = None
    if confidence is not None:
        inside = jnp.clip(confidence, 0, 1)
        odds = inside / (1 - inside)
    draws = _draws.of_rows(state, key, nll.shape, groups)
    rows = Rows(
        nll,
        rank.astype(jnp.int32),
        jnp.where(has_class, prediction, -1),
        more["brier"],
        confidence,
        odds,
        groups,
        draws,
    )
    return absorb(state, rows, labels)
