"""The state of a row on a GPU or a TPU, where reading the logits costs most: from one pass over them.

The pass is a reduction. Its element, a `Part`, holds the sums over some classes of a row; at first one class.
To merge two parts, call the one with the larger maximum `high`, the other `low`. With δ = z_low − z_high ≤ 0,

    rest = rest_high + exp(δ)·(1 + rest_low)
    Σ q·u = (Σ q·u)_high + (Σ q·u)_low + δ·(Σ q)_low
    Σ exp(u)·u = (Σ exp(u)·u)_high + exp(δ)·((Σ exp(u)·u)_low + δ·(1 + rest_low))

All terms of a sum have the same sign, so nothing cancels. A device reduces in a tree, so each term takes part
in few roundings.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends import _sinks
from jsoftmax.logits import _moments, _scaling
from jsoftmax.logits._moments import Moment
from jsoftmax.logits._scaling import Scaling


class FusedRow(NamedTuple):
    """Probabilities with the accuracy of 16 bits, and what a backward pass in the same kernel needs.

    `leads` marks the leading class by a comparison of u. With a comparison of p, XLA splits the kernel.
    """

    p: Array
    u: Array
    leads: Array
    empty: Array
    p_sink: Array | None = None


def fused_row(x: Array, scaling: Scaling, axes: tuple[int, ...]) -> FusedRow:
    """The probabilities of every row, from the logits only."""
    u, u_sink = _fused_shift(x, scaling, axes)
    terms = jnp.exp(u)
    total = jnp.sum(terms, axes, keepdims=True)
    of_sink = None if u_sink is None else jnp.exp(u_sink)
    total = total if of_sink is None else total + of_sink
    # The total is 0 or at least 1. With a select here, XLA does not fuse a masked softmax with temperature.
    divisor = jnp.maximum(total, 0.5)
    p_sink = None if of_sink is None else of_sink / divisor
    return FusedRow(terms / divisor, u, (u == 0) & (total < 2), total == 0, p_sink)


def fused_log_softmax(x: Array, scaling: Scaling, axes: tuple[int, ...]) -> Array:
    """Log-probabilities with the accuracy of 16 bits, also for a leading class."""
    u, u_sink = _fused_shift(x, scaling, axes)
    terms = jnp.exp(u)
    total, rest = (jnp.sum(t, axes, keepdims=True) for t in (terms, terms - jnp.floor(terms)))
    if u_sink is not None:
        of_sink = jnp.exp(u_sink)
        total, rest = total + of_sink, rest + (of_sink - jnp.floor(of_sink))
    rest = online.from_sums(total, total, rest, scale=1).rest
    return u - online.log_total(rest)


def _fused_shift(x: Array, scaling: Scaling, axes: tuple[int, ...]) -> tuple[Array, Array | None]:
    """``z − max z``, and that of a sink.

    From one array: XLA makes several kernels if a mask is read twice or x in two dtypes.
    """
    where, temperature, _, sink = scaling
    z = x.astype(rules.computing_dtype(x.dtype))
    z = z if temperature is None else _scaling.times_sign(z, temperature)
    z = z if where is None else jnp.where(where, z, -jnp.inf)
    top = _sinks.peak(lax.stop_gradient(jnp.max(z, axes, keepdims=True)), scaling)
    u = z - jnp.maximum(top, jnp.finfo(z.dtype).min)
    u = u if temperature is None else rules.divided(u, temperature)
    return u, None if sink is None else _sinks.u(scaling, top)


class Part(NamedTuple):
    """The sums over some classes of every row; at first over one class."""

    top: Array  # the largest logit, in the order of z; −inf with no live class
    z: Array | None  # z of that logit before the division by T; None without a soft cap, where z = top
    temperature: Array | None  # |T|
    rest: Array
    entropy: Array | None  # Σ exp(u)·u
    moments: tuple[tuple[Array, ...], ...]  # Σ q·u and Σ q, or only Σ q
    label_logit: Array | None


def classes(
    x: Array,
    scaling: Scaling,
    moments: tuple[Moment, ...],
    entropy: bool,
    logit_of_label: Array | None,
    bounded: bool = False,
) -> Part:
    """Every class as a `Part` of its row; `logit_of_label` is 0 at the classes other than the label.

    If `bounded`, +inf counts as the largest finite number.
    """
    z, _ = _scaling.ordered(x, scaling, jnp.zeros((), x.dtype))
    logit = _scaling.ordered_live(x, scaling)
    top, logit = (rules.below_infinity(logit) if bounded else logit).astype(z.dtype), logit.astype(z.dtype)
    dead = top == -jnp.inf
    temperature = None if scaling.temperature is None else jnp.abs(scaling.temperature)
    # 0, or NaN where z is NaN, or +inf and not bounded. It is not computed from z, because XLA on GPU would
    # then store z. The rest of a dead class is not used.
    rest = logit - top
    for option, of_zero in ((scaling.soft_cap, jnp.multiply), (temperature, jnp.divide)):
        rest = rest if option is None else of_zero(rest, option)
    u = jnp.where(dead, -jnp.inf, 0).astype(z.dtype)

    def first(moment: Moment) -> tuple[Array, ...]:
        *of_u, q = moment.terms(u, dead)
        return *(of_u if moment.dead_counts else map(jnp.zeros_like, of_u)), q

    part = Part(
        top,
        None if scaling.soft_cap is None else z,
        temperature,
        rest,
        jnp.zeros_like(rest) if entropy else None,
        tuple(map(first, moments)),
        None if logit_of_label is None else logit_of_label.astype(top.dtype),
    )
    return jax.tree.map(lambda a: jnp.broadcast_to(a, x.shape), part)


def merged(a: Part, b: Part) -> Part:
    """Two parts of a row merged into one."""
    a_is_high = a.top >= b.top
    high = jax.tree.map(lambda a, b: jnp.where(a_is_high, a, b), a, b)
    low = jax.tree.map(lambda a, b: jnp.where(a_is_high, b, a), a, b)
    z_low, z_high = (part.top if part.z is None else part.z for part in (low, high))
    alive = low.top != -jnp.inf

    def delta_times(fraction: float) -> Array:
        """``fraction·δ``."""
        if high.temperature is not None:
            fraction = fraction / 2  # the difference of two logits may overflow, but its quotient does not
        delta = z_low * fraction - z_high * fraction
        if high.temperature is not None:
            delta = 2 * (delta / high.temperature)
        return jnp.where(alive, delta, 0)

    delta = delta_times(1)
    ratio, total = jnp.exp(delta), jnp.where(alive, 1 + low.rest, 0)
    return high._replace(
        rest=high.rest + ratio * total,
        entropy=None
        if high.entropy is None
        else high.entropy + jnp.where(ratio == 0, 0, ratio * (low.entropy + delta * total)),
        moments=tuple(map(partial(_joined, delta_times(_moments.MOMENT_SCALE)), high.moments, low.moments)),
        label_logit=None if high.label_logit is None else high.label_logit + low.label_logit,
    )


def _joined(delta: Array, high: tuple[Array, ...], low: tuple[Array, ...]) -> tuple[Array, ...]:
    """The sums of one moment, merged."""
    (*of_high, q_high), (*of_low, q_low) = high, low
    moved = jnp.where(q_low == 0, 0, delta * q_low)
    return *(a + (b + moved) for a, b in zip(of_high, of_low, strict=True)), q_high + q_low


def one_pass(parts: Part, axes: tuple[int, ...], pieces: int = 1) -> Part:
    """All parts of every row merged into one, with length 1 on the class axes.

    A row is first reduced in `pieces` pieces, if more than 1.
    """
    neutral = jax.tree.map(lambda a: np.zeros((), a.dtype), parts)
    neutral = neutral._replace(top=neutral.top - np.inf, rest=neutral.rest - 1)
    if neutral.temperature is not None:
        neutral = neutral._replace(temperature=neutral.temperature + 1)
    if pieces > 1:
        (axis,) = axes
        split = jax.tree.map(lambda a: a.reshape(*a.shape[:axis], pieces, -1, *a.shape[axis + 1 :]), parts)
        parts = lax.reduce(split, neutral, merged, (axis + 1,))
    whole = lax.reduce(parts, neutral, merged, axes)
    whole = whole._replace(rest=jnp.where(whole.top == -jnp.inf, -1, whole.rest))
    return jax.tree.map(lambda a: jnp.expand_dims(a, axes), whole)
