"""Class ids of any type: those outside the classes, reported where the caller asks, and those to ignore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import checkify
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

from jsoftmax._sharding import ids_of_shard, shard_count


class _Reported(Primitive):
    """The identity, with a check in its `call_jaxpr` that only checkify looks into.

    A check on its own is an effect of every program that holds it. For a program with effects JAX takes its
    slow way at each call, ten times the time of a small loss, and `jax.export` cannot serialize it.
    """

    multiple_results = True

    def bind(self, *args: Any, subfuns: Sequence[Any] = (), **params: Any) -> Any:
        """Of checkify, `subfuns` is the check made visible; it takes and gives the errors too."""
        return subfuns[0].call_wrapped(*args) if subfuns else Primitive.bind(self, *args, **params)


_reported: Any = _Reported("class_ids")


def _itself(labels: Any, *, call_jaxpr: Any) -> list[Any]:
    return [labels]


def _batched(labels: Sequence[Any], axes: Sequence[int], *, call_jaxpr: Any) -> tuple[Any, Sequence[int]]:
    of_all = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(call_jaxpr), tuple(axes), list(axes)))(*labels)
    return _reported.bind(*labels, call_jaxpr=of_all), axes


_reported.def_impl(_itself)
_reported.def_abstract_eval(_itself)
mlir.register_lowering(_reported, mlir.lower_fun(_itself, multiple_results=True))
batching.primitive_batchers[_reported] = _batched


def reported_ids(labels: Array, classes: int, names: tuple[str, ...]) -> Array:
    """The class ids as a shard counts them, which has so many of the classes along mesh axes: from 0 up.

    checkify names the first that is bad; anything else takes them as they are, or as −1 if their type is not
    the one that is compared.
    """
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # that holds the number of classes too
    of_all = classes * shard_count(names)
    if labels.size:
        labels = _reported.bind(labels, call_jaxpr=_checked.trace(labels, of_all).jaxpr)[0]
    if labels.dtype != jnp.int32:
        labels = jnp.where((labels >= 0) & (labels < of_all), labels, -1).astype(jnp.int32)
    return ids_of_shard(labels, classes, names)


def is_other(ids: Array, index: Array) -> Array:
    """Whether ids are not this one, whose type may hold fewer or other numbers than theirs."""
    here = index.astype(ids.dtype)
    is_held = (here.astype(index.dtype) == index) & ((here < 0) == (index < 0))
    return (ids != here) | ~is_held


@jax.jit(static_argnums=1)
def _checked(labels: Array, classes: int) -> Array:
    bad = (labels < 0) | (labels >= classes)
    # Sums and minima, which any sharding of the labels keeps.
    row = jnp.zeros(labels.shape, jnp.int32)
    for axis, size in enumerate(labels.shape):
        row = row * size + lax.broadcasted_iota(jnp.int32, labels.shape, axis)
    first = jnp.min(jnp.where(bad, row, labels.size))
    checkify.debug_check(
        ~jnp.any(bad),
        f"jsoftmax: class id {{label}} of row {{row}} is outside [0, {classes})",
        label=jnp.sum(jnp.where(row == first, labels, 0)),
        row=first,
    )
    return labels
