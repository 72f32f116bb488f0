"""A row of shifted logits, and its probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends import _accelerators, _cpu, _cpu_maps
from jsoftmax.logits._scaling import Scaling, Shifted, exponentials, highest, is_peak, shifted
from jsoftmax.rows import _reductions
from jsoftmax.transforms._platforms import by_platform, hidden
from jsoftmax.transforms._sharding import is_known

Axes = tuple[int | str, ...]


def of_shifted(z: Shifted, rest: Array) -> Array:
    """``exp(u)/(1 + rest)``; 0 in an empty row."""
    return exponentials(z) / (1 + jnp.where(rest < 0, 0, rest))


def all_probabilities(x: Array, scaling: Scaling, axes: Axes) -> tuple[Array, online.State]:
    """`of_shifted` of whole rows, and the state of every row."""

    def found(x: Array, scaling: Scaling, state: online.State) -> Array:
        return of_shifted(shifted(x, scaling, state.max), state.rest)

    forms = _Forms(found, _accelerators.fused_softmax, _cpu_maps.for_softmax, of_exponentials=True)
    return _with_state(forms, x, scaling, axes)


def all_log_probabilities(x: Array, scaling: Scaling, axes: Axes) -> tuple[Array, online.State]:
    """Their logarithms, −inf in an empty row, and the state of every row."""

    def found(x: Array, scaling: Scaling, state: online.State) -> Array:
        return shifted(x, scaling, state.max, at_top=True).u - online.log_total(state.rest)

    forms = _Forms(found, _accelerators.fused_log_softmax, None, of_exponentials=False)
    return _with_state(forms, x, scaling, axes)


class _Forms(NamedTuple):
    """The forms of a map: from the state of every row, in one kernel on GPU, and in one chain on CPU."""

    found: Callable[[Array, Scaling, online.State], Array]
    fused_on_gpu: Callable[[Array, Scaling, tuple[int, ...]], Array]
    for_cpu: Callable[[Array, tuple[int, ...]], _cpu_maps.Map | None] | None
    of_exponentials: bool  # whether XLA may store the exponentials, and turn them into the map in place


def _with_state(forms: _Forms, x: Array, scaling: Scaling, axes: Axes) -> tuple[Array, online.State]:
    """A map, and the state of every row, which XLA leaves out if nothing uses it."""

    def from_state(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        state, _ = _reductions.reduce(x, scaling, axes)
        return forms.found(x, scaling, state), state

    def beside_state(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        return forms.fused_on_gpu(x, scaling, own), _reductions.reduce(x, scaling, axes)[0]

    def of_many_rows(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        feeds: _cpu.Feeds = "exponentials" if forms.of_exponentials else "differences"
        state, _ = _reductions.reduce(x, scaling, axes, feeds=feeds)
        if form is not None:
            return form(x, state.max), state
        arrays = x, scaling, state
        if not forms.of_exponentials or x.dtype != rules.computing_dtype(x.dtype):
            arrays = hidden(arrays)
        return forms.found(*arrays), state

    own, names = rules.split_axes(axes)
    form = None
    if forms.for_cpu is not None and not names and scaling == Scaling(None):
        form = forms.for_cpu(x, own)
    many = not names and is_known(x) and x.size >= _cpu.LEAST_SIZE
    of_gpu = not names and _accelerators.fuses(x, own)
    if not (many or of_gpu):
        return from_state(x, scaling)
    reason = "from the exponentials of the sums" if form is None else "one chain, which XLA's library fuses"
    return by_platform(
        "the map",
        x,
        scaling,
        plain=from_state,
        cpu=(of_many_rows, reason) if many else None,
        gpu=(beside_state, "one kernel, which reads a row once") if of_gpu else None,
    )


def is_live(rest: Array) -> Array:
    """1, but 0 in an empty row: a factor, as XLA on CPU does not fuse a select with sums."""
    return lax.stop_gradient(jnp.minimum(1 + rest, 1))


def lead_sums(
    x: Array, scaling: Scaling, state: online.State, g: Array, axes: Axes, *, weighted: bool = False
) -> rules.RowSums:
    """The `rules.RowSums` of p and g; weighted, of p and p·g.

    At most one sum takes exponentials: what several sums need, XLA on GPU stores, as float32 and in the shape
    of the logits.
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
    """Where a class has p > 1/2, seen by its logit: seen by p, XLA's kernels on GPU fall apart."""
    return is_peak(x, scaling, state.max) & (state.rest >= 0) & (state.rest < 1)


def share_of_others(rest: Array, u_lead: Array) -> Array:
    """The probability of all but the leading class, whose u is 0 but has a derivative."""
    rest = jnp.where(rest < 0, 0, rest)
    return (rest + (1 - jnp.exp(u_lead))) / (1 + rest)


def prediction(ordered: Array, axes: Axes) -> Array:
    """The first of the largest along one axis, and its shards, of logits in the order of z."""
    (axis,), names = rules.split_axes(axes)
    ordered = lax.stop_gradient(ordered)
    index = jnp.argmax(ordered, axis, keepdims=True).astype(jnp.int32)
    if not names:
        return index
    largest = jnp.max(ordered, axis, keepdims=True)
    leads = jnp.isnan(largest) | (largest == highest(largest, names))
    index = index + lax.axis_index(names) * ordered.shape[axis]
    return lax.pmin(jnp.where(leads, index, jnp.iinfo(jnp.int32).max), names)
