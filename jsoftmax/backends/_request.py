"""A computation on rows of logits, as the choice of its form sees it; and the form chosen for each platform.

A request holds what the choice depends on: the shape, the dtype, the class axes, where the classes lie, the
operations on the logits before, and the use of the result.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
from jax import Array

from jsoftmax import rules
from jsoftmax.backends import _kernels
from jsoftmax.transforms._platforms import MOST_PLAIN, Own
from jsoftmax.transforms._sharding import is_known, on_one_device

# Before jax 0.11.2, XLA on CPU sums classes far apart ten times slower, and converts all of an array of
# bfloat16 to write a slice of it.
IS_OLD_XLA = jax.__version_info__ < (0, 11, 2)
MOST_STRIDE = 2**14 if IS_OLD_XLA else sys.maxsize  # in elements, between neighbouring classes
BLOCK_STRIDE = 2**13  # the same distance in a block of rows that brings such classes closer, at most

What = Literal[
    "state",
    "rest",
    "rows",
    "gradient of rows",
    "gradient of a map",
    "sums",
    "softmax",
    "log_softmax",
    "derivative of a map",
    "gradient with targets",
    "masked entries",
    "masked logits",
    "maximum",
    "largest class",
    "label",
]
UsedFor = Literal["nothing", "differences", "exponentials"]

_REASONS = {
    "by class": "class by class over all rows: the rows are short, or their classes lie far apart",
    "unrolled": "class by class over all rows: in sums of short rows, XLA computes one exponential at a time",
    "beside the label": "one bare sum without the label's term",
    "stored beside the label": "one sum without the label's term, of terms that XLA stores for the gradient",
    "whole": "one bare sum, and a second one where a class leads",
    "blocks": "blocks of {size} classes: only the block with the maximum is read again",
    "row blocks": "in blocks of {size} rows: what XLA stores of these stays in the cache",
    "row blocks, closer": "in blocks of {size} rows, where the classes of a row lie closer in memory",
    "loop": "a loop over blocks of classes, so that XLA stores no terms",
    "stored blocks": "blocks of {size} classes, whose exponentials XLA stores in the result's memory",
    "from the sums": "from the exponentials of the sums",
    "sums apart": "each sum in a pass of its own: two sums over the first axis would take longer in one",
    "one chain": "from the logits in one kernel of XLA's library, which stores no exponentials",
    "stored mask": "the masked logits stored first: XLA's library runs no select",
    "conditional": "in a conditional, so that XLA does not fuse the mask with an exponential",
    "read": "read where it lies",
    "block of the largest": "in the block of {size} classes that has it: XLA's argmax goes class by class",
    "entries first": "after the numbers to be compared: XLA's argmax computes them one by one",
    "one pass": "one pass over the logits: their 16 bits allow it",
    "sums in one pass": "the sums of a row in one pass",
    "one kernel": "one kernel, which reads a row once",
    "gpu kernel": "a Mosaic kernel, which holds a row in shared memory",
    "tpu kernel": "a Mosaic kernel, which holds a row in VMEM",
}


class Form(NamedTuple):
    """A form other than the plain one."""

    name: str
    size: int = 0  # the block size in classes; for "one pass", the number of pieces of a row
    # Whether a later operation uses the exponentials or differences of all classes.
    terms_used_again: bool = False

    @property
    def reason(self) -> str:
        """Why this form was chosen."""
        return _REASONS[self.name].format(size=self.size)


class Plan(NamedTuple):
    """The form for each platform; None for the plain form."""

    cpu: Form | None = None
    gpu: Form | None = None
    tpu: Form | None = None

    def functions(self, named: dict[str, Callable[..., Any]]) -> dict[str, Own]:
        """The function and the reason for each platform, as `by_platform` takes them.

        A form with a size passes it to its function first.
        """
        found: dict[str, Own] = {}
        for platform, form in self._asdict().items():
            if form is not None:
                function = named[form.name]
                found[platform] = (partial(function, form.size) if form.size else function), form.reason
        return found


class Request(NamedTuple):
    """A computation on rows of logits, as `choose` sees it."""

    what: What
    x: Array
    axes: tuple[int, ...]  # the class axes
    sharded: bool = False  # whether the classes also lie on several shards of `jax.shard_map`
    bare: bool = True  # whether there is no mask, no temperature, no soft cap and no further sum
    # What is computed for every class afterwards: nothing, differences as in a log-softmax, or the
    # exponentials again, as in a gradient.
    result_used_for: UsedFor = "nothing"
    for_label: bool = False  # whether only −log p of the label has to be accurate
    with_sums: bool = False  # whether further sums over the row are computed
    kernel: _kernels.Wanted | None = None  # the kernel of this package that computes it, if one does

    @property
    def classes(self) -> int:
        """The number of classes; the shape must be known."""
        return math.prod(self.x.shape[axis] for axis in self.axes)

    @property
    def row_axis(self) -> int | None:
        """The longest axis that is no class axis; for classes far apart, one that can bring them closer."""
        if self.is_strided:
            within = range(self.axes[0] + 1, self.x.ndim)
            return next((axis for axis in within if self.stride_in_block(axis, 2) <= BLOCK_STRIDE), None)
        rows = set(range(self.x.ndim)).difference(self.axes)
        return max(rows, key=lambda axis: self.x.shape[axis], default=None)

    def inner(self, axis: int) -> int:
        """The distance in memory of neighbouring entries along an axis, in elements."""
        return math.prod(self.x.shape[axis + 1 :])

    def stride_in_block(self, axis: int, rows: int) -> int:
        """The distance of neighbouring classes in a block of some rows along an axis within the classes."""
        return self.inner(self.axes[0]) // self.x.shape[axis] * rows

    @property
    def is_large(self) -> bool:
        """Whether the plain form may be slow: the shape is known, and there are many logits."""
        return not self.sharded and is_known(self.x) and self.x.size > MOST_PLAIN

    @property
    def is_wide(self) -> bool:
        """Whether the logits have the dtype in which they are computed."""
        return bool(self.x.dtype == rules.computing_dtype(self.x.dtype))

    @property
    def is_whole_row(self) -> bool:
        """Whether a row has one axis and lies on one device, so that it can be cut into blocks."""
        return not self.sharded and len(self.axes) == 1 and on_one_device(self.x, *self.axes)

    @property
    def is_first(self) -> bool:
        """Whether the class axis is the first, but not the last, of the axes longer than 1, on one device."""
        longer = [axis for axis, length in enumerate(self.x.shape) if length > 1]
        return self.is_whole_row and len(longer) > 1 and (longer[0],) == self.axes

    @property
    def is_strided(self) -> bool:
        """Whether the classes lie far apart in memory, on one device."""
        x, axes = self.x, self.axes
        one_axis = not self.sharded and len(axes) == 1 and on_one_device(x, *range(x.ndim))
        return one_axis and self.inner(axes[0]) > MOST_STRIDE
