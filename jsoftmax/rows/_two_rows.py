"""Two rows of logits, p and q: what their divergences save, and the numbers of each class.

The gaps of the logits are differences that keep their digits and do not overflow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import online, rules
from jsoftmax.logits import _rounding, _scaling
from jsoftmax.logits._scaling import Scaling, Shifted
from jsoftmax.rows import _leading, _probabilities
from jsoftmax.transforms._platforms import recomputed_everywhere
from jsoftmax.transforms._sharding import varies, varying

Axes = tuple[int | str, ...]


class Gaps(NamedTuple):
    """Both rows minus their maxima, and their gap ``u_q − u_p``: ±inf where one of them is dead.

    A gap that overflows is the largest finite number. Half of the gap before the division by T cannot.
    """

    p: Shifted
    q: Shifted
    gap: Array
    half: Array


def compared(p: Array, q: Array, scaling: Scaling, p_state: online.State, q_state: online.State) -> Gaps:
    """The gaps of two rows with these states."""
    pair = (p, p_state.max), (q, q_state.max)
    z_p, z_q = (_scaling.shifted(x, scaling, top, at_top=True) for x, top in pair)
    dead_p, dead_q = (_is_dead(x, scaling, top) for x, top in pair)
    dead = dead_p | dead_q
    of_p, of_q = (_scaling.ordered(jnp.where(dead, 0, x), scaling, top) for x, top in pair)
    half = _rounding.half_gap(*of_p, *of_q)
    gap, largest = 2 * _divided(half, scaling), float(jnp.finfo(half.dtype).max)
    gap = jnp.where(gap == jnp.inf, largest, jnp.where(gap == -jnp.inf, -largest, gap))
    of_dead = jnp.where(dead_p == dead_q, 0, jnp.where(dead_p, jnp.inf, -jnp.inf))
    return Gaps(z_p, z_q, jnp.where(dead, of_dead, gap), half)


def _is_dead(x: Array, scaling: Scaling, top: Array) -> Array:
    """As `_scaling.is_dead`, from half of ``x − top``, which cannot overflow.

    It depends on `top`, so a barrier hides it too: XLA then recomputes it where it recomputes u.
    """
    dtype = rules.computing_dtype(x.dtype)
    half_top = 0.5 * jnp.maximum(top.astype(dtype), jnp.finfo(dtype).min)
    return 0.5 * _scaling.live(x, scaling).astype(dtype) - half_top == -jnp.inf


def _divided(values: Array, scaling: Scaling) -> Array:
    return values if scaling.temperature is None else rules.divided(values, scaling.temperature)


def log_ratio(gaps: Gaps, rest_p: Array, rest_q: Array, axes: Axes) -> Array:
    """``log(Σ exp u_q / Σ exp u_p)`` from the differences of the exponentials; 0 if a row is empty."""
    e_p, e_q = _scaling.exponentials(gaps.p), _scaling.exponentials(gaps.q)
    (gap,) = rules.row_sums(axes, rules.difference(e_p, e_q, gaps.gap))
    more = gap > 0
    total = 1 + jnp.where(more, rest_p, rest_q)
    empty = (rest_p < 0) | (rest_q < 0)
    log = rules.log1p(jnp.where(more, gap, -gap) / jnp.where(empty, 1, total))
    return jnp.where(empty, 0 * (rest_p + rest_q), jnp.where(more, log, -log))  # 0, or NaN if a rest is


def products(p: Array, d: Array, half: Array, scaling: Scaling) -> Array:
    """``p·d`` for d = log q − log p, 0 where p or q is 0; where d overflows, p times the half of its gap."""
    overflows = jnp.abs(d) == jnp.finfo(d.dtype).max
    of_half = 2 * _divided(p * jnp.where(overflows, half, 0), scaling)
    return jnp.where(overflows, of_half, p * jnp.where(jnp.isinf(d), 0, d))


class Pair(NamedTuple):
    """The numbers of each class of two rows p and q; d = log q − log p, finite unless a class is dead."""

    u_p: Array
    u_q: Array
    p: Array
    q: Array
    d: Array
    products: Array  # p·d, 0 at dead classes, also where d overflows
    p_leads: Array
    q_leads: Array


class Saved(NamedTuple):
    """The arguments, the states of both rows, log(Σ exp u_q / Σ exp u_p), the divergences, and β."""

    p_logits: Array
    q_logits: Array
    scaling: Scaling
    p_state: online.State
    q_state: online.State
    log_ratio: Array
    divergences: tuple[Array, ...]
    beta: Array | None = None

    def behind_barrier(self, *after: Any) -> Saved:
        """The same numbers behind a barrier that waits for `after`, so that XLA recomputes the pair.

        Without it, XLA stores what several sums share, in float32 and in the shape of the logits.
        """
        of_rows = self.p_state, self.q_state, self.log_ratio
        of_rows = jax.tree.map(lambda a: varying(a, of_rows), of_rows)
        # A barrier that waits for sums of this shard only would mark its results as varying over the shards.
        known = [a for a in jax.tree.leaves(after) if varies(a) <= varies(of_rows[-1])]
        p_state, q_state, log_ratio = recomputed_everywhere(of_rows, known)
        return self._replace(p_state=p_state, q_state=q_state, log_ratio=log_ratio)

    @property
    def rows(self) -> tuple[_probabilities.Row, _probabilities.Row]:
        p = self.p_logits, self.scaling, self.p_state
        return p, (self.q_logits, self.scaling, self.q_state)

    @property
    def empty(self) -> Array:
        return (self.p_state.rest < 0) | (self.q_state.rest < 0)

    def pair(self) -> Pair:
        gaps = compared(self.p_logits, self.q_logits, self.scaling, self.p_state, self.q_state)
        d = jnp.where(self.empty, 0, gaps.gap) - self.log_ratio
        p = _probabilities.of_shifted(gaps.p, self.p_state.rest)
        q = _probabilities.of_shifted(gaps.q, self.q_state.rest)
        of_p = products(p, d, gaps.half, self.scaling)
        p_leads, q_leads = (_leading.leading(*row) for row in self.rows)
        return Pair(gaps.p.u, gaps.q.u, p, q, d, of_p, p_leads, q_leads)
