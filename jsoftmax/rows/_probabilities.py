"""The probabilities of a row, from its shifted logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends import _accelerators, _cpu, _kernels, _sinks
from jsoftmax.backends._choice import choose, kernels
from jsoftmax.backends._request import Request, UsedFor
from jsoftmax.logits._scaling import Scaling, Shifted, exponentials, shifted
from jsoftmax.rows import _masks, _reductions
from jsoftmax.rows._peaks import peak
from jsoftmax.transforms._platforms import by_platform, hidden

Axes = tuple[int | str, ...]
Row = tuple[Array, Scaling, online.State]  # the logits, their scaling, and the state of every row
Forms = dict[str, Callable[..., Any]]  # by the name of a `_request.Form`


def of_shifted(z: Shifted, rest: Array) -> Array:
    """``exp(u)/(1 + rest)``; 0 in an empty row.

    XLA on CPU computes a select and all before it on its own. Its library, which takes what follows, would
    run the operations on every row as on an array of length 1.
    """
    return exponentials(z) / jnp.where(rest < 0, 1, 1 + rest)


class Probabilities(NamedTuple):
    """The probabilities of a row and of its sink, and the state of the row with its sink."""

    p: Array
    p_sink: Array | None
    state: online.State | None


def state_with_sink(
    x: Array, scaling: Scaling, axes: Axes, result_used_for: UsedFor = "exponentials"
) -> online.State:
    """The state of every row with its sink."""
    of_classes = scaling._replace(sink=None)
    state, _ = _reductions.reduce(x, of_classes, axes, result_used_for=result_used_for)
    return _sinks.with_sink(state, scaling)


def all_probabilities(x: Array, scaling: Scaling, axes: Axes, *, with_state: bool) -> Probabilities:
    """The probabilities ``exp(u)/Σ exp(u)``, 0 in an empty row, and the state of every row `with_state`."""
    function = partial(_all_probabilities, axes, with_state)
    found: Probabilities = _masks.stored_first(function, axes, x, scaling)
    return found


def _all_probabilities(axes: Axes, with_state: bool, x: Array, scaling: Scaling) -> Probabilities:
    def found(p: Array, p_sink: Array | None, state: online.State | None) -> Probabilities:
        return Probabilities(p, p_sink, state if with_state else None)

    def in_one_chain(x: Array, scaling: Scaling) -> Probabilities:
        p, p_sink, state, _ = in_chain(x, scaling, axes)
        if scaling.sink is None or not with_state:
            return found(p, p_sink, state)
        state = _sinks.with_sink(state, scaling)
        return found(p, _sinks.probability(state, scaling), state)

    def p_and_state(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        state = state_with_sink(x, scaling, axes)
        return of_shifted(shifted(x, scaling, state.max), state.rest), state

    def from_state(x: Array, scaling: Scaling) -> Probabilities:
        p, state = p_and_state(x, scaling)
        return found(p, None if scaling.sink is None else _sinks.probability(state, scaling), state)

    def in_one_kernel(x: Array, scaling: Scaling) -> Probabilities:
        state = state_with_sink(x, scaling, axes) if with_state else None
        row = _accelerators.fused_row(x, scaling, own)
        return found(row.p, row.p_sink, state)

    def in_a_kernel(platform: _kernels.Platform, x: Array, scaling: Scaling) -> Probabilities:
        p, state = _of_kernel("softmax", platform, x, scaling, p_and_state)
        return found(p, None, state)

    def in_blocks(size: int, x: Array, scaling: Scaling) -> Probabilities:
        return found(*_cpu.softmax_in_blocks(size, own[0], x, scaling.sink), None)

    own, names = rules.split_axes(axes)
    bare = scaling._replace(sink=None) == Scaling(None)
    # The form for stored blocks, which is for adjacent classes, makes no state.
    bare = bare and (not with_state or x.dtype.itemsize == 2 or x.ndim - 1 not in own)
    plain = from_state if scaling.sink is not None and scaling.temperature is not None else in_one_chain
    forms: Forms = {"stored blocks": in_blocks, "from the sums": from_state, "one kernel": in_one_kernel}
    forms |= kernels(in_a_kernel)
    kernel = _kernels.Wanted("softmax", scaling.where) if scaling.sink is None else None
    own_forms = choose(Request("softmax", x, own, bool(names), bare, kernel=kernel)).functions(forms)
    return by_platform("the map", x, scaling, plain=plain, **own_forms)


class Chain(NamedTuple):
    """The probabilities of a row and of its sink, the state without the sink, and 1, but 0 if empty."""

    p: Array
    p_sink: Array | None
    state: online.State
    live: Array | None


def in_chain(x: Array, scaling: Scaling, axes: Axes, *, marks_empty: bool = False) -> Chain:
    """A chain without comparisons, which XLA's library on CPU runs as one kernel."""
    top = peak(x, scaling, axes)
    terms = exponentials(shifted(x, scaling, top))
    if x.dtype.itemsize == 2:
        (total,) = rules.row_sums(axes, terms)
        rest = total - 1
    else:
        # The ones are summed separately, because small terms added to a 1 lose digits.
        ones = jnp.floor(terms)
        others, ones = rules.row_sums(axes, terms - ones, ones)
        total, rest = others + ones, others + (ones - 1)
    # 2⁻⁶⁰ changes no sum that contains the 1 of the largest class; only that of an empty row does not.
    divisor, p_sink = total + 2.0**-60, None
    live = lax.stop_gradient(total / divisor) if marks_empty else None
    if scaling.sink is not None:
        divisor, p_sink = rules.per_row(axes, _with_term_of_sink, divisor, top, scaling.sink)
        p_sink = p_sink if live is None else p_sink * live
    return Chain(terms / divisor, p_sink, online.State(top, rest), live)


