"""A row of logits as K + 1 events: K of its classes, given by their ids, and the tail, all other classes.

The u of a class is z − max z. The u of the tail is the log-sum-exp of the u of its classes, computed as a sum
over these classes, not as 1 minus the K others: nothing cancels. The softmax of the K + 1 values u gives the
probabilities of the events, so a function of these probabilities is a function of K + 1 logits. An id of −1
stands for no class: its event has u = −∞ and probability 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends import _reading
from jsoftmax.backends._row_blocks import both_in_row_blocks
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _probabilities, _reductions
from jsoftmax.transforms import _platforms
from jsoftmax.transforms._autodiff import with_rules
from jsoftmax.transforms._sharding import on_first_shard, on_one_device

Axes = tuple[int | str, ...]  # the last axis, and the mesh axes of the shards of the classes


class Events(NamedTuple):
    """The events of every row; also their tangents or cotangents."""

    u: Array  # [..., K + 1], the tail last
    top: Array  # [..., 1], the maximum of z


class _Saved(NamedTuple):
    """The residuals: the arguments, and the state of the tail and the maximum of every row."""

    x: Array
    ids: Array
    scaling: Scaling
    tail_max: Array  # the maximum of x in the tail, in the order of z
    tail_rest: Array  # the `online.State.rest` of the tail; −1 if the tail has no live class
    top: Array  # the maximum of x, in the order of z

    def tail(self) -> Array:
        """The softmax over the classes of the tail; 0 for all other classes."""
        # The events may be above the maximum of the tail. They are masked after the exponential: XLA on CPU
        # would compute that of a select by the ids one number at a time.
        z, rest = _scaling.shifted(self.x, self.scaling, self.tail_max), self.tail_rest
        p = _probabilities.of_shifted(z._replace(u=jnp.where(z.u > 0, 0, z.u)), rest)
        in_tail = _outside(self.x, self.ids, self.scaling) & ~(rest < 0)
        return jnp.where(in_tail, p, 0 * rest)  # NaN in a row with NaN

    def u(self) -> Array:
        """u of every class."""
        return _scaling.shifted(self.x, self.scaling, self.top).u


def _save(axes: Axes, x: Array, ids: Array, scaling: Scaling, hidden: Array | None) -> tuple[Events, _Saved]:
    in_tail = scaling._replace(where=_outside(x, ids, scaling))
    tail, _ = _reductions.reduce(x, in_tail, axes, mask_is_computed=True)
    # Only the shard that has the class contributes its logit; the other shards add 0.
    logits, here = rules.across(axes, picked(_scaling.live(x, scaling), ids), _is_here(x, ids))
    own = scaling._replace(where=None)
    logits = jnp.where(here > 0, logits, -jnp.inf)
    largest = jnp.max(_scaling.ordered_live(lax.stop_gradient(logits), own), -1, keepdims=True)
    top = jnp.maximum(lax.stop_gradient(tail.max), largest)
    in_order = own if own.temperature is None else own._replace(temperature=jnp.abs(own.temperature))
    of_tail = _shifted(tail.max, in_order, top) + online.log_total(tail.rest)
    of_tail = jnp.where(tail.rest < 0, -jnp.inf, of_tail)
    u = jnp.concatenate([_shifted(logits, own, top), of_tail], -1)
    found = Events(u, _scaling.maximum(scaling, top))
    saved = _Saved(x, ids, scaling, tail.max, tail.rest, top)
    if hidden is not None:
        # A row of weight 0 with a NaN becomes a fully masked row.
        has_numbers = ~hidden | ~jnp.any(jnp.isnan(u), -1, keepdims=True)
        scaling, _ = _scaling.mask_rows(scaling, has_numbers)
        of_rows = (jnp.where(has_numbers, a, -jnp.inf) for a in (saved.tail_max, saved.top))
        found = Events(jnp.where(has_numbers, u, -jnp.inf), jnp.where(has_numbers, found.top, 0))
        maximum, top = of_rows
        saved = _Saved(x, ids, scaling, maximum, jnp.where(has_numbers, saved.tail_rest, -1), top)
    return found, saved


def _shifted(logits: Array, scaling: Scaling, top: Array) -> Array:
    """u of some logits of a row with maximum `top`; −inf for a dead class, with derivative 0."""
    dead = logits == -jnp.inf
    return jnp.where(dead, -jnp.inf, _scaling.shifted(jnp.where(dead, 0, logits), scaling, top).u)


def _pull(axes: Axes, saved: _Saved, g: Events) -> tuple[Array, None, Scaling, None]:
    of_events, of_top = g
    x, scaling = saved.x, saved.scaling
    dz = jnp.zeros_like(saved.u())
    if of_events is not None:
        of_ids = jnp.where(_is_here(x, saved.ids) > 0, of_events[..., :-1], 0)
        dz = of_events[..., -1:] * saved.tail() + scattered(of_ids, saved.ids, x)
    dx, of_scaling = _scaling.pull(x, saved.u(), dz, scaling)
    if of_top is not None and of_scaling.temperature is not None:
        _, names = rules.split_axes(axes)
        dt = on_first_shard(of_top * _scaling.slope_of_maximum(scaling, saved.top), names)
        dt = of_scaling.temperature + _scaling.sum_to_shape(dt, of_scaling.temperature)
        of_scaling = of_scaling._replace(temperature=dt)
    return dx, None, of_scaling, None


def _push(axes: Axes, saved: _Saved, tangents: tuple[Any, ...]) -> Events:
    dx, _, by, _ = tangents
    dz = _scaling.push(saved.x, saved.u(), dx, by, saved.scaling)
    of_tail = jnp.sum(saved.tail() * dz, -1, keepdims=True)
    (of_u,) = rules.across(axes, jnp.concatenate([picked(dz, saved.ids), of_tail], -1))
    of_top = jnp.zeros_like(of_u[..., -1:])
    if by.temperature is not None:
        of_top = of_top + _scaling.slope_of_maximum(saved.scaling, saved.top) * by.temperature
    return Events(of_u, of_top)


def _has_sums(asked: tuple[bool, bool, Scaling, bool], saved: _Saved) -> bool:
    """Whether the gradient has sums: that of the scaling."""
    return any(jax.tree.leaves(asked[2]))


events = with_rules(*both_in_row_blocks(_save, _pull, has_sums=_has_sums), _push, selective=True)


def _is_here(x: Array, ids: Array) -> Array:
    """1 where an id is a class of this shard, else 0."""
    return ((ids >= 0) & (ids < x.shape[-1])).astype(x.dtype)


def _by_index(x: Array) -> bool:
    """Whether to gather and scatter by index: on one device, as converters have no such scatter.

    Else `_hits` compares all classes and ids.
    """
    return on_one_device(x, *range(x.ndim)) and not _platforms.is_portable()


def _in_range(x: Array, ids: Array, default: int) -> Array:
    """The ids, with `default` in place of each id that is not a class of this shard."""
    return jnp.where((ids >= 0) & (ids < x.shape[-1]), ids, default)


def _hits(x: Array, ids: Array) -> Array:
    """Whether class v has the k-th id of its row: [..., V, K]."""
    return _reading.is_label(ids[..., None, :], ids.ndim - 1, x.shape[-1])


def picked(x: Array, ids: Array) -> Array:
    """The entries of every row at its ids; 0 for an id that is not a class of this shard."""
    if not _by_index(x):
        return jnp.sum(jnp.where(_hits(x, ids), x[..., None], 0), -2)
    found = jnp.take_along_axis(x, _in_range(x, ids, 0), -1)
    return jnp.where(_is_here(x, ids) > 0, found, 0)


def scattered(values: Array, ids: Array, x: Array) -> Array:
    """An array like x with the values of every row added at its ids, and 0 elsewhere."""
    if ids.shape[-1] == 1 or not _by_index(x):
        return jnp.sum(jnp.where(_hits(x, ids), values[..., None, :], 0), -1)

    def of_row(values: Array, ids: Array) -> Array:
        return jnp.zeros(x.shape[-1], values.dtype).at[ids].add(values, mode="drop")

    return _over_rows(of_row, values, _in_range(x, ids, x.shape[-1]))


def _outside(x: Array, ids: Array, scaling: Scaling) -> Array:
    """The mask of the classes in the tail of every row."""

    def of_row(ids: Array) -> Array:
        return jnp.ones(x.shape[-1], bool).at[ids].set(False, mode="drop")

    if ids.shape[-1] > 1 and _by_index(x):
        outside = _over_rows(of_row, _in_range(x, ids, x.shape[-1]))
    else:
        outside = ~jnp.any(_hits(x, ids), -1)
    return outside if scaling.where is None else outside & scaling.where


def has_tail(axes: Axes, x: Array, ids: Array, scaling: Scaling) -> Array:
    """Whether the tail of a row has an unmasked class, on any shard."""
    _, names = rules.split_axes(axes)
    any_here = jnp.any(_outside(x, ids, scaling), -1, keepdims=True)
    return lax.pmax(any_here.astype(jnp.int32), names) > 0 if names else any_here


def _over_rows(function: Any, *arrays: Array) -> Array:
    rows = arrays[0].shape[:-1]
    flat = jax.vmap(function)(*(a.reshape(-1, a.shape[-1]) for a in arrays))
    return flat.reshape(*rows, flat.shape[-1])
