"""The products of matrices of a linear head, block by block: the logits, and the gradients made of theirs."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.linear import _plan
from jsoftmax.linear._plan import BlockPlan
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows._loss_terms import LossTerms
from jsoftmax.rows._statistics import Problem
from jsoftmax.transforms._platforms import by_platform
from jsoftmax.transforms._sharding import is_known, is_whole, laid_out, shards, spec, varying

# On CPU a block's logits are made, and turned into gradients, in tiles of so many classes, which the cache
# holds.
TILE = 2048
# On CPU a product over D features is a sum of products over 2¹⁷/D, but at least 128: it has the error of 362.
FEWEST_FEATURES = 128
FEATURES_SQUARED = 2**17


class Rows(NamedTuple):
    """The arguments that are as long as the rows; also their tangents and cotangents."""

    hidden: Any  # [B, D]
    labels: Any = None  # class ids [B, 1], or targets [B, V]
    counted: Array | None = None  # [B, 1]: False in a row whose every number is 0
    temperature: Array | None = None  # [B, 1]
    soft_cap: Array | None = None  # [B, 1]
    terms: LossTerms = LossTerms()  # [B, 1]
    where: Array | None = None  # [B, V]: True for the classes that count

    @property
    def scaling(self) -> Scaling:
        """What turns a row's logits into z."""
        return Scaling(None, self.temperature, self.soft_cap)

    @property
    def has_class_ids(self) -> bool:
        """Whether the labels are class ids, and no targets."""
        return bool(jnp.issubdtype(self.labels.dtype, jnp.integer))

    def of_block(self, counted: Array | None) -> Rows:
        """The rows of a block, of which perhaps not all count: nothing is in those that do not."""
        both = [where for where in (self.counted, counted) if where is not None]
        rows = self._replace(counted=functools.reduce(jnp.logical_and, both) if both else None)
        return rows._replace(hidden=rows.masked(rows.hidden))

    def masked(self, hidden: Array | None) -> Any:
        """What belongs to the features, 0 in rows that do not count."""
        return hidden if hidden is None or self.counted is None else jnp.where(self.counted, hidden, 0)


class Shared(NamedTuple):
    """The arguments that all rows share; also their tangents and cotangents."""

    weight: Any  # [D, V] or [V, D]
    bias: Any = None  # [1, V]
    class_weights: Any = None  # [1, V]
    where: Array | None = None  # [1, V]: True for the classes that count in every row


