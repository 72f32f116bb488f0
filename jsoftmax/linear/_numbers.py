"""The row numbers of a linear head, ``logits = hidden @ weight + bias``, without an array of all logits.

Gradients may depend on a random key. The numbers do not, but `jax.vmap` and `jax.shard_map` have to see them
as functions of the key: then every element and every shard has its own cotangent for its own gradient.

Logits are computed block by block, reduced, and not kept. There are two ways to a derivative:

- `numbers`, for any cotangents of the rows: the backward pass computes the logits again, four products;
- `total`, for a plain sum of losses: the forward pass turns each block into its gradient, three products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import zero_from_primal

from jsoftmax.linear import _block, _loss_kernel, _plan, _products, _sampling
from jsoftmax.linear._plan import BlockPlan
from jsoftmax.linear._products import Rows, Shared, Static
from jsoftmax.rows import _statistics_rules
from jsoftmax.rows._statistics import Numbers, Saved
from jsoftmax.transforms import _modes
from jsoftmax.transforms._autodiff import with_gradients, with_rules
from jsoftmax.transforms._row_wise import row_wise
from jsoftmax.transforms._rule_trees import in_dtypes_of, mapped_together
from jsoftmax.transforms._sharding import varying

STATISTICS = ("log_normalizer", "nll", "entropy", "prediction")
_Kept = tuple[Rows, Shared, Saved]


def _save(static: Static, rows: Rows, shared: Shared) -> tuple[Numbers, _Kept]:
    found, saved = _find(static, rows, shared)
    return _of_key(static, found, shared.key), (rows, shared, saved)


def _of_key(static: Static, numbers: Any, key: Array | None) -> Any:
    """The numbers, marked as functions of the key, if there is one.

    Each shard of the classes has its own key, but all of them have the same numbers.
    """
    if key is None:
        return numbers
    varied = jax.tree.map(lambda a: varying(a, key, except_for=static.names), numbers)
    return mapped_together(varied, key)


def _find(static: Static, rows: Rows, shared: Shared) -> tuple[Numbers, Saved]:
    blocks = partial(_find_in_blocks, static)
    return _loss_kernel.or_blocks(static, lambda *arguments: blocks(*arguments)[0], rows, shared)


@row_wise
def _find_in_blocks(static: Static, rows: Rows, shared: Shared) -> tuple[tuple[Numbers, Saved], None]:
    plan = static.plan(rows, shared, gradient=False)

    def block(carry: None, rows: Rows, counted: Array | None) -> tuple[None, Any]:
        def forward(size: int, rows: Rows, shared: Shared) -> Any:
            found, saved, _ = _block.forward(static, size, rows, shared)
            return found, saved

        return None, _block.tiled(static, plan, forward, rows.of_block(counted), shared)

    return _plan.over_rows(plan, block, None, rows)[1], None


def pull(
    static: Static, asked: tuple[Rows, Shared], kept: _Kept, cotangents: dict[str, Array | None]
) -> tuple[Rows, Shared]:
    rows, shared, saved = kept
    cotangents = {name: g for name, g in cotangents.items() if name != _block.UNWEIGHTED}
    return _pull_rows(static._replace(asked=asked), (rows, saved, cotangents), shared)


@row_wise
def _pull_rows(static: Static, parts: Any, shared: Shared) -> tuple[Rows, Shared]:
    rows = parts[0]
    plan = static.plan(rows, shared)

    def block(sums: Shared, part: Any, counted: Array | None) -> tuple[Shared, Rows]:
        rows, saved, cotangents = part
        rows = rows.of_block(counted)
        backward = partial(_backward(static, plan, rows), static)
        sums, of_rows = _block.tiled(static, plan, backward, rows, shared, sums, saved, cotangents)
        return sums, in_dtypes_of(rows, of_rows)

    begun = _products.zero_gradients(static.asked[1], rows, shared)
    sums, of_rows = _plan.over_rows(plan, block, begun, parts)
    return of_rows, in_dtypes_of(shared, sums._replace(key=None))


def _backward(static: Static, plan: BlockPlan, rows: Rows) -> Callable[..., tuple[Shared, Rows]]:
    return _sampling.backward if static.samples(plan, rows) else _block.backward


def push(static: Static, kept: _Kept, tangents: tuple[Rows, Shared]) -> Numbers:
    rows, shared, saved = kept
    out, _ = _push_rows(static, (rows, saved, tangents[0]), (shared, tangents[1]))
    if "prediction" in static.wanted:
        out["prediction"] = zero_from_primal(saved.numbers["prediction"])
    if _block.UNWEIGHTED in static.wanted:
        out[_block.UNWEIGHTED] = jnp.zeros_like(out["nll"])
    return out


@row_wise
def _push_rows(static: Static, parts: Any, both_shared: tuple[Shared, Shared]) -> tuple[Numbers, None]:
    shared, dshared = both_shared
    plan = static.plan(parts[0], shared, gradient=False)

    def block(carry: None, part: Any, counted: Array | None) -> tuple[None, Numbers]:
        rows, saved, drows = part
        rows = rows.of_block(counted).of_block(saved.has_numbers)
        drows = drows._replace(hidden=rows.masked(drows.hidden))

        def add(so_far: Numbers | None, start: Array | int, size: int) -> Numbers:
            tile, dtile = static.part(shared, start, size), static.part(dshared, start, size)
            x = _products.logits(static, rows, tile)
            whole = plan.class_blocks == 1
            row_args = _products.row_arguments(x, rows, tile, start, whole=whole)
            dx = jnp.zeros_like(x)
            if drows.hidden is not None:
                dx += _products.logits(static, drows, Shared(tile.weight))
            if dtile.weight is not None:
                dx += _products.logits(static, rows, Shared(dtile.weight))
            if dtile.bias is not None:
                dx += dtile.bias.astype(dx.dtype)
            tangents = _products.row_arguments(dx, drows, dtile)
            of_part = saved.with_logits(row_args, whole=whole)
            out = _statistics_rules.push(
                (1, static.names, static.wanted), of_part, (tangents,), so_far is None
            )
            return out if so_far is None else jax.tree.map(jnp.add, so_far, out)

        return None, _plan.over_classes(plan.classes, plan.block_classes, add, None)

    return _plan.over_rows(plan, block, None, parts)[1], None


_numbers = with_rules(_save, pull, push, selective=True, sweeps=False)


@row_wise
def _numbers_of_rows(static: Static, rows: Rows, shared: Shared) -> tuple[Numbers, None]:
    return _numbers(static, rows, shared, beside=rows.terms), None


def numbers(static: Static, rows: Rows, shared: Shared) -> Numbers:
    """The wanted numbers of every row, [B, 1] each; "prediction" is the index of the first largest logit."""
    return _numbers_of_rows(static, rows, shared)[0]


def _total_and_gradients(static: Static, asked: tuple[Rows, Shared], rows: Rows, shared: Shared) -> Any:
    if _modes.kernels() and not any(jax.tree.leaves(asked)):
        return _total_by_rows(static, rows, shared), (Rows(None), Shared(None))
    found, of_shared = _losses_and_gradients(static._replace(asked=asked), rows, shared)
    losses, told, of_rows = found
    return (_of_key(static, jnp.sum(losses), shared.key), told), (of_rows, of_shared)


def _told(static: Static, found: Numbers) -> Numbers:
    """The statistics of every row, if they are asked for beside a loss."""
    names = (*STATISTICS, _block.UNWEIGHTED) if "prediction" in static.wanted else ()
    return {name: found[name] for name in names if name in static.wanted}


@row_wise
def _losses_and_gradients(static: Static, rows: Rows, shared: Shared) -> tuple[Any, Shared]:
    differentiated = any(jax.tree.leaves(static.asked))
    plan = static.plan(rows, shared, differentiated)

    def block(sums: Shared, rows: Rows, counted: Array | None) -> tuple[Shared, Any]:
        def value(size: int, rows: Rows, shared: Shared) -> tuple[Array, Numbers]:
            found = _block.forward(static, size, rows, shared)[0]
            return rows.terms.losses(found), _told(static, found)

        def both(size: int, rows: Rows, shared: Shared, sums: Shared) -> tuple[Shared, Any]:
            found, saved, x = _block.forward(static, size, rows, shared, keep=True)
            of_loss = {name: a for name, a in found.items() if name in rows.terms.wanted or name == "live"}
            arguments = of_loss, rows.terms
            arguments = jax.tree.map(lambda a: varying(a, arguments), arguments)  # for one gradient per shard
            losses, back = jax.vjp(lambda found, terms: terms.losses(found), *arguments)
            of_found, of_terms = back(jnp.ones_like(losses))
            backward = _backward(static, plan, rows)
            sums, of_rows = backward(static, size, rows, shared, sums, saved, of_found, x)
            return sums, (losses, _told(static, found), of_rows._replace(terms=of_terms))

        rows = rows.of_block(counted)
        if not differentiated:
            return sums, (*_block.tiled(static, plan, value, rows, shared), Rows(None))
        return _block.tiled(static, plan, both, rows, shared, sums)

    begun = _products.zero_gradients(static.asked[1], rows, shared)
    of_shared, of_rows = _plan.over_rows(plan, block, begun, rows)
    return of_rows, of_shared._replace(key=None)


def _total_by_rows(static: Static, rows: Rows, shared: Shared) -> tuple[Array, Numbers]:
    found = numbers(static, rows, shared)
    return jnp.sum(rows.terms.losses(found)), _told(static, found)


# With a gradient in targets, `total` would keep one more array of their size, so it takes the other way.
_total = with_gradients(_total_and_gradients, _total_by_rows, lambda asked: not asked[0].labels)


@partial(row_wise, mapped=lambda *arguments: _total_by_rows(*arguments)[::-1])
def _total_of_rows(static: Static, rows: Rows, shared: Shared) -> tuple[Numbers, Array]:
    found: tuple[Array, Numbers] = _total(static, rows, shared)
    return found[::-1]


def total(static: Static, rows: Rows, shared: Shared) -> tuple[Array, Numbers]:
    """The sum of the losses of all rows, and the `STATISTICS` of every row, if the prediction is wanted.

    Under `jax.vmap`, each sum has its own cotangent. The gradient of the weight sums over all of them, so it
    cannot be formed before the cotangents are known.
    """
    told, found = _total_of_rows(static, rows, shared)
    return found, told
