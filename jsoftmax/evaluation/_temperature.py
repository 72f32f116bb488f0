"""Fits the temperature that calibrates logits: it minimizes the loss on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border._call import Call
from jsoftmax.evaluation import _sums, _temperature_search
from jsoftmax.evaluation._batch import Batch, of_call
from jsoftmax.evaluation._labels import Labels
from jsoftmax.evaluation._temperature_search import MOST_STEPS, Search, power_near
from jsoftmax.logits import _scaling


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
    axis, batch = of_call(call, None)
    return _fit(axis, batch)


@partial(jax.jit, static_argnums=0)
def _fit(axis: int, batch: Batch) -> Array:
    rows = _temperature_search.rows_of(axis, batch)
    mean = _mean_over(rows.labels, rows.top.shape, rows.limits.dtype)
    # In these units no difference of logits overflows or underflows, and T may be far larger.
    room = rows.limits.maxexp * 3 // 4
    unit = power_near(_scaling.ordered(rows.x, rows.scaling, rows.top)[0], -room, 3, over=room)
    gap_of_label, spread, farthest = rows.ends(unit)
    farthest = jnp.where(farthest == 0, 1, farthest)
    goal, widest = mean(gap_of_label / farthest), mean(spread / farthest)
    right = jnp.max(gap_of_label, initial=0) == 0
    solvable = ~right & (goal < widest)
    search = _temperature_search.start(widest * farthest, solvable)

    def step(search: Search) -> Search:
        first, second = rows.moments(search.temperature, unit)
        goal = mean(gap_of_label / search.temperature)
        return _temperature_search.advance(search, mean(first), mean(second), goal)

    search = lax.while_loop(lambda s: ~s.settled & (s.steps < MOST_STEPS), step, search)
    return _temperature_search.answer(search, unit, goal, widest, right)


def _mean_over(labels: Labels, shape: tuple[int, ...], dtype: jnp.dtype) -> Callable[[Array], Array]:
    """A function: the weighted mean over the rows that count, as a sum of shares, which cannot overflow."""
    axes = range(len(shape))
    if labels.weights is not None:
        weights = labels.weights.astype(rules.computing_dtype(labels.weights.dtype))
        limits = jnp.finfo(weights.dtype)
        share = (weights / power_near(weights, limits.minexp, -limits.minexp)).astype(dtype)
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
