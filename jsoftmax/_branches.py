"""Branches on what only the program knows: they stay branches under `jax.vmap`, and copy nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from jsoftmax._sharding import varying

Axes = tuple[int, ...]


def with_more_rows(
    of_axes: Callable[[Axes], Callable[..., Array]],
    axes: Axes,
    shared: Callable[[Axes], Callable[..., Array]] | None = None,
) -> Callable[..., Array]:
    """``of_axes(axes)``, a function of arrays of one rank, to which a mapped axis is one more of their rows'.

    So a branch stays a branch, where `jax.vmap` would compute both. An array that is not mapped is repeated;
    where the first is not, ``shared(axes)`` is mapped by `jax.vmap` instead, if there is such a function.
    """
    function = custom_vmap(of_axes(axes))

    @function.def_vmap
    def of_batch(size: int, mapped: Any, *arguments: Any) -> tuple[Array, bool]:
        if shared is not None and not mapped[0]:
            places = jax.tree.map(lambda is_mapped: 0 if is_mapped else None, tuple(mapped))
            return jax.vmap(shared(axes), places, axis_size=size)(*arguments), True

        def with_rows(a: Array, is_mapped: bool) -> Array:
            return a if is_mapped else jnp.broadcast_to(a, (size, *a.shape))

        of_all = jax.tree.map(with_rows, arguments, tuple(mapped))
        return with_more_rows(of_axes, tuple(axis + 1 for axis in axes), shared)(*of_all), True

    return function


def unless(good: Array, values: Array, repaired: Callable[[Array], Array]) -> Array:
    """``repaired(values)``, unless they are `good`: a branch that does not copy them.

    It stands in a loop that runs once at most. Of a loop without a branch, XLA would compute what does not
    change in it even if it never runs.
    """

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return varying(jnp.array(True), good), lax.cond(state[0], lambda values: values, repaired, state[1])

    return lax.while_loop(lambda state: ~state[0], step, (good, values))[1]
