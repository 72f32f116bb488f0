"""Differences of logits with their rounding errors."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules


def _difference(a: Array, b: Array) -> tuple[Array, Array]:
    """``a − b``, rounded, and its rounding error (Knuth)."""
    difference = a - b
    back = a - difference
    return difference, (a - (difference + back)) + (back - b)


def half_gap(z_p: Array, top_p: Array, z_q: Array, top_q: Array) -> Array:
    """Half of ``(z_q − top_q) − (z_p − top_p)``, where the tops are the maxima of the rows z_p and z_q.

    It keeps its digits if p and q are close, and if a row has a large offset. Halves cannot overflow.
    """
    z_p, z_q = rules.rounded(z_p, top_p), rules.rounded(z_q, top_q)
    of_z, error = _difference(z_q / 2, z_p / 2)
    of_tops, error_of_tops = _difference(top_q / 2, top_p / 2)
    return (of_z - of_tops) + lax.stop_gradient(error - error_of_tops)


def slip(u: Array, z: Array, top: Array, temperature: Array | None) -> Array:
    """``(z − top)/|T| − u``, computed exactly and rounded once; 0 where a number in it is infinite."""
    z = rules.rounded(z, top)
    finite = jnp.isfinite(z - top) & jnp.isfinite(u)
    z, top, u = (jnp.where(finite, a, 0.0) for a in (z, top, u))
    difference, error = _difference(z, top)
    if temperature is None:
        return error
    scale = jnp.abs(temperature)
    u_high, scale_high = _high_half(u), _high_half(scale)
    u_low, scale_low = u - u_high, scale - scale_high
    of_quotient = difference - u_high * scale_high
    of_quotient = ((of_quotient - u_high * scale_low) - u_low * scale_high) - u_low * scale_low
    found = (error + of_quotient) / scale
    return jnp.where(jnp.abs(found) < 1, found, 0.0)


def slip_of_quotient(u: Array, half_gap: Array, temperature: Array) -> Array:
    """``2·half_gap/|T| − u`` with few operations and no select, for u ≤ 0 whose exponential is not 0."""
    least = -128.0 if u.dtype == jnp.float32 else -1024.0  # the exponential of less is 0
    half = jnp.abs(temperature) / 2
    half_high = _high_half(half)
    half_gap = jnp.maximum(half_gap, jnp.maximum(least * half, jnp.finfo(u.dtype).min))
    u = jnp.maximum(u, least)
    u_high = jnp.floor(u * 16) / 16  # so few bits that its product with `half_high` is exact
    found = ((half_gap - u_high * half_high) - u_high * (half - half_high)) / half - (u - u_high)
    return jnp.where(jnp.abs(found) < 2.0**-14, found, 0.0)  # T may be so small that the products underflow


def _high_half(a: Array) -> Array:
    """The leading half of the significand of a: a product of two such halves is exact (Dekker)."""
    product = a * (2.0**12 + 1 if a.dtype == jnp.float32 else 2.0**27 + 1)
    product = rules.rounded(product, product)  # else XLA fuses it with the difference, without rounding
    return product - (product - a)
