"""The losses: cross-entropy from logits, with class ids or target probabilities."""

from __future__ import annotations

import math
from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax import _rows, rules
from jsoftmax._arguments import Axis, Call
from jsoftmax._autodiff import forward_mode
from jsoftmax._cross_entropy import label_loss, target_loss
from jsoftmax._reports import report_class_ids

Axes = tuple[int, ...]


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    reduction: Literal["none", "mean", "sum"] = "none",
) -> Array:
    """The cross-entropy −Σ t·log softmax(z/T) of logits z with labels, in nats.

        class id y:              (max − z_y)/T + log1p(rest)
        target probabilities t:  Σⱼ tⱼ·(max − zⱼ)/T + (Σⱼ tⱼ)·log1p(rest)

    Computed in at least float32, and returned so. `rest` is the sum of the exponentials but the maximal
    one: the loss of a confident prediction keeps its relative accuracy down to the smallest normal number.
    A masked class, and a logit of −inf, have probability 0. A label on such a class costs +inf, unless
    no class of the row is live: that row's loss is 0. A class id outside [0, V) gives NaN in value and
    gradient, and `jax.experimental.checkify` names it; +inf or NaN in a live class gives NaN too; either in
    that row alone. t = 0 counts for nothing.

    Derivative: ``((Σt)·p − t)/T`` in the logits (`rules.cross_entropy_residual`), which at the label is
    ``expm1(−loss)``; ``−log p`` in t; 0 for a masked class. Kept for it: the arguments and three numbers a
    row.

    Args:
      logits: z, any shape.
      labels: class ids as integers, in the shape of `logits` without `axis` (for a tuple of axes, the flat
        index along them in their order); or target probabilities as floats, in the shape of `logits`.
      axis: the class axis, of any sign, a tuple of axes, or None for all.
      where: True for the classes that count; broadcasts to the shape of `logits`.
      temperature: T, a number, or an array with one entry a row.
      reduction: "none" for a loss a row, their "mean" (0 over no rows), or their "sum".

    Returns:
      The losses, in the shape of `logits` without `axis`, or their mean or sum.

    Raises:
      TypeError, ValueError: for complex logits, labels that are neither integers nor floats, no classes, an
        unknown reduction, or a shape or axis that does not fit.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> logits = jnp.array([[2.0, 1.0, 0.1], [0.0, 30.0, 0.0]])
    >>> loss = jsoftmax.cross_entropy(logits, jnp.array([0, 1]))
    >>> print(f"{loss[0]:.5f}, {loss[1]:.5e}")
    0.41703, 1.87152e-13
    >>> print(jnp.round(1000 * jax.grad(jsoftmax.cross_entropy)(logits[0], jnp.array([1.0, 0.0, 0.0]))))
    [-341.  242.   99.]

    Source: the max-shifted log-sum-exp of Blanchard, Higham & Higham (2021), and p − t.
    """
    call = Call(
        "cross_entropy",
        logits=logits,
        labels=labels,
        axis=axis,
        where=where,
        temperature=temperature,
        reduction=reduction,
    )
    z = call.floats("logits")
    axes = call.axes(z.shape)
    t = call.labels(z.shape, axes)
    mask = call.mask(z.shape)
    scale = call.temperature(z, axes, rules.computing_dtype(z.dtype))
    call.one_of("reduction", ("none", "mean", "sum"))
    losses = _losses(axes, z, t, mask, scale)
    if reduction == "none":
        return losses
    total = jnp.sum(losses)
    return total / max(losses.size, 1) if reduction == "mean" else total


def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> Array:
    """`cross_entropy` with target probabilities, spelled as ``optax.softmax_cross_entropy``.

    A drop-in, in forward mode too. As in optax, the targets of masked classes do not count, and `where` may
    have one entry a row. The loss is at least float32.

    >>> import jax.numpy as jnp, jsoftmax
    >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
    >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> print(jnp.round(10000 * jsoftmax.softmax_cross_entropy(logits, labels)))
    [ 2761. 29518.]
    """
    call = Call("softmax_cross_entropy", logits=logits, labels=labels, axis=axis, where=where)
    z = call.floats("logits")
    axes = call.axes(z.shape)
    mask = call.mask(z.shape, axes)
    with forward_mode():
        return _losses(axes, z, _rows.masked(call.targets(z.shape), mask), mask, None)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> Array:
    """`cross_entropy` with class ids, spelled as in optax.

    A drop-in for ``optax.softmax_cross_entropy_with_integer_labels``, in forward mode too. As in optax,
    `where` may have one entry a row. The loss is at least float32, and a class id outside [0, V) gives NaN.

    >>> import jax.numpy as jnp, jsoftmax
    >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
    >>> labels = jnp.array([0, 1])
    >>> print(jnp.round(10000 * jsoftmax.softmax_cross_entropy_with_integer_labels(logits, labels)))
    [ 2761. 29518.]
    """
    call = Call(
        "softmax_cross_entropy_with_integer_labels",
        logits=logits,
        labels=labels,
        axis=axis,
        where=where,
    )
    z = call.floats("logits")
    axes = call.axes(z.shape)
    with forward_mode():
        return _losses(axes, z, call.class_ids(z.shape, axes), call.mask(z.shape, axes), None)


def _losses(axes: Axes, z: Array, labels: Array, where: Array | None, temperature: Array | None) -> Array:
    """The loss of every row. Several class axes become one, the last, which class ids count along."""
    if len(axes) != 1:
        where = None if where is None else jnp.broadcast_to(where, z.shape)
        z, labels = _one_axis(z, axes), _one_axis(labels, axes)
        where, temperature = (None if a is None else _one_axis(a, axes) for a in (where, temperature))
        axes = (z.ndim - 1,)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        if labels.dtype.itemsize < 4:
            labels = labels.astype(jnp.int32)  # that holds the number of classes too
        report_class_ids(labels, z.shape[axes[0]])
        losses = label_loss(axes, z, labels, where, temperature)
    else:
        losses = target_loss(axes, z, labels, where, temperature)
    return jnp.squeeze(losses, axes)


def _one_axis(array: Array, axes: Axes) -> Array:
    rows = tuple(i for i in range(array.ndim) if i not in axes)
    size = math.prod(array.shape[i] for i in axes)
    return jnp.transpose(array, (*rows, *axes)).reshape(*(array.shape[i] for i in rows), size)
