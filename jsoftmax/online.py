"""The log-sum-exp in blocks: a state holds the maximum of a row, or of some of its classes, and the rest.

    ``Σ exp(z) = exp(max)·(1 + rest)``

`rest` leaves out the 1 of the largest class. So it keeps its digits for a confident row, whose sum rounds to
1. The pair is never rounded to one number: an offset of the row costs ``exp(z − max)/(1 + rest)`` no digits,
but ``exp(z − logsumexp)`` many.

States form a monoid: they merge in any order and grouping, up to rounding, and `empty` is the neutral
element. A state may hold a block of a scan, a chunk of a file, or a shard of a mesh.

>>> import jax, jax.numpy as jnp
>>> from jsoftmax import online
>>> blocks = jnp.array([[1.0, 2.0], [3.0, 4.0], [-jnp.inf, -jnp.inf]])
>>> state = online.empty(())
>>> for block in blocks:
...     state = online.absorb(state, block)
>>> print(f"{online.finish(state):.5f} {jax.nn.logsumexp(blocks):.5f}")
4.44019 4.44019
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jsoftmax import rules
from jsoftmax.border._call import Call

__all__ = ["State", "absorb", "empty", "finish", "merge", "merge_across"]


class State(NamedTuple):
    """``Σ exp(z) = exp(max)·(1 + rest)``; without a live class max = −inf and rest = −1, for a sum of 0."""

    max: Array
    rest: Array


def empty(shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> State:
    """The state of rows without classes, the neutral element of `merge`; `shape` is the shape of the rows.

    `dtype` is the dtype of the logits; a state is in at least float32.
    """
    wide = rules.computing_dtype(Call("online.empty", shape=shape, dtype=dtype).float_dtype("dtype"))
    return State(jnp.full(shape, -jnp.inf, wide), jnp.full(shape, -1, wide))


def absorb(state: State, block: ArrayLike, axis: int = -1) -> State:
    """The state after a block of logits is added to every row; it may have any length along `axis`.

    The state keeps its dtype; the block is computed in at least float32.
    """
    call = Call("online.absorb", state=state, block=block, axis=axis)
    _refuse_others(call, state=state)
    x = call.floats("block")
    axes = call.axes(x.shape, may_be_empty=True)
    rows = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    if rows != state.max.shape:
        problem = f"a block of shape {x.shape} has rows of shape {rows}, but the state {state.max.shape}"
        raise call.error(ValueError, problem, f"begin with online.empty({rows})")
    if not x.size:
        return state
    x = x.astype(jnp.promote_types(state.rest.dtype, rules.computing_dtype(x.dtype)))
    top = lax.stop_gradient(jnp.max(x, axes, keepdims=True))
    top = rules.below_infinity(top)  # with a finite shift, a logit of +inf gives a sum of +inf, not NaN
    finite_top = jnp.where(top == -jnp.inf, 0, top)
    u = rules.rounded(x, finite_top) - finite_top
    total, scaled_rest = (jnp.sum(a, axes) for a in (jnp.exp(u), rest_terms(jnp.exp(u / 2))))
    part = from_sums(jnp.squeeze(top, axes), total, scaled_rest)
    return merge(state, State(*(a.astype(b.dtype) for a, b in zip(part, state, strict=True))))


def rest_terms(half: Array) -> Array:
    """The terms of the rest times `rules.SCALE`: ``exp(u)``, but 0 at the maximum, from half = exp(u/2).

    The floor is 1 at the maximum and 0 elsewhere. It is a constant, so it changes no derivative. With the
    scale, no term that matters underflows.
    """
    return half * (half * rules.SCALE) - rules.SCALE * jnp.floor(half)


def from_sums(top: Array, total: Array, scaled_rest: Array, scale: float = rules.SCALE) -> State:
    """The state of a row from its maximum, total = Σ exp(u), and the sum of `rest_terms`, scaled by `scale`.

    If the total is below 2, one class leads, and its 1 in the total would round away digits of the rest.
    """
    leads = (total > 0) & (total < 1.9) & (scaled_rest < scale / 2 * total)
    return State(top, jnp.where(leads, scaled_rest / scale, total - 1))


def merge(a: State, b: State) -> State:
    """The state of all classes of both states, which belong to the same rows."""
    _refuse_others(Call("online.merge", a=a, b=b), a=a, b=b)
    return _merged(
        [a, b],
        lambda parts: jnp.maximum(*parts),
        lambda parts: parts[0] + parts[1],
    )


def merge_across(state: State, axis_name: str | Sequence[str]) -> State:
    """The merged state of all shards along a named axis, the same on every shard.

    It takes one max-reduce of one number per row and one sum-reduce of two.
    """
    _refuse_others(Call("online.merge_across", state=state, axis_name=axis_name), state=state)
    return _merged(
        [state],
        lambda parts: lax.pmax(parts[0], axis_name),
        lambda parts: lax.psum(parts[0], axis_name),
    )


def _refuse_others(call: Call, **states: Any) -> None:
    for name, state in states.items():
        if not isinstance(state, State):
            problem = f"{name} is {type(state).__name__}, not a State"
            raise call.error(TypeError, problem, "begin with online.empty(shape)")


def _merged(
    parts: list[State], largest: Callable[[list[Array]], Array], total: Callable[[list[Array]], Array]
) -> State:
    """The merged state, by ``1 + rest = Σₖ exp(maxₖ − max)·(1 + restₖ)``.

    The 1 of every state k with maxₖ = max is summed separately, so that it rounds away no digits of the rest.
    """
    top = largest([lax.stop_gradient(part.max) for part in parts])
    floor = jnp.where(top == -jnp.inf, 0, top)

    def stacked(part: State) -> Array:
        scale = jnp.where(part.max == -jnp.inf, 0, jnp.exp(part.max - floor))
        return jnp.stack(shares(part, top, scale))

    rest, leading = total([stacked(part) for part in parts])
    return State(top, rest + (leading - 1))


def shares(part: State, top: Array, scale: Array) -> tuple[Array, Array]:
    """What a state with ``scale = exp(max − top)`` adds to the rest of the merged one, and to its ones."""
    leads = (part.max == top) & (top > -jnp.inf)
    return jnp.where(leads, part.rest, 1 + part.rest) * scale, jnp.where(leads, scale, 0.0)


def log_total(rest: Array) -> Array:
    """``log Σ exp(u) = log1p(rest)``; 0 in an empty row, where every u is −inf already."""
    return rules.log1p(jnp.where(rest < 0, 0, rest))


def finish(state: State) -> Array:
    """The log-sum-exp of a state, ``max + log1p(rest)``; −inf for a row without a live class."""
    _refuse_others(Call("online.finish", state=state), state=state)
    log = log_total(state.rest)
    return jnp.where(state.rest < 0, -jnp.inf, state.max.astype(log.dtype) + log)
