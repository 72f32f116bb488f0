"""Blocks of one size, of a row that is longer than XLA's library of reductions on CPU is fast for."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax


def size_for(classes: int, near: int = 1024) -> int | None:
    """A size of equal blocks of a row, if there is one: of whole vectors, if it can be, and near this one."""
    sizes = [n for n in range(128, 8193) if classes % n == 0]
    return min(sizes, key=lambda n: (n % 16 > 0, abs(n - near)), default=None)


def sums(terms: Callable[[Array, Array], Array], size: int, x: Array, center: Array, axis: int) -> Array:
    """The sums of ``terms(x, center)`` over blocks of a row, in the dtype of the center."""
    blocks = _in_blocks(size, x, axis)
    if x.dtype == center.dtype:
        return jnp.sum(terms(blocks, jnp.expand_dims(center, axis)), axis + 1)
    # Converted all at once, a wider copy of the logits would be stored.
    bits = lax.bitcast_convert_type(blocks, jnp.uint16)

    def of_block(i: Array) -> Array:
        block = lax.dynamic_index_in_dim(bits, i, axis, keepdims=False)
        return jnp.sum(terms(lax.bitcast_convert_type(block, x.dtype).astype(center.dtype), center), axis)

    return jnp.moveaxis(lax.map(of_block, jnp.arange(blocks.shape[axis])), 0, axis)


def block(size: int, x: Array, index: Array, axis: int) -> Array:
    """A block of every row."""
    blocks = _in_blocks(size, x, axis)
    return jnp.squeeze(jnp.take_along_axis(blocks, jnp.expand_dims(index, axis + 1), axis, mode="clip"), axis)


def _in_blocks(size: int, x: Array, axis: int) -> Array:
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
