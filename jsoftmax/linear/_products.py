"""The matrix products of a linear head for one block: the logits, and the gradients from their gradient."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.linear import _plan, _single_classes
from jsoftmax.linear._plan import BlockPlan
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows._loss_terms import LossTerms
from jsoftmax.rows._statistics import RowArguments
from jsoftmax.transforms._platforms import by_platform
from jsoftmax.transforms._sharding import is_known, on_one_device, partition_spec, shards, spec, varying

# On CPU the logits of a block, and their gradients, are computed in tiles of this many classes, which fit in
# the cache.
TILE = 2048
# On CPU a product over D features is a sum of products over max(128, 2¹⁷/D) features each. With this length,
# the rounding error is that of a product over 362 features, up to D = 1024.
FEWEST_FEATURES = 128
FEATURES_SQUARED = 2**17


class Rows(NamedTuple):
    """The arguments with one entry per row; also their tangents or cotangents."""

    hidden: Any  # [B, D]
    labels: Any = None  # class ids [B, 1], or targets [B, V]
    counted: Array | None = None  # [B, 1]: False in a row that does not count, whose numbers are all 0
    temperature: Array | None = None  # [B, 1]
    soft_cap: Array | None = None  # [B, 1]
    terms: LossTerms = LossTerms()  # [B, 1]
    where: Array | None = None  # [B, V]: True for the classes that count

    @property
    def scaling(self) -> Scaling:
        """The scaling of the logits, which gives z."""
        return Scaling(None, self.temperature, self.soft_cap)

    @property
    def has_class_ids(self) -> bool:
        """Whether the labels are class ids, not targets."""
        return bool(jnp.issubdtype(self.labels.dtype, jnp.integer))

    def of_block(self, counted: Array | None) -> Rows:
        """The rows of a block; a row counts if it counts here and in `counted`, else its hidden is 0."""
        both = [where for where in (self.counted, counted) if where is not None]
        rows = self._replace(counted=functools.reduce(jnp.logical_and, both) if both else None)
        return rows._replace(hidden=rows.masked(rows.hidden))

    def masked(self, hidden: Array | None) -> Any:
        """`hidden`, or a tangent or cotangent of it, with 0 in rows that do not count."""
        return hidden if hidden is None or self.counted is None else jnp.where(self.counted, hidden, 0)


class Shared(NamedTuple):
    """The arguments that all rows share; also their tangents or cotangents."""

    weight: Any  # [D, V] or [V, D]
    bias: Any = None  # [1, V]
    class_weights: Any = None  # [1, V]
    where: Array | None = None  # [1, V]: True for the classes that count in every row
    key: Any = None  # the random key of `_sampling`, as integers


class Sampling(NamedTuple):
    """The probabilities that decide which classes the gradient of a block uses."""

    threshold: float  # the smallest p, in one of the rows, of an active class
    keep: float  # the probability of taking an inactive class; 0 for none


class Static(NamedTuple):
    """The facts that are known when a program is traced."""

    vocab_axis: int  # the class axis of the weight
    block_size: int | tuple[int, int] | None
    names: tuple[str, ...]  # the mesh axes of the shards of the classes
    wanted: frozenset[str]  # the names of the numbers
    asked: Any = None  # the gradients to compute: booleans in a tree like (rows, shared)
    sampling: Sampling | None = None  # None: gradients use all classes

    def plan(self, rows: Rows, shared: Shared, gradient: bool = True) -> BlockPlan:
        """The blocks of the logits; with targets or sharded classes, a block has all classes.

        The plan is for the part of a block on one device. If a length is a symbol, there is one block.
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

    def samples(self, plan: BlockPlan, rows: Rows) -> bool:
        """Whether gradients use some of the classes: only with class ids, and if a block has all classes."""
        return self.sampling is not None and plan.class_blocks == 1 and rows.has_class_ids

    def part(self, shared: Shared, start: Array | int, size: int) -> Shared:
        """The slice of the shared arguments for some of the classes."""
        axes = (self.vocab_axis, 1, 1, 1)
        return Shared(*(_plan.part(a, start, size, axis) for a, axis in zip(shared[:4], axes, strict=True)))

    def with_part(self, shared: Shared, part: Shared, start: Array | int) -> Shared:
        """`shared`, with the slice for some of the classes replaced by `part`."""
        axes = (self.vocab_axis, 1, 1, 1)
        both = zip(shared[:4], part[:4], axes, strict=True)
        parts = (_plan.with_part(a, b, start, axis) for a, b, axis in both)
        return Shared(*parts)._replace(key=shared.key)

    def taken(self, shared: Shared, ids: Array) -> Shared:
        """The shared arguments of the classes with these ascending ids; an id past the end is clipped."""
        each = zip(shared[:4], (self.vocab_axis, 1, 1, 1), strict=True)
        return Shared(*(_single_classes.taken(a, ids, axis) for a, axis in each))

    def added(self, shared: Shared, part: Shared, ids: Array) -> Shared:
        """`shared`, with `part` added to the classes with these ascending ids, except one past the end."""
        each = zip(shared[:3], part[:3], (self.vocab_axis, 1, 1), strict=True)
        return Shared(*(_single_classes.added(a, b, ids, axis) for a, b, axis in each))


