"""A row of shifted logits, and its probabilities."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends import _accelerators, _cpu, _cpu_maps
from jsoftmax.logits._scaling import Scaling, Shifted, exponentials, highest, is_peak, peak, shifted
from jsoftmax.rows import _reductions
from jsoftmax.transforms._platforms import by_platform, hidden
from jsoftmax.transforms._sharding import is_known

Axes = tuple[int | str, ...]


def of_shifted(z: Shifted, rest: Array) -> Array:
    """``exp(u)/(1 + rest)``; 0 in an empty row."""
    return exponentials(z) / (1 + jnp.where(rest < 0, 0, rest))


def all_probabilities(
    x: Array, scaling: Scaling, axes: Axes, *, with_state: bool
) -> tuple[Array, online.State | None]:
    """``exp(u)/Σ exp(u)`` of whole rows, 0 in an empty row; and the state of every row, if asked for."""

    def in_one_chain(x: Array, scaling: Scaling) -> tuple[Array, online.State | None]:
        """Without a comparison: XLA's library on CPU makes one kernel of it."""
        top = peak(x, scaling, axes)
        terms = exponentials(shifted(x, scaling, top))
        if x.dtype.itemsize == 2:
            (total,) = rules.row_sums(axes, terms)
            rest = total - 1
        else:
            # Ones are summed apart: beside a 1, small terms lose digits.
            ones = jnp.floor(terms)
            others, ones = rules.row_sums(axes, terms - ones, ones)
            total, rest = others + ones, others + (ones - 1)
        return terms / (total + 2.0**-60), online.State(top, rest) if with_state else None

    def from_state(x: Array, scaling: Scaling) -> tuple[Array, online.State | None]:
        state, _ = _reductions.reduce(x, scaling, axes)
        z = shifted(x, scaling, state.max)
        return of_shifted(z, state.rest), state if with_state else None

    def in_one_kernel(x: Array, scaling: Scaling) -> tuple[Array, online.State | None]:
        state = _reductions.reduce(x, scaling, axes)[0] if with_state else None
        return _accelerators.fused_softmax(x, scaling, own), state

    own, names = rules.split_axes(axes)
    cpu = gpu = tpu = None
    if not names and scaling == Scaling(None) and not with_state and (form := _cpu_maps.for_softmax(x, own)):
        cpu = (lambda x, scaling: (form(x), None)), "in blocks of a long row"
    if not names and _accelerators.takes_one_pass(x, own):
        gpu = tpu = from_state, "from sums that one pass finds"
        if _accelerators.fuses(x, own):
            gpu = in_one_kernel, "one kernel, which reads a row once"
    return by_platform("the map", x, scaling, plain=in_one_chain, cpu=cpu, gpu=gpu, tpu=tpu)


def all_log_probabilities(x: Array, scaling: Scaling, axes: Axes) -> tuple[Array, online.State]:
    """The logarithms of the probabilities, −inf in an empty row, and the state of every row."""

    def of_state(x: Array, scaling: Scaling, state: online.State) -> Array:
        return shifted(x, scaling, state.max, at_top=True).u - online.log_total(state.rest)

    def from_state(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        state, _ = _reductions.reduce(x, scaling, axes)
        return of_state(x, scaling, state), state

    def beside_state(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        return _accelerators.fused_log_softmax(x, scaling, own), _reductions.reduce(x, scaling, axes)[0]

    def of_many_rows(x: Array, scaling: Scaling) -> tuple[Array, online.State]:
        state, _ = _reductions.reduce(x, scaling, axes, feeds="differences")
        return of_state(*hidden((x, scaling, state))), state

    own, names = rules.split_axes(axes)
    cpu = gpu = None
    if not names and is_known(x) and x.size >= _cpu.LEAST_SIZE:
        cpu = of_many_rows, "from the exponentials of the sums"
    if not names and _accelerators.fuses(x, own):
        gpu = beside_state, "one kernel, which reads a row once"
    return by_platform("the map", x, scaling, plain=from_state, cpu=cpu, gpu=gpu)


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
