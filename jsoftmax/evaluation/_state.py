"""What an evaluation has seen so far: sums over the rows, which add up over batches, shards and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jsoftmax import _reductions
from jsoftmax._arguments import Call
from jsoftmax.evaluation import _sums
from jsoftmax.evaluation._labels import Labels
from jsoftmax.evaluation._sums import Sum


class Groups(NamedTuple):
    """Of every group of rows: their weight, and that of those predicted right."""

    weight: Sum
    correct: Sum


class Calibration(NamedTuple):
    """The Brier scores, and the rows in bins of confidence, with the confidences of every bin."""

    brier: Sum
    bins: Groups
    confidence: Sum


class State(NamedTuple):
    """Sums over rows, each with its weight; a plain tree of small arrays.

    Of `ranks`, entry k is for the rows in which k classes come before the label; in entry 0 the label is the
    prediction. What `empty` did not ask for is None.
    """

    weight: Sum
    nll: Sum
    ranks: Sum
    calibration: Calibration | None
    classes: Groups | None


class Rows(NamedTuple):
    """What the sums want to know of every row."""

    nll: Array
    rank: Array
    brier: Any  # this and the next None where the state measures no calibration
    confidence: Any


def empty(
    num_classes: int | None = None,
    *,
    top_k: int = 5,
    bins: int | None = 15,
    dtype: DTypeLike = jnp.float32,
) -> State:
    """The state of no rows: the neutral element of `merge`. It says what is to be measured.

    Args:
      num_classes: V, for the accuracy on the rows of every class.
      top_k: how many first choices the label is looked for in.
      bins: how many intervals of equal width the confidences are sorted into; None leaves out the
        calibration, its error and the Brier score.
      dtype: of the two words of every sum. In float32 they hold 48 bits.

    Returns:
      `State`.

    Raises:
      TypeError, ValueError: where a number is no whole one, or below 1, or the dtype no float.

    >>> from jsoftmax import evaluation
    >>> metrics = evaluation.compute(evaluation.empty())
    >>> print(metrics.nll, metrics.perplexity, metrics.accuracy, metrics.weight)
    0.0 1.0 0.0 0.0
    """
    call = Call("evaluation.empty", num_classes=num_classes, top_k=top_k, bins=bins, dtype=dtype)
    for name in ("num_classes", "top_k", "bins"):
        if name == "top_k" or call.arguments[name] is not None:
            call.size(name, least=1)
    wide = call.float_dtype("dtype")

    def zero(*shape: int) -> Sum:
        return _sums.zero(shape, wide)

    return State(
        zero(),
        zero(),
        zero(top_k),
        None if bins is None else Calibration(zero(), Groups(zero(bins), zero(bins)), zero(bins)),
        None if num_classes is None else Groups(zero(num_classes), zero(num_classes)),
    )


def absorb(state: State, rows: Rows, labels: Labels) -> State:
    """The state with rows added. Rows without weights are counted in whole numbers."""
    axes, dtype = range(rows.nll.ndim), state.nll.high.dtype
    ids, weights, counted = labels

    def along(per_row: Array, like: Array) -> Array:
        return per_row if like.ndim == per_row.ndim else jnp.expand_dims(per_row, -1)

    def tally(flags: Array) -> Sum:
        if weights is not None:
            return _sums.total(jnp.where(flags, along(weights, flags), 0), axes, dtype)
        return _sums.count(flags if counted is None else flags & along(counted, flags), axes, dtype)

    def total(values: Array, members: Array | None = None) -> Sum:
        if counted is not None:
            values = jnp.where(counted, values, 0)
        if weights is not None:
            wide = jnp.promote_types(values.dtype, weights.dtype)
            values = values.astype(wide) * weights.astype(wide)
        if members is not None:
            values = jnp.where(members, along(values, members), 0)
        return _sums.total(values, axes, dtype)

    def members(index: Array, of: Sum) -> Array:
        return _reductions.hits(jnp.expand_dims(index, -1), index.ndim, of.high.shape[-1])

    def groups(member: Array) -> Groups:
        return Groups(tally(member), tally(member & along(rows.rank == 0, member)))

    calibration = classes = None
    if state.calibration is not None:
        bins = state.calibration.confidence.high.shape[-1]
        index = jnp.clip(jnp.ceil(rows.confidence * bins) - 1, 0, bins - 1).astype(jnp.int32)
        in_bin = members(index, state.calibration.confidence)
        calibration = Calibration(total(rows.brier), groups(in_bin), total(rows.confidence, in_bin))
    if state.classes is not None:
        classes = groups(members(ids, state.classes.weight))
    everywhere = jnp.ones(rows.nll.shape, bool)
    ranks = tally(members(rows.rank, state.ranks))
    return added(state, State(tally(everywhere), total(rows.nll), ranks, calibration, classes))


@jax.jit
def added(a: State, b: State) -> State:
    """Every sum of one state added to that of the other."""
    return jax.tree.map(_sums.add, a, b, is_leaf=_is_sum)


def merge(a: State, b: State) -> State:
    """The state of the rows of both: of two batches, devices, processes or files, in any order.

    Commutative to the last bit, and `empty` changes nothing; associative to about 1e-14 for every merge.

    Raises:
      ValueError: where the states do not measure the same.

    >>> import jax.numpy as jnp
    >>> from jsoftmax import evaluation
    >>> nothing = evaluation.empty()
    >>> one, two = (evaluation.update(nothing, jnp.eye(3), jnp.array(y)) for y in ([0, 1, 2], [0, 0, 0]))
    >>> print(f"{evaluation.compute(evaluation.merge(one, two)).accuracy:.4f}")
    0.6667

    Processes exchange their states, stacked, and each merges them all; a state is saved as its leaves:

    >>> import functools, io, jax, numpy as np
    >>> stacked = jax.tree.map(lambda *leaves: np.stack(leaves), one, two)  # as process_allgather(state) does
    >>> states = [jax.tree.map(lambda leaf: leaf[i], stacked) for i in range(2)]
    >>> state, file = functools.reduce(evaluation.merge, states), io.BytesIO()
    >>> np.savez(file, *jax.tree.leaves(state)), file.seek(0)
    (None, 0)
    >>> restored = jax.tree.unflatten(jax.tree.structure(nothing), np.load(file).values())
    >>> print(f"{evaluation.compute(restored).accuracy:.4f}")
    0.6667
    """
    if _measures(a) != _measures(b):
        call = Call("evaluation.merge", a=_measures(a), b=_measures(b))
        problem = "the states differ in what they measure (num_classes, top_k, bins, dtype)"
        raise call.error(ValueError, problem, "begin both with the same evaluation.empty(...)")
    return added(a, b)


class _Measures(NamedTuple):
    """What `empty` was asked for."""

    num_classes: int | None
    top_k: int
    bins: int | None
    dtype: str

    def __repr__(self) -> str:
        return f"State({', '.join(map(str, self))})"


def _measures(state: State) -> _Measures:
    return _Measures(
        None if state.classes is None else state.classes.weight.high.shape[-1],
        state.ranks.high.shape[-1],
        None if state.calibration is None else state.calibration.confidence.high.shape[-1],
        str(state.nll.high.dtype),
    )


def merge_across(state: State, axis_name: str | Sequence[str]) -> State:
    """The state of the rows of all shards along a named axis, the same on every shard.

    One sum of zeros but for the shard's own state, laid side by side: a sum of the states themselves would
    round away what their low words keep.

    >>> import jax, jax.numpy as jnp
    >>> from jsoftmax import evaluation
    >>> def shard(logits, labels):
    ...     state = evaluation.update(evaluation.empty(), logits, labels)
    ...     return evaluation.compute(evaluation.merge_across(state, "shards")).accuracy
    >>> logits, labels = jnp.stack([jnp.eye(3)] * 2), jnp.array([[0, 1, 2], [0, 0, 0]])
    >>> print(jax.vmap(shard, axis_name="shards")(logits, labels))
    [0.6666667 0.6666667]
    """
    shard, shards = lax.axis_index(axis_name), lax.axis_size(axis_name)

    def side_by_side(leaf: Array) -> Array:
        place = lax.broadcasted_iota(jnp.int32, (shards, *(1,) * leaf.ndim), 0)
        return jnp.where(place == shard, leaf[None], 0)

    stacked = lax.psum(jax.tree.map(side_by_side, state), axis_name)
    return jax.tree.map(lambda part: _sums.fold(part, (0,)), stacked, is_leaf=_is_sum)


def _is_sum(node: Any) -> bool:
    return isinstance(node, Sum)
