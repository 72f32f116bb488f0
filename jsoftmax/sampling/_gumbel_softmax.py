"""The softmax of logits with Gumbel noise, a differentiable draw."""

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

    As in ``torch.nn.functional.gumbel_softmax``, T also divides the noise: as T goes to 0, y goes to the
    one-hot vector of a draw from softmax(z). If `hard`, the value is exactly this vector, and the derivative
    is that of y (straight-through). The noise is that of `categorical`, the corner cases are those of
    `softmax`; a row without a live class is 0.

    Derivative: ``p·(v − ⟨p, v⟩)/T`` with p = y (`rules.softmax_product`), and in T the one that follows from
    it; 0 for a masked class.

    Args:
      key: a random key, of `jax.random.key`.
      logits: any shape.
      axis: the class axis, of any sign, a tuple of axes, or None for all.
      where: True for the classes that count; broadcasts to the shape of the logits.
      temperature: T, a number other than 0, or one per row.
      hard: whether the value is one-hot.

    Returns:
      Probabilities, or a one-hot vector, in the shape and dtype of the logits.

    Raises:
      TypeError, ValueError: for no key or several keys; otherwise as in `softmax`.

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
    # A shift of a row does not change its softmax. Without it, large logits would round away the noise.
    top = peak(x, scaling._replace(temperature=None), axes)
    wide = rules.computing_dtype(x.dtype)
    top = jnp.maximum(top.astype(wide), jnp.finfo(wide).min)
    noise = lax.stop_gradient(_noise.gumbel(words, _noise.positions(words, x, axes))).astype(wide)
    y = softmax((x.astype(wide) - top) + noise, axes, scaling.where, temperature=scaling.temperature)
    if hard:
        y = _one_hot(axes, y)
    return y.astype(x.dtype if narrow is None else narrow)


def _first_of_the_largest(axes: tuple[int, ...], y: Array) -> Array:
    """1 at the first maximum of every row, 0 elsewhere; rows of zeros and NaN stay unchanged."""
    ids, top = _noise.numbers(y, axes).astype(jnp.int32), jnp.max(y, axes, keepdims=True)
    leads = (y == top) & (y > 0)
    first = jnp.min(jnp.where(leads, ids, _race.NONE), axes, keepdims=True)
    return jnp.where(jnp.isnan(y), y, (leads & (ids == first)).astype(y.dtype))


def _straight_through(axes: tuple[int, ...], primals: Any, dy: Array) -> Array:
    return dy


_one_hot = with_tangent(_first_of_the_largest, _straight_through)
