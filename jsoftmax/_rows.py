"""A row of shifted logits, and its probabilities."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import _accelerators, _cpu, _cpu_maps, _reductions, online, rules
from jsoftmax._scaling import Scaling, Shifted, exponentials, highest, ordered_live, shifted

Axes = tuple[int | str, ...]


def probabilities(z: Shifted, rest: Array) -> Array:
    """``exp(u)/(1 + rest)``; 0 in an empty row."""
    return exponentials(z) / (1 + jnp.where(rest < 0, 0, rest))


def all_probabilities(x: Array, scaling: Scaling, axes: Axes) -> tuple[Array, online.State]:
    """`probabilities` of whole rows, and the state of every row."""

    def found(x: Array, scaling: Scaling, state: online.State) -> Array:
        return probabilities(shifted(x, scaling, state.max), state.rest)

    return _with_state(found, _accelerators.fused_softmax, _cpu_maps.softmax, 1, x, scaling, axes)


def all_log_probabilities(x: Array, scaling: Scaling, axes: Axes) -> tuple[Array, online.State]:
    """Their logarithms, −inf in an empty row, and the state of every row."""

    def found(x: Array, scaling: Scaling, state: online.State) -> Array:
        return shifted(x, scaling, state.max, at_top=True).u - online.log_total(state.rest)

    shortest = _cpu.LONGEST_COLUMNS + 1
    on_gpu, on_cpu = _accelerators.fused_log_softmax, _cpu_maps.log_softmax
    return _with_state(found, on_gpu, on_cpu, shortest, x, scaling, axes)


def _with_state(
    found: Callable[[Array, Scaling, online.State], Array],
    fused: Callable[[Array, Scaling, tuple[int, ...]], Array],
    fused_on_cpu: Callable[[Array, Array, tuple[int, ...]], Array],
    shortest_on_cpu: int,
    x: Array,
    scaling: Scaling,
    axes: Axes,
) -> tuple[Array, online.State]:
    """What is found of the state, which a fused form does not need: nobody may ask for it."""

    def from_state(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        state, _ = _reductions.reduce(x, scaling, axes)
        return found(x, scaling, state), state

    def on_cpu(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        state, _ = _reductions.reduce(x, scaling, axes)
        return fused_on_cpu(x, state.max, own), state

    def beside_state(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        return fused(x, scaling, own), _reductions.reduce(x, scaling, axes)[0]

    own, names = rules.split_axes(axes)
    for_cpu = for_gpu = from_state
    if not names and scaling == Scaling(None) and _cpu_maps.fuses(x, own, shortest_on_cpu):
        for_cpu = on_cpu
    if not names and _accelerators.fuses(x, own):
        for_gpu = beside_state
    if for_cpu is for_gpu:
        return from_state(x, scaling)
    return lax.platform_dependent(x, scaling, cpu=for_cpu, tpu=from_state, default=for_gpu)


def marked_probabilities(z: Shifted, rest: Array) -> Array:
    """`probabilities`, with −1 all along an empty row: 0 is what a live class may round to."""
    return jnp.where(rest < 0, -1, probabilities(z, rest))


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
        axes, *(jnp.where(leads, a, 0) for a in (z.u, g)), jnp.where(leads, 0, others)
    )
    if weighted:
        g_lead = g_lead * jnp.exp(u_lead) / (1 + rest)
    return rules.RowSums(share_of_others(rest, u_lead), g_lead + g_others, g_others)


def leading(x: Array, scaling: Scaling, state: online.State) -> Array:
    """Where a class has p > 1/2, seen by its logit: seen by p, XLA's kernels on GPU fall apart."""
    return (ordered_live(x, scaling) == state.max) & (state.rest >= 0) & (state.rest < 1)


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
