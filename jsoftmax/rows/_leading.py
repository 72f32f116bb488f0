"""Sums over a row with its leading class apart, whose p is above 1/2; and the gradient with targets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from jsoftmax import online, rules
from jsoftmax.backends._beside_label import LEAST_SUM
from jsoftmax.backends._choice import choose
from jsoftmax.backends._cpu_loops import sums
from jsoftmax.backends._request import Request
from jsoftmax.logits._scaling import Scaling, exponentials, is_peak, shifted, with_slip
from jsoftmax.rows._probabilities import Axes, Forms, Row
from jsoftmax.transforms._platforms import by_platform


def lead_sums(
    x: Array,
    scaling: Scaling,
    state: online.State,
    g: Array,
    axes: Axes,
    *,
    weighted: bool = False,
    summed: Callable[..., tuple[Array, ...]] | None = None,
) -> rules.RowSums:
    """The `rules.RowSums` of p and g; if `weighted`, of p and p·g.

    At most one sum uses exponentials: XLA on GPU would store exponentials that several sums use, in float32
    and in the shape of the logits. ``summed(terms, row)``, if given, returns the sums of ``terms(row)``.
    """
    rest = jnp.where(state.rest < 0, 0, state.rest)

    def terms(row: tuple[Array, Array | None, Array]) -> tuple[Array, ...]:
        x, where, g = row
        here = scaling._replace(where=where)
        z, leads = shifted(x, here, state.max), leading(x, here, state)
        others = g * exponentials(z) / (1 + rest) if weighted else g
        return jnp.where(leads, z.u, 0.0), jnp.where(leads, g, 0.0), jnp.where(leads, 0, others)

    row = x, scaling.where, g
    u_lead, g_lead, g_others = rules.row_sums(axes, *terms(row)) if summed is None else summed(terms, row)
    if weighted:
        g_lead = g_lead * jnp.exp(u_lead) / (1 + rest)
    return rules.RowSums(share_of_others(rest, u_lead), g_lead + g_others, g_others)


def leading(x: Array, scaling: Scaling, state: online.State) -> Array:
    """Where a class has p > 1/2, by a comparison of logits: with one of p, XLA on GPU splits its kernels."""
    return is_peak(x, scaling, state.max) & (state.rest >= 0) & (state.rest < 1)


def share_of_others(rest: Array, u_lead: Array) -> Array:
    """The sum of p over all classes except the leading one, whose u is 0 but has a derivative."""
    rest = jnp.where(rest < 0, 0, rest)
    return (rest + (1 - jnp.exp(u_lead))) / (1 + rest)


def target_residual(axes: Axes, p: Array, t: Array, row: Row) -> Array:
    """The gradient of −Σ t·log p in z; `row` is (logits, scaling, state)."""

    def after_two_sums(p: Array, t: Array, row: Row) -> Array:
        x, scaling, state = row
        # XLA on CPU flushes subnormal numbers to 0. If the sum of all classes but the leading one is almost
        # that small, some of their p are subnormal, and the terms are computed as exp(u/2)²·scale. Factors
        # of 0 and 1 replace a select, which XLA does not fuse with sums.
        is_small = ((state.rest >= 0) & (state.rest < LEAST_SUM)).astype(p.dtype)
        root = 1 + is_small * (2.0**12 - 1)
        z = shifted(x, scaling, state.max)
        e = jnp.exp(z.u * (1 - is_small / 2)) * root
        terms, scale = with_slip(e * (e * is_small + (1 - is_small)), z), jnp.square(root)
        p = terms / (1 + jnp.where(state.rest < 0, 0, state.rest))
        return rules.cross_entropy_residual(p, t * scale, axes, scale=scale) / scale

    def after_one_pass(p: Array, t: Array, row: Row, summed: Any = None) -> Array:
        sums = lead_sums(*row, t, axes, summed=summed)
        return rules.cross_entropy_residual(p, t, axes, sums=sums)

    own, names = rules.split_axes(axes)
    if names:
        return after_one_pass(p, t, row)
    class_by_class = partial(after_one_pass, summed=partial(sums, axes=own, used_again=True))
    forms: Forms = {"sums in one pass": after_one_pass, "unrolled": class_by_class}
    own_forms = choose(Request("gradient with targets", row[0], own)).functions(forms)
    return by_platform("the gradient with targets", p, t, row, plain=after_two_sums, **own_forms)
