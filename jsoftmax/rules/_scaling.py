"""The derivatives of z = cap·tanh(x/cap)/T in the logits x, the soft cap and the temperature T."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, custom_jvp
from jax.typing import ArrayLike

from jsoftmax.rules._softmax import finite


def temperature_jvp(u: Array, dx: Array, dt: ArrayLike | None, temperature: Array) -> Array:
    """The derivative of ``z = x/T`` along (dx, dT), up to a constant per row: ``(dx − u·dT)/T``.

    `u` is z minus the maximum of its row. Use it for functions of z that a shift of the row does not change.
    A dT of None is 0.
    """
    return (dx if dt is None else dx - finite(u) * dt) / temperature


def temperature_vjp(u: Array, dz: Array, temperature: Array) -> tuple[Array, Array]:
    """The cotangents of x and T in ``z = x/T``: ``dz/T`` and, for each class before the sum, ``−dz·u/T``.

    `u` is z minus the maximum of its row. If `dz` sums to 0 over a row, this shift does not change the sum.
    """
    dx = dz / temperature
    return dx, -dx * finite(u)


def soft_cap_jvp(x: Array, cap: Array, dx: Array, dcap: ArrayLike | None) -> Array:
    """The derivative of ``cap·tanh(x/cap)`` along (dx, dcap); a dcap of None is 0."""
    in_x, in_cap = _soft_cap_slopes(x / cap)
    return in_x * dx if dcap is None else in_x * dx + in_cap * dcap


def soft_cap_vjp(x: Array, cap: Array, dy: Array) -> tuple[Array, Array]:
    """The cotangents of x and cap in ``y = cap·tanh(x/cap)``; that of cap for each class, before the sum."""
    in_x, in_cap = _soft_cap_slopes(x / cap)
    return in_x * dy, in_cap * dy


def _soft_cap_slopes(a: Array) -> tuple[Array, Array]:
    """The slopes in x and in cap, with a = x/cap: ``sech² a`` and ``tanh a − a·sech² a``.

    The second is ``(sinh 2a − 2a)/(2·cosh² a)``. It cancels for a small a, which uses a series instead.
    """
    decay = jnp.exp(-2 * jnp.abs(a))
    in_x = 4 * decay / jnp.square(1 + decay)
    small = jnp.abs(a) < 0.5
    square, series = jnp.square(jnp.where(small, 2 * a, 0.0)), jnp.ones_like(a)
    for n in range(18, 2, -2):  # sinh b − b = b³/6·(1 + b²/(4·5)·(1 + b²/(6·7)·(…)))
        series = 1 + square / (n * (n + 1)) * series
    at_small = jnp.where(small, a, 0.0) * square / 3 * series * in_x / 2
    away = jnp.where(small | (decay == 0), 0, a)
    at_large = jnp.where(decay == 0, jnp.sign(a), jnp.tanh(away) - away * in_x)
    return in_x, jnp.where(small, at_small, at_large)


@custom_jvp
def signed(x: Array, temperature: Array) -> Array:
    """``x·sign T``; its derivative in the temperature is 0, also where x is infinite.

    Not jnp.sign: a kernel for a TPU that has it cannot be lowered where there is no TPU.
    """
    return x * (temperature / jnp.abs(temperature)).astype(x.dtype)


@signed.defjvp
def _signed_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, temperature), (dx, _) = primals, tangents
    return signed(x, temperature), signed(dx, temperature)


@custom_jvp
def divided(u: Array, temperature: Array) -> Array:
    """``u/|T|``; −inf at a dead class, with a derivative of 0 in the temperature, where JAX's is infinite.

    XLA multiplies by 1/T. For a large T, which would make 1/T subnormal, u and T are both scaled down.
    """
    scale = jnp.where(jnp.abs(temperature) > 2.0**64, 2.0**-64, 1).astype(u.dtype)
    return (u * scale) / (jnp.abs(temperature) * scale)


@divided.defjvp
def _divided_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (u, temperature), (du, dt) = primals, tangents
    finite_u = jnp.where(u == -jnp.inf, 0, u)
    return divided(u, temperature), (du - finite_u * dt / temperature) / jnp.abs(temperature)
