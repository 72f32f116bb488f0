"""The rest of a row, and the softmax of long rows, on CPU, in forms that XLA's reduction library can run.

XLA:CPU passes a sum over a chain of additions, products, exponentials and floors to a library, which reads
the row once. With a comparison, a select, or a second sum of the same terms, XLA does not use the library,
which costs more time than the exponentials. So the main pass is one bare sum of ``exp(u)``, and a smaller
second pass corrects rows with a leading class. If a gradient follows, XLA stores the exponentials in the
memory of the gradient.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends import _beside_label, _by_class, _sinks
from jsoftmax.backends._beside_label import LEAST_SUM
from jsoftmax.backends._blocks import apart, block, block_sums
from jsoftmax.backends._by_class import Label, exponentials, half, wide_and_finite_maximum
from jsoftmax.backends._request import Form
from jsoftmax.logits._scaling import Scaling
from jsoftmax.transforms._autodiff import with_tangent
from jsoftmax.transforms._platforms import hidden

_NEARLY_1 = 0.99  # below the term of the maximum, which is 1 up to the rounding of a fused product


def rest(form: Form, x: Array, top: Array, axis: int, label: Label | None = None) -> Array:
    """``Σ exp(x − top) − 1`` over a row: the sum without the 1 of the largest class; −1 in an empty row.

    With a label, only −log p of the label is accurate: the sum leaves out the label's term instead.
    """
    return _rest((form, axis), x, top, label)


def _value(static: tuple[Form, int], x: Array, top: Array, label: Label | None) -> Array:
    form, axis = static
    _, finite_top = wide_and_finite_maximum(x, top)
    if label is not None and form.name != "whole":
        return _beside_label.rest(form, x, finite_top, label, axis)
    if form.name == "by class":
        return _by_class.rest(x, top, axis, form.terms_used_again)
    if form.name == "whole":
        return _of_whole_rows(x, finite_top, axis)
    return _of_blocks(form, x, finite_top, axis)


def _tangent(static: tuple[Form, int], arguments: tuple[Any, ...], dx: Array) -> Array:
    x, top, _ = arguments
    top = jnp.where(top == -jnp.inf, 0, top).astype(rules.computing_dtype(x.dtype))
    return jnp.sum(jnp.exp(x.astype(top.dtype) - top) * dx.astype(top.dtype), static[1], keepdims=True)


_rest = with_tangent(_value, _tangent)


def _of_whole_rows(x: Array, top: Array, axis: int) -> Array:
    """One bare sum. If it is below 2, one class leads, and a second sum leaves out the 1 of that class."""
    total = jnp.sum(exponentials(x, top), axis, keepdims=True)

    def repaired(x: Array, top: Array, total: Array) -> Array:
        return jnp.where(_leads(total), _of_others(x, top, axis), total - 1)

    def plain(x: Array, top: Array, total: Array) -> Array:
        return total - 1

    # With a NaN in any row the comparison is False, so the other rows are still repaired.
    return lax.cond(jnp.min(total) >= 2, plain, repaired, x, top, total)


def _of_blocks(form: Form, x: Array, top: Array, axis: int) -> Array:
    """Bare sums of blocks; if one class leads so far that terms underflow, a scaled sum."""
    rest = rest_of_blocks(form.size, x, top, axis, stored=form.terms_used_again)

    def repaired(x: Array, top: Array, rest: Array) -> Array:
        return jnp.where(_vanishes(rest), _of_others(x, top, axis), rest)

    def bare(x: Array, top: Array, rest: Array) -> Array:
        return rest

    return lax.cond(jnp.any(_vanishes(rest)), repaired, bare, x, top, rest)


def _of_others(x: Array, top: Array, axis: int) -> Array:
    """The sum without the largest class, which alone has a floor of 1; scaled, so that no term underflows."""
    root = half(x, top)
    return apart(jnp.sum(rules.scaled(root - jnp.floor(root)), axis, keepdims=True)) / rules.SCALE


def rest_of_blocks(size: int, x: Array, top: Array, axis: int, *, stored: bool = False) -> Array:
    """The rest from the sums of blocks: the block with the maximum is summed again without the maximum.

    If two blocks contain a 1, the total is at least 2, and no term has to be left out.
    """
    count = x.shape[axis] // size
    sums = block_sums(size, x, top, axis, stored)
    holds = sums >= _NEARLY_1
    index = lax.broadcasted_iota(sums.dtype, sums.shape, axis)
    stacked = jnp.stack([sums, jnp.where(holds, 0, sums), jnp.where(holds, index, 0)], axis)
    total, others, index = jnp.split(jnp.sum(stacked, axis + 1), 3, axis)
    index = jnp.clip(index, 0, count - 1).astype(jnp.int32)
    holder = block(size, x, index, axis).astype(top.dtype)
    leads = holder == hidden(top)  # without the barrier XLA stores the broadcast maximum
    of_holder = jnp.sum(exponentials(jnp.where(leads, -jnp.inf, holder), top), axis, keepdims=True)
    plain = jnp.where(total == 0, -1, jnp.where(total < 1, 0, total - 1))
    return jnp.where(_leads(total) & (others < total), others + of_holder, plain)


def _leads(total: Array) -> Array:
    return (total > 0) & (total < 2 * _NEARLY_1)


def _vanishes(rest: Array) -> Array:
    return (rest >= 0) & (rest < LEAST_SUM)


def softmax_in_blocks(size: int, axis: int, x: Array, sink: Array | None) -> tuple[Array, Array | None]:
    """The probabilities of long rows and of their sink, with sums over blocks of `size` classes."""
    return _softmax((size, axis), (x, sink))


def _softmax_value(static: tuple[int, int], row: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
    """``exp(u)/(1 + rest)``; 0 in an empty row.

    The maximum starts from a finite number: then XLA computes it and stores exp(u) in one pass. With a sink,
    the divisor is relative to the maximum of the classes: if it overflows, they all are below any number.
    """
    (size, axis), (x, sink) = static, row
    top = lax.expand_dims(lax.reduce(x, jnp.finfo(x.dtype).min, lax.max, (axis,)), (axis,))
    rest = rest_of_blocks(size, x, top, axis, stored=True)
    if sink is None:
        return exponentials(x, top) / (1 + jnp.maximum(rest, 0)), None
    scaling = Scaling(None, sink=sink)
    state = online.State(jnp.where(rest < 0, -jnp.inf, top), rest)
    whole = _sinks.with_sink(state, scaling)
    share = jnp.exp(top - jnp.where(rest < 0, top, whole.max))
    return exponentials(x, top) / ((1 + jnp.maximum(whole.rest, 0)) / share), _sinks.probability(
        whole, scaling
    )


def _softmax_tangent(
    static: tuple[int, int], arguments: tuple[Any, ...], tangents: tuple[Array, Array | None]
) -> tuple[Array, Array | None]:
    p, p_sink = _softmax(static, *arguments)
    dx, dsink = tangents
    if p_sink is None or dsink is None:
        return rules.softmax_product(p, dx, static[1]), None
    sink = rules.Sink(p_sink, dsink)
    mean = rules.row_sums(static[1], p * dx)[0] + p_sink * dsink
    return rules.softmax_product(p, dx, static[1], sink=sink), p_sink * (dsink - mean)


_softmax = with_tangent(_softmax_value, _softmax_tangent)
