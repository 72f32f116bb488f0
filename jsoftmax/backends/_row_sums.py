"""Sums over rows of several terms: on CPU in blocks of a long row, or class by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _cpu
from jsoftmax.logits import _strided
from jsoftmax.transforms._platforms import by_platform
from jsoftmax.transforms._sharding import is_known, is_whole

BLOCK_SIZE = 2**20  # elements, over all rows


def sums(terms: Callable[[Any], tuple[Array, ...]], row: Any, axes: tuple[int, ...]) -> tuple[Array, ...]:
    """The sums over a row of each of its terms; on CPU over blocks of a long row, or class by class."""
    x = row[0]

    def whole(row: Any) -> tuple[Array, ...]:
        return tuple(jnp.sum(t, axes, keepdims=True) for t in terms(row))

    def in_blocks(row: Any) -> tuple[Array, ...]:
        size = 1 if across else min(max(BLOCK_SIZE * classes // x.size, 512), 1024)
        steps, over = divmod(classes - 1, size)  # the first block has one more than what is left over

        def block(start: Array | int, size: int) -> tuple[Array, ...]:
            return whole(jax.tree.map(lambda a: _slice(a, start, size, axis), row))

        def step(i: Array, sums: tuple[tuple[Array, Array], ...]) -> tuple[tuple[Array, Array], ...]:
            parts = block(1 + over + i * size, size)
            return tuple(rules.compensated(*total, part) for total, part in zip(sums, parts, strict=True))

        begun = tuple((part, jnp.zeros_like(part)) for part in block(0, 1 + over))
        return tuple(total for total, _ in lax.fori_loop(0, steps, step, begun))

    if not is_known(x):
        return whole(row)
    axis = max(axes, key=lambda i: x.shape[i], default=0)
    classes = x.shape[axis] if axes else 1
    across = len(axes) == 1 and classes > 1 and _strided.crosses(x, axis)
    if not across and (not is_whole(x, axis) or classes <= _cpu.LONGEST_WHOLE_ROW or not x.size):
        return whole(row)
    reason = (
        "class by class: the next class lies far away"
        if across
        else "in blocks, of which XLA stores no terms"
    )
    return by_platform("the sums of every row", row, plain=whole, cpu=(in_blocks, reason))


def _slice(a: Array, start: Array | int, size: int, axis: int) -> Array:
    return a if a.shape[axis] == 1 else lax.dynamic_slice_in_dim(a, start, size, axis)
