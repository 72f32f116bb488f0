"""Merges the numbers of a row over two groups of its classes.

A `Part` holds the numbers over some classes. If these have the share π of the probability of the row:

    nll = nll_part − log π      entropy = Σ π·(entropy_part − log π)      spread = Σ (spread_part − W·log π)

with W the sum of the weights of the part. No term is negative, so a confident row keeps its digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jsoftmax import online, rules
from jsoftmax.logits import _moments, _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows._statistics import Numbers


class Part(NamedTuple):
    """The numbers over some of the classes of every row, [B, 1] each."""

    state: online.State
    numbers: Numbers
    sum_weights: Any  # of the live classes; None if "spread" is not wanted
    mean_u: Any  # ⟨p, u⟩; None if "entropy" is not wanted
    has_label: Array


def merge(a: Part, b: Part, scaling: Scaling) -> Part:
    """The numbers over the classes of both parts; the classes of `a` come first."""
    if scaling.temperature is not None:
        scaling = scaling._replace(temperature=jnp.abs(scaling.temperature))  # maxima are in the order of z
    parts = (a, b)
    top = jnp.maximum(a.state.max, b.state.max)
    shifts = [_scaling.shifted(part.state.max, scaling, top).u for part in parts]
    state = online.State(top, _rest(parts, shifts, top))
    costs = _costs(parts, shifts)

    def total(terms: Callable[[Part, Array], Array]) -> Array:
        of_a, of_b = map(terms, parts, costs)
        return of_a + of_b

    numbers: Numbers = {}
    mean_u = None
    if "log_normalizer" in a.numbers:
        normalizer = _scaling.maximum(scaling, top) + online.log_total(state.rest)
        numbers["log_normalizer"] = jnp.where(state.rest < 0, -jnp.inf, normalizer)
    if "nll" in a.numbers:
        numbers["nll"] = total(lambda p, cost: p.numbers["nll"] + jnp.where(p.has_label, cost, 0.0))
    if "entropy" in a.numbers:
        numbers["entropy"] = total(lambda p, cost: _weighted(jnp.exp(-cost), p.numbers["entropy"] + cost))
        of_a, of_b = (
            _weighted(jnp.exp(-cost), part.mean_u + jnp.where(jnp.isinf(u), 0, u))
            for part, cost, u in zip(parts, costs, shifts, strict=True)
        )
        mean_u = of_a + of_b
    if "spread" in a.numbers:
        numbers["spread"] = total(
            lambda p, cost: p.numbers["spread"] + _weighted(p.sum_weights * _moments.MOMENT_SCALE, cost)
        )
        numbers["live"] = a.numbers["live"] + b.numbers["live"]
    if "prediction" in a.numbers:
        later = b.state.max > a.state.max
        numbers["prediction"] = jnp.where(later, b.numbers["prediction"], a.numbers["prediction"])
    sum_weights = None if a.sum_weights is None else a.sum_weights + b.sum_weights
    return Part(state, numbers, sum_weights, mean_u, a.has_label | b.has_label)


def _rest(parts: tuple[Part, Part], shifts: list[Array], top: Array) -> Array:
    """The rest, by ``1 + rest = Σₖ exp(maxₖ − max)·(1 + restₖ)``; each 1 where maxₖ = max is summed apart."""

    def share(part: Part, u: Array) -> tuple[Array, Array]:
        leads = (part.state.max == top) & (top > -jnp.inf)
        rest = jnp.exp(u) * jnp.where(leads, part.state.rest, 1 + part.state.rest)
        return rest, jnp.where(leads, jnp.exp(u), 0.0)

    (rest_a, one_a), (rest_b, one_b) = map(share, parts, shifts)
    return rest_a + rest_b + (one_a + one_b - 1)


def _costs(parts: tuple[Part, Part], shifts: list[Array]) -> list[Array]:
    """−log π for each part; +inf for a part without a live class, but 0 for both if neither has one."""
    empty = [part.state.rest < 0 for part in parts]
    alone = empty[0] | empty[1]
    logs = [
        jnp.where(alone, 0, u + online.log_total(part.state.rest))
        for part, u in zip(parts, shifts, strict=True)
    ]
    costs = _softplus(logs[1] - logs[0]), _softplus(logs[0] - logs[1])
    gone = (empty[0] & ~empty[1], empty[1] & ~empty[0])
    return [jnp.where(g, jnp.inf, jnp.where(alone, 0, c)) for g, c in zip(gone, costs, strict=True)]


def _softplus(d: Array) -> Array:
    """``log(1 + exp(d))``."""
    return jnp.maximum(d, 0.0) + rules.log1p(jnp.exp(-jnp.abs(d)))


def _weighted(weight: Array, cost: Array) -> Array:
    """``weight·cost``, but 0 where the weight is 0, even if the cost is +inf."""
    return jnp.where(weight == 0, 0, weight * jnp.where(weight == 0, 0, cost))
