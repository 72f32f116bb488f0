"""Which form of a computation runs on CPU, on a GPU, and on a TPU, and why: the only place that decides.

`choose` reads off a request what a form depends on: the shape, the dtype, the class axes, where the classes
lie, what is done to the logits first, and what follows. The plain form, array operations alone, is right for
every request. A platform has a form of its own only where that saves much time or memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jax import Array

from jsoftmax import rules
from jsoftmax.transforms._platforms import MOST_PLAIN, Own
from jsoftmax.transforms._sharding import is_known, is_whole, spec

# On CPU, in classes.
MOST_UNROLLED = 32  # XLA's library of reductions is slow at shorter rows, and one class leads most of them
LONGEST_BESIDE_LABEL = 512  # one class rarely leads a longer row, and then a bare sum is enough
SHORTEST_IN_BLOCKS = 513  # in a shorter row, reading one block again costs as much as a second pass
LONGEST_WHOLE = 32768  # XLA sums longer rows several times slower, and stores what two sums share
LONGEST_CHAIN = 1024  # XLA stores what the two sums of a longer chain share
LONGEST_16_BIT_CHAIN = 8192  # a chain of 16-bit logits has one sum
BLOCK = 256  # about so many classes are in a block: one block of every row is read twice
LEAST_STRIDE = 2**16  # elements of memory from one class to the next, from which on a row is slow to walk
# On a GPU, XLA makes one kernel of a whole softmax over the last axis, up to this many classes. On a TPU, XLA
# reads the logits once more in that form than in the one for longer rows.
LONGEST_FUSED = 16384

What = Literal["state", "rest", "sums", "softmax", "log_softmax", "derivative of a map", "maximum", "label"]
Feeds = Literal["nothing", "differences", "exponentials"]

_REASONS = {
    "by class": "class by class over all rows: the rows are short, or their classes lie far apart",
    "beside the label": "one bare sum without the label's term",
    "whole": "one bare sum, and a second one where a class leads",
    "blocks": "blocks of {size} classes: only the block with the maximum is read again",
    "loop": "a loop over blocks of classes, of which XLA stores no terms",
    "chain": "one chain, which XLA's library fuses",
    "stored blocks": "one chain, which XLA's library fuses",
    "from the sums": "from the exponentials of the sums",
    "read": "read where it lies",
    "one pass": "one pass over the logits: their 16 bits allow it",
    "fused": "one kernel, which reads a row once",
}


class Form(NamedTuple):
    """A form other than the plain one."""

    name: str
    size: int = 0  # of a block, in classes; of "one pass", the number of pieces of a row
    followed: bool = False  # whether XLA has a second use for what is computed of every class

    @property
    def reason(self) -> str:
        """Why this form was chosen."""
        return _REASONS[self.name].format(size=self.size)


class Plan(NamedTuple):
    """The form for each platform; None for the plain one."""

    cpu: Form | None = None
    gpu: Form | None = None
    tpu: Form | None = None


class Request(NamedTuple):
    """What is to be computed of rows of logits."""

    what: What
    x: Array
    axes: tuple[int, ...]  # of the classes
    sharded: bool = False  # whether the classes also lie on several shards of `jax.shard_map`
    bare: bool = (
        True  # whether the logits alone are read: no mask, no temperature, no soft cap, no further sums
    )
    # What is computed for every class afterwards: nothing, differences as in a log-softmax, or the
    # exponentials again, as in a gradient.
    feeds: Feeds = "nothing"
    for_label: bool = False  # whether only the label's −log p has to be accurate

    @property
    def classes(self) -> int:
        """The number of classes, of a shape that is known."""
        return math.prod(self.x.shape[axis] for axis in self.axes)

    @property
    def is_large(self) -> bool:
        """Whether the plain form may be slow: its shape is known, and it has many logits."""
        return not self.sharded and is_known(self.x) and self.x.size > MOST_PLAIN

    @property
    def is_whole_row(self) -> bool:
        """Whether a row has one axis, and lies on one device: then it may be cut."""
        return not self.sharded and len(self.axes) == 1 and is_whole(self.x, *self.axes)

    @property
    def is_strided(self) -> bool:
        """Whether the classes lie far apart in memory, on one device."""
        x, axes = self.x, self.axes
        one_axis = not self.sharded and len(axes) == 1 and is_whole(x, *range(x.ndim))
        return one_axis and math.prod(x.shape[axes[0] + 1 :]) >= LEAST_STRIDE


def choose(request: Request) -> Plan:
    """The form for each platform."""
    return Plan(_on_cpu(request), *_on_accelerators(request))


def own(form: Form | None, function: Callable[..., Any]) -> Own:
    """A platform's own form as `by_platform` takes it: the function, and why; None for the plain one."""
    return None if form is None else (function, form.reason)


