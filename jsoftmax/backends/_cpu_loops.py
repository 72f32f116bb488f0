"""Sums and maxima over rows on CPU: in a loop over blocks of a long row, or class by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _reading
from jsoftmax.backends._blocks import not_fused
from jsoftmax.backends._by_class import in_pairs
from jsoftmax.backends._choice import choose
from jsoftmax.backends._request import Request
from jsoftmax.transforms._platforms import by_platform

BLOCK_SIZE = 2**20  # in elements, over all rows


def maximum(x: Array, axes: tuple[int, ...], *, bare: bool = True) -> Array:
    """The maximum of every row. `bare` says that x lies in memory; a loop would store an x to be computed."""

    def plain(x: Array) -> Array:
        return jnp.max(x, axes, keepdims=True)

    def by_class(x: Array) -> Array:
        axis = axes[0]

        def higher(i: Array, top: Array) -> Array:
            return jnp.maximum(top, lax.dynamic_index_in_dim(x, i, axis))

        return lax.fori_loop(1, x.shape[axis], higher, lax.dynamic_index_in_dim(x, 0, axis))

    own_forms = choose(Request("maximum", x, axes, bare=bare)).functions({"by class": by_class})
    return by_platform("the maximum of every row", x, plain=plain, **own_forms)


def sums(
    terms: Callable[[Any], tuple[Array, ...]], row: Any, axes: tuple[int, ...], *, used_again: bool = False
) -> tuple[Array, ...]:
    """The sum over a row of each term in ``terms(row)``; `row` is a tree of arrays, the logits first.

    `used_again` says that later operations on all classes use the sums.
    """
    x = row[0]
    form = choose(Request("sums", x, axes)).cpu

    def whole(row: Any) -> tuple[Array, ...]:
        return tuple(jnp.sum(t, axes, keepdims=True) for t in terms(row))

    if form is None:
        return whole(row)
    axis = max(axes, key=lambda i: x.shape[i])
    classes = x.shape[axis]

    def unrolled(row: Any) -> tuple[Array, ...]:
        of_class = jax.jit(terms)  # traced once
        of_classes = (of_class(_class(row, i, axis)) for i in range(classes))
        return tuple(map(in_pairs, zip(*of_classes, strict=True)))

    size = 1 if form.name == "by class" else min(max(BLOCK_SIZE * classes // x.size, 512), 1024)

    def in_loop(row: Any) -> tuple[Array, ...]:
        steps, over = divmod(classes - 1, size)  # the first block has the remainder and one class more

        def block(start: Array | int, size: int) -> tuple[Array, ...]:
            return whole(jax.tree.map(lambda a: _slice(a, start, size, axis), row))

        def step(i: Array, sums: tuple[tuple[Array, Array], ...]) -> tuple[tuple[Array, Array], ...]:
            parts = block(1 + over + i * size, size)
            return tuple(rules.compensated(*total, part) for total, part in zip(sums, parts, strict=True))

        begun = tuple((part, jnp.zeros_like(part)) for part in block(0, 1 + over))
        return tuple(total for total, _ in lax.fori_loop(0, steps, step, begun))

    def unrolled_apart(row: Any) -> tuple[Array, ...]:
        """Fused with later operations, XLA would store the terms."""
        found: tuple[Array, ...] = not_fused(unrolled, row)
        return found

    on_cpu = in_loop
    if form.name == "unrolled":
        on_cpu = unrolled_apart if used_again else unrolled
    return by_platform("the sums of every row", row, plain=whole, cpu=(on_cpu, form.reason))


def _class(row: Any, i: int, axis: int) -> Any:
    def part(a: Array) -> Array:
        return a if a.shape[axis] == 1 else _reading.part(a, i, i + 1, axis)

    return jax.tree.map(part, row)


def _slice(a: Array, start: Array | int, size: int, axis: int) -> Array:
    return a if a.shape[axis] == 1 else lax.dynamic_slice_in_dim(a, start, size, axis)
