"""The softmax on CPU, in the forms that XLA's library of reductions can run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _by_class, _cpu
from jsoftmax.logits import _strided
from jsoftmax.transforms._autodiff import with_tangent
from jsoftmax.transforms._sharding import is_known, is_whole

Axes = tuple[int, ...]
Map = Callable[[Array, Array], Array]  # of the logits and of the maximum of every row

LONGEST_CHAIN = 1024  # classes: in longer rows XLA stores what the two sums of the chain share
LONGEST_16_BIT_CHAIN = 8192  # which has one sum


def for_softmax(x: Array, axes: Axes) -> Map | None:
    """The form for the probabilities of such rows; None where computing them from the state is as fast."""
    # XLA stores the exponentials in the memory of the probabilities, if both have one dtype.
    stored = x.dtype == rules.computing_dtype(x.dtype)
    longest = LONGEST_CHAIN if stored else LONGEST_16_BIT_CHAIN
    if 0 < _classes(x, axes) <= longest:
        return partial(_softmax, axes)
    size = _size_of_blocks(x, axes, longest + 1) if stored else None
    return None if size is None else partial(_softmax_in_blocks, size, axes[0])


def _classes(x: Array, axes: Axes) -> int:
    """The classes of rows that lie along memory, if there are enough rows for the library; else 0."""
    takes = is_known(x) and x.size >= _cpu.LEAST_SIZE and x.ndim - 1 in axes
    return math.prod(x.shape[axis] for axis in axes) if takes else 0


def _size_of_blocks(x: Array, axes: Axes, shortest: int = 0) -> int | None:
    """The size of the blocks of a row of one axis, at least as long as `shortest`."""
    if len(axes) != 1 or not is_whole(x, *axes) or x.size < _cpu.LEAST_SIZE or _strided.crosses(x, *axes):
        return None
    classes = x.shape[axes[0]]
    return _cpu.size_of_blocks(classes) if classes >= shortest else None


def _softmax(axes: Axes, x: Array, top: Array) -> Array:
    """``exp(u)/Σ exp(u)``; 0 in an empty row. Ones are summed apart: beside a 1, small terms lose digits."""
    terms = _by_class.exponentials(x, _by_class.tops(x, top)[1])
    if x.dtype.itemsize == 2:
        total = jnp.sum(terms, axes, keepdims=True)
    else:
        ones = jnp.floor(terms)
        rest, ones = (jnp.sum(a, axes, keepdims=True) for a in (terms - ones, ones))
        total = rest + ones
    return terms / (total + 2.0**-60)  # the sum is NaN where the maximum has lost a NaN


def _softmax_in_blocks(size: int, axis: int, x: Array, top: Array) -> Array:
    """``exp(u)/(1 + rest)``; 0 in an empty row."""
    del top
    return _stored((size, axis), x)


def _stored_value(static: tuple[int, int], x: Array) -> Array:
    """XLA finds the maximum, if it is finite in an empty row, and stores exp(u), in one pass."""
    size, axis = static
    top = lax.expand_dims(lax.reduce(x, jnp.finfo(x.dtype).min, lax.max, (axis,)), (axis,))
    rest = _cpu.rest_of_blocks(size, x, top, axis, stored=True)
    return _by_class.exponentials(x, top) / (1 + jnp.maximum(rest, 0))


def _stored_tangent(static: tuple[int, int], arguments: tuple[Array], dx: Array) -> Array:
    return rules.softmax_product(_stored(static, *arguments), dx, static[1])


_stored = with_tangent(_stored_value, _stored_tangent)
