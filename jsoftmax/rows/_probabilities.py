"""The probabilities of a row, from its shifted logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from jsoftmax import online, rules
from jsoftmax.backends import _accelerators, _choice, _cpu_maps
from jsoftmax.backends._choice import Feeds, Request, choose
from jsoftmax.logits._scaling import Scaling, Shifted, exponentials, is_peak, shifted
from jsoftmax.rows import _reductions
from jsoftmax.transforms._platforms import by_platform, hidden

Axes = tuple[int | str, ...]


def of_shifted(z: Shifted, rest: Array) -> Array:
    """``exp(u)/(1 + rest)``; 0 in an empty row."""
    return exponentials(z) / (1 + jnp.where(rest < 0, 0, rest))


def all_probabilities(x: Array, scaling: Scaling, axes: Axes) -> tuple[Array, online.State]:
    """The probabilities of every row, and its state."""

    def found(x: Array, scaling: Scaling, state: online.State) -> Array:
        return of_shifted(shifted(x, scaling, state.max), state.rest)

    forms = _Forms("softmax", found, _accelerators.fused_softmax)
    return _with_state(forms, x, scaling, axes)


def all_log_probabilities(x: Array, scaling: Scaling, axes: Axes) -> tuple[Array, online.State]:
    """The log-probabilities of every row, −inf in an empty row, and its state."""

    def found(x: Array, scaling: Scaling, state: online.State) -> Array:
        return shifted(x, scaling, state.max, at_top=True).u - online.log_total(state.rest)

    forms = _Forms("log_softmax", found, _accelerators.fused_log_softmax)
    return _with_state(forms, x, scaling, axes)


class _Forms(NamedTuple):
    """The two forms of a map: from the state of every row, and in one kernel on GPU."""

    name: Literal["softmax", "log_softmax"]
    found: Callable[[Array, Scaling, online.State], Array]
    fused_on_gpu: Callable[[Array, Scaling, tuple[int, ...]], Array]


def _with_state(forms: _Forms, x: Array, scaling: Scaling, axes: Axes) -> tuple[Array, online.State]:
    """A map, and the state of every row; XLA drops the state if it is not used."""

    def from_state(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        state, _ = _reductions.reduce(x, scaling, axes)
        return forms.found(x, scaling, state), state

    def beside_state(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        return forms.fused_on_gpu(x, scaling, own), _reductions.reduce(x, scaling, axes)[0]

    def of_many_rows(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        feeds: Feeds = "exponentials" if of_exponentials else "differences"
        state, _ = _reductions.reduce(x, scaling, axes, feeds=feeds)
        if plan.cpu is not None and plan.cpu.name != "from the sums":
            return _cpu_maps.softmax(plan.cpu, own, x, state.max), state
        arrays = x, scaling, state
        if not of_exponentials or x.dtype != rules.computing_dtype(x.dtype):
            arrays = hidden(arrays)
        return forms.found(*arrays), state

    own, names = rules.split_axes(axes)
    of_exponentials = forms.name == "softmax"  # XLA may store exponentials, and compute the map in place
    plan = choose(Request(forms.name, x, own, bool(names), scaling == Scaling(None)))
    cpu, gpu = _choice.own(plan.cpu, of_many_rows), _choice.own(plan.gpu, beside_state)
    return by_platform("the map", x, scaling, plain=from_state, cpu=cpu, gpu=gpu)


def marked(z: Shifted, rest: Array) -> Array:
    """`of_shifted`, but −1 in an empty row, because a live class may also round to 0."""
    return jnp.where(rest < 0, -1, of_shifted(z, rest))


def lead_sums(
    x: Array, scaling: Scaling, state: online.State, g: Array, axes: Axes, *, weighted: bool = False
) -> rules.RowSums:
    """The `rules.RowSums` of p and g; if `weighted`, of p and p·g.

    At most one sum uses exponentials: XLA on GPU would store exponentials that several sums use, in float32
    and in the shape of the logits.
    """
    z, leads = shifted(x, scaling, state.max), leading(x, scaling, state)
    rest = jnp.where(state.rest < 0, 0, state.rest)
    others = g * exponentials(z) / (1 + rest) if weighted else g
    u_lead, g_lead, g_others = rules.row_sums(
        axes, *(jnp.where(leads, a, 0.0) for a in (z.u, g)), jnp.where(leads, 0, others)
    )
    if weighted:
        g_lead = g_lead * jnp.exp(u_lead) / (1 + rest)
    return rules.RowSums(share_of_others(rest, u_lead), g_lead + g_others, g_others)


def leading(x: Array, scaling: Scaling, state: online.State) -> Array:
    """Where a class has p > 1/2, by a comparison of logits: with one of p, XLA on GPU splits its kernels."""
    return is_peak(x, scaling, state.max) & (state.rest >= 0) & (state.rest < 1)


def share_of_others(rest: Array, u_lead: Array) -> Array:
    """The sum of p over all classes except the leading one, whose u is 0 but has a derivative."""
    rest = jnp.where(rest < 0, 0, rest)
    return (rest + (1 - jnp.exp(u_lead))) / (1 + rest)
