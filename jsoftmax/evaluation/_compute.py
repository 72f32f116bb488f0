"""Computes the metrics from the sums of a state."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border._call import Call
from jsoftmax.evaluation._metrics import GroupMetrics, Metrics, Reliability, RiskCoverage
from jsoftmax.evaluation._state import Bins, Classes, State, check_states
from jsoftmax.evaluation._sums import Sum, add, fold


def compute(state: State, *, num_bytes: ArrayLike | None = None) -> Metrics:
    """The metrics of all rows in a state, each row with its weight w.

        nll = Σ w·(−log p_y)/Σ w            perplexity = exp(nll)
        bits_per_token = nll/log 2          bits_per_byte = Σ w·(−log p_y)/(log 2·num_bytes)
        brier = Σ w·Σⱼ (pⱼ − tⱼ)²/Σ w       accuracy = the weight of the rows predicted right/Σ w

    where t is the one-hot vector of the label. Entry k − 1 of the top-k accuracy is the share of rows whose
    label is among the k most probable classes; `accuracy` is the first entry.

    *Calibration.* With n bins, bin i holds the confidences max p in (i/n, (i + 1)/n]. With W_b the weight of
    bin b and gap_b = Σ w·max p/W_b − Σ w·correct/W_b, the difference of its mean confidence and accuracy:

        calibration_error = Σ_b W_b·|gap_b|/Σ w         max_calibration_error = max_b |gap_b|
        rms_calibration_error = √(Σ_b W_b·gap_b²/Σ w)

    `equal_mass_calibration_error` is the first with bins of equal weight: in the order of confidence, a row
    is in bin ``⌊n·(weight before it + w/2)/Σ w⌋``. All rows of one cell of confidences, 1/128 of an octave of
    the odds p/(1 − p), stay together. `class_calibration_error` is the mean over the classes of the first,
    with the probability of the class as confidence; a row is correct if its label is the class.

    *Classes*, over those with rows: `macro_accuracy` is the mean of `per_class_accuracy` (the recall). Of the
    rows predicted as a class, `per_class_precision` is the share that is right, and `per_class_f1` is
    ``2·right/(rows with the label + rows predicted)``. `macro_f1` is its mean over the classes that are a
    label or a prediction. ``confusion[i, j]`` is the weight of the rows with label i and prediction j.

    *Selective prediction.* `risk_coverage` has the error of the most confident rows by their share of the
    weight. `aurc` is the area under it: the mean, over the rows in the order of their confidence, of the
    error of all rows up to this one. Within a cell of equal confidences, errors are evenly spread.

    *Groups*: weight, loss and accuracy of each.

    Without any row, every metric except `weight` is NaN. A class, bin or group without rows has accuracy 0
    and weight 0. If a row had a bad label or NaN, or the sum of the weights overflowed, every metric except
    `weight` is NaN; if a row had a dead label, nll and perplexity are +inf.

    Args:
      state: the result of `update`, `merge` or `merge_across`.
      num_bytes: the size of the text whose tokens are the rows; if it is below 0, `bits_per_byte` is NaN.

    Returns:
      `Metrics` in the dtype of the state. A metric that the state does not measure is None; `bits_per_byte`
      is None without `num_bytes`. Of shape [top_k]: `top_k_accuracy`; of [bins]: `reliability`,
      `equal_mass_reliability`; of [V]: what begins with `per_class`; of [V, V]: `confusion`; of [8192]:
      `risk_coverage`; of [num_groups]: `groups`. All others are single numbers.

    Raises:
      TypeError, ValueError: if `state` is not a state, or `num_bytes` is not one number.

    >>> import jax.numpy as jnp
    >>> from jsoftmax import evaluation
    >>> state = evaluation.update(evaluation.empty(), jnp.zeros((4, 8)), jnp.arange(4))
    >>> metrics = evaluation.compute(state, num_bytes=6)
    >>> print(f"{metrics.perplexity:.4f} {metrics.bits_per_token:.4f} {metrics.bits_per_byte:.4f}")
    8.0000 3.0000 2.0000
    >>> print(f"{metrics.accuracy:.3f} {metrics.brier:.3f} {metrics.calibration_error:.3f}")
    0.250 0.875 0.125

    Source: Guo et al. (2017) and Nixon et al. (2019) for the calibration errors; Brier (1950); Geifman &
    El-Yaniv (2017) for the risk–coverage curve.
    """
    check_states("compute", state=state)
    if isinstance(num_bytes, int):
        num_bytes = float(num_bytes)
    call = Call("evaluation.compute", num_bytes=num_bytes)
    if num_bytes is None:
        return of_state(state, None)
    number = call.floats("num_bytes")
    if number.ndim:
        raise call.error(ValueError, f"num_bytes has shape {number.shape}", "give one number")
    return of_state(state, number)


@jax.jit
def of_state(state: State, num_bytes: Array | None) -> Metrics:
    """The metrics of a state."""
    nll = _mean(state.nll, state.weight)
    top_k_accuracy = _mean(lax.associative_scan(add, state.ranks), state.weight)
    found = Metrics(
        weight=state.weight.high,
        nll=nll,
        perplexity=jnp.exp(nll),
        bits_per_token=nll / math.log(2),
        bits_per_byte=None if num_bytes is None else _bits_per_byte(state.nll, num_bytes),
        accuracy=top_k_accuracy[0],
        top_k_accuracy=top_k_accuracy,
        brier=None,
        calibration_error=None,
        reliability=None,
        per_class_accuracy=None,
        per_class_weight=None,
        confusion=None if state.confusion is None else state.confusion.high,
    )
    if state.calibration is not None:
        bins = state.calibration.bins
        error, gap = _calibration_error(bins)
        found = found._replace(
            brier=_mean(state.calibration.brier, state.weight),
            calibration_error=error,
            reliability=_reliability(bins),
            max_calibration_error=jnp.max(gap),
            rms_calibration_error=jnp.sqrt(jnp.sum(bins.weight.high * gap * gap) / _at_least_1(state.weight)),
        )
    if state.class_bins is not None:
        error, _ = jax.vmap(_calibration_error)(state.class_bins)
        found = found._replace(class_calibration_error=jnp.mean(error))
    if state.cells is not None:
        found = found._replace(risk_coverage=_risk_coverage(state.cells))
        if state.calibration is not None:
            bins = _of_equal_mass(state.cells, state.calibration.bins.weight.high.shape[-1])
            error, _ = _calibration_error(bins)
            found = found._replace(
                equal_mass_calibration_error=error, equal_mass_reliability=_reliability(bins)
            )
    if state.classes is not None:
        found = _with_classes(found, state.classes)
    if state.groups is not None:
        weight, correct, losses = state.groups
        by_group = GroupMetrics(weight.high, _mean(losses, weight), _mean(correct, weight))
        found = found._replace(groups=by_group)
    # A NaN loss makes every sum wrong, an infinite weight makes every mean wrong, and no rows have no mean.
    bad = jnp.isnan(nll) | (state.weight.high == jnp.inf) | (state.weight.high == 0)
    valid = jax.tree.map(lambda metric: rules.nan_where(bad, metric), found)
    return valid._replace(weight=found.weight)


def _at_least_1(weight: Sum) -> Array:
    """The weight, or 1 if it is 0."""
    return jnp.where(weight.high == 0, 1, weight.high)


def _mean(of: Sum, weight: Sum) -> Array:
    """``of/weight``, or 0 if the weight is 0."""
    return of.high / _at_least_1(weight)


def _bits_per_byte(nll: Sum, num_bytes: Array) -> Array:
    size = rules.nan_where(num_bytes < 0, num_bytes.astype(nll.high.dtype))
    return nll.high / math.log(2) / size


def _reliability(bins: Bins) -> Reliability:
    weight, correct, confidence = bins
    return Reliability(weight.high, _mean(confidence, weight), _mean(correct, weight))


def _calibration_error(bins: Bins) -> tuple[Array, Array]:
    """``Σ_b W_b·|gap_b|/Σ w``, and |gap_b| of every bin."""
    weight, correct, confidence = bins
    gap = jnp.abs((confidence.high - correct.high) + (confidence.low - correct.low))
    total = fold(Sum(gap, jnp.zeros_like(gap)), (0,))
    return _mean(total, fold(weight, (0,))), gap / _at_least_1(weight)


def _of_equal_mass(cells: Bins, bins: int) -> Bins:
    """Bins of about equal weight, from cells in the order of their confidence."""
    weight = cells.weight.high
    before = jnp.cumsum(weight) - weight
    total = jnp.where(jnp.sum(weight) == 0, 1, jnp.sum(weight))
    # One rounding, in the quotient: whole numbers of rows are put in the bins of the definition.
    bin_of_cell = jnp.clip((bins * (before + weight / 2) / total).astype(jnp.int32), 0, bins - 1)
    is_in = bin_of_cell[None] == jnp.arange(bins)[:, None]
    return Bins(*(fold(Sum(*(jnp.where(is_in, word[None], 0) for word in of)), (1,)) for of in cells))


def _risk_coverage(cells: Bins) -> RiskCoverage:
    """The curve from the most confident cell on, and its area.

    With N rows and E errors before a cell of weight w and error r, the risk within the cell, x into it, is
    (E + r·x)/(N + x). Its integral over the cell is r·w + (E − r·N)·log(1 + w/N).
    """
    weight, correct, _ = (Sum(*(jnp.flip(word) for word in of)) for of in cells)
    wrong = add(weight, Sum(-correct.high, -correct.low))
    rows, errors = (lax.associative_scan(add, of) for of in (weight, wrong))
    w, error = weight.high, wrong.high / _at_least_1(weight)
    rows_before = jnp.concatenate([jnp.zeros(1, w.dtype), rows.high[:-1]])
    errors_before = jnp.concatenate([jnp.zeros(1, w.dtype), errors.high[:-1]])
    more = rules.log1p(w / jnp.where(rows_before == 0, 1, rows_before))
    area = error * w + jnp.where(rows_before == 0, 0, (errors_before - error * rows_before) * more)
    total = jnp.where(rows.high[-1] == 0, 1, rows.high[-1])
    aurc = fold(Sum(area, jnp.zeros_like(area)), (0,)).high / total
    return RiskCoverage(rows.high / total, errors.high / _at_least_1(rows), aurc)


def _with_classes(found: Metrics, classes: Classes) -> Metrics:
    weight, correct, predicted = classes
    either = add(weight, predicted)
    recall, f1 = _mean(correct, weight), 2 * correct.high / _at_least_1(either)

    def mean_over(values: Array, exists: Array) -> Array:
        number = jnp.sum(exists, dtype=values.dtype)
        return jnp.sum(jnp.where(exists, values, 0)) / jnp.maximum(number, 1)

    return found._replace(
        per_class_accuracy=recall,
        per_class_weight=weight.high,
        per_class_precision=_mean(correct, predicted),
        per_class_f1=f1,
        macro_accuracy=mean_over(recall, weight.high > 0),
        macro_f1=mean_over(f1, either.high > 0),
    )
