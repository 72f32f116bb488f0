"""Converts the arguments of a call to arrays, and checks their types, axes and masks.

Every error message repeats the call, says what is wrong, and says what to write instead.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jsoftmax.border import _given

Axis = int | Sequence[int] | None
Axes = tuple[int, ...]


class Arrays:
    """One call of a public function: it keeps the arguments as given and converts each one on request."""

    def __init__(self, function: str, **arguments: Any):
        self.function = function
        self.arguments = arguments

    def error(self, kind: type[Exception], problem: str, remedy: str) -> Exception:
        given = ", ".join(f"{k}={describe(v)}" for k, v in self.arguments.items() if v is not None)
        return kind(f"jsoftmax.{self.function}({given}): {problem}; {remedy}.")

    def array(self, name: str) -> Array:
        value = self.arguments[name]
        self._refuse_type(name, getattr(value, "dtype", None))
        try:
            # `jnp.asarray` of an array with a NaN under the mask would trigger jax_debug_nans.
            array = value if isinstance(value, Array) else jnp.asarray(value)
            if jnp.issubdtype(array.dtype, jax.dtypes.extended):
                raise TypeError("a random key")
        except (TypeError, ValueError, OverflowError) as error:
            problem = f"{name} is {describe(value)}, not an array of numbers"
            raise self.error(TypeError, problem, f"give {name} as an array of numbers") from error
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            problem = f"{name} is complex ({array.dtype}), and complex numbers have no order"
            raise self.error(TypeError, problem, f"write {name}.real")
        return array

    def key(self, name: str) -> Array:
        """A random key, as `jax.random.key` makes it, or as integers."""
        given = self.arguments[name]
        dtype, shape = getattr(given, "dtype", None), getattr(given, "shape", None)
        is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
        if not (is_typed and shape == ()) and not (dtype == jnp.uint32 and len(shape or ()) == 1):
            problem = f"{name} is {describe(given)}, not one random key"
            raise self.error(TypeError, problem, f"write {name}=jax.random.key(0)")
        return jnp.asarray(given) if not is_typed else given

    def _refuse_type(self, name: str, dtype: Any) -> None:
        """Raise for a float type of at most 8 bits that cannot hold logits, or that XLA cannot compute in."""
        if not isinstance(dtype, np.dtype) or dtype.itemsize > 1 or not jnp.issubdtype(dtype, jnp.floating):
            return
        is_scale = not (_given.holds(dtype, -1) and _given.holds(dtype, 0))
        if is_scale or jnp.finfo(dtype).bits == 6:
            problem = (
                f"{name} is {dtype}, a type {'without a sign or a zero' if is_scale else 'that XLA lacks'}"
            )
            raise self.error(TypeError, problem, f"write {name}.astype({'j' * is_scale}np.float32)")

    def floats(self, name: str) -> Array:
        """The argument as floats: integers and bools promoted as in jax.nn, 8-bit floats as float32."""
        wide = _given.too_wide(self.arguments[name])
        array = self.array(name) if wide is None else jnp.asarray(wide.astype(float))
        return widened(array) if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)

    def _own_float(self, name: str) -> jnp.dtype | None:
        """The float type of an argument; None for integers and Python numbers, which take another's type."""
        value = self.arguments[name]
        if value is None or _given.too_wide(value) is not None:
            return None
        array = self.array(name)
        is_strong_float = jnp.issubdtype(array.dtype, jnp.floating) and not jax.typeof(array).weak_type
        return array.dtype if is_strong_float else None

    def narrow_type(self, *names: str) -> jnp.dtype | None:
        """The 8-bit type of the output, if all float arguments have this one type; else None."""
        dtypes = set(filter(None, map(self._own_float, names)))
        if len(dtypes) != 1 or not _is_narrow(dtype := dtypes.pop()):
            return None
        if not _given.holds(dtype, math.nan):
            problem = f"the result would be {dtype}, as {names[0]} is, a type without NaN or infinity"
            raise self.error(TypeError, problem, f"write {names[0]}.astype(jnp.float32)")
        return dtype

    def promoted(self, first: str, second: str) -> tuple[Array, Array]:
        """Two arguments in one float dtype and shape; integers and Python numbers take the other's dtype."""
        a, b = self.floats(first), self.floats(second)
        own = [f.dtype for name, f in ((first, a), (second, b)) if self._own_float(name) is not None]
        dtype = own[0] if len(own) == 1 else jnp.promote_types(a.dtype, b.dtype)
        try:
            shape = jnp.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            problem = f"{first} of shape {a.shape} and {second} of shape {b.shape} do not broadcast"
            remedy = f"give {second} the shape {a.shape}, or one that broadcasts to it"
            raise self.error(ValueError, problem, remedy) from None
        a, b = (jnp.broadcast_to(in_dtype(array, dtype), shape) for array in (a, b))
        return a, b

    def with_same_shape(self, first: str, second: str) -> tuple[Array, Array]:
        """Two arguments as floats, which must have the same shape."""
        a, b = self.floats(first), self.floats(second)
        if a.shape != b.shape:
            problem = f"{first} of shape {a.shape} and {second} of shape {b.shape}"
            remedy = "give both the same shape"
            for name, shape, other in ((first, a.shape, b.shape), (second, b.shape, a.shape)):
                if broadcasts(shape, other):
                    remedy += f", as jnp.broadcast_to({name}, {other})"
            raise self.error(ValueError, problem, remedy)
        return a, b

    def axes(self, shape: tuple[int, ...], may_be_empty: bool = False) -> Axes:
        """The class axes as numbers from 0 to ndim − 1, in the order given."""
        self._refuse_swapped()
        axis, ndim = self.arguments.get("axis", -1), len(shape)
        given = range(ndim) if axis is None else axis if isinstance(axis, Sequence) else (axis,)
        try:
            given = [operator.index(i) for i in given]
        except TypeError:
            problem = f"axis is {axis!r}"
            raise self.error(TypeError, problem, "write an int, a tuple of ints, or None") from None
        for i in given:
            if not -ndim <= i < ndim:
                problem = f"axis {i} is out of range for {ndim} dimensions"
                remedy = f"write one from {-ndim} to {ndim - 1}" if ndim else "write axis=None"
                raise self.error(ValueError, problem, remedy)
        axes = tuple(i % ndim for i in given)
        if len(set(axes)) < len(axes):
            raise self.error(ValueError, f"axis {axis!r} names an axis twice", "name each axis once")
        if not may_be_empty and math.prod(shape[i] for i in axes) == 0:
            problem = f"there are no classes: shape {shape} has length 0 along axis {axis!r}"
            raise self.error(ValueError, problem, "give at least one class")
        return axes

    def _refuse_swapped(self) -> None:
        """Raise if the logits are integers and the labels floats with one more axis: they look swapped."""
        logits, labels = (self.arguments.get(name, ()) for name in ("logits", "labels"))
        if not hasattr(logits, "dtype") or not hasattr(labels, "dtype"):
            return
        are_ids = jnp.issubdtype(logits.dtype, jnp.integer) and jnp.issubdtype(labels.dtype, jnp.floating)
        if are_ids and labels.ndim == logits.ndim + 1:
            problem = "the logits are integers, and the labels are floats with one more axis"
            raise self.error(
                TypeError, problem, f"the two look swapped: write {self.function}(labels, logits)"
            )

    def mask(self, shape: tuple[int, ...], axes: Axes | None = None) -> Array | None:
        """`where` as booleans that broadcast to `shape`; given `axes`, it may also have one entry per row."""
        if self.arguments.get("where") is None:
            return None
        where = self.array("where")
        if jnp.issubdtype(where.dtype, jnp.floating):
            raise self.error(TypeError, f"where has dtype {where.dtype}", "write a boolean mask: where > 0")
        where = where.astype(bool)
        if axes is not None and where.ndim == len(shape) - len(axes) < len(shape):
            where = jnp.expand_dims(where, axes)
        if not broadcasts(where.shape, shape):
            problem = f"where of shape {where.shape} does not broadcast to {shape}"
            remedy = f"give it the shape {shape}, or one that broadcasts to it"
            if where.shape == rows_of(shape, self.axes(shape, may_be_empty=True)):
                remedy = f"to mask whole rows, write jnp.expand_dims(where, {self.arguments.get('axis', -1)})"
            raise self.error(ValueError, problem, remedy)
        return with_rank(where, len(shape))

    def float_dtype(self, name: str) -> jnp.dtype:
        """The argument as a float dtype."""
        given = self.arguments[name]
        try:
            dtype = jnp.dtype(given)
        except TypeError:
            dtype = None
        if dtype is None or not (jnp.issubdtype(dtype, jnp.floating) and _given.holds(dtype, -1)):
            raise self.error(TypeError, f"{name} is {given!r}", "write a float type, such as jnp.float32")
        return dtype

    def size(self, name: str, least: int = 0, classes: int | None = None) -> int:
        """The argument as an integer that is at least `least`, and at most the number of classes if given."""
        given = self.arguments[name]
        try:
            size = operator.index(given)
        except TypeError:
            size = -1
        if size < least:
            raise self.error(ValueError, f"{name} is {given!r}", f"write an integer of at least {least}")
        if classes is not None and size > classes:
            problem = f"{name} is {size}, and there are {classes} classes"
            raise self.error(ValueError, problem, "write a number up to the number of classes")
        return size


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False)
    )


def rows_of(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def in_dtype(array: Array, dtype: jnp.dtype) -> Array:
    """The array in a dtype. If it has that dtype, the array itself: `jax_debug_nans` checks conversions."""
    return array if array.dtype == dtype else array.astype(dtype)


def widened(floats: Array) -> Array:
    """The array, converted to float32 if its floats have fewer than 16 bits."""
    return floats.astype(jnp.float32) if _is_narrow(floats.dtype) else floats


def _is_narrow(dtype: jnp.dtype) -> bool:
    return bool(jnp.finfo(dtype).bits < 16)


def with_rank(array: Array, ndim: int) -> Array:
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


def describe(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:37]}..."
    return f"{dtype}[{','.join(map(str, shape))}]"
