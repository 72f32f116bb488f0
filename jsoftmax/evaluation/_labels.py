"""Labels and weights of rows: which rows count, with which weight, and which class ids are valid."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.border import _given
from jsoftmax.border._call import Call
from jsoftmax.evaluation._state import State
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


def of_each_row(call: Call, name: str, rows: tuple[int, ...]) -> Array | None:
    """An argument as floats, one per row; None if not given."""
    if call.arguments[name] is None:
        return None
    return _one_per_row(call, name, call.floats(name), rows)


def _one_per_row(call: Call, name: str, array: Array, rows: tuple[int, ...]) -> Array:
    if array.shape != rows:
        problem = f"{name} of shape {array.shape} for rows of shape {rows}"
        raise call.error(ValueError, problem, f"give {name} the shape {rows}")
    return array


def _needed(call: Call, name: str, measured: str, state: State) -> bool:
    """Whether the state needs an argument; raises if it does and there is none, or the reverse."""
    needs = getattr(state, measured) is not None
    if needs and call.arguments[name] is None:
        raise call.error(ValueError, f"the state has {measured}", f"give {name}=")
    if not needs and call.arguments[name] is not None:
        argument = "num_groups" if measured == "groups" else measured
        remedy = f"begin with evaluation.empty({argument}=...)"
        raise call.error(ValueError, f"the state has no {measured}", remedy)
    return needs


def group_ids(call: Call, rows: tuple[int, ...], state: State) -> Array | None:
    """The group of each row as int32, or −1; None if the state has no groups."""
    if not _needed(call, "groups", "groups", state) or state.groups is None:
        return None
    wide = _given.too_wide(call.arguments["groups"])
    groups = call.array("groups") if wide is None else jnp.asarray(_given.narrowed(wide, None))
    if not jnp.issubdtype(groups.dtype, jnp.integer):
        problem = f"groups have dtype {groups.dtype}"
        raise call.error(TypeError, problem, "give each row the number of its group, from 0, as an integer")
    _one_per_row(call, "groups", groups, rows)
    size = state.groups.weight.high.shape[-1]
    wider = groups.astype(jnp.int32) if groups.dtype.itemsize < 4 else groups
    return jnp.where((wider >= 0) & (wider < size), wider, -1).astype(jnp.int32)


def nan_in_bad_groups(nll: Array, groups: Array | None, counted: Array | None) -> Array:
    """The losses; NaN in a row that counts and whose group does not exist."""
    if groups is None:
        return nll
    return rules.nan_where(groups < 0 if counted is None else (groups < 0) & counted, nll)


def draw_key(call: Call, state: State) -> Array | None:
    """The random key of a call; None if the state has no replicates."""
    return call.key("key") if _needed(call, "key", "replicates", state) else None


def of_rows(
    ids: Array,
    weights: Array | None,
    ignored: Array | None,
    classes: int | None,
    axis: int | None = None,
    where: Array | None = None,
    present: Array | None = None,
) -> Labels:
    """The `Labels` of rows, without those that `ignored`, `where`, `present` or a weight of 0 excludes.

    `ids` have length 1 along `axis`, if there is one.
    """
    counted = counted_rows(ids, ignored, where, () if axis is None else (axis,))
    if present is not None:
        present = present.reshape(ids.shape)
        counted = present if counted is None else counted & present
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
