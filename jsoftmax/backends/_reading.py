"""Reads a few of the logits on CPU, without converting or storing the others; and finds the label."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.transforms._platforms import is_plain


def picked(x: Array, index: Array, axis: int) -> Array:
    """The entries at these indices along an axis, as `jnp.take_along_axis` returns them."""

    def take(x: Array, index: Array) -> Array:
        return jnp.take_along_axis(x, index, axis, mode="clip")

    return _read(take, x, index)


def part(x: Array, start: int, end: int, axis: int) -> Array:
    """The entries from `start` to before `end` along an axis."""
    if end - start == x.shape[axis]:
        return x
    return _read(partial(lax.slice_in_dim, start_index=start, limit_index=end, axis=axis), x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _read(read: Callable[..., Array], x: Array, *where: Array) -> Array:
    """``read(x, *where)``, for 16-bit x through integers: XLA would otherwise convert and store all of x."""
    if x.dtype.itemsize != 2 or is_plain():
        return read(x, *where)
    return lax.bitcast_convert_type(read(lax.bitcast_convert_type(x, jnp.uint16), *where), x.dtype)


@_read.defjvp
def _read_jvp(read: Callable[..., Array], primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _read(read, *primals), read(tangents[0], *primals[1:])


def is_label(labels: Array, axis: int, classes: int) -> Array:
    """Where a class is the label of its row, by a comparison of indices, without a gather or a scatter."""
    shape = [1] * labels.ndim
    shape[axis] = classes
    return lax.broadcasted_iota(jnp.int32, shape, axis) == labels
