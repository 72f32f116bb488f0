"""Gumbel noise as a function of a key, a row and a class, so that any part of it can be computed anywhere.

A draw therefore does not depend on how rows and classes are split, into blocks or over devices. One Threefry
evaluation gives the 64 bits of one number; `jax.random.bits` uses one for 32 bits.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jsoftmax.border._call import Call
from jsoftmax.transforms._sharding import sharded_like, varies

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


class Positions(NamedTuple):
    """The numbers of rows and classes as uint32, which broadcast to the shape of the noise."""

    rows: Array
    classes: Array


def words(call: Call) -> Array:
    """Two random words drawn from the key of a call, which may belong to any generator."""
    key = call.arguments["key"]
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim:
        remedy = f"give one key, or map {call.function} over several by jax.vmap"
        raise call.error(TypeError, f"key has shape {key.shape}", remedy)
    return jax.random.bits(call.key("key"), (2,), jnp.uint32)


def positions(words: Array, x: Array, axes: tuple[int, ...], names: tuple[str, ...] = ()) -> Positions:
    """The row and class numbers of the logits x, whose classes lie along `axes` and the mesh axes `names`."""
    return Positions(row_numbers(words, x, axes, names), numbers(x, axes, names))


def row_numbers(words: Array, x: Array, axes: tuple[int, ...], names: tuple[str, ...]) -> Array:
    """The number of every row; the classes, or features, lie along `axes`.

    Within `jax.shard_map`, rows of x on different shards get different numbers, unless their keys differ.
    """
    over = varies(x) - varies(words) - set(names)
    row_names = tuple(n for n in jax.typeof(x).sharding.mesh.axis_names if n in over)
    return numbers(x, tuple(i for i in range(x.ndim) if i not in axes), row_names)


def numbers(x: Array, axes: tuple[int, ...], names: tuple[str, ...] = ()) -> Array:
    """The position along the mesh axes `names` and then `axes`, in their order, as one number."""
    number = jnp.zeros((1,) * x.ndim, jnp.uint32)
    if names:
        number += lax.axis_index(names).astype(jnp.uint32)
    for axis in axes:
        shape = tuple(n if i == axis else 1 for i, n in enumerate(x.shape))
        along = sharded_like(lax.broadcasted_iota(jnp.uint32, shape, axis), x)
        number = number * jnp.asarray(x.shape[axis], jnp.uint32) + along
    return number


def gumbel(words: Array, at: Positions) -> Array:
    """Standard Gumbel noise −log E, E exponential, in float32."""
    return -jnp.log(exponential(*threefry(words, at.rows, at.classes)))


def exponential(high: Array, low: Array) -> Array:
    """The exponential number −log(1 − v) of two random words, v = (high·2³² + low + 1/2)/2⁶⁴.

    Numbers with v < 1/2 are computed from v, the others from w = 1 − v. Both are accurate to the last bit:

        v < 1/2:  E = −log u + (v − (1 − u)),  u = 1 − v, rounded
        else:     E = −log w

    The second term of the first line restores what the rounding of 1 − v loses; for a tiny v it is all of E.
    A rare class is drawn if its E is small. The law of E holds down to 2⁻⁶³, so a class of probability 1e-12
    is drawn with that probability. (The lowest bit of `low` is not used.)
    """
    is_upper = high >> 31 == 1
    high, low = (jnp.where(is_upper, ~word, word) for word in (high, low))
    small = _as_float(high) + (_as_float(low >> 1) * np.float32(2**-31) + np.float32(2**-32))
    small = small * np.float32(2**-32)  # v or w
    u = jnp.where(is_upper, small, 1 - small)
    return -jnp.log(u) + jnp.where(is_upper, 0, small - (1 - u))


def _as_float(word: Array) -> Array:
    """A word below 2³¹ as a float; the conversion from signed integers is one instruction."""
    return word.astype(jnp.int32).astype(jnp.float32)


def threefry(key: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds, the block cipher of `jax.random`, applied to two counters.

    Unrolled, it is one chain of integer operations, which XLA fuses with its consumers. On CPU, JAX's own is
    a loop that stores its state in every round, and takes 8 times as long.

    Source: Salmon, Moraes, Dror & Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(PARITY))
    x, y = first + keys[0], second + keys[1]
    for i in range(5):
        for rotation in ROTATIONS[i % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x, y
