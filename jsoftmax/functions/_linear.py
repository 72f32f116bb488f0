"""The losses and statistics of a linear head: of ``hidden @ weight``, without holding these logits."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Call
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.linear import _arguments, _few, _numbers
from jsoftmax.linear._arguments import Backend, BlockSize, Head
from jsoftmax.linear._products import Rows
from jsoftmax.rows import _loss_terms
from jsoftmax.rows._loss_terms import LossTerms, Reduction
from jsoftmax.rows._row_numbers import RowStatistics
from jsoftmax.rows._sparse import SparseTargets
from jsoftmax.rows._statistics import Numbers
from jsoftmax.transforms import _platforms
from jsoftmax.transforms._modes import in_forward_mode


def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike | SparseTargets,
    *,
    vocab_axis: int = -1,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    reduction: Reduction = "none",
    statistics: bool = False,
    block_size: BlockSize = None,
    backend: Backend = None,
    axis_name: MeshAxes = None,
    row_axis_name: MeshAxes = None,
) -> Any:
    """The cross-entropy of ``hidden @ weight + bias`` with labels, without ever holding these logits.

        loss = cross_entropy(hidden @ weight + bias, labels, …)

    Every option, corner and unit is that of `cross_entropy`. Logits come about in blocks, accumulated in at
    least float32 whatever comes in, and are thrown away: held are one block (`linear_plan` tells its size),
    with target probabilities a few arrays of that size, and, for the gradient, one array like the weight, in
    at least float32. The loss is in at least float32 too.

    Derivative: dz = (Σt)·p − t in the logits, ``dz @ weightᵀ`` in hidden, ``hiddenᵀ @ dz`` in weight. Under
    "mean" and "sum" a block turns into its gradient while it is there: three products of matrices for the
    loss and both gradients, and what is kept are the gradients. Under "none", in `forward_mode`, for the
    gradient of targets, and where the classes are cut, the logits are made again on the way back: four
    products, kept are the arguments and a few numbers a row. A loss alone is one product; a gradient that is
    not asked for costs none.

    Under `jax.vmap` there are more rows, and blocks of them, as if hidden had one more leading axis. Each
    element's "mean" or "sum" has a cotangent of its own, so that its gradients take four products. If the
    weight is mapped too, one block is held for each weight.

    A derivative through `jax.lax.scan` or `jax.lax.map` under "mean" or "sum" keeps one gradient of the
    weight for each step. Three forms avoid that: ``jax.checkpoint`` of the loss, and `jax.lax.map` with a
    `batch_size`, at four products; and a loop whose step calls ``jax.value_and_grad`` of the loss and adds
    up the gradients, at three.

    Args:
      hidden: features, shape [..., D].
      weight: shape [D, V]; with ``vocab_axis=0`` an embedding table of shape [V, D], which is not copied.
      labels: class ids as integers, shape [...]; or target probabilities as floats, shape [..., V]; or those
        of K classes a row, `SparseTargets`.
      vocab_axis: the axis of the weight along which the classes lie.
      bias: shape [V].
      where: True for the classes that count, shape [V] or [..., V].
      ignore_index: this and the following as in `cross_entropy`.
      weights: one a row, shape [...].
      class_weights: w, shape [V].
      label_smoothing: α from 0 to 1, a number, or one a row.
      z_loss: λ, a number, or one a row.
      soft_cap: cap, a number, or one a row.
      temperature: T, a number, or one a row.
      reduction: "none", "mean" or "sum".
      statistics: whether to return the `linear_row_statistics` of the rows too, from the same products; they
        are not differentiated.
      block_size: the number of rows in a block, or a pair, its rows and its classes. None takes what
        `linear_plan` finds.
      backend: "blocked", or "xla" for all logits at once. None is "blocked"; of several, the first is taken.
      axis_name: within `jax.shard_map`, the mesh axis, or several, over which the classes are sharded.
        `weight`, `bias`, `class_weights` and target probabilities are the shard's own classes, as many on
        each: pad the last, and give the padding a bias of −inf. `hidden` is the same on all, and its gradient
        the sum of theirs. Blocks are cut along the rows alone, and for each two reductions are sent.
      row_axis_name: as in `cross_entropy`.

    Returns:
      The losses, in the shape [...], or their mean or sum; with `statistics` that and `RowStatistics`.

    Raises:
      TypeError, ValueError: as for `cross_entropy`, and for features, a bias, an axis of the weight, a block
        size or a backend that does not fit.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> hidden, table = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[2.0, 0.0], [1.0, 0.0], [0.1, 15.0]])
    >>> loss = jsoftmax.linear_cross_entropy(hidden, table, jnp.array([0, 2]), vocab_axis=0)
    >>> print(f"{loss[0]:.5f}, {loss[1]:.5e}")
    0.41703, 1.87152e-13
    >>> total = lambda table: jsoftmax.linear_cross_entropy(
    ...     hidden, table, jnp.array([0, 2]), vocab_axis=0, reduction="sum")
    >>> print(jnp.round(1000 * jax.grad(total)(table)[:, 0]))
    [-341.  242.   99.]

    Source: as for `cross_entropy`; the gradient formed on the way forward is Liger's and PyTorch's chunked
    loss, the recomputed one that of Wijmans et al., arXiv 2411.09009.
    """
    call = Call(
        "linear_cross_entropy",
        hidden=hidden,
        weight=weight,
        labels=labels,
        vocab_axis=vocab_axis,
        bias=bias,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        soft_cap=soft_cap,
        temperature=temperature,
        reduction=reduction,
        statistics=statistics,
        block_size=block_size,
        backend=backend,
        axis_name=axis_name,
        row_axis_name=row_axis_name,
    )
    head = _arguments.of_call(call)
    row_names = _mesh_axes.of_rows(call, "hidden")
    with _platforms.for_logits(head.logits.size):
        return (_few.loss if isinstance(labels, SparseTargets) else _loss)(call, head, row_names)


def _loss(call: Call, head: Head, row_names: tuple[str, ...]) -> Any:
    reduction = call.arguments["reduction"]
    where = head.scaling.where
    loss = _loss_terms.of_call(call, head.logits, head.class_axis, head.names, row_names, where)
    terms = LossTerms(*(head.column(a) for a in loss.terms))
    rows = head.rows(loss.labels, loss.counted, loss.hidden)._replace(terms=terms)
    has_statistics = bool(call.arguments["statistics"])
    wanted = loss.terms.wanted | frozenset(_numbers.STATISTICS if has_statistics else ())
    shared, static = head.shared(loss.class_weights), head.static(wanted)
    if reduction == "none" or in_forward_mode() or static.plan(rows, shared).class_blocks > 1:
        found = _numbers.numbers(static, rows, shared)
        losses = head.reported(terms.losses(found), rows)
        out = loss.reduced(losses.reshape(head.row_shape), head.class_axis)
    else:
        total, found = _numbers.total(static, rows, shared)
        out = loss.of_sum(head.reported(total, rows), head.row_shape, head.class_axis)
    return (out, lax.stop_gradient(_statistics(head, rows, found))) if has_statistics else out


def _statistics(head: Head, rows: Rows, found: Numbers) -> RowStatistics:
    if rows.counted is not None:
        found = found | {"prediction": jnp.where(rows.counted, found["prediction"], 0)}
    return RowStatistics(*(found[name].reshape(head.row_shape) for name in _numbers.STATISTICS))


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
    """The log-normalizer, nll, entropy and prediction of ``hidden @ weight + bias``, row by row.

        linear_row_statistics(hidden, weight, labels) = row_statistics(hidden @ weight, labels)

    One product of matrices, whose result is never held: it comes about in blocks. Units, corners and dtypes
    are those of `row_statistics`.

    Derivative: that of `row_statistics` in the logits, which are made again on the way back: with the
    gradients of hidden and weight three further products. Kept for it: the arguments and a few numbers a row.

    Args, Raises: as for `linear_cross_entropy`.

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
    wanted = frozenset(_numbers.STATISTICS)
    with _platforms.for_logits(head.logits.size):
        rows = head.rows(t, counted)
        found = _numbers.numbers(head.static(wanted), rows, head.shared())
        found["nll"] = head.reported(found["nll"], rows)
    return _statistics(head, rows, found)
