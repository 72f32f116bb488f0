"""The numbers of the rows of a linear head, ``logits = hidden @ weight + bias``, whose logits are never held.

Blocks of logits are made, summed up and thrown away. For a derivative they come about in two ways:

- `numbers`, for any cotangent of a row: made once more on the way back, four products of matrices in all.
- `total`, for a plain sum of losses: a block becomes its gradient while it is there, three products.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jsoftmax import _blocks, _parts, _products, _scaling, _statistics
from jsoftmax._autodiff import with_gradients, with_rules
from jsoftmax._parts import Part
from jsoftmax._products import Rows, Shared, Static
from jsoftmax._statistics import Numbers, Saved

_Kept = tuple[Rows, Shared, Saved]


def _save(static: Static, rows: Rows, shared: Shared) -> tuple[Numbers, _Kept]:
    plan = static.plan(rows, shared, gradient=False)

    def block(carry: None, rows: Rows) -> tuple[None, Any]:
        def add(so_far: Part | None, start: Array | int, size: int) -> Part:
            part = _part(static, rows, shared, start, size)
            return part if so_far is None else _parts.merge(so_far, part, rows.scaling)

        state, found, sum_weights, _ = _blocks.over_classes(plan.classes, plan.block_classes, add, None)
        if plan.class_blocks > 1:
            valid = (rows.labels >= 0) & (rows.labels < plan.classes)
            found["nll"] = jnp.where(valid, found["nll"], jnp.nan)
            if rows.counted is not None:
                found = {name: jnp.where(rows.counted, number, 0) for name, number in found.items()}
        return None, (found, Saved(None, state, found, sum_weights))

    _, (found, saved) = _blocks.over_rows(plan, block, None, rows)
    return found, (rows, shared, saved)


def _part(static: Static, rows: Rows, shared: Shared, start: Array | int, size: int) -> Part:
    """The numbers of some of the classes; the nll is 0 where the label is not one of them."""
    whole = size == shared.weight.shape[static.vocab_axis]
    shared = static.part(shared, start, size)
    problem = _products.problem(_products.logits(static, rows, shared), rows, shared, start, whole=whole)
    has_label = jnp.asarray(True)
    if not whole:
        has_label = problem.labels >= 0
        problem = problem._replace(labels=jnp.where(has_label, problem.labels, 0))
    found, saved = _statistics.save((1, static.wanted), problem)
    if not whole:
        found["nll"] = jnp.where(has_label, found["nll"], 0)
    if "prediction" in static.wanted:
        live = lax.stop_gradient(_scaling.ordered_live(problem.x, problem.scaling))
        found["prediction"] = start + jnp.argmax(live, 1, keepdims=True).astype(jnp.int32)
    return Part(saved.state, found, saved.sum_weights, has_label)


def _pull(
    static: Static, asked: tuple[Rows, Shared], kept: _Kept, cotangents: dict[str, Array | None]
) -> tuple[Rows, Shared]:
    rows, shared, saved = kept
    plan = static.plan(rows, shared)

    def block(sums: Shared, part: Any) -> tuple[Shared, Rows]:
        rows, saved, cotangents = part

        def add(carry: tuple[Shared, Any], start: Array | int, size: int) -> tuple[Shared, Any]:
            sums, so_far = carry
            tile = static.part(shared, start, size)
            x = _products.logits(static, rows, tile)
            problem = _products.problem(x, rows, tile, start, whole=plan.class_blocks == 1)
            of_part = saved._replace(problem=problem)
            back = _statistics.pull((1, static.wanted), of_part, cotangents, so_far is None)[0]
            of_tile = static.part(sums, start, size)
            dhidden, of_tile = _products.back(
                static, asked[0], of_tile, rows.hidden, tile.weight, back.x, back.weights
            )
            of_rows = Rows(dhidden, back.labels, None, *back.scaling[1:])
            if so_far is not None:
                of_rows = jax.tree.map(jnp.add, so_far, of_rows)
            return static.with_part(sums, of_tile, start), of_rows

        return _blocks.over_classes(plan.classes, plan.block_classes, add, (sums, None))

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
            out = _statistics.push((1, static.wanted), of_part, (dproblem,), so_far is None)
            return out if so_far is None else jax.tree.map(jnp.add, so_far, out)

        return None, _blocks.over_classes(plan.classes, plan.block_classes, add, None)

    out = _blocks.over_rows(plan, block, None, (rows, saved, drows))[1]
    if "prediction" in static.wanted:
        out["prediction"] = np.zeros(saved.numbers["prediction"].shape, jax.dtypes.float0)
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
    def block(sums: Shared, rows: Rows) -> tuple[Shared, Any]:
        given, others = _parted(asked, rows, shared)

        def losses(x: Array, given: Any) -> tuple[Array, Array]:
            rows, shared = _united(given, others)
            found = _statistics.of_rows((1, static.wanted), _products.problem(x, rows, shared))
            losses = rows.terms.losses(found)
            return jnp.sum(losses), losses

        x = _products.logits(static, rows, shared)
        if not any(jax.tree.leaves(asked)):
            return sums, (losses(x, given)[1], given[0])
        value, back, found = jax.vjp(losses, x, given, has_aux=True)
        dx, (of_rows, of_shared) = back(jnp.ones_like(value))
        dhidden, sums = _products.back(
            static, asked[0], sums, rows.hidden, shared.weight, dx, of_shared.class_weights
        )
        return sums, (found, of_rows._replace(hidden=dhidden))

    begun = _products.none_yet(asked[1], rows, shared)
    plan = static.plan(rows, shared, any(jax.tree.leaves(asked)))
    of_shared, (losses, of_rows) = _blocks.over_rows(plan, block, begun, rows)
    return jnp.sum(losses), (of_rows, of_shared)


def _parted(asked: tuple[Rows, Shared], rows: Rows, shared: Shared) -> tuple[Any, Any]:
    """The arguments that come after the logits: those to differentiate in, and the others."""
    after = (rows._replace(hidden=None), shared._replace(weight=None, bias=None))
    asked = (asked[0]._replace(hidden=None), asked[1]._replace(weight=None, bias=None))

    def where(wanted: bool) -> Any:
        return jax.tree.map(lambda asked, a: a if asked == wanted else None, asked, after)

    return where(True), where(False)


def _united(given: Any, others: Any) -> Any:
    return jax.tree.map(lambda a, b: b if a is None else a, given, others, is_leaf=lambda a: a is None)


_total = with_gradients(_total_and_gradients)


def total(static: Static, rows: Rows, shared: Shared) -> Array:
    """The sum of the losses of all rows."""
    return _total(static, _ready(static, rows, shared), shared)
