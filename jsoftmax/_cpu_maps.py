"""Maps of short rows on CPU: one chain of what XLA's library of reductions takes there."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array

from jsoftmax import _cpu, _float64, rules
from jsoftmax._sharding import is_known


def fuses(x: Array, axes: tuple[int, ...], shortest: int) -> bool:
    """Whether XLA's library makes one pass of a whole map, row by row, that is faster than several."""
    return (
        x.dtype == rules.computing_dtype(x.dtype)
        and is_known(x)
        and x.size >= _cpu.LEAST_SIZE
        and x.ndim - 1 in axes
        and shortest <= math.prod(x.shape[axis] for axis in axes) <= 8192
    )


def softmax(x: Array, top: Array, axes: tuple[int, ...]) -> Array:
    """``exp(u)/Σ exp(u)``; 0 in an empty row. In a plain sum, the maximum's 1 would swamp the others."""
    terms = _cpu.exponentials(x, _cpu.tops(x, top)[1])
    if _float64.serves(x.dtype):
        total = _float64.sum_of(terms, axes)
    else:
        ones = jnp.floor(terms)
        rest, ones = (jnp.sum(a, axes, keepdims=True) for a in (terms - ones, ones))
        total = rest + ones
    return terms / (total + 2.0**-60)  # a maximum may take a NaN for the other number


def log_softmax(x: Array, top: Array, axes: tuple[int, ...]) -> Array:
    """``u − log1p(rest)``; −inf in an empty row. `rules.log1p` would break the chain."""
    top = _cpu.tops(x, top)[1]
    u = rules.rounded(x, top) - top
    half = jnp.exp(u * 0.5)
    ones = jnp.floor(half)  # at the maximum, 0 elsewhere
    rest, ones = (jnp.sum(a, axes, keepdims=True) for a in (_cpu.scaled(half - ones), ones))
    return u - jnp.log1p(rest / _cpu.SCALE + (jnp.maximum(ones, 0.5) - 1))  # a NaN is in `rest` anyway
