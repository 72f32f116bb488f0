"""The products of matrices of a linear head, block by block: the logits, and the gradients made of theirs."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import _blocks, rules
from jsoftmax._blocks import BlockPlan
from jsoftmax._loss_terms import LossTerms
from jsoftmax._scaling import Scaling
from jsoftmax._sharding import is_whole, laid_out, shards, spec, varying
from jsoftmax._statistics import Problem

# On CPU; the tiles in classes.
LOGITS_TILE = 1024
GRADIENT_TILE = 4096
FEATURES_OF_A_SUM = 128


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
        """How the logits are cut; with targets, or sharded classes, along the rows alone.

        A block is planned for what one device holds of it.
        """
        (size, features), classes = rows.hidden.shape, shared.weight.shape[self.vocab_axis]
        row_shards, class_shards = shards(rows.hidden, 0), shards(shared.weight, self.vocab_axis)
        block_size = self.block_size
        if isinstance(block_size, int) and row_shards > 1:
            block_size = -(-block_size // row_shards)
        plan = _blocks.plan(
            size // row_shards,
            features,
            classes // class_shards,
            itemsize=rules.computing_dtype(rows.hidden.dtype).itemsize,
            gradient=gradient,
            block_size=block_size,
        )
        plan = plan._replace(rows=size, classes=classes, block_rows=plan.block_rows * row_shards)
        cuttable = rows.has_class_ids and class_shards == 1
        return plan if cuttable else plan._replace(block_classes=classes)

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
    """The logits of a block, in at least float32.

    On CPU in tiles, each the sum of products over 256 features: one sum over all of them, which is what XLA
    makes there, has an error twice as large at 512 features; and a 16-bit weight is never copied whole.
    """
    hidden, weight = rows.hidden, shared.weight
    features = hidden.shape[1]

    layout = spec(hidden)[0], spec(weight)[static.vocab_axis]

    def whole(hidden: Array, weight: Array) -> Array:
        return _product(hidden, weight, 1, 1 - static.vocab_axis, *layout)

    def in_tiles(hidden: Array, weight: Array) -> Array:
        def fill(x: Array, start: Array | int, size: int) -> Array:
            tile = _blocks.part(weight, start, size, static.vocab_axis)
            total = None
            for first in range(0, features, FEATURES_OF_A_SUM):
                length = min(FEATURES_OF_A_SUM, features - first)
                part = _blocks.part(tile, first, length, 1 - static.vocab_axis)
                product = whole(_blocks.part(hidden, first, length, 1), part)
                total = product if total is None else total + product
            return _blocks.with_part(x, total, start, 1)

        dtype = rules.computing_dtype(hidden.dtype)
        x = jnp.zeros((len(hidden), classes), dtype, out_sharding=laid_out(hidden, *layout))
        x = varying(x, hidden, weight)
        return _blocks.over_classes(classes, LOGITS_TILE, fill, x)

    classes = weight.shape[static.vocab_axis]
    small = features <= FEATURES_OF_A_SUM and classes <= LOGITS_TILE
    if small or not (is_whole(weight, 0, 1) and is_whole(hidden, 1)):
        x = whole(hidden, weight)
    else:
        x = lax.platform_dependent(hidden, weight, cpu=in_tiles, default=whole)
    return x if shared.bias is None else x + shared.bias.astype(x.dtype)


def problem(x: Array, rows: Rows, shared: Shared, start: Array | int = 0, *, whole: bool = True) -> Problem:
    """A block of logits, whose classes begin at `start`; unless it is whole, class ids elsewhere are −1."""
    labels = rows.labels
    if not whole:
        here = (labels >= start) & (labels < start + x.shape[1])
        labels = jnp.where(here, labels - start, -1)
    return Problem(x, labels, shared.class_weights, rows.scaling, rows.counted)


def none_yet(asked: Shared, rows: Rows, shared: Shared) -> Shared:
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

    And the gradients of what all rows share, with the block's added. On CPU in tiles, whose products are
    added while they are in the cache, and for which a 16-bit weight is never copied whole.
    """
    narrow, axis = dx.astype(hidden.dtype), static.vocab_axis
    begun = varying(jnp.zeros_like(hidden, dx.dtype), hidden, weight, dx) if asked.hidden else None

    def add(
        totals: tuple[Array | None, Array | None], weight: Array, dx: Array
    ) -> tuple[Array | None, Array | None]:
        of_hidden, of_weight = totals
        if of_hidden is not None:
            of_hidden = of_hidden + _product(dx, weight, 1, axis, *spec(hidden))
        if of_weight is not None:
            factors = (hidden, dx) if axis == 1 else (dx, hidden)
            of_weight = of_weight + _product(*factors, 0, 0, *spec(weight))
        return of_hidden, of_weight

    def in_tiles(totals: Any, weight: Array, dx: Array) -> Any:
        def tile(totals: Any, start: Array | int, size: int) -> Any:
            of_hidden, of_weight = totals
            so_far = _blocks.part(of_weight, start, size, axis)
            parts = (_blocks.part(weight, start, size, axis), _blocks.part(dx, start, size, 1))
            of_hidden, so_far = add((of_hidden, so_far), *parts)
            return of_hidden, _blocks.with_part(of_weight, so_far, start, axis)

        return _blocks.over_classes(dx.shape[1], GRADIENT_TILE, tile, totals)

    totals = (begun, sums.weight)
    if dx.shape[1] <= GRADIENT_TILE or not (is_whole(weight, 0, 1) and is_whole(hidden, 0, 1)):
        of_hidden, of_weight = add(totals, weight, narrow)
    else:
        of_hidden, of_weight = lax.platform_dependent(totals, weight, narrow, cpu=in_tiles, default=add)
    of_bias = None if sums.bias is None else sums.bias + jnp.sum(dx, 0, keepdims=True)
    if sums.class_weights is None or of_weights is None:
        of_weights = sums.class_weights
    else:
        of_weights = sums.class_weights + of_weights
    return of_hidden, Shared(of_weight, of_bias, of_weights)


def _product(a: Array, b: Array, axis: int, other_axis: int, *layout: Any) -> Array:
    """The sum of products over an axis of each, accumulated in at least float32."""
    return lax.dot_general(
        a,
        b,
        (((axis,), (other_axis,)), ((), ())),
        preferred_element_type=rules.computing_dtype(a.dtype),
        out_sharding=laid_out(a, *layout),
    )
