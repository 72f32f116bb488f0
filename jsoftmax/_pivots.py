"""Values without a derivative, on CPU: a long row is read once, shifted by an entry, not by its maximum.

    log Σ exp(x) = x_k + log Σ exp(x − x_k)        −log p_k = log1p(Σ_others exp(x − x_k))

Any entry serves beside which the row neither overflows nor vanishes. For −log p the label's own is the best:
no 1 swamps the rest. Where a row wants its maximum, all are computed by that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import _cpu, rules
from jsoftmax._mapping import with_more_rows
from jsoftmax._sharding import is_whole

Axes = tuple[int, ...]
ByMaximum = Callable[..., Array]  # of the axes and of the arrays

SAMPLE = 128  # classes, of which the largest is the entry for a log-sum-exp
SHORTEST_ROW = 4096  # of those with a label
LEAST_REST = 2.0**-80  # what its terms lose below the normal numbers is less than an ulp of it


def log_sum_exp(x: Array, axes: Axes, by_maximum: ByMaximum) -> Array | None:
    """The log-sum-exp of every row, or else ``by_maximum(axes, x)``; None where that is better anyway."""

    def in_one_pass(axis: int, size: int, x: Array) -> tuple[Array, Array]:
        pivot = jnp.max(lax.slice_in_dim(x, 0, SAMPLE, axis=axis), axis, keepdims=True)
        pivot = pivot.astype(rules.computing_dtype(x.dtype))
        sums = _cpu.block_sums(_cpu.exponentials, size, x, pivot, axis)
        # But for the selection, XLA would make one sum of the two, over rows that are too long for it.
        sums = jnp.where(sums < jnp.inf, sums, jnp.inf)
        log_total = jnp.log(jnp.sum(sums, axis, keepdims=True))
        out = pivot + log_total
        # Of 4 ulp, 2 half ones of `out` each, at least 3.5 are left to the logarithm, the shift and the sum.
        sure = jnp.isfinite(out) & (2 * log_total + 3 <= 3.5 * jnp.abs(out))
        return out.astype(x.dtype), sure

    return _values(in_one_pass, by_maximum, axes, x, shortest=_cpu.LONGEST_WHOLE_ROW + 1, near=1024)


def nll(x: Array, ids: Array, axes: Axes, by_maximum: ByMaximum) -> Array | None:
    """``−log p`` of every row's class, or else ``by_maximum(axes, x, ids)``; None where that is better."""

    def in_one_pass(axis: int, size: int, x: Array, ids: Array) -> tuple[Array, Array]:
        dtype = rules.computing_dtype(x.dtype)
        pivot = jnp.take_along_axis(x, ids, axis, mode="clip").astype(dtype)
        its_block, its_place = (f(ids, jnp.full_like(ids, size)) for f in (lax.div, lax.rem))
        block = _cpu.block(size, x, its_block, axis).astype(dtype)
        others = _of_others(_cpu.block_sums(_cpu.exponentials, size, x, pivot, axis), its_block, axis)
        others = others + _of_others(_cpu.exponentials(block, pivot), its_place, axis)
        return jnp.log1p(others), (others > LEAST_REST) & (others < jnp.inf)

    # Of short blocks, as one of every row is read again.
    return _values(in_one_pass, by_maximum, axes, x, ids, shortest=SHORTEST_ROW, near=256)


def _values(
    in_one_pass: Callable[..., tuple[Array, Array]],
    by_maximum: ByMaximum,
    axes: Axes,
    x: Array,
    *ids: Array,
    shortest: int,
    near: int,
) -> Array | None:
    if len(axes) != 1 or x.shape[axes[0]] < shortest or not x.size or not is_whole(x, *range(x.ndim)):
        return None
    size = _cpu.block_size(x.shape[axes[0]], near)
    if size is None:
        return None

    def of_axes(axes: Axes) -> Callable[..., Array]:
        def known(values: Array, *arrays: Array) -> Array:
            return values

        def not_all_known(values: Array, *arrays: Array) -> Array:
            return by_maximum(axes, *arrays)

        def on_cpu(*arrays: Array) -> Array:
            values, sure = in_one_pass(axes[0], size, *arrays)
            return lax.cond(jnp.all(sure), known, not_all_known, values, *arrays)

        def anywhere(*arrays: Array) -> Array:
            return lax.platform_dependent(*arrays, cpu=on_cpu, default=partial(by_maximum, axes))

        return anywhere

    # A row that many labels share has one maximum.
    return with_more_rows(of_axes, axes, shared=partial(partial, by_maximum))(x, *ids)


def _of_others(terms: Array, index: Array, axis: int) -> Array:
    """The sum of a row's terms but the one with this index."""
    its_own = lax.broadcasted_iota(index.dtype, terms.shape, axis) == index
    return jnp.sum(jnp.where(its_own, 0, terms), axis, keepdims=True)
