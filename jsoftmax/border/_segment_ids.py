"""Checks the segment ids of a call, and how many segments there are."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jsoftmax.border import _given
from jsoftmax.border._call import Call
from jsoftmax.border._label_checks import are_classes
from jsoftmax.transforms._platforms import hidden
from jsoftmax.transforms._sharding import on_automatic_axes, partition_spec, spec

P = ParamSpec("P")
R = TypeVar("R")


def counted(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: `num_segments`, if not given, is the largest segment id + 1, where the ids are known.

    It stands before `compiled`, within which no value is known.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:  # the function itself raises it
            return function(*args, **kwargs)
        if arguments.get("num_segments") is None:
            given: Any = kwargs
            given["num_segments"] = _count(arguments["segment_ids"])
            if "num_segments" in arguments:
                args = args[: list(signature.parameters).index("num_segments")]  # type: ignore[assignment]
        return function(*args, **kwargs)

    return call


def placed(*, by_entry: bool) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: on a mesh with explicit axes, XLA places the arrays within a function of segments.

    Its output has an entry for each entry of the first argument, or else for each segment, or is a sum. It is
    sharded like that argument, without the mesh axes of the entries if it has none.
    """

    def with_placement(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given = (a for a in (*args, *kwargs.values()) if isinstance(a, Array))
            like = next((a for a in given if partition_spec(a) is not None), None)
            if like is None:
                return function(*args, **kwargs)
            arguments = signature.bind(*args, **kwargs).arguments
            arrays = {name: value for name, value in arguments.items() if isinstance(value, Array)}
            entries = next(iter(arguments.values()))
            names = spec(entries) if isinstance(entries, Array) else (None,) * np.ndim(entries)
            if not by_entry:
                names = (None, *names[1:]) if arguments.get("reduction", "none") == "none" else ()
            on_any: Any = function
            return on_automatic_axes(lambda arrays: on_any(**{**arguments, **arrays}), arrays, names, like)

        return call

    return with_placement


def _count(ids: Any) -> int | None:
    """The largest id + 1; None if the ids are traced, on another process, or no integers."""
    if isinstance(ids, jax.core.Tracer) or not getattr(ids, "is_fully_addressable", True):
        return None
    try:
        known = np.asarray(ids)
    except (TypeError, ValueError):  # a list of traced numbers, or of several lengths
        return None
    if known.dtype.kind not in "iu":
        return None
    return max(int(known.max(initial=0)) + 1, 0) if known.size else 0


def of_call(call: Call, shape: tuple[int, ...]) -> tuple[Array, Array, int]:
    """The segment of every entry, whether it has one, and how many there are.

    An entry without a segment has the first or the last id, so that sorted ids stay sorted.
    """
    if not shape:
        name = next(iter(call.arguments))
        raise call.error(ValueError, f"{name} has no axis of entries", "give it at least one axis")
    wide = _given.too_wide(call.arguments["segment_ids"])
    held = np.iinfo(np.int32)
    given = call.array("segment_ids") if wide is None else jnp.asarray(np.clip(wide, -1, held.max), np.int32)
    given = hidden(given)  # XLA would group constant ids at compile time, which takes minutes
    if not jnp.issubdtype(given.dtype, jnp.integer):
        problem = f"segment_ids have dtype {given.dtype}"
        raise call.error(TypeError, problem, "give segment ids as integers")
    if given.shape != shape[:1]:
        problem = f"segment_ids of shape {given.shape} for {shape[0]} entries along the first axis"
        raise call.error(ValueError, problem, f"give one id for each entry, shape {shape[:1]}")
    if call.arguments["num_segments"] is None:
        problem = "num_segments is None, and the ids are traced, so that the largest is not known"
        raise call.error(ValueError, problem, "write num_segments=, a number that is known outside jax.jit")
    count = call.size("num_segments")
    exists = are_classes(given, count, ())
    given = given.astype(jnp.int32) if given.dtype.itemsize < 4 else given  # to hold the number of segments
    return jnp.clip(given, 0, max(count - 1, 0)).astype(jnp.int32), exists, count


def labels(call: Call, shape: tuple[int, ...], count: int) -> Array:
    """The labels: a position of an entry per segment, as integers, or targets of entries, as floats."""
    given, rows = call.labels_given(), (count, *shape[1:])
    is_integer = jnp.issubdtype(given.dtype, jnp.integer)
    if not is_integer and not jnp.issubdtype(given.dtype, jnp.floating):
        remedy = "give integer positions of entries, or floating probabilities"
        raise call.error(TypeError, f"labels have dtype {given.dtype}", remedy)
    if given.shape != (rows if is_integer else shape):
        problem = f"labels of shape {given.shape} for {count} segments of logits of shape {shape}"
        remedy = (
            f"give one position for each segment, shape {rows}, or target probabilities as floats, {shape}"
        )
        raise call.error(ValueError, problem, remedy)
    return given
