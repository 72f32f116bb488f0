"""Sums on CPU over short rows, or rows whose classes lie far apart: class by class, for all rows at once.

XLA would sum one row after the other, which takes ten times as long if the classes lie far apart in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _reading
from jsoftmax.backends._choice import MOST_UNROLLED
from jsoftmax.transforms._sharding import on_one_device, zeros


class Label(NamedTuple):
    """The class id of the label of every row, and its logit, with length 1 on the class axis."""

    id: Array
    logit: Array


def rest(x: Array, top: Array, axis: int, terms_used_again: bool) -> Array:
    """``Σ exp(x − top) − 1`` over a row, without the term of the first of its largest classes."""
    top, finite_top = wide_and_finite_maximum(x, top)

    def of_class(
        column: Array, i: Array | int, led: Array, top: Array, finite_top: Array
    ) -> tuple[Array, Array]:
        leads = (column == top) & (top < jnp.inf) & ~led
        return jnp.where(leads, 0, rules.scaled(half(column, finite_top))), led | leads

    led = zeros(top.shape, top).astype(bool)
    others = _summed(of_class, x, led, (top, finite_top), axis, terms_used_again) / rules.SCALE
    # XLA's library returns −inf as the maximum of a row of NaNs; only in an empty row is the sum 0 as well.
    return jnp.where((top == -jnp.inf) & (others == 0), -1, others)


def sum_of_others(x: Array, top: Array, label: Label, axis: int, terms_used_again: bool) -> Array:
    """``Σ exp(x − top)`` over the classes other than the label; `top` is finite."""

    def of_class(column: Array, i: Any, _: None, top: Array, ids: Array) -> tuple[Array, None]:
        return jnp.exp(jnp.where(ids == i, -jnp.inf, column - top)), None

    return _summed(of_class, x, None, (top, label.id), axis, terms_used_again)


# of_class(column, index of the class, carry, *row) -> (terms, carry)
OfClass = Callable[..., tuple[Array, Any]]


def _summed(
    of_class: OfClass, x: Array, carry: Any, row: tuple[Array, ...], axis: int, terms_used_again: bool
) -> Array:
    """The sum of the terms of all classes.

    XLA vectorizes over rows only if their number is even, so the last rows are computed separately. Where
    several results use it (`terms_used_again`), the concatenation keeps XLA from storing the exponentials.
    """
    rows = next((i for i, n in enumerate(x.shape) if i != axis and n > 2 and on_one_device(x, i)), axis)
    count = x.shape[rows]
    if rows == axis or not (terms_used_again or count % 2) or x.shape[axis] > MOST_UNROLLED:
        return _of_rows(of_class, x, carry, row, axis)
    cut = (count - 1) // 2 * 2

    def part(start: int, end: int) -> Array:
        x_, carry_, row_ = jax.tree.map(lambda a: lax.slice_in_dim(a, start, end, axis=rows), (x, carry, row))
        return _of_rows(of_class, x_, carry_, row_, axis)

    return jnp.concatenate([part(0, cut), part(cut, count)], rows)


def _of_rows(of_class: OfClass, x: Array, carry: Any, row: tuple[Array, ...], axis: int) -> Array:
    classes, dtype = x.shape[axis], row[0].dtype

    def add(i: Array, state: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
        total, lost, carry = state
        terms, carry = of_class(lax.dynamic_index_in_dim(x, i, axis).astype(dtype), i, carry, *row)
        return *rules.compensated(total, lost, terms), carry

    if classes > MOST_UNROLLED:
        none = zeros(row[0].shape, row[0])
        return lax.fori_loop(0, classes, add, (none, none, carry))[0]
    terms = []
    for i in range(classes):
        of_this, carry = of_class(_reading.part(x, i, i + 1, axis).astype(dtype), i, carry, *row)
        terms.append(of_this)
    return in_pairs(terms)


def sum_of_classes(terms: Array, axis: int) -> Array:
    """The sum of terms over a few classes, in the order of `sum_of_others`."""
    return in_pairs([lax.slice_in_dim(terms, i, i + 1, axis=axis) for i in range(terms.shape[axis])])


def in_pairs(terms: Sequence[Array]) -> Array:
    """The sum of arrays, of pairs first."""
    while len(terms) > 1:
        terms = [sum(terms[i + 1 : i + 2], terms[i]) for i in range(0, len(terms), 2)]
    return terms[0]


def wide_and_finite_maximum(x: Array, top: Array) -> tuple[Array, Array]:
    """The maximum in the dtype of the computation, and the same with −inf (an empty row) made finite."""
    top = top.astype(rules.computing_dtype(x.dtype))
    return top, jnp.maximum(top, jnp.finfo(top.dtype).min)


def exponentials(x: Array, center: Array) -> Array:
    return jnp.exp(x.astype(center.dtype) - center)


def half(x: Array, top: Array) -> Array:
    return jnp.exp((x.astype(top.dtype) - top) * 0.5)
