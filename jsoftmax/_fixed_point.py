"""Fixed-point numbers, three times as long as a float: exponentials for a sum that cancels.

A number is ``Σ dᵢ·2^(−w·(i+1))``. Its digits d are `DIGITS` integers, along a new first axis, as wide as the
float that they serve; w leaves room for a sum of products of two. A digit may lie outside [0, 2ʷ), somewhat;
the first takes all that is left. Integers round nowhere, and no compiler contracts or reorders them.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array, lax

DIGITS = 7
SQUARINGS = 4


def digit_bits(dtype: jnp.dtype) -> int:
    """The w of a float's dtype, or of its digits': 91 bits together for float32, 175 for float64."""
    return 13 if dtype.itemsize == 4 else 25


def of_float(x: Array) -> Array:
    """The digits of a float; what lies below the last one is lost."""
    w = digit_bits(x.dtype)
    scales = [2.0 ** (w * (i + 1)) for i in range(DIGITS)]
    above, here = (jnp.floor(x[None] * _column(s, x)) for s in ([0.0, *scales[:-1]], scales))
    return (here - above * 2.0**w).astype(jnp.int32 if w == 13 else jnp.int64)


def to_float(digits: Array) -> Array:
    """The nearest float, or the one beside it."""
    w = digit_bits(digits.dtype)
    digits = digits.astype(jnp.float32 if w == 13 else jnp.float64)
    value = digits[0]
    for digit in digits[1:]:
        value = value * 2.0**w + digit  # exact, until the float is full
    return value * 2.0 ** (-w * DIGITS)


def normalized(digits: Array) -> Array:
    """The same number, its digits carried; the sum of 2¹³ numbers is one."""
    return _carry(jnp.concatenate([digits, jnp.zeros_like(digits[:2])]))


def multiply(a: Array, b: Array) -> Array:
    """``a·b``, to a few units of the last digit."""
    return _carry(_products(a, b))


def exp(x: Array, minus: Array, exponent: Array) -> Array:
    """``exp(x − minus)·2^exponent``, of flat arrays, where that is below 1 and x at most `minus`.

    ``x − minus = 16·y − n·log 2``: the Taylor series of exp(y) in Horner's form, squared 4 times, shifted.
    """
    w = digit_bits(x.dtype)
    near = minus - x < 1000  # the others have 0, whatever the exponent
    x = jnp.where(near, x, minus)
    n = jnp.floor((minus - x) * (1 / math.log(2)))
    y = of_float(x * 2.0**-SQUARINGS) - of_float(minus * 2.0**-SQUARINGS)
    n = n.astype(y.dtype)
    log2 = sum((1 << 256) // (k << k) for k in range(1, 256)) >> 256 - w * DIGITS + SQUARINGS
    y = normalized(y + n[None] * _column(_digits(log2, w), n))
    place = _column([w * (i + 1) for i in range(DIGITS)], n) + (exponent - n)[None]
    shift = jnp.where(near[None] & (place >= 0) & (place < w), 1 << jnp.clip(place, 0, w - 1), 0)

    one = 1 << w * DIGITS
    terms = next(k for k in range(1, 99) if math.factorial(k) * 2.0 ** ((SQUARINGS + 0.5) * k) > one)
    series = [_digits(one // math.factorial(k), w) for k in reversed(range(terms))]
    nothing = [0] * DIGITS
    program = [(0, *plus, 0, 0) for plus in series[1:]]
    program += [(kind, *nothing, 0, 0) for kind in (*[1] * SQUARINGS, 2, 3)]

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        power, program = state
        factor = lax.select_n(program[0, 0], y, power, shift)
        columns = _products(factor, power) + program[0, 1:, None]
        # The program is turned: XLA on CPU reads at a moving index for every element anew.
        return _carry(columns), jnp.roll(program, -1, 0)

    power = jnp.zeros_like(y) + _column(series[0], n)
    state = power, jnp.array(program, y.dtype)
    return lax.while_loop(lambda state: state[1][0, 0] < 3, step, state)[0]


def _products(a: Array, b: Array) -> Array:
    """The columns of ``a·b``, two more than digits: i and j meet in column i + j + 1."""
    b = jnp.concatenate([b, jnp.zeros_like(b[:1])])
    columns = range(DIGITS + 2)
    met = [[k - 1 - i if 0 <= k - 1 - i < DIGITS else DIGITS for i in range(DIGITS)] for k in columns]
    return jnp.sum(a[None] * b[jnp.array(met)], 1, dtype=b.dtype)


def _carry(columns: Array) -> Array:
    """The digits of a number given as its `DIGITS` columns and two more."""
    w = digit_bits(columns.dtype)
    mask = _column([-1] + [(1 << w) - 1] * (DIGITS - 1), columns[0])
    return (columns[:-2] & mask) + (columns[1:-1] >> w & mask) + (columns[2:] >> 2 * w)


def _digits(number: int, w: int) -> list[int]:
    """Of a number below 2 in units of the last digit."""
    first, *others = (number >> w * i for i in reversed(range(DIGITS)))
    return [first, *(other & (1 << w) - 1 for other in others)]


def _column(numbers: list[int] | list[float], like: Array) -> Array:
    return jnp.array(numbers, like.dtype).reshape(-1, *[1] * like.ndim)