def logits(static: Static, rows: Rows, shared: Shared) -> Array:
    """The logits of a block, in at least float32.

    On CPU the logits of a tile are a sum of products over some of the features each: XLA's product sums all
    features in sequence there, and with 512 features its error is twice as large.
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

    if on_one_device(hidden, 1) and on_one_device(weight, 0, 1) and features > length and classes <= TILE:
        parts = in_parts, f"sums of products over {length} features each, which round less"
        x = by_platform("the logits", hidden, weight, plain=whole, cpu=parts)
    else:
        x = whole(hidden, weight)
    return x if shared.bias is None else x + shared.bias.astype(x.dtype)


def row_arguments(
    x: Array, rows: Rows, shared: Shared, start: Array | int = 0, *, whole: bool = True
) -> RowArguments:
    """The row numbers' arguments for a block of logits whose classes begin at `start`.

    Unless it has all classes (`whole`), a class id of another block becomes −1.
    """
    labels = rows.labels
    if not whole:
        here = (labels >= start) & (labels < start + x.shape[1])
        labels = jnp.where(here, labels - start, -1)
    of_rows = _plan.part(rows.where, start, x.shape[1], 1)
    masks = [mask for mask in (shared.where, of_rows) if mask is not None]
    scaling = rows.scaling._replace(where=functools.reduce(jnp.logical_and, masks) if masks else None)
    return RowArguments(x, labels, shared.class_weights, scaling, rows.counted)


def zero_gradients(asked: Shared, rows: Any, shared: Shared) -> Shared:
    """The gradients of the shared arguments before the first block: 0, or None if not asked for."""

    def zeros(asked: Any, a: Array | None) -> Array | None:
        if not asked or a is None:
            return None
        return varying(jnp.zeros_like(a, rules.computing_dtype(a.dtype)), rows, shared)

    return Shared(*map(zeros, asked[:3], shared[:3]))._replace(key=shared.key)


def back(
    static: Static, asked: Rows, sums: Shared, hidden: Array, weight: Array, dx: Array, of_weights: Any
) -> tuple[Array | None, Shared]:
    """The gradients from dx, the gradient of a block of logits, all in at least float32.

    Returns that of its hidden rows, None if not asked for, and `sums` with the block's gradients added.
    """
    narrow, axis = dx.astype(hidden.dtype), static.vocab_axis
    of_hidden = _product(narrow, weight, 1, axis, *spec(hidden)) if asked.hidden else None
    of_weight, of_bias, of_class_weights, *_ = sums
    if of_weight is not None:
        factors = (hidden, narrow) if axis == 1 else (narrow, hidden)
        of_weight = of_weight + _product(*factors, 0, 0, *spec(weight))
    if of_bias is not None:
        of_bias = of_bias + jnp.sum(dx, 0, keepdims=True)
    if of_class_weights is not None and of_weights is not None:
        of_class_weights = of_class_weights + of_weights
    return of_hidden, Shared(of_weight, of_bias, of_class_weights)


def _product(a: Array, b: Array, axis: int, other_axis: int, *layout: Any) -> Array:
    """The matrix product over one axis of each factor, accumulated in at least float32."""
    return lax.dot_general(
        a,
        b,
        (((axis,), (other_axis,)), ((), ())),
        preferred_element_type=rules.computing_dtype(a.dtype),
        out_sharding=partition_spec(a, *layout),
    )
