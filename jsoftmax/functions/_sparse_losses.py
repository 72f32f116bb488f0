"""The losses of the sparse maps, whose gradient is the difference of the probabilities and the targets."""

from __future__ import annotations

from jax import Array
from jax.typing import ArrayLike

from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.functions._sparse_maps import alpha_of_call
from jsoftmax.logits import _scaling
from jsoftmax.rows import _fenchel_young, _loss_terms
from jsoftmax.rows._loss_terms import Reduction


@compiled("axis", "ignore_index", "reduction", "axis_name", "row_axis_name")
def sparsemax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    reduction: Reduction = "none",
    axis_name: MeshAxes = None,
    row_axis_name: MeshAxes = None,
) -> Array:
    """The loss of `sparsemax`: its gradient is p − t, and it is exactly 0 where the label leads by 1 or more.

        loss = ½·(1 − p_y)² + ½·Σⱼ pⱼ² + [τ − z_y]₊   over j ≠ y,   z = logits/T

    It is the Fenchel-Young loss of `sparsemax`, ``Ω*(z) + Ω(t) − ⟨z, t⟩`` with Ω(p) = ½·(Σp² − 1): convex,
    and never below 0. The formula is that for a class id y. None of its terms is below 0, and 1 − p_y is the
    sum of the other probabilities, so a tiny loss keeps its digits. Targets t that sum to n count as n rows
    with the targets t/n.

    Labels, masks, dead classes, ignored rows, +inf and NaN are as in `cross_entropy`: a label on a dead class
    has the loss +inf, a class id outside [0, V) makes its row NaN.

    Derivative: ``(Σt)·p − t`` in z, which at a label is minus the sum of the other probabilities. Every float
    argument has a derivative. Residuals: the arguments and five numbers per row.

    Args:
      logits: any shape.
      labels: class ids or target probabilities, as in `cross_entropy`.
      axis: as in `cross_entropy`, and so are all the others.
      where: True for the classes that count.
      ignore_index: rows with this class id do not count.
      weights: one number per row.
      temperature: T, a number, or one per row.
      reduction: "none", "mean" or "sum".
      axis_name: the mesh axes of the shards of the classes.
      row_axis_name: the mesh axes of the shards of the rows.

    There is no `label_smoothing` or `class_weights`: give smoothed targets, or the class weights of the
    labels as `weights`. A z-loss has no meaning without a log-normalizer.

    Returns:
      The losses, in the shape of `logits` without `axis`, or their mean or sum.

    Raises:
      TypeError, ValueError: as in `cross_entropy`.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> logits = jnp.array([[0.25, 1.0, 1.5], [0.0, 3.0, 1.0]])
    >>> print(jsoftmax.sparsemax_loss(logits, jnp.array([2, 1])))
    [0.0625 0.    ]
    >>> print(jax.grad(jsoftmax.sparsemax_loss)(logits[0], 2))
    [ 0.    0.25 -0.25]

    Source: Martins & Astudillo, arXiv 1602.02068; Blondel, Martins & Niculae, *Learning with Fenchel-Young
    losses*, arXiv 1901.02324.
    """
    call = Call(
        "sparsemax_loss",
        logits=logits,
        labels=labels,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        row_axis_name=row_axis_name,
    )
    return _loss(call, 2.0)


@compiled("axis", "ignore_index", "reduction", "axis_name", "row_axis_name")
def entmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    alpha: ArrayLike = 1.5,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    reduction: Reduction = "none",
    axis_name: MeshAxes = None,
    row_axis_name: MeshAxes = None,
) -> Array:
    """The loss of `entmax`: its gradient is p − t, and it is 0 where the label leads by 1/(α − 1) or more.

        loss = ∫ x^(α − 2)·(1 − x) dx from p_y to 1 + Σⱼ pⱼ^α/α + [τ/(α − 1) − z_y]₊   over j ≠ y

    It is the Fenchel-Young loss ``Ω*(z) + Ω(t) − ⟨z, t⟩``, where −Ω(p) = (1 − Σp^α)/(α·(α − 1)) is Tsallis'
    entropy. For α → 1 it tends to `cross_entropy` minus the entropy of the targets. α = 2 is
    `sparsemax_loss`, whose numerical contract it has.

    Derivative: ``(Σt)·p − t`` in z, and in α that of the entropy of p minus that of t
    (`rules.entmax_loss_terms`). Residuals: the arguments and six numbers per row.

    Args:
      logits: any shape.
      labels: class ids or target probabilities, as in `cross_entropy`.
      alpha: α, a number above 1, or one per row.
      axis: as in `sparsemax_loss`, and so are all the others.
      where: True for the classes that count.
      ignore_index: rows with this class id do not count.
      weights: one number per row.
      temperature: T, a number, or one per row.
      reduction: "none", "mean" or "sum".
      axis_name: the mesh axes of the shards of the classes.
      row_axis_name: the mesh axes of the shards of the rows.

    Returns, Raises: as in `sparsemax_loss`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> logits = jnp.array([[2.0, 1.0, 0.1], [0.0, 30.0, 0.0]])
    >>> for alpha in (1.000001, 1.5, 2.0):
    ...     print(jnp.round(1000 * jsoftmax.entmax_loss(logits, jnp.array([0, 1]), alpha)))
    [417.   0.]
    [62.  0.]
    [0. 0.]

    Source: Peters, Niculae & Martins, arXiv 1905.05702; Blondel, Martins & Niculae, arXiv 1901.02324.
    """
    call = Call(
        "entmax_loss",
        logits=logits,
        labels=labels,
        alpha=alpha,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        row_axis_name=row_axis_name,
    )
    return _loss(call, None)


def _loss(call: Call, kind: float | None) -> Array:
    x = call.floats("logits")
    axes = call.axes(x.shape)
    names = _mesh_axes.of_classes(call, ("logits",))
    scaling = _scaling.of_call(call, x, axes)
    kind, alpha = (kind, None) if kind else alpha_of_call(call, x, axes)
    loss = _loss_terms.of_call(call, x, axes, names, _mesh_axes.of_rows(call, "logits"), scaling.where)
    losses = _fenchel_young.losses(kind, axes, names, x, loss, scaling, alpha)
    return loss.reduced(loss.terms.weighted(losses), axes)
