"""The log-sum-exp next to 0, where the maximum and the logarithm of the sum cancel."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import _fixed_point, online
from jsoftmax._mapping import with_more_rows
from jsoftmax._sharding import is_whole

Axes = tuple[int, ...]

BLOCK_SIZE = 2**12  # elements
WINDOW = 2**15  # rows among which those of a block are found


def restored(plain: Array, x: Array, where: Array | None, axes: Axes, state: online.State) -> Array:
    """The log-sum-exp of every row, on CPU to 4 ulp of itself, from ``max + log1p(rest)``, `plain`.

    Rows that may have lost digits wait for a loop that finds ``Σ exp(x) − 1`` in fixed point. Where none has,
    it costs a look at every row's numbers. Rows that may lie on several devices stay plain.
    """
    if not x.size:
        return plain
    top = state.max.astype(plain.dtype)
    # What is rounded to 16 bits may lose some more before.
    ulps = max(1.0, float(jnp.finfo(x.dtype).eps) / float(jnp.finfo(plain.dtype).eps) / 8)
    waits = _waits(plain, top, state.rest, x.size // plain.size, ulps)
    return _replaced(axes, plain, waits, top, x, where)


def _waits(plain: Array, top: Array, rest: Array, classes: int, ulps: float) -> Array:
    """Where the plain value may be off by more than 2 or 3 ulp, or by so many times that.

    In half ulps of 1, the logarithm is off by twice its size, and by what the rounding of x − max costs.
    """
    limits = jnp.finfo(plain.dtype)
    live = jnp.isfinite(plain) & (rest > 0) & (jnp.abs(top) > limits.tiny)
    rest = jnp.where(live, rest, 1)
    gap = math.log(classes) - jnp.log(rest)
    slip = jnp.minimum(gap, jnp.abs(top) * (2 / limits.eps)) * rest / (1 + rest)
    size = jnp.abs(plain)
    return live & (2 * (plain - top) + jnp.where(size < 1, slip, 0) > 2.5 * ulps * size)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _replaced(axes: Axes, plain: Array, *arguments: Any) -> Array:
    """The plain values, some of them replaced: their derivative stays."""
    return with_more_rows(_of_axes, axes)(plain, *arguments)


@_replaced.defjvp
def _replaced_jvp(axes: Axes, primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _replaced(axes, *primals), tangents[0]


def _of_axes(axes: Axes) -> Callable[..., Array]:
    def values(plain: Array, waits: Array, *arguments: Any) -> Array:
        if not all(is_whole(a, *range(a.ndim)) for a in jax.tree.leaves((plain, arguments))):
            return plain

        def on_cpu(plain: Array, waits: Array, *arguments: Any) -> Array:
            # Of a bare loop, XLA computes what does not change in it even if it never runs.
            return lax.cond(jnp.any(waits), partial(_loop, axes), _plain, plain, waits, *arguments)

        return lax.platform_dependent(plain, waits, *arguments, cpu=on_cpu, default=_plain)

    return values


def _plain(plain: Array, *arguments: Any) -> Array:
    return plain


def _loop(axes: Axes, plain: Array, waits: Array, top: Array, x: Array, where: Array | None) -> Array:
    """`plain`, and where a row waits its exact value: as many rows at a time as make a block."""
    classes = x.size // plain.size
    width = min(classes, BLOCK_SIZE)
    height = min(plain.size, BLOCK_SIZE // width)
    window = min(plain.size, WINDOW)
    shape, (waits, plain, top) = plain.shape, (a.reshape(-1, 1) for a in (waits, plain, top))

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        first, waits, out = state
        first = jnp.minimum(first, plain.size - window)
        near = lax.dynamic_slice_in_dim(waits[:, 0], first, window)
        rows = first + lax.top_k(near.astype(jnp.float32), height)[1]

        def block(i: Array) -> tuple[Array, Array]:
            columns = i * width + jnp.arange(width, dtype=rows.dtype)
            live = jnp.broadcast_to(columns < classes, (height, width))
            at = partial(_entries, x.shape, axes, rows[:, None], jnp.minimum(columns, classes - 1)[None])
            return at(x).astype(plain.dtype), live if where is None else live & at(where)

        found = _exact(block, -(-classes // width), top[rows], out[rows])
        out = out.at[rows].set(jnp.where(waits[rows], found, out[rows]))
        done = jnp.sum(near, dtype=rows.dtype) <= height
        return jnp.where(done, first + window, first), waits.at[rows].set(False), out

    begun = jnp.sum(waits & False, dtype=jnp.int32), waits, plain
    return lax.while_loop(lambda state: state[0] < plain.size, step, begun)[2].reshape(shape)


def _entries(shape: tuple[int, ...], axes: Axes, rows: Array, columns: Array, a: Array) -> Array:
    """The entries in these rows and columns of an array of this shape, or of one that broadcasts to it."""
    index = [jnp.zeros_like(rows)] * len(shape)
    for flat, dims in ((rows, [i for i in range(len(shape)) if i not in axes]), (columns, list(axes))):
        for i in reversed(dims):
            if a.shape[i] > 1:
                index[i] = lax.rem(flat, jnp.full_like(flat, shape[i]))
            flat = lax.div(flat, jnp.full_like(flat, shape[i]))
    return a.at[tuple(index)].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _exact(block: Callable[[Array], tuple[Array, Array]], blocks: int, top: Array, plain: Array) -> Array:
    """The log-sum-exp of a few rows, ``c + log1p(Σ exp(x − c) − 1)``.

    c is 0, or the plain value where that has digits. A maximum next to 0 leaves few digits of
    ``1 − exp(max)``: it comes in by its series, and the sum over the others is scaled up:

        Σ exp(x) − 1 = Σ_others exp(x) − a + a²/2 − a³/6 + …,  a = −max
    """
    a = -top
    tiny = (a > 0) & (a < 2.0 ** (-1.5 * _fixed_point.digit_bits(a.dtype))) & (plain < 4 * a)
    center = jnp.where(tiny | (jnp.abs(plain) < jnp.abs(top) / 32), 0, plain)
    power, exponent = _power_of_two(a)
    # Scaled, the sum is below 1.
    one = jnp.where(tiny, a / power / 64, 0.5)
    exponent = jnp.where(tiny, -6 - exponent, -1)
    one, half = (_fixed_point.of_float(values[:, 0]) for values in (one, jnp.where(tiny, a / 2, 0)))
    one = one - _fixed_point.multiply(one, half)

    def add(i: Array, total: Array) -> Array:
        x, live = block(i)
        x = jnp.where(live & ~(tiny & (x == top)), x, -jnp.inf)
        flat = (jnp.broadcast_to(values, x.shape).reshape(-1) for values in (x, center, exponent))
        terms = _fixed_point.exp(*flat).reshape(-1, *x.shape)
        return _fixed_point.normalized(total + jnp.sum(terms, -1))

    total = lax.fori_loop(0, blocks, add, -one)
    rest = _fixed_point.to_float(total)[:, None] * jnp.where(tiny, 64 * power, 2)
    rest = rest - jnp.where(tiny, a * a * a / 6 * (1 - a / 4), 0)
    return center + jnp.log1p(rest)


def _power_of_two(a: Array) -> tuple[Array, Array]:
    """The largest power of 2 up to a positive `a`, and its exponent."""
    integers, mantissa, bias = (jnp.int32, 23, 127) if a.dtype == jnp.float32 else (jnp.int64, 52, 1023)
    exponent = lax.bitcast_convert_type(a, integers) >> mantissa
    return lax.bitcast_convert_type(exponent << mantissa, a.dtype), exponent - bias
