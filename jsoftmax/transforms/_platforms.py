"""Which form of a computation a platform gets, and barriers, behind which XLA computes again what it stores.

Neither is in a plain program. A GPU computes an exponential faster than it reads one from memory; but what
two sums share, or a sum and an array, XLA stores: in float32, and in the shape of the logits. On CPU storing
pays, because the gradient takes the place of the stored exponentials; but not for 16-bit logits, where XLA
would store their conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import lax

from jsoftmax.transforms import _modes

T = TypeVar("T")
Form = Callable[..., Any]
Own = tuple[Form, str] | None  # a platform's own form, and what speaks for it

MOST_PLAIN = 2**13  # logits: fewer take a few microseconds in any form, and the plain one compiles fastest


class Record:
    """What a program computes, on one platform, in a form of its own, and why."""

    def __init__(self, platform: str):
        self.platform = platform
        self.choices: dict[tuple[str, str], None] = {}  # in the order of the trace, each once


def by_platform(
    what: str, *arrays: Any, plain: Form, cpu: Own = None, gpu: Own = None, tpu: Own = None
) -> Any:
    """``form(*arrays)``, of the form for the platform of the program; `plain` where it has none of its own.

    A platform that JAX adds counts as a GPU.
    """
    forms, record = {"cpu": cpu, "tpu": tpu, "gpu": gpu}, _modes.record()
    chosen = _modes.form() or (record and record.platform)
    if chosen is not None:
        own = forms.get(chosen)
        if record and own:
            record.choices[what, own[1]] = None
        return (own[0] if own else plain)(*arrays)
    functions = {name: own[0] if own else plain for name, own in forms.items()}
    default = functions.pop("gpu")
    others = {name: form for name, form in functions.items() if form is not default}
    return lax.platform_dependent(*arrays, default=default, **others) if others else default(*arrays)


def hidden(values: T) -> T:
    """The same arrays behind a barrier, so that XLA computes again what it would store for a second use."""
    return values if is_plain() else lax.optimization_barrier(values)


def is_plain() -> bool:
    """Whether every program is a plain one."""
    return _modes.form() in ("plain", "portable")


def is_portable() -> bool:
    """Whether, besides, the programs hold no checks of labels."""
    return _modes.form() == "portable"


def for_logits(*sizes: Any) -> _modes.Mode:
    """The form for a call of arrays of these sizes: plain if they are few, and nothing else is asked for.

    A size may be a symbol of `jax.export`, which may stand for any number.
    """
    form = _modes.form()
    few = form is None and all(isinstance(size, int) and size <= MOST_PLAIN for size in sizes)
    return _modes.in_form("plain" if few else form)


@jax.custom_jvp
def recomputed(values: T, after: Any = ()) -> T:
    """The same arrays, available once `after` is computed. An accelerator recomputes what uses them."""

    def behind_barrier(values: T, after: Any) -> T:
        if after:
            return lax.optimization_barrier((values, after))[0]
        return jax.tree.map(lax.optimization_barrier, values)  # one each: none waits for the others

    again = behind_barrier, "computed again: XLA would store it, in float32 and as long as the logits"
    return by_platform("what two sums share", values, after, plain=_unchanged, gpu=again, tpu=again)


recomputed.defjvp(lambda primals, tangents: (recomputed(*primals), tangents[0]))


@jax.custom_jvp
def reconverted_on_cpu(values: T, after: Any = ()) -> T:
    """The same arrays, available once `after` is computed. On CPU XLA converts them again at every use."""

    def behind_barrier(values: T, after: Any) -> T:
        return lax.optimization_barrier((values, after))[0]

    again = behind_barrier, "converted again: XLA would store the conversion"
    return by_platform("16-bit logits in float32", values, after, plain=_unchanged, cpu=again)


reconverted_on_cpu.defjvp(lambda primals, tangents: (reconverted_on_cpu(*primals), tangents[0]))


def _unchanged(values: T, after: Any) -> T:
    return values
