"""The state of a row where reading the logits costs most: on a GPU or a TPU, from one pass over them.

The pass is a reduction whose elements are parts of a row: of the parts `high` and `low`, by their maxima, and
with δ = z_low − z_high ≤ 0,

    rest = rest_high + exp(δ)·(1 + rest_low)
    Σ q·u = (Σ q·u)_high + (Σ q·u)_low + δ·(Σ q)_low
    Σ exp(u)·u = (Σ exp(u)·u)_high + exp(δ)·((Σ exp(u)·u)_low + δ·(1 + rest_low))

All terms of a sum have one sign, so nothing cancels. A device reduces in a tree, where a term meets few
roundings.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.logits import _moments, _scaling
from jsoftmax.logits._moments import Moment
from jsoftmax.logits._scaling import Scaling


class FusedRow(NamedTuple):
    """Probabilities that are good for 16 bits, and what a backward in the same kernel asks of them.

    The leading class is seen by its u: seen by p, the kernel falls apart.
    """

    p: Array
    u: Array
    leads: Array
    empty: Array


def fused_row(x: Array, scaling: Scaling, axes: tuple[int, ...]) -> FusedRow:
    """A row's probabilities, from the logits alone."""
    u = _fused_shift(x, scaling, axes)
    terms = jnp.exp(u)
    total = jnp.sum(terms, axes, keepdims=True)
    # The total is 0 or at least 1. Of a selection, with a mask and a temperature, XLA makes no one kernel.
    return FusedRow(terms / jnp.maximum(total, 0.5), u, (u == 0) & (total < 2), total == 0)


def fused_softmax(x: Array, scaling: Scaling, axes: tuple[int, ...]) -> Array:
    """Probabilities that are good for 16 bits."""
    return fused_row(x, scaling, axes).p


def fused_log_softmax(x: Array, scaling: Scaling, axes: tuple[int, ...]) -> Array:
    """Their logarithms, of a leading class too."""
    u = _fused_shift(x, scaling, axes)
    terms = jnp.exp(u)
    total, rest = (jnp.sum(t, axes, keepdims=True) for t in (terms, terms - jnp.floor(terms)))
    rest = online.from_sums(total, total, rest, scale=1).rest
    return u - online.log_total(rest)


def _fused_shift(x: Array, scaling: Scaling, axes: tuple[int, ...]) -> Array:
    """``z − max z``, all of it made of one array: no kernel takes a mask twice, or x in two dtypes."""
    where, temperature, _ = scaling
    z = x.astype(rules.computing_dtype(x.dtype))
    z = z if temperature is None else _scaling.turned(z, temperature)
    z = z if where is None else jnp.where(where, z, -jnp.inf)
    top = lax.stop_gradient(jnp.max(z, axes, keepdims=True))
    u = z - jnp.maximum(top, jnp.finfo(z.dtype).min)
    return u if temperature is None else _scaling.divided(u, temperature)


class Part(NamedTuple):
    """Some of the classes of every row; at first, one."""

    top: Array  # the largest logit, in the order of z; −inf with no live class
    z: Array | None  # its z before the division by T, where a soft cap makes that another number
    temperature: Array | None  # |T|
    rest: Array
    entropy: Array | None  # Σ exp(u)·u
    moments: tuple[tuple[Array, ...], ...]  # Σ q·u and Σ q, or Σ q alone
    label_logit: Array | None


def classes(
    x: Array,
    scaling: Scaling,
    moments: tuple[Moment, ...],
    entropy: bool,
    of_label: Array | None,
    bounded: bool = False,
) -> Part:
    """Every class as a part of its row; `of_label` holds the label's logit, and 0 for the others.

    If `bounded`, +inf counts as the largest finite number.
    """
    z, _ = _scaling.ordered(x, scaling, jnp.zeros((), x.dtype))
    logit = _scaling.ordered_live(x, scaling)
    top, logit = (rules.below_infinity(logit) if bounded else logit).astype(z.dtype), logit.astype(z.dtype)
    dead = top == -jnp.inf
    temperature = None if scaling.temperature is None else jnp.abs(scaling.temperature)
    # 0, or NaN where z is NaN or, unless bounded, +inf; not made of z, which XLA on GPU would then store. The
    # rest of a dead class is not used.
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
        None if of_label is None else of_label.astype(top.dtype),
    )
    return jax.tree.map(lambda a: jnp.broadcast_to(a, x.shape), part)


def merged(a: Part, b: Part) -> Part:
    """Two parts of a row, as one."""
    first = a.top >= b.top
    high = jax.tree.map(lambda a, b: jnp.where(first, a, b), a, b)
    low = jax.tree.map(lambda a, b: jnp.where(first, b, a), a, b)
    z_low, z_high = (part.top if part.z is None else part.z for part in (low, high))
    alive = low.top != -jnp.inf

    def apart(fraction: float) -> Array:
        """A fraction of δ."""
        if high.temperature is not None:
            fraction = fraction / 2  # the difference of two logits may overflow, where its quotient does not
        delta = z_low * fraction - z_high * fraction
        if high.temperature is not None:
            delta = 2 * (delta / high.temperature)
        return jnp.where(alive, delta, 0)

    delta = apart(1)
    ratio, total = jnp.exp(delta), jnp.where(alive, 1 + low.rest, 0)
    return high._replace(
        rest=high.rest + ratio * total,
        entropy=None
        if high.entropy is None
        else high.entropy + jnp.where(ratio == 0, 0, ratio * (low.entropy + delta * total)),
        moments=tuple(map(partial(_joined, apart(_moments.DOWN)), high.moments, low.moments)),
        label_logit=None if high.label_logit is None else high.label_logit + low.label_logit,
    )


def _joined(delta: Array, high: tuple[Array, ...], low: tuple[Array, ...]) -> tuple[Array, ...]:
    """The sums of one moment."""
    (*of_high, q_high), (*of_low, q_low) = high, low
    moved = jnp.where(q_low == 0, 0, delta * q_low)
    return *(a + (b + moved) for a, b in zip(of_high, of_low, strict=True)), q_high + q_low


def one_pass(parts: Part, axes: tuple[int, ...], pieces: int = 1) -> Part:
    """All parts of every row as one, with length 1 along it."""
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
