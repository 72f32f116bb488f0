"""Per-row functions of the logits of one or two linear heads, evaluated in blocks of rows.

A `Function` maps a block of logits, and the other arguments of its rows, to numbers of every row. `numbers`
returns these; its backward pass computes the logits again. The forward pass of `total` has the gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.linear import _plan, _products
from jsoftmax.linear._plan import BlockPlan
from jsoftmax.transforms import _modes
from jsoftmax.transforms._autodiff import with_gradients, with_rules
from jsoftmax.transforms._row_wise import row_wise
from jsoftmax.transforms._rule_trees import along, fill_none, in_dtypes_of
from jsoftmax.transforms._sharding import varying

Logits = tuple[Array, ...]
# function(static, logits, rows) -> (floats, integers): arrays [B, n] of a block; the loss is the first float.
Function = Callable[["Static", Logits, "Rows"], tuple[tuple[Array, ...], tuple[Array, ...]]]


class Rows(NamedTuple):
    """The arguments with one entry per row; also their tangents and cotangents."""

    hidden: tuple[Any, ...]  # [B, D] for each head
    columns: Any  # the other arguments of the function: a tree of arrays [B, n]
    where: Any = None  # [B, V]; within a function [1, V] if all rows share one mask
    counted: Array | None = None  # [B, 1]: False in rows that do not count
    of_classes: Any = None  # within a function, those of `Shared`

    def of_block(self, counted: Array | None, shared: Shared) -> Rows:
        """The rows of a block; those that do not count are fully masked, and their features are 0."""
        both = _all(self.counted, counted)
        hidden = tuple(h if both is None else jnp.where(both, h, 0) for h in self.hidden)
        return Rows(hidden, self.columns, _all(self.where, shared.where, both), both, shared.of_classes)


def _all(*masks: Array | None) -> Array | None:
    given = [mask for mask in masks if mask is not None]
    return functools.reduce(jnp.logical_and, given) if given else None


class Shared(NamedTuple):
    """The arguments that all rows share; also their tangents and cotangents."""

    heads: tuple[_products.Shared, ...]
    where: Array | None = None  # [1, V]
    of_classes: Any = None  # arguments of the function without derivatives: a tree of arrays [1, V]


class Static(NamedTuple):
    """The static arguments: hashable, and constant in a traced program."""

    function: Function
    options: Hashable  # for the function
    head: _products.Static
    names: tuple[str, ...]  # the mesh axes of the shards of the classes
    asked: Any = None  # the gradients to compute: booleans in a tree like (rows, shared)

    def plan(self, rows: Rows, shared: Shared, *, gradient: bool) -> BlockPlan:
        """The blocks: some rows, all classes. Two heads have fewer rows if their blocks are large."""
        plans = [
            self.head.plan(_products.Rows(h, h), of_head, gradient)
            for h, of_head in zip(rows.hidden, shared.heads, strict=True)
        ]
        plan = min(plans, key=lambda plan: plan.block_rows)
        if len(plans) == 1 or self.head.block_size is not None or plan.row_blocks == 1:
            return plan
        return _plan.of_two_heads(plan)


def _logits(static: Static, rows: Rows, shared: Shared) -> Logits:
    each = zip(rows.hidden, shared.heads, strict=True)
    return tuple(_products.logits(static.head, _products.Rows(h), of_head) for h, of_head in each)


@row_wise
def _numbers_by_blocks(static: Static, rows: Rows, shared: Shared) -> tuple[Any, None]:
    def block(carry: None, rows: Rows, counted: Array | None) -> tuple[None, Any]:
        rows = rows.of_block(counted, shared)
        return None, static.function(static, _logits(static, rows, shared), rows)

    return _plan.over_rows(static.plan(rows, shared, gradient=False), block, None, rows)[1], None


def _numbers_and_gradients(
    static: Static, rows: Rows, shared: Shared, sums: Shared, cotangents: tuple[Array | None, ...] | None
) -> tuple[Shared, tuple[tuple[Array, ...], Rows]]:
    """The sums plus a block's gradients of shared arguments; its numbers, and its gradients of the rows.

    The `cotangents` of the numbers are, if None, 1 for the first number and 0 for the others.
    """
    of_rows, of_shared = static.asked
    logits = _logits(static, rows, shared)
    asked = tuple(
        is_asked or any(jax.tree.leaves(of_head))
        for is_asked, of_head in zip(of_rows.hidden, of_shared.heads, strict=True)
    )
    # For one gradient per shard of the rows; over the shards of the classes, JAX adds the gradients.
    given = jax.tree.map(lambda a: varying(a, logits, rows, except_for=static.names), (logits, rows.columns))
    chosen = jax.tree.map(lambda a, is_asked: a if is_asked else None, given, (asked, of_rows.columns))

    def numbers(chosen: Any) -> Any:
        logits, columns = fill_none(chosen, given)
        return static.function(static, logits, rows._replace(columns=columns))

    found, pull, _ = jax.vjp(numbers, chosen, has_aux=True)
    if cotangents is None:
        cotangents = jnp.ones_like(found[0]), *(None,) * (len(found) - 1)
    cotangents = tuple(jnp.zeros_like(a) if g is None else g for a, g in zip(found, cotangents, strict=True))
    ((dlogits, dcolumns),) = pull(cotangents)
    dhidden, of_heads = [], []
    for i, dx in enumerate(dlogits):
        of_hidden, of_head = None, sums.heads[i]
        if dx is not None:
            arrays = of_head, rows.hidden[i], shared.heads[i].weight, dx, None
            of_hidden, of_head = _products.back(static.head, _products.Rows(of_rows.hidden[i]), *arrays)
            if of_hidden is not None:
                of_hidden = of_hidden if rows.counted is None else jnp.where(rows.counted, of_hidden, 0)
        dhidden.append(of_hidden)
        of_heads.append(of_head)
    return Shared(tuple(of_heads)), (found, Rows(tuple(dhidden), dcolumns))


def _zero_gradients(static: Static, rows: Rows, shared: Shared) -> Shared:
    pairs = zip(static.asked[1].heads, shared.heads, strict=True)
    return Shared(tuple(_products.zero_gradients(asked, rows, of_head) for asked, of_head in pairs))


def _save(static: Static, rows: Rows, shared: Shared) -> tuple[Any, tuple[Rows, Shared]]:
    return _numbers_by_blocks(static, rows, shared)[0], (rows, shared)


def _pull(static: Static, asked: Any, kept: tuple[Rows, Shared], cotangents: Any) -> tuple[Rows, Shared]:
    rows, shared = kept
    return _pull_rows(static._replace(asked=asked), (rows, cotangents[0]), shared)


@row_wise
def _pull_rows(static: Static, parts: Any, shared: Shared) -> tuple[Rows, Shared]:
    def block(sums: Shared, part: Any, counted: Array | None) -> tuple[Shared, Rows]:
        rows, cotangents = part
        rows = rows.of_block(counted, shared)
        sums, (_, of_rows) = _numbers_and_gradients(static, rows, shared, sums, cotangents)
        return sums, of_rows._replace(hidden=in_dtypes_of(rows.hidden, of_rows.hidden))

    plan = static.plan(parts[0], shared, gradient=True)
    sums, of_rows = _plan.over_rows(plan, block, _zero_gradients(static, parts[0], shared), parts)
    return of_rows, Shared(in_dtypes_of(shared.heads, sums.heads))


def _push(static: Static, kept: tuple[Rows, Shared], tangents: tuple[Rows, Shared]) -> Any:
    rows, shared = kept
    return _push_rows(static, (rows, tangents[0]), (shared, tangents[1]))[0]


@row_wise
def _push_rows(static: Static, parts: Any, both: tuple[Shared, Shared]) -> tuple[Any, None]:
    shared, dshared = both

    def tangent(rows: Rows, i: int, dhidden: Array | None) -> Array | None:
        """The tangent of the logits of head i: one term for each argument with a tangent."""
        (weight, *_), (dweight, dbias, *_) = shared.heads[i], dshared.heads[i]
        terms = []
        if dhidden is not None:
            moved = _products.Rows(dhidden if rows.counted is None else jnp.where(rows.counted, dhidden, 0))
            terms.append(_products.logits(static.head, moved, _products.Shared(weight)))
        if dweight is not None:
            arrays = _products.Rows(rows.hidden[i]), _products.Shared(dweight)
            terms.append(_products.logits(static.head, *arrays))
        if dbias is not None:
            wide = dbias.astype(rules.computing_dtype(dbias.dtype))
            terms.append(jnp.broadcast_to(wide, (len(rows.hidden[i]), wide.shape[1])))
        return None if not terms else sum(terms[1:], terms[0])

    def block(carry: None, part: Any, counted: Array | None) -> tuple[None, Any]:
        rows, drows = part
        rows = rows.of_block(counted, shared)
        given = _logits(static, rows, shared), rows.columns
        moves = tuple(tangent(rows, i, dhidden) for i, dhidden in enumerate(drows.hidden)), drows.columns
        moving = along(lambda _, a: a, moves, given)

        def numbers(moving: Any) -> Any:
            logits, columns = fill_none(moving, given)
            return static.function(static, logits, rows._replace(columns=columns))

        with _modes.in_mode(forward=True):
            return None, jax.jvp(numbers, (moving,), (moves,))[1]

    plan = static.plan(parts[0], shared, gradient=False)
    return _plan.over_rows(plan, block, None, parts)[1], None


_numbers = with_rules(_save, _pull, _push, selective=True, sweeps=False)


@row_wise
def _numbers_of_rows(static: Static, rows: Rows, shared: Shared) -> tuple[Any, None]:
    return _numbers(static, rows, shared), None


def numbers(static: Static, rows: Rows, shared: Shared) -> Any:
    """The function's numbers of every row."""
    return _numbers_of_rows(static, rows, shared)[0]


