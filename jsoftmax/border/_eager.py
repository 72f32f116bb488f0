"""Compiles a call of a public function outside all transformations into one program."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from jsoftmax.border import _given
from jsoftmax.transforms import _platforms

P = ParamSpec("P")
R = TypeVar("R")
CONSTANTS = (bool, int, str)


def compiled(*static: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the function runs as one compiled program if its arguments are concrete arrays.

    The arguments named in `static` must be bools, integers, strings, or tuples of them. Without this, JAX
    dispatches every operation of the argument checks on its own, and the derivative rule by a slow path. A
    call with a Python number is not compiled: each new number would be a new constant, and a new program.
    """

    def with_program(function: Callable[P, R]) -> Callable[P, R]:
        @functools.cache  # at the first call, as `made_at_first_call` makes rules
        def made() -> tuple[tuple[str, ...], Callable[P, R]]:
            names = tuple(inspect.signature(function).parameters)
            return names, jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            names, program = made()
            arguments = (*zip(names, args, strict=False), *kwargs.items())
            with _platforms.for_logits(*(_size(value) for _, value in arguments)):
                for name, value in arguments:
                    if not (_is_constant(value) if name in static else _is_known_array(name, value)):
                        return function(*args, **kwargs)
                return program(*args, **kwargs)

        return call

    return with_program


def _size(value: Any) -> Any:
    """The size of an array, an integer or a symbol of `jax.export`; 0 for anything else."""
    return getattr(value, "size", 0)


def _is_constant(value: Any) -> bool:
    if type(value) is tuple:
        return all(type(part) in CONSTANTS for part in value)
    return value is None or type(value) in CONSTANTS


def _is_known_array(name: str, value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "OSU" and not _given.needs_value_check(name, value)
    if value is None:
        return True
    is_known = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    return is_known and not (name in _given.RANGES and _given.needs_value_check(name, value))
