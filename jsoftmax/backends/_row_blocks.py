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
from jsoftmax.backends._blocks import not_fused
from jsoftmax.backends._choice import choose
from jsoftmax.backends._request import IS_OLD_XLA, Request, What
from jsoftmax.transforms import _modes
from jsoftmax.transforms._platforms import by_platform
from jsoftmax.transforms._sharding import zeros

Axes = tuple[int | str, ...]


def _never_bare(static: Any, *trees: Any) -> bool:
    return False


def _static_axes(static: Any) -> Axes:
    return static


def in_row_blocks(
    function: Callable[..., Any],
    *,
    is_bare: Callable[..., bool] = _never_bare,
    axes_of: Callable[[Any], Axes] = _static_axes,
    kind: What = "rows",
) -> Callable[..., Any]:
    """``function(static, *trees)`` of arrays, the logits first, which may run on CPU in blocks of rows.

    The arguments and outputs have one length, or 1, along every axis of the rows. An output of length 1 along
    the axis of the blocks is a sum over the rows. ``axes_of(static)`` are the axes of a row,
    ``is_bare(static, *trees)`` is as `bare` in `Request`, and `kind` as `what`.
    """
    what = "the numbers of every row" if kind == "rows" else "the gradient of every row"

    @functools.wraps(function)
    def call(static: Any, *trees: Any) -> Any:
        own, names = rules.split_axes(axes_of(static))
        arguments, of_arguments = jax.tree.flatten(trees)
        request = Request(kind, arguments[0], own, bool(names), is_bare(static, *trees))
        form = choose(request).cpu
        if form is None or (axis := request.row_axis) is None:  # unknown lengths have no longest
            return function(static, *trees)
        layout: list[Any] = []

        def plain(*arguments: Array) -> list[Array]:
            """The outputs that are not arguments, each once; the others need not be copied."""
            found, of_outputs = jax.tree.flatten(
                function(static, *jax.tree.unflatten(of_arguments, arguments))
            )
            known = set(map(id, arguments))
            made = list({id(a): a for a in found if id(a) not in known}.values())
            places = {id(a): place for place, a in enumerate([*arguments, *made])}
            layout[:] = of_outputs, [places[id(a)] for a in found]
            return made

        loop = _with_tangent_of(plain, partial(_in_loop, plain, form.size, axis)), form.reason
        made = by_platform(what, *arguments, plain=plain, cpu=loop)
        of_outputs, places = layout
        arrays = [*arguments, *made]
        return jax.tree.unflatten(of_outputs, [arrays[place] for place in places])

    return call


def both_in_row_blocks(
    save: Callable[..., Any],
    pull: Callable[..., Any],
    *,
    has_sums: Callable[[Any, Any], bool] = lambda asked, saved: True,
    is_bare: Callable[..., bool] = _never_bare,
    axes_of: Callable[[Any], Axes] = _static_axes,
) -> tuple[Any, Any]:
    """The function `save` of a rule by `in_row_blocks`, and `pull` as a selective one.

    A gradient runs in blocks only if ``has_sums(asked, saved)``: if it has sums over the classes of a row.
    Without them XLA stores nothing, as it fuses all operations into one loop. Since jax 0.12.0, XLA would run
    a loop over blocks of such a gradient on one core.
    """
    in_blocks = in_row_blocks(pull, axes_of=axes_of, kind="gradient of rows")

    def pull_asked(static: Any, asked: Any, saved: Any, cotangents: Any) -> Any:
        return (in_blocks if has_sums(asked, saved) else pull)(static, saved, cotangents)

    return in_row_blocks(save, is_bare=is_bare, axes_of=axes_of), pull_asked


def _with_tangent_of(plain: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the derivative of `plain`: reverse mode through a loop would store all its steps."""
    found = jax.custom_jvp(function)

    def push(primals: Any, tangents: Any) -> tuple[Any, Any]:
        return found(*primals), jax.jvp(plain, primals, tangents)[1]

    found.defjvp(push)
    return found


def _in_loop(function: Callable[..., Any], size: int, axis: int, *arguments: Array) -> list[Array]:
    """The function of all rows: of the remainder of their number by `size`, then of blocks of `size` rows."""
    length = arguments[0].shape[axis]
    over = length % size

    @partial(jax.jit, static_argnums=1)  # traced once
    def of_block(start: Array | int, rows: int) -> list[Array]:
        block = [a if a.shape[axis] == 1 else _part(a, start, rows, axis) for a in arguments]
        # With the barrier XLA copies the block. Else it fuses the slice with operations on it, and its
        # reduction library runs none of them.
        block = lax.optimization_barrier(block)
        with _modes.for_cache():
            return _apart(function, start, block)

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
    return [_floats(a, of.dtype) for a, of in zip(outputs, types, strict=True)]


def _apart(function: Callable[..., Any], start: Array | int, block: list[Array]) -> list[Array]:
    """The function of a block. If it returns arrays as long as the block, they are those of a conditional.

    XLA:CPU runs an operation that it fuses with the update of a slice on one core. It fuses no conditional.
    """
    function = jax.jit(function)  # traced once
    types = jax.eval_shape(function, *block)
    if all(of.size < block[0].size for of in types):
        return list(function(*block))
    return list(not_fused(function, *block, always=jnp.asarray(start) >= 0))


def _bits(a: Array) -> Array:
    """The bits of bfloat16, where XLA converts all rows to float32 to write some of them."""
    return lax.bitcast_convert_type(a, jnp.uint16) if IS_OLD_XLA and a.dtype == jnp.bfloat16 else a


def _floats(a: Array, dtype: jnp.dtype) -> Array:
    return a if a.dtype == dtype else lax.bitcast_convert_type(a, dtype)


def _part(a: Array, start: Array | int, size: int, axis: int) -> Array:
    return _floats(lax.dynamic_slice_in_dim(_bits(a), start, size, axis), a.dtype)


def _with_part(out: Array, a: Array, start: Array | int, axis: int) -> Array:
    return lax.dynamic_update_slice_in_dim(out, _bits(a), start, axis)
