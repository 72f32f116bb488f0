"""The softmax of logits with Gumbel noise: a draw that is differentiable."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.functions._maps import softmax
from jsoftmax.logits import _scaling
from jsoftmax.rows._peaks import peak
from jsoftmax.sampling import _noise, _race
from jsoftmax.transforms._autodiff import with_tangent


@compiled("axis", "hard")
def gumbel_softmax(
    key: ArrayLike,
    logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    hard: bool = False,
) -> Array:
    """A differentiable draw: the softmax of (logits + g)/T, with Gumbel noise g.

        y = softmax((z + g)/T),   g = −log E,   E exponential

    As ``torch.nn.functional.gumbel_softmax``: T divides the noise too, so that y goes to the one-hot vector
    of a draw from softmax(z) as T goes to 0. If `hard`, the value is this vector, exactly, and the derivative
    that of y (straight through). Noise and corners are those of `categorical` and `softmax`; a row with no
    live class is 0.

    Derivative: ``p·(v − ⟨p, v⟩)/T`` with p = y (`rules.softmax_product`), in T what follows from it; 0 for a
    masked class.

    Args:
      key: a random key, of `jax.random.key`.
      logits: any shape.
      axis: the class axis, of any sign, a tuple of axes, or None for all.
      where: True for the classes that count; broadcasts to the shape of the logits.
      temperature: T, a number other than 0, or one a row.
      hard: whether the value is one-hot.

    Returns:
      Probabilities, or a one-hot vector, in the shape and dtype of the logits.

    Raises:
      TypeError, ValueError: for no key, or several; else as for `softmax`.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> key, z = jax.random.key(1), jnp.zeros(3)
    >>> print(jnp.round(100 * jsoftmax.sampling.gumbel_softmax(key, z)))
    [ 1. 20. 79.]
    >>> print(jsoftmax.sampling.gumbel_softmax(key, z, hard=True))
    [0. 0. 1.]

    Source: Jang, Gu & Poole, arXiv 1611.01144; Maddison, Mnih & Teh, arXiv 1611.00712.
    """
    call = Call(
        "sampling.gumbel_softmax",
        key=key,
        logits=logits,
        axis=axis,
        where=where,
        temperature=temperature,
    )
    words = _noise.words(call)
    x, narrow = call.floats("logits"), call.narrow_type("logits")
    axes = call.axes(x.shape)
    scaling = _scaling.of_call(call, x, axes)
    # Softmax takes any shift of a row: without its maximum, large logits leave the noise its bits.
    top = peak(x, scaling._replace(temperature=None), axes)
    wide = rules.computing_dtype(x.dtype)
    top = jnp.maximum(top.astype(wide), jnp.finfo(wide).min)
    noise = lax.stop_gradient(_noise.gumbel(words, _noise.places(words, x, axes))).astype(wide)
    y = softmax((x.astype(wide) - top) + noise, axes, scaling.where, temperature=scaling.temperature)
    if hard:
        y = _one_hot(axes, y)
    return y.astype(x.dtype if narrow is None else narrow)


def _first_of_the_largest(axes: tuple[int, ...], y: Array) -> Array:
    """1 there, 0 elsewhere; a row of zeros stays one, and NaN stays."""
    ids, top = _noise.numbers(y, axes).astype(jnp.int32), jnp.max(y, axes, keepdims=True)
    leads = (y == top) & (y > 0)
    first = jnp.min(jnp.where(leads, ids, _race.NONE), axes, keepdims=True)
    return jnp.where(jnp.isnan(y), y, (leads & (ids == first)).astype(y.dtype))


def _straight_through(axes: tuple[int, ...], primals: Any, dy: Array) -> Array:
    return dy


_one_hot = with_tangent(_first_of_the_largest, _straight_through)
