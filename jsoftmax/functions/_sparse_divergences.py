"""The divergence of sparse targets, such as a teacher's largest probabilities, from logits or a head."""

from __future__ import annotations

from jax import Array
from jax.typing import ArrayLike

from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.linear import _few
from jsoftmax.linear._arguments import BlockSize
from jsoftmax.logits import _scaling
from jsoftmax.rows import _loss_terms, _sparse
from jsoftmax.rows._loss_terms import Reduction
from jsoftmax.rows._sparse import SparseTargets


def sparse_kl_divergence(
    p: SparseTargets,
    q_logits: ArrayLike,
    *,
    tail: bool = True,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    reduction: Reduction = "none",
    axis_name: MeshAxes = None,
    row_axis_name: MeshAxes = None,
) -> Array:
    """The Kullback-Leibler divergence of sparse targets from a softmax; all other classes form one event.

        KL = Σ t·log(t/q) + t_tail·log(t_tail/q_tail),   the sum over the K ids of a row

    where t are the K probabilities of `p`, and q is the softmax of z = cap·tanh(logits/cap)/T. The tail
    consists of all other classes: t_tail = 1 − Σ t, computed from log Σ t, and q_tail is the sum of their q.
    The tail makes a student pay for probability outside the K ids; with both distributions renormalised over
    the K ids, this probability has no effect. Without the tail, the result is the sum over the K ids, which
    may be negative.

    The result is computed and returned in at least float32. Corner cases are those of `kl_divergence` with
    K + 1 classes. If all unmasked classes are among the K ids, there is no class for a tail: t is divided by
    its sum, here and in the derivative, so that a sum rounded to less than 1 does not make the result +inf.

    Derivative: ``(q − t)/T`` at the ids, ``q·(1 − t_tail/q_tail)/T`` at all other classes; without the tail
    ``((Σ t)·q − t)/T``; also in `p.log_probs`, T and the cap. Residuals: the arguments, and O(K) numbers per
    row.

    Args:
      p: `SparseTargets` for the rows of `q_logits`.
      q_logits: logits of q, any shape.
      tail: whether to include the tail.
      axis: this and the following as in `kl_divergence`.
      where: True for the classes that count.
      weights: one number per row.
      temperature: T, of q only, a number, or one per row.
      soft_cap: cap, of q only, a number, or one per row.
      reduction: "none", "mean" or "sum".
      axis_name: as in `cross_entropy`; ids count the classes of all shards.
      row_axis_name: as in `cross_entropy`.

    Returns:
      The divergences, in the shape of `q_logits` without `axis`, or their mean or sum.

    Raises:
      TypeError, ValueError: as for `kl_divergence`; also if `p` is not `SparseTargets`, or its arrays do not
        have the shape of the rows plus a last axis.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> p = jsoftmax.SparseTargets(jnp.array([0, 1]), jnp.log(jnp.array([0.5, 0.25])))
    >>> logits = jnp.array([0.0, 0.0, 10.0, 10.0])
    >>> print(f"{jsoftmax.sparse_kl_divergence(p, logits):.3f}")
    6.980
    >>> print(jnp.round(1000 * jax.grad(jsoftmax.sparse_kl_divergence, 1)(p, logits)))
    [-500. -250.  375.  375.]

    Source: Kullback & Leibler (1951), applied to K + 1 events.
    """
    call = Call(
        "sparse_kl_divergence",
        p=p,
        q_logits=q_logits,
        tail=tail,
        axis=axis,
        where=where,
        weights=weights,
        temperature=temperature,
        soft_cap=soft_cap,
        reduction=reduction,
        axis_name=axis_name,
        row_axis_name=row_axis_name,
    )
    x = call.floats("q_logits")
    axes = call.axes(x.shape)
    names = _mesh_axes.of_classes(call, ("q_logits",))
    scaling = _scaling.of_call(call, x, axes)
    targets = _sparse.of_call(call, "p", x, axes, names)
    loss = _loss_terms.of_rows(call, x, axes, names, _mesh_axes.of_rows(call, "q_logits"), scaling.where)
    x, scaling, hidden = _sparse.on_last_axis(x, axes, scaling, loss.counted, loss.hidden)
    found = _sparse.sparse_divergences((x.ndim - 1, *names), x, targets, scaling, hidden, bool(tail))
    return loss.reduced(loss.terms.weighted(found[..., 0]), axes)


def linear_sparse_kl_divergence(
    p: SparseTargets,
    q_hidden: ArrayLike,
    q_weight: ArrayLike,
    *,
    tail: bool = True,
    vocab_axis: int = -1,
    q_bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    reduction: Reduction = "none",
    block_size: BlockSize = None,
    axis_name: MeshAxes = None,
    row_axis_name: MeshAxes = None,
) -> Array:
    """The Kullback-Leibler divergence of sparse targets from a linear head, without an array of all logits.

        KL = sparse_kl_divergence(p, q_hidden @ q_weight + q_bias, …)

    Units, corner cases and dtypes are those of `sparse_kl_divergence`. Memory holds one block of rows of the
    logits.

    Derivative: that of `sparse_kl_divergence` in the logits, then as for `linear_kl_divergence`: three matrix
    products for the loss and both gradients with "mean" and "sum", otherwise four.

    Args:
      p: `SparseTargets`, shape [..., K].
      q_hidden: features, shape [..., D].
      q_weight: shape [D, V]; with ``vocab_axis=0`` an embedding table of shape [V, D], which is not copied.
      tail: whether to include the tail.
      vocab_axis: this and the following as in `linear_kl_divergence`.
      q_bias: shape [V].
      where: True for the classes that count, shape [V] or [..., V].
      weights: one number per row, shape [...].
      temperature: T, a number, or one per row.
      soft_cap: cap, a number, or one per row.
      reduction: "none", "mean" or "sum".
      block_size: the number of rows in a block; None for the one that `linear_plan` returns.
      axis_name: as in `linear_cross_entropy`; ids count the classes of all shards.
      row_axis_name: as in `cross_entropy`.

    Returns, Raises: as for `linear_kl_divergence` and `sparse_kl_divergence`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> p = jsoftmax.SparseTargets(jnp.array([[0, 1]]), jnp.log(jnp.array([[0.5, 0.25]])))
    >>> table = jnp.array([[0.0], [0.0], [10.0], [10.0]])
    >>> print(f"{jsoftmax.linear_sparse_kl_divergence(p, jnp.ones((1, 1)), table, vocab_axis=0)[0]:.3f}")
    6.980

    Source: as for `sparse_kl_divergence`.
    """
    call = Call(
        "linear_sparse_kl_divergence",
        p=p,
        q_hidden=q_hidden,
        q_weight=q_weight,
        tail=tail,
        vocab_axis=vocab_axis,
        q_bias=q_bias,
        where=where,
        weights=weights,
        temperature=temperature,
        soft_cap=soft_cap,
        reduction=reduction,
        block_size=block_size,
        axis_name=axis_name,
        row_axis_name=row_axis_name,
    )
    return _few.divergence(call)
