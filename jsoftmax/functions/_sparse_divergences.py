"""The divergence of a few probabilities, as a teacher's largest, from logits or a linear head."""

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
    """The Kullback-Leibler divergence of K probabilities a row, and of all others as one, from a softmax.

        KL = Σ t·log(t/q) + t_tail·log(t_tail/q_tail)        over K ids and the tail

    t are the K probabilities of `p`, q those of the softmax of z = cap·tanh(logits/cap)/T. The tail is all
    other classes: ``t_tail = −expm1(log Σ t)``, and q_tail is the sum of their q, no difference from 1. So a
    student whose mass lies outside the K ids pays for it, where renormalised probabilities would not see it.
    Without the tail it is the sum over the K ids alone, which may be negative.

    Computed in at least float32, and returned so; corners as for `kl_divergence` of K + 1 classes. Where no
    class but the K ids counts there is no tail, whatever rounding left of t_tail.

    Derivative: ``q − t`` at the ids, ``q·(1 − t_tail/q_tail)`` elsewhere, over T; without the tail
    ``(Σt)·q − t``; and that of `p.log_probs`. Kept for it: the arguments and a few numbers a row.

    Args:
      p: `SparseTargets`, of the rows of `q_logits`.
      q_logits: logits of q, any shape.
      tail: whether the tail counts.
      axis: this and the following as in `kl_divergence`.
      where: True for the classes that count.
      weights: one a row.
      temperature: T, of q alone, a number, or one a row.
      soft_cap: cap, of q alone, a number, or one a row.
      reduction: "none", "mean" or "sum".
      axis_name: as in `cross_entropy`; ids count the classes of all shards.
      row_axis_name: as in `cross_entropy`.

    Returns:
      The divergences, in the shape of `q_logits` without `axis`, or their mean or sum.

    Raises:
      TypeError, ValueError: as for `kl_divergence`; for a `p` that is none, or of another shape.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> p = jsoftmax.SparseTargets(jnp.array([0, 1]), jnp.log(jnp.array([0.5, 0.25])))
    >>> logits = jnp.array([0.0, 0.0, 10.0, 10.0])
    >>> print(f"{jsoftmax.sparse_kl_divergence(p, logits):.3f}")
    6.980
    >>> print(jnp.round(1000 * jax.grad(jsoftmax.sparse_kl_divergence, 1)(p, logits)))
    [-500. -250.  375.  375.]

    Source: that of K + 1 events; Kullback & Leibler (1951).
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
    x, scaling, hidden = _sparse.along_last(x, axes, scaling, loss.counted, loss.hidden)
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
    """The Kullback-Leibler divergence of K probabilities a row from a linear head, without its logits.

        KL = sparse_kl_divergence(p, q_hidden @ q_weight + q_bias, …)

    Units, corners and dtypes are those of `sparse_kl_divergence`; logits come about in blocks of rows.

    Derivative: that of `sparse_kl_divergence` in the logits, otherwise as for `linear_kl_divergence`: three
    products of matrices under "mean" and "sum", else four.

    Args:
      p: `SparseTargets`, shape [..., K].
      q_hidden: features, shape [..., D].
      q_weight: shape [D, V]; with ``vocab_axis=0`` an embedding table of shape [V, D], which is not copied.
      tail: whether the tail counts.
      vocab_axis: this and the following as in `linear_kl_divergence`.
      q_bias: shape [V].
      where: True for the classes that count, shape [V] or [..., V].
      weights: one a row, shape [...].
      temperature: T, a number, or one a row.
      soft_cap: cap, a number, or one a row.
      reduction: "none", "mean" or "sum".
      block_size: the number of rows in a block. None takes what `linear_plan` finds.
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
