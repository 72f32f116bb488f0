"""The search for the temperature with the smallest loss: what a row contributes, and one step.

With g the distance of a logit from the maximum of its row, Newton's method solves log M(β) = log G for
β = 1/T, where G = mean g_y and M(β) = mean Σ p·g.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.backends import _reading
from jsoftmax.evaluation import _labels
from jsoftmax.evaluation._batch import Batch
from jsoftmax.evaluation._labels import Labels
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _peaks

MOST_STEPS = 100
FARTHEST = 1000.0  # exp(−1000) is 0, even in float64


class TemperatureRows(NamedTuple):
    """Rows of logits with their maximum; all distances are in units, a power of 2."""

    axis: int
    x: Array
    labels: Labels
    scaling: Scaling
    top: Array

    @property
    def limits(self) -> jnp.finfo:
        """The limits of the dtype of the search."""
        return jnp.finfo(rules.computing_dtype(self.x.dtype))

    def _distances(self, unit: Array) -> tuple[Array, Array]:
        """g, and which classes are live. Each sum calls this again, so that XLA need not store g."""
        z, z_top = _scaling.ordered(self.x, self.scaling, self.top)
        ordered = _scaling.ordered_live(self.x, self.scaling)
        live = ordered != -jnp.inf
        g = z_top * (1 / unit) - z * (1 / unit)
        # XLA may compile the tanh of a soft cap twice, with two roundings.
        at_top = (g < 0) | (ordered == self.top) & (self.top < jnp.inf)
        return jnp.where(live & ~at_top, g, 0), live

    def _sum(self, values: Array) -> Array:
        return jnp.sum(values, self.axis, keepdims=True)

    def moments(self, temperature: Array, unit: Array) -> tuple[Array, Array]:
        """``M/T`` and ``−dM/dβ/T²`` of every row."""
        g, live = self._distances(unit)
        v = jnp.minimum(g / temperature, FARTHEST)
        e = jnp.where(live, jnp.exp(-v), 0)
        total = self._sum(e)
        total = jnp.where(total == 0, 1, total)
        first, second = self._sum(e * v) / total, self._sum((e * v) * v) / total
        return first, second - jnp.square(first)

    def ends(self, unit: Array) -> tuple[Array, Array, Array]:
        """The distance of the label and the mean distance, of every row; and the largest distance of all."""
        g, live = self._distances(unit)
        number = self._sum(live.astype(g.dtype))
        hit = _reading.is_label(self.labels.ids, self.axis, self.x.shape[self.axis])
        gap_of_label = self._sum(jnp.where(hit, jnp.where(live, g, jnp.inf), 0))
        gap_of_label = rules.nan_where(self.labels.ids < 0, jnp.where(number == 0, 0, gap_of_label))
        return gap_of_label, self._sum(g / jnp.maximum(number, 1)), jnp.max(g, initial=0)


def rows_of(axis: int, batch: Batch) -> TemperatureRows:
    """The rows of a batch; those that do not count are 0."""
    x, scaling = batch.x, batch.scaling
    labels = _labels.of_rows(
        batch.labels, batch.weights, batch.ignored, x.shape[axis], axis, scaling.where, batch.present
    )
    if labels.counted is not None:
        x = jnp.where(labels.counted, x, 0)
    return TemperatureRows(axis, x, labels, scaling, _peaks.peak(x, scaling, (axis,)))


class Search(NamedTuple):
    """The current T, the bracket of the solution, the steps so far, and whether T is accurate to rounding."""

    temperature: Array
    low: Array
    high: Array
    steps: Array
    settled: Array


def start(widest: Array, solvable: Array) -> Search:
    """The search from the mean distance of a logit, if there is a solution."""
    limits = jnp.finfo(widest.dtype)
    first = jnp.where(solvable, jnp.maximum(widest, limits.tiny), 1)
    least, most = (jnp.full_like(first, limit) for limit in (limits.tiny, limits.max))
    return Search(first, least, most, jnp.zeros_like(first, jnp.int32), ~solvable)


def advance(search: Search, first: Array, second: Array, goal: Array) -> Search:
    """One step, from the means of `moments`, and G/T: Newton's, or a bisection if it leaves the bracket."""
    limits = jnp.finfo(first.dtype)
    excess = jnp.log(first / goal)  # log M − log G
    low = jnp.where(excess > 0, search.low, search.temperature)
    high = jnp.where(excess > 0, search.temperature, search.high)
    change = excess * (first / second)
    newton = search.temperature / (1 + change)
    between = jnp.where(high == limits.max, 8 * low, jnp.sqrt(low) * jnp.sqrt(high))
    temperature = jnp.where((newton > low) & (newton < high), newton, between)
    close = 2 * limits.eps
    settled = (jnp.abs(excess) <= close) | (jnp.abs(change) <= close) | (high <= low * (1 + close))
    return Search(jnp.where(settled, search.temperature, temperature), low, high, search.steps + 1, settled)


def answer(search: Search, unit: Array, goal: Array, widest: Array, right: Array) -> Array:
    """T from the last step, or the limit where the loss has no minimum."""
    limits = jnp.finfo(goal.dtype)
    found = jnp.clip(search.temperature * unit, limits.tiny, limits.max)
    found = jnp.where(goal >= widest, limits.max, found)
    found = jnp.where(right, limits.tiny, found)
    found = jnp.where(widest == 0, 1, found)
    return rules.nan_where(~(jnp.isfinite(goal) & jnp.isfinite(widest)), found)


def largest_finite(values: Array) -> Array:
    """The largest finite |value|; 0 if there is none."""
    return jnp.max(jnp.where(jnp.isfinite(values), jnp.abs(values), 0), initial=0)


def power_near(values: Array, least: int, most: int, over: int = 0) -> Array:
    """The power of 2 next above the largest finite |value|, divided by 2^over; exponent in [least, most]."""
    _, exponent = jnp.frexp(largest_finite(values))
    return jnp.ldexp(jnp.ones((), values.dtype), jnp.clip(exponent - over, least, most))
