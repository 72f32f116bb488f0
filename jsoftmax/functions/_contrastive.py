"""The contrastive loss of two batches of features: InfoNCE, CLIP, and several positives per row."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border._call import Call
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.functions._linear import linear_cross_entropy
from jsoftmax.linear import _contrast, _contrast_arguments
from jsoftmax.linear._contrast import Static
from jsoftmax.linear._contrast_arguments import Given
from jsoftmax.rows._loss_terms import counts_of, divisor
from jsoftmax.transforms import _platforms


def contrastive_loss(
    a: ArrayLike,
    b: ArrayLike | None,
    *,
    temperature: ArrayLike,
    labels: ArrayLike | None = None,
    positives: Any = None,
    symmetric: bool = True,
    weights: ArrayLike | None = None,
    block_size: int | None = None,
    axis_name: MeshAxes = None,
) -> Array:
    """The contrastive loss of two batches of features, in both directions, without an array of all logits.

        z = a·bᵀ / T        lossᵢ = −1/n Σ log softmax(zᵢ)ⱼ over the n positives j of row i

    Each row of `a` is classified among all rows of `b`, and with `symmetric` each row of `b` among all rows
    of `a`. The result is the mean of lossᵢ, or half the sum of the means of both directions. A row without
    positives does not count. Which pairs are positive:

    - without `labels` and `positives`, the i-th row of `a` and the i-th of `b`: CLIP, and InfoNCE with
      ``symmetric=False``;
    - with `labels`, row i of `a` and row labelsᵢ of `b`, which may have other rows too;
    - with `positives`, all pairs with equal ids, as in the supervised contrastive loss, or of a mask.

    With ``b=None``, `a` is compared with itself, and no row with itself (SimCLR, SupCon): it takes part
    neither as a positive nor as a negative. Features are used as given; normalise them before the call.

    Products accumulate in at least float32, and the loss is in at least float32. A sure pair keeps its
    digits: its loss is log1p of the other terms, and its gradient expm1(−loss). A common offset of all logits
    costs only the rounding of the products. NaN or infinity in a row of `a` or `b` that counts makes the
    result NaN. `sigmoid_contrastive_loss` classifies each pair on its own instead, as in SigLIP.

    Memory holds a few blocks of logits of 16 MiB, at least 512 rows by all columns, and for the gradient one
    array like `b` in at least float32. Under `jax.vmap` it holds them for each element.

    Derivative: dz = (p − t)·w over the sum of the weights, the sum of both directions, with p along the rows
    and along the columns; ``dz @ b/T`` in `a`, ``dzᵀ @ a/T`` in `b`, ``−Σ dz·z/T`` in T. The loss is one
    product, and the loss with its gradients four: the second sweep computes the logits again, since a
    gradient needs the normalizers of both directions. With ``symmetric=False`` and one positive per row,
    `linear_cross_entropy` computes it by three. The residuals are the arguments and four numbers per row.

    Args:
      a: features, shape [N, D].
      b: features, shape [M, D]; None for `a` itself.
      temperature: T, a number. A learned one has a gradient; CLIP's ``logit_scale`` is 1/T.
      labels: for each row of `a` the index of its row of `b`, integers, shape [N].
      positives: ids of the rows, integers: one array [N] for both `a` and `b`, or a tuple of two arrays, [N]
        and [M]. Or a boolean mask [N, M], True for positives.
      symmetric: whether the rows of `b` have a loss too.
      weights: w, one per row of `a`, shape [N]. The mean is Σ w·loss / Σ w. The i-th row of `b` has the same
        weight, unless there are `labels` or M differs from N; then all rows of `b` have the weight 1. A row
        of weight 0 is hidden, whatever it contains: it is no negative either, as if it were not there, and
        the gradient of its weight is 0.
      block_size: the number of rows in a block; None for the size above.
      axis_name: within `jax.shard_map`, the mesh axis or axes over which the rows of `a` and `b` are sharded.
        Every shard compares its rows of `a` with the rows of `b` of all shards, which it gathers; `labels`
        and the columns of a mask count these. Every shard gets the loss of the whole batch, and the gradient
        of its own rows, which the transpose of the gather sums over all shards. T has the whole gradient.

    Returns:
      The loss, a scalar; 0 if no row counts.

    Raises:
      TypeError, ValueError: for features, labels, positives or weights that do not fit, a temperature of 0,
        both labels and positives, or neither with ``b=None``.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> a = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(f"{jsoftmax.contrastive_loss(a, a, temperature=0.05):.5e}")
    2.06115e-09
    >>> def of_scale(logit_scale):
    ...     return jsoftmax.contrastive_loss(a, a, temperature=1 / logit_scale)
    >>> print(f"{jax.grad(of_scale)(20.0):.5e}")
    -2.06115e-09
    >>> views = jnp.concatenate([a, a])
    >>> other_view = jnp.array([2, 3, 0, 1])
    >>> print(f"{jsoftmax.contrastive_loss(views, None, temperature=0.5, labels=other_view):.5f}")
    0.23954

    Source: van den Oord et al., arXiv 1807.03748; Radford et al., arXiv 2103.00020; several positives: Khosla
    et al., arXiv 2004.11362, "out".
    """
    call = Call(
        "contrastive_loss",
        a=a,
        b=b,
        temperature=temperature,
        labels=labels,
        positives=positives,
        symmetric=symmetric,
        weights=weights,
        block_size=block_size,
        axis_name=axis_name,
    )
    if symmetric not in (True, False):
        raise call.error(TypeError, f"symmetric is {symmetric!r}", "write True or False")
    given = _contrast_arguments.of_call(call)
    if given.is_empty:
        return jnp.zeros((), given.dtype)
    with _platforms.for_logits(given.batch.a.shape[0] * given.batch.columns):
        return _loss(bool(symmetric), given)


def _loss(both: bool, given: Given) -> Array:
    batch, relation, t = given.batch, given.relation, given.temperature
    counted = given.counted()
    weights, ids = counted.weights, relation.ids
    if not both and not batch.is_itself and ids is not None and relation.column_ids is None:
        return linear_cross_entropy(
            counted.a,
            counted.b,
            ids[:, 0],
            vocab_axis=0,
            where=counted.of_b,
            weights=weights,
            temperature=t,
            reduction="mean",
            block_size=given.block_size,
            row_axis_name=batch.names or None,
        )
    found = _contrast.losses(Static(given.head, both, batch.names), *counted.pairs(given), t)
    losses, positives = found.of_rows, found.positives_of_rows
    if (bad := counted.bad_labels(relation)) is not None:
        losses, positives = losses * rules.nan_where(bad, jnp.ones_like(losses)), jnp.where(bad, 1, positives)
    sums = [*_weighted_sums(losses, positives, weights)]
    if both:
        # A shard adds the losses of its own rows of b.
        own = batch.own(found.of_columns[0, :, None]), batch.own(found.positives_of_columns[0, :, None])
        sums += _weighted_sums(*own, weights if relation.is_paired else None)
    sums = [*rules.across(batch.names, *sums)]
    means = [sums[i] / divisor(*sums[i + 1 : i + 3]) for i in range(0, len(sums), 3)]
    return sum(means[1:], means[0]) / len(means)


def _weighted_sums(losses: Array, positives: Array, weights: Array | None) -> tuple[Array, ...]:
    """Σ w·loss, and the arguments of `divisor`, over the rows that have positives."""
    weights = jnp.ones_like(losses) if weights is None else weights
    weights = jnp.where(positives > 0, weights, 0)
    return jnp.sum(weights * (losses / jnp.maximum(positives, 1))), *counts_of(weights)