def _with_term_of_sink(divisor: Array, top: Array, sink: Array) -> tuple[Array, Array]:
    """The divisor of a row with its sink, and the p of the sink; any number, in an empty row."""
    of_sink = _sinks.term(sink, top)
    return divisor + of_sink, of_sink / (divisor + of_sink)


def all_log_probabilities(x: Array, scaling: Scaling, axes: Axes) -> tuple[Array, online.State]:
    """The log-probabilities of every row, −inf in an empty row, and its state."""
    found: tuple[Array, online.State] = _masks.stored_first(
        partial(_all_log_probabilities, axes), axes, x, scaling
    )
    return found


def _all_log_probabilities(axes: Axes, x: Array, scaling: Scaling) -> tuple[Array, online.State]:
    def of_state(x: Array, scaling: Scaling, state: online.State) -> Array:
        return shifted(x, scaling, state.max, at_top=True).u - online.log_total(state.rest)

    def from_state(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        state = state_with_sink(x, scaling, axes)
        return of_state(x, scaling, state), state

    def with_separate_state(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        return _accelerators.fused_log_softmax(x, scaling, own), state_with_sink(x, scaling, axes)

    def from_state_on_cpu(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        state = state_with_sink(x, scaling, axes, "differences")
        return of_state(*hidden((x, scaling, state))), state

    def in_a_kernel(platform: _kernels.Platform, x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        return _of_kernel("log_softmax", platform, x, scaling, from_state)

    own, names = rules.split_axes(axes)
    forms: Forms = {"from the sums": from_state_on_cpu, "one kernel": with_separate_state}
    forms |= kernels(in_a_kernel)
    kernel = _kernels.Wanted("log_softmax", scaling.where) if scaling.sink is None else None
    own_forms = choose(Request("log_softmax", x, own, bool(names), kernel=kernel)).functions(forms)
    return by_platform("the map", x, scaling, plain=from_state, **own_forms)


def _of_kernel(
    name: _kernels.Name,
    platform: _kernels.Platform,
    x: Array,
    scaling: Scaling,
    plain: Callable[[Array, Scaling], tuple[Array, online.State]],
) -> tuple[Array, online.State]:
    """A map and the state of every row from a kernel, with dtypes and derivatives of the plain form."""

    def kernel(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        out, top, rest = _kernels.called(name, platform, _kernels.arrays_of(x, scaling))
        return out.astype(rest.dtype), online.State(top.astype(x.dtype), rest)

    return _kernels.with_plain_tangent(kernel, plain)(x, scaling)


def is_live(rest: Array) -> Array:
    """1, but 0 in an empty row; a factor where a select of all classes costs more. 1 if the rest is NaN."""
    return (~(rest < 0)).astype(rest.dtype)
