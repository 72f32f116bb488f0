"""Reads the arguments of a plot as NumPy arrays: every error is raised before anything is drawn."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jsoftmax.border._call import Call

Numbers = NDArray[Any]
TOLERANCE = 0.02  # of the sum of a distribution: probabilities in 16 bits may be this far from 1


def array(call: Call, name: str, value: Any) -> Numbers:
    """The numbers of an argument: as given, but floats of at most 16 bits as float32."""
    try:
        found = np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        raise call.error(TypeError, f"{name} is traced", "draw outside of jax.jit") from None
    except (TypeError, ValueError):
        found = np.asarray(None)
    is_float = jnp.issubdtype(found.dtype, jnp.floating)
    if not (is_float or jnp.issubdtype(found.dtype, jnp.integer) or found.dtype == bool):
        what = found.dtype if found.ndim else type(value).__name__
        problem = f"{name} is {what}, not an array of real numbers"
        raise call.error(TypeError, problem, f"give {name} as an array of numbers")
    return found.astype(np.float32) if is_float and found.itemsize <= 2 else found


def vector(call: Call, name: str, value: Any, shape: tuple[int, ...] | None = None) -> NDArray[np.float64]:
    """An argument of shape [n], or of the given one, as float64."""
    found = array(call, name, value)
    if found.ndim != 1 or not found.size or (shape is not None and found.shape != shape):
        expected = f"the shape {shape}" if shape else "one axis, and at least one entry"
        raise call.error(ValueError, f"{name} has shape {found.shape}", f"give it {expected}")
    return found.astype(np.float64)


def field(call: Call, name: str, key: str, shape: tuple[int, ...] | None = None) -> NDArray[np.float64]:
    """A field of an argument, such as the confidence of a reliability, as a vector."""
    given = call.arguments[name]
    if getattr(given, key, None) is None:
        problem = f"{name} is {type(given).__name__}, without .{key}"
        raise call.error(TypeError, problem, f"give what jsoftmax.evaluation returns as {name}")
    return vector(call, f"{name}.{key}", getattr(given, key), shape)


def within(call: Call, name: str, found: Numbers, most: float = np.inf, held: Any = True) -> None:
    """Raise unless the numbers, where `held`, are finite, at least 0, and at most `most`."""
    if held is True and found.min() >= 0 and found.max() <= most and found.max() < np.inf:
        return  # without an array of the size of the numbers
    with np.errstate(invalid="ignore"):
        bad = ~((found >= 0) & (found <= most) & (found < np.inf)) & held
    if bad.any():
        place = tuple(map(int, np.argwhere(bad)[0]))
        where = f"[{', '.join(map(str, place))}]"
        remedy = "give finite numbers from 0 up" if most == np.inf else f"give numbers from 0 to {most:g}"
        raise call.error(ValueError, f"{name}{where} is {found[place]}", remedy)


def probabilities(call: Call) -> NDArray[np.float64]:
    """One distribution ``p``."""
    p = vector(call, "p", call.arguments["p"])
    total = p.sum()
    if not (p >= 0).all() or not abs(total - 1) <= TOLERANCE:
        problem = f"p is no distribution: its least entry is {p.min():.3g}, and its sum {total:.4g}"
        raise call.error(ValueError, problem, "give one row of probabilities; of logits, jsoftmax.softmax(p)")
    return p


def names(call: Call, classes: int, name: str = "names") -> list[str] | None:
    """The names of the classes, or another argument with one name per class; None if not given."""
    given = call.arguments.get(name)
    if given is None:
        return None
    found = None if isinstance(given, str) else [str(entry) for entry in given]
    if found is None or len(found) != classes:
        problem = f"{name} is one string" if found is None else f"{len(found)} {name} for {classes} classes"
        raise call.error(ValueError, problem, f"give one for each class, {classes} {name}")
    return found


def index(call: Call, name: str, classes: int) -> int | None:
    """A class id; None if not given."""
    given = call.arguments[name]
    if given is None:
        return None
    try:
        found = operator.index(given)
    except TypeError:
        raise call.error(TypeError, f"{name} is {given!r}", "give one class id, an integer") from None
    if not 0 <= found < classes:
        problem = f"{name} is {found}, and there are {classes} classes"
        raise call.error(ValueError, problem, f"give an id from 0 to {classes - 1}")
    return found
