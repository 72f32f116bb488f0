"""Checks of class ids and targets, reported by `checkify`; conversion of class ids to int32; ignored ids."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# In JAX 0.12 this import adds to the key of every program: if it ran within a trace, JAX would compile the
# program that it traces twice.
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from jsoftmax import rules
from jsoftmax.transforms._platforms import is_portable
from jsoftmax.transforms._sharding import ids_of_shard, is_known, shard_count


@functools.cache
def _reported() -> Any:
    """The primitive, created on first use."""

    class Reported(Primitive):
        """Returns its first argument. Its `call_jaxpr` checks all arguments, and only checkify runs it.

        A plain `checkify.debug_check` would be an effect of every program that contains it. JAX calls a
        program with effects by a slow path, ten times the time of a small loss, and cannot export it.
        """

        multiple_results = True

        def bind(self, *args: Any, subfuns: Sequence[Any] = (), **params: Any) -> Any:
            """checkify passes the transformed check as `subfuns`; it takes and returns the errors too."""
            return subfuns[0].call_wrapped(*args) if subfuns else Primitive.bind(self, *args, **params)

    reported: Any = Reported("reported")

    def first(value: Any, *checked: Any, call_jaxpr: Any) -> list[Any]:
        return [value]

    def batched(values: Sequence[Any], axes: Sequence[Any], *, call_jaxpr: Any) -> tuple[Any, Sequence[int]]:
        # The returned value gets the batch axis too if only a checked argument has one.
        size = next(v.shape[axis] for v, axis in zip(values, axes, strict=True) if axis is not None)
        value = values[0] if axes[0] is not None else jnp.broadcast_to(values[0], (size, *values[0].shape))
        value = jnp.moveaxis(value, axes[0] or 0, 0)
        values, axes = (value, *values[1:]), (0, *axes[1:])
        of_all = jax.vmap(jaxpr_as_fun(call_jaxpr), axes, axis_size=size)
        return reported.bind(*values, call_jaxpr=jax.make_jaxpr(of_all)(*values)), [0]

    def derivative(values: Sequence[Any], tangents: Sequence[Any], *, call_jaxpr: Any) -> tuple[Any, Any]:
        return reported.bind(*values, call_jaxpr=call_jaxpr), [tangents[0]]

    reported.def_impl(first)
    reported.def_abstract_eval(first)
    mlir.register_lowering(reported, mlir.lower_fun(first, multiple_results=True))
    batching.primitive_batchers[reported] = batched
    ad.primitive_jvps[reported] = derivative
    return reported


def reported_ids(labels: Array, classes: int, names: tuple[str, ...]) -> Array:
    """The class ids relative to this shard, in int32: its own `classes` have the ids from 0 up.

    `names` are the mesh axes of the shards. checkify reports the first bad id. Without checkify a bad id of
    type int32 stays, and one of another type becomes −1.
    """
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # the number of classes may not fit in fewer bits
    of_all = classes * shard_count(names)
    if labels.size and not is_portable():
        labels = _reported().bind(labels, call_jaxpr=_checked.trace(labels, of_all).jaxpr)[0]
    if labels.dtype != jnp.int32:
        labels = jnp.where((labels >= 0) & (labels < of_all), labels, -1).astype(jnp.int32)
    return ids_of_shard(labels, classes, names)


def are_classes(labels: Array, classes: int, names: tuple[str, ...]) -> Array:
    """Which class ids are in [0, V), with `classes` classes on each shard."""
    wide = labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels
    return (wide >= 0) & (wide < classes * shard_count(names))


def reported_targets(value: Array, targets: Array, axis: int, names: tuple[str, ...]) -> Array:
    """The value, unchanged; checkify reports the first row whose target probabilities are bad.

    Targets are bad if one is below 0, or if they add up to more than 1 by more than roundings explain.
    """
    if is_portable() or not (targets.size and value.size):
        return value
    check = _checked_targets.trace(value, targets, (axis, *names))
    return _reported().bind(value, targets, call_jaxpr=check.jaxpr)[0]


def is_other(ids: Array, index: Array) -> Array:
    """Where ids differ from `index`, which may have another integer type: a bool for each id."""
    here = index.astype(ids.dtype)
    is_held = (here.astype(index.dtype) == index) & ((here < 0) == (index < 0))
    return (ids != here) | ~is_held


@jax.jit(static_argnums=1)
def _checked(labels: Array, classes: int) -> Array:
    message = f"jsoftmax: class id {{number}} of row {{row}} is outside [0, {classes})"
    _check(labels, (labels < 0) | (labels >= classes), message)
    return labels


@jax.jit(static_argnums=2)
def _checked_targets(value: Array, targets: Array, axes: tuple[int | str, ...]) -> Array:
    (axis,), names = rules.split_axes(axes)
    eps = float(jnp.finfo(targets.dtype).eps)
    targets = targets.astype(rules.computing_dtype(targets.dtype))
    least = jnp.min(targets, axis)
    (total,) = rules.across(axes, jnp.sum(targets, axis))
    terms = targets.shape[axis] * shard_count(names)
    most = 1 + 8 * eps + terms * float(jnp.finfo(total.dtype).eps)
    _check(least, least < 0, "jsoftmax: target {number} of row {row} is below 0")
    _check(total, total > most, "jsoftmax: the targets of row {row} add up to {number}, more than 1")
    return value


def _check(numbers: Array, bad: Array, message: str) -> None:
    """A check that reports the first bad number and its row; there is one number per row."""
    # Only sums and minima, which work on any sharding of the rows without moving them.
    row = jnp.zeros(numbers.shape, jnp.int32)
    for axis, size in enumerate(numbers.shape):
        row = row * size + lax.broadcasted_iota(jnp.int32, numbers.shape, axis)
    beyond = min(numbers.size, jnp.iinfo(jnp.int32).max) if is_known(numbers) else numbers.size
    first = jnp.min(jnp.where(bad, row, beyond))
    number = jnp.sum(jnp.where(row == first, numbers, 0))
    from jax.experimental import checkify

    checkify.debug_check(~jnp.any(bad), message, number=number, row=first)
