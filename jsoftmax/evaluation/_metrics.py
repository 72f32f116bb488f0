"""Computes the metrics from the sums of a state."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border._call import Call
from jsoftmax.evaluation._state import State, check_states
from jsoftmax.evaluation._sums import Sum, add, fold


class Reliability(NamedTuple):
    """A reliability diagram: the weight, mean confidence and accuracy of the rows in each confidence bin."""

    weight: Array
    confidence: Array
    accuracy: Array


class Metrics(NamedTuple):
    """The metrics that `compute` returns; None for each metric that the state does not measure."""

    weight: Array
    nll: Array
    perplexity: Array
    bits_per_token: Array
    bits_per_byte: Array | None
    accuracy: Array
    top_k_accuracy: Array
    brier: Array | None
    calibration_error: Array | None
    reliability: Reliability | None
    per_class_accuracy: Array | None
    per_class_weight: Array | None


def compute(state: State, *, num_bytes: ArrayLike | None = None) -> Metrics:
    """The metrics of all rows in a state, each row with its weight w.

        nll = Σ w·(−log p_y)/Σ w            perplexity = exp(nll)
        bits_per_token = nll/log 2          bits_per_byte = Σ w·(−log p_y)/(log 2·num_bytes)
        brier = Σ w·Σⱼ (pⱼ − tⱼ)²/Σ w       calibration_error = Σ_bins abs(Σ w·max p − Σ w·correct)/Σ w

    where t is the one-hot vector of the label. Entry k − 1 of the top-k accuracy is the share of rows whose
    label is among the k most probable classes; `accuracy` is the first entry. With n bins, bin i holds the
    confidences in (i/n, (i + 1)/n].

    Every mean over no rows is 0, as in `jsoftmax.cross_entropy`. So the perplexity of no rows is 1, and a
    class or a bin without rows has accuracy 0 and weight 0. If a row had a bad label or NaN, or the sum of
    the weights overflowed, every metric except `weight` is NaN; if a row had a dead label, nll and perplexity
    are +inf.

    Args:
      state: the result of `update`, `merge` or `merge_across`.
      num_bytes: the size of the text whose tokens are the rows; if it is below 0, `bits_per_byte` is NaN.

    Returns:
      `Metrics` in the dtype of the state. Each is one number, except `top_k_accuracy` of shape [top_k],
      `reliability` of [bins], `per_class_accuracy` and `per_class_weight` of [V]. A metric that the state
      does not measure is None; `bits_per_byte` is None without `num_bytes`.

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

    Source: Guo et al. (2017) for the calibration error, Brier (1950).
    """
    check_states("compute", state=state)
    if isinstance(num_bytes, int):
        num_bytes = float(num_bytes)
    call = Call("evaluation.compute", num_bytes=num_bytes)
    if num_bytes is None:
        return _compute(state, None)
    number = call.floats("num_bytes")
    if number.ndim:
        raise call.error(ValueError, f"num_bytes has shape {number.shape}", "give one number")
    return _compute(state, number)


@jax.jit
def _compute(state: State, num_bytes: Array | None) -> Metrics:
    nll = _mean(state.nll, state.weight)
    top_k_accuracy = _mean(lax.associative_scan(add, state.ranks), state.weight)
    calibration, classes = state.calibration, state.classes
    brier = calibration_error = reliability = None
    if calibration is not None:
        brier = _mean(calibration.brier, state.weight)
        weight, correct = calibration.bins
        gap = jnp.abs(_difference(calibration.confidence, correct))
        calibration_error = _mean(fold(Sum(gap, jnp.zeros_like(gap)), (0,)), state.weight)
        reliability = Reliability(weight.high, _mean(calibration.confidence, weight), _mean(correct, weight))
    bits_per_byte = None
    if num_bytes is not None:
        size = rules.nan_where(num_bytes < 0, num_bytes.astype(nll.dtype))
        bits_per_byte = state.nll.high / math.log(2) / size
    found = Metrics(
        weight=state.weight.high,
        nll=nll,
        perplexity=jnp.exp(nll),
        bits_per_token=nll / math.log(2),
        bits_per_byte=bits_per_byte,
        accuracy=top_k_accuracy[0],
        top_k_accuracy=top_k_accuracy,
        brier=brier,
        calibration_error=calibration_error,
        reliability=reliability,
        per_class_accuracy=None if classes is None else _mean(classes.correct, classes.weight),
        per_class_weight=None if classes is None else classes.weight.high,
    )
    # A row with a NaN loss makes every sum wrong, and an infinite weight makes every mean wrong.
    bad = jnp.isnan(nll) | (state.weight.high == jnp.inf)
    valid = jax.tree.map(lambda metric: rules.nan_where(bad, metric), found)
    return valid._replace(weight=found.weight)


def _mean(of: Sum, weight: Sum) -> Array:
    """``of/weight``, or 0 if the weight is 0."""
    return of.high / jnp.where(weight.high == 0, 1, weight.high)


def _difference(a: Sum, b: Sum) -> Array:
    return (a.high - b.high) + (a.low - b.low)
