"""Fits the temperature that calibrates logits: it minimizes the loss on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border._call import Call
from jsoftmax.evaluation import _labels, _sums
from jsoftmax.evaluation._labels import Labels
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _peaks, _reductions

MOST_STEPS = 100
FARTHEST = 1000.0  # exp(−1000) is 0, even in float64


def fit_temperature(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
) -> Array:
    """The T > 0 that makes the mean of ``cross_entropy(logits, labels, temperature=T)`` smallest.

    With g the distance of a logit from the maximum of its row, the loss is convex in β = 1/T, and

        d nll/dβ = G − M(β)         G = mean g_y,  M(β) = mean Σ p·g
        dM/dβ = −mean(Σ p·g² − (Σ p·g)²)

    M falls from the mean distance to 0. Newton's method solves log M(β) = log G. If a Newton step leaves the
    bracket of the solution, the search bisects log β instead. M and G are sums of terms of one sign, so they
    keep their digits, and T is as accurate as their quotient. The search divides the logits by a power of 2,
    so this holds at every scale of the logits where T and G/T are normal numbers.

    The loss may have no minimum. If every label is on the largest logit of its row, the loss falls towards
    T = 0, and the result is the smallest normal number. If the labels are no better than chance, G ≥ M(0),
    the loss falls towards T = ∞, and the result is the largest finite number. Both are valid temperatures and
    give the limits of the loss. If the loss does not depend on T (no rows; rows of equal logits), the result
    is 1. It is NaN for a bad label, NaN or +inf in a live class, a weight below 0, and a dead label, whose
    loss is +inf at any T. Rows that do not count, as in `update`, have no effect.

    It has no reverse-mode derivative: fit T on held-out rows, then use it as a constant.

    Args:
      logits: any shape; the output of a model, at T = 1.
      labels: class ids as integers, in the shape of `logits` without `axis`.
      axis: the class axis, a single one.
      ignore_index: rows with this class id do not count.
      weights: at least 0, in the shape of `labels`; 1 if not given.
      where: True for the classes that count, as in `jsoftmax.cross_entropy`.
      soft_cap: as in `jsoftmax.cross_entropy`.

    Returns:
      T, one number in at least float32. Under `jax.vmap`, one number per mapped element.

    Raises:
      TypeError, ValueError: as `update`.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> from jsoftmax import evaluation
    >>> logits = jnp.array([[6.0, 0.0], [6.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    >>> labels = jnp.array([0, 0, 1, 1])  # 3 of 4 are right: their odds are 3
    >>> temperature = evaluation.fit_temperature(logits, labels)
    >>> print(f"{temperature:.4f} {6 / jnp.log(3.0):.4f}")
    5.4614 5.4614
    >>> print(f"{jsoftmax.softmax(logits[0], temperature=temperature)[0]:.4f}")
    0.7500

    Source: Guo et al. (2017).
    """
    call = Call(
        "evaluation.fit_temperature",
        logits=logits,
        labels=labels,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        soft_cap=soft_cap,
    )
    x = call.floats("logits")
    along = _labels.class_axis(call, x)
    ids = call.class_ids(x.shape, (along,))
    scaling = _scaling.of_call(call, x, (along,))
    return _fit(along, x, ids, scaling, _labels.row_weights(call), call.ignore_index(ids))


class _Search(NamedTuple):
    """The current T, the bracket of the solution, the steps so far, and whether T is accurate to rounding."""

    temperature: Array
    low: Array
    high: Array
    steps: Array
    settled: Array


@partial(jax.jit, static_argnums=0)
def _fit(
    axis: int, x: Array, ids: Array, scaling: Scaling, weights: Array | None, ignored: Array | None
) -> Array:
    labels = _labels.of_rows(ids, weights, ignored, x.shape[axis], axis, scaling.where)
    if labels.counted is not None:
        x = jnp.where(labels.counted, x, 0)
    limits = jnp.finfo(rules.computing_dtype(x.dtype))
    top = _peaks.peak(x, scaling, (axis,))
    mean = _mean_over(labels, top.shape, limits.dtype)
    # In these units no difference of logits overflows or underflows, and T may be far larger.
    room = limits.maxexp * 3 // 4
    unit = _power_near(_scaling.ordered(x, scaling, top)[0], -room, 3, over=room)

    def distances() -> tuple[Array, Array]:
        """g in units, and which classes are live. Each sum calls this again, so that XLA need not store g."""
        z, z_top = _scaling.ordered(x, scaling, top)
        ordered = _scaling.ordered_live(x, scaling)
        live = ordered != -jnp.inf
        g = z_top * (1 / unit) - z * (1 / unit)
        # XLA may compile the tanh of a soft cap twice, with two roundings.
        at_top = (g < 0) | (ordered == top) & (top < jnp.inf)
        return jnp.where(live & ~at_top, g, 0), live

    def row_sum(values: Array) -> Array:
        return jnp.sum(values, axis, keepdims=True)

    def moments(temperature: Array) -> tuple[Array, Array]:
        """``M/T`` and ``−dM/dβ/T²``."""
        g, live = distances()
        v = jnp.minimum(g / temperature, FARTHEST)
        e = jnp.where(live, jnp.exp(-v), 0)
        total = row_sum(e)
        total = jnp.where(total == 0, 1, total)
        first, second = row_sum(e * v) / total, row_sum((e * v) * v) / total
        return mean(first), mean(second - jnp.square(first))

    g, live = distances()
    number = row_sum(live.astype(g.dtype))
    hit = _reductions.is_label(labels.ids, axis, x.shape[axis])
    gap_of_label = row_sum(jnp.where(hit, jnp.where(live, g, jnp.inf), 0))
    gap_of_label = rules.nan_where(labels.ids < 0, jnp.where(number == 0, 0, gap_of_label))
    farthest = jnp.max(g, initial=0)
    farthest = jnp.where(farthest == 0, 1, farthest)
    goal, widest = mean(gap_of_label / farthest), mean(row_sum(g / farthest / jnp.maximum(number, 1)))

    def step(s: _Search) -> _Search:
        first, second = moments(s.temperature)
        excess = jnp.log(first / mean(gap_of_label / s.temperature))  # log M − log G
        low = jnp.where(excess > 0, s.low, s.temperature)
        high = jnp.where(excess > 0, s.temperature, s.high)
        change = excess * (first / second)
        newton = s.temperature / (1 + change)
        between = jnp.where(high == limits.max, 8 * low, jnp.sqrt(low) * jnp.sqrt(high))
        temperature = jnp.where((newton > low) & (newton < high), newton, between)
        close = 2 * limits.eps
        settled = (jnp.abs(excess) <= close) | (jnp.abs(change) <= close) | (high <= low * (1 + close))
        return _Search(jnp.where(settled, s.temperature, temperature), low, high, s.steps + 1, settled)

    right = jnp.max(gap_of_label, initial=0) == 0
    solvable = ~right & (goal < widest)
    start = jnp.where(solvable, jnp.maximum(widest * farthest, limits.tiny), 1)
    least, most = (jnp.full_like(start, limit) for limit in (limits.tiny, limits.max))
    search = _Search(start, least, most, jnp.zeros_like(ids, shape=()), ~solvable)
    search = lax.while_loop(lambda s: ~s.settled & (s.steps < MOST_STEPS), step, search)
    answer = jnp.clip(search.temperature * unit, limits.tiny, limits.max)
    answer = jnp.where(goal >= widest, limits.max, answer)
    answer = jnp.where(right, limits.tiny, answer)
    answer = jnp.where(widest == 0, 1, answer)
    return rules.nan_where(~(jnp.isfinite(goal) & jnp.isfinite(widest)), answer)


def _power_near(values: Array, least: int, most: int, over: int = 0) -> Array:
    """The power of 2 next above the largest finite |value|, divided by 2^over; exponent in [least, most]."""
    _, exponent = jnp.frexp(jnp.max(jnp.where(jnp.isfinite(values), jnp.abs(values), 0), initial=0))
    return jnp.ldexp(jnp.ones((), values.dtype), jnp.clip(exponent - over, least, most))


def _mean_over(labels: Labels, shape: tuple[int, ...], dtype: jnp.dtype) -> Callable[[Array], Array]:
    """A function: the weighted mean over the rows that count, as a sum of shares, which cannot overflow."""
    axes = range(len(shape))
    if labels.weights is not None:
        weights = labels.weights.astype(rules.computing_dtype(labels.weights.dtype))
        limits = jnp.finfo(weights.dtype)
        share = (weights / _power_near(weights, limits.minexp, -limits.minexp)).astype(dtype)
        whole = _sums.total(share, axes, dtype).high
    elif labels.counted is not None:
        share = labels.counted.astype(dtype)
        whole = _sums.count(labels.counted, axes, dtype).high
    else:
        share = whole = jnp.asarray(1.0, dtype)
        whole = whole * max(math.prod(shape), 1)
    share = jnp.broadcast_to(share / jnp.where(whole == 0, 1, whole), shape)

    def mean(values: Array) -> Array:
        return _sums.total(jnp.where(share == 0, 0, share * values), axes, dtype).high

    return mean
