"""Losses and statistics of a linear head, ``hidden @ weight``, without an array of all logits."""

from __future__ import annotations

from typing import Any

from jax import lax
from jax.typing import ArrayLike

from jsoftmax.border import _mesh_axes
from jsoftmax.border._backends import Backend
from jsoftmax.border._call import Call
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.functions._row_statistics import statistics_beside_a_loss
from jsoftmax.linear import _arguments, _block, _few, _numbers
from jsoftmax.linear._arguments import BlockSize, Gradient, Head
from jsoftmax.rows import _loss_terms
from jsoftmax.rows._loss_terms import LossTerms, Reduction
from jsoftmax.rows._sparse import SparseTargets
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
    gradient: Gradient = "exact",
    key: ArrayLike | None = None,
    threshold: float = 2**-12,
    keep: float = 1 / 32,
) -> Any:
    """The cross-entropy of ``hidden @ weight + bias`` with labels, without an array of all logits.

        loss = cross_entropy(hidden @ weight + bias, labels, …)

    All options, corner cases and units are those of `cross_entropy`. Logits are computed block by block,
    accumulated in at least float32, and not kept. Memory holds one block (`linear_plan` returns its size),
    with target probabilities a few arrays of that size, and, for the gradient, one array like the weight in
    at least float32. The loss is in at least float32.

    Derivative: dz = (Σt)·p − t in the logits, ``dz @ weightᵀ`` in hidden, ``hiddenᵀ @ dz`` in weight. With
    "mean" or "sum" the forward pass turns each block of logits into its gradient: three matrix products for
    the loss and both gradients, which are the residuals. With "none", in `forward_mode`, for the gradient of
    targets, and if a block does not hold all classes, the backward pass computes the logits again: four
    products, and the residuals are the arguments and a few numbers per row. A loss without gradient is one
    product; a gradient that is not asked for costs no product. A weighted sum of the losses needs no "none":
    "sum" with `weights` takes three products.

    In a trained model, almost all classes have a negligible gradient. With ``gradient="sampled"``, each block
    of rows takes its *active* classes, which are its labels and those with p ≥ `threshold` in one of its
    rows, and each other class with the probability `keep`, weighted by 1/keep. It computes no gradients for
    the rest. The loss stays exact. Each gradient is unbiased: its mean over keys is the exact one. With dz of
    the inactive classes of a block, the variances over one key are

        (1/keep − 1)·Σ dz²·w²  in hidden,   (1/keep − 1)·(hiddenᵀ dz)²  in each such column of the weight

    The gradients in weight, hidden, bias, class weights, temperature and cap use the same classes; those in
    smoothing and z-loss are exact. If more than half of the classes are active, a block takes all classes,
    and its gradient equals the exact one bit for bit. ``gradient="truncated"`` takes only the active classes:
    it has no key and no variance, but is biased. Its error in hidden is at most ``Σ p·|w|`` over the inactive
    classes. Both are exact with target probabilities, if `linear_plan` splits the classes, in `forward_mode`,
    and for second derivatives.

    `jax.vmap` adds rows, in more blocks, as if hidden had one more leading axis. The "mean" or "sum" of each
    element has its own cotangent, so its gradients take four products. If the weight is mapped too, memory
    holds one block for each weight.

    With "mean" or "sum", a derivative through `jax.lax.scan` or `jax.lax.map` keeps one gradient of the
    weight for each step. Three ways avoid that: ``jax.checkpoint`` of the loss, or `jax.lax.map` with a
    `batch_size`, with four products; or a loop whose step calls ``jax.value_and_grad`` of the loss and adds
    up the gradients, with three.

    Args:
      hidden: features, shape [..., D].
      weight: shape [D, V]; with ``vocab_axis=0`` an embedding table of shape [V, D], which is not copied.
      labels: class ids as integers, shape [...]; or target probabilities as floats, shape [..., V]; or
        `SparseTargets`, those of K classes per row.
      vocab_axis: the axis of the weight along which the classes lie.
      bias: shape [V].
      where: True for the classes that count, shape [V] or [..., V].
      ignore_index: this and the following as in `cross_entropy`.
      weights: one per row, shape [...].
      class_weights: w, shape [V].
      label_smoothing: α from 0 to 1, a number, or one per row.
      z_loss: λ, a number, or one per row.
      soft_cap: cap, a number, or one per row.
      temperature: T, a number, or one per row.
      reduction: "none", "mean" or "sum".
      statistics: whether to also return the `linear_row_statistics` of the rows, from the same products; they
        have no derivative. With `SparseTargets`, every reduction then takes four products.
      block_size: the number of rows in a block, or a pair: its rows and its classes. None for the size that
        `linear_plan` returns.
      backend: "blocked", "xla" for all logits at once, or "mosaic": as "blocked", except that on a Hopper GPU
        a kernel computes losses without a gradient. It is for class ids and 16-bit floats, without a bias,
        mask, soft cap, temperature or smoothing. A sequence means the first that can compute the call.
      axis_name: within `jax.shard_map`, the mesh axis or axes over which the classes are sharded. `weight`,
        `bias`, `class_weights` and target probabilities hold the classes of the shard, the same number on
        each: pad the last, and give the padding a bias of −inf. `hidden` is the same on all shards, and its
        gradient is summed over them. Blocks hold all classes of a shard; each takes two all-reduces.
      row_axis_name: as in `cross_entropy`.
      gradient: "exact", "sampled" or "truncated".
      key: a random key for "sampled", a new one for every step. Each shard folds in its mesh index.
      threshold: the smallest probability, from 0 to 1, of an active class.
      keep: the probability, above 0, of taking an inactive class.

    Returns:
      The losses, in the shape [...], or their mean or sum; with `statistics`, a pair: this and the
      `RowStatistics`.

    Raises:
      TypeError, ValueError: as in `cross_entropy`, and for features, a bias, an axis of the weight, a block
        size, a backend, a gradient, a key, a threshold or a `keep` that does not fit.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> hidden, table = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[2.0, 0.0], [1.0, 0.0], [0.1, 15.0]])
    >>> loss = jsoftmax.linear_cross_entropy(hidden, table, jnp.array([0, 2]), vocab_axis=0)
    >>> print(f"{loss[0]:.5f}, {loss[1]:.5e}")
    0.41703, 1.87152e-13
    >>> total = lambda table: jsoftmax.linear_cross_entropy(
    ...     hidden, table, jnp.array([0, 2]), vocab_axis=0, reduction="sum")
    >>> print(jnp.round(1000 * jax.grad(total)(table)[:, 0]))
    [-341.  242.   99.]

    Source: as for `cross_entropy`. The gradient in the forward pass is as in Liger's and PyTorch's chunked
    losses, the recomputed logits as in Wijmans et al., arXiv 2411.09009.
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
        gradient=gradient,
        key=key,
        threshold=threshold,
        keep=keep,
    )
    head = _arguments.of_call(call, for_loss=True)
    row_names = _mesh_axes.of_rows(call, "hidden")
    head = _arguments.sampled(call, head, row_names)
    forms = _platforms.with_kernels() if head.in_kernels else _platforms.for_logits(head.logits.size)
    with forms:
        return (_few.loss if isinstance(labels, SparseTargets) else _loss)(call, head, row_names)


def _loss(call: Call, head: Head, row_names: tuple[str, ...]) -> Any:
    reduction = call.arguments["reduction"]
    where = head.scaling.where
    loss = _loss_terms.of_call(call, head.logits, head.class_axis, head.names, row_names, where)
    terms = LossTerms(*(head.column(a) for a in loss.terms))
    rows = head.rows(loss.labels, loss.counted, loss.hidden)._replace(terms=terms)
    has_statistics = bool(call.arguments["statistics"])
    wanted = loss.terms.wanted | frozenset(_numbers.STATISTICS if has_statistics else ())
    if has_statistics and loss.class_weights is not None and not rows.has_class_ids:
        wanted |= {_block.UNWEIGHTED}
    shared, static = head.shared(loss.class_weights), head.static(wanted)
    if reduction == "none" or in_forward_mode() or static.plan(rows, shared).class_blocks > 1:
        found = _numbers.numbers(static, rows, shared)
        losses = head.reported(terms.losses(found), rows)
        out = loss.reduced(losses.reshape(head.row_shape), head.class_axis)
    else:
        total, found = _numbers.total(static, rows, shared)
        out = loss.of_sum(head.reported(total, rows), head.row_shape, head.class_axis)
    if not has_statistics:
        return out
    return out, lax.stop_gradient(statistics_beside_a_loss(call, head, rows, found))
