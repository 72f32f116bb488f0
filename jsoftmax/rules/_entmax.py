"""The closed forms of entmax, the sparse maps from softmax (α → 1) over sparsemax (α = 2), and of its losses.

    pᵢ = [β·zᵢ − τ]₊^(1/β),   β = α − 1,   Σp = 1

With the row shifted to u = z − max z, and h = −τ, this is pᵢ = [rᵢ]₊^(1/β) for rᵢ = h + β·uᵢ. The classes
with p > 0 are the support; there r = p^β. All forms take `log_p`, the logarithm of p, as 0 where p is 0.
"""

from __future__ import annotations

from typing import TypeAlias

import jax.numpy as jnp
from jax import Array, custom_jvp
from jax.typing import ArrayLike

from jsoftmax.rules._elementary import expm1, expm1_series, log1p
from jsoftmax.rules._rows import Axes, row_sums

# 2.0 and 1.5 as floats have their own forms, without logarithms.
Alpha: TypeAlias = float | Array


@custom_jvp
def log_power(v: Array, beta: Array) -> Array:
    """``L = log [1 + β·v]₊ / β``, −inf where 1 + β·v is not above 0; it tends to v for β → 0.

    Its derivative in β is ``−L²·φ(−β·L)``, φ as in `excess`, in which nothing cancels for β → 0.
    """
    change = beta * v
    outside = change <= -1
    return jnp.where(outside, -jnp.inf, log1p(jnp.where(outside, 0, change)) / beta)


@log_power.defjvp
def _log_power_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (v, beta), (dv, dbeta) = primals, tangents
    out = log_power(v, beta)
    outside = out == -jnp.inf
    inner, change = jnp.where(outside, 0, out), jnp.where(outside, 0, beta * v)
    tangent = dv / (1 + change) - dbeta * jnp.square(inner) * excess(-beta * inner)
    return out, jnp.where(outside, 0, tangent)


def excess(a: Array) -> Array:
    """``φ(a) = (exp(a) − 1 − a)/a²``, which is 1/2 at 0."""
    near = jnp.abs(a) < 1
    far = jnp.where(near, 1, a)
    return jnp.where(near, expm1_series(jnp.where(near, a, 0)), (jnp.exp(far) - 1 - far) / jnp.square(far))


def entmax_slopes(p: ArrayLike, alpha: ArrayLike) -> Array:
    """The slopes ``s = p^(2 − α)`` on the support, 0 elsewhere: the Jacobian is ``diag(s) − s sᵀ/Σs``.

    >>> import jax.numpy as jnp
    >>> from jsoftmax import rules
    >>> rules.entmax_slopes(jnp.array([0.75, 0.25, 0.0]), 2.0)
    Array([1., 1., 0.], dtype=float32)
    """
    p = jnp.asarray(p)
    outside = p <= 0
    powers = jnp.exp((2 - jnp.asarray(alpha, p.dtype)) * jnp.log(jnp.where(outside, 1, p)))
    return jnp.where(outside, 0, powers)


def entmax_centered(s: Array, v: Array, axis: Axes = -1) -> Array:
    """``v − ⟨s, v⟩/Σs``, v minus its mean weighted by the slopes s.

    It is applied twice: where one class has nearly all of Σs, the first difference leaves a rounding error
    there, and the second subtracts it.
    """
    (total,) = row_sums(axis, s)
    total = jnp.where(total == 0, 1, total)
    for _ in range(2):
        v = v - row_sums(axis, s * v)[0] / total
    return v


def entmax_product(s: ArrayLike, v: ArrayLike, axis: Axes = -1) -> Array:
    """The Jacobian of entmax applied to `v`, ``s·(v − ⟨s, v⟩/Σs)``, from the `entmax_slopes` s.

    The Jacobian is symmetric.

    >>> import jax.numpy as jnp
    >>> from jsoftmax import rules
    >>> rules.entmax_product(jnp.array([1.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 7.0]))
    Array([ 0.5, -0.5,  0. ], dtype=float32)
    """
    s, v = jnp.asarray(s), jnp.asarray(v)
    return s * entmax_centered(s, v, axis)


def entmax_alpha_terms(p: Array, log_p: Array, s: Array, alpha: Alpha) -> Array:
    """``k = p·log²p·φ(−β·log p)``: the derivative of entmax in α is ``−(k − s·Σk/Σs)``.

    This is the rule of Correia, Niculae & Martins (2019), without the differences of terms divided by β² that
    lose all digits for α → 1, where k is ``p·log²p/2``.
    """
    beta = alpha - 1
    a = -beta * log_p
    near = a < 1
    at_near = p * jnp.square(log_p) * excess(jnp.where(near, a, 0))
    return jnp.where(near, at_near, (s - p * (1 + a)) / jnp.square(beta))


