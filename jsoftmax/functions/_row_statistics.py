"""Statistics of every row of logits and its label, as training and evaluation code needs them."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from jsoftmax.border import _mesh_axes
from jsoftmax.border._backends import Backend
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.linear import _arguments, _block, _numbers
from jsoftmax.linear._arguments import BlockSize, Head
from jsoftmax.linear._products import Rows
from jsoftmax.logits import _scaling
from jsoftmax.rows import _loss_terms, _peaks
from jsoftmax.rows._row_numbers import RowStatistics, numbers, one_axis
from jsoftmax.rows._statistics import Numbers
from jsoftmax.transforms import _platforms


@compiled("axis", "ignore_index", "axis_name")
def row_statistics(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> RowStatistics:
    """The log-normalizer, negative log-likelihood, entropy and prediction of every row, in one pass.

        log_normalizer = max + log1p(rest)          nll = −log p_y, or −Σ t·log p
        entropy = −Σ p·log p                        prediction = argmax z

    with z = cap·tanh(logits/cap)/T, computed and returned in at least float32. The prediction is int32, the
    first of the largest classes. In a compiled program, a statistic that is not used costs nothing. Corner
    cases are as in `cross_entropy`; a row without a live class has log_normalizer −inf and the others 0. In a
    row whose class id is `ignore_index`, all are 0. To exclude completely masked rows from a mean, write
    ``jnp.mean(nll, where=jnp.any(where, axis))``.

    Derivative: ``a·p + b·((Σt)·p − t) − c·p·(u − ⟨p, u⟩)`` in z, for cotangents a, b, c, and u = z − max, in
    one backward pass. The prediction has no derivative. Residuals: the arguments and a few numbers per row.

    Args, Raises: as in `cross_entropy`.

    Returns:
      `RowStatistics`, each in the shape of `logits` without `axis`.

    A policy-gradient loss (PPO) with an entropy bonus; log-probabilities and entropies take one pass:

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> def ppo_loss(logits, actions, old_log_prob, advantage, clip=0.2, bonus=0.01):
    ...     policy = jsoftmax.row_statistics(logits, actions)
    ...     ratio = jnp.exp(-policy.nll - old_log_prob)
    ...     gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    ...     return -jnp.mean(gain + bonus * policy.entropy)
    >>> logits, actions = jnp.array([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]]), jnp.array([0, 2])
    >>> old, advantage = jnp.array([-0.5, -1.0]), jnp.array([1.0, -1.0])
    >>> print(f"{ppo_loss(logits, actions, old, advantage):.4f}")
    -0.0999

    Loss and accuracy in one pass:

    >>> found = jsoftmax.row_statistics(logits, actions)
    >>> print(f"{found.nll.mean():.4f} {(found.prediction == actions).mean():.1f}")
    0.7578 0.5

    Source: Blanchard, Higham & Higham (2021). −p·(u − ⟨p, u⟩) is the softmax Jacobian applied to −log p;
    u = z − max is log p up to a constant per row, which the Jacobian maps to 0.
    """
    call = Call(
        "row_statistics",
        logits=logits,
        labels=labels,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        soft_cap=soft_cap,
        temperature=temperature,
        axis_name=axis_name,
    )
    x = call.floats("logits")
    axes = call.axes(x.shape)
    names = _mesh_axes.of_classes(call, ("logits",))
    t, counted = _loss_terms.labels_of_call(call, x.shape, axes)
    scaling = _scaling.of_call(call, x, axes)
    wanted = frozenset({"log_normalizer", "nll", "entropy"})
    found = numbers(axes, wanted, x, t, scaling, counted=counted, names=names)
    ordered = _scaling.ordered_live(x, scaling)
    if len(axes) != 1:
        ordered = one_axis(ordered, axes)
        counted = None if counted is None else one_axis(counted, axes)
        axes = (-1,)
    prediction = _peaks.prediction(ordered, (*axes, *names))
    if counted is not None:
        prediction = jnp.where(counted, prediction, 0)
    return RowStatistics(**found, prediction=jnp.squeeze(prediction, axes))


def linear_row_statistics(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike,
    *,
    vocab_axis: int = -1,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    block_size: BlockSize = None,
    backend: Backend = None,
    axis_name: MeshAxes = None,
) -> RowStatistics:
    """The log-normalizer, nll, entropy and prediction of every row of ``hidden @ weight + bias``.

        linear_row_statistics(hidden, weight, labels) = row_statistics(hidden @ weight, labels)

    It takes one matrix product, computed block by block, without an array of all logits. Units, corner cases
    and dtypes are those of `row_statistics`.

    Derivative: that of `row_statistics` in the logits, which the backward pass computes again; with the
    gradients of hidden and weight, three more products. Residuals: the arguments and a few numbers per row.

    Args, Raises: as in `linear_cross_entropy`.

    Returns:
      `RowStatistics`, each in the shape of the leading axes of `hidden`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> hidden, table = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[2.0, 0.0], [1.0, 0.0], [0.1, 15.0]])
    >>> found = jsoftmax.linear_row_statistics(hidden, table, jnp.array([0, 0]), vocab_axis=0)
    >>> print(found.prediction, jnp.round(1000 * found.nll))
    [0 2] [  417. 30000.]

    Source: as for `row_statistics`.
    """
    call = Call(
        "linear_row_statistics",
        hidden=hidden,
        weight=weight,
        labels=labels,
        vocab_axis=vocab_axis,
        bias=bias,
        where=where,
        ignore_index=ignore_index,
        soft_cap=soft_cap,
        temperature=temperature,
        block_size=block_size,
        backend=backend,
        axis_name=axis_name,
    )
    head = _arguments.of_call(call)
    t, counted = _loss_terms.labels_of_call(call, head.logits.shape, head.class_axis)
    with _platforms.for_logits(head.logits.size):
        rows = head.rows(t, counted)
        found = _numbers.numbers(head.static(frozenset(_numbers.STATISTICS)), rows, head.shared())
        found["nll"] = head.reported(found["nll"], rows)
    return statistics_of(head, rows, found)


def statistics_beside_a_loss(call: Call, head: Head, rows: Rows, found: Numbers) -> RowStatistics:
    """Those of `linear_row_statistics`, from the numbers of a loss.

    A loss does not count a row whose classes are all masked; its statistics do. It weights the targets.
    """
    found = found | {"nll": found.get(_block.UNWEIGHTED, found["nll"])}
    where = head.scaling.where
    live = _loss_terms.counted_rows(None, None, where, head.class_axis, head.names)
    if live is not None:
        counted = _loss_terms.labels_of_call(call, head.logits.shape, head.class_axis)[1]
        kept = jnp.asarray(head.column(live if counted is None else live | ~counted))
        found["log_normalizer"] = jnp.where(kept, found["log_normalizer"], -jnp.inf)
    return statistics_of(head, rows, found)


def statistics_of(head: Head, rows: Rows, found: Numbers) -> RowStatistics:
    """The statistics in the shape of the rows; the prediction is 0 in rows that do not count."""
    if rows.counted is not None:
        found = found | {"prediction": jnp.where(rows.counted, found["prediction"], 0)}
    return RowStatistics(*(found[name].reshape(head.row_shape) for name in _numbers.STATISTICS))
