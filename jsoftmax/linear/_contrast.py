"""The contrastive loss of two batches of features, in both directions from each block of ``a @ bᵀ``.

With z = a·b/T, a row of `a` is classified among all rows of `b`, and a row of `b` among all of `a`. The sides
of the rows of `a` are complete after one block of all columns. Those of the columns merge over the blocks,
and over the shards of the rows.

The gradient in z needs the normalizers of both directions: a second sweep computes each block of logits
again. So the loss is one product, and the loss with its gradients four.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.linear import _contrast_sides, _plan, _products
from jsoftmax.linear._contrast_sides import COLUMNS, ROWS, Columns, Rows, Side
from jsoftmax.linear._plan import BlockPlan
from jsoftmax.rows import _reductions
from jsoftmax.transforms._autodiff import with_rules
from jsoftmax.transforms._platforms import hidden
from jsoftmax.transforms._rule_trees import in_dtypes_of
from jsoftmax.transforms._sharding import is_known, varying

SMALL_BLOCK = 2**24  # bytes of logits: products of smaller blocks are slower


class Static(NamedTuple):
    """The facts that are known when a program is traced."""

    head: _products.Static
    both: bool  # whether the columns have a loss too
    names: tuple[str, ...]  # the mesh axes of the shards of the rows; every shard has all columns


class Losses(NamedTuple):
    """The sum of the losses over the positives of every row and of every column, and how many there are."""

    of_rows: Array  # [N, 1]
    positives_of_rows: Array
    of_columns: Any = None  # [1, M]
    positives_of_columns: Any = None


def _blocks(static: Static, rows: Rows, columns: Columns) -> BlockPlan:
    """Blocks of some rows and all columns. They are shorter than those of a head: memory holds a few."""
    return plan(static.head, rows.features, columns.features)


def plan(head: _products.Static, a: Array, b: Array) -> BlockPlan:
    """The blocks of the logits of all pairs of rows of `a` and of `b`."""
    found = head.plan(_products.Rows(a, a), _products.Shared(b))
    if head.block_size is not None or not is_known(a) or not is_known(b):
        return found
    row_bytes = found.itemsize * found.classes
    return _plan.shortened(found, max(_plan.ENOUGH_ROWS, SMALL_BLOCK // row_bytes))


def _product(static: Static, a: Array, b: Array) -> Array:
    return _products.logits(static.head, _products.Rows(a), _products.Shared(b))


class _Logits(NamedTuple):
    """How the logits z come from products of features."""

    center: Array  # [1, 1]
    temperature: Array  # [1, 1]

    def of(self, static: Static, rows: Rows, columns: Columns) -> Array:
        """The logits of a block, stored.

        If XLA computed z again in ``z − max z``, without rounding it, the maximum would not be at 0.
        """
        x = _product(static, rows.features, columns.features)
        return hidden((x - self.center) / self.temperature)


def _center(static: Static, rows: Rows, columns: Columns) -> Array:
    """The mean of the products, subtracted from all before the division by T: an offset costs no digits."""

    def mean(features: Array, counted: Array | None) -> Array:
        total = jnp.sum(features, 0, rules.computing_dtype(features.dtype))
        return total / (
            features.shape[0] if counted is None else jnp.maximum(jnp.sum(counted), 1).astype(total.dtype)
        )

    means = mean(rows.features, rows.counted), mean(columns.features, columns.counted)
    center = lax.stop_gradient(jnp.sum(means[0] * means[1]))
    center = jnp.where(jnp.isfinite(center), center, 0)[None, None]
    return lax.pmax(center, static.names) if static.names else center


def _save(static: Static, rows: Rows, columns: Columns, temperature: Array) -> tuple[Losses, Any]:
    logits = _Logits(_center(static, rows, columns), temperature)
    blocks, begun = _blocks(static, rows, columns), _contrast_sides.empty(columns, rows, temperature)

    def with_positives(
        so_far: Side | None, rows: Rows, counted: Array | None
    ) -> tuple[Side | None, tuple[Side, None]]:
        z = logits.of(static, rows, columns)
        live, hits = _contrast_sides.masks(rows, columns, counted, z.shape[1])
        if so_far is not None:
            so_far = _contrast_sides.merge(so_far, _contrast_sides.side(z, live, hits, COLUMNS))
        return so_far, (_contrast_sides.side(z, live, hits, ROWS), None)

    def with_indices(
        so_far: online.State | None, part: tuple[Rows, Array], counted: Array | None
    ) -> tuple[online.State | None, tuple[Side, Array]]:
        rows, has_positive = part
        z = logits.of(static, rows, columns)
        live, _ = _contrast_sides.masks(rows, columns, counted, z.shape[1])
        if so_far is not None:
            so_far = online.merge(so_far, _contrast_sides.state(z, live, COLUMNS))
        logit = _reductions.logit_of_label(z, rows.ids, ROWS)
        state = _contrast_sides.state(z, live, ROWS)
        return so_far, (_contrast_sides.of_rows(state, has_positive, logit), logit)

    of_columns: Side | None
    if rows.hits is not None or columns.ids is not None:
        of_columns, (of_rows, _) = _plan.over_rows(
            blocks, with_positives, begun if static.both else None, rows
        )
    else:
        has_positive = _contrast_sides.have_positive(rows, columns)
        parts = rows, has_positive
        found = _plan.over_rows(blocks, with_indices, begun.state if static.both else None, parts)
        state, (of_rows, logit) = found
        of_columns = (
            None if state is None else _contrast_sides.of_columns(state, rows.ids, has_positive, logit)
        )
    losses = Losses(of_rows.loss, of_rows.positives)
    if of_columns is not None:
        of_columns = _contrast_sides.merge_across(of_columns, static.names)
        losses = Losses(*losses[:2], of_columns.loss, of_columns.positives)
    return losses, (rows, columns, logits, of_rows, of_columns)


def _pull(static: Static, asked: Any, kept: Any, cotangents: Losses) -> tuple[Any, Any, Any]:
    rows, columns, logits, of_rows, of_columns = kept
    of_a, of_b, of_temperature = asked[0].features, asked[1].features, asked[2]
    shared = _products.Shared(columns.features)

    def block(sums: Any, part: Any, counted: Array | None) -> tuple[Any, Array | None]:
        rows, side, of_row_losses = part
        db, dt = sums
        z = logits.of(static, rows, columns)
        live, hits = _contrast_sides.masks(rows, columns, counted, z.shape[1])
        dz = jnp.zeros_like(z)
        for g, of_side in ((of_row_losses, side), (cotangents.of_columns, of_columns)):
            if g is not None:
                dz = dz + g * _contrast_sides.residual(z, live, hits, of_side)
        # dz is stored: for two uses XLA would compute its exponentials twice.
        dx, of_pairs = rules.temperature_vjp(z, hidden(dz), logits.temperature)
        if dt is not None:
            dt = dt + jnp.sum(of_pairs, keepdims=True)
        wanted = _products.Rows(of_a)
        da, db = _products.back(static.head, wanted, db, rows.features, shared.weight, dx, None)
        return (db, dt), None if da is None else da.astype(rows.features.dtype)

    db = _products.zero_gradients(_products.Shared(of_b, False, False), (rows, logits), shared)
    dt = varying(jnp.zeros_like(logits.temperature), rows, columns) if of_temperature else None
    parts = rows, of_rows, cotangents.of_rows
    (db, dt), da = _plan.over_rows(_blocks(static, rows, columns), block, (db, dt), parts)
    return Rows(da), Columns(in_dtypes_of(columns.features, db.weight)), dt


def _push(static: Static, kept: Any, tangents: tuple[Any, Any, Any]) -> Losses:
    rows, columns, logits, of_rows, of_columns = kept
    (da, *_), (db, *_), dt = tangents

    def block(so_far: Array | None, part: Any, counted: Array | None) -> tuple[Array | None, Array]:
        rows, side, da = part
        z = logits.of(static, rows, columns)
        live, hits = _contrast_sides.masks(rows, columns, counted, z.shape[1])
        dx = jnp.zeros_like(z)
        if da is not None:
            dx = dx + _product(static, da, columns.features)
        if db is not None:
            dx = dx + _product(static, rows.features, db)
        dz = rules.temperature_jvp(z, dx, dt, logits.temperature)
        if so_far is not None:
            moves = _contrast_sides.residual(z, live, hits, of_columns) * dz
            so_far = so_far + jnp.sum(moves, COLUMNS, keepdims=True)
        moves = _contrast_sides.residual(z, live, hits, side) * dz
        return so_far, jnp.sum(moves, ROWS, keepdims=True)

    begun = None if of_columns is None else varying(jnp.zeros_like(of_columns.gap), kept, tangents)
    parts = rows, of_rows, da
    moves, moves_of_rows = _plan.over_rows(_blocks(static, rows, columns), block, begun, parts)
    if of_columns is None:
        return Losses(moves_of_rows, jnp.zeros_like(of_rows.positives))
    (moves,) = rules.across(static.names, moves)
    return Losses(
        moves_of_rows, jnp.zeros_like(of_rows.positives), moves, jnp.zeros_like(of_columns.positives)
    )


losses = with_rules(
    _save, _pull, _push, selective=True, sweeps=False, summed_over=lambda static: static.names
)
