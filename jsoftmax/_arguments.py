"""Every user error, raised at the public border before anything is computed.

A message repeats the call, says what came, and says what to write instead.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Axis = int | Sequence[int] | None
Axes = tuple[int, ...]
Logits = Array | jax.ShapeDtypeStruct  # of which only shape and dtype are read


class Call:
    """One call of a public function: its arguments as they came, and as the function needs them."""

    def __init__(self, function: str, **arguments: Any):
        self.function = function
        self.arguments = arguments

    def error(self, kind: type[Exception], problem: str, remedy: str) -> Exception:
        given = ", ".join(f"{k}={_describe(v)}" for k, v in self.arguments.items() if v is not None)
        return kind(f"jsoftmax.{self.function}({given}): {problem}; {remedy}.")

    def array(self, name: str) -> Array:
        value = self.arguments[name]
        try:
            # Converted to its own type, an array with a NaN under the mask would stop jax_debug_nans.
            array = value if isinstance(value, Array) else jnp.asarray(value)
            if jnp.issubdtype(array.dtype, jax.dtypes.extended):
                raise TypeError("a random key")
        except (TypeError, ValueError, OverflowError) as error:
            problem = f"{name} is {_describe(value)}, not an array of numbers"
            raise self.error(TypeError, problem, f"give {name} as an array") from error
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            problem = f"{name} is complex ({array.dtype}), and has no order to take a maximum in"
            raise self.error(TypeError, problem, f"write {name}.real or abs({name})")
        return array

    def floats(self, name: str) -> Array:
        """The argument, with integers and bools promoted as jax.nn promotes them."""
        array = self.array(name)
        return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)

    def together(self, first: str, second: str) -> tuple[Array, Array]:
        """Two arguments in one float dtype and shape; ints and Python numbers adopt the other's dtype."""
        strong = [a.dtype for a in map(self.array, (first, second)) if not jax.typeof(a).weak_type]
        own = [dtype for dtype in strong if jnp.issubdtype(dtype, jnp.floating)]
        a, b = self.floats(first), self.floats(second)
        dtype = own[0] if len(own) == 1 else jnp.promote_types(a.dtype, b.dtype)
        try:
            shape = jnp.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            problem = f"{first} of shape {a.shape} and {second} of shape {b.shape} do not broadcast"
            remedy = f"give {second} the shape {a.shape}, or 1 for a length"
            raise self.error(ValueError, problem, remedy) from None
        a, b = (array if array.dtype == dtype else array.astype(dtype) for array in (a, b))
        a, b = (jnp.broadcast_to(array, shape) for array in (a, b))
        return a, b

    def alike(self, first: str, second: str) -> tuple[Array, Array]:
        """Two float arguments of one shape."""
        a, b = self.floats(first), self.floats(second)
        if a.shape != b.shape:
            problem = f"{first} of shape {a.shape} beside {second} of shape {b.shape}"
            remedy = f"give both one shape, as jnp.broadcast_to({second}, {a.shape}) may"
            raise self.error(ValueError, problem, remedy)
        return a, b

    def axes(self, shape: tuple[int, ...], may_be_empty: bool = False) -> Axes:
        """The axes a row spans, from 0 up, in the order given."""
        axis, ndim = self.arguments["axis"], len(shape)
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
            raise self.error(ValueError, f"axis {axis!r} names one twice", "name each axis once")
        if not may_be_empty and math.prod(shape[i] for i in axes) == 0:
            problem = f"there are no classes: shape {shape} has length 0 along axis {axis!r}"
            raise self.error(ValueError, problem, "give at least one class")
        return axes

    def mask(self, shape: tuple[int, ...], axes: Axes | None = None) -> Array | None:
        """`where` as booleans that broadcast to `shape`; with `axes`, also one for each row."""
        if self.arguments.get("where") is None:
            return None
        where = self.array("where")
        if jnp.issubdtype(where.dtype, jnp.floating):
            raise self.error(TypeError, f"where has dtype {where.dtype}", "write a boolean mask: where > 0")
        where = where.astype(bool)
        if axes is not None and where.ndim == len(shape) - len(axes) < len(shape):
            where = jnp.expand_dims(where, axes)
        if not _broadcasts(where.shape, shape):
            remedy = f"give it the shape {shape}, or 1 for a length"
            if where.shape == tuple(n for i, n in enumerate(shape) if i not in self.axes(shape, True)):
                remedy = f"to mask whole rows, write jnp.expand_dims(where, {self.arguments['axis']})"
            raise self.error(ValueError, f"mask of shape {where.shape} does not broadcast to {shape}", remedy)
        return _with_rank(where, len(shape))

    def per_row(self, name: str, x: Logits, axes: Axes, dtype: jnp.dtype) -> Array | None:
        """A number, or one a row, in `dtype` and with length 1 along the row; None if not given."""
        given = self.arguments.get(name)
        if given is None:
            return None
        if isinstance(given, (int, float)):
            if not float(jnp.finfo(dtype).tiny) <= abs(given) <= float(jnp.finfo(dtype).max):
                raise self.error(
                    ValueError, f"{name} is {given}", f"write a finite number, not 0, in {dtype}"
                )
            if name == "soft_cap" and given < 0:
                raise self.error(ValueError, f"{name} is {given}", "write a number above 0")
        number = self.floats(name)
        rows = tuple(n for i, n in enumerate(x.shape) if i not in axes)
        if number.shape == rows:
            number = jnp.expand_dims(number, sorted(axes))
        per_row = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        if not _broadcasts(number.shape, per_row):
            problem = f"{name} of shape {number.shape} is neither one number nor one a row"
            raise self.error(ValueError, problem, f"give it the shape {rows} or {per_row}")
        return _with_rank(number, x.ndim).astype(dtype)

    def coefficient(self, name: str, x: Logits, axes: Axes, dtype: jnp.dtype) -> Array | None:
        """A number that may be 0, or one a row; None if it is a 0 that needs no computing."""
        given = self.arguments[name]
        if isinstance(given, (int, float)):
            if not 0 <= given <= (1 if name == "label_smoothing" else math.inf):
                remedy = "write a number from 0 to 1" if name == "label_smoothing" else "write one from 0 up"
                raise self.error(ValueError, f"{name} is {given}", remedy)
            if given < float(jnp.finfo(dtype).tiny):
                return None
        return self.per_row(name, x, axes, dtype)

    def class_weights(self, shape: tuple[int, ...], axes: Axes, dtype: jnp.dtype) -> Array | None:
        """One weight a class, along the class axes made one."""
        if self.arguments["class_weights"] is None:
            return None
        weights = self.floats("class_weights")
        classes = tuple(shape[i] for i in axes)
        if weights.shape != classes:
            problem = f"class_weights of shape {weights.shape} for classes of shape {classes}"
            raise self.error(ValueError, problem, f"give one weight for each class, shape {classes}")
        return weights.reshape(-1).astype(dtype)

    def ignore_index(self, labels: Array) -> Array | None:
        """The class id to ignore; None if no label of this type can be it."""
        if self.arguments["ignore_index"] is None:
            return None
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            problem = "ignore_index is for class ids, and these labels are target probabilities"
            raise self.error(ValueError, problem, "leave it out, and give the rows to ignore targets of 0")
        given = self.arguments["ignore_index"]
        if not isinstance(given, (bool, Array)) and hasattr(given, "__index__") and not jnp.ndim(given):
            number, held = operator.index(given), jnp.iinfo(labels.dtype)
            return jnp.asarray(number, labels.dtype) if held.min <= number <= held.max else None
        index = self.array("ignore_index")
        if not jnp.issubdtype(index.dtype, jnp.integer) or index.ndim:
            raise self.error(TypeError, f"ignore_index is {_describe(given)}", "write one integer")
        return index

    def float_dtype(self, name: str) -> jnp.dtype:
        """An argument that names a float type."""
        given = self.arguments[name]
        try:
            dtype = jnp.dtype(given)
        except TypeError:
            dtype = None
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise self.error(TypeError, f"{name} is {given!r}", "write a float type, such as jnp.float32")
        return dtype

    def size(self, name: str, least: int = 0) -> int:
        """An argument that counts something."""
        given = self.arguments[name]
        try:
            size = operator.index(given)
        except TypeError:
            size = -1
        if size < least:
            raise self.error(ValueError, f"{name} is {given!r}", f"write a whole number from {least} up")
        return size

    def class_ids(self, shape: tuple[int, ...], axes: Axes) -> Array:
        """The labels as integers, one a row, with length 1 along the row."""
        labels = self.array("labels")
        rows = tuple(n for i, n in enumerate(shape) if i not in axes)
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            problem = f"labels have dtype {labels.dtype}"
            raise self.error(TypeError, problem, "give class ids as integers: labels.astype(int)")
        if labels.shape != rows:
            problem = f"class ids of shape {labels.shape} for rows of shape {rows}"
            remedy = f"give one id for each row, shape {rows}"
            if labels.shape == shape:
                remedy += ", or target probabilities as floats: labels.astype(float)"
            raise self.error(ValueError, problem, remedy)
        return jnp.expand_dims(labels, sorted(axes))

    def targets(self, shape: tuple[int, ...]) -> Array:
        """The labels as probabilities, broadcast to `shape`."""
        labels = self.floats("labels")
        if not _broadcasts(labels.shape, shape):
            problem = f"target probabilities of shape {labels.shape} for logits of shape {shape}"
            raise self.error(ValueError, problem, f"give them the shape {shape}")
        return jnp.broadcast_to(labels, shape)

    def labels(self, shape: tuple[int, ...], axes: Axes) -> Array:
        """Class ids where the labels are integers, target probabilities where they are floats."""
        labels = self.array("labels")
        if jnp.issubdtype(labels.dtype, jnp.integer):
            return self.class_ids(shape, axes)
        if not jnp.issubdtype(labels.dtype, jnp.floating):
            problem = f"labels have dtype {labels.dtype}"
            raise self.error(TypeError, problem, "give integer class ids or floating probabilities")
        if labels.shape != shape:
            problem = f"target probabilities of shape {labels.shape} for logits of shape {shape}"
            remedy = f"give them the shape {shape}, or class ids as integers: labels.astype(int)"
            raise self.error(ValueError, problem, remedy)
        return labels


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False)
    )


def _with_rank(array: Array, ndim: int) -> Array:
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


def _describe(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:37]}..."
    return f"{dtype}[{','.join(map(str, shape))}]"
