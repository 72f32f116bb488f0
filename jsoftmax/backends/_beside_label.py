"""The rest of a row on CPU where only −log p of its label has to be accurate: the sum of the other terms.

If the label leads, its 1 would round away digits of a sum of all terms. If it does not, another term is 1. If
a gradient follows, XLA stores the terms in the memory of the gradient, which is a product of the same terms
except at the label.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _blocks, _by_class
from jsoftmax.backends._by_class import Label, exponentials, half
from jsoftmax.backends._choice import MOST_UNROLLED
from jsoftmax.backends._reading import is_label
from jsoftmax.backends._request import Form
from jsoftmax.transforms._platforms import hidden

LEAST_SUM = 2.0**-80  # above this sum, the underflow of its terms costs less than an ulp


def rest(form: Form, x: Array, top: Array, label: Label, axis: int) -> Array:
    """``Σ exp(x − top) − 1`` over a row, from the sum without the label's term; `top` is finite and wide."""

    def repaired(x: Array, top: Array, others: Array) -> Array:
        return sum_of_others(rules.scaled(half(x, top)), label.id, axis) / rules.SCALE

    def bare(x: Array, top: Array, others: Array) -> Array:
        return others

    others = _others(form, x, top, label, axis)
    vanishes = (others < LEAST_SUM) & (top > jnp.finfo(top.dtype).min)  # not in an empty row
    others = lax.cond(jnp.any(vanishes), repaired, bare, x, top, others)
    return others + label_term_minus_1(label, top)


def _others(form: Form, x: Array, top: Array, label: Label, axis: int) -> Array:
    if form.name == "stored beside the label":
        terms = jnp.exp(without_label(x - top, label.id, axis))
        if x.shape[axis] <= MOST_UNROLLED:
            return _by_class.sum_of_classes(terms, axis)
        if form.size:  # in the order of `_of_blocks`; without the barrier XLA merges the two sums
            terms = hidden(jnp.sum(_blocks.in_blocks(form.size, terms, axis), axis + 1))
        return jnp.sum(terms, axis, keepdims=True)
    if form.name == "by class":
        return _by_class.sum_of_others(x, top, label, axis, form.terms_used_again)
    if form.name == "blocks":
        return _of_blocks(form.size, x, top, label, axis)
    return sum_of_others(exponentials(x, top), label.id, axis)


def without_label(u: Array, ids: Array, axis: int) -> Array:
    """The exponents u, −inf at the label."""
    return jnp.where(is_label(ids, axis, u.shape[axis]), -jnp.inf, u)


def sum_of_others(terms: Array, ids: Array, axis: int) -> Array:
    """The sum over a row without the class of this id: a product masks it, which the library can run.

    Classes are numbered from 1: XLA turns the numbers from 0 into an iota, and since jax 0.11.2 the library
    may use an iota of another program, with as many classes as that one.
    """
    classes, shape = terms.shape[axis], [1] * terms.ndim
    shape[axis] = classes
    numbers = np.arange(1, classes + 1).astype(terms.dtype).reshape(shape)
    away = numbers - (ids.astype(terms.dtype) + 1)
    return _blocks.apart(jnp.sum(terms * jnp.minimum(away * away, 1), axis, keepdims=True))


def _of_blocks(size: int, x: Array, top: Array, label: Label, axis: int) -> Array:
    """The sum of the sums of blocks; the block with the label is summed again without the label."""
    sums = _blocks.block_sums(size, x, top, axis)
    index = jnp.clip(label.id // size, 0, sums.shape[axis] - 1)
    u = _blocks.block(size, x, index, axis).astype(top.dtype) - top
    others = jnp.sum(jnp.exp(without_label(u, label.id - index * size, axis)), axis, keepdims=True)
    return jnp.sum(jnp.where(is_label(index, axis, sums.shape[axis]), others, sums), axis, keepdims=True)


def label_term_minus_1(label: Label, top: Array) -> Array:
    """``exp(x_y − max) − 1`` at the label y: with the sum over the other classes, it gives the rest."""
    return exponentials(label.logit, top) - 1
