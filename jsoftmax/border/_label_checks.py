"""Bad class ids and targets, reported where the caller asks; class ids of any type, and those to ignore."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.transforms._platforms import is_portable
from jsoftmax.transforms._sharding import ids_of_shard, shard_count


@functools.cache
def _reported() -> Any:
    """The primitive. Its imports would double the time of importing this package."""
    from jax.extend.core import Primitive, jaxpr_as_fun
    from jax.interpreters import ad, batching, mlir

    class Reported(Primitive):
        """Its first argument, with a check of all in its `call_jaxpr` that only checkify looks into.

        A check on its own is an effect of every program that holds it. For a program with effects JAX takes
        its slow way at each call, ten times the time of a small loss, and `jax.export` cannot serialize it.
        """

        multiple_results = True

        def bind(self, *args: Any, subfuns: Sequence[Any] = (), **params: Any) -> Any:
            """Of checkify, `subfuns` is the check made visible; it takes and gives the errors too."""
            return subfuns[0].call_wrapped(*args) if subfuns else Primitive.bind(self, *args, **params)

    reported: Any = Reported("reported")

    def first(value: Any, *checked: Any, call_jaxpr: Any) -> list[Any]:
        return [value]

    def batched(values: Sequence[Any], axes: Sequence[Any], *, call_jaxpr: Any) -> tuple[Any, Sequence[int]]:
        # What is returned has the batch axis too, where only what is checked has one.
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
    """The class ids as a shard counts them, which has so many of the classes along mesh axes: from 0 up.

    checkify names the first that is bad; anything else takes them as they are, or as −1 if their type is not
    the one that is compared.
    """
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # that holds the number of classes too
    of_all = classes * shard_count(names)
    if labels.size and not is_portable():
        labels = _reported().bind(labels, call_jaxpr=_checked.trace(labels, of_all).jaxpr)[0]
    if labels.dtype != jnp.int32:
        labels = jnp.where((labels >= 0) & (labels < of_all), labels, -1).astype(jnp.int32)
    return ids_of_shard(labels, classes, names)


def are_classes(labels: Array, classes: int, names: tuple[str, ...]) -> Array:
    """Which class ids are in [0, V), of so many classes on each shard."""
    wide = labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels
    return (wide >= 0) & (wide < classes * shard_count(names))


def reported_targets(value: Array, targets: Array, axis: int, names: tuple[str, ...]) -> Array:
    """A value found with target probabilities, as it is; checkify names the first row whose targets are bad.

    They are where one is below 0, or where they add up to more than 1 and what roundings may add.
    """
    if is_portable() or not (targets.size and value.size):
        return value
    check = _checked_targets.trace(value, targets, (axis, *names))
    return _reported().bind(value, targets, call_jaxpr=check.jaxpr)[0]


def is_other(ids: Array, index: Array) -> Array:
    """Whether ids are not this one, whose type may hold fewer or other numbers than theirs."""
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
    """A check that names the first of some numbers, one a row, that is bad."""
    # Sums and minima, which any sharding of the rows keeps.
    row = jnp.zeros(numbers.shape, jnp.int32)
    for axis, size in enumerate(numbers.shape):
        row = row * size + lax.broadcasted_iota(jnp.int32, numbers.shape, axis)
    first = jnp.min(jnp.where(bad, row, numbers.size))
    number = jnp.sum(jnp.where(row == first, numbers, 0))
    from jax.experimental import checkify

    checkify.debug_check(~jnp.any(bad), message, number=number, row=first)
