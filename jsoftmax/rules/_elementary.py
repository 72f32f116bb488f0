"""Elementary functions that are more accurate than those of XLA."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array, custom_jvp


@custom_jvp
def log1p(r: Array) -> Array:
    """``log(1 + r)`` for r > −1, to 2 ulp; on CPU, XLA's is less accurate and several times slower.

    With w = 1 + r rounded, this is ``log w + (r − (w − 1))/w``: the quotient corrects the rounding of w.
    """
    # Without the minimum, XLA may simplify w − 1 to r.
    w = jnp.minimum(1 + r, jnp.finfo(r.dtype).max)
    return jnp.log(w) + (r - (w - 1)) / w


log1p.defjvps(lambda dr, _, r: dr / (1 + r))


def expm1_series(d: Array) -> Array:
    """``(expm1(d) − d)/d² = 1/2! + d/3! + d²/4! + …`` for |d| < 1."""
    total: Array | float = 0.0
    for n in range(13 if d.dtype == jnp.float32 else 20, 1, -1):
        total = 1 / math.factorial(n) + d * total
    return jnp.asarray(total)


def expm1(d: Array) -> Array:
    """``exp(d) − 1`` for d ≤ 0, to 1 ulp; XLA's expm1 is up to 5 ulp off."""
    near = d > -1
    small = jnp.where(near, d, 0.0)
    return jnp.where(near, small + small * small * expm1_series(small), jnp.exp(jnp.where(near, -1, d)) - 1)


@custom_jvp
def sigmoid(x: Array) -> Array:
    """``1/(1 + exp(−x))``, the first of the two probabilities of logits (x, 0); small ones keep their digits.

    >>> import jax.numpy as jnp
    >>> from jsoftmax import rules
    >>> print(rules.sigmoid(jnp.array([-jnp.inf, 0.0, jnp.inf])), f"{rules.sigmoid(jnp.float32(-30)):.4e}")
    [0.  0.5 1. ] 9.3576e-14
    """
    e = jnp.exp(-jnp.abs(x))
    return jnp.where(x < 0, e, 1) / (1 + e)


sigmoid.defjvps(lambda dx, p, x: dx * p * sigmoid(-x))


@custom_jvp
def softplus(x: Array) -> Array:
    """``log(1 + exp(x))``, the loss of the second class of logits (x, 0); its derivative is `sigmoid`."""
    return jnp.maximum(x, 0) + log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda dx, _, x: dx * sigmoid(x))


@custom_jvp
def log1mexp(n: Array) -> Array:
    """``log(1 − exp(−n))`` for n ≥ 0: log(1 − p) from n = −log p, also where p rounds to 1.

    Its derivative is 1/(exp(n) − 1). Source: Mächler, *Accurately computing log(1 − exp(−|a|))* (2012).

    >>> import jax.numpy as jnp
    >>> from jsoftmax import rules
    >>> print(jnp.round(rules.log1mexp(jnp.array([0.0, 1e-20, 0.6931472, 20.0])), 4))
    [    -inf -46.0517  -0.6931  -0.    ]
    """
    near = n < 0.6931
    q = jnp.where(near, -expm1(-jnp.where(near, n, 0.0)), 1.0)
    return jnp.where(near, jnp.log(q), log1p(-jnp.exp(-jnp.where(near, 1.0, n))))


log1mexp.defjvps(lambda dn, _, n: dn * jnp.exp(-n) / -expm1(-n))
