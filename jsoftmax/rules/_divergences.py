"""The closed forms of the divergences of two distributions, and of their derivatives."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array

from jsoftmax.rules._elementary import expm1, expm1_series, log1p
from jsoftmax.rules._rows import Axes, row_sums
from jsoftmax.rules._softmax import leading


def difference(p: Array, q: Array, d: Array) -> Array:
    """``q − p``, from p, q and d = log q − log p, so that it keeps its digits if p and q are close.

    Its size is the larger of p and q times −expm1(−|d|). d is +inf where only p is 0, −inf where only q is.
    """
    above = d > 0
    fall = expm1(jnp.where(above, -d, d))
    return jnp.where(above, -q * fall, p * fall)


def divergence_terms(p: Array, q: Array, d: Array, products: Array | None = None) -> Array:
    """``q − p − p·d``; its sum is KL(p‖q) = Σ p·(log p − log q), because p and q both sum to 1.

    No term is negative, so nothing cancels. An error that all d share drops out of the sum, because the
    derivative of a term in d is q − p. For |d| < 1 the term is ``p·(expm1(d) − d)``, by a series; else the
    larger of p and q is factored out. d is as in `difference`; where only q is 0, the term is +inf.
    `products`, if the caller knows them, are p·d, 0 where p or q is 0, also where d overflows.
    """
    near = jnp.abs(d) < 1
    small = jnp.where(near, d, 0.0)
    gap = jnp.abs(jnp.where(near | jnp.isinf(d), 1, d))
    fall = jnp.exp(-gap)
    far = jnp.where(d > 0, q * (1 - (1 + gap) * fall), p * (fall + (gap - 1)))
    if products is not None:
        far = jnp.where(d < -(2.0**64), -products, far)  # the same number unless d overflows
    terms = jnp.where(near, p * (small * small) * expm1_series(small), far)
    return jnp.where(d == jnp.inf, q, jnp.where(d == -jnp.inf, jnp.inf, terms))


def kl_terms_of_others(p: Array, d: Array, leads: Array, products: Array | None = None) -> Array:
    """``p·d``, but 0 at the leading class, and where p or q is 0; `products` as in `divergence_terms`."""
    of_live = p * jnp.where(jnp.isinf(d), 0, d) if products is None else products
    return jnp.where(leads, 0, of_live)


def kl_gradient_in_p(
    p: Array,
    d: Array,
    kl: Array,
    axis: Axes = -1,
    *,
    leads: Array | None = None,
    others: tuple[Array, Array] | None = None,
    products: Array | None = None,
) -> Array:
    """The gradient of KL(p‖q) in the logits of p, ``−p·(d + KL)``, d = log q − log p; 0 where KL is +inf.

    If the caller knows them, `leads` marks the leading class, p > 1/2, `others` are ``Σ p`` and ``Σ p·d``
    over the other classes of its row, and `products` are as in `divergence_terms`.
    """
    leads = leading(p) if leads is None else leads
    if others is None:
        of_p, of_terms = row_sums(axis, jnp.where(leads, 0, p), kl_terms_of_others(p, d, leads, products))
    else:
        of_p, of_terms = others
    infinite = kl == jnp.inf
    d, kl = jnp.where(jnp.isinf(d), 0, d), jnp.where(infinite, 0, kl)
    if products is None:
        products, near_d = jnp.zeros_like(d), d
    else:  # d + KL may overflow although p·d + p·KL does not
        far = jnp.abs(d) > 2.0**100
        products, near_d = jnp.where(far, products, 0), jnp.where(far, 0, d)
    # At the leading class d + KL = d − Σ p·d = d·(1 − p) − Σ_others p·d.
    terms = p * jnp.where(leads, near_d * of_p - of_terms, near_d + kl)
    return jnp.where(infinite, 0, -(terms + jnp.where(leads, products * of_p, products)))


def kl_gradient_in_q(p: Array, q: Array, d: Array) -> Array:
    """The gradient of KL(p‖q) in the logits of q, ``q − p``; 0 where only q is 0, which makes KL +inf."""
    return jnp.where(d == -jnp.inf, 0, difference(p, q, d))


def log_to_mean(d: Array) -> tuple[Array, Array]:
    """``log(m/p)`` and ``log(m/q)`` for the mean m = (p + q)/2, from d = log q − log p.

    JS is the mean of KL(p‖m) and KL(q‖m). Both logits change m, but Σ m stays 1. So the gradients of JS are
    half of `kl_gradient_in_p`, with p and log(m/p), and with q and log(m/q).
    """
    above = d > 0
    gap = jnp.where(above, d, -d)
    # The larger of the two is m·(1 + tanh(gap/2)); the other is exp(−gap) times it.
    fall = expm1(-gap)
    from_larger = -log1p(-fall / (2 + fall))
    from_smaller = gap + from_larger
    return jnp.where(above, from_smaller, from_larger), jnp.where(above, from_larger, from_smaller)


def log_to_mixture(d: Array, beta: Array) -> tuple[Array, Array]:
    """``log(m/p)`` and ``log(m/q)`` of the mixture m = β·p + (1 − β)·q, from d = log q − log p.

    As both logits move m, but Σ m stays, the gradients of β·KL(p‖m) + (1 − β)·KL(q‖m) are `kl_gradient_in_p`
    times β, of p and log(m/p), and times 1 − β, of q and log(m/q).
    """
    above = d > 0
    gap = jnp.where(above, d, -d)
    of_smaller, of_larger = jnp.where(above, beta, 1 - beta), jnp.where(above, 1 - beta, beta)
    # The smaller of the two is exp(−gap) times the larger. If β or 1 − β is tiny, so may be one logarithm.
    fall = expm1(-gap)
    off = of_smaller * fall
    close = off > -0.5
    from_larger = jnp.where(
        close, log1p(jnp.where(close, off, 0)), jnp.log(of_larger + of_smaller * jnp.exp(-gap))
    )
    largest = 0.9 * math.log(float(jnp.finfo(gap.dtype).max))
    below = gap < largest
    limited = jnp.where(below, gap, 0)
    rise = -expm1(-limited) * jnp.exp(limited)
    from_smaller = jnp.where(below, log1p(of_larger * rise), gap + from_larger)
    return jnp.where(above, from_smaller, from_larger), jnp.where(above, from_larger, from_smaller)


def binary_entropy(beta: Array) -> Array:
    """``−β·log β − (1 − β)·log(1 − β)``, the most that the divergence from a mixture can be."""
    return -beta * jnp.log(beta) - (1 - beta) * log1p(-beta)