def _on_cpu(request: Request) -> Form | None:
    what = request.what
    if what == "label":
        return Form("read") if request.is_whole_row else None
    if what == "maximum":
        return Form("by class") if request.bare and request.is_strided else None
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
    classes, feeds = request.classes, request.feeds
    if classes <= MOST_UNROLLED or request.is_strided:
        return Form("by class", followed=feeds != "nothing")
    if request.for_label and classes <= LONGEST_BESIDE_LABEL:
        return Form("beside the label")
    if size := block_size(classes):
        return Form("blocks", size, followed=feeds == "exponentials")
    return Form("whole") if classes <= LONGEST_WHOLE else None


def _sums_on_cpu(request: Request) -> Form | None:
    if not (is_known(request.x) and request.x.size):
        return None
    if request.is_strided and request.classes > 1:
        return Form("by class")
    x, axes = request.x, request.axes
    longest = max(axes, key=lambda axis: x.shape[axis], default=0)
    cuttable = bool(axes) and is_whole(x, longest)
    return Form("loop") if cuttable and x.shape[longest] > LONGEST_WHOLE else None


def _map_on_cpu(request: Request) -> Form | None:
    if not request.is_large:
        return None
    x, axes = request.x, request.axes
    if request.what == "softmax" and request.bare:
        # XLA stores the exponentials in the memory of the probabilities, if both have one dtype.
        stored = x.dtype == rules.computing_dtype(x.dtype)
        longest = LONGEST_CHAIN if stored else LONGEST_16_BIT_CHAIN
        if x.ndim - 1 in axes and 0 < request.classes <= longest:
            return Form("chain")
        cuttable = stored and request.is_whole_row and not request.is_strided
        if cuttable and request.classes > longest and (size := block_size(request.classes)):
            return Form("stored blocks", size)
    return Form("from the sums")


def block_size(classes: int) -> int | None:
    """The size of the blocks of a row: equal, near to 256 classes, of whole vectors if possible.

    None for a row that is short, or has no such blocks.
    """
    if classes < SHORTEST_IN_BLOCKS:
        return None
    sizes = [n for n in range(BLOCK // 2, 8193) if classes % n == 0]
    return min(sizes, key=lambda n: (n % 16 > 0, abs(n - BLOCK)), default=None)


def _on_accelerators(request: Request) -> tuple[Form | None, Form | None]:
    x, axes = request.x, request.axes
    # Merging parts of a row rounds, up to 3 ulp over a row: 16-bit logits allow it, float32 ones get two
    # passes. So do classes that a mesh shards: XLA gathers the parts of a row, and reduces plain sums.
    if request.sharded or x.dtype.itemsize != 2 or any(spec(x)[axis] is not None for axis in axes):
        return None, None
    if request.what == "state":
        return Form("one pass", _pieces(x.shape, axes)), Form("one pass", 1)
    if request.what in ("softmax", "log_softmax", "derivative of a map"):
        fuses = axes == (x.ndim - 1,) and x.shape[-1] <= LONGEST_FUSED
        return Form("fused") if fuses else None, None
    return None, None


def _pieces(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """How many pieces a row is cut into, where XLA on GPU would cut it finer, and store the part of each.

    They are equal, of 1024 to 4096 classes; 1 where a row has no such pieces, or needs none.
    """
    classes = shape[axes[0]] if len(axes) == 1 else 0
    if classes <= LONGEST_FUSED:
        return 1
    counts = range(-(-classes // 4096), classes // 1024 + 1)
    return next((count for count in counts if classes % count == 0), 1)
