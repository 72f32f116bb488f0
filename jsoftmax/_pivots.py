"""Values without a derivative, on CPU: a row is read once, shifted by an entry, not by its maximum.

    log Σ exp(x) = x_k + log Σ exp(x − x_k)        −log p_k = log1p(Σ_others exp(x − x_k))

Any entry serves beside which the row neither overflows nor vanishes. For −log p the label's own is the best:
no 1 swamps the rest. A short row is summed in float64, and not shifted at all. Where a row wants its maximum,
all are computed by that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import _across, _cpu, _float64, _reading, _row_blocks, rules
from jsoftmax._branches import unless, with_more_rows
from jsoftmax._sharding import is_known, is_whole

Axes = tuple[int, ...]
ByMaximum = Callable[..., Array]  # of the axes and of the arrays

SHORTEST_ROW = _cpu.LONGEST_COLUMNS + 1


def log_sum_exp(x: Array, axes: Axes, by_maximum: ByMaximum) -> Array | None:
    """The log-sum-exp of every row, or else ``by_maximum(axes, x)``; None where that is better anyway."""

    def in_one_pass(axis: int, x: Array) -> tuple[Array, Array]:
        pivot = jnp.max(_reading.part(x, 0, sample, axis), axis, keepdims=True)
        pivot = pivot.astype(rules.computing_dtype(x.dtype))
        if size is None:
            terms = _cpu.exponentials(x, pivot)
        else:
            terms = _cpu.apart(_row_blocks.sums(_cpu.exponentials, size, x, pivot, axis))
        log_total = jnp.log(_cpu.apart(jnp.sum(terms, axis, keepdims=True)))
        out = pivot + log_total
        # Of 4 ulp, 2 half ones of `out` each, at least 3.5 are left to the logarithm, the shift and the sum;
        # more of what is rounded to 16 bits.
        ulps = max(1.0, float(jnp.finfo(x.dtype).eps) / float(jnp.finfo(out.dtype).eps) / 8)
        sure = jnp.isfinite(out) & (2 * log_total + 3 <= 3.5 * ulps * jnp.abs(out))
        return out.astype(x.dtype), sure

    def in_float64(axis: int, x: Array) -> tuple[Array, Array]:
        out = _float64.log_sum_exp(x, (axis,))
        return out.astype(x.dtype), _float64.is_right(out, classes)

    classes = _classes(x, axes)
    if classes and _float64.pays(x, axes[0]):
        return _values(in_float64, by_maximum, axes, x)
    sample = classes if classes <= 512 else min(classes // 32, 128)  # a part of a row is copied
    size = _row_blocks.size_for(classes) if classes > _cpu.LONGEST_WHOLE_ROW else None
    shortest = 2 if x.dtype.itemsize == 2 and axes == (x.ndim - 1,) else SHORTEST_ROW
    return _values(in_one_pass, by_maximum, axes, x) if _has_form(classes, size, shortest) else None


def nll(x: Array, ids: Array, axes: Axes, by_maximum: ByMaximum) -> Array | None:
    """``−log p`` of every row's class, or else ``by_maximum(axes, x, ids)``; None where that is better."""

    def in_one_pass(axis: int, x: Array, ids: Array) -> tuple[Array, Array]:
        dtype = rules.computing_dtype(x.dtype)
        pivot = _reading.picked(x, ids, axis).astype(dtype)
        if size is None:
            others = _cpu.sum_of_others(_cpu.exponentials(x, pivot), ids, axis)
        else:
            its_block, its_place = (f(ids, jnp.full_like(ids, size)) for f in (lax.div, lax.rem))
            block = _row_blocks.block(size, x, its_block, axis).astype(dtype)
            others = _of_others(_row_blocks.sums(_cpu.exponentials, size, x, pivot, axis), its_block, axis)
            others = others + _of_others(_cpu.exponentials(block, pivot), its_place, axis)
        return rules.log1p(others), (others > _cpu.LEAST_REST) & (others < jnp.inf)

    classes = _classes(x, axes)
    size = _cpu.size_of_blocks(classes)
    pays = _has_form(classes, size) and not _across.crosses(x, *axes)
    return _values(in_one_pass, by_maximum, axes, x, ids) if pays else None


def _classes(x: Array, axes: Axes) -> int:
    """How many, along one axis; 0 where there are several, or a length is a symbol."""
    return x.shape[axes[0]] if len(axes) == 1 and is_known(x) else 0


def _has_form(classes: int, block_size: int | None, shortest: int = SHORTEST_ROW) -> bool:
    return classes >= shortest and (block_size is not None or classes <= _cpu.LONGEST_WHOLE_ROW)


def _values(
    in_one_pass: Callable[..., tuple[Array, Array]],
    by_maximum: ByMaximum,
    axes: Axes,
    x: Array,
    *ids: Array,
) -> Array | None:
    if not is_whole(x, *range(x.ndim)) or x.size < _cpu.LEAST_SIZE:
        return None

    def of_axes(axes: Axes) -> Callable[..., Array]:
        def on_cpu(*arrays: Array) -> Array:
            # XLA takes longer over what has an axis of length 1.
            values, sure = (a.squeeze(axes) for a in in_one_pass(axes[0], *arrays))

            def known_otherwise(values: Array) -> Array:
                return by_maximum(axes, *arrays).squeeze(axes)

            return lax.expand_dims(unless(jnp.all(sure), values, known_otherwise), axes)

        def anywhere(*arrays: Array) -> Array:
            return lax.platform_dependent(*arrays, cpu=on_cpu, default=partial(by_maximum, axes))

        return anywhere

    # A row that many labels share has one maximum.
    return with_more_rows(of_axes, axes, shared=lambda axes: partial(by_maximum, axes))(x, *ids)


def _of_others(terms: Array, index: Array, axis: int) -> Array:
    """The sum of a row's terms but the one with this index."""
    its_own = lax.broadcasted_iota(index.dtype, terms.shape, axis) == index
    return jnp.sum(jnp.where(its_own, 0, terms), axis, keepdims=True)