@row_wise
def _losses_and_gradients(static: Static, rows: Rows, shared: Shared) -> tuple[tuple[Array, Rows], Shared]:
    def block(sums: Shared, rows: Rows, counted: Array | None) -> tuple[Shared, Any]:
        rows = rows.of_block(counted, shared)
        sums, ((losses, *_), of_rows) = _numbers_and_gradients(static, rows, shared, sums, None)
        return sums, (losses, of_rows)

    plan = static.plan(rows, shared, gradient=True)
    of_shared, found = _plan.over_rows(plan, block, _zero_gradients(static, rows, shared), rows)
    return found, of_shared


def _total_and_gradients(static: Static, asked: Any, rows: Rows, shared: Shared) -> tuple[Any, Any]:
    if not any(jax.tree.leaves(asked)):
        return _total_by_rows(static, rows, shared), None
    (losses, of_rows), of_shared = _losses_and_gradients(static._replace(asked=asked), rows, shared)
    return (jnp.sum(losses), None), (of_rows, of_shared)


def _total_by_rows(static: Static, rows: Rows, shared: Shared) -> tuple[Array, None]:
    return jnp.sum(numbers(static, rows, shared)[0][0]), None


_total = with_gradients(_total_and_gradients, _total_by_rows, lambda asked: True)


@partial(row_wise, outputs=(None, 0), mapped=lambda *arguments: _total_by_rows(*arguments)[::-1])
def _total_of_rows(static: Static, rows: Rows, shared: Shared) -> tuple[None, Array]:
    return None, _total(static, rows, shared)[0]


def total(static: Static, rows: Rows, shared: Shared) -> Array:
    """The sum of the function's first number over all rows."""
    return _total_of_rows(static, rows, shared)[1]
