"""Further sums over a row of logits, beside its state: moments of u = z − max z."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

# Of u in the sums Σ q·u: the difference of two logits may overflow, where its product with q does not.
DOWN = 2.0**-64


class Moment(NamedTuple):
    """Numbers q, the product of some factors that broadcast to a row, of which Σ q·u and Σ q are asked for.

    Without factors they are 1. Of a dead class they are 0, or, if it counts, themselves: u is −inf there.
    Σ q·u is scaled by `DOWN`.
    """

    factors: tuple[Array, ...]
    dead_counts: bool = False
    only_total: bool = False  # Σ q alone

    def terms(self, u: Array, dead: Array) -> tuple[Array, ...]:
        """The terms of the sums, from u scaled by `DOWN`."""
        q = jnp.ones_like(u)
        for factor in self.factors:
            q = times(q, factor.astype(u.dtype))
        # The target of a dead class is a constant: its derivative is 0 to every order.
        q = jnp.where(dead, lax.stop_gradient(q) if self.dead_counts else 0, q)
        u = jnp.where(dead, -jnp.inf, u)
        return (q,) if self.only_total else (q * jnp.where((q == 0) & jnp.isinf(u), 0, u), q)


def times(q: Array, weights: Array) -> Array:
    """``q·weights``, 0 where q is 0 and a weight infinite."""
    return q * jnp.where((q == 0) & jnp.isinf(weights), 0, weights)
