"""The divergences of two linear heads, a teacher's and a student's, without an array of all logits."""

from __future__ import annotations

from jax import Array
from jax.typing import ArrayLike

from jsoftmax.border._call import Call
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.linear import _pairs
from jsoftmax.linear._arguments import BlockSize
from jsoftmax.rows._loss_terms import Reduction


def linear_kl_divergence(
    p_hidden: ArrayLike,
    p_weight: ArrayLike,
    q_hidden: ArrayLike,
    q_weight: ArrayLike,
    *,
    vocab_axis: int = -1,
    p_bias: ArrayLike | None = None,
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
    """The Kullback-Leibler divergence KL(p‖q) of two linear heads, without an array of all logits.

        KL = kl_divergence(p_hidden @ p_weight + p_bias, q_hidden @ q_weight + q_bias, …)

    In distillation, p is the teacher and q the student; swap the two heads for the reverse divergence. They
    may have different numbers of features. Memory holds one block of rows of the logits of each head. Units,
    corner cases and dtypes are those of `kl_divergence`: two equal heads give 0, with gradients 0.

    Derivative: that of `kl_divergence` in the logits, multiplied with hidden and weight only for the
    arguments that are differentiated. With a frozen teacher, "mean" and "sum" take four matrix products for
    the loss and both gradients of the student: the forward pass computes these gradients, which are the
    residuals. With "none", in `forward_mode`, and under `jax.vmap`, the backward pass computes the logits
    again, two more products, and the residuals are the arguments.

    Args:
      p_hidden: features of p, shape [..., D].
      p_weight: shape [D, V]; with ``vocab_axis=0`` an embedding table of shape [V, D], which is not copied.
      q_hidden: features of q, shape [..., E].
      q_weight: shape [E, V], or [V, E].
      vocab_axis: the axis of both weights along which the classes lie.
      p_bias: shape [V].
      q_bias: shape [V].
      where: True for the classes that count, in both, shape [V] or [..., V].
      weights: one number per row, shape [...], as in `cross_entropy`: 0 hides a row.
      temperature: T of both, a number, or one per row.
      soft_cap: cap of both, a number, or one per row.
      reduction: "none", "mean" or "sum".
      block_size: the number of rows in a block; None for as many as `linear_plan` returns, or half as
        many if the blocks of both heads would take more than 1 GiB.
      axis_name: as in `linear_cross_entropy`; `where` then holds the classes of the shard.
      row_axis_name: as in `cross_entropy`.

    Returns:
      The divergences, in the shape [...], or their mean or sum.

    Raises:
      TypeError, ValueError: as for `linear_cross_entropy` and `kl_divergence`; also if the heads differ in
        the shape of their rows or the number of classes.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> hidden, teacher = jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.array([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]])
    >>> student = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    >>> print(jnp.round(1000 * jsoftmax.linear_kl_divergence(hidden, teacher, hidden, student)))
    [1121.  308.]
    >>> def loss(student):
    ...     return jsoftmax.linear_kl_divergence(hidden, teacher, hidden, student, reduction="sum")
    >>> print(jnp.round(1000 * jax.grad(loss)(student)[0]))
    [-727.    4.  723.]

    Source: as for `kl_divergence`; for gradients in the forward pass, as for `linear_cross_entropy`.
    """
    call = Call(
        "linear_kl_divergence",
        p_hidden=p_hidden,
        p_weight=p_weight,
        q_hidden=q_hidden,
        q_weight=q_weight,
        vocab_axis=vocab_axis,
        p_bias=p_bias,
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
    return _pairs.divergence(call, "kl")


def linear_js_divergence(
    p_hidden: ArrayLike,
    p_weight: ArrayLike,
    q_hidden: ArrayLike,
    q_weight: ArrayLike,
    *,
    beta: ArrayLike = 0.5,
    vocab_axis: int = -1,
    p_bias: ArrayLike | None = None,
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
    """The generalised Jensen-Shannon divergence of two linear heads, without an array of all logits.

        JS = js_divergence(p_hidden @ p_weight + p_bias, q_hidden @ q_weight + q_bias, beta=beta, …)

    Memory, matrix products and residuals are those of `linear_kl_divergence`. The limits for β → 0 and β → 1
    are those of `js_divergence`.

    Derivative: that of `js_divergence` in the logits, then as for `linear_kl_divergence`.

    Args, Returns, Raises: as for `linear_kl_divergence`; `beta` is β, a number between 0 and 1, or one per
    row.

    >>> import jax.numpy as jnp, jsoftmax
    >>> hidden, teacher = jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.array([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]])
    >>> student = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    >>> print(jnp.round(1000 * jsoftmax.linear_js_divergence(hidden, teacher, hidden, student)))
    [240.  74.]

    Source: as for `js_divergence` and `linear_kl_divergence`.
    """
    call = Call(
        "linear_js_divergence",
        p_hidden=p_hidden,
        p_weight=p_weight,
        q_hidden=q_hidden,
        q_weight=q_weight,
        beta=beta,
        vocab_axis=vocab_axis,
        p_bias=p_bias,
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
    return _pairs.divergence(call, "js")
