"""The products of matrices of a linear head, block by block: the logits, and the gradients made of theirs."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import _blocks, rules
from jsoftmax._blocks import BlockPlan
from jsoftmax._loss_terms import LossTerms
from jsoftmax._scaling import Scaling
from jsoftmax._statistics import Problem

WEIGHT_TILE = 4096  # classes


class Static(NamedTuple):
    """What is known when a program is traced."""

    vocab_axis: int  # of the weight
    block_size: int | tuple[int, int] | None
    wanted: frozenset[str]

    def plan(self, rows: Rows, shared: Shared, gradient: bool = True) -> BlockPlan:
        """How the logits are cut."""
        (size, features), classes = rows.hidden.shape, shared.weight.shape[self.vocab_axis]
        itemsize = rules.computing_dtype(rows.hidden.dtype).itemsize
        return _blocks.plan(
            size, features, classes, itemsize=itemsize, gradient=gradient, block_size=self.block_size
        )


class Rows(NamedTuple):
    """The arguments that are as long as the rows; also their tangents and cotangents."""

    hidden: Any  # [B, D]
    labels: Any  # class ids [B, 1], targets [B, V], or None
    counted: Array | None = None  # [B, 1]: False in a row whose every number is 0
    temperature: Array | None = None  # [B, 1]
    soft_cap: Array | None = None  # [B, 1]
    terms: LossTerms = LossTerms()  # [B, 1]; for `total`


class Shared(NamedTuple):
    """The arguments that all rows share; also their tangents and cotangents."""

    weight: Any  # [D, V] or [V, D]
    bias: Any = None  # [1, V]
    class_weights: Any = None  # [1, V]


def _product(a: Array, b: Array, axis: int, other_axis: int) -> Array:
    """The sum of products over an axis of each, accumulated in at least float32."""
    dtype = rules.computing_dtype(a.dtype)
    return lax.dot_general(a, b, (((axis,), (other_axis,)), ((), ())), preferred_element_type=dtype)


def logits(static: Static, rows: Rows, shared: Shared) -> Array:
    x = _product(rows.hidden, shared.weight, 1, 1 - static.vocab_axis)
    return x if shared.bias is None else x + shared.bias.astype(x.dtype)


def _of_hidden(static: Static, dx: Array, weight: Array) -> Array:
    return _product(dx.astype(weight.dtype), weight, 1, static.vocab_axis)


def _add_of_weight(static: Static, total: Array, hidden: Array, dx: Array) -> Array:
    """The gradient of the weight so far, and that of a block.

    On CPU in tiles, whose products are added while they are in the cache.
    """
    axis, dx = static.vocab_axis, dx.astype(hidden.dtype)

    def product(dx: Array) -> Array:
        return _product(hidden, dx, 0, 0) if axis == 1 else _product(dx, hidden, 0, 0)

    def whole(total: Array, dx: Array) -> Array:
        return total + product(dx)

    def in_tiles(total: Array, dx: Array) -> Array:
        def add(total: Array, start: Array | int, size: int) -> Array:
            so_far = lax.dynamic_slice_in_dim(total, start, size, axis)
            part = product(lax.dynamic_slice_in_dim(dx, start, size, 1))
            return lax.dynamic_update_slice_in_dim(total, so_far + part, start, axis)

        return _blocks.over_classes(dx.shape[1], WEIGHT_TILE, add, total)

    if dx.shape[1] <= WEIGHT_TILE:
        return whole(total, dx)
    return lax.platform_dependent(total, dx, cpu=in_tiles, default=whole)


def problem(x: Array, rows: Rows, shared: Shared) -> Problem:
    scaling = Scaling(None, rows.temperature, rows.soft_cap)
    return Problem(x, rows.labels, shared.class_weights, scaling, rows.counted)


def none_yet(asked: Shared, shared: Shared) -> Shared:
    """The sums of the gradients that are asked for, before the first block."""

    def zeros(asked: Any, a: Array | None) -> Array | None:
        return jnp.zeros(a.shape, rules.computing_dtype(a.dtype)) if asked and a is not None else None

    return Shared(*map(zeros, asked, shared))


def back(
    static: Static, asked: tuple[Rows, Shared], hidden: Array, dx: Array, sums: Shared, weight: Array
) -> tuple[Array | None, Shared]:
    """The gradients in the hidden rows of a block, and, added to their sums, in weight and bias."""
    dhidden = _of_hidden(static, dx, weight).astype(hidden.dtype) if asked[0].hidden else None
    if sums.weight is not None:
        sums = sums._replace(weight=_add_of_weight(static, sums.weight, hidden, dx))
    if sums.bias is not None:
        sums = sums._replace(bias=sums.bias + jnp.sum(dx, 0, keepdims=True))
    return dhidden, sums
