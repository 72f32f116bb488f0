"""The arguments of a call with a batch of rows, checked.

Eager batches are filled up to a few sizes, so that batches of many lengths share a few compiled programs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jsoftmax.border._call import Call
from jsoftmax.evaluation import _labels
from jsoftmax.evaluation._state import State
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling

SMALLEST = 16  # rows
STEPS = 4  # sizes per octave
LARGEST = 2**24  # logits; a larger batch takes about as long to run as to compile


class Batch(NamedTuple):
    """The arguments of a call. Labels that are class ids have length 1 on the class axis."""

    x: Array
    labels: Array
    scaling: Scaling
    weights: Array | None
    ignored: Array | None
    groups: Array | None = None
    key: Array | None = None
    present: Any = None  # False in the rows that fill up the batch; None if there are none


def of_call(call: Call, state: State | None, or_targets: bool = False) -> tuple[int, Batch]:
    """The class axis, and the arguments of a call; filled up, with the rows on one axis, where `applies`."""
    x = call.floats("logits")
    axis = _labels.class_axis(call, x)
    rows = tuple(n for i, n in enumerate(x.shape) if i != axis)
    labels = call.labels(x.shape, (axis,)) if or_targets else call.class_ids(x.shape, (axis,))
    batch = Batch(
        x,
        labels,
        _scaling.of_call(call, x, (axis,)),
        _labels.of_each_row(call, "weights", rows),
        call.ignore_index(labels),
        None if state is None else _labels.group_ids(call, rows, state),
        None if state is None else _labels.draw_key(call, state),
    )
    if not applies(jax.tree.leaves((state, batch)), x, axis):
        return axis, batch

    where, temperature, soft_cap, _ = batch.scaling
    return 1, Batch(
        filled(x, rows, 0),
        filled(labels, rows, 0),
        Scaling(
            *(filled_option(*a) for a in ((where, rows, True), (temperature, rows, 1), (soft_cap, rows, 1)))
        ),
        filled(batch.weights, rows, 0),
        batch.ignored,
        filled(batch.groups, rows, 0),
        batch.key,
        np.arange(size_of(math.prod(rows))) < math.prod(rows),
    )


def size_of(rows: int) -> int:
    """The number of rows after filling: at most a quarter more, beyond `SMALLEST` rows."""
    if rows <= SMALLEST:
        return SMALLEST
    step = 1 << ((rows - 1).bit_length() - STEPS.bit_length())
    return -(-rows // step) * step


def applies(arrays: Sequence[Any], logits: Array, axis: int) -> bool:
    """Whether to fill this call: eager, on one device, with the classes last, and not too large."""
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        return False
    is_on_one = all(len(array.devices()) == 1 for array in arrays if isinstance(array, Array))
    return is_on_one and axis == logits.ndim - 1 and 0 < logits.size <= LARGEST


def filled_option(array: Array | None, leading: tuple[int, ...], fill: Any) -> Any:
    """As `filled`, for an array that may be the same for all rows, and then has length 1 along them."""
    if array is None:
        return None
    if all(n == 1 for n in array.shape[: len(leading)]):
        return array.reshape(1, *array.shape[len(leading) :])
    return filled(jnp.broadcast_to(array, (*leading, *array.shape[len(leading) :])), leading, fill)


def filled(array: Array | None, leading: tuple[int, ...], fill: Any) -> Any:
    """An array [*leading, …] with its rows on one axis, filled up to `size_of` rows."""
    if array is None:
        return None
    rows, rest = math.prod(leading), array.shape[len(leading) :]
    (device,) = array.devices()
    on_host = device.platform == "cpu"
    xp: Any = np if on_host else jnp  # NumPy reads an array on CPU in place, and compiles nothing
    more = size_of(rows) - rows
    if not more and array.ndim == 1 + len(rest):
        return array
    found = xp.asarray(array).reshape(rows, *rest)
    if more:
        found = xp.concatenate([found, xp.full((more, *rest), fill, found.dtype)])
    return jax.device_put(found, device) if on_host and array.committed else found
