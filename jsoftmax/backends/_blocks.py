"""Blocks of the classes of a row on CPU, and their sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends._by_class import exponentials
from jsoftmax.backends._reading import picked
from jsoftmax.transforms._platforms import hidden
from jsoftmax.transforms._sharding import zeros


def block_sums(size: int, x: Array, center: Array, axis: int, stored: bool = False) -> Array:
    """The sums of ``exp(x − center)`` over the blocks of a row, in the dtype of `center`.

    If `stored`, XLA may store the terms for a second use, unless their dtype is wider than that of x.
    """
    if stored and x.dtype == center.dtype:
        return jnp.sum(in_blocks(size, exponentials(x, center), axis), axis + 1)
    # With the barrier XLA converts block by block; without it, XLA converts the whole row and stores it.
    blocks = hidden(in_blocks(size, x, axis))
    return jnp.sum(exponentials(blocks, jnp.expand_dims(center, axis)), axis + 1)


def block(size: int, x: Array, index: Array, axis: int) -> Array:
    """One block of every row: the block with the index given for that row."""
    return jnp.squeeze(picked(in_blocks(size, x, axis), jnp.expand_dims(index, axis + 1), axis), axis)


def in_blocks(size: int, x: Array, axis: int) -> Array:
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])


def apart(sums: Array) -> Array:
    """The sums, with NaN in place of +inf. The select prevents XLA from fusing them with later operations.

    Fused with a logarithm or another sum, they take several times as long.
    """
    return jnp.where(sums < jnp.inf, sums, jnp.nan)


def not_fused(function: Callable[..., Any], *arguments: Any, always: Array | None = None) -> Any:
    """The function in a conditional, which XLA fuses with nothing. `always` is True, but unknown to XLA."""
    always = lax.optimization_barrier(jnp.array(True)) if always is None else always
    types = jax.eval_shape(function, *arguments)

    def never(*arguments: Any) -> Any:
        return jax.tree.map(lambda of: zeros(of.shape, of), types)

    return lax.cond(always, function, never, *arguments)


def sums_apart(axis: int, p: Array) -> Callable[..., tuple[Array, ...]]:
    """`rules.row_sums` over an axis, for sums of products with p: a select as in `apart`, linear in them."""
    is_nan = jnp.isnan(lax.slice_in_dim(p, 0, 1, axis=axis))

    def sums(*terms: Array) -> tuple[Array, ...]:
        return tuple(jnp.where(is_nan, jnp.nan, a) for a in rules.row_sums(axis, *terms))

    return sums
