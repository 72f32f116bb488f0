"""Checks the arguments of a contrastive loss: the features, which pairs are positive, and the weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.border import _given, _mesh_axes
from jsoftmax.border._arrays import in_dtype
from jsoftmax.border._call import Call
from jsoftmax.border._label_checks import are_classes, reported_ids
from jsoftmax.linear import _products
from jsoftmax.linear._contrast_sides import Columns, Rows
from jsoftmax.transforms._sharding import partition_spec, replicated, shard_count, sharded_like, spec


class Batch(NamedTuple):
    """The features of a call, in one dtype, those of this shard."""

    a: Array  # [N, D]
    b: Array  # [M, D]
    is_itself: bool  # whether b is a
    names: tuple[str, ...]  # the mesh axes of the shards

    @property
    def columns(self) -> int:
        """The number of rows of b on all shards."""
        return self.b.shape[0] * shard_count(self.names)

    def gathered(self, of_b: Array) -> Array:
        """An array with one entry per row of b, with those of all shards."""
        if self.names:
            return lax.all_gather(of_b, self.names, axis=0, tiled=True)
        return replicated(of_b)

    def own(self, of_b: Array) -> Array:
        """The entries for this shard's rows of b, of an array with those of all shards."""
        if not self.names:
            return of_b
        size = self.b.shape[0]
        return lax.dynamic_slice_in_dim(of_b, lax.axis_index(self.names) * size, size, 0)

    def places(self) -> Array:
        """The index of every row of a among those of all shards, [N, 1]."""
        places = lax.broadcasted_iota(jnp.int32, (self.a.shape[0], 1), 0)
        if self.names:
            places = places + lax.axis_index(self.names) * self.a.shape[0]
        return sharded_like(places, self.a)


class Relation(NamedTuple):
    """Which pairs are positive, as in `Rows` and `Columns`."""

    ids: Array | None = None  # [N, 1]
    column_ids: Array | None = None  # [M], of all shards
    hits: Array | None = None  # [N, M]
    known: Array | None = None  # [N, 1]: False where a label is no column
    is_paired: bool = True  # whether the i-th rows of a and of b belong together, and share a weight


