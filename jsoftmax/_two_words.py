"""Numbers of two floats: a log-sum-exp to ten more bits, at a small part of what fixed point costs."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jsoftmax import rules
from jsoftmax._scaling import high_half

TwoWords = tuple[Array, Array]  # their sum; the second is at most an ulp of the first

TERMS = 4  # of the exponential's series in two words
TERMS_IN_ONE = 8  # of those that follow
LEAST = 2.0**-10  # the smallest results that are right to an ulp or two
LEAST_EXPONENT = -80.0  # what is below adds nothing to a sum near 1


def log_sum_exp(columns: Array) -> Array:
    """``log1p(Σ exp(x) − 1)`` over the first axis, of float32, with an error of 2⁻³² before it is rounded."""

    def add(i: Array, total: TwoWords) -> TwoWords:
        high, low = exp(lax.dynamic_index_in_dim(columns, i, keepdims=False))
        total_high, lost = _sum(total[0], high)
        return total_high, total[1] + (lost + low)

    nothing = jnp.zeros_like(columns[0])
    rest, low = _sum(*lax.fori_loop(0, columns.shape[0], add, (nothing - 1, nothing)))
    return rules.log1p(rest) + low / (1 + rest)


def exp(x: Array) -> TwoWords:
    """exp of a float32 below 80, with an error of 2⁻³³ of it; 0 for one below −80.

    ``x − n·log 2 = r`` in two words, and the series of exp(r) in Horner's form. Every product that meets a
    sum of two words is exact, of halves of floats: it is the same whether XLA rounds it first or not.
    """
    adds = x > LEAST_EXPONENT
    x = jnp.where(adds, x, 0)
    n = jnp.round(x * (1 / math.log(2)))
    first, second, third = _pieces(math.log(2), 12, 12, 24)
    r, lost = _sum(x - n * first, -(n * second))
    r_low = lost - n * third
    r_high = high_half(r)
    r_rest = r - r_high

    tail = jnp.zeros_like(r)
    for k in reversed(range(TERMS, TERMS + TERMS_IN_ONE)):
        tail = tail * r + 1 / math.factorial(k)
    power: TwoWords = tail, jnp.zeros_like(r)
    for k in reversed(range(TERMS)):
        high = high_half(power[0])
        rest = power[0] - high
        constant, constant_low = _pieces(1 / math.factorial(k), 24, 24)
        total, lost = _sum(constant, r_high * high)
        crossed, lost_crossed = _sum(r_high * rest, r_rest * high)
        total, lost_again = _sum(total, crossed)
        small = (r_rest * rest + r * power[1]) + (r_low * power[0] + constant_low)
        power = _sum(total, (lost + lost_again) + (lost_crossed + small))
    scale = lax.bitcast_convert_type((n.astype(jnp.int32) + 127) << 23, x.dtype)
    return tuple(jnp.where(adds, word * scale, 0) for word in power)  # type: ignore[return-value]


def _sum(a: Array | np.float32, b: Array) -> TwoWords:
    """``a + b``, rounded, and what the rounding took away."""
    total = jnp.minimum(a + b, jnp.finfo(b.dtype).max)  # or XLA would take the rest for 0
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _pieces(number: float, *bits: int) -> list[np.float32]:
    """A number as a sum of floats, of which each has so many bits."""
    pieces = []
    for n in bits:
        exponent = math.frexp(number)[1]
        piece = math.ldexp(round(math.ldexp(number, n - exponent)), exponent - n)
        pieces.append(np.float32(piece))
        number -= piece
    return pieces
