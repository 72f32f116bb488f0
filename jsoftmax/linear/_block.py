"""Forward and backward pass of a linear head over one block of rows, in blocks or tiles of classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.linear import _merging, _plan, _products
from jsoftmax.linear._merging import Part
from jsoftmax.linear._plan import BlockPlan
from jsoftmax.linear._products import TILE, Rows, Shared, Static
from jsoftmax.logits import _scaling
from jsoftmax.rows import _peaks, _statistics, _statistics_rules
from jsoftmax.rows._statistics import Numbers, Saved
from jsoftmax.transforms._platforms import by_platform
from jsoftmax.transforms._sharding import on_one_device, partition_spec, spec, varying

# The nll of targets without the class weights, which statistics beside a weighted loss report. Beside targets
# a block has all classes, so these numbers are never merged. They have no derivative.
UNWEIGHTED = "nll without class weights"


def tiled(static: Static, plan: BlockPlan, function: Callable[..., Any], rows: Rows, *arguments: Any) -> Any:
    """``function(size, rows, *arguments)``: `size` classes at a time, a tile on CPU, else as planned."""
    shared = arguments[0]
    planned = partial(function, plan.block_classes)
    if (
        static.names
        or not rows.has_class_ids
        or not on_one_device(shared.weight, 0, 1)
        or plan.block_classes <= TILE
    ):
        return planned(rows, *arguments)
    tiles = partial(function, TILE), f"in tiles of {TILE} classes, which the cache holds"
    return by_platform("a block of logits", rows, *arguments, plain=planned, cpu=tiles)


def forward(
    static: Static, size: int, rows: Rows, shared: Shared, *, keep: bool = False
) -> tuple[Numbers, Saved, Array | None]:
    """The numbers of a block of rows, `size` classes at a time, the residuals, and the logits if `keep`."""
    classes = shared.weight.shape[static.vocab_axis]

    def add(carry: Any, start: Array | int, length: int) -> Any:
        so_far, x = carry
        tile = static.part(shared, start, length)
        of_tile = _products.logits(static, rows, tile)
        part = _part(static, of_tile, rows, tile, start, whole=size == classes)
        if so_far is not None:
            part = _merging.merge(so_far, part, rows.scaling)
        if keep:
            x = of_tile if x is None else _plan.with_part(x, of_tile, start, 1)
        return part, x

    begun = _none_made(rows, shared, classes) if keep and size < classes else None
    (state, found, sum_weights, mean_u, _), x = _plan.over_classes(classes, size, add, (None, begun))
    if size < classes:
        is_bad = (rows.labels < 0) | (rows.labels >= classes)
        is_masked = rows.where is not None or shared.where is not None
        found["nll"] = _statistics.nan_if_bad(found["nll"], is_bad, state.rest < 0, is_masked=is_masked)
        if rows.counted is not None:
            found = {name: jnp.where(rows.counted, number, 0) for name, number in found.items()}
    weights = rows.terms.weights
    saved = Saved(None, state, found, sum_weights, mean_u)
    saved = saved.without(None if weights is None else weights == 0)
    return saved.numbers, saved, x


def _none_made(rows: Rows, shared: Shared, classes: int) -> Array:
    """Zeros in the shape of a block of logits."""
    shape, dtype = (len(rows.hidden), classes), rules.computing_dtype(rows.hidden.dtype)
    begun = jnp.zeros(shape, dtype, out_sharding=partition_spec(rows.hidden, spec(rows.hidden)[0], None))
    return varying(begun, rows.hidden, shared.weight)


def logits(static: Static, size: int, rows: Rows, shared: Shared) -> Array:
    """The logits of a block of rows, computed `size` classes at a time."""
    classes = shared.weight.shape[static.vocab_axis]
    if size == classes:
        return _products.logits(static, rows, shared)

    def add(x: Array, start: Array | int, length: int) -> Array:
        of_tile = _products.logits(static, rows, static.part(shared, start, length))
        return jnp.asarray(_plan.with_part(x, of_tile, start, 1))

    return jnp.asarray(_plan.over_classes(classes, size, add, _none_made(rows, shared, classes)))


def _part(static: Static, x: Array, rows: Rows, shared: Shared, start: Array | int, *, whole: bool) -> Part:
    """The numbers over the classes of one tile; the nll is 0 if the label is in another tile."""
    row_args = _products.row_arguments(x, rows, shared, start, whole=whole)
    has_label = jnp.asarray(True)
    if not whole:
        has_label = row_args.labels >= 0
        row_args = row_args._replace(labels=jnp.where(has_label, row_args.labels, 0))
    found, saved = _statistics.save((1, static.names, static.wanted), row_args)
    if not whole:
        found["nll"] = jnp.where(has_label, found["nll"], 0)
    if UNWEIGHTED in static.wanted:
        bare = jax.lax.stop_gradient(row_args._replace(weights=None))
        found[UNWEIGHTED] = _statistics.save((1, static.names, frozenset({"nll"})), bare)[0]["nll"]
    if "prediction" in static.wanted:
        found["prediction"] = start + _peaks.prediction(
            _scaling.ordered_live(x, row_args.scaling), (1, *static.names)
        )
    return Part(saved.state, found, saved.sum_weights, saved.mean_u, has_label)


def backward(
    static: Static,
    size: int,
    rows: Rows,
    shared: Shared,
    sums: Shared,
    saved: Saved,
    cotangents: dict[str, Array | None],
    x: Array | None = None,
    times: Array | None = None,
) -> tuple[Shared, Rows]:
    """The gradients of a block, `size` classes at a time: `sums` with its own added, and those of its rows.

    It computes the logits again unless they are given as `x`. `times` is the factor of each class, [1, V]; it
    requires that `size` is the number of all classes.
    """
    classes = shared.weight.shape[static.vocab_axis]
    rows = rows.of_block(saved.has_numbers)

    def add(carry: tuple[Shared, Any], start: Array | int, length: int) -> tuple[Shared, Any]:
        sums, so_far = carry
        tile = static.part(shared, start, length)
        of_tile = _products.logits(static, rows, tile) if x is None else _plan.part(x, start, length, 1)
        row_args = _products.row_arguments(of_tile, rows, tile, start, whole=size == classes)
        here = saved.with_logits(row_args, whole=size == classes)
        sums_of_tile = static.part(sums, start, length)
        sums_of_tile, of_rows = of_part(
            static, rows, tile, sums_of_tile, here, cotangents, so_far is None, times
        )
        if so_far is not None:
            of_rows = jax.tree.map(jnp.add, so_far, of_rows)
        return static.with_part(sums, sums_of_tile, start), of_rows

    sums, of_rows = _plan.over_classes(classes, size, add, (sums, None))
    return sums, of_rows._replace(hidden=rows.masked(of_rows.hidden))


def of_part(
    static: Static,
    rows: Rows,
    tile: Shared,
    sums: Shared,
    saved: Saved,
    cotangents: dict[str, Array | None],
    of_maximum: bool | Array,
    times: Array | None,
) -> tuple[Shared, Rows]:
    """The gradients from some of the classes: their `sums` with the new ones added, and those of the rows."""
    own = (1, static.names, static.wanted)
    back = _statistics_rules.pull(own, saved, cotangents, of_maximum, times)[0]
    dhidden, sums = _products.back(
        static, static.asked[0], sums, rows.hidden, tile.weight, back.x, back.weights
    )
    labels = back.labels if static.asked[0].labels else None
    return sums, Rows(dhidden, labels, None, *back.scaling[1:3])