class Static(NamedTuple):
    """What is known when a program is traced."""

    vocab_axis: int  # of the weight
    block_size: int | tuple[int, int] | None
    names: tuple[str, ...]  # the mesh axes of the shards of the classes
    wanted: frozenset[str]
    asked: Any = None  # the gradients to find: a tree of booleans, like the rows and what they share

    def plan(self, rows: Rows, shared: Shared, gradient: bool = True) -> BlockPlan:
        """How the logits are cut; with targets, or sharded classes, along the rows alone.

        A block is planned for what one device holds of it. What has a symbol for a length is one block.
        """
        (size, features), classes = rows.hidden.shape, shared.weight.shape[self.vocab_axis]
        itemsize = rules.computing_dtype(rows.hidden.dtype).itemsize
        if not (is_known(rows.hidden) and is_known(shared.weight)):
            return BlockPlan(size, classes, size, classes, itemsize)
        row_shards, class_shards = shards(rows.hidden, 0), shards(shared.weight, self.vocab_axis)
        block_size = self.block_size
        if isinstance(block_size, int) and row_shards > 1:
            block_size = -(-block_size // row_shards)
        plan = _plan.plan(
            size // row_shards,
            features,
            classes // class_shards,
            itemsize=itemsize,
            gradient=gradient,
            block_size=block_size,
        )
        plan = plan._replace(rows=size, classes=classes, block_rows=plan.block_rows * row_shards)
        cuttable = rows.has_class_ids and class_shards == 1 and not self.names
        return plan if cuttable else plan._replace(block_classes=classes)

    def part(self, shared: Shared, start: Array | int, size: int) -> Shared:
        """What belongs to some of the classes."""
        axes = (self.vocab_axis, 1, 1, 1)
        return Shared(*(_plan.part(a, start, size, axis) for a, axis in zip(shared, axes, strict=True)))

    def with_part(self, shared: Shared, part: Shared, start: Array | int) -> Shared:
        """`shared`, with what belongs to some of the classes replaced."""
        axes = (self.vocab_axis, 1, 1, 1)
        return Shared(
            *(_plan.with_part(a, b, start, axis) for a, b, axis in zip(shared, part, axes, strict=True))
        )


def logits(static: Static, rows: Rows, shared: Shared) -> Array:
    """The logits of a block, in at least float32.

    On CPU a tile is made of products over some of the features at a time: XLA there adds up all of them one
    after the other, and 512 features have twice the error.
    """
    hidden, weight = rows.hidden, shared.weight
    features, classes = hidden.shape[1], weight.shape[static.vocab_axis]
    layout = spec(hidden)[0], spec(weight)[static.vocab_axis]
    length = max(FEWEST_FEATURES, FEATURES_SQUARED // max(features, 1))

    def whole(hidden: Array, weight: Array) -> Array:
        return _product(hidden, weight, 1, 1 - static.vocab_axis, *layout)

    def in_parts(hidden: Array, weight: Array) -> Array:
        total = None
        for first in range(0, features, length):
            size = min(length, features - first)
            part = _plan.part(weight, first, size, 1 - static.vocab_axis)
            product = whole(_plan.part(hidden, first, size, 1), part)
            total = product if total is None else total + product
        return jnp.asarray(total)

    if is_whole(hidden, 1) and is_whole(weight, 0, 1) and features > length and classes <= TILE:
        parts = in_parts, f"sums of products over {length} features each, which round less"
        x = by_platform("the logits", hidden, weight, plain=whole, cpu=parts)
    else:
        x = whole(hidden, weight)
    return x if shared.bias is None else x + shared.bias.astype(x.dtype)


def problem(x: Array, rows: Rows, shared: Shared, start: Array | int = 0, *, whole: bool = True) -> Problem:
    """A block of logits, whose classes begin at `start`; unless it is whole, class ids elsewhere are −1."""
    labels = rows.labels
    if not whole:
        here = (labels >= start) & (labels < start + x.shape[1])
        labels = jnp.where(here, labels - start, -1)
    of_rows = _plan.part(rows.where, start, x.shape[1], 1)
    masks = [mask for mask in (shared.where, of_rows) if mask is not None]
    scaling = rows.scaling._replace(where=functools.reduce(jnp.logical_and, masks) if masks else None)
    return Problem(x, labels, shared.class_weights, scaling, rows.counted)


def none_yet(asked: Shared, rows: Any, shared: Shared) -> Shared:
    """The sums of the gradients that are asked for, before the first block."""

    def zeros(asked: Any, a: Array | None) -> Array | None:
        if not asked or a is None:
            return None
        return varying(jnp.zeros_like(a, rules.computing_dtype(a.dtype)), rows, shared)

    return Shared(*map(zeros, asked, shared))


def back(
    static: Static, asked: Rows, sums: Shared, hidden: Array, weight: Array, dx: Array, of_weights: Any
) -> tuple[Array | None, Shared]:
    """From the gradient of a block of logits that of its hidden rows, in at least float32, if asked for.

    And the gradients of what all rows share, with the block's added.
    """
    narrow, axis = dx.astype(hidden.dtype), static.vocab_axis
    of_hidden = _product(narrow, weight, 1, axis, *spec(hidden)) if asked.hidden else None
    of_weight, of_bias, of_class_weights, _ = sums
    if of_weight is not None:
        factors = (hidden, narrow) if axis == 1 else (narrow, hidden)
        of_weight = of_weight + _product(*factors, 0, 0, *spec(weight))
    if of_bias is not None:
        of_bias = of_bias + jnp.sum(dx, 0, keepdims=True)
    if of_class_weights is not None and of_weights is not None:
        of_class_weights = of_class_weights + of_weights
    return of_hidden, Shared(of_weight, of_bias, of_class_weights)


def _product(a: Array, b: Array, axis: int, other_axis: int, *layout: Any) -> Array:
    """The sum of products over an axis of each, accumulated in at least float32."""
    return lax.dot_general(
        a,
        b,
        (((axis,), (other_axis,)), ((), ())),
        preferred_element_type=rules.computing_dtype(a.dtype),
        out_sharding=laid_out(a, *layout),
    )
