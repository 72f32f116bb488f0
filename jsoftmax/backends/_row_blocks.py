"""Functions of rows that run on CPU as a loop over blocks of rows.

XLA:CPU stores what several sums of a row share, in the shape of the logits. Memory that is written for the
first time costs more than the arithmetic; what is stored of a block stays in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends._choice import choose
from jsoftmax.backends._request import Request
from jsoftmax.transforms import _modes
from jsoftmax.transforms._platforms import by_platform
from jsoftmax.transforms._sharding import zeros

Axes = tuple[int | str, ...]


def in_row_blocks(
    function: Callable[..., Any],
    *,
    is_bare: Callable[..., bool] = lambda static, *trees: False,
    axes_of: Callable[[Any], Axes] = lambda static: static,
) -> Callable[..., Any]:
    """``function(static, *trees)`` of arrays, the logits first, which may run on CPU in blocks of rows.

    The arguments and outputs have one length, or 1, along every axis of the rows. An output of length 1 along
    the axis of the blocks is a sum over the rows. ``axes_of(static)`` are the axes of a row, and
    ``is_bare(static, *trees)`` is as `bare` in `Request`.
    """

    @functools.wraps(function)
    def call(static: Any, *trees: Any) -> Any:
        plain = partial(function, static)
        own, names = rules.split_axes(axes_of(static))
        x = jax.tree.leaves(trees)[0]
        request = Request("rows", x, own, bool(names), is_bare(static, *trees))
        form, axis = choose(request).cpu, request.row_axis
        if form is None or axis is None:
            return plain(*trees)
        loop = partial(_in_loop, plain, form.size, axis), form.reason
        return by_platform("a function of every row", *trees, plain=plain, cpu=loop)

    return call


def _in_loop(function: Callable[..., Any], size: int, axis: int, *trees: Any) -> Any:
    """The function of all rows: of the remainder of their number by `size`, then of blocks of `size` rows.

    An output that is one of the arguments, or another output, is not copied.
    """
    arguments, tree = jax.tree.flatten(trees)
    length = arguments[0].shape[axis]
    over = length % size
    layout: list[Any] = []

    @partial(jax.jit, static_argnums=1)  # traced once
    def of_block(start: Array | int, rows: int) -> list[Array]:
        block = [a if a.shape[axis] == 1 else _part(a, start, rows, axis) for a in arguments]
        # With the barrier XLA copies the block. Else it fuses the slice with operations on it, and its
        # reduction library runs none of them.
        block = lax.optimization_barrier(block)
        with _modes.for_cache():
            found, of_outputs = jax.tree.flatten(function(*jax.tree.unflatten(tree, block)))
        known = {id(a) for a in block}
        made = list({id(a): a for a in found if id(a) not in known}.values())
        places = {id(a): place for place, a in enumerate([*block, *made])}
        layout[:] = of_outputs, [places[id(a)] for a in found]
        return made

    def begun(a: Array) -> Array:
        if a.shape[axis] == 1:
            return zeros(a.shape, a)
        return _bits(zeros((*a.shape[:axis], length, *a.shape[axis + 1 :]), a))

    def with_block(outputs: list[Array], start: Array | int, rows: int) -> list[Array]:
        return [
            out + a if out.shape[axis] == 1 else _with_part(out, a, start, axis)
            for out, a in zip(outputs, of_block(start, rows), strict=True)
        ]

    def step(i: Array, outputs: list[Array]) -> list[Array]:
        return with_block(outputs, over + i * size, size)

    types = jax.eval_shape(partial(of_block, rows=size), jnp.int32(0))
    outputs = list(map(begun, types))
    outputs = with_block(outputs, 0, over) if over else outputs
    outputs = lax.fori_loop(0, length // size, step, outputs)
    of_outputs, places = layout
    arrays = [*arguments, *(_floats(a, of.dtype) for a, of in zip(outputs, types, strict=True))]
    return jax.tree.unflatten(of_outputs, [arrays[place] for place in places])


def _bits(a: Array) -> Array:
    """The bits of bfloat16: before jax 0.11.2, XLA:CPU converts all rows to float32 to write some of them."""
    is_slow = a.dtype == jnp.bfloat16 and jax.__version_info__ < (0, 11, 2)
    return lax.bitcast_convert_type(a, jnp.uint16) if is_slow else a


def _floats(a: Array, dtype: jnp.dtype) -> Array:
    return a if a.dtype == dtype else lax.bitcast_convert_type(a, dtype)


def _part(a: Array, start: Array | int, size: int, axis: int) -> Array:
    return _floats(lax.dynamic_slice_in_dim(_bits(a), start, size, axis), a.dtype)


def _with_part(out: Array, a: Array, start: Array | int, axis: int) -> Array:
    return lax.dynamic_update_slice_in_dim(out, _bits(a), start, axis)
