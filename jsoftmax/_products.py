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


class Rows(NamedTuple):
    """The arguments that are as long as the rows; also their tangents and cotangents."""

    hidden: Any  # [B, D]
    labels: Any = None  # class ids [B, 1], or targets [B, V]
    counted: Array | None = None  # [B, 1]: False in a row whose every number is 0
    temperature: Array | None = None  # [B, 1]
    soft_cap: Array | None = None  # [B, 1]
    terms: LossTerms = LossTerms()  # [B, 1]

    @property
    def scaling(self) -> Scaling:
        """What turns a row's logits into z."""
        return Scaling(None, self.temperature, self.soft_cap)

    @property
    def has_class_ids(self) -> bool:
        """Whether the labels are class ids, and no targets."""
        return bool(jnp.issubdtype(self.labels.dtype, jnp.integer))


class Shared(NamedTuple):
    """The arguments that all rows share; also their tangents and cotangents."""

    weight: Any  # [D, V] or [V, D]
    bias: Any = None  # [1, V]
    class_weights: Any = None  # [1, V]


class Static(NamedTuple):
    """What is known when a program is traced."""

    vocab_axis: int  # of the weight
    block_size: int | tuple[int, int] | None
    wanted: frozenset[str]

    def plan(self, rows: Rows, shared: Shared, gradient: bool = True) -> BlockPlan:
        """How the logits are cut; with targets, along the rows alone."""
        (size, features), classes = rows.hidden.shape, shared.weight.shape[self.vocab_axis]
        itemsize = rules.computing_dtype(rows.hidden.dtype).itemsize
        plan = _blocks.plan(
            size, features, classes, itemsize=itemsize, gradient=gradient, block_size=self.block_size
        )
        return plan if rows.has_class_ids else plan._replace(block_classes=classes)

    def part(self, shared: Shared, start: Array | int, size: int) -> Shared:
        """What belongs to some of the classes."""
        axes = Shared(self.vocab_axis, 1, 1)
        return Shared(*(_blocks.part(a, start, size, axis) for a, axis in zip(shared, axes, strict=True)))

    def with_part(self, shared: Shared, part: Shared, start: Array | int) -> Shared:
        """`shared`, with what belongs to some of the classes replaced."""
        axes = Shared(self.vocab_axis, 1, 1)
        return Shared(
            *(_blocks.with_part(a, b, start, axis) for a, b, axis in zip(shared, part, axes, strict=True))
        )


def logits(static: Static, rows: Rows, shared: Shared) -> Array:
    """The logits of a block, in at least float32."""
    x = _product(rows.hidden, shared.weight, 1, 1 - static.vocab_axis)
    return x if shared.bias is None else x + shared.bias.astype(x.dtype)


def problem(x: Array, rows: Rows, shared: Shared, start: Array | int = 0, *, whole: bool = True) -> Problem:
    """A block of logits, whose classes begin at `start`; unless it is whole, class ids elsewhere are −1."""
    labels = rows.labels
    if not whole:
        here = (labels >= start) & (labels < start + x.shape[1])
        labels = jnp.where(here, labels - start, -1)
    return Problem(x, labels, shared.class_weights, rows.scaling, rows.counted)


def none_yet(asked: Shared, shared: Shared) -> Shared:
    """The sums of the gradients that are asked for, before the first block."""

    def zeros(asked: Any, a: Array | None) -> Array | None:
        return jnp.zeros(a.shape, rules.computing_dtype(a.dtype)) if asked and a is not None else None

    return Shared(*map(zeros, asked, shared))


def of_hidden(static: Static, dx: Array, weight: Array) -> Array:
    """The gradient in the hidden rows of a block, in at least float32."""
    return _product(dx.astype(weight.dtype), weight, 1, static.vocab_axis)


def add_back(static: Static, sums: Shared, hidden: Array, dx: Array, of_weights: Array | None) -> Shared:
    """The gradients in what all rows share, with those of a block added."""
    weight, bias, class_weights = sums
    if weight is not None:
        weight = _add_of_weight(static, weight, hidden, dx.astype(hidden.dtype))
    if bias is not None:
        bias = bias + jnp.sum(dx, 0, keepdims=True)
    if class_weights is not None and of_weights is not None:
        class_weights = class_weights + of_weights
    return Shared(weight, bias, class_weights)


def _add_of_weight(static: Static, total: Array, hidden: Array, dx: Array) -> Array:
    """On CPU in tiles, whose products are added while they are in the cache."""
    axis = static.vocab_axis

    def product(dx: Array) -> Array:
        return _product(hidden, dx, 0, 0) if axis == 1 else _product(dx, hidden, 0, 0)

    def whole(total: Array, dx: Array) -> Array:
        return total + product(dx)

    def in_tiles(total: Array, dx: Array) -> Array:
        def add(total: Array, start: Array | int, size: int) -> Array:
            so_far = _blocks.part(total, start, size, axis)
            tile = so_far + product(_blocks.part(dx, start, size, 1))
            return _blocks.with_part(total, tile, start, axis)

        return _blocks.over_classes(dx.shape[1], WEIGHT_TILE, add, total)

    if dx.shape[1] <= WEIGHT_TILE:
        return whole(total, dx)
    return lax.platform_dependent(total, dx, cpu=in_tiles, default=whole)


def _product(a: Array, b: Array, axis: int, other_axis: int) -> Array:
    """The sum of products over an axis of each, accumulated in at least float32."""
    dtype = rules.computing_dtype(a.dtype)
    return lax.dot_general(a, b, (((axis,), (other_axis,)), ((), ())), preferred_element_type=dtype)
