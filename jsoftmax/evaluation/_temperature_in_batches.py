"""Fits the temperature that calibrates logits, which come in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax.border._arrays import describe
from jsoftmax.border._call import Call
from jsoftmax.evaluation import _sums, _temperature_search
from jsoftmax.evaluation._batch import Batch, of_call
from jsoftmax.evaluation._labels import Labels
from jsoftmax.evaluation._sums import Sum, added
from jsoftmax.evaluation._temperature_search import MOST_STEPS, largest_finite, power_near
from jsoftmax.logits import _scaling

NAME = "evaluation.fit_temperature_in_batches"
AGAIN = "give a list, or a function that returns an iterator of all batches"
Batches = Iterable[Any] | Callable[[], Iterable[Any]]


class _Ends(NamedTuple):
    """Sums over all rows: of the weights, the distances of the labels, and the mean distances."""

    weight: Sum
    gaps: Sum
    spreads: Sum


class _Moments(NamedTuple):
    """Sums over all rows of their moments at one temperature."""

    first: Sum
    second: Sum


def fit_temperature_in_batches(
    batches: Batches,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
) -> Array:
    """As `fit_temperature`, for rows that are not in memory at once.

    Every step of the search reads all batches: two passes, and then about five more. A step keeps a few sums,
    in two words each. Differences of logits below 2⁻⁶⁰ of the largest logit count as 0.

    Args:
      batches: a list, or anything else that can be iterated more than once, of tuples (logits, labels) or
        (logits, labels, weights); or a function that returns such an iterator, called for every pass. The
        batches may have different lengths.
      axis: as in `fit_temperature`, for every batch.
      where: as in `fit_temperature`, for every batch; rows share one mask of classes.
      ignore_index: as in `fit_temperature`.
      soft_cap: as in `fit_temperature`.

    Returns:
      T, one number in at least float32.

    Raises:
      TypeError, ValueError: as `fit_temperature`; also if the batches can be read only once.

    >>> import numpy as np
    >>> from jsoftmax import evaluation
    >>> rng = np.random.default_rng(0)
    >>> logits = rng.normal(size=(1000, 5)).astype(np.float32)
    >>> labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    >>> def batches():  # logits of a model that is too sure by a factor of 2
    ...     for start in range(0, 1000, 300):
    ...         yield 2 * logits[start : start + 300], labels[start : start + 300]
    >>> print(f"{evaluation.fit_temperature_in_batches(batches):.3f}")
    2.033
    >>> print(f"{evaluation.fit_temperature(2 * logits, labels):.3f}")
    2.033
    """
    options = {"axis": axis, "where": where, "ignore_index": ignore_index, "soft_cap": soft_cap}
    if isinstance(batches, Iterator):
        problem = "batches can be read only once, and every step of the search reads them all"
        raise Call(NAME, batches=batches).error(TypeError, problem, AGAIN)

    def over_batches(of_batch: Callable[..., Any], combined: Callable[[Any, Any], Any], *args: Any) -> Any:
        """The results of all batches, combined; None without a batch."""
        found, given = None, batches() if callable(batches) else batches
        if not isinstance(given, Iterable):
            raise Call(NAME, batches=batches).error(TypeError, f"batches gave {describe(given)}", AGAIN)
        for batch in given:
            logits, labels, weights = _parts(batch)
            call = Call(NAME, logits=logits, labels=labels, weights=weights, **options)
            if any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves((logits, labels, weights))):
                raise call.error(TypeError, "the values of a batch are not known", "call it outside jax.jit")
            result = of_batch(*of_call(call, None), *args)
            found = result if found is None else combined(found, result)
        return found

    found = over_batches(_largest, partial(jax.tree.map, jnp.maximum))
    if found is None:
        return jnp.ones(())
    largest, heaviest = found
    limits = jnp.finfo(largest.dtype)
    unit = power_near(largest, -limits.maxexp // 2, 3, over=limits.maxexp // 2)
    share = power_near(heaviest, limits.minexp, -limits.minexp)
    ends = over_batches(_ends, added, unit, share)
    if ends is None:
        problem = "batches gave no batch the second time"
        raise Call(NAME, batches=batches).error(ValueError, problem, AGAIN)
    weight = jnp.where(ends.weight.high == 0, 1, ends.weight.high)
    goal, widest = ends.gaps.high / weight, ends.spreads.high / weight
    right = ends.gaps.high == 0
    search = _temperature_search.start(widest, ~right & (goal < widest))
    while not search.settled and search.steps < MOST_STEPS:
        moments = over_batches(_moments, added, unit, share, search.temperature)
        first, second = moments.first.high / weight, moments.second.high / weight
        search = _temperature_search.advance(search, first, second, goal / search.temperature)
    return _temperature_search.answer(search, unit, goal, widest, right)


def _parts(batch: Any) -> tuple[Any, Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
        return batch[0], batch[1], batch[2] if len(batch) == 3 else None
    problem = f"a batch is {describe(batch)}"
    remedy = "yield tuples (logits, labels) or (logits, labels, weights)"
    raise Call(NAME).error(TypeError, problem, remedy)


@partial(jax.jit, static_argnums=0)
def _largest(axis: int, batch: Batch) -> tuple[Array, Array]:
    """The largest finite |z|, and the largest weight."""
    rows = _temperature_search.rows_of(axis, batch)
    z, _ = _scaling.ordered(rows.x, rows.scaling, rows.top)
    weights = jnp.ones(()) if rows.labels.weights is None else rows.labels.weights
    dtype = rows.limits.dtype
    return largest_finite(z).astype(dtype), largest_finite(weights).astype(dtype)


def _shares(labels: Labels, like: Array, share: Array) -> Array:
    """The weight of each row in units of `share`; 0 in a row that does not count."""
    if labels.weights is not None:
        return labels.weights.astype(like.dtype) / share
    counted = (
        jnp.ones(like.shape, like.dtype) if labels.counted is None else labels.counted.astype(like.dtype)
    )
    return counted / share


def _total(values: Array, shares: Array) -> Sum:
    return _sums.total(jnp.where(shares == 0, 0, shares * values), range(values.ndim), values.dtype)


@partial(jax.jit, static_argnums=0)
def _ends(axis: int, batch: Batch, unit: Array, share: Array) -> _Ends:
    rows = _temperature_search.rows_of(axis, batch)
    gaps, spreads, _ = rows.ends(unit)
    shares = _shares(rows.labels, gaps, share)
    return _Ends(_total(jnp.ones_like(gaps), shares), _total(gaps, shares), _total(spreads, shares))


@partial(jax.jit, static_argnums=0)
def _moments(axis: int, batch: Batch, unit: Array, share: Array, temperature: Array) -> _Moments:
    rows = _temperature_search.rows_of(axis, batch)
    first, second = rows.moments(temperature, unit)
    shares = _shares(rows.labels, first, share)
    return _Moments(_total(first, shares), _total(second, shares))
