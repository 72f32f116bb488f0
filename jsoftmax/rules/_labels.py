"""The gradients of losses of class labels, in the logits."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, custom_jvp
from jax.typing import ArrayLike

from jsoftmax.rules._elementary import expm1, sigmoid


def label_residual(p: ArrayLike, nll: ArrayLike, hit: ArrayLike, rest: ArrayLike | None = None) -> Array:
    """`cross_entropy_residual` for the one-hot target that is 1 where `hit`; `nll` is its loss.

    At the label it is ``p − 1 = expm1(−nll)``, which is accurate even if p rounds to 1. `rest`, that of the
    row's state, makes it faster.
    """
    nll = jnp.asarray(nll)
    return jnp.where(hit, expm1(-nll) if rest is None else residual_at_label(nll, jnp.asarray(rest)), p)


@custom_jvp
def residual_at_label(nll: Array, rest: Array) -> Array:
    """``p − 1`` at the label: if p > ½, the label leads, and the sum over the others is the rest."""
    others = jnp.maximum(rest, 0)  # the rest of an empty row is −1, and its loss 0
    return jnp.where(nll < 0.6931, -others / (1 + others), jnp.exp(-nll) - 1)


residual_at_label.defjvps(lambda dnll, _, nll, rest: -jnp.exp(-nll) * dnll, None)


def positives_residual(p: ArrayLike, loss: ArrayLike, hit: ArrayLike, count: ArrayLike) -> Array:
    """The gradient in the logits of ``−Σ log p`` over the `count` classes of a row that are `hit`.

    It is ``count·p − hit``. With one such class it is `label_residual`, and `loss` is that of the class.

    >>> import jax.numpy as jnp
    >>> from jsoftmax import rules
    >>> p, hit = jnp.array([0.5, 0.25, 0.25]), jnp.array([True, True, False])
    >>> rules.positives_residual(p, -jnp.log(0.125), hit, 2.0)
    Array([ 0. , -0.5,  0.5], dtype=float32)
    """
    p, count = jnp.asarray(p), jnp.asarray(count)
    at_hit = jnp.where(count == 1, expm1(-jnp.where(count == 1, loss, 0)), count * p - 1)
    return jnp.where(hit, at_hit, count * p)


def binary_residual(z: Array, first: ArrayLike, second: ArrayLike) -> Array:
    """`cross_entropy_residual` of two classes with the logits (z, 0), in z: ``b·sigmoid(z) − a·sigmoid(−z)``.

    a and b are the weights of the first and the second class; with a + b = 1 it is ``p − a``.

    >>> import jax.numpy as jnp
    >>> from jsoftmax import rules
    >>> print(rules.binary_residual(jnp.array([0.0, 30.0]), 1.0, 0.0))
    [-5.000000e-01 -9.357623e-14]
    """
    return jnp.asarray(second) * sigmoid(z) - jnp.asarray(first) * sigmoid(-z)


@custom_jvp
def smoothed(t: Array, alpha: Array, infinite: Array) -> Array:
    """``(1 − α)·t + α/2``, with the derivatives 1 − α and ½ − t.

    `infinite` marks entries whose loss is +inf: there, a slope of 0 times an infinite cotangent is 0.
    """
    return (1 - alpha) * t + alpha / 2


@smoothed.defjvp
def _smoothed_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    t, alpha, infinite = primals
    in_t, in_alpha = (
        jnp.where(infinite & (slope == 0), 0, slope * along)
        for slope, along in zip((1 - alpha, 0.5 - t), tangents[:2], strict=True)
    )
    return smoothed(t, alpha, infinite), in_t + in_alpha
