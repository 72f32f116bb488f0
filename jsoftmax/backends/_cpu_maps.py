"""The softmax on CPU, in the forms that XLA's library of reductions can run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _by_class, _cpu
from jsoftmax.logits import _strided
from jsoftmax.transforms._autodiff import with_tangent
from jsoftmax.transforms._sharding import is_whole

Axes = tuple[int, ...]

LONGEST_CHAIN = 1024  # classes: of longer rows XLA stores what two sums share


def for_softmax(x: Array, axes: Axes) -> Callable[[Array], Array] | None:
    """The form for the probabilities of long rows; None where the plain one is as fast."""
    is_float32 = x.dtype == rules.computing_dtype(x.dtype)
    if not is_float32 or len(axes) != 1 or not is_whole(x, *axes) or _strided.crosses(x, *axes):
        return None
    classes = x.shape[axes[0]]
    if classes <= LONGEST_CHAIN or x.size < _cpu.LEAST_SIZE:
        return None
    size = _cpu.size_of_blocks(classes)
    return None if size is None else partial(_stored, (size, axes[0]))


def _stored_value(static: tuple[int, int], x: Array) -> Array:
    """XLA finds the maximum, if it is finite in an empty row, and stores exp(u), in one pass."""
    size, axis = static
    top = lax.expand_dims(lax.reduce(x, jnp.finfo(x.dtype).min, lax.max, (axis,)), (axis,))
    rest = _cpu.rest_of_blocks(size, x, top, axis, stored=True)
    return _by_class.exponentials(x, top) / (1 + jnp.maximum(rest, 0))


def _stored_tangent(static: tuple[int, int], arguments: tuple[Array], dx: Array) -> Array:
    return rules.softmax_product(_stored(static, *arguments), dx, static[1])


_stored = with_tangent(_stored_value, _stored_tangent)
