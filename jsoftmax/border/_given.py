"""Checks of argument values before tracing: option ranges, integers beyond 32 bits, known numbers."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NO_CLASS, IGNORED = -1, -2  # `narrowed` replaces ids that do not fit in 32 bits by one of these
RANGES = {
    "temperature": "write a finite number, not 0",
    "soft_cap": "write a number above 0",
    "label_smoothing": "write a number from 0 to 1",
    "z_loss": "write a number from 0 up",
    "alpha": "write a finite number above 1; at 1, the map is softmax and the loss cross_entropy",
    "gamma": "write a finite number from 0 up",
    "epsilon": "write a finite number",
    "pos_weight": "write a finite number from 0 up",
    "beta": "write a number between 0 and 1, excluding both",
    "top_k": "write a number from 1 up, or leave it out to keep all",
    "top_p": "write a number from 0 to 1",
    "min_p": "write a number from 0 to 1",
}
LEAST = {"top_k": 1.0}
MOST = {"label_smoothing": 1.0, "top_p": 1.0, "min_p": 1.0}


def holds(dtype: Any, number: float) -> bool:
    """Whether a float type can represent this number, which may be NaN."""
    return bool(np.array_equal(np.asarray(number, dtype).astype(np.float32), number, equal_nan=True))


@functools.cache
def _normal(dtype: Any) -> tuple[float, float]:
    """The smallest and the largest normal number of a float type."""
    limits = jnp.finfo(dtype)
    return float(limits.tiny), float(limits.max)


def within(name: str, number: Any, dtype: Any) -> Any:
    """As `in_range`, for a Python number as the float type holds it."""
    return in_range(name, as_held(number, dtype) if isinstance(number, (int, float)) else number, dtype)


def in_range(name: str, number: Any, dtype: Any) -> Any:
    """Whether a number, or each entry of an array, is in the range of the option `name`, in a float type."""
    tiny, largest = _normal(dtype)
    if name == "temperature":
        return (abs(number) >= tiny) & (abs(number) <= largest)
    if name == "alpha":
        return (number >= 1 + float(jnp.finfo(dtype).eps)) & (number <= largest)
    if name == "beta":
        return (number > 0) & (number < 1)
    if name == "epsilon":
        return abs(number) <= largest
    least = tiny if name == "soft_cap" else LEAST.get(name, 0.0)
    return (number >= least) & (number <= MOST.get(name, largest))


def as_held(number: float, dtype: Any) -> float:
    """A number, rounded to a float type; infinite beyond its range."""
    try:
        wide = float(number)
    except OverflowError:  # an integer of more than 1024 bits
        return math.inf if number > 0 else -math.inf
    with np.errstate(over="ignore"):
        return float(np.float64(wide).astype(dtype))


def known_number(value: Any) -> float | None:
    """The value of a single number, if it is known at the call; None for an array and for a traced number."""
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, jax.core.Tracer) or not isinstance(value, (np.generic, np.ndarray, jax.Array)):
        return None
    if value.ndim or (isinstance(value, jax.Array) and not value.is_fully_addressable):
        return None
    is_real = value.dtype.kind in "iuf" or jnp.issubdtype(
        value.dtype, jnp.floating
    )  # also of 16 bits and less
    return float(np.asarray(value).astype(np.float64)) if is_real else None


def too_wide(value: Any) -> np.ndarray | None:
    """Integers that JAX would truncate to 32 bits, as a NumPy array; None for anything else."""
    if isinstance(value, jax.Array) or hasattr(value, "__jax_array__"):
        return None
    if isinstance(value, (list, tuple)):
        is_host = all(isinstance(a, (int, np.integer, np.ndarray)) for a in jax.tree.leaves(value))
    else:
        is_host = isinstance(value, int) or hasattr(value, "__array__")
    try:
        array = np.asarray(value) if is_host else np.zeros(0)
    except ValueError:  # lists of several lengths
        return None
    if array.dtype.kind not in "iu" or not array.size:
        return None
    if array.dtype.itemsize < 8 or (dtype := jax.dtypes.canonicalize_dtype(array.dtype)) == array.dtype:
        return None
    held = np.iinfo(dtype)
    return None if held.min <= array.min() and array.max() <= held.max else array


def narrowed(ids: np.ndarray, index: Any) -> Any:
    """Class ids that are `too_wide` for JAX, in 32 bits; `index` is the class id to ignore.

    An id that fits in 32 bits stays. An id that does not fit becomes `IGNORED` if it equals `index`, else
    `NO_CLASS`.
    """
    limits = np.iinfo(np.int32)
    held = (ids >= limits.min) & (ids <= limits.max)
    number = np.where(held, ids, 0).astype(np.int32)
    if isinstance(index, int) and not limits.min <= index <= limits.max:
        return np.where(ids == index, IGNORED, np.where(held & (number >= 0), number, NO_CLASS))
    return jnp.where(held, number, jnp.where(index == NO_CLASS, IGNORED, NO_CLASS))


def needs_value_check(name: str, value: Any) -> bool:
    """Whether the value must be checked before the call is compiled: within `jax.jit`, values are unknown."""
    if name in RANGES:
        number = known_number(value)
        return number is not None and not within(name, number, jnp.float32)
    return too_wide(value) is not None
