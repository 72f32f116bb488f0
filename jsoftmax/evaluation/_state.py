"""The state of an evaluation: sums over rows, which add up over batches, shards and processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jsoftmax import rules
from jsoftmax.border._call import Call
from jsoftmax.evaluation import _sums
from jsoftmax.evaluation._sums import Sum

# The cells of confidences: `CELLS_PER_OCTAVE` for each octave of the odds p/(1 − p), from 2⁻²⁴ to 2⁴⁰.
CELLS_PER_OCTAVE, FIRST_OCTAVE, LAST_OCTAVE = 128, -24, 40
CELLS = CELLS_PER_OCTAVE * (LAST_OCTAVE - FIRST_OCTAVE)


class Bins(NamedTuple):
    """For each bin of confidences: the weight of its rows, of those that are right, and Σ w·confidence."""

    weight: Sum
    correct: Sum
    confidence: Sum


class Calibration(NamedTuple):
    """The sum of the Brier scores, and the bins of equal width."""

    brier: Sum
    bins: Bins


class Classes(NamedTuple):
    """For each class: the weight of the rows with this label, of those that are right, of all predicted."""

    weight: Sum
    correct: Sum
    predicted: Sum


class RowGroups(NamedTuple):
    """For each group of rows: its weight, that of the rows predicted right, and the sum of the losses."""

    weight: Sum
    correct: Sum
    nll: Sum


class Replicates(NamedTuple):
    """The sums of every replicate, each with a leading axis; `brier` is None if the state has no bins."""

    weight: Sum
    nll: Sum
    ranks: Sum
    brier: Sum | None


class State(NamedTuple):
    """Weighted sums over rows; a plain tree of small arrays.

    Entry k of `ranks` sums the rows in which k classes come before the label; in entry 0 the label is the
    prediction. A field is None if the state does not measure it.
    """

    weight: Sum
    nll: Sum
    ranks: Sum
    calibration: Calibration | None
    classes: Classes | None
    confusion: Sum | None = None
    class_bins: Bins | None = None
    cells: Bins | None = None
    groups: RowGroups | None = None
    replicates: Replicates | None = None


class Measures(NamedTuple):
    """What a state measures: the arguments of `empty`."""

    num_classes: int | None
    top_k: int
    bins: int | None
    confusion: bool
    class_bins: int | None
    selective: bool
    num_groups: int | None
    replicates: int | None
    dtype: str

    def __repr__(self) -> str:
        """The arguments that differ from the defaults, as a call of `empty` would give them."""
        given = zip(self._fields, self, _DEFAULTS, strict=True)
        return f"empty({', '.join(f'{name}={value!r}' for name, value, usual in given if value != usual)})"


_DEFAULTS = Measures(None, 5, 15, False, None, False, None, None, "float32")


def measures(state: State) -> Measures:
    """What a state measures."""

    def size(of: Any) -> int | None:
        return None if of is None else jax.tree.leaves(of)[0].shape[-1]

    return Measures(
        num_classes=size(state.classes),
        top_k=state.ranks.high.shape[-1],
        bins=size(None if state.calibration is None else state.calibration.bins),
        confusion=state.confusion is not None,
        class_bins=size(state.class_bins),
        selective=state.cells is not None,
        num_groups=size(state.groups),
        replicates=size(None if state.replicates is None else state.replicates.weight),
        dtype=str(state.nll.high.dtype),
    )


def empty(
    num_classes: int | None = None,
    *,
    top_k: int = 5,
    bins: int | None = 15,
    confusion: bool = False,
    class_bins: int | None = None,
    selective: bool = False,
    num_groups: int | None = None,
    replicates: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> State:
    """The state of no rows, the neutral element of `merge`. Its arguments say what to measure.

    Args:
      num_classes: V, to measure accuracy, precision and F1 for each class; None to leave them out.
      top_k: the largest k of the top-k accuracy.
      bins: the number of confidence bins of equal width; None leaves out the calibration errors and the
        Brier score.
      confusion: whether to count each pair of label and prediction, V² numbers. It needs `num_classes`.
      class_bins: the number of bins of the probability of every class, for the class-wise calibration error;
        it needs `num_classes`. Each bin costs a pass over the probabilities.
      selective: whether to measure the risk–coverage curve and, with `bins`, the calibration in bins of
        equal mass. It takes 8192 cells of confidences.
      num_groups: the number of groups of rows, such as documents or data sets, to measure each on its own.
      replicates: the number of resampled copies of the sums, for `confidence_intervals`. An update holds this
        number of float32 draws for each row.
      dtype: the dtype of the sums; they are in at least float32. A sum is two numbers, 48 bits in float32.

    Returns:
      `State`.

    Raises:
      TypeError, ValueError: if a number is not an integer or is below 1, if an argument needs `num_classes`,
        or the dtype is not a float type.

    >>> from jsoftmax import evaluation
    >>> metrics = evaluation.compute(evaluation.empty())  # no rows: no metric has a value
    >>> print(metrics.nll, metrics.accuracy, metrics.weight)
    nan nan 0.0
    """
    call = Call(
        "evaluation.empty",
        num_classes=num_classes,
        top_k=top_k,
        bins=bins,
        confusion=confusion,
        class_bins=class_bins,
        selective=selective,
        num_groups=num_groups,
        replicates=replicates,
        dtype=dtype,
    )
    for name in ("num_classes", "top_k", "bins", "class_bins", "num_groups", "replicates"):
        if name == "top_k" or call.arguments[name] is not None:
            call.size(name, least=1)
    for name in ("confusion", "selective"):
        if not isinstance(call.arguments[name], bool):
            raise call.error(TypeError, f"{name} is {call.arguments[name]!r}", "write True or False")
    if num_classes is None and (confusion or class_bins is not None):
        name = "confusion" if confusion else "class_bins"
        raise call.error(ValueError, f"{name} needs the number of classes", "give num_classes= too")
    wide = rules.computing_dtype(call.float_dtype("dtype"))

    def zero(*shape: int) -> Sum:
        return _sums.zero(shape, wide)

    def zero_bins(*shape: int) -> Bins:
        return Bins(zero(*shape), zero(*shape), zero(*shape))

    of_classes = None if num_classes is None else (zero(num_classes) for _ in Classes._fields)
    return State(
        zero(),
        zero(),
        zero(top_k),
        None if bins is None else Calibration(zero(), zero_bins(bins)),
        None if of_classes is None else Classes(*of_classes),
        zero(num_classes or 0, num_classes or 0) if confusion else None,
        None if class_bins is None else zero_bins(num_classes or 0, class_bins),
        zero_bins(CELLS) if selective else None,
        None if num_groups is None else RowGroups(*(zero(num_groups) for _ in RowGroups._fields)),
        None
        if replicates is None
        else Replicates(
            zero(replicates),
            zero(replicates),
            zero(replicates, top_k),
            None if bins is None else zero(replicates),
        ),
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
        if state.weight.high.ndim and function != "merge":
            problem = f"{name} is a stack of states, of shape {state.weight.high.shape}"
            raise Call(f"evaluation.{function}").error(ValueError, problem, "map the call with jax.vmap")


def check_type(function: str, kind: type, remedy: str, **arguments: Any) -> None:
    """Raise if an argument of a public function is not of type `kind`."""
    for name, value in arguments.items():
        if not isinstance(value, kind):
            problem = f"{name} is of type {_name_of(value)}, not {kind.__name__}"
            raise Call(f"evaluation.{function}", **arguments).error(TypeError, problem, remedy)


def _name_of(value: Any) -> str:
    return "array" if isinstance(value, Array) else type(value).__name__
