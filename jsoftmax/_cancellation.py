"""The log-sum-exp next to 0, where the maximum and the logarithm of the sum cancel."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import _cpu, _fixed_point, _float64, _reading, online, rules
from jsoftmax._branches import unless, with_more_rows
from jsoftmax._sharding import is_known, is_whole

Axes = tuple[int, ...]

BLOCK_SIZE = 2**12  # elements
GROUP = 512  # rows
Block = Callable[[Array, Array], Array]  # the entries in rows and columns, −inf where there is none


def restored(plain: Array, x: Array, where: Array | None, axes: Axes, state: online.State) -> Array:
    """The log-sum-exp of every row, on CPU to 4 ulp of itself, from ``max + log1p(rest)``, `plain`.

    Rows that may have lost digits wait for their sum in float64, or for a loop that finds ``Σ exp(x) − 1`` in
    fixed point. Where none has, it costs a look at every row's numbers. Rows that may lie on several devices,
    or nobody knows how many, stay plain.
    """
    if not is_known(x) or not x.size:
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
            def repaired(plain: Array) -> Array:
                return _repaired(axes, plain, waits, *arguments)

            return unless(~jnp.any(waits), plain, repaired)

        return lax.platform_dependent(plain, waits, *arguments, cpu=on_cpu, default=_plain)

    return values


def _plain(plain: Array, *arguments: Any) -> Array:
    return plain


def _repaired(axes: Axes, plain: Array, waits: Array, top: Array, x: Array, where: Array | None) -> Array:
    """`plain`, and where a row waits its value to 4 ulp: from float64, or, where its bits are few, exact."""
    shape, classes = plain.shape, x.size // plain.size
    if x.size >= _cpu.LEAST_SIZE and _float64.serves(plain.dtype):
        longer = _float64.log_sum_exp(x if where is None else jnp.where(where, x, -jnp.inf), axes)
        right = _float64.is_right(longer, classes)
        plain, waits = jnp.where(waits & right, longer, plain), waits & ~right
    plain, waits, top = (a.reshape(-1, 1) for a in (plain, waits, top))

    def block(rows: Array, columns: Array) -> Array:
        at = partial(_entries, x.shape, axes, rows[:, None], jnp.minimum(columns, classes - 1)[None])
        live = (columns < classes)[None]
        live = live if where is None else live & at(where)
        return jnp.where(live, at(x).astype(plain.dtype), -jnp.inf)

    return _in_fixed_point(block, classes, plain, waits, top).reshape(shape)


def _in_fixed_point(block: Block, classes: int, plain: Array, waits: Array, top: Array) -> Array:
    """As many rows at a time as make a block, out of groups in which any waits; or all at once."""
    width = min(classes, BLOCK_SIZE)
    height = min(plain.size, BLOCK_SIZE // width)

    def exact(rows: Array, top: Array, plain: Array) -> Array:
        def part(i: Array) -> Array:
            return block(rows, i * width + jnp.arange(width, dtype=rows.dtype))

        return _exact(part, -(-classes // width), top, plain)

    if height == plain.size:
        return jnp.where(waits, exact(jnp.arange(height), top, plain), plain)
    waits = _grouped(waits)
    near = min(len(waits), max(64, -(-height // GROUP)))

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        any_waits, waits, out = state
        groups = lax.top_k(any_waits.astype(jnp.float32), near)[1]
        wait = waits[groups].reshape(-1)
        picked = lax.top_k(wait.astype(jnp.float32), height)[1]
        rows = groups[picked // GROUP] * GROUP + picked % GROUP
        rows = jnp.where(wait[picked], rows, plain.size)
        wait = wait.at[picked].set(False).reshape(near, GROUP)
        any_waits, waits = any_waits.at[groups].set(jnp.any(wait, 1)), waits.at[groups].set(wait)
        of_rows = (a.at[rows].get(mode="clip") for a in (top, plain))
        found = exact(jnp.minimum(rows, plain.size - 1), *of_rows)
        return any_waits, waits, out.at[rows].set(found, mode="drop")

    begun = jnp.any(waits, 1), waits, plain
    return lax.while_loop(lambda state: jnp.any(state[0]), step, begun)[2]


def _grouped(waits: Array) -> Array:
    """The rows in their groups."""
    groups = -(-waits.size // GROUP)
    return jnp.pad(waits[:, 0], (0, groups * GROUP - waits.size)).reshape(groups, GROUP)


def _entries(shape: tuple[int, ...], axes: Axes, rows: Array, columns: Array, a: Array) -> Array:
    """The entries in these rows and columns of an array of this shape, or of one that broadcasts to it."""
    index = [jnp.zeros_like(rows)] * len(shape)
    for flat, dims in ((rows, [i for i in range(len(shape)) if i not in axes]), (columns, list(axes))):
        for i in reversed(dims):
            if a.shape[i] > 1:
                index[i] = lax.rem(flat, jnp.full_like(flat, shape[i]))
            flat = lax.div(flat, jnp.full_like(flat, shape[i]))
    return _reading.at(a, tuple(index))


def _exact(part: Callable[[Array], Array], parts: int, top: Array, plain: Array) -> Array:
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
        x = part(i)
        x = jnp.where(tiny & (x == top), -jnp.inf, x)
        flat = (jnp.broadcast_to(values, x.shape).reshape(-1) for values in (x, center, exponent))
        terms = _fixed_point.exp(*flat).reshape(-1, *x.shape)
        return _fixed_point.normalized(total + jnp.sum(terms, -1, dtype=terms.dtype))

    total = lax.fori_loop(0, parts, add, -one)
    rest = _fixed_point.to_float(total)[:, None] * jnp.where(tiny, 64 * power, 2)
    rest = rest - jnp.where(tiny, a * a * a / 6 * (1 - a / 4), 0)
    return center + rules.log1p(rest)


def _power_of_two(a: Array) -> tuple[Array, Array]:
    """The largest power of 2 up to a positive `a`, and its exponent."""
    integers, mantissa, bias = (jnp.int32, 23, 127) if a.dtype == jnp.float32 else (jnp.int64, 52, 1023)
    exponent = lax.bitcast_convert_type(a, integers) >> mantissa
    return lax.bitcast_convert_type(exponent << mantissa, a.dtype), exponent - bias
