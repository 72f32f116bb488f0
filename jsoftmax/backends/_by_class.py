"""Rows on CPU that are short, or whose classes lie far apart: class by class, over all rows at once.

XLA would go down one row after the other, and take ten times as long where the next class is far away.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _reading
from jsoftmax.backends._choice import MOST_UNROLLED
from jsoftmax.transforms._sharding import is_whole


class Label(NamedTuple):
    """Of every row, with length 1 along it: the class id, and its logit."""

    id: Array
    logit: Array


def rest(x: Array, top: Array, label: Label | None, axis: int, followed: bool) -> Array:
    """The sum over all classes but the label, or else but the first of the largest, class by class.

    XLA vectorizes over rows only if their number is even. If several results use the rest, XLA stores every
    exponential, unless the rest is a concatenation of two parts. So the last rows are one.
    """
    rows = next((i for i, n in enumerate(x.shape) if i != axis and n > 2 and is_whole(x, i)), axis)
    count = x.shape[rows]
    if rows == axis or not (followed or count % 2) or x.shape[axis] > MOST_UNROLLED:
        return _of_classes(x, top, label, axis=axis)
    cut = (count - 1) // 2 * 2

    def part(start: int, end: int) -> Array:
        of_rows = jax.tree.map(lambda a: lax.slice_in_dim(a, start, end, axis=rows), (x, top, label))
        return _of_classes(*of_rows, axis=axis)

    return jnp.concatenate([part(0, cut), part(cut, count)], rows)


def _of_classes(x: Array, top: Array, label: Label | None, *, axis: int) -> Array:
    top, finite_top = tops(x, top)
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
    return _without_a_1(total / rules.SCALE, top, finite_top, label)


def _without_a_1(others: Array, top: Array, finite_top: Array, label: Label | None) -> Array:
    """The rest, from the sum over the others, NaN where +inf is the maximum."""
    if label is not None:
        return others + beyond_1(label, finite_top)
    # XLA's library finds −inf for the maximum of a row of NaNs; the sum tells it from an empty row.
    return jnp.where((top == -jnp.inf) & (others == 0), -1, others)


def beyond_1(label: Label, top: Array) -> Array:
    """What the label's term adds to the rest, beside the sum of the others."""
    return exponentials(label.logit, top) - 1


def tops(x: Array, top: Array) -> tuple[Array, Array]:
    """The maximum to compute with, and the same but finite in an empty row, where it is −inf."""
    top = top.astype(rules.computing_dtype(x.dtype))
    return top, jnp.maximum(top, jnp.finfo(top.dtype).min)


def exponentials(x: Array, center: Array) -> Array:
    return jnp.exp(x.astype(center.dtype) - center)


def half(x: Array, top: Array) -> Array:
    return jnp.exp((x.astype(top.dtype) - top) * 0.5)
