"""The maps of entmax: the height of a row, the probabilities, and their derivative rules.

The largest probability of a row is h^(1/β), β = α − 1, and h is the root of an increasing function. Newton's
method for ``h·S(h)^β = 1``, with ``S = Σ [1 + β·u/h]₊^(1/β)``, starts at the largest h, which is 1. For α ≤ 2
the function is convex: h only falls, and each step divides the product of function and slope by 4 or more, so
that log₂ V + log₂(1/ε)/2 steps always suffice (usually 3 to 7). For α > 2 it is not convex, and a step that
leaves the bracket of the root is replaced by one to its middle. Each step reads the logits once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends._row_blocks import both_in_row_blocks
from jsoftmax.logits import _rounding, _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows._peaks import peak
from jsoftmax.transforms._autodiff import with_rules, with_tangent
from jsoftmax.transforms._platforms import is_portable
from jsoftmax.transforms._sharding import shard_count, varying

Axes = tuple[int | str, ...]
# The class axes with the mesh axes of their shards; α, if it is 2 or 1.5, whose powers take no logarithm.
Static = tuple[Axes, float | None]
Given = tuple[Array, Scaling, Array | None]  # the logits, their scaling, and α, None if it is static

MOST_SLOPE = 2.0**60  # for α > 2, where slopes have no bound: beside a larger one, no other one counts


class Row(NamedTuple):
    """The numbers of a row: the maximum of x; h as the sum of two numbers; S, if α is an array."""

    top: Array
    height: Array
    low: Array  # below the last digit of `height`
    total: Array | None


class Classes(NamedTuple):
    """What a derivative computes again from the logits and the numbers of their row."""

    u: Array
    r: Array  # h + β·u, also where it is below 0
    p: Array
    slopes: Array  # p^(2 − α) on the support, 0 elsewhere
    log_p: Array  # 0 where p is 0


def solved(static: Static, x: Array, scaling: Scaling, alpha: Array | None) -> Row:
    """The numbers of every row."""
    axes, _ = static
    top = peak(x, scaling, axes)
    height, low = _height(static, (x, scaling, alpha), top)
    if alpha is None:
        return Row(top, height, low, None)
    (total,) = rules.row_sums(axes, jnp.exp(_log_terms(*_exact(x, scaling, top), height, alpha - 1)))
    return Row(top, height, low, total)


def classes(static: Static, row: Row, x: Array, scaling: Scaling, alpha: Array | None) -> Classes:
    """The numbers of every class; p is 0 in an empty row."""
    u, slip = _exact(x, scaling, row.top)
    beta = alpha_of(static, alpha) - 1
    r = (row.height + beta * u) + (row.low + beta * slip)
    if alpha is None or row.total is None:
        p, slopes = _powers(static, r)
        return Classes(u, r, p, slopes, jnp.log(jnp.where(p == 0, 1, p)))
    log_e = _log_terms(u, slip, row.height, beta)
    outside = log_e == -jnp.inf
    log_p = jnp.where(outside, 0, log_e) - jnp.log(jnp.where(row.total == 0, 1, row.total))
    log_p = jnp.where(outside, 0, log_p)
    p, slopes = (jnp.where(outside, 0, jnp.exp(a)) for a in (log_p, (1 - beta) * log_p))
    return Classes(u, r, p, jnp.where(slopes > MOST_SLOPE, MOST_SLOPE, slopes), log_p)


def alpha_of(static: Static, alpha: Array | None) -> Any:
    """α, as an array or as a float."""
    return static[1] if alpha is None else alpha


def _exact(x: Array, scaling: Scaling, top: Array) -> tuple[Array, Array]:
    """u, and what its rounding lost."""
    u = _scaling.shifted(x, scaling, top, at_top=True).u
    slip = _rounding.slip(u, *_scaling.ordered(x, scaling, top), scaling.temperature)
    return u, lax.stop_gradient(slip)


def _powers(static: Static, r: Array) -> tuple[Array, Array]:
    """p and its slopes from r, for a static α; NaN stays NaN."""
    base = jnp.where(r <= 0, 0, r)
    return (base, jnp.where(r > 0, 1, base)) if static[1] == 2 else (jnp.square(base), base)


def _log_terms(u: Array, slip: Array | float, height: Array, beta: Array) -> Array:
    """The logarithms of p, relative to that of a class with u = 0."""
    # A dead class is far outside of the support, but finite: else its derivative in the height is NaN.
    return rules.log_power(jnp.where(u == -jnp.inf, -1e30, u + slip) / height, beta)


class _Search(NamedTuple):
    height: Array
    low: Array
    high: Array
    goes_on: Array


def _value(static: Static, given: Given, top: Array) -> tuple[Array, Array]:
    """h, and a correction below its last digit."""
    (axes, _), (x, scaling, alpha) = static, given
    dtype = rules.computing_dtype(x.dtype)
    eps, beta = float(jnp.finfo(dtype).eps), alpha_of(static, alpha) - 1
    own, names = rules.split_axes(axes)
    sizes = [x.shape[axis] for axis in own]
    count = math.prod(sizes) * shard_count(names) if all(isinstance(n, int) for n in sizes) else 2**31

    def fall(h: Array) -> Array:
        """Newton's step, from h to h − fall; 0 in an empty row."""
        u = _scaling.shifted(x, scaling, top).u
        if alpha is None:
            p, slopes = _powers(static, h + beta * u)
            total, slope = rules.row_sums(axes, p, slopes)
            return (total - (1 if beta == 1 else jnp.sqrt(total))) / jnp.where(slope == 0, 1, slope)
        log_e = _log_terms(u, 0.0, h, beta)
        outside = log_e == -jnp.inf
        slopes = jnp.where(outside, 0, jnp.exp((1 - beta) * jnp.where(outside, 0, log_e)))
        total, slope = rules.row_sums(axes, jnp.exp(log_e), slopes)
        power = jnp.exp(-beta * jnp.log(jnp.where(total == 0, 1, total)))
        return total / jnp.where(slope == 0, 1, slope) * (h - power)

    def step(search: _Search) -> _Search:
        h, low, high, goes_on = search
        by = fall(h)
        at, change = h - by, by
        if alpha is not None:
            low, high = jnp.where(by < 0, h, low), jnp.where(by > 0, h, high)
            # For α > 2, Newton's steps may alternate between the ends; a short step has converged.
            is_long = jnp.abs(by) > 2 * eps * h
            at = jnp.where(is_long & ((at <= low) | (at >= high)), jnp.sqrt(low) * jnp.sqrt(high), at)
            change = jnp.minimum(jnp.abs(by), high - low)
        return _Search(jnp.where(goes_on, at, h), low, high, goes_on & (change > 2 * eps * h))

    one = varying(jnp.ones_like(top, dtype), top, *scaling[1:], alpha)
    least = 0.0 if alpha is None else jnp.exp(-beta * math.log(2 * count))
    search = _Search(one, jnp.maximum(one * least, jnp.finfo(dtype).tiny), one, one > 0)
    most = math.ceil(math.log2(count + 1)) + jnp.finfo(dtype).nmant // 2 + 1
    most = most if alpha is None else 2 * most
    if is_portable():
        for _ in range(most):
            search = step(search)
    elif names:  # All shards of a row must take part in the same sums, and those of other rows may differ.
        search = lax.fori_loop(0, most, lambda _, search: step(search), search)
    else:
        _, search = lax.while_loop(
            lambda state: (state[0] < most) & jnp.any(state[1].goes_on),
            lambda state: (state[0] + 1, step(state[1])),
            (0, search),
        )
    height = search.height
    return height, jnp.zeros_like(height) if alpha is not None else _correction(static, given, top, height)


