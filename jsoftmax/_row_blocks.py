"""Blocks of one size, of a row that is longer than XLA's library of reductions on CPU is fast for."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax._reading import picked


def size_for(classes: int) -> int | None:
    """A size of equal blocks of a row, if there is one: of whole vectors, if it can be, and near to 256.

    Of blocks that short, as one of every row is read again.
    """
    sizes = [n for n in range(128, 8193) if classes % n == 0]
    return min(sizes, key=lambda n: (n % 16 > 0, abs(n - 256)), default=None)


def sums(
    terms: Callable[[Array, Array], Array],
    size: int,
    x: Array,
    center: Array,
    axis: int,
    stored: bool = False,
) -> Array:
    """The sums of ``terms(x, center)`` over blocks of a row, in the dtype of the center.

    The terms may be `stored`: where they are used again, if these are not of a wider dtype.
    """
    if stored and x.dtype == center.dtype:
        return jnp.sum(_in_blocks(size, terms(x, center), axis), axis + 1)
    # With the barrier XLA converts the blocks. Without, it would convert the row, and store that.
    blocks = lax.optimization_barrier(_in_blocks(size, x, axis)).astype(center.dtype)
    return jnp.sum(terms(blocks, jnp.expand_dims(center, axis)), axis + 1)


def block(size: int, x: Array, index: Array, axis: int) -> Array:
    """A block of every row."""
    return jnp.squeeze(picked(_in_blocks(size, x, axis), jnp.expand_dims(index, axis + 1), axis), axis)


def _in_blocks(size: int, x: Array, axis: int) -> Array:
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
