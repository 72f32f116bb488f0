"""Sums in float64 of what is shorter, on CPU, where they cost next to nothing.

A log-sum-exp needs neither the maximum nor a rest then: there are 29 more bits than in a float32, and a
range of exp(±700). Float64 need not be enabled for it. But a number written among these operations JAX would
take for a float32 when it traces them again, so there is none.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import _across, _cpu, _reading
from jsoftmax._sharding import is_known

LONGEST_ROW = 12  # that costs about what `jax.nn.logsumexp` does


def serves(dtype: jnp.dtype) -> bool:
    return dtype.itemsize < 8


def pays(x: Array, axis: int) -> bool:
    """Whether it is as fast as sums in float32, about the maximum or not."""
    longest = LONGEST_ROW if axis == x.ndim - 1 else _cpu.LONGEST_COLUMNS
    return serves(x.dtype) and is_known(x) and (x.shape[axis] <= longest or _across.crosses(x, axis))


def sum_of(terms: Array, axes: tuple[int, ...]) -> Array:
    """The sum, rounded once."""
    with jax.enable_x64(True):
        return jnp.sum(terms.astype(jnp.float64), axes, keepdims=True).astype(terms.dtype)


def log_sum_exp(x: Array, axes: tuple[int, ...]) -> Array:
    """``log Σ exp(x)`` in float32: NaN or infinite where the sum leaves the range."""
    with jax.enable_x64(True):
        return lax.log(_sum_of_exponentials(x, axes)).astype(jnp.float32)


def _sum_of_exponentials(x: Array, axes: tuple[int, ...]) -> Array:
    (axis, *others), length = axes, x.shape[axes[0]]
    if not others and length > _cpu.LONGEST_COLUMNS and _across.crosses(x, axis):
        return _across.sum_of_exponentials(x, axis)
    if others or axis == x.ndim - 1 or length > _cpu.LONGEST_COLUMNS:
        return jnp.sum(lax.exp(x.astype(jnp.float64)), axes, keepdims=True)
    # Class by class over all rows at once: as one sum, XLA reads across the rows.
    columns = (_reading.part(x, i, i + 1, axis) for i in range(length))
    total, *terms = (lax.exp(column.astype(jnp.float64)) for column in columns)
    for term in terms:
        total = total + term
    return total


def is_right(values: Array, classes: int) -> Array:
    """Where they are, to an ulp: each exponential is off by 1.8 ulp of float64, each addition by a half."""
    return jnp.isfinite(values) & (jnp.abs(values) >= (classes + 4) * 2.0**-28)
