"""A mask of the classes to draw from, by top-k, top-p and min-p."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jsoftmax.border._arrays import describe
from jsoftmax.border._call import Axes, Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows._row_numbers import on_one_axis
from jsoftmax.sampling import _race
from jsoftmax.sampling._race import Static
from jsoftmax.sampling._threshold import keys, largest_reaching
from jsoftmax.transforms._platforms import by_platform
from jsoftmax.transforms._sharding import on_one_device, sharded_like

BLOCK = 2**17  # a number of logits that fits in the cache of a CPU


@compiled("axis")
def keep_mask(
    logits: ArrayLike,
    *,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    min_p: ArrayLike | None = None,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
) -> Array:
    """A mask of the classes to draw from, by top-k, top-p and min-p.

    The options act on p = softmax(logits/T), in this order. Top-k keeps the k largest classes. Top-p keeps
    the fewest of the largest remaining classes whose renormalized probabilities sum to at least `top_p`,
    including the class that crosses it. Min-p keeps those with ``p ≥ min_p·max p``. Each option may be left
    out. Among equal logits, lower ids come first: exactly k classes stay if at least k are live. At least
    one class stays in every row with a live class; with a temperature of 0, the first of the largest.

    The log-probability of a draw from the kept classes is ``log_prob(logits, ids, where=keep_mask(…),
    temperature=T)``.

    A row with NaN or +inf in a live class keeps all live classes, so that results computed with the mask are
    NaN. A row that has an option out of range keeps none. The mask has no derivative.

    Nothing is sorted. Bisection finds the thresholds, in float32 or the dtype of the logits. Top-k and top-p
    take at most 32 passes each, 16 for 16-bit logits, and typically log₂ V + 10; if a threshold splits equal
    logits, log₂ V more. Probabilities are summed in float32: if the mass is within 1e-6 of p, one class more
    or less may be kept.

    Args:
      logits: any shape.
      top_k: the number of classes to keep, at least 1; one number, or one per row.
      top_p: the mass to keep, from 0 to 1; one number, or one per row.
      min_p: the smallest ratio to the largest probability, from 0 to 1; one number, or one per row.
      axis: the class axis, of any sign, a tuple of axes, or None for all.
      where: True for the classes that may be kept; broadcasts to the shape of the logits.
      temperature: T, a number, or one per row.

    Returns:
      Booleans in the shape of the logits.

    Raises:
      TypeError, ValueError: for options out of range or of a wrong shape; otherwise as in `softmax`.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> logits = jnp.log(jnp.array([0.4, 0.1, 0.3, 0.2]))
    >>> kept = jsoftmax.sampling.keep_mask(logits, top_k=3, top_p=0.6)
    >>> print(kept)
    [ True False  True False]
    >>> draw = jsoftmax.sampling.categorical(jax.random.key(0), logits, where=kept)
    >>> print(draw.ids, draw.log_probs == jsoftmax.log_prob(logits, draw.ids, where=kept))
    2 True

    Source: Fan, Lewis & Dauphin, arXiv 1805.04833 (top-k); Holtzman et al., arXiv 1904.09751 (top-p);
    Nguyen et al., arXiv 2407.01082 (min-p).
    """
    call = Call(
        "sampling.keep_mask",
        logits=logits,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        axis=axis,
        where=where,
        temperature=temperature,
    )
    x = call.floats("logits")
    axes = call.axes(x.shape)
    is_greedy = _race.as_rows(_race.greedy_rows(call), x, axes)
    scaling = _scaling.of_call(call, x, axes)
    limits = _limits(call, x, axes, is_greedy)
    if 0 in x.shape:
        return jnp.zeros(x.shape, bool)
    kept = _kept(*on_one_axis(axes, x, scaling, limits))
    return _in_place(kept, x.shape, axes)


class Limits(NamedTuple):
    """The options, each with one entry per row; NaN if out of range."""

    top_k: Array | None
    top_p: Array | None
    min_p: Array | None


@jax.jit
def _kept(x: Array, scaling: Scaling, limits: Limits) -> Array:
    """The mask of rows whose classes lie along the last axis."""
    if not on_one_device(x, *range(x.ndim)):
        return _of_rows(x, scaling, limits)
    rows, at_once = x.size // x.shape[-1], max(BLOCK // x.shape[-1], 1)

    def in_blocks(*arrays: Any) -> Array:
        def flat(a: Array) -> Array:
            return jnp.broadcast_to(a, (*x.shape[:-1], a.shape[-1])).reshape(rows, a.shape[-1])

        kept = lax.map(lambda row: _of_rows(*row), jax.tree.map(flat, arrays), batch_size=at_once)
        return kept.reshape(x.shape)

    blocks = in_blocks, f"{at_once} rows at a time, which fit in the cache"
    what = "the classes to keep"
    return by_platform(what, x, scaling, limits, plain=_of_rows, cpu=blocks if rows > at_once else None)


def _of_rows(x: Array, scaling: Scaling, limits: Limits) -> Array:
    u, _, is_empty, is_bad = _race.shifted_rows(Static(x.ndim - 1), x, scaling)
    live = _scaling.live(x, scaling) != -jnp.inf
    kept, is_right = live, ~is_empty
    order = keys(_scaling.ordered_live(x, scaling))
    if limits.top_k is not None:
        count = jnp.sum(live, -1, keepdims=True).astype(jnp.float32)
        is_right = is_right & ~jnp.isnan(limits.top_k)
        kept = largest_reaching(order, kept, None, jnp.minimum(limits.top_k, count))
    p = jnp.exp(u)
    if limits.top_p is not None:
        total = jnp.sum(jnp.where(kept, p, 0), -1, keepdims=True)
        target = jnp.maximum(limits.top_p.astype(p.dtype) * total, jnp.finfo(p.dtype).tiny)
        is_right = is_right & ~jnp.isnan(limits.top_p)
        kept = jnp.where(limits.top_p == 1, kept, largest_reaching(order, kept, p, target))
    if limits.min_p is not None:
        is_right = is_right & ~jnp.isnan(limits.min_p)
        kept = kept & (p >= limits.min_p.astype(p.dtype))
    return jnp.where(is_bad, live, kept & is_right)


def _limits(call: Call, x: Array, axes: Axes, is_greedy: Any) -> Limits:
    dtype = jnp.dtype(jnp.float32)
    given = call.arguments["top_k"]
    if given is not None and not jnp.issubdtype(call.array("top_k").dtype, jnp.integer):
        problem = f"top_k is {describe(given)}, not of an integer type"
        raise call.error(TypeError, problem, "write an int, or one integer per row")
    top_k, *shares = (call.per_row(name, x, axes, dtype) for name in Limits._fields)
    if is_greedy is not None:
        top_k = jnp.where(is_greedy, 1, jnp.inf if top_k is None else top_k)
        top_k = top_k.reshape((1,) * (x.ndim - top_k.ndim) + top_k.shape)
    return jax.tree.map(lambda a: sharded_like(a, x), Limits(top_k, *shares))


def _in_place(mask: Array, shape: tuple[int, ...], axes: Axes) -> Array:
    """The mask in the shape of the logits, given with its classes flattened along the last axis."""
    order = (*(i for i in range(len(shape)) if i not in axes), *axes)
    mask = mask.reshape(tuple(shape[i] for i in order))
    return jnp.transpose(mask, sorted(range(len(order)), key=order.__getitem__))
