"""Adds batches of rows to a state, from their logits or probabilities."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax.border._arrays import describe
from jsoftmax.border._call import Call
from jsoftmax.evaluation import _draws, _labels, _scores
from jsoftmax.evaluation._batch import Batch, of_call
from jsoftmax.evaluation._rows import Rows, absorb
from jsoftmax.evaluation._state import State, check_states
from jsoftmax.logits import _scaling
from jsoftmax.rows import _peaks, _reductions
from jsoftmax.rows._row_numbers import numbers
from jsoftmax.rows._statistics import are_ids

NLL = frozenset({"nll"})


def update(
    state: State,
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    probabilities: bool = False,
    key: Array | None = None,
) -> State:
    """The state after a batch of rows is added, from their logits and class ids.

    A row does not count if its weight is 0, its label is `ignore_index`, or `where` masks all its classes:
    then its values have no effect. A class id outside [0, V), NaN or +inf in a live class, a weight below 0,
    or a group outside [0, num_groups) makes every metric except `weight` NaN, in this state and in every
    state it is merged into. A row without a live class has loss 0, as in `cross_entropy`; its prediction
    counts as wrong and as no class, with confidence 0 and a Brier score of Σ t², 1 for a class id.

    The rank of the label counts the classes with a larger logit, and those with an equal logit and a smaller
    index, as argmax and ``jax.lax.top_k`` order them; nothing is sorted. A dead label is in no top k.

    Float labels are target probabilities t. Then the loss is ``−Σ t·log p``, the Brier score ``Σ (p − t)²``,
    and for all else the label of the row is the first class with the largest t.

    Outside `jax.jit`, a batch of up to 2²⁴ logits whose class axis is the last is filled up with rows that do
    not count, to one of four sizes per octave: batches of many lengths share a few compiled programs.

    Derivative: nll, Brier score and confidence are differentiable; counts have no derivative.

    Args:
      state: a state from `empty`, or any later one.
      logits: any shape.
      labels: class ids as integers, in the shape of `logits` without `axis`, or target probabilities in the
        shape of `logits`.
      axis: the class axis, a single one.
      ignore_index: rows with this class id do not count.
      weights: at least 0, one per row; 1 if not given. Their sums, and their products with the losses, have
        to be normal numbers.
      groups: the group of each row, as integers from 0, for a state with `num_groups`.
      where: True for the classes that count, as in `jsoftmax.cross_entropy`.
      soft_cap: as in `jsoftmax.cross_entropy`.
      temperature: as in `jsoftmax.cross_entropy`.
      probabilities: True if `logits` are probabilities, such as those of a classifier of another library.
        Their logarithms are used as logits. Probabilities below 0, or whose sum is off by more than 0.01,
        count as NaN; with `where`, the sum over the classes that count may be less than 1.
      key: a random key, for a state with `replicates`. Use a new key for each batch. With `groups`, use one
        key for all batches, because the rows of a group are drawn together, in whichever batches they are.

    Returns:
      `State`, in the dtype it had.

    Raises:
      TypeError, ValueError: as `jsoftmax.cross_entropy`; also if the state has another number of classes, or
        if `groups` or `key` is given and the state does not need it, or the reverse.

    >>> import jax, jax.numpy as jnp
    >>> from jsoftmax import evaluation
    >>> logits = jnp.array([[2.0, 1.0, 0.1], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
    >>> state = evaluation.update(evaluation.empty(3), logits, jnp.array([0, 1, 0]))
    >>> metrics = evaluation.compute(state)
    >>> print(f"{metrics.nll:.4f}", metrics.top_k_accuracy[:2], metrics.per_class_accuracy)
    0.6878 [0.6666667 1.       ] [0.5 1.  0. ]
    """
    check_states("update", state=state)
    call = Call(
        "evaluation.update",
        logits=logits,
        labels=labels,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        groups=groups,
        soft_cap=soft_cap,
        temperature=temperature,
        probabilities=probabilities,
        key=key,
    )
    if not isinstance(call.arguments["probabilities"], bool):
        problem = f"probabilities is {describe(probabilities)}"
        raise call.error(TypeError, problem, "write True or False, and give the probabilities as logits")
    axis, batch = of_call(call, state, or_targets=True)
    if state.classes is not None:
        given, classes = batch.x.shape[axis], state.classes.weight.high.shape[-1]
        if given != classes:
            problem = f"the logits have {given} classes, and the state is for {classes}"
            raise call.error(ValueError, problem, f"begin with evaluation.empty({given})")
    return _update((axis, probabilities), state, batch)


@partial(jax.jit, static_argnums=0)
def _update(static: tuple[int, bool], state: State, batch: Batch) -> State:
    axis, probabilities = static
    x, scaling = batch.x, batch.scaling
    ids, targets = batch.labels, None
    if not are_ids(ids):
        targets, ids = ids, _peaks.prediction(ids, (axis,))
    labels = _labels.of_rows(
        ids, batch.weights, batch.ignored, x.shape[axis], axis, scaling.where, batch.present
    )
    if probabilities:
        x = _scores.log(x, scaling.where, axis)
    if labels.counted is not None:
        x = jnp.where(labels.counted, x, 0)
        ids = jnp.where(labels.counted, ids, 0)  # not `labels.ids`: `numbers` reports bad ids itself
        targets = None if targets is None else jnp.where(labels.counted, targets, 0)
    of_loss = ids if targets is None else targets
    found = numbers((axis,), NLL, x, of_loss, scaling, None, labels.counted, beside=labels.weights)
    by_row: Any = jax.tree.map(lambda a: jnp.squeeze(a, axis), labels)
    rank = jnp.squeeze(_scores.rank(x, labels.ids, scaling, axis), axis)
    brier = confidence = odds = prediction = class_bins = None
    nll = _labels.nan_in_bad_groups(found["nll"], batch.groups, by_row.counted)
    if any(of is not None for of in (state.calibration, state.cells, state.class_bins, state.classes)):
        row_state, _ = _reductions.reduce(x, scaling, (axis,))
        if state.calibration is not None:
            brier = jnp.squeeze(_scores.brier(x, scaling, axis, row_state, labels.ids, targets, nll), axis)
        confidence = jnp.squeeze(jnp.where(row_state.rest < 0, 0, 1 / (1 + row_state.rest)), axis)
        odds = jnp.squeeze(jnp.where(row_state.rest < 0, 0, 1 / row_state.rest), axis)
        if state.class_bins is not None:
            class_bins = _scores.bins_of_classes(
                state.class_bins.weight.high, x, scaling, axis, row_state, labels
            )
        if state.classes is not None:
            first = _peaks.prediction(_scaling.ordered_live(x, scaling), (axis,))
            prediction = jnp.squeeze(jnp.where(row_state.rest < 0, -1, first), axis)
    draws = _draws.of_rows(state, batch.key, nll.shape, batch.groups)
    rows = Rows(nll, rank, prediction, brier, confidence, odds, batch.groups, draws)
    return absorb(state, rows, by_row, class_bins)
