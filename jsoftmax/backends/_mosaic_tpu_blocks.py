"""Rows of logits in the memory of a TPU core, gone over in chunks of classes.

A block is some rows with all their classes. A group is some rows of a block that are computed together, and a
chunk is some classes of a group, as many as fill 32 registers. So no float32 array of a whole row exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends._kernel_rows import class_and_unused
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling, Shifted

LANES = 128
REGISTERS = 32  # of float32 in a chunk: with fewer, the core waits for results; with more, many are spilled
Sum = tuple[Array, Array]  # by lane: the total, and what `rules.compensated` corrects


class Chunk(NamedTuple):
    """Some classes of the rows of a group."""

    x: Array  # float32
    scaling: Scaling  # `where` is False also at the padding after the last class
    start: Array | int
    is_wide: bool  # whether the logits have float32 in device memory

    def ordered(self) -> Array:
        """The logits in the order of z."""
        return _scaling.ordered_live(self.x, self.scaling)

    def shifted(self, top: Array) -> Shifted:
        """As `_scaling.shifted`, which asks for the dtype of the logits in device memory."""
        if self.is_wide:
            return _scaling.shifted(self.x, self.scaling, top)
        return Shifted(_scaling.shift(self.x, self.scaling, top, 1, at_top=False), None)

    def is_class(self, labels: Array) -> Array:
        """Where a class is the label of its row."""
        return _counted(self.x.shape) == labels - self.start


class Group(NamedTuple):
    """The rows from `start` of a block, whose arrays are references."""

    x: Any
    where: Any
    temperature: Array | None
    start: Array | int
    size: int
    classes: int

    @property
    def is_wide(self) -> bool:
        """Whether the logits have float32 in device memory."""
        return bool(self.x.dtype == jnp.float32)

    def number(self, ref: Any) -> Array:
        """One number for each row of the group."""
        return ref[self._rows(), :]

    def labels(self, ref: Any) -> tuple[Array, Array]:
        """The class id of each row of the group, −1 if it is no class; and whether the row is unused."""
        ids, is_unused = class_and_unused(self.number(ref))
        # An id beyond the last class might hit the padding.
        return jnp.where((ids >= 0) & (ids < self.classes), ids, -1), is_unused

    def store_numbers(self, refs: Iterable[Any], numbers: Iterable[Array | None]) -> None:
        """Stores numbers of each row of the group; those that are not None."""
        found = (number for number in numbers if number is not None)
        for ref, number in zip(refs, found, strict=False):
            ref[self._rows(), :] = number

    def of_classes(self, ref: Any, chunk: Chunk) -> Array:
        """The part of a further array that belongs to a chunk, in float32."""
        return self._read(ref, chunk.start, chunk.x.shape[1])

    def store(self, ref: Any, chunk: Chunk, values: Array) -> None:
        """Stores the values of the classes of a chunk."""
        ref[self._rows(), _span(chunk.start, values.shape[1])] = values.astype(ref.dtype)

    def over_classes(self, step: Callable[[Chunk, Any], Any], carry: Any) -> Any:
        """The carry after a step for each chunk of the row."""
        width = LANES * max(REGISTERS * 8 // (self.size + -self.size % 8), 1)
        chunks, left = divmod(self.classes, width)

        def next_chunk(i: Array, carry: Any) -> Any:
            return step(self._chunk(multiple(i * width, width), width), carry)

        if chunks:
            carry = lax.fori_loop(0, chunks, next_chunk, carry)
        if left:
            carry = step(self._chunk(chunks * width, left + -left % LANES), carry)
        return carry

    def lanes(self, value: float) -> Array:
        """An array for one tile of lanes of every row."""
        return jnp.full((self.size, LANES), value, jnp.float32)

    def no_sum(self) -> Sum:
        """The sum of nothing."""
        return self.lanes(0), self.lanes(0)

    def _chunk(self, start: Array | int, width: int) -> Chunk:
        where = None
        if self.where is not None:
            rows = self._rows() if self.where.shape[0] > 1 else slice(None)
            where = self.where[rows, _span(start, width)].astype(jnp.int32)
            where = jnp.broadcast_to(where, (self.size, width)) != 0
        if isinstance(start, int) and start + width > self.classes:
            inside = _counted((self.size, width)) < self.classes - start
            where = inside if where is None else where & inside
        x = self._read(self.x, start, width)
        return Chunk(x, Scaling(where, self.temperature), start, self.is_wide)

    def _read(self, ref: Any, start: Array | int, width: int) -> Array:
        return ref[self._rows(), _span(start, width)].astype(jnp.float32)

    def _rows(self) -> Any:
        return _span(self.start, self.size)


def _span(start: Array | int, size: int) -> Any:
    from jax.experimental import pallas as pl

    return pl.ds(start, size)


def multiple(number: Array, of: int) -> Array:
    """The number, which the compiler then knows to be a multiple."""
    from jax.experimental import pallas as pl

    return pl.multiple_of(number, of)


def _counted(shape: tuple[int, ...]) -> Array:
    """The classes of a chunk, counted from 0."""
    return lax.broadcasted_iota(jnp.int32, shape, 1)


def folded(values: Array, both: Callable[[Array, Array], Array] = jnp.add) -> Array:
    """A chunk folded to one tile of lanes, in a tree."""
    tiles = [values[:, i : i + LANES] for i in range(0, values.shape[1], LANES)]
    while len(tiles) > 1:
        pairs = [both(a, b) for a, b in zip(tiles[::2], tiles[1::2], strict=False)]
        tiles = pairs + tiles[2 * len(pairs) :]
    return tiles[0]


def added(total: Sum, terms: Array) -> Sum:
    """The sum with the terms of a chunk."""
    return rules.compensated(*total, folded(terms))


def whole(total: Sum) -> Array:
    """The sum over a row."""
    return jnp.sum(total[0], axis=1, keepdims=True)


def over_groups(rows: int, size: int, body: Callable[[Array | int], None]) -> None:
    """Runs the body for the first row of each group of a block."""
    if rows == size:
        body(0)
        return

    def step(i: Array, _: None) -> None:
        body(multiple(i * size, size))

    lax.fori_loop(0, rows // size, step, None)
