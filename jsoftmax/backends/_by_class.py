"""Sums on CPU over short rows, or rows whose classes lie far apart: class by class, for all rows at once.

XLA would sum one row after the other, which takes ten times as long if the classes lie far apart in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _reading
from jsoftmax.backends._choice import MOST_UNROLLED
from jsoftmax.transforms._sharding import on_one_device


class Label(NamedTuple):
    """The class id of the label of every row, and its logit, with length 1 on the class axis."""

    id: Array
    logit: Array


def rest(x: Array, top: Array, label: Label | None, axis: int, terms_used_again: bool) -> Array:
    """``Σ exp(x − top) − 1`` over a row, class by class, without the term of one class.

    That class is the label, if given, else the first of the largest classes.

    XLA vectorizes over rows only if their number is even, so the last rows are computed separately. Where
    several results use it (`terms_used_again`), the concatenation keeps XLA from storing the exponentials.
    """
    rows = next((i for i, n in enumerate(x.shape) if i != axis and n > 2 and on_one_device(x, i)), axis)
    count = x.shape[rows]
    if rows == axis or not (terms_used_again or count % 2) or x.shape[axis] > MOST_UNROLLED:
        return _of_classes(x, top, label, axis=axis)
    cut = (count - 1) // 2 * 2

    def part(start: int, end: int) -> Array:
        of_rows = jax.tree.map(lambda a: lax.slice_in_dim(a, start, end, axis=rows), (x, top, label))
        return _of_classes(*of_rows, axis=axis)

    return jnp.concatenate([part(0, cut), part(cut, count)], rows)


def _of_classes(x: Array, top: Array, label: Label | None, *, axis: int) -> Array:
    top, finite_top = wide_and_finite_maximum(x, top)
    classes = x.shape[axis]

    def term(column: Array, i: Array | int, led: Array) -> tuple[Array, Array]:
        column = column.astype(top.dtype)
        leaves = (column == top) & (top < jnp.inf) & ~led if label is None else label.id == i
        return jnp.where(leaves, 0, rules.scaled(half(column, finite_top))), led | leaves

    def add(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, lost, led = state
        of_class, led = term(lax.dynamic_index_in_dim(x, i, axis), i, led)
        return *rules.compensated(total, lost, of_class), led

    led = jnp.zeros(top.shape, bool)
    if classes <= MOST_UNROLLED:
        terms = []
        for i in range(classes):
            of_class, led = term(_reading.part(x, i, i + 1, axis), i, led)
            terms.append(of_class)
        while len(terms) > 1:
            terms = [sum(terms[i : i + 2]) for i in range(0, len(terms), 2)]  # type: ignore[misc]
        total = terms[0]
    else:
        none = jnp.zeros(top.shape, top.dtype)
        total, *_ = lax.fori_loop(0, classes, add, (none, none, led))
    return _rest_from_others(total / rules.SCALE, top, finite_top, label)


def _rest_from_others(others: Array, top: Array, finite_top: Array, label: Label | None) -> Array:
    """The rest, from the sum over all classes except one; −1 in an empty row, NaN if the maximum is +inf."""
    if label is not None:
        return others + label_term_minus_1(label, finite_top)
    # XLA's library returns −inf as the maximum of a row of NaNs; only in an empty row is the sum 0 as well.
    return jnp.where((top == -jnp.inf) & (others == 0), -1, others)


def label_term_minus_1(label: Label, top: Array) -> Array:
    """``exp(x_y − max) − 1`` at the label y: with the sum over the other classes, it gives the rest."""
    return exponentials(label.logit, top) - 1


def wide_and_finite_maximum(x: Array, top: Array) -> tuple[Array, Array]:
    """The maximum in the dtype of the computation, and the same with −inf (an empty row) made finite."""
    top = top.astype(rules.computing_dtype(x.dtype))
    return top, jnp.maximum(top, jnp.finfo(top.dtype).min)


def exponentials(x: Array, center: Array) -> Array:
    return jnp.exp(x.astype(center.dtype) - center)


def half(x: Array, top: Array) -> Array:
    return jnp.exp((x.astype(top.dtype) - top) * 0.5)
