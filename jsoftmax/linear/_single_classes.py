"""Reads some of the classes of an array, and adds to them; their ids are ascending."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from jsoftmax.transforms._platforms import by_platform
from jsoftmax.transforms._sharding import on_one_device

Form = Callable[..., Any]
_ASCENDING: dict[str, Any] = {"unique_indices": True, "indices_are_sorted": True}


def taken(array: Array | None, ids: Array, axis: int) -> Any:
    """The entries with these ids along an axis; an id past the end is clipped."""
    if array is None:
        return None

    def of_slices(array: Array, ids: Array) -> Array:
        return array.at[_along(axis, ids)].get(mode="clip", indices_are_sorted=True)

    return _faster("the taken classes", array, axis, of_slices, columns_of)(array, ids)


def columns_of(array: Array, ids: Array) -> Array:
    """The columns with these ids, entry by entry; an id past the end is clipped."""
    return array.at[_entries(array, ids)].get(mode="clip")


def added(array: Array | None, part: Array | None, ids: Array, axis: int) -> Array | None:
    """The array with `part` added to the entries with these ids along an axis, except one past the end."""
    if array is None or part is None:
        return None

    def to_slices(array: Array, part: Array, ids: Array) -> Array:
        return array.at[_along(axis, ids)].add(part, mode="drop", **_ASCENDING)

    def to_entries(array: Array, part: Array, ids: Array) -> Array:
        return array.at[_entries(array, ids)].add(part, mode="drop", **_ASCENDING)

    return _faster("the sums of the taken classes", array, axis, to_slices, to_entries)(array, part, ids)


def _faster(what: str, array: Array, axis: int, of_slices: Form, of_entries: Form) -> Form:
    """The faster of two functions on each platform."""
    if not axis or len(array) == 1 or not on_one_device(array, 0, 1):
        return of_slices
    own = of_entries, "entry by entry: for slices, XLA would transpose the array"
    return partial(by_platform, what, plain=of_slices, cpu=own, gpu=own)


def _along(axis: int, ids: Array) -> tuple[Any, ...]:
    return (slice(None),) * axis + (ids,)


def _entries(array: Array, ids: Array) -> tuple[Array, Array]:
    return jnp.arange(len(array))[:, None], ids
