"""Long rows on CPU as blocks of one size, which XLA's library of reductions sums faster than whole rows."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jsoftmax.backends._by_class import exponentials
from jsoftmax.logits._reading import picked
from jsoftmax.transforms._platforms import hidden

SIZE = 256  # about so many classes: one block of every row is read again


def size_for(classes: int) -> int | None:
    """The size of equal blocks of a row, if there is one: of whole vectors, if possible, and near to 256."""
    sizes = [n for n in range(SIZE // 2, 8193) if classes % n == 0]
    return min(sizes, key=lambda n: (n % 16 > 0, abs(n - SIZE)), default=None)


def sums(size: int, x: Array, center: Array, axis: int, stored: bool = False) -> Array:
    """The sums of ``exp(x − center)`` over blocks of a row, in the dtype of the center.

    If `stored`, XLA may store the terms for a second use, unless their dtype is wider than that of x.
    """
    if stored and x.dtype == center.dtype:
        return jnp.sum(_in_blocks(size, exponentials(x, center), axis), axis + 1)
    # With the barrier XLA converts block by block; without it, it converts the whole row and stores that.
    blocks = hidden(_in_blocks(size, x, axis))
    return jnp.sum(exponentials(blocks, jnp.expand_dims(center, axis)), axis + 1)


def block(size: int, x: Array, index: Array, axis: int) -> Array:
    """The block with this index, of every row."""
    return jnp.squeeze(picked(_in_blocks(size, x, axis), jnp.expand_dims(index, axis + 1), axis), axis)


def _in_blocks(size: int, x: Array, axis: int) -> Array:
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
