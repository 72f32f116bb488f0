"""The Kullback-Leibler and the Jensen-Shannon divergence of two rows of logits, with derivative rules.

Both use d = log q − log p, computed as a difference of logits minus the logarithm of a ratio of sums, so that
no normalizer is rounded. The ratio is computed from the sum of the differences of the exponentials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import online, rules
from jsoftmax.backends._row_blocks import both_in_row_blocks
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _curvature, _leading, _reductions, _two_rows, _weights
from jsoftmax.rows._two_rows import Pair, Saved
from jsoftmax.transforms._autodiff import with_rules
from jsoftmax.transforms._platforms import recomputed

Axes = tuple[int | str, ...]
Numbers = tuple[Array, ...]


def _with_rules(
    compare: Callable[[Axes, Saved], tuple[Array, Numbers]],
    gradients: Callable[[Axes, Saved], tuple[Pair, Array, Array]],
    gradient_in_q: Callable[[Axes, Saved], tuple[Array, Array]] | None = None,
) -> Callable[..., Array]:
    """The divergence as a function of both logits and the scaling, with its rules.

    `compare` computes it from the saved states, and `gradients` its gradients in both shifted logits.
    `gradient_in_q`, unless it has sums over a row, computes u and the gradient of q alone.
    """

    def save(
        axes: Axes, p: Array, q: Array, scaling: Scaling, hidden: Array | None, beta: Array | None = None
    ) -> tuple[Array, Saved]:
        if hidden is not None and scaling.temperature is not None:
            scaling = _weights.with_bad_rows_masked(axes, hidden, scaling, p, q)
        reduce = partial(_reductions.reduce, scaling=scaling, axes=axes, result_used_for="nothing")
        p_state, q_state = reduce(p)[0], reduce(q)[0]
        gaps = _two_rows.compared(p, q, scaling, p_state, q_state)
        log_ratio = _two_rows.log_ratio(gaps, p_state.rest, q_state.rest, axes)
        saved = Saved(p, q, scaling, p_state, q_state, log_ratio, (), beta).behind_barrier()
        # Without this barrier, XLA on GPU fuses a caller's sum over rows with the sum over every row.
        out, divergences = recomputed(compare(axes, saved))
        saved = saved._replace(divergences=divergences)
        return (out, saved) if hidden is None else _with_hidden_masked(hidden, out, saved)

    def pull(axes: Axes, saved: Saved, g: Array) -> tuple[Any, ...]:
        pair, in_p, in_q = gradients(axes, saved.behind_barrier())
        dp, by_p = _scaling.pull_per_class(saved.p_logits, pair.u_p, g * in_p, saved.scaling)
        dq, by_q = _scaling.pull_per_class(saved.q_logits, pair.u_q, g * in_q, saved.scaling)
        of_scaling = jax.tree.map(jnp.add, by_p, by_q)
        if saved.scaling.temperature is not None:
            of_overflows = g * _of_overflows(pair) / saved.scaling.temperature
            of_scaling = of_scaling._replace(temperature=of_scaling.temperature + of_overflows)
        of_scaling = _scaling.summed(of_scaling, saved.scaling)
        if saved.beta is None:
            return dp, dq, of_scaling, None, None
        return dp, dq, of_scaling, None, _scaling.sum_to_shape(g * _in_beta(saved), saved.beta)

    save_rows, pull_rows = both_in_row_blocks(save, pull)

    def pull_asked(axes: Axes, asked: Any, saved: Saved, g: Array) -> tuple[Any, ...]:
        in_p, _, of_scaling, *_ = asked
        if gradient_in_q is None or in_p or any(jax.tree.leaves(of_scaling)):
            return pull_rows(axes, asked, saved, g)
        u_q, in_q = gradient_in_q(axes, saved.behind_barrier())
        dq, _ = _scaling.pull_per_class(saved.q_logits, u_q, g * in_q, saved.scaling)
        return None, dq, None, None, None

    def push(axes: Axes, saved: Saved, tangents: Any) -> Array:
        pair, in_p, in_q = gradients(axes, saved.behind_barrier())
        dp, dq, by, _, dbeta = tangents
        dp = _scaling.push(saved.p_logits, pair.u_p, dp, by, saved.scaling)
        dq = _scaling.push(saved.q_logits, pair.u_q, dq, by, saved.scaling)
        changes = in_p * dp + in_q * dq
        if saved.scaling.temperature is not None and by.temperature is not None:
            changes += _of_overflows(pair) / saved.scaling.temperature * by.temperature
        (out,) = rules.row_sums(axes, changes)
        return out if dbeta is None else out + dbeta * _in_beta(saved)

    return with_rules(save_rows, pull_asked, push, selective=True)


def _with_hidden_masked(hidden: Array, out: Array, saved: Saved) -> tuple[Array, Saved]:
    """The result with hidden rows fully masked if their divergence is NaN or infinite: all numbers are 0."""
    has_numbers = jnp.isfinite(out) | ~hidden
    numbers = out, saved.log_ratio, *saved.divergences
    scaling, (out, log_ratio, *divergences) = _scaling.mask_rows(saved.scaling, has_numbers, *numbers)
    p_state, q_state = (
        online.State(jnp.where(has_numbers, s.max, -jnp.inf), jnp.where(has_numbers, s.rest, -1))
        for s in (saved.p_state, saved.q_state)
    )
    saved = saved._replace(scaling=scaling, p_state=p_state, q_state=q_state, log_ratio=log_ratio)
    return out, saved._replace(divergences=tuple(divergences))


def _sum_kl(axes: Axes, saved: Saved) -> tuple[Array, Numbers]:
    pair = saved.pair()
    (kl,) = rules.row_sums(axes, rules.divergence_terms(pair.p, pair.q, pair.d, pair.products))
    return kl, (kl,)


def _kl_gradients(axes: Axes, saved: Saved) -> tuple[Pair, Array, Array]:
    pair, (kl,) = saved.pair(), saved.divergences
    sums = _lead_sums(axes, pair.u_p, pair.p, pair.d, pair.p_leads, pair.products)
    pair = saved.behind_barrier(sums).pair()
    others = _of_others(saved.p_state.rest, *sums)
    in_p = rules.kl_gradient_in_p(
        pair.p, pair.d, kl, leads=pair.p_leads, others=others, products=pair.products
    )
    residuals = in_p, rules.kl_gradient_in_q(pair.p, pair.q, pair.d)
    residuals = _curvature.of_kl_residuals(axes, residuals, _finite(saved, pair), saved.rows)
    return pair._replace(u_p=_curvature.dead_at_p_0(pair.u_p)), *residuals


def _kl_gradient_in_q(axes: Axes, saved: Saved) -> tuple[Array, Array]:
    pair = saved.pair()
    in_q = rules.kl_gradient_in_q(pair.p, pair.q, pair.d)
    _, in_q = _curvature.of_kl_residuals(axes, (None, in_q), _finite(saved, pair), saved.rows)
    return pair.u_q, in_q


def _finite(saved: Saved, pair: Pair) -> tuple[Array, Array]:
    """p and q, but 0 in a row without a finite divergence, whose gradient is constant."""
    (kl,) = saved.divergences
    nothing = (kl == jnp.inf) | saved.empty
    return jnp.where(nothing, 0, pair.p), jnp.where(nothing, 0, pair.q)


kullback_leibler = _with_rules(_sum_kl, _kl_gradients, _kl_gradient_in_q)


def _of_overflows(pair: Pair) -> Array:
    """The part of ``Σ −in_q·u_q`` that is lost if the temperature makes a u_q overflow; there d is u_q."""
    return jnp.where(pair.u_q == -jnp.inf, pair.products, 0)


def _lead_sums(
    axes: Axes, u: Array, p: Array, d: Array, leads: Array, products: Array | None = None
) -> Numbers:
    """The u of the leading class, which is 0 but has a derivative, and Σ p·d over the other classes."""
    return rules.row_sums(axes, jnp.where(leads, u, 0.0), rules.kl_terms_of_others(p, d, leads, products))


def _of_others(rest: Array, u_lead: Array, terms: Array) -> tuple[Array, Array]:
    """``Σ p`` and ``Σ p·d`` over all classes except the leading one."""
    return _leading.share_of_others(rest, u_lead), terms


def _in_beta(saved: Saved) -> Array:
    """The derivative of the divergence in β, ``KL(p‖m) − KL(q‖m)``: the terms in m cancel, as Σ m is 1."""
    return saved.divergences[0] - saved.divergences[1]


def _shares(beta: Array | None) -> tuple[Array | float, Array | float]:
    """The shares of p and of q in m."""
    return (0.5, 0.5) if beta is None else (beta, 1 - beta)


def _mixed(beta: Array | None, of_p: Array, of_q: Array) -> Array:
    """``β·of_p + (1 − β)·of_q``."""
    return (of_p + of_q) / 2 if beta is None else beta * of_p + (1 - beta) * of_q


def _to_mean(pair: Pair, beta: Array | None) -> tuple[tuple[Array, Array, Array, Array], ...]:
    """For each distribution: u, p, log(m/p) with the mixture m, and where p leads."""
    d_p, d_q = rules.log_to_mean(pair.d) if beta is None else rules.log_to_mixture(pair.d, beta)
    return (pair.u_p, pair.p, d_p, pair.p_leads), (pair.u_q, pair.q, d_q, pair.q_leads)


def _sum_js(axes: Axes, saved: Saved) -> tuple[Array, Numbers]:
    own, _ = rules.split_axes(axes)
    parts: Numbers = ()
    for i in range(2):
        pair = saved.pair()
        _, p, d, _ = _to_mean(pair, saved.beta)[i]
        parts += rules.row_sums(own, rules.divergence_terms(p, _mixed(saved.beta, pair.p, pair.q), d))
        saved = saved.behind_barrier(parts)
    divergences = rules.across(axes, *parts)
    mean = _mixed(saved.beta, *divergences)
    largest = math.log(2) if saved.beta is None else rules.binary_entropy(saved.beta)
    # A select instead of a minimum: on CPU, XLA's minimum may return the other number for a NaN.
    return jnp.where(mean > largest, largest, mean), divergences


def _js_gradients(axes: Axes, saved: Saved) -> tuple[Pair, Array, Array]:
    own, _ = rules.split_axes(axes)
    parts: Numbers = ()
    for i in range(2):
        parts += _lead_sums(own, *_to_mean(saved.pair(), saved.beta)[i])
        saved = saved.behind_barrier(parts)
    parts, pair = rules.across(axes, *parts), saved.pair()
    others = _of_others(saved.p_state.rest, *parts[:2]), _of_others(saved.q_state.rest, *parts[2:])
    shares = _shares(saved.beta)
    of_each = zip(shares, _to_mean(pair, saved.beta), saved.divergences, others, strict=True)
    in_p, in_q = (
        share * rules.kl_gradient_in_p(p, d, kl, leads=leads, others=of_others)
        for share, (_, p, d, leads), kl, of_others in of_each
    )
    u_p, u_q = _curvature.dead_at_p_0(pair.u_p), _curvature.dead_at_p_0(pair.u_q)
    return pair._replace(u_p=u_p, u_q=u_q, products=jnp.zeros_like(u_q)), in_p, in_q


jensen_shannon = _with_rules(_sum_js, _js_gradients)
