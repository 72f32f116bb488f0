"""The numbers of the rows of a linear head, ``logits = hidden @ weight + bias``, whose logits are never held.

Blocks of logits are made, summed up and thrown away. For a derivative they come about in two ways:

- `numbers`, for any cotangent of a row: made once more on the way back, four products of matrices in all.
- `total`, for a plain sum of losses: a block becomes its gradient while it is there, three products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import zero_from_primal

from jsoftmax import _blocks, _parts, _products, _rows, _scaling, _statistics, rules
from jsoftmax._autodiff import with_gradients, with_rules
from jsoftmax._blocks import BlockPlan
from jsoftmax._parts import Part
from jsoftmax._products import TILE, Rows, Shared, Static
from jsoftmax._sharding import is_whole, laid_out, spec, varying
from jsoftmax._statistics import Numbers, Saved

_Kept = tuple[Rows, Shared, Saved]


def _save(static: Static, rows: Rows, shared: Shared) -> tuple[Numbers, _Kept]:
    plan = static.plan(rows, shared, gradient=False)

    def block(carry: None, rows: Rows) -> tuple[None, Any]:
        def forward(size: int, rows: Rows, shared: Shared) -> Any:
            found, saved, _ = _forward(static, size, rows, shared)
            return found, saved

        return None, _tiled(static, plan, forward, rows, shared)

    _, (found, saved) = _blocks.over_rows(plan, block, None, rows)
    return found, (rows, shared, saved)


def _tiled(static: Static, plan: BlockPlan, function: Callable[..., Any], rows: Rows, *arguments: Any) -> Any:
    """``function(classes at a time, rows, …)``: on CPU in tiles, elsewhere as planned."""
    shared = arguments[0]
    planned = partial(function, plan.block_classes)
    if (
        static.names
        or not rows.has_class_ids
        or not is_whole(shared.weight, 0, 1)
        or plan.block_classes <= TILE
    ):
        return planned(rows, *arguments)
    return lax.platform_dependent(rows, *arguments, cpu=partial(function, TILE), default=planned)


def _forward(
    static: Static, size: int, rows: Rows, shared: Shared, *, keep: bool = False
) -> tuple[Numbers, Saved, Array | None]:
    """The numbers of a block of rows, `size` classes at a time, and its logits if they are to be kept."""
    classes = shared.weight.shape[static.vocab_axis]

    def add(carry: Any, start: Array | int, length: int) -> Any:
        so_far, x = carry
        tile = static.part(shared, start, length)
        of_tile = _products.logits(static, rows, tile)
        part = _part(static, of_tile, rows, tile, start, whole=size == classes)
        if so_far is not None:
            part = _parts.merge(so_far, part, rows.scaling)
        if keep:
            x = of_tile if x is None else _blocks.with_part(x, of_tile, start, 1)
        return part, x

    begun = None
    if keep and size < classes:
        shape, dtype = (len(rows.hidden), classes), rules.computing_dtype(rows.hidden.dtype)
        begun = jnp.zeros(shape, dtype, out_sharding=laid_out(rows.hidden, spec(rows.hidden)[0], None))
        begun = varying(begun, rows.hidden, shared.weight)
    (state, found, sum_weights, mean_u, _), x = _blocks.over_classes(classes, size, add, (None, begun))
    if size < classes:
        valid = (rows.labels >= 0) & (rows.labels < classes)
        found["nll"] = jnp.where(valid, found["nll"], jnp.nan)
        if rows.counted is not None:
            found = {name: jnp.where(rows.counted, number, 0) for name, number in found.items()}
    return found, Saved(None, state, found, sum_weights, mean_u), x


def _part(static: Static, x: Array, rows: Rows, shared: Shared, start: Array | int, *, whole: bool) -> Part:
    """The numbers of some of the classes; the nll is 0 where the label is not one of them."""
    problem = _products.problem(x, rows, shared, start, whole=whole)
    has_label = jnp.asarray(True)
    if not whole:
        has_label = problem.labels >= 0
        problem = problem._replace(labels=jnp.where(has_label, problem.labels, 0))
    found, saved = _statistics.save((1, static.names, static.wanted), problem)
    if not whole:
        found["nll"] = jnp.where(has_label, found["nll"], 0)
    if "prediction" in static.wanted:
        found["prediction"] = start + _rows.prediction(
            _scaling.ordered_live(x, problem.scaling), (1, *static.names)
        )
    return Part(saved.state, found, saved.sum_weights, saved.mean_u, has_label)


def _backward(
    static: Static,
    size: int,
    asked: tuple[Rows, Shared],
    rows: Rows,
    shared: Shared,
    sums: Shared,
    saved: Saved,
    cotangents: dict[str, Array | None],
    x: Array | None = None,
) -> tuple[Shared, Rows]:
    """The gradients of a block of rows, `size` classes at a time, from its logits or by making them again."""
    classes = shared.weight.shape[static.vocab_axis]

    def add(carry: tuple[Shared, Any], start: Array | int, length: int) -> tuple[Shared, Any]:
        sums, so_far = carry
        tile = static.part(shared, start, length)
        of_tile = _products.logits(static, rows, tile) if x is None else _blocks.part(x, start, length, 1)
        problem = _products.problem(of_tile, rows, tile, start, whole=size == classes)
        here = saved._replace(problem=problem)
        back = _statistics.pull((1, static.names, static.wanted), here, cotangents, so_far is None)[0]
        so_much = static.part(sums, start, length)
        dhidden, so_much = _products.back(
            static, asked[0], so_much, rows.hidden, tile.weight, back.x, back.weights
        )
        of_rows = Rows(dhidden, back.labels if asked[0].labels else None, None, *back.scaling[1:])
        if so_far is not None:
            of_rows = jax.tree.map(jnp.add, so_far, of_rows)
        return static.with_part(sums, so_much, start), of_rows

    return _blocks.over_classes(classes, size, add, (sums, None))


def _pull(
    static: Static, asked: tuple[Rows, Shared], kept: _Kept, cotangents: dict[str, Array | None]
) -> tuple[Rows, Shared]:
    rows, shared, saved = kept
    plan = static.plan(rows, shared)

    def block(sums: Shared, part: Any) -> tuple[Shared, Rows]:
        def backward(size: int, rows: Rows, *arguments: Any) -> Any:
            return _backward(static, size, asked, rows, *arguments)

        rows, saved, cotangents = part
        return _tiled(static, plan, backward, rows, shared, sums, saved, cotangents)

    begun = _products.none_yet(asked[1], rows, shared)
    sums, of_rows = _blocks.over_rows(plan, block, begun, (rows, saved, cotangents))
    return _in_dtype_of(rows, of_rows), _in_dtype_of(shared, sums)


def _in_dtype_of(arguments: Any, gradients: Any) -> Any:
    def cast(d: Array | None, a: Array | None) -> Array | None:
        return None if d is None or a is None else d.astype(a.dtype)

    return jax.tree.map(cast, gradients, arguments, is_leaf=lambda d: d is None)


def _push(static: Static, kept: _Kept, tangents: tuple[Rows, Shared]) -> Numbers:
    rows, shared, saved = kept
    drows, dshared = tangents
    plan = static.plan(rows, shared, gradient=False)

    def block(carry: None, part: Any) -> tuple[None, Numbers]:
        rows, saved, drows = part

        def add(so_far: Numbers | None, start: Array | int, size: int) -> Numbers:
            tile, dtile = static.part(shared, start, size), static.part(dshared, start, size)
            x = _products.logits(static, rows, tile)
            problem = _products.problem(x, rows, tile, start, whole=plan.class_blocks == 1)
            dx = jnp.zeros_like(x)
            if drows.hidden is not None:
                dx += _products.logits(static, drows, Shared(tile.weight))
            if dtile.weight is not None:
                dx += _products.logits(static, rows, Shared(dtile.weight))
            if dtile.bias is not None:
                dx += dtile.bias.astype(dx.dtype)
            dproblem = _products.problem(dx, drows, dtile)
            of_part = saved._replace(problem=problem)
            out = _statistics.push((1, static.names, static.wanted), of_part, (dproblem,), so_far is None)
            return out if so_far is None else jax.tree.map(jnp.add, so_far, out)

        return None, _blocks.over_classes(plan.classes, plan.block_classes, add, None)

    out = _blocks.over_rows(plan, block, None, (rows, saved, drows))[1]
    if "prediction" in static.wanted:
        out["prediction"] = zero_from_primal(saved.numbers["prediction"])
    return out


_numbers = with_rules(_save, _pull, _push, selective=True)


def numbers(static: Static, rows: Rows, shared: Shared) -> Numbers:
    """The wanted numbers of every row, [B, 1] each; also "prediction", the first of the largest classes."""
    return _numbers(static, _ready(static, rows, shared), shared)


def _ready(static: Static, rows: Rows, shared: Shared) -> Rows:
    """The rows, with nothing in those that do not count, and all marked where blocks are to be filled up."""
    if rows.counted is not None:
        return rows._replace(hidden=jnp.where(rows.counted, rows.hidden, 0))
    plans = [static.plan(rows, shared, gradient) for gradient in (True, False)]
    if any(plan.row_blocks * plan.block_rows != plan.rows for plan in plans):
        return rows._replace(counted=jnp.ones((len(rows.hidden), 1), bool))
    return rows


def _total_and_gradients(
    static: Static, asked: tuple[Rows, Shared], rows: Rows, shared: Shared
) -> tuple[Array, tuple[Rows, Shared]]:
    differentiated = any(jax.tree.leaves(asked))
    plan = static.plan(rows, shared, differentiated)

    def block(sums: Shared, rows: Rows) -> tuple[Shared, Any]:
        def value(size: int, rows: Rows, shared: Shared) -> Array:
            return rows.terms.losses(_forward(static, size, rows, shared)[0])

        def both(size: int, rows: Rows, shared: Shared, sums: Shared) -> tuple[Shared, Any]:
            found, saved, x = _forward(static, size, rows, shared, keep=True)
            terms = jax.tree.map(lambda a: varying(a, found), rows.terms)  # to have a gradient of their own
            losses, back = jax.vjp(lambda found, terms: terms.losses(found), found, terms)
            of_found, of_terms = back(jnp.ones_like(losses))
            sums, of_rows = _backward(static, size, asked, rows, shared, sums, saved, of_found, x)
            return sums, (losses, of_rows._replace(terms=of_terms))

        if not differentiated:
            return sums, (_tiled(static, plan, value, rows, shared), None)
        return _tiled(static, plan, both, rows, shared, sums)

    begun = _products.none_yet(asked[1], rows, shared)
    of_shared, (losses, of_rows) = _blocks.over_rows(plan, block, begun, rows)
    return jnp.sum(losses), (of_rows if differentiated else rows, of_shared)


_total = with_gradients(_total_and_gradients)


def total(static: Static, rows: Rows, shared: Shared) -> Array:
    """The sum of the losses of all rows."""
    return _total(static, _ready(static, rows, shared), shared)
