"""The sum of ``u = z − max z`` over the live classes of a row, and their number, as bare sums on CPU."""

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


def moments(kinds: tuple[Moment, ...], axes: Axes, x: Array, top: Array) -> list[Array]:
    """The sums of such moments, for logits that nothing scales.

    XLA's library sums ``x − max x`` in one pass. If that is −inf or NaN in any row, a class may be dead, and
    all rows are summed again with comparisons.
    """
    if not kinds:
        return []
    wide = top.astype(rules.computing_dtype(x.dtype))
    center = jnp.where(jnp.isinf(wide), 0, wide) * MOMENT_SCALE
    total = jnp.sum(x.astype(wide.dtype) * MOMENT_SCALE - center, axes, keepdims=True)

    def all_live(x: Array, top: Array, total: Array) -> tuple[Array, Array]:
        return total, jnp.full_like(total, x.size // total.size)

    def with_dead(x: Array, top: Array, total: Array) -> tuple[Array, Array]:
        of_u, count = _compared(axes, x, top)
        return of_u, count

    of_u, count = lax.cond(jnp.all(jnp.isfinite(total)), all_live, with_dead, x, top, total)
    return [a for kind in kinds for a in ((count,) if kind.only_total else (of_u, count))]


def _with_comparisons(axes: Axes, x: Array, top: Array) -> tuple[Array, ...]:
    dead, half_u = is_dead(x, Scaling(None)), shift(x, Scaling(None), top, 0.5)
    terms = half_u * (2 * MOMENT_SCALE), jnp.ones_like(half_u)
    return rules.row_sums(axes, *(jnp.where(dead, 0, a) for a in terms))


_compared = in_row_blocks(_with_comparisons)
