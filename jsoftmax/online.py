"""The monoid of the log-sum-exp: a row, or a part of one, as its maximum and the rest of its sum.

    ``Σ exp(z) = exp(max)·(1 + rest)``

`rest` leaves out the maximal element's 1. So a confident row, whose sum rounds to 1, keeps its digits in
`rest`, and the pair never rounds to one number: ``exp(z − max)/(1 + rest)`` does not feel an offset of the
row that ``exp(z − logsumexp)`` would.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

__all__ = ["State", "finish"]


class State(NamedTuple):
    """``Σ exp(z) = exp(max)·(1 + rest)``. With no live class: max = −inf, rest = −1, a sum of 0."""

    max: Array
    rest: Array


def finish(state: State) -> Array:
    """The log-sum-exp, ``max + log1p(rest)``."""
    empty = state.rest < 0
    log = jnp.log1p(jnp.where(empty, 0, state.rest))
    return jnp.where(empty, -jnp.inf, state.max.astype(log.dtype) + log)