def entmax_loss_terms(p: Array, t: Array, alpha: Alpha) -> Array:
    """``(β·p^α + t^α − α·t·p^β)/(α·β)``, 0 at p = t, and above 0 elsewhere.

    Their sum over a row, and that of `entmax_loss_outside`, is the Fenchel-Young loss of targets t.
    """
    if isinstance(alpha, float) and alpha == 2:
        return jnp.square(p - t) / 2
    if isinstance(alpha, float) and alpha == 1.5:
        of_p, of_t = _root(p), _root(t)
        total = of_p + of_t
        return jnp.square((p - t) / jnp.where(total == 0, 1, total)) * (of_t + of_p / 2) / 0.75
    beta = alpha - 1
    both = (p > 0) & (t > 0)
    log_p, log_t = (jnp.log(jnp.where(a > 0, a, 1)) for a in (p, t))
    log_ratio = jnp.where(both, log1p(jnp.where(both, (p - t) / jnp.where(both, t, 1), 0)), 0)
    near = both & (jnp.abs(log_ratio) * alpha < 1)
    at_near = jnp.exp(alpha * log_t) * _near_one(jnp.where(near, log_ratio, 0), alpha)
    of_p, of_t = (jnp.where(a > 0, jnp.exp(beta * b), 0) for a, b in ((p, log_p), (t, log_t)))
    # (t^β − p^β)/β, which has its digits for β → 0 too
    size = jnp.abs(log_p - log_t)
    gap = jnp.where(p < t, of_t, -of_p) * jnp.where(both, -expm1(-beta * size), 1) / beta
    return jnp.where(near, at_near, (t * (gap - of_p) + p * of_p) / alpha)


def _near_one(log_p: Array, alpha: Alpha) -> Array:
    """`entmax_loss_terms` for t = 1 and a log p near 0: ``log²p·(α·φ(α·log p) − β·φ(β·log p))``."""
    beta = alpha - 1
    return jnp.square(log_p) * (alpha * excess(alpha * log_p) - beta * excess(beta * log_p))


def entmax_label_term(p: Array, others: Array, alpha: Alpha) -> Array:
    """`entmax_loss_terms` at t = 1, from p and the sum of p over the other classes, which may be tiny."""
    if isinstance(alpha, float) and alpha == 2:
        return jnp.square(others) / 2
    if isinstance(alpha, float) and alpha == 1.5:
        root = _root(p)
        return jnp.square(others / (1 + root)) * (1 + root / 2) / 0.75
    log_p = log_of_label(p, others)
    near = (p > 0) & (jnp.abs(log_p) * alpha < 1)
    at_near = _near_one(jnp.where(near, log_p, 0), alpha)
    return jnp.where(near, at_near, entmax_loss_terms(jnp.where(near, 0, p), jnp.ones_like(p), alpha))


def log_of_label(p: Array, others: Array) -> Array:
    """log p of a class, from the sum of p over the other classes if that is the smaller one."""
    few = others < 0.5
    return jnp.where(few, log1p(-jnp.where(few, others, 0)), jnp.log(jnp.where(few | (p == 0), 1, p)))


def entmax_loss_outside(t: Array, r: Array, beta: Alpha) -> Array:
    """``t·[−r]₊/β``, the loss of a target for being below the support."""
    outside = (t != 0) & (r < 0)
    return jnp.where(outside, t, 0) * jnp.where(outside, -r, 0) / beta


def entmax_target_slopes(t: Array, r: Array, alpha: Alpha) -> Array:
    """``c = (t^β − r)/β``: for targets that sum to 1, the derivative of the loss in t is ``c − ⟨t, c⟩``.

    c is 0 at a dead class, where r is −inf.
    """
    dead = r == -jnp.inf
    return jnp.where(dead, 0, (entmax_slopes(t, 3.0 - alpha) - jnp.where(dead, 0, r)) / (alpha - 1))


def entropy_alpha_terms(p: Array, log_p: Array, alpha: Alpha) -> Array:
    """Terms that sum to the derivative in α of the Tsallis entropy ``(1 − Σp^α)/(α·β)``, none above 0.

    Each is ``−(p/α)·((1 − p^β)/(α·β) + p^β·log²p·φ(−β·log p))``.
    """
    a = (1 - alpha) * log_p
    near = a < 1
    small, far = jnp.where(near, a, 0), jnp.where(near, 1, a)
    fall = jnp.exp(-far)
    shares = jnp.where(near, 1 - small * excess(-small), (1 - fall) / far)  # (1 − exp(−a))/a
    curves = jnp.where(near, jnp.exp(-small) * excess(small), (1 - fall * (1 + far)) / jnp.square(far))
    return p / alpha * (log_p * shares / alpha - jnp.square(log_p) * curves)


def _root(p: Array) -> Array:
    """The square root, with a derivative of 0 at 0."""
    return jnp.where(p == 0, 0, jnp.sqrt(jnp.where(p == 0, 1, p)))