class Given(NamedTuple):
    """The arguments of a call."""

    batch: Batch
    relation: Relation
    temperature: Array  # [1, 1]
    weights: Array | None  # [N, 1]
    block_size: int | None

    @property
    def is_empty(self) -> bool:
        """Whether there are no pairs."""
        return 0 in (self.batch.a.shape[0], self.batch.b.shape[0])

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the loss."""
        return rules.computing_dtype(self.batch.a.dtype)

    @property
    def head(self) -> _products.Static:
        """The facts about the products."""
        return _products.Static(0, self.block_size, (), frozenset())

    def counted(self) -> Counted:
        """The rows without those of weight 0, whose features are 0."""
        a, b, weights = self.batch.a, self.batch.b, self.weights
        counted = columns_counted = None
        if weights is not None:
            weights = sharded_like(weights, a)
            counted = weights != 0
            a, weights = (jnp.where(counted, values, 0) for values in (a, weights))
            if self.relation.is_paired:  # else the rows of b have no weights
                b = jnp.where(counted, b, 0)
                columns_counted = self.batch.gathered(counted[:, 0])
        return Counted(a, self.batch.gathered(b), weights, counted, columns_counted)


class Counted(NamedTuple):
    """The features and the weights, and which rows count, None if all do."""

    a: Array  # [N, D]
    b: Array  # [M, D], of all shards
    weights: Array | None  # [N, 1]
    of_a: Array | None  # [N, 1]
    of_b: Array | None  # [M], of all shards

    def pairs(self, given: Given) -> tuple[Rows, Columns]:
        """Which pairs count, and which of these are positives."""
        batch, relation = given.batch, given.relation
        itself = batch.places() if batch.is_itself else None
        of_columns = (None if c is None else c[None, :] for c in (relation.column_ids, self.of_b))
        rows = Rows(self.a, relation.ids, relation.hits, itself, self.of_a)
        return rows, Columns(self.b, *of_columns)

    def bad_labels(self, relation: Relation) -> Array | None:
        """The rows that count, and whose label is no column, [N, 1]; None if there are no labels."""
        if relation.known is None:
            return None
        return ~relation.known if self.of_a is None else ~relation.known & self.of_a


def of_call(call: Call) -> Given:
    """The arguments of a public call, after all checks."""
    batch = _batch(call)
    given: Any = call.arguments["temperature"]
    row = jax.ShapeDtypeStruct((1, 1), rules.computing_dtype(batch.a.dtype))
    if given is not None and jnp.ndim(given):
        raise call.error(ValueError, f"temperature of shape {jnp.shape(given)}", "give one number")
    temperature = call.per_row("temperature", row, (1,), row.dtype)
    if temperature is None:
        raise call.error(TypeError, "there is no temperature", "write a number, such as temperature=0.07")
    size = None if call.arguments["block_size"] is None else call.size("block_size", 1)
    pairs = jax.ShapeDtypeStruct((batch.a.shape[0], batch.b.shape[0]), row.dtype)
    relation, weights = _relation(call, batch), call.row_weights(pairs, (1,), row.dtype)
    return Given(batch, relation, temperature, weights, size)


def _batch(call: Call) -> Batch:
    """The features of a call."""
    a = call.floats("a")
    is_itself = call.arguments["b"] is None
    b = a if is_itself else call.floats("b")
    for name, features in (("a", a), ("b", b)):
        if features.ndim != 2:
            problem = f"{name} has the shape {features.shape}"
            raise call.error(ValueError, problem, "give it two axes, [rows, features]; jax.vmap maps others")
    if a.shape[1] != b.shape[1]:
        problem = f"a has {a.shape[1]} features, and b {b.shape[1]}"
        raise call.error(ValueError, problem, "give both the same number of features")
    if b.shape[0] == 0 and a.shape[0] != 0:
        raise call.error(ValueError, "b has no rows", "give at least one")
    names = _mesh_axes.of_batch(call, ("a",) if is_itself else ("a", "b"))
    dtype = a.dtype
    if a.dtype != b.dtype:
        dtype = max((rules.computing_dtype(x.dtype) for x in (a, b)), key=lambda dtype: dtype.itemsize)
    return Batch(in_dtype(a, dtype), in_dtype(b, dtype), is_itself, names)


def _relation(call: Call, batch: Batch) -> Relation:
    """The positives of a call."""
    n, m = batch.a.shape[0], batch.b.shape[0]
    if call.arguments["positives"] is not None:
        if call.arguments["labels"] is not None:
            raise call.error(TypeError, "there are labels and positives", "give one of them")
        return _several(call, batch)
    if call.arguments["labels"] is not None:
        ids = sharded_like(call.class_ids((n, batch.columns), (1,)), batch.a)
        known = are_classes(ids, batch.columns, ())
        ids = reported_ids(ids, batch.columns, ())
        known = known & (ids != batch.places()) if batch.is_itself else known
        return Relation(ids, known=known, is_paired=batch.is_itself)
    if batch.is_itself:
        problem = "b is None, and no row is its own positive"
        raise call.error(
            TypeError, problem, "give labels, the index of the positive of each row, or positives"
        )
    if n != m:
        problem = f"a has {n} rows, and b {m}"
        raise call.error(
            ValueError, problem, "give both the same number, or labels: an index into b for each"
        )
    return Relation(batch.places())


def _several(call: Call, batch: Batch) -> Relation:
    """Any number of positives per row, by ids or by a mask."""
    given: Any = call.arguments["positives"]
    n, m = batch.a.shape[0], batch.b.shape[0]
    is_pair = isinstance(given, tuple) and len(given) == 2
    names = ("positives[0]", "positives[1]") if is_pair else ("positives", "positives")
    parts = Call(call.function, **call.arguments | dict(zip(names, given, strict=True) if is_pair else ()))
    of_a, of_b = map(parts.array, names)
    if of_a.dtype == bool and not is_pair:
        if of_a.shape != (n, batch.columns):
            problem = f"positives of shape {of_a.shape} for {n} rows of a and {batch.columns} of b"
            raise call.error(ValueError, problem, f"give a mask of shape {(n, batch.columns)}, or ids")
        layout = partition_spec(batch.a, spec(batch.a)[0], None)
        hits = of_a if layout is None else jax.sharding.reshard(of_a, layout)
        return Relation(hits=hits, is_paired=n == m)
    for name, ids, rows in zip(names, (of_a, of_b), (n, m), strict=True):
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            problem = f"{name} has dtype {ids.dtype}"
            raise call.error(TypeError, problem, "give ids as integers, equal for positives, or a mask")
        if ids.shape != (rows,):
            problem = f"{name} has the shape {ids.shape}, for {rows} rows"
            raise call.error(ValueError, problem, f"give two arrays of ids, of shapes {(n,)} and {(m,)}")
        if _given.too_wide(parts.arguments[name]) is not None:
            problem = f"{name} has ids that need more than 32 bits"
            raise call.error(ValueError, problem, "number them by np.unique(ids, return_inverse=True)[1]")
    dtype = jnp.promote_types(of_a.dtype, of_b.dtype)
    ids = sharded_like(of_a.astype(dtype)[:, None], batch.a)
    return Relation(ids, batch.gathered(of_b.astype(dtype)), is_paired=n == m)
