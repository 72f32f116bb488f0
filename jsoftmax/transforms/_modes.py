"""Modes in which programs are traced: for a block, for a function, or for the whole process.

A mode is part of the cache key of `jax.jit`: a function traced in two modes has two programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from typing import Any, NamedTuple

import jax

PLATFORMS = ("cpu", "gpu", "tpu")
_forward_mode: Any = jax.make_user_context(default_value=False)
# The form of every program: None (each platform has its own), "plain", "portable" (plain, without checks of
# labels), or the names of the platforms whose forms are traced.
_form: Any = jax.make_user_context(default_value=None)
# Whether the kernels of this package may be used, where a platform has one for the computation.
_kernels: Any = jax.make_user_context(default_value=False)
# Whether the arrays of the trace are so short that what XLA stores of them stays in the cache.
_in_cache: Any = jax.make_user_context(default_value=False)
# A `_platforms.Record`, which lists the forms that a trace chooses for one platform; or None.
_record: Any = jax.make_user_context(default_value=None)


class Mode(ContextDecorator):
    """A mode: use it in ``with mode:`` or as a decorator, any number of times."""

    def __init__(self, context: Any, value: Any):
        self._context, self._value = context, value
        self._entered: list[Any] = []  # innermost last; a mode may be entered again within itself

    def _recreate_cm(self) -> Mode:
        return Mode(self._context, self._value)

    def __enter__(self) -> None:
        self._entered.append(self._context(self._value))
        self._entered[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)


def forward_mode() -> Mode:
    """Trace the functions of this package with forward-mode rules.

    Inside, ``jax.jvp``, ``jacfwd`` and ``linearize`` work; reverse mode works too, and keeps no more
    residuals, but gradients of long rows may take longer. Outside, each function has a ``jax.custom_vjp``
    rule, which JAX refuses to differentiate in forward mode ("can't apply forward-mode autodiff (jvp) to a
    custom_vjp function"). Forward mode over reverse mode, as in ``jax.hessian``, works outside too.

    What counts is where JAX traces a call, not where the function was defined:

    - A ``jax.jit`` is traced where it is called. The mode is part of its cache key: called inside and
      outside, it is compiled once for each. If it is made inside, and differentiated in forward mode outside,
      JAX refuses, also after a call inside. ``jax.jit(jsoftmax.forward_mode()(f))`` has the mode wherever it
      is called; so does any function with the decorator ``@jsoftmax.forward_mode()``.
    - What was traced inside stays as it is, and works outside: a compiled program, the linear map of
      ``jax.linearize``, the pull-back of ``jax.vjp`` and its own derivatives.
    - The backward rule of another ``jax.custom_vjp`` is traced where the gradient is computed: if it uses
      forward mode, compute the gradient inside.
    - A decorator of a generator or a coroutine ends before the body runs: write ``with`` in the body, around
      code without ``yield`` and ``await``.
    - The ``with`` and the decorator are for their thread. ``jsoftmax.config.update("forward_mode", True)``
      sets the mode for the process.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> with jsoftmax.forward_mode():
    ...     p, dp = jax.jvp(jsoftmax.softmax, (jnp.zeros(2),), (jnp.array([1.0, 0.0]),))
    >>> print(dp)
    [ 0.25 -0.25]
    """
    return Mode(_forward_mode, True)


def portable() -> Mode:
    """Trace the functions of this package as plain programs, which converters accept.

    A plain program contains array operations only: no choice by platform, no loop or branch (except in a
    linear head with several blocks), no barrier, no primitive of this package, no second float type. Values
    are as accurate as outside. The program may be slower or need more memory than one traced outside, and
    `jax.experimental.checkify` reports no bad labels in it. Up to 8192 logits every program is plain except
    for the check of labels. ``@jsoftmax.portable()`` decorates a function, and
    ``jsoftmax.config.update("portable", True)`` sets the mode for the process.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> with jsoftmax.portable():
    ...     exported = jax.export.export(jax.jit(jsoftmax.softmax))(jnp.zeros((512, 1000)))
    >>> "while" in exported.mlir_module() or "barrier" in exported.mlir_module()
    False
    """
    return Mode(_form, "portable")


def in_mode(*, forward: bool) -> Mode:
    """Trace with forward-mode rules if `forward`, else with reverse-mode rules."""
    return Mode(_forward_mode, forward)


def in_forward_mode() -> bool:
    """Whether functions are traced with forward-mode rules."""
    return bool(_forward_mode.value)


def in_form(form: str | tuple[str, ...] | None) -> Mode:
    """Trace plain programs ("plain", "portable"), or the forms of some platforms ("cpu", "gpu", "tpu").

    None is for the forms of all platforms.
    """
    return Mode(_form, (form,) if form in PLATFORMS else form)


def form() -> str | tuple[str, ...] | None:
    """The form in which programs are traced now."""
    value: str | tuple[str, ...] | None = _form.value
    return value


def kernels() -> bool:
    """Whether the kernels of this package may be used."""
    return bool(_kernels.value)


def in_kernels(value: bool) -> Mode:
    """Trace with the kernels of this package where they fit, or without."""
    return Mode(_kernels, value)


def in_cache() -> bool:
    """Whether the arrays of the trace are so short that what XLA stores of them stays in the cache."""
    return bool(_in_cache.value)


def for_cache() -> Mode:
    """Trace for such arrays."""
    return Mode(_in_cache, True)


class Traced(NamedTuple):
    """The modes of a call that later traces for it use again, such as that of its derivative."""

    form: str | tuple[str, ...] | None
    kernels: bool

    @contextmanager
    def again(self) -> Iterator[None]:
        """Trace in these modes."""
        with in_form(self.form), in_kernels(self.kernels):
            yield


def traced() -> Traced:
    """The modes of the call that is traced now."""
    return Traced(form(), kernels())


def recording(record: Any) -> Mode:
    """Trace again, and let the record list the forms that are chosen."""
    return Mode(_record, record)


def record() -> Any:
    """The record that lists the chosen forms, or None."""
    return _record.value


class Config:
    """The modes of the process, in the style of `jax.config`.

    >>> import jsoftmax
    >>> jsoftmax.config.update("portable", True)
    >>> jsoftmax.config.portable
    True
    >>> jsoftmax.config.update("portable", False)
    """

    @property
    def forward_mode(self) -> bool:
        """Whether functions are traced with forward-mode rules: see `jsoftmax.forward_mode`."""
        return bool(_forward_mode.get_global())

    @property
    def portable(self) -> bool:
        """Whether functions are traced as plain programs: see `jsoftmax.portable`."""
        return _form.get_global() == "portable"

    def update(self, name: str, value: bool) -> None:
        """Set a mode, "forward_mode" or "portable", for everything traced from now on."""
        call = f"config.update({name!r}, {value!r})"
        if name not in ("forward_mode", "portable"):
            raise AttributeError(f"{call}: there is no {name!r}; write 'forward_mode' or 'portable'")
        if not isinstance(value, bool):
            raise TypeError(f"{call}: a mode is True or False")
        if name == "forward_mode":
            _forward_mode.set_global(value)
        else:
            _form.set_global("portable" if value else None)


config: Config = Config()
"""The modes of the process: `config.update("portable", True)`, `config.update("forward_mode", True)`."""


def in_modes_of_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function((modes, static), …)``: later traces use the modes in which the call was made."""

    def call(static: tuple[Traced, Any], *arguments: Any) -> Any:
        modes, own = static
        with modes.again():
            return function(own, *arguments)

    return call
