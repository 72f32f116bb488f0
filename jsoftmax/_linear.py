"""The numbers of the rows of a linear head, ``logits = hidden @ weight + bias``, whose logits are never held.

Blocks of logits are made, summed up and thrown away. For a derivative they come about in two ways:

- `numbers`, for any cotangent of a row: made once more on the way back, four products of matrices in all.
- `total`, for a plain sum of losses: a block becomes its gradient while it is there, three products.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import _blocks, _products, _statistics
from jsoftmax._autodiff import with_gradients, with_rules
from jsoftmax._products import Rows, Shared, Static
from jsoftmax._statistics import Numbers, Saved

# ---- The numbers of every row, for any cotangents.

_Kept = tuple[Rows, Shared, Saved]


def _save(static: Static, rows: Rows, shared: Shared) -> tuple[Numbers, _Kept]:
    def block(carry: None, rows: Rows) -> tuple[None, Any]:
        problem = _products.problem(_products.logits(static, rows, shared), rows, shared)
        found, saved = _statistics.save((1, static.wanted), problem)
        return None, (found, saved._replace(problem=None))

    plan = static.plan(rows, shared, gradient=False)
    _, (found, saved) = _blocks.over_rows(plan, block, None, rows)
    return found, (rows, shared, saved)


def _pull(
    static: Static, asked: tuple[Rows, Shared], kept: _Kept, cotangents: dict[str, Array | None]
) -> tuple[Rows, Shared]:
    rows, shared, saved = kept

    def block(sums: Shared, part: Any) -> tuple[Shared, Rows]:
        rows, saved, cotangents = part
        problem = _products.problem(_products.logits(static, rows, shared), rows, shared)
        (back,) = _statistics.pull((1, static.wanted), saved._replace(problem=problem), cotangents)
        dhidden, sums = _products.back(static, asked, rows.hidden, back.x, sums, shared.weight)
        if sums.class_weights is not None and back.weights is not None:
            sums = sums._replace(class_weights=sums.class_weights + back.weights)
        of_rows = Rows(dhidden, back.labels, None, back.scaling.temperature, back.scaling.soft_cap)
        return sums, of_rows

    begun = _products.none_yet(asked[1], shared)
    sums, of_rows = _blocks.over_rows(static.plan(rows, shared), block, begun, (rows, saved, cotangents))
    return of_rows, jax.tree.map(lambda d, a: d.astype(a.dtype), sums, Shared(*map(_if, sums, shared)))


def _if(wanted: Any, a: Any) -> Any:
    return None if wanted is None else a


def _push(static: Static, kept: _Kept, tangents: tuple[Rows, Shared]) -> Numbers:
    rows, shared, saved = kept
    drows, dshared = tangents

    def block(carry: None, part: Any) -> tuple[None, Numbers]:
        rows, saved, drows = part
        problem = _products.problem(_products.logits(static, rows, shared), rows, shared)
        dx = jnp.zeros_like(problem.x)
        if drows.hidden is not None:
            dx += _products.logits(static, drows, shared._replace(bias=None))
        if dshared.weight is not None:
            dx += _products.logits(static, rows, shared._replace(weight=dshared.weight, bias=None))
        if dshared.bias is not None:
            dx += dshared.bias.astype(dx.dtype)
        saved = saved._replace(problem=problem)
        return None, _statistics.push((1, static.wanted), saved, (_products.problem(dx, drows, dshared),))

    plan = static.plan(rows, shared, gradient=False)
    return _blocks.over_rows(plan, block, None, (rows, saved, drows))[1]


_numbers = with_rules(_save, _pull, _push, selective=True)


def numbers(static: Static, rows: Rows, shared: Shared) -> Numbers:
    """The wanted numbers of every row, [B, 1] each."""
    return _numbers(static, _ready(static, rows, shared), shared)


def _ready(static: Static, rows: Rows, shared: Shared) -> Rows:
    """The rows, with nothing in those that do not count, and all marked where blocks are to be filled up."""
    if rows.counted is not None:
        return rows._replace(hidden=jnp.where(rows.counted, rows.hidden, 0))
    plans = [static.plan(rows, shared, gradient) for gradient in (True, False)]
    if any(plan.row_blocks * plan.block_rows != plan.rows for plan in plans):
        return rows._replace(counted=jnp.ones((len(rows.hidden), 1), bool))
    return rows


# ---- The sum of the losses, with its gradients formed on the way forward.


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
        _, back, found = jax.vjp(losses, x, given, has_aux=True)
        dx, (of_rows, of_shared) = back(jnp.ones((), x.dtype))
        dhidden, sums = _products.back(static, asked, rows.hidden, dx, sums, shared.weight)
        if sums.class_weights is not None:
            sums = sums._replace(class_weights=sums.class_weights + of_shared.class_weights)
        return sums, (found, of_rows._replace(hidden=dhidden))

    begun = _products.none_yet(asked[1], shared)
    plan = static.plan(rows, shared, any(jax.tree.leaves(asked)))
    of_shared, (losses, of_rows) = _blocks.over_rows(plan, block, begun, rows)
    return jnp.sum(losses), (of_rows, of_shared)


def _parted(asked: tuple[Rows, Shared], rows: Rows, shared: Shared) -> tuple[Any, Any]:
    """The arguments that come after the logits: those to differentiate in, and the others."""
    after = (rows._replace(hidden=None), shared._replace(weight=None, bias=None))
    asked = (asked[0]._replace(hidden=False), asked[1]._replace(weight=False, bias=False))

    def where(wanted: bool) -> Any:
        return jax.tree.map(lambda asked, a: a if asked == wanted else None, asked, after)

    return where(True), where(False)


def _united(given: Any, others: Any) -> Any:
    return jax.tree.map(lambda a, b: b if a is None else a, given, others, is_leaf=lambda a: a is None)


_total = with_gradients(_total_and_gradients)


def total(static: Static, rows: Rows, shared: Shared) -> Array:
    """The sum of the losses of all rows."""
    return _total(static, _ready(static, rows, shared), shared)
