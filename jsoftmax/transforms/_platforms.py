"""Puts the form for each platform into a program, and barriers that make XLA recompute instead of store.

A plain program has neither. XLA stores an intermediate array that two sums share, or a sum and an array: in
float32, in the shape of the logits. A GPU computes an exponential faster than it reads one from memory, so
there a barrier helps. On CPU storing is faster, because the gradient reuses the memory of the stored
exponentials; but for 16-bit logits XLA would store their conversion to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
from jax import lax

from jsoftmax.transforms import _modes

T = TypeVar("T")
Form = Callable[..., Any]
Own = tuple[Form, str] | None  # a platform's own form and the reason for it; None for the plain form

MOST_PLAIN = 2**13  # logits: up to here every form takes a few microseconds, and plain compiles fastest


class Record:
    """The platform's own forms that a program uses on one platform, each with its reason."""

    def __init__(self, platform: str):
        self.platform = platform
        self.choices: dict[tuple[str, str], None] = {}  # (what, reason) in the order of the trace, each once


def by_platform(
    what: str, *arrays: Any, plain: Form, cpu: Own = None, gpu: Own = None, tpu: Own = None
) -> Any:
    """``form(*arrays)``, for the form of the program's platform; `plain` if the platform has none of its own.

    Any other platform uses the form for GPUs, or with kernels the plain form: these are for NVIDIA's. `what`
    names the computation in the output of `explain`.
    """
    form, record = _modes.form(), _modes.record()
    platforms = _modes.PLATFORMS if form is None else () if isinstance(form, str) else form
    if record and record.platform in platforms:
        platforms = (record.platform,)
    forms = {"cpu": cpu, "gpu": gpu, "tpu": tpu}
    groups: dict[Form, tuple[str, ...]] = {}
    for platform in platforms:
        own = forms[platform]
        function = plain if own is None else own[0]
        groups[function] = (*groups.get(function, ()), platform)
        if record and own:
            record.choices[what, own[1]] = None
    if len(groups) < 2:
        return next(iter(groups), plain)(*arrays)
    branches: dict[str, Form] = {}
    for function, names in groups.items():
        branches |= dict.fromkeys(names, _traced_for(names, function, kernels=_modes.kernels()))
    if "gpu" in branches and _modes.kernels():
        branches["cuda"] = branches.pop("gpu")
        default = _traced_for(("gpu",), plain, kernels=False)
    else:
        default = branches.pop("gpu" if "gpu" in branches else platforms[-1])
    others = {platform: branch for platform, branch in branches.items() if branch is not default}
    return lax.platform_dependent(*arrays, default=default, **others)


def _traced_for(platforms: tuple[str, ...], function: Form, *, kernels: bool) -> Form:
    """The function, traced for these platforms: choices within it need no branches for the others."""

    def branch(*arrays: Any) -> Any:
        with _modes.Traced(platforms, kernels).again():
            return function(*arrays)

    return branch


def hidden(values: T) -> T:
    """The same arrays behind a barrier: XLA then recomputes what it would store for a second use."""
    return values if is_plain() else lax.optimization_barrier(values)


def is_plain() -> bool:
    """Whether all programs are traced as plain programs."""
    return _modes.form() in ("plain", "portable")


def is_portable() -> bool:
    """Whether all programs are traced as plain programs without checks of labels."""
    return _modes.form() == "portable"


def for_logits(*sizes: Any) -> _modes.Mode:
    """The mode for a call on arrays of these sizes: plain if all are small and no form is set already.

    A size may be a symbol of `jax.export`. It may stand for any number, so it does not count as small.
    """
    form = _modes.form()
    few = form is None and all(isinstance(size, int) and size <= MOST_PLAIN for size in sizes)
    return _modes.in_form("plain" if few else form)


@contextmanager
def with_kernels() -> Iterator[None]:
    """Trace with kernels where they fit, also in a call on few logits, which would be plain."""
    form = _modes.form()
    with _modes.Traced(None if form == "plain" else form, kernels=True).again():
        yield


def _behind_barrier(values: T, after: Any) -> T:
    if after:
        return lax.optimization_barrier((values, after))[0]
    return jax.tree.map(lax.optimization_barrier, values)  # one barrier each: no array waits for another


_AGAIN = _behind_barrier, "computed again: XLA would store it, in float32 and as long as the logits"


@jax.custom_jvp
def recomputed(values: T, after: Any = ()) -> T:
    """The same arrays; on accelerators behind a barrier that waits for `after`, so that uses recompute."""
    return by_platform("what two sums share", values, after, plain=_unchanged, gpu=_AGAIN, tpu=_AGAIN)


@jax.custom_jvp
def recomputed_everywhere(values: T, after: Any = ()) -> T:
    """As `recomputed`, on CPU too, unless in the cache: in memory, an array costs more than exponentials."""
    own = {"cpu": None if _modes.in_cache() else _AGAIN, "gpu": _AGAIN, "tpu": _AGAIN}
    return by_platform("what two sums share", values, after, plain=_unchanged, **own)


recomputed.defjvp(lambda primals, tangents: (recomputed(*primals), tangents[0]))
recomputed_everywhere.defjvp(lambda primals, tangents: (recomputed_everywhere(*primals), tangents[0]))


@jax.custom_jvp
def reconverted_on_cpu(values: T, after: Any = ()) -> T:
    """The same arrays; on CPU behind a barrier that waits for `after`, so that every use converts again."""

    def behind_barrier(values: T, after: Any) -> T:
        return lax.optimization_barrier((values, after))[0]

    again = behind_barrier, "converted again: XLA would store the conversion"
    return by_platform("16-bit logits in float32", values, after, plain=_unchanged, cpu=again)


reconverted_on_cpu.defjvp(lambda primals, tangents: (reconverted_on_cpu(*primals), tangents[0]))


def _unchanged(values: T, after: Any) -> T:
    return values