def _correction(static: Static, given: Given, top: Array, height: Array) -> Array:
    """One more step for a static α. If one class leads, it sums the others, so that nothing cancels."""
    (axes, kind), (x, scaling, _) = static, given
    beta = alpha_of(static, None) - 1
    u, slip = _exact(x, scaling, top)
    p, slopes = _powers(static, (height + beta * u) + beta * slip)
    has_lead = height > 0.75
    others, slope = rules.row_sums(axes, jnp.where(has_lead & (u == 0), 0, p), slopes)
    gap = 1 - height if kind == 2 else (1 - height) * (1 + height)  # 1 − p of the leading class
    return -beta * (others - jnp.where(has_lead, gap, 1)) / jnp.where(slope == 0, 1, slope)


def _tangent(static: Static, arguments: tuple[Given, Array], tangents: Given) -> tuple[Array, Array]:
    """The tangent of h: ``−β·⟨s, du⟩/Σs``, and ``(Σ p·log p − Σ s·u)/Σs`` in α."""
    (x, scaling, alpha), _ = arguments
    dx, dscaling, dalpha = tangents
    of = classes(static, solved(static, x, scaling, alpha), x, scaling, alpha)
    du = _scaling.push(x, of.u, dx, dscaling, scaling)
    (total,) = rules.row_sums(static[0], of.slopes)
    total = jnp.where(total == 0, 1, total)
    (along,) = rules.row_sums(static[0], of.slopes * du)
    out = -(alpha_of(static, alpha) - 1) * along / total
    if alpha is not None and dalpha is not None:
        terms = of.p * of.log_p - of.slopes * jnp.where(of.p == 0, 0, of.u)
        out = out + rules.row_sums(static[0], terms)[0] / total * dalpha
    return out, jnp.zeros_like(out)


_height = with_tangent(_value, _tangent)


class _Saved(NamedTuple):
    x: Array
    scaling: Scaling
    alpha: Array | None
    row: Row


def _save(static: Static, x: Array, scaling: Scaling, alpha: Array | None) -> tuple[Array, _Saved]:
    row = solved(static, x, scaling, alpha)
    p = classes(static, row, x, scaling, alpha).p
    return p.astype(x.dtype), _Saved(x, scaling, alpha, row)


def _pull(static: Static, saved: _Saved, g: Array) -> tuple[Array, Scaling, Array | None]:
    x, scaling, alpha, row = saved
    of = classes(static, row, x, scaling, alpha)
    v = rules.entmax_centered(of.slopes, _scaling.masked(g, scaling.where).astype(of.p.dtype), static[0])
    dx, dscaling = _scaling.pull(x, of.u, of.slopes * v, scaling)
    if alpha is None:
        return dx, dscaling, None
    k = rules.entmax_alpha_terms(of.p, of.log_p, of.slopes, alpha)
    return dx, dscaling, _scaling.sum_to_shape(-k * v, alpha)


def _push(static: Static, saved: _Saved, tangents: tuple[Array | None, Scaling, Array | None]) -> Array:
    x, scaling, alpha, row = saved
    dx, dscaling, dalpha = tangents
    of = classes(static, row, x, scaling, alpha)
    out = rules.entmax_product(of.slopes, _scaling.push(x, of.u, dx, dscaling, scaling), static[0])
    if dalpha is not None and alpha is not None:
        k = rules.entmax_alpha_terms(of.p, of.log_p, of.slopes, alpha)
        total, of_slopes = rules.row_sums(static[0], k, of.slopes)
        out = out - dalpha * (k - of.slopes * total / jnp.where(of_slopes == 0, 1, of_slopes))
    return out.astype(x.dtype)


entmax = with_rules(
    *both_in_row_blocks(_save, _pull, axes_of=lambda static: static[0]), _push, selective=True
)
