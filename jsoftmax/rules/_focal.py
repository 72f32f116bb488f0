"""The focal loss ``(1 − p)^γ·n`` as a function of the loss n = −log p, with derivatives of every order.

With q = 1 − p = −expm1(−n), which has all digits of a small n,

    d/dn = q^γ·(1 + γ·B(n)),   B(n) = n/(exp(n) − 1),   B' = −B·(n + B)·S(n),   S(n) = (expm1(−n) + n)/n²

B falls from 1 at n = 0 to 0, and S from 1/2: no term is divided by a small number.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, custom_jvp

from jsoftmax.rules._elementary import expm1, expm1_series


@custom_jvp
def focal(n: Array, gamma: Array) -> Array:
    """``(1 − exp(−n))^γ·n`` for n ≥ 0 and γ ≥ 0; the loss itself for γ = 0, and 0 for n = 0.

    >>> import jax, jax.numpy as jnp
    >>> from jsoftmax import rules
    >>> n = jnp.array([0.0, 1e-10, 1.0, jnp.inf])
    >>> print(rules.focal(n, 2.0))
    [0.0000000e+00 1.0000001e-30 3.9957640e-01           inf]
    >>> print(jax.vmap(jax.grad(rules.focal), (0, None))(n, 2.0))
    [0.0000000e+00 3.0000002e-20 8.6466467e-01 1.0000000e+00]
    """
    return _power(-expm1(-n), gamma) * n


def focal_slope(n: Array, gamma: Array) -> Array:
    """The derivative of `focal` in n, ``q^γ·(1 + γ·B(n))``; 1 for n = +inf."""
    return _power(-expm1(-n), gamma) * (1 + gamma * _bernoulli(n))


def _focal_in_gamma(dgamma: Array, loss: Array, n: Array, gamma: Array) -> Array:
    q = -expm1(-n)
    finite = jnp.where(n == jnp.inf, 0, loss)  # there log q is 0
    return dgamma * finite * jnp.log(jnp.where(q == 0, 1, q))


focal.defjvps(lambda dn, _, n, gamma: dn * focal_slope(n, gamma), _focal_in_gamma)


@custom_jvp
def _power(q: Array, gamma: Array) -> Array:
    """``q^γ`` for q from 0 to 1; at q = 0 it is 1 for γ = 0, and 0 for all other γ, negative ones too.

    A negative γ comes from a derivative. It multiplies q² in the logits, so the limit of the product is 0.
    """
    at_zero = jnp.where(gamma == 0, 1, 0 * gamma)
    return jnp.where(q == 0, at_zero, jnp.power(jnp.where(q == 0, 1, q), gamma))


_power.defjvps(
    lambda dq, _, q, gamma: dq * gamma * _power(q, gamma - 1),
    lambda dgamma, power, q, gamma: dgamma * power * jnp.log(jnp.where(q == 0, 1, q)),
)


@custom_jvp
def _bernoulli(n: Array) -> Array:
    """``B(n) = n/(exp(n) − 1)``: 1 at 0, and 0 at +inf."""
    limit = (n == 0) | (n == jnp.inf)
    at = jnp.where(limit, 1, n)
    return jnp.where(limit, jnp.where(n == 0, 1, 0).astype(n.dtype), jnp.exp(-at) * at / -expm1(-at))


def _bernoulli_slope(dn: Array, b: Array, n: Array) -> Array:
    near = jnp.minimum(n, 1024)  # beyond, B is 0 in every dtype
    return -dn * b * (near + b) * _curve(near)


_bernoulli.defjvps(_bernoulli_slope)


def _curve(n: Array) -> Array:
    """``S(n) = (expm1(−n) + n)/n²``."""
    near = n < 1
    small, large = jnp.where(near, n, 0), jnp.where(near, 1, n)
    return jnp.where(near, expm1_series(-small), (expm1(-large) + large) / large / large)
