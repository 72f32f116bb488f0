"""Decides which form of a computation runs on CPU, on a GPU and on a TPU: the only module that does.

A request holds what the choice depends on: the shape, the dtype, the class axes, where the classes lie, the
operations on the logits before, and the use of the result. The plain form, array operations only, is correct
for every request. A platform has its own form only where that saves much time or memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from jax import Array

from jsoftmax import rules
from jsoftmax.transforms._platforms import MOST_PLAIN, Own
from jsoftmax.transforms._sharding import is_known, on_one_device, spec

# Limits on CPU, as numbers of classes. A "bare" sum has no select or comparison among its operations.
MOST_UNROLLED = 32  # XLA's reduction library is slow for shorter rows, and most of them have a leading class
LONGEST_BESIDE_LABEL = 512  # a longer row rarely has a leading class, and then a bare sum is enough
SHORTEST_IN_BLOCKS = 513  # in a shorter row, reading one block again costs as much as a second pass
LONGEST_WHOLE = 32768  # XLA sums longer rows several times slower, and stores what two sums share
LONGEST_CHAIN = 1024  # for longer rows XLA stores what the two sums of the softmax share
BLOCK = 256  # the approximate block size: one block of every row is read twice
LEAST_STRIDE = 2**16  # in elements, between neighbouring classes: from here on, one row at a time is slow
# On a GPU, XLA fuses a softmax over the last axis into one kernel up to this many classes. On a TPU, that
# form reads the logits once more than the form for longer rows.
LONGEST_FUSED = 16384

What = Literal[
    "state",
    "rest",
    "sums",
    "softmax",
    "log_softmax",
    "derivative of a map",
    "gradient with targets",
    "maximum",
    "largest class",
    "label",
]
UsedFor = Literal["nothing", "differences", "exponentials"]

_REASONS = {
    "by class": "class by class over all rows: the rows are short, or their classes lie far apart",
    "beside the label": "one bare sum without the label's term",
    "whole": "one bare sum, and a second one where a class leads",
    "blocks": "blocks of {size} classes: only the block with the maximum is read again",
    "loop": "a loop over blocks of classes, so that XLA stores no terms",
    "stored blocks": "blocks of {size} classes, whose exponentials XLA stores in the result's memory",
    "from the sums": "from the exponentials of the sums",
    "read": "read where it lies",
    "block of the largest": "in the block of {size} classes that has it: XLA's argmax goes class by class",
    "one pass": "one pass over the logits: their 16 bits allow it",
    "sums in one pass": "the sums of a row in one pass",
    "one kernel": "one kernel, which reads a row once",
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

    @property
    def classes(self) -> int:
        """The number of classes; the shape must be known."""
        return math.prod(self.x.shape[axis] for axis in self.axes)

    @property
    def is_large(self) -> bool:
        """Whether the plain form may be slow: the shape is known, and there are many logits."""
        return not self.sharded and is_known(self.x) and self.x.size > MOST_PLAIN

    @property
    def is_whole_row(self) -> bool:
        """Whether a row has one axis and lies on one device, so that it can be cut into blocks."""
        return not self.sharded and len(self.axes) == 1 and on_one_device(self.x, *self.axes)

    @property
    def is_strided(self) -> bool:
        """Whether the classes lie far apart in memory, on one device."""
        x, axes = self.x, self.axes
        one_axis = not self.sharded and len(axes) == 1 and on_one_device(x, *range(x.ndim))
        return one_axis and math.prod(x.shape[axes[0] + 1 :]) >= LEAST_STRIDE


def choose(request: Request) -> Plan:
    """The form for each platform."""
    return Plan(_on_cpu(request), *_on_accelerators(request))


def _on_cpu(request: Request) -> Form | None:
    what = request.what
    if what == "label":
        return Form("read") if request.is_whole_row else None
    if what == "maximum":
        return Form("by class") if request.bare and request.is_strided else None
    if what == "largest class":
        size = block_size(request.classes) if request.is_whole_row else None
        return None if size is None else Form("block of the largest", size)
    if what == "sums":
        return _sums_on_cpu(request)
    if what == "rest":
        return _rest_on_cpu(request)
    if what in ("softmax", "log_softmax"):
        return _map_on_cpu(request)
    return None


def _rest_on_cpu(request: Request) -> Form | None:
    if not (request.bare and request.is_large and request.is_whole_row):
        return None
    classes, result_used_for = request.classes, request.result_used_for
    if classes <= MOST_UNROLLED or request.is_strided:
        return Form("by class", terms_used_again=result_used_for != "nothing")
    if request.for_label and classes <= LONGEST_BESIDE_LABEL:
        return Form("beside the label")
    if size := block_size(classes):
        return Form("blocks", size, terms_used_again=result_used_for == "exponentials")
    return Form("whole") if classes <= LONGEST_WHOLE else None


def _sums_on_cpu(request: Request) -> Form | None:
    if not (is_known(request.x) and request.x.size):
        return None
    if request.is_strided and request.classes > 1:
        return Form("by class")
    x, axes = request.x, request.axes
    longest = max(axes, key=lambda axis: x.shape[axis], default=0)
    cuttable = bool(axes) and on_one_device(x, longest)
    return Form("loop") if cuttable and x.shape[longest] > LONGEST_WHOLE else None


def _map_on_cpu(request: Request) -> Form | None:
    if not request.is_large:
        return None
    if request.what == "log_softmax":
        return Form("from the sums")
    x, classes = request.x, request.classes
    # XLA stores the exponentials in the memory of the probabilities if both have one dtype.
    is_stored = request.bare and x.dtype == rules.computing_dtype(x.dtype)
    if not is_stored or not request.is_whole_row:
        return None
    if x.ndim - 1 not in request.axes:
        return Form("from the sums") if request.is_strided or classes <= MOST_UNROLLED else None
    if classes <= LONGEST_CHAIN:
        return None  # the plain form is one chain, which XLA's library fuses
    size = block_size(classes)
    return Form("from the sums") if size is None else Form("stored blocks", size)


def block_size(classes: int) -> int | None:
    """The block size of a row: a divisor of its length near 256, a multiple of 16 if possible.

    None if the row is short or has no such divisor.
    """
    if classes < SHORTEST_IN_BLOCKS:
        return None
    sizes = [n for n in range(BLOCK // 2, 8193) if classes % n == 0]
    return min(sizes, key=lambda n: (n % 16 > 0, abs(n - BLOCK)), default=None)


def _on_accelerators(request: Request) -> tuple[Form | None, Form | None]:
    """The forms for a GPU and for a TPU."""
    x, axes, what = request.x, request.axes, request.what
    if request.sharded:
        return None, None
    # Merging parts of a row loses up to 3 ulp over a row. Only 16-bit logits allow that: float32 logits take
    # two passes. So do classes that a mesh shards: XLA would gather the parts of a row, but reduces sums.
    one_pass = x.dtype.itemsize == 2 and all(spec(x)[axis] is None for axis in axes)
    is_fused = one_pass and axes == (x.ndim - 1,) and x.shape[-1] <= LONGEST_FUSED
    if what == "state" and one_pass:
        return Form("one pass", _pieces(x.shape, axes)), Form("one pass", 1)
    if what == "softmax" and one_pass:
        return Form("one kernel" if is_fused else "from the sums"), Form("from the sums")
    if what == "log_softmax" and is_fused:
        return Form("one kernel"), None
    if what == "gradient with targets":
        return Form("sums in one pass"), Form("sums in one pass")
    if what == "derivative of a map":
        return Form("one kernel" if is_fused else "sums in one pass"), Form("sums in one pass")
    return None, None


def _pieces(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """The number of pieces of a row on GPU. XLA itself would cut finer, and store the part of each piece.

    The pieces are equal, of 1024 to 4096 classes; 1 if a row has no such pieces or is short.
    """
    classes = shape[axes[0]] if len(axes) == 1 else 0
    if classes <= LONGEST_FUSED:
        return 1
    counts = range(-(-classes // 4096), classes // 1024 + 1)
    return next((count for count in counts if classes % count == 0), 1)
