"""Losses that weigh rows by how sure they are: the focal loss, and the Poly-1 loss."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.logits import _scaling
from jsoftmax.rows import _loss_terms
from jsoftmax.rows._loss_terms import Reduction
from jsoftmax.rows._row_numbers import numbers


@compiled("axis", "ignore_index", "reduction", "axis_name", "row_axis_name")
def focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 2.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    reduction: Reduction = "none",
    axis_name: MeshAxes = None,
    row_axis_name: MeshAxes = None,
) -> Array:
    """The focal loss of class ids, the cross-entropy times (1 − p_y)^γ: a sure row counts little.

        loss = w_y·(1 − p_y)^γ·nll,   nll = −log p_y,   1 − p_y = −expm1(−nll)

    in nats, computed and returned in at least float32. 1 − p_y has the relative accuracy of nll, where 1 − p
    would be 0. For γ = 0 it is the cross-entropy, bit for bit. Corner cases are as in `cross_entropy`: +inf
    for a dead label, NaN for a class id outside [0, V), 0 in a row that does not count.

    Derivative: ``q^γ·(1 + γ·nll/(exp(nll) − 1))`` in nll, with q = 1 − p_y (`rules.focal_slope`), times that
    of nll; q^γ·log q·nll in γ. All are finite, also where p_y rounds to 1; a second derivative that would be
    infinite there, for 0 < γ < 1, is 0, the limit of its product with that of nll. Residuals: the arguments
    and a few numbers per row.

    Target probabilities and label smoothing would need the p of more classes than the label. A z-loss is a
    term of its own, λ·log_normalizer² of `row_statistics`.

    Args:
      logits: any shape.
      labels: class ids as integers, in the shape of `logits` without `axis`.
      gamma: γ from 0 up, a number, or one per row.
      axis: this and the following as in `cross_entropy`.
      where: True for the classes that count.
      ignore_index: rows with this class id have loss 0, and the mean excludes them.
      weights: one number per row.
      class_weights: w, often called α.
      soft_cap: cap, a number, or one per row.
      temperature: T, a number, or one per row.
      reduction: "none", "mean" or "sum".
      axis_name: the mesh axis or axes over which the classes are sharded.
      row_axis_name: the mesh axis or axes over which the rows are sharded.

    Returns:
      The losses, in the shape of `labels`, or their mean or sum.

    Raises:
      TypeError, ValueError: as `cross_entropy`, and for labels that are not class ids.

    >>> import jax.numpy as jnp, jsoftmax
    >>> logits = jnp.array([[2.0, 1.0, 0.1], [0.0, 20.0, 0.0]])
    >>> loss = jsoftmax.focal_loss(logits, jnp.array([0, 1]))
    >>> print(f"{loss[0]:.5f}, {loss[1]:.5e}")
    0.04849, 7.00521e-26

    Source: Lin et al., *Focal loss for dense object detection*, arXiv:1708.02002.
    """
    call = Call(
        "focal_loss",
        logits=logits,
        labels=labels,
        gamma=gamma,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        class_weights=class_weights,
        soft_cap=soft_cap,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        row_axis_name=row_axis_name,
    )
    return _loss_of_nll(call, "gamma", rules.focal)


@compiled("axis", "ignore_index", "reduction", "axis_name", "row_axis_name")
def poly_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 1.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    reduction: Reduction = "none",
    axis_name: MeshAxes = None,
    row_axis_name: MeshAxes = None,
) -> Array:
    """The Poly-1 loss of class ids: the cross-entropy plus ε·(1 − p_y).

        loss = w_y·(nll + ε·(1 − p_y)),   nll = −log p_y,   1 − p_y = −expm1(−nll)

    in nats, computed and returned in at least float32. 1 − p_y has the relative accuracy of nll, so the tiny
    loss of a sure row is (1 + ε)·nll. Corner cases are as in `cross_entropy`.

    Derivative: ``1 + ε·exp(−nll)`` in nll, times that of nll, and 1 − p_y in ε. Residuals: the arguments and
    a few numbers per row.

    Args:
      logits: any shape.
      labels: class ids as integers, in the shape of `logits` without `axis`.
      epsilon: ε, a number, or one per row; from −1 up the loss is never negative.
      axis: this and the following as in `cross_entropy`.
      where: True for the classes that count.
      ignore_index: rows with this class id have loss 0, and the mean excludes them.
      weights: one number per row.
      class_weights: w, one for each class.
      soft_cap: cap, a number, or one per row.
      temperature: T, a number, or one per row.
      reduction: "none", "mean" or "sum".
      axis_name: the mesh axis or axes over which the classes are sharded.
      row_axis_name: the mesh axis or axes over which the rows are sharded.

    Returns, Raises: as in `focal_loss`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> logits = jnp.array([[2.0, 1.0, 0.1], [0.0, 30.0, 0.0]])
    >>> loss = jsoftmax.poly_loss(logits, jnp.array([0, 1]))
    >>> print(f"{loss[0]:.5f}, {loss[1]:.5e}")
    0.75803, 3.74305e-13

    Source: Leng et al., *PolyLoss*, arXiv:2204.12511.
    """
    call = Call(
        "poly_loss",
        logits=logits,
        labels=labels,
        epsilon=epsilon,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        class_weights=class_weights,
        soft_cap=soft_cap,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        row_axis_name=row_axis_name,
    )
    return _loss_of_nll(call, "epsilon", lambda nll, epsilon: nll - epsilon * rules.expm1(-nll))


def _loss_of_nll(call: Call, name: str, of_nll: Callable[[Array, Array], Array]) -> Array:
    """The reduced loss ``of_nll(nll, option)``; `name` is that of the option, one per row."""
    x = call.floats("logits")
    axes = call.axes(x.shape)
    names = _mesh_axes.of_classes(call, ("logits",))
    scaling = _scaling.of_call(call, x, axes)
    row_names = _mesh_axes.of_rows(call, "logits")
    labels = call.class_ids(x.shape, axes)
    loss = _loss_terms.of_call(call, x, axes, names, row_names, scaling.where, labels)
    given = call.per_row(name, x, axes, rules.computing_dtype(x.dtype))
    option = jnp.squeeze(jnp.asarray(_scaling.one_if_unused(given, loss.counted, loss.hidden)), axes)
    arrays = x, loss.labels, scaling, None, loss.counted
    found = numbers(axes, loss.terms.wanted, *arrays, names, hidden=loss.hidden, beside=(loss.terms, option))
    losses = loss.terms.losses(found | {"nll": of_nll(found["nll"], option)})
    return loss.reduced(losses, axes)
