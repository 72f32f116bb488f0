"""Maps on CPU, in the forms that XLA's library of reductions takes there."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import _across, _cpu, _float64, rules
from jsoftmax._autodiff import with_tangent
from jsoftmax._sharding import is_known, is_whole

Axes = tuple[int, ...]
Map = Callable[[Array, Array], Array]  # of the logits and of the maximum of every row

LONGEST_CHAIN = 8192  # of classes; of longer rows XLA would store what the chain is made of
LEAST_LOG_CHAIN = 2**22  # logits: fewer stay in a cache, and are read twice in less time than two sums take


def for_softmax(x: Array, axes: Axes) -> Map | None:
    """How to find the probabilities of rows like these; None where they are as well made of their state."""
    classes = _classes(x, axes)
    if 0 < classes <= LONGEST_CHAIN:
        return partial(_softmax, axes)
    # What is stored, where the probabilities will be, has their dtype.
    stored = x.dtype == rules.computing_dtype(x.dtype)
    size = _size_of_blocks(x, axes, LONGEST_CHAIN + 1) if stored else None
    return None if size is None else partial(_softmax_in_blocks, size, axes[0])


def for_log_softmax(x: Array, axes: Axes) -> Map | None:
    """The same for their logarithms."""
    classes = _classes(x, axes)
    size = _size_of_blocks(x, axes)
    if size is not None:
        return partial(_log_softmax_in_blocks, size, axes[0])
    pays = _cpu.LONGEST_COLUMNS < classes <= LONGEST_CHAIN and x.size >= LEAST_LOG_CHAIN
    return partial(_log_softmax, axes) if pays else None


def _classes(x: Array, axes: Axes) -> int:
    """Of rows that lie along memory, if there are enough of them for XLA's library; else 0."""
    takes = is_known(x) and x.size >= _cpu.LEAST_SIZE and x.ndim - 1 in axes
    return math.prod(x.shape[axis] for axis in axes) if takes else 0


def _size_of_blocks(x: Array, axes: Axes, shortest: int = 0) -> int | None:
    """If the rows are of one axis, and as long as the shortest."""
    if len(axes) != 1 or not is_whole(x, *axes) or x.size < _cpu.LEAST_SIZE or _across.crosses(x, *axes):
        return None
    classes = x.shape[axes[0]]
    return _cpu.size_of_blocks(classes) if classes >= shortest else None


def _softmax(axes: Axes, x: Array, top: Array) -> Array:
    """``exp(u)/Σ exp(u)``; 0 in an empty row. In a plain sum, the maximum's 1 would swamp the others."""
    terms = _cpu.exponentials(x, _cpu.tops(x, top)[1])
    if x.dtype.itemsize == 2:
        total = jnp.sum(terms, axes, keepdims=True)
    elif _float64.serves(x.dtype):
        total = _float64.sum_of(terms, axes)
    else:
        ones = jnp.floor(terms)
        rest, ones = (jnp.sum(a, axes, keepdims=True) for a in (terms - ones, ones))
        total = rest + ones
    return terms / (total + 2.0**-60)  # a maximum may take a NaN for the other number


def _softmax_in_blocks(size: int, axis: int, x: Array, top: Array) -> Array:
    """``exp(u)/(1 + rest)``; 0 in an empty row."""
    del top
    return _stored((size, axis), x)


def _stored_value(static: tuple[int, int], x: Array) -> Array:
    """XLA finds the maximum, if it is finite in an empty row, and stores exp(u), in one pass."""
    size, axis = static
    top = lax.expand_dims(lax.reduce(x, jnp.finfo(x.dtype).min, lax.max, (axis,)), (axis,))
    rest = _cpu.rest_of_blocks(size, x, top, axis, stored=True)
    return _cpu.exponentials(x, top) / (1 + jnp.maximum(rest, 0))


def _stored_tangent(static: tuple[int, int], arguments: tuple[Array], dx: Array) -> Array:
    return rules.softmax_product(_stored(static, *arguments), dx, static[1])


_stored = with_tangent(_stored_value, _stored_tangent)


def _log_softmax(axes: Axes, x: Array, top: Array) -> Array:
    """``u − log1p(rest)``; −inf in an empty row. `rules.log1p` would break the chain."""
    top = _cpu.tops(x, top)[1]
    u = rules.rounded(x.astype(top.dtype), top) - top
    half = jnp.exp(u * 0.5)
    ones = jnp.floor(half)  # at the maximum, 0 elsewhere
    rest, ones = (jnp.sum(a, axes, keepdims=True) for a in (rules.scaled(half - ones), ones))
    return u - jnp.log1p(rest / rules.SCALE + (jnp.maximum(ones, 0.5) - 1))  # a NaN is in `rest` anyway


def _log_softmax_in_blocks(size: int, axis: int, x: Array, top: Array) -> Array:
    """The same; nothing is stored."""
    rest = _cpu.rest(_cpu.Form("blocks", size), x, top, axis)
    top = _cpu.tops(x, top)[1]
    return (rules.rounded(x.astype(top.dtype), top) - top) - rules.log1p(jnp.maximum(rest, 0))
