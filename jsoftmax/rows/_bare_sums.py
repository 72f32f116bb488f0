"""Sums over a row besides that of the exponentials, as bare sums on CPU, for logits that nothing scales.

XLA's library on CPU runs such a sum in one pass, but not several in one, and none with a comparison.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends._row_blocks import in_row_blocks
from jsoftmax.logits._moments import MOMENT_SCALE, Moment
from jsoftmax.logits._scaling import Scaling, is_dead, shift

Axes = tuple[int, ...]


def suffice(kinds: tuple[Moment, ...], factors: tuple[Any, ...]) -> bool:
    """Whether the moments are sums over the live classes without factors."""
    return not any(factors) and not any(kind.dead_counts for kind in kinds)


def further(kinds: tuple[Moment, ...], axes: Axes, x: Array, top: Array, *, entropy: bool) -> list[Array]:
    """``SCALE·Σ exp(u)·u`` if `entropy`, and the sums of such moments."""
    if not (kinds or entropy):
        return []
    wide = top.astype(rules.computing_dtype(x.dtype))
    center = jnp.where(jnp.isinf(wide), 0, wide)
    found = []
    if entropy:
        u = x.astype(wide.dtype) - center
        # With a maximum, 0·∞ is 0.
        u = jnp.maximum(u, jnp.finfo(u.dtype).min)
        found.append(jnp.sum(rules.scaled(jnp.exp(u * 0.5)) * u, axes, keepdims=True))
    if not kinds:
        return found
    of_u, count = _of_live(axes, x, top, center)
    return [*found, *(a for kind in kinds for a in ((count,) if kind.only_total else (of_u, count)))]


def _of_live(axes: Axes, x: Array, top: Array, center: Array) -> tuple[Array, Array]:
    """``MOMENT_SCALE·Σ u`` over the live classes, and their number.

    If the bare sum is −inf or NaN in any row, a class may be dead, and all rows are summed with comparisons.
    """
    scaled = x.astype(center.dtype) * MOMENT_SCALE - center * MOMENT_SCALE
    total = jnp.sum(scaled, axes, keepdims=True)

    def all_live(x: Array, top: Array, total: Array) -> tuple[Array, Array]:
        return total, jnp.full_like(total, x.size // total.size)

    def with_dead(x: Array, top: Array, total: Array) -> tuple[Array, Array]:
        of_u, count = _with_comparisons(axes, x, top)
        return of_u, count

    found: tuple[Array, Array] = lax.cond(jnp.all(jnp.isfinite(total)), all_live, with_dead, x, top, total)
    return found


@in_row_blocks
def _with_comparisons(axes: Axes, x: Array, top: Array) -> tuple[Array, ...]:
    dead, half_u = is_dead(x, Scaling(None)), shift(x, Scaling(None), top, 0.5)
    return rules.row_sums(axes, *Moment(()).terms(half_u * (2 * MOMENT_SCALE), dead))
