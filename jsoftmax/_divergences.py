"""The divergence of two rows of logits and its derivative rule: Kullback-Leibler's and Jensen-Shannon's.

Both rest on d = log q − log p, which is a difference of logits less the logarithm of a ratio of sums: no
normalizer is rounded on the way. The sums differ by the sum of the differences of their terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import _rows, _scaling, online, rules
from jsoftmax._autodiff import with_rules
from jsoftmax._scaling import Scaling, Shifted

Axes = tuple[int | str, ...]
Numbers = tuple[Array, ...]


class _Pair(NamedTuple):
    """Two rows beside each other, class by class; d = log q − log p."""

    u_p: Array
    u_q: Array
    p: Array
    q: Array
    d: Array


class _Saved(NamedTuple):
    """The arguments, the states of both rows, log(Σ exp u_q / Σ exp u_p), and the divergences."""

    p_logits: Array
    q_logits: Array
    scaling: Scaling
    p_state: online.State
    q_state: online.State
    log_ratio: Array
    divergences: Numbers

    def restore(self) -> _Pair:
        z_p, z_q = (
            _scaling.shifted(x, self.scaling, state.max, exact=True)
            for x, state in ((self.p_logits, self.p_state), (self.q_logits, self.q_state))
        )
        return _pair(z_p, z_q, self.p_state.rest, self.q_state.rest, self.log_ratio)


def _apart(z_p: Shifted, z_q: Shifted) -> Array:
    """``u_q − u_p``; ±inf where one is dead, 0 where both are."""
    dead_p, dead_q = z_p.u == -jnp.inf, z_q.u == -jnp.inf
    u_p, u_q = (jnp.where(dead_p | dead_q, 0, z.u) for z in (z_p, z_q))
    apart = u_q - u_p
    if z_p.slip is not None and z_q.slip is not None:
        apart = apart + (z_q.slip - z_p.slip)
    return jnp.where(dead_p == dead_q, apart, jnp.where(dead_p, jnp.inf, -jnp.inf))


def _log_ratio(z_p: Shifted, z_q: Shifted, rest_p: Array, rest_q: Array, axes: Axes) -> Array:
    """``log(Σ exp u_q / Σ exp u_p)`` from the differences of the exponentials; 0 if a row is empty."""
    gaps = rules.difference(_rows.exponentials(z_p), _rows.exponentials(z_q), _apart(z_p, z_q))
    (gap,) = rules.row_sums(axes, gaps)
    more = gap > 0
    total = 1 + jnp.where(more, rest_p, rest_q)
    empty = (rest_p < 0) | (rest_q < 0)
    log = jnp.log1p(jnp.where(more, gap, -gap) / jnp.where(empty, 1, total))
    return jnp.where(empty, 0 * (rest_p + rest_q), jnp.where(more, log, -log))  # 0, or NaN if one is


def _pair(z_p: Shifted, z_q: Shifted, rest_p: Array, rest_q: Array, log_ratio: Array) -> _Pair:
    empty = (rest_p < 0) | (rest_q < 0)
    d = jnp.where(empty, 0, _apart(z_p, z_q)) - log_ratio
    return _Pair(z_p.u, z_q.u, _rows.probabilities(z_p, rest_p), _rows.probabilities(z_q, rest_q), d)


def _with_rules(
    compare: Callable[[Axes, _Pair], tuple[Array, Numbers]],
    gradients: Callable[[Axes, _Pair, Numbers], tuple[Array, Array]],
) -> Callable[..., Array]:
    """The function of both logits, mask, and temperature, from that of the pair and its two gradients."""

    def save(axes: Axes, p: Array, q: Array, scaling: Scaling) -> tuple[Array, _Saved]:
        (p_state, _), (q_state, _) = (_rows.reduce(x, scaling, axes, exact=True) for x in (p, q))
        z_p, z_q = (
            _scaling.shifted(x, scaling, state.max, exact=True) for x, state in ((p, p_state), (q, q_state))
        )
        log_ratio = _log_ratio(z_p, z_q, p_state.rest, q_state.rest, axes)
        out, divergences = compare(axes, _pair(z_p, z_q, p_state.rest, q_state.rest, log_ratio))
        return out, _Saved(p, q, scaling, p_state, q_state, log_ratio, divergences)

    def pull(axes: Axes, saved: _Saved, g: Array) -> tuple[Array, Array, Scaling]:
        pair = saved.restore()
        in_p, in_q = gradients(axes, pair, saved.divergences)
        dp, by_p = _scaling.pull(saved.p_logits, pair.u_p, g * in_p, saved.scaling)
        dq, by_q = _scaling.pull(saved.q_logits, pair.u_q, g * in_q, saved.scaling)
        return dp, dq, jax.tree.map(jnp.add, by_p, by_q)

    def push(axes: Axes, saved: _Saved, tangents: tuple[Array | None, Array | None, Scaling]) -> Array:
        pair = saved.restore()
        in_p, in_q = gradients(axes, pair, saved.divergences)
        dp, dq, by = tangents
        dp = _scaling.push(saved.p_logits, pair.u_p, dp, by, saved.scaling)
        dq = _scaling.push(saved.q_logits, pair.u_q, dq, by, saved.scaling)
        return rules.row_sums(axes, in_p * dp + in_q * dq)[0]

    return with_rules(save, pull, push)


def _sum_kl(axes: Axes, pair: _Pair) -> tuple[Array, Numbers]:
    (kl,) = rules.row_sums(axes, rules.divergence_terms(pair.p, pair.q, pair.d))
    return kl, (kl,)


def _kl_gradients(axes: Axes, pair: _Pair, divergences: Numbers) -> tuple[Array, Array]:
    (kl,) = divergences
    in_p = rules.kl_gradient_in_p(pair.p, pair.d, kl, axes)
    return in_p, rules.kl_gradient_in_q(pair.p, pair.q, pair.d)


kullback_leibler = _with_rules(_sum_kl, _kl_gradients)


def _sum_js(axes: Axes, pair: _Pair) -> tuple[Array, Numbers]:
    m, to_mean = (pair.p + pair.q) / 2, rules.log_to_mean(pair.d)
    terms = (rules.divergence_terms(p, m, d) for p, d in zip((pair.p, pair.q), to_mean, strict=True))
    kl_p, kl_q = rules.row_sums(axes, *terms)
    return jnp.minimum((kl_p + kl_q) / 2, math.log(2)), (kl_p, kl_q)


def _js_gradients(axes: Axes, pair: _Pair, divergences: Numbers) -> tuple[Array, Array]:
    of_each = zip((pair.p, pair.q), rules.log_to_mean(pair.d), divergences, strict=True)
    in_p, in_q = (rules.kl_gradient_in_p(p, d, kl, axes) / 2 for p, d, kl in of_each)
    return in_p, in_q


jensen_shannon = _with_rules(_sum_js, _js_gradients)
