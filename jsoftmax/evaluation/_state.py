"""The state of an evaluation: sums over rows, which add up over batches, shards and processes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jsoftmax import rules
from jsoftmax.border._call import Call
from jsoftmax.evaluation import _sums
from jsoftmax.evaluation._labels import Labels
from jsoftmax.evaluation._sums import Sum
from jsoftmax.rows import _reductions


class Groups(NamedTuple):
    """For each group of rows: the weight of all its rows, and of the rows that are predicted right."""

    weight: Sum
    correct: Sum


class Calibration(NamedTuple):
    """The sum of the Brier scores; for each confidence bin its rows and the sum of their confidences."""

    brier: Sum
    bins: Groups
    confidence: Sum


class State(NamedTuple):
    """Weighted sums over rows; a plain tree of small arrays.

    Entry k of `ranks` sums the rows in which k classes come before the label; in entry 0 the label is the
    prediction. A field is None if the state does not measure it.
    """

    weight: Sum
    nll: Sum
    ranks: Sum
    calibration: Calibration | None
    classes: Groups | None


class Rows(NamedTuple):
    """The numbers of each row that enter the sums."""

    nll: Array
    rank: Array
    brier: Any  # None, like `confidence`, if the state does not measure calibration
    confidence: Any


def empty(
    num_classes: int | None = None,
    *,
    top_k: int = 5,
    bins: int | None = 15,
    dtype: DTypeLike = jnp.float32,
) -> State:
    """The state of no rows, the neutral element of `merge`. Its arguments say what to measure.

    Args:
      num_classes: V, to measure the accuracy for each class; None to leave it out.
      top_k: the largest k of the top-k accuracy.
      bins: the number of confidence bins, of equal width; None leaves out the calibration, its error and
        the Brier score.
      dtype: the dtype of the sums; they are in at least float32. A sum is two numbers, 48 bits in float32.

    Returns:
      `State`.

    Raises:
      TypeError, ValueError: if a number is not an integer or is below 1, or the dtype is not a float type.

    >>> from jsoftmax import evaluation
    >>> metrics = evaluation.compute(evaluation.empty())
    >>> print(metrics.nll, metrics.perplexity, metrics.accuracy, metrics.weight)
    0.0 1.0 0.0 0.0
    """
    call = Call("evaluation.empty", num_classes=num_classes, top_k=top_k, bins=bins, dtype=dtype)
    for name in ("num_classes", "top_k", "bins"):
        if name == "top_k" or call.arguments[name] is not None:
            call.size(name, least=1)
    wide = rules.computing_dtype(call.float_dtype("dtype"))

    def zero(*shape: int) -> Sum:
        return _sums.zero(shape, wide)

    return State(
        zero(),
        zero(),
        zero(top_k),
        None if bins is None else Calibration(zero(), Groups(zero(bins), zero(bins)), zero(bins)),
        None if num_classes is None else Groups(zero(num_classes), zero(num_classes)),
    )


def check_states(function: str, **states: Any) -> None:
    """Raise if an argument of a public function is not a state, or holds its sums in 16 bits."""
    check_type(
        function, State, "begin with evaluation.empty(), and pass the result of update or merge", **states
    )
    for name, state in states.items():
        if jnp.finfo(state.nll.high.dtype).bits < 32:
            problem = f"the sums of {name} are {state.nll.high.dtype}"
            call = Call(f"evaluation.{function}", **states)
            raise call.error(TypeError, problem, "leave a state in the dtype that evaluation.empty gave it")


def check_type(function: str, kind: type, remedy: str, **arguments: Any) -> None:
    """Raise if an argument of a public function is not of type `kind`."""
    for name, value in arguments.items():
        if not isinstance(value, kind):
            problem = f"{name} is of type {_name_of(value)}, not {kind.__name__}"
            raise Call(f"evaluation.{function}", **arguments).error(TypeError, problem, remedy)


def _name_of(value: Any) -> str:
    return "array" if isinstance(value, Array) else type(value).__name__


def absorb(state: State, rows: Rows, labels: Labels) -> State:
    """The state after rows are added. Without weights, rows are counted in integers."""
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
        return _reductions.is_label(jnp.expand_dims(index, -1), index.ndim, of.high.shape[-1])

    def groups(member: Array) -> Groups:
        return Groups(tally(member), tally(member & along(rows.rank == 0, member)))

    calibration = classes = None
    if state.calibration is not None:
        in_bin = _in_bins(rows.confidence, state.calibration.confidence.high.shape[-1])
        calibration = Calibration(total(rows.brier), groups(in_bin), total(rows.confidence, in_bin))
    if state.classes is not None:
        classes = groups(members(ids, state.classes.weight))
    everywhere = jnp.ones(rows.nll.shape, bool)
    ranks = tally(members(rows.rank, state.ranks))
    return added(state, State(tally(everywhere), total(rows.nll), ranks, calibration, classes))


def _in_bins(confidence: Array, bins: int) -> Array:
    """For each row and bin i of n: i/n < confidence <= (i + 1)/n, with edges in the confidence's dtype."""
    edges = [i / bins for i in range(1, bins)]
    lower, upper = (
        jnp.asarray(bounds, confidence.dtype).reshape((1,) * confidence.ndim + (bins,))
        for bounds in ([-math.inf, *edges], [*edges, math.inf])
    )
    confidence = jnp.expand_dims(confidence, -1)
    return (lower < confidence) & (confidence <= upper)


@jax.jit
def added(a: State, b: State) -> State:
    """The state whose sums are those of a plus those of b."""
    return jax.tree.map(_sums.add, a, b, is_leaf=is_sum)


def is_sum(node: Any) -> bool:
    """Whether a node of a state is a `Sum`."""
    return isinstance(node, Sum)
