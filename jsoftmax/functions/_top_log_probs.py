"""The largest log-probabilities of a row, and the log-probability and rank of its label."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._label_checks import reported_ids
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.functions._logsumexp import logsumexp
from jsoftmax.functions._maps import log_softmax
from jsoftmax.linear import _few
from jsoftmax.linear._arguments import BlockSize
from jsoftmax.logits import _scaling
from jsoftmax.rows import _sparse, _top
from jsoftmax.rows._loss_terms import ids_of_live_rows
from jsoftmax.rows._row_numbers import one_axis
from jsoftmax.rows._top import Largest
from jsoftmax.transforms._sharding import shard_count


class TopLogProbs(NamedTuple):
    """The result of `top_log_probs`: the first two fields have shape [..., k], the others one number per row.

    The last two are None without labels. ``SparseTargets(top.ids, top.log_probs)`` are targets for
    `cross_entropy` and `sparse_kl_divergence`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> print(jsoftmax.top_log_probs(jnp.array([0.0, 2.0, 1.0]), 2).ids)
    [1 2]
    """

    log_probs: Array
    ids: Array
    log_normalizer: Array
    label_log_prob: Array | None
    label_rank: Array | None


def top_log_probs(
    logits: ArrayLike,
    k: int,
    *,
    labels: ArrayLike | None = None,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> TopLogProbs:
    """The k largest log-probabilities of every row and their ids; the label's log-probability and its rank.

        log p = z − max − log1p(rest),   z = cap·tanh(logits/cap)/T

    where rest is Σ exp(z − max) without the largest term. The largest come first, and lower ids first among
    equal ones. The rank of a label is 1 plus the number of classes with a larger z. Log-probabilities and the
    log-normalizer are in at least float32, ids and ranks in int32. Dead classes have log-probability −inf and
    come last; in a row without a live class, every log-probability and the log-normalizer are −inf. A label
    outside [0, V) has log-probability NaN and rank 0.

    Derivative in the logits: ``Σ g·(e − p)/T`` for cotangents g of log-probabilities of classes with one-hot
    vectors e, and ``a·p/T`` for a cotangent a of the log-normalizer; also in T and the cap. Ids and ranks
    have none. Residuals: the arguments, the ids, and O(k) numbers per row.

    Args:
      logits: any shape.
      k: the number of classes to return, at most V.
      labels: class ids as integers, in the shape of `logits` without `axis`.
      axis: this and the following as in `row_statistics`.
      where: True for the classes that count.
      soft_cap: cap, a number, or one per row.
      temperature: T, a number, or one per row.
      axis_name: as in `row_statistics`; each shard sends its k largest.

    Returns:
      `TopLogProbs`.

    Raises:
      TypeError, ValueError: as for `row_statistics`; also for a `k` below 1 or above the number of classes.

    >>> import jax.numpy as jnp, jsoftmax
    >>> top = jsoftmax.top_log_probs(jnp.array([2.0, 1.0, 0.1, 1.0]), 2, labels=3)
    >>> print(top.ids, jnp.round(1000 * top.log_probs), top.label_rank, f"{top.label_log_prob:.3f}")
    [0 1] [ -634. -1634.] 2 -1.634

    Source: Blanchard, Higham & Higham (2021).
    """
    call = Call(
        "top_log_probs",
        logits=logits,
        k=k,
        labels=labels,
        axis=axis,
        where=where,
        soft_cap=soft_cap,
        temperature=temperature,
        axis_name=axis_name,
    )
    x = call.floats("logits")
    axes = call.axes(x.shape)
    names = _mesh_axes.of_classes(call, ("logits",))
    scaling = _scaling.of_call(call, x, axes)
    y = None
    if labels is not None:
        y = one_axis(ids_of_live_rows(call.class_ids(x.shape, axes), scaling.where, axes, names), axes)
    x, scaling, _ = _sparse.on_last_axis(x, axes, scaling, None, None)
    classes = x.shape[-1] * shard_count(names)
    y = None if y is None else reported_ids(y, classes, ())
    count = call.size("k", 1, classes)
    return _of_largest(_top.largest((x.ndim - 1, *names), count, x, y, scaling))


def linear_top_log_probs(
    hidden: ArrayLike,
    weight: ArrayLike,
    k: int,
    *,
    labels: ArrayLike | None = None,
    vocab_axis: int = -1,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    block_size: BlockSize = None,
    axis_name: MeshAxes = None,
) -> TopLogProbs:
    """The k largest log-probabilities of every row of a linear head, without an array of all logits.

        linear_top_log_probs(hidden, weight, k) = top_log_probs(hidden @ weight, k)

    These are the scores that a server returns for the tokens of a prompt, and the targets that a teacher
    stores for its student. The forward pass is one matrix product; memory holds one block of rows of the
    logits. Units, corner cases and dtypes are those of `top_log_probs`.

    Derivative: that of `top_log_probs` in the logits, then in hidden, weight and bias. The backward pass
    computes the logits again: three matrix products with the gradients of hidden and weight. Residuals: the
    arguments, and O(k) numbers per row.

    Args:
      hidden: features, shape [..., D].
      weight: shape [D, V]; with ``vocab_axis=0`` an embedding table of shape [V, D], which is not copied.
      k: the number of classes to return, at most V.
      labels: class ids as integers, shape [...].
      vocab_axis: this and the following as in `linear_cross_entropy`.
      bias: shape [V].
      where: True for the classes that count, shape [V] or [..., V].
      soft_cap: cap, a number, or one per row.
      temperature: T, a number, or one per row.
      block_size: the number of rows in a block; None for the one that `linear_plan` returns.
      axis_name: as in `linear_cross_entropy`; each shard sends its k largest.

    Returns:
      `TopLogProbs`; its arrays have the shape [..., k] or [...].

    Raises:
      TypeError, ValueError: as for `linear_row_statistics` and `top_log_probs`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> hidden, table = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[2.0, 0.0], [1.0, 0.0], [0.1, 15.0]])
    >>> top = jsoftmax.linear_top_log_probs(hidden, table, 1, labels=jnp.array([1, 2]), vocab_axis=0)
    >>> print(top.ids[:, 0], top.label_rank, jnp.round(1000 * top.label_log_prob))
    [0 2] [2 1] [-1417.    -0.]

    Source: as for `top_log_probs`.
    """
    call = Call(
        "linear_top_log_probs",
        hidden=hidden,
        weight=weight,
        k=k,
        labels=labels,
        vocab_axis=vocab_axis,
        bias=bias,
        where=where,
        soft_cap=soft_cap,
        temperature=temperature,
        block_size=block_size,
        axis_name=axis_name,
    )
    return _of_largest(_few.largest(call))


def _of_largest(found: Largest) -> TopLogProbs:
    """The result, from the events of the rows: the log-softmax of the events is that of their classes."""
    (u, top), ids, label = found
    log_probs, k = log_softmax(u), ids.shape[-1]
    log_normalizer = jnp.asarray(logsumexp(u, -1)) + top[..., 0]
    if label is None:
        return TopLogProbs(log_probs[..., :k], ids, log_normalizer, None, None)
    positions = lax.broadcasted_iota(jnp.int32, u.shape, u.ndim - 1)
    hit = positions == label.place
    label_log_prob = jnp.sum(jnp.where(hit, log_probs, 0), -1)
    label_log_prob = rules.nan_where(label.place[..., 0] < 0, label_log_prob)
    return TopLogProbs(log_probs[..., :k], ids, log_normalizer, label_log_prob, label.rank[..., 0])
