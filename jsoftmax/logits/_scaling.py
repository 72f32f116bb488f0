"""Maps logits x to ``z = cap·tanh(x/cap)/T`` over the live classes, minus the maximum of its row.

A *row* spans the axes in `axes`; per-row numbers keep these axes with length 1. A class is *dead* if it is
masked or its logit is −inf, else *live*. A row without a live class is *empty*.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.border._arrays import broadcasts
from jsoftmax.border._call import Call, Logits
from jsoftmax.logits import _rounding
from jsoftmax.transforms._sharding import sharded_like

Axes = tuple[int | str, ...]  # array axes, and mesh axes if the classes are sharded


class Scaling(NamedTuple):
    """The mask and the numbers in ``z = cap·tanh(x/cap)/T``; also their tangents or cotangents.

    `sink` is a further logit of every row; only the maps have one, and `backends._sinks` adds it to a row.
    """

    where: Array | None
    temperature: Array | None = None
    soft_cap: Array | None = None
    sink: Array | None = None


class Shifted(NamedTuple):
    """``u = z − max z``, rounded: 0 at the maximum, −inf at dead classes; shifted before the division by T.

    `slip` is the exact ``z − max z`` minus u. The roundings in u have a relative error, and exp(u) has |u|
    times that error. `shifted` computes the slip if a temperature adds a second rounding, unless the logits
    have 16 bits. The rounding of x − max alone is within the contract.
    """

    u: Array
    slip: Array | None


def of_call(call: Call, x: Logits, axes: tuple[int, ...]) -> Scaling:
    """The scaling that the arguments of a public call specify."""
    dtype = rules.computing_dtype(x.dtype)
    temperature, cap = (call.per_row(name, x, axes, dtype) for name in ("temperature", "soft_cap"))
    scaling = Scaling(call.mask(x.shape), temperature, cap, call.sink(x, axes, dtype))
    return jax.tree.map(lambda a: sharded_like(a, x), scaling)


def one_if_unused(option: Array | None, counted: Array | None, hidden: Array | None = None) -> Array | None:
    """An option per row, replaced by 1 in rows that do not count, and if NaN also in rows of weight 0."""
    if option is None:
        return None
    option = option if hidden is None else jnp.where(hidden & jnp.isnan(option), 1, option)
    return option if counted is None else jnp.where(counted, option, 1)


def of_used_rows(
    options: tuple[Array | None, ...], counted: Array | None, hidden: Array | None
) -> list[Array | None]:
    """The options, each that has one entry per row as by `one_if_unused`: there it may be out of range."""
    seen = counted if hidden is None else hidden
    return [
        option
        if seen is None or option is None or not broadcasts(seen.shape, option.shape)
        else one_if_unused(option, counted, hidden)
        for option in options
    ]


def mask_rows(scaling: Scaling, counted: Array | None, *arrays: Array) -> tuple[Scaling, tuple[Array, ...]]:
    """The scaling with rows that do not count fully masked, and the arrays with 0 in these rows."""
    if counted is None:
        return scaling, arrays
    where = counted if scaling.where is None else scaling.where & counted
    return scaling._replace(where=where), tuple(jnp.where(counted, a, 0) for a in arrays)


def ordered_live(x: Array, scaling: Scaling) -> Array:
    """The logits in the order of z: negated where T < 0, −inf where masked."""
    if scaling.temperature is not None:
        x = times_sign(x, scaling.temperature)
    return live(x, scaling)


def times_sign(x: Array, temperature: Array) -> Array:
    """x, negated where T < 0, except that −inf (a dead class) and +inf (an overflow) stay as they are."""
    return jnp.where(jnp.isinf(x), x, rules.signed(x, temperature))


def is_peak(x: Array, scaling: Scaling, top: Array) -> Array:
    """Where a live class equals the maximum of its row; a short comparison, as XLA:GPU stores longer ones."""
    return live(x, scaling).astype(top.dtype) == (
        top if scaling.temperature is None else times_sign(top, scaling.temperature)
    )


def is_dead(x: Array, scaling: Scaling) -> Array:
    """Where a class is masked or its logit is −inf."""
    return live(x, scaling) == -jnp.inf


def live(x: Array, scaling: Scaling) -> Array:
    """The logits, −inf where masked."""
    return x if scaling.where is None else jnp.where(scaling.where, x, -jnp.inf)


def shifted(x: Array, scaling: Scaling, top: Array, at_top: bool = False) -> Shifted:
    """The logits of a row, or of some of its classes, minus the maximum of the row, divided by T.

    With `at_top` (implied by a temperature), u is exactly 0 at the maximum, whatever XLA fuses with the
    difference.
    """
    if scaling.temperature is None or x.dtype.itemsize == 2:
        return Shifted(shift(x, scaling, top, 1, at_top or scaling.temperature is not None), None)
    gap = _gap(x, scaling, top, 0.5, True)
    u = _masked_exponent(2 * rules.divided(gap, scaling.temperature), scaling)
    return Shifted(u, lax.stop_gradient(_rounding.slip_of_quotient(u, gap, scaling.temperature)))


def shift(x: Array, scaling: Scaling, top: Array, fraction: float, at_top: bool = True) -> Array:
    """``fraction·u``; a fraction is a power of 2, so the product is exact."""
    if scaling.temperature is None:
        return _masked_exponent(_gap(x, scaling, top, fraction, at_top), scaling)
    # The difference of two logits may overflow although its quotient does not.
    half = _gap(x, scaling, top, fraction / 2, at_top)
    return _masked_exponent(2 * rules.divided(half, scaling.temperature), scaling)


def _masked_exponent(u: Array, scaling: Scaling) -> Array:
    return u if scaling.where is None else jnp.where(scaling.where, u, -jnp.inf)


def _gap(x: Array, scaling: Scaling, top: Array, fraction: float, at_top: bool) -> Array:
    """``fraction·(z − max z)`` before the division by T."""
    z, z_top = ordered(x, scaling, top)
    if fraction != 1:
        z, z_top = z * fraction, z_top * fraction
    if at_top:
        z = rules.rounded(z, z_top)
    u = z - z_top
    if scaling.soft_cap is not None:
        # XLA may compile tanh twice, with two roundings: this makes u 0 at the maximum and ≤ 0 elsewhere.
        is_top = is_peak(x, scaling, top) & (u > -jnp.inf)
        excess = lax.stop_gradient(jnp.where(is_top, u, jnp.maximum(u, 0.0)))
        u = u - jnp.where(excess == 0, 0, excess)
    return u


def ordered(x: Array, scaling: Scaling, top: Array) -> tuple[Array, Array]:
    """The logits and their maximum, capped, in the order of z; finite at masked classes and in empty rows."""
    dtype = rules.computing_dtype(x.dtype)
    x = masked(x, scaling.where).astype(dtype)  # NaN may lie under the mask
    top = jnp.maximum(top.astype(dtype), jnp.finfo(dtype).min)
    if scaling.soft_cap is not None:
        x, top = _capped(x, scaling.soft_cap), _capped(top, scaling.soft_cap)
    if scaling.temperature is not None:
        x = times_sign(x, scaling.temperature)
    return x, top


def _capped(x: Array, cap: Array) -> Array:
    """``cap·tanh(x/cap)``; x itself if |x| is far below the cap or infinite (a dead class or an overflow)."""
    stays = jnp.isinf(x) | (jnp.abs(x) < cap * (float(jnp.finfo(x.dtype).eps) ** 0.5 / 4))
    return jnp.where(stays, x, cap * jnp.tanh(rules.divided(jnp.where(stays, 0, x), cap)))


def with_slip(terms: Array, z: Shifted) -> Array:
    """The exponentials of the exact z − max, from those of u: ``exp(u + slip) ≈ exp(u)·(1 + slip)``."""
    return terms if z.slip is None else terms + terms * z.slip


def exponentials(z: Shifted) -> Array:
    """``exp(z − max z)``, with the slip; 0 at dead classes."""
    return with_slip(jnp.exp(z.u), z)


def maximum(scaling: Scaling, top: Array) -> Array:
    """The maximum of z, from the maximum of x in the order of z; 0 in an empty row."""
    _, z = ordered(top, scaling._replace(where=None), top)
    z = jnp.where(top == -jnp.inf, 0, z)
    return z if scaling.temperature is None else z / jnp.abs(scaling.temperature)


def slope_of_maximum(scaling: Scaling, top: Array) -> Array:
    """The derivative in the temperature of the maximum of z = x/T."""
    return -maximum(scaling, top) / jnp.asarray(scaling.temperature)


def masked(values: Array, where: Array | None) -> Array:
    """`values`, 0 where masked."""
    return values if where is None else jnp.where(where, values, 0.0)


def pull(x: Array, u: Array, dz: Array, scaling: Scaling) -> tuple[Array, Scaling]:
    """The cotangents of x and of the scaling, from the cotangent of z, which must sum to 0 over a row."""
    dx, of_classes = pull_per_class(x, u, dz, scaling)
    return dx, summed(of_classes, scaling)


def pull_per_class(x: Array, u: Array, dz: Array, scaling: Scaling) -> tuple[Array, Scaling]:
    """As `pull`, but the cotangent of the scaling is for each class, before the sum."""
    dz = masked(dz, scaling.where)
    dt = dcap = None
    if scaling.temperature is not None:
        dz, dt = rules.temperature_vjp(u, dz, scaling.temperature)
    if scaling.soft_cap is not None:
        dz, dcap = rules.soft_cap_vjp(masked(x, scaling.where).astype(dz.dtype), scaling.soft_cap, dz)
    return dz.astype(x.dtype), Scaling(None, dt, dcap)


def summed(of_classes: Scaling, scaling: Scaling) -> Scaling:
    """The cotangent of a scaling, from the contributions of all classes."""
    return jax.tree.map(sum_to_shape, of_classes, scaling._replace(where=None, sink=None))


def push(x: Array, u: Array, dx: Array | None, tangents: Scaling, scaling: Scaling) -> Array:
    """The tangent of z, up to a constant per row, from the tangents of x and of the scaling."""
    dz = jnp.zeros_like(u) if dx is None else masked(dx, scaling.where).astype(u.dtype)
    if scaling.soft_cap is not None:
        x = masked(x, scaling.where).astype(u.dtype)
        dz = rules.soft_cap_jvp(x, scaling.soft_cap, dz, tangents.soft_cap)
    if scaling.temperature is not None:
        dz = rules.temperature_jvp(u, dz, tangents.temperature, scaling.temperature)
    return masked(dz, scaling.where)


def sum_to_shape(values: Array, like: Array) -> Array:
    """The sum of `values` over each axis where `like` has length 1: it transposes a broadcast of `like`."""
    return jnp.sum(values, tuple(i for i, n in enumerate(like.shape) if n == 1), keepdims=True)
