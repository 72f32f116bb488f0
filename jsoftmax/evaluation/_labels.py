"""Labels and weights of rows: which rows count, with which weight, and which class ids are valid."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.border._call import Call
from jsoftmax.rows._loss_terms import counted_rows


class Labels(NamedTuple):
    """Class ids: −1 for an invalid id, 0 in a row that does not count.

    A weight is 0 in a row that does not count and NaN if it is below 0; `weights` is None if none are given.
    `counted` is None if every row counts.
    """

    ids: Array
    weights: Array | None
    counted: Array | None


def class_axis(call: Call, x: Array) -> int:
    """The class axis of the call, which must be a single one."""
    axes = call.axes(x.shape)
    if len(axes) != 1:
        problem = f"axis {call.arguments['axis']!r} names {len(axes)} axes"
        raise call.error(ValueError, problem, "reshape the logits to one class axis, and name it")
    return axes[0]


def of_each_row(call: Call, name: str) -> Array | None:
    """An argument as floats in the shape of the labels; None if not given."""
    if call.arguments[name] is None:
        return None
    array, rows = call.floats(name), jnp.shape(call.arguments["labels"])
    if array.shape != rows:
        problem = f"{name} of shape {array.shape} for rows of shape {rows}"
        raise call.error(ValueError, problem, f"give {name} the shape {rows}")
    return array


def row_weights(call: Call) -> Array | None:
    """The weights of the rows; None if not given."""
    return of_each_row(call, "weights")


def of_rows(
    ids: Array,
    weights: Array | None,
    ignored: Array | None,
    classes: int | None,
    axis: int | None = None,
    where: Array | None = None,
) -> Labels:
    """The `Labels` of rows, without those that `ignored`, `where` or a weight of 0 excludes.

    `ids` have length 1 along `axis`, if there is one.
    """
    counted = counted_rows(ids, ignored, where, () if axis is None else (axis,))
    if counted is not None:
        counted = counted & jnp.ones_like(ids, bool)
    if ids.dtype.itemsize < 4:
        ids = ids.astype(jnp.int32)  # the number of classes may not fit in fewer bits
    if weights is not None:
        weights = weights if axis is None else jnp.expand_dims(weights, axis)
        weights = rules.nan_where(~(weights >= 0), weights)
        weights = weights if counted is None else jnp.where(counted, weights, 0)
        counted = weights != 0
    if counted is not None:
        ids = jnp.where(counted, ids, 0)
    valid = ids >= 0 if classes is None else (ids >= 0) & (ids < classes)
    return Labels(jnp.where(valid, jnp.where(valid, ids, 0).astype(jnp.int32), -1), weights, counted)
