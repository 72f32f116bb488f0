"""A row of logits on its way to probabilities: masked, scaled, shifted by its maximum, summed.

Every function of the family begins with these few lines. A *row* is what `axes` span; per-row numbers keep
those axes with length 1. A class is *dead* where it is masked or its logit is −inf, and a row with no live
class is *empty*.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules

Axes = tuple[int, ...]


class Shifted(NamedTuple):
    """``(x − max)/T``, rounded: 0 at the maximum, −inf where dead. The shift comes before the scaling.

    `slip` is what the roundings took away, and exp passes on as a relative error |u| times as large. It is
    recovered where a temperature adds a second rounding; the one of x − max alone is within the contract.
    """

    u: Array
    slip: Array | None


def reduce(
    x: Array, where: Array | None, temperature: Array | None, axes: Axes
) -> tuple[Shifted, online.State]:
    """The shifted logits of every row, and the row's state: (maximum of x, rest of Σ exp(u)).

    Where the total is below 2, one class leads and its 1 would swamp the rest: there the rest is summed by
    itself, the floor of each exponential, which is 1 at the maximum and 0 elsewhere, taken out of its term.
    A constant, it leaves the derivative alone, to every order. The terms are squares of exp(u/2), scaled by
    2⁶⁴: none of those that matter underflows. u/2 is computed anew: XLA on CPU stores what two sums share.
    """
    top = peak(x, where, temperature, axes)
    z = shifted(x, where, temperature, top)
    total = jnp.sum(_slipped(jnp.exp(z.u), z), axes, keepdims=True)
    half = jnp.exp(_shift(x, where, temperature, top, 0.5))
    terms = _slipped(half * (half * 2.0**64), z) - 2.0**64 * jnp.floor(half)
    rest = jnp.sum(terms, axes, keepdims=True) * 2.0**-64
    return z, online.State(top, jnp.where((total >= 1) & (total < 2), rest, total - 1))


def shifted(x: Array, where: Array | None, temperature: Array | None, top: Array) -> Shifted:
    """The logits less the maximum of their row, over the temperature."""
    u = _shift(x, where, temperature, top, 1)
    if temperature is None:
        return Shifted(u, None)
    return Shifted(u, lax.stop_gradient(_slip(masked(x, where), temperature, top, u)))


def _shift(x: Array, where: Array | None, temperature: Array | None, top: Array, fraction: float) -> Array:
    """A fraction of u; fractions are powers of 2, and exact."""
    dtype = rules.computing_dtype(x.dtype)
    x = masked(x, where).astype(dtype)  # NaN may lie under the mask
    top = jnp.where(top == -jnp.inf, 0, top).astype(dtype)
    if fraction != 1:
        x, top = x * fraction, top * fraction
    u = x - top if temperature is None else (x * jnp.sign(temperature) - top) / jnp.abs(temperature)
    return u if where is None else jnp.where(where, u, -jnp.inf)


def _slipped(terms: Array, z: Shifted) -> Array:
    """Exponentials of u, made those of the exact (x − max)/T: ``exp(u + slip) = exp(u)·(1 + slip)``."""
    return terms if z.slip is None else terms + terms * z.slip


def _slip(x: Array, temperature: Array, top: Array, u: Array) -> Array:
    """The exact ``(x − max)/T − u``, but for its own rounding; 0 where anything is infinite."""
    x, top, scale = x.astype(u.dtype) * jnp.sign(temperature), top.astype(u.dtype), jnp.abs(temperature)
    difference = x - top
    finite = jnp.isfinite(difference) & jnp.isfinite(u)
    x, top, difference, u = (jnp.where(finite, a, 0) for a in (x, top, difference, u))
    back = x - difference
    of_difference = (x - (difference + back)) + (back - top)
    u_high, scale_high = _high_half(u), _high_half(scale)
    u_low, scale_low = u - u_high, scale - scale_high
    of_quotient = difference - u_high * scale_high
    of_quotient = ((of_quotient - u_high * scale_low) - u_low * scale_high) - u_low * scale_low
    slip = (of_difference + of_quotient) / scale
    return jnp.where(jnp.abs(slip) < 1, slip, 0)


def _high_half(a: Array) -> Array:
    """The leading half of the significand: products of two such halves are exact."""
    bits, half = (jnp.uint32, 12) if a.dtype == jnp.float32 else (jnp.uint64, 27)
    return lax.bitcast_convert_type(lax.bitcast_convert_type(a, bits) >> half << half, a.dtype)


def probabilities(z: Shifted, rest: Array) -> Array:
    """``exp(u)/(1 + rest)``; 0 in an empty row."""
    return _slipped(jnp.exp(z.u), z) / (1 + jnp.where(rest < 0, 0, rest))


def marked_probabilities(z: Shifted, rest: Array) -> Array:
    """`probabilities`, with −1 all along an empty row: 0 is what a live class may round to."""
    return jnp.where(rest < 0, -1, probabilities(z, rest))


def complement(z: Shifted, rest: Array) -> Array:
    """``1 − p`` at the maximal class, with all its digits: the other exponentials over the total."""
    rest = jnp.where(rest < 0, 0, rest)
    return (rest + (1 - jnp.exp(z.u))) / (1 + rest)


def log_total(rest: Array) -> Array:
    """``log Σ exp(u)``; 0 in an empty row, where u is −inf already."""
    return jnp.log1p(jnp.where(rest < 0, 0, rest))


def masked(values: Array, where: Array | None) -> Array:
    """`values` where live, 0 under the mask."""
    return values if where is None else jnp.where(where, values, 0)


def pull_scaling(
    u: Array, dz: Array, where: Array | None, temperature: Array | None
) -> tuple[Array, Array | None]:
    """The cotangents of x and of the temperature, from that of z = x/T."""
    dz = masked(dz, where)
    if temperature is None:
        return dz, None
    dx, dt = rules.temperature_vjp(u, dz, temperature)
    spread = tuple(i for i, n in enumerate(temperature.shape) if n == 1)
    return dx, jnp.sum(dt, spread, keepdims=True)


def push_scaling(
    u: Array, dx: Array | None, dt: Array | None, where: Array | None, temperature: Array | None
) -> Array:
    """The tangent of z = x/T, up to a shift of the row, from those of x and of the temperature."""
    dz = jnp.zeros_like(u) if dx is None else masked(dx, where).astype(u.dtype)
    if temperature is None:
        return dz
    return rules.temperature_jvp(u, dz, 0 if dt is None else dt, temperature)


def peak(x: Array, where: Array | None, temperature: Array | None, axes: Axes) -> Array:
    """The maximum over the live classes of x (of −x where T < 0), exact in x's dtype; −inf if empty."""
    if temperature is not None:
        x = x * jnp.sign(temperature).astype(x.dtype)
    if where is not None:
        x = jnp.where(where, x, -jnp.inf)
    return lax.stop_gradient(jnp.max(x, axes, keepdims=True))
