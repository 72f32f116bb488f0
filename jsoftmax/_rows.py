"""A row of shifted logits, summed, and its probabilities: every function of the family begins here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import _cpu, online, rules
from jsoftmax._scaling import Scaling, Shifted, highest, peak, shift, shifted
from jsoftmax._sharding import is_whole

Axes = tuple[int | str, ...]

# On CPU, XLA's sums over longer rows are several times slower, and what they share is stored whole.
LONGEST_WHOLE_ROW = 32768
BLOCK_SIZE = 2**20  # elements, over all rows


def _no_terms(z: Shifted, e: Array, arrays: Any) -> tuple[Array, ...]:
    return ()


def _no_shares(top: Array) -> tuple[Array, ...]:
    return ()


def reduce(
    x: Array,
    scaling: Scaling,
    axes: Axes,
    terms: Callable[[Shifted, Array, Any], tuple[Array, ...]] = _no_terms,
    arrays: Any = (),
    exact: bool = False,
    shares: Callable[[Array], tuple[Array, ...]] = _no_shares,
) -> tuple[online.State, tuple[Array, ...]]:
    """The state of every row, (maximum of x, rest of Σ exp(u)), and the sums of any further terms.

    `terms` makes them of the shifted logits, their exponentials, and `arrays` as long as the row. u/2 is
    computed anew: XLA on CPU stores what two sums share. `shares` makes of the maximum what each shard of a
    row adds to further sums over them.
    """
    own, _ = rules.split_axes(axes)
    top = peak(x, scaling, axes)
    form = None if terms is not _no_terms or exact or scaling != Scaling(None) else _form(x, axes)

    def all_terms(part: tuple[Array, Array | None, Any]) -> tuple[Array, ...]:
        x, where, arrays = part
        here = scaling._replace(where=where)
        z = shifted(x, here, top, exact)
        e = exponentials(z)
        half = jnp.exp(shift(x, here, top, 0.5))
        scaled_rest = slipped(half * (half * 2.0**64), z) - 2.0**64 * jnp.floor(half)
        return e, scaled_rest, *terms(z, e, arrays)

    if form is not None:

        def plain(x: Array, top: Array) -> Array:
            total, scaled_rest = rules.row_sums(axes, *all_terms((x, None, arrays)))
            return online.from_sums(top, total, scaled_rest).rest

        def on_cpu(x: Array, top: Array) -> Array:
            return _cpu.rest(form, x, top, own[0])

        return online.State(top, lax.platform_dependent(x, top, cpu=on_cpu, default=plain)), shares(top)
    sums = _sums(all_terms, (x, scaling.where, arrays), own)
    total, scaled_rest, *further = rules.across(axes, *sums, *shares(top))
    return online.from_sums(top, total, scaled_rest), tuple(further)


def _form(x: Array, axes: Axes) -> _cpu.Form | None:
    """The form for rows on CPU; None for more axes than one, or where they may lie on several devices."""
    own, names = rules.split_axes(axes)
    if names or len(own) != 1 or not is_whole(x, *own):
        return None
    return _cpu.choose(x.shape, own[0])


def _sums(terms: Callable[[Any], tuple[Array, ...]], row: Any, axes: tuple[int, ...]) -> tuple[Array, ...]:
    """The sums over a row of the terms made of it; on CPU over blocks of a long one."""
    x = row[0]

    def whole(row: Any) -> tuple[Array, ...]:
        return tuple(jnp.sum(t, axes, keepdims=True) for t in terms(row))

    def in_blocks(row: Any) -> tuple[Array, ...]:
        size = min(max(BLOCK_SIZE * classes // x.size, 512), 1024)
        steps = (classes - 1) // size
        first = classes - steps * size

        def block(start: Array | int, size: int) -> tuple[Array, ...]:
            return whole(jax.tree.map(lambda a: _slice(a, start, size, axis), row))

        def add(total: Array, lost: Array, part: Array) -> tuple[Array, Array]:
            """Compensated: what one addition loses, the next one gets."""
            part = part - lost
            longer = total + part
            return longer, jnp.where(jnp.isfinite(longer), (longer - total) - part, 0)

        def step(i: Array, sums: tuple[tuple[Array, Array], ...]) -> tuple[tuple[Array, Array], ...]:
            parts = block(first + i * size, size)
            return tuple(add(*total, part) for total, part in zip(sums, parts, strict=True))

        begun = tuple((part, jnp.zeros_like(part)) for part in block(0, first))
        return tuple(total for total, _ in lax.fori_loop(0, steps, step, begun))

    axis = max(axes, key=lambda i: x.shape[i], default=0)
    classes = x.shape[axis] if axes else 1
    if classes <= LONGEST_WHOLE_ROW or not x.size or not is_whole(x, axis):
        return whole(row)
    return lax.platform_dependent(row, cpu=in_blocks, default=whole)


def _slice(a: Array, start: Array | int, size: int, axis: int) -> Array:
    return a if a.shape[axis] == 1 else lax.dynamic_slice_in_dim(a, start, size, axis)


def slipped(terms: Array, z: Shifted) -> Array:
    """Exponentials of u, made those of the exact z − max: ``exp(u + slip) = exp(u)·(1 + slip)``."""
    return terms if z.slip is None else terms + terms * z.slip


def exponentials(z: Shifted) -> Array:
    """``exp(u)``, 0 where dead."""
    return slipped(jnp.exp(z.u), z)


def probabilities(z: Shifted, rest: Array) -> Array:
    """``exp(u)/(1 + rest)``; 0 in an empty row."""
    return exponentials(z) / (1 + jnp.where(rest < 0, 0, rest))


def all_probabilities(x: Array, scaling: Scaling, state: online.State, axes: Axes) -> Array:
    """`probabilities` of whole rows; on CPU, bare ones from exponentials computed once, in their place."""
    own, names = rules.split_axes(axes)

    def plain(x: Array, state: online.State) -> Array:
        return probabilities(shifted(x, scaling, state.max), state.rest)

    def on_cpu(x: Array, state: online.State) -> Array:
        terms = _cpu.exponentials(x, state.max)
        return terms / _cpu.total(terms, own)

    if names or scaling != Scaling(None):
        return plain(x, state)
    return lax.platform_dependent(x, state, cpu=on_cpu, default=plain)


def marked_probabilities(z: Shifted, rest: Array) -> Array:
    """`probabilities`, with −1 all along an empty row: 0 is what a live class may round to."""
    return jnp.where(rest < 0, -1, probabilities(z, rest))


def lead_sums(z: Shifted, rest: Array, g: Array, axes: Axes, *, weighted: bool = False) -> rules.RowSums:
    """The `rules.RowSums` of p and g; weighted, of p and p·g.

    The leading class is seen by its u, which is 0, and at most one sum takes exponentials: what several sums
    need, XLA on GPU stores, as float32 and in the shape of the logits.
    """
    rest = jnp.where(rest < 0, 0, rest)
    leads = (z.u == 0) & (rest < 1)
    others = g * exponentials(z) / (1 + rest) if weighted else g
    u_lead, g_lead, g_others = rules.row_sums(
        axes, *(jnp.where(leads, a, 0) for a in (z.u, g)), jnp.where(leads, 0, others)
    )
    of_lead = jnp.exp(u_lead)  # 1, but has a derivative
    if weighted:
        g_lead = g_lead * of_lead / (1 + rest)
    return rules.RowSums((rest + (1 - of_lead)) / (1 + rest), g_lead + g_others, g_others)


def log_total(rest: Array) -> Array:
    """``log Σ exp(u)``; 0 in an empty row, where u is −inf already."""
    return jnp.log1p(jnp.where(rest < 0, 0, rest))


def hits(labels: Array, axis: int, classes: int) -> Array:
    """Where a class is the label of its row: its index, compared. Nothing gathers or scatters."""
    shape = [1] * labels.ndim
    shape[axis] = classes
    return lax.broadcasted_iota(jnp.int32, shape, axis) == labels


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


def label_logit(x: Array, labels: Array, axis: int) -> Array:
    """The logit of each row's label. A sum over the row's one hit, which any sharding of the row keeps.

    On CPU, where XLA would store the summed array, it is read where it lies, if that is one device.
    """

    def compare(x: Array, labels: Array) -> Array:
        return jnp.sum(jnp.where(hits(labels, axis, x.shape[axis]), x, 0), axis, keepdims=True)

    def read(x: Array, labels: Array) -> Array:
        return jnp.take_along_axis(x, labels, axis, mode="clip")

    if not is_whole(x, axis):
        return compare(x, labels)
    return lax.platform_dependent(x, labels, cpu=read, default=compare)
