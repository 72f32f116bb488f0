"""Draws several distinct classes of every row."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.functions._logsumexp import logsumexp
from jsoftmax.functions._maps import log_softmax
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows._row_numbers import on_one_axis
from jsoftmax.sampling import _noise, _race
from jsoftmax.sampling._race import Draw, ShiftedRows, Static


@compiled("k", "axis")
def sample_without_replacement(
    key: ArrayLike,
    logits: ArrayLike,
    k: int,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
) -> Draw:
    """k classes of every row, drawn without replacement, and their log-probabilities.

        ids = the k largest z + g, in order;   log_probs = z_i − log Σ exp z,  Σ over classes not drawn before

    This is the Gumbel top-k trick. The first class is the draw of `categorical` with the same key; the second
    has the law of the softmax without the first, and so on. `log_probs` are conditional on the earlier draws;
    their sum is the log-probability of the sequence. A dead class is never drawn: if fewer than k are live,
    the last ids are −1, with log-probability −inf. Corner cases and dtypes are those of `categorical`; with a
    temperature of 0, the draws are the k largest, with log-probability 0.

    Derivative: that of the log-probabilities in the logits and the temperature; the ids have none. In memory,
    the log-probabilities take k² numbers per row in addition to the logits; in a compiled program, nothing if
    they are not used.

    Args:
      key: a random key, of `jax.random.key`.
      logits: any shape.
      k: the number of draws per row, at most the number of classes.
      axis: the class axis, of any sign, a tuple of axes, or None for all.
      where: True for the classes that may be drawn; broadcasts to the shape of the logits.
      temperature: T, a number, or one per row; 0 is greedy.

    Returns:
      `Draw`: ids and log-probabilities in the shape of the rows, plus a last axis of length k.

    Raises:
      TypeError, ValueError: for no key or several keys; for a k out of range; otherwise as in `softmax`.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> draw = jsoftmax.sampling.sample_without_replacement(jax.random.key(0), jnp.arange(4.0), 3)
    >>> print(draw.ids, jnp.round(100 * jnp.exp(draw.log_probs)))
    [2 1 3] [24. 11. 95.]

    Source: Kool, van Hoof & Welling, *Stochastic beams and where to find them*, ICML 2019.
    """
    call = Call(
        "sampling.sample_without_replacement",
        key=key,
        logits=logits,
        k=k,
        axis=axis,
        where=where,
        temperature=temperature,
    )
    words = _noise.words(call)
    x = call.floats("logits")
    axes = call.axes(x.shape)
    count = call.size("k", classes=math.prod(x.shape[i] for i in axes))
    is_greedy = _race.as_rows(_race.greedy_rows(call), x, axes)
    scaling = _scaling.of_call(call, x, axes)
    static = Static(x.ndim - len(axes), is_greedy=is_greedy is True)
    traced_greedy = None if is_greedy is True else is_greedy
    x, scaling, is_greedy = on_one_axis(axes, x, scaling, traced_greedy)
    index, row = _largest(static, count, words, x, scaling, is_greedy)
    log_p = log_softmax(
        x.astype(rules.computing_dtype(x.dtype)), -1, scaling.where, temperature=scaling.temperature
    )
    log_probs = row.log_probs(_conditional_log_probs(log_p, index), static)
    is_dead = jnp.take_along_axis(lax.stop_gradient(log_p), index, -1) == -jnp.inf
    return Draw(jnp.where(is_dead, -1, row.winners(index)), jnp.where(is_dead, -jnp.inf, log_probs))


@partial(jax.jit, static_argnums=(0, 1))
def _largest(
    static: Static, count: int, words: Array, x: Array, scaling: Scaling, is_greedy: Array | None
) -> tuple[Array, ShiftedRows]:
    """The classes with the largest scores, and the `ShiftedRows` without their logits."""
    row = _race.shifted_rows(static, x, scaling, is_greedy)
    at = _noise.positions(words, x, (static.axis,))
    _, index = lax.top_k(_race.scores(words, at, row, is_greedy=static.is_greedy), count)
    return index, row._replace(u=jnp.zeros_like(row.is_empty))


def _conditional_log_probs(log_p: Array, index: Array) -> Array:
    """``log p_i − log Σ p`` of each chosen class i, the sum over all classes not chosen before i.

    The classes that are never chosen are summed directly, not as 1 minus the chosen ones: nothing cancels.
    """
    chosen = jnp.take_along_axis(log_p, index, -1)
    is_other = jnp.put_along_axis(jnp.ones(log_p.shape, bool), index, False, -1, inplace=False)
    others: Any = logsumexp(log_p, -1, where=is_other, keepdims=True)
    # Row i of the table: the classes that are left after i is drawn.
    left = jnp.concatenate([chosen, others], -1)[..., None, :]
    size = index.shape[-1]
    comes_after = jnp.arange(size + 1)[None, :] > jnp.arange(size)[:, None]
    shape = (*index.shape, size + 1)
    rest: Any = logsumexp(jnp.broadcast_to(left, shape), -1, where=jnp.broadcast_to(comes_after, shape))
    return log_softmax(jnp.stack([chosen, rest], -1))[..., 0]
