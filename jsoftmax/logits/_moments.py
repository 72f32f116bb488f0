"""Weighted sums over a row of logits besides its state (max, rest): moments of u = z − max z."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

# The scale of u in Σ q·u: the difference of two logits may overflow although its product with q does not.
MOMENT_SCALE = 2.0**-64


class Moment(NamedTuple):
    """A request for Σ q·u and Σ q over a row, where q is the product of `factors`, which broadcast to a row.

    Without factors, q is 1. At a dead class q is 0, or unchanged if `dead_counts`; u is −inf there. Σ q·u is
    scaled by `MOMENT_SCALE`.
    """

    factors: tuple[Array, ...]
    dead_counts: bool = False
    only_total: bool = False  # Σ q only

    def terms(self, u: Array, dead: Array) -> tuple[Array, ...]:
        """The terms of the sums, from u scaled by `MOMENT_SCALE`: (q·u, q), or (q,) if `only_total`."""
        q = jnp.ones_like(u)
        for factor in self.factors:
            q = times(q, factor.astype(u.dtype))
        # The target of a dead class is a constant: its derivatives of every order are 0.
        q = jnp.where(dead, lax.stop_gradient(q) if self.dead_counts else 0, q)
        u = jnp.where(dead, -jnp.inf, u)
        return (q,) if self.only_total else (q * jnp.where((q == 0) & jnp.isinf(u), 0, u), q)


def times(q: Array, weights: Array) -> Array:
    """``q·weights``, with 0 times an infinite weight being 0."""
    return q * jnp.where((q == 0) & jnp.isinf(weights), 0, weights)


def weighted(labels: Array, weights: Array | None, dtype: jnp.dtype) -> Array:
    return labels.astype(dtype) if weights is None else times(labels.astype(dtype), weights)


def live_weights(weights: Array, labels: Array, dead: Array) -> Array:
    """The class weights, which may be infinite, but 0 for a dead class with a target of 0."""
    return jnp.where(dead & (labels == 0), 0, weights)
