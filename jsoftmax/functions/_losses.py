"""The losses: cross-entropy from logits, with class ids or target probabilities."""

from __future__ import annotations

from jax import Array
from jax.typing import ArrayLike

from jsoftmax.backends import _kernels
from jsoftmax.border import _mesh_axes
from jsoftmax.border._backends import Backend
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _fused_loss, _loss_terms, _sparse
from jsoftmax.rows._loss_terms import Reduction
from jsoftmax.rows._row_numbers import numbers
from jsoftmax.rows._sparse import SparseTargets
from jsoftmax.transforms import _modes
from jsoftmax.transforms._modes import forward_mode

NLL = frozenset({"nll"})


@compiled("axis", "ignore_index", "reduction", "axis_name", "row_axis_name", "backend")
def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | SparseTargets,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    reduction: Reduction = "none",
    axis_name: MeshAxes = None,
    row_axis_name: MeshAxes = None,
    backend: Backend = None,
) -> Array:
    """The cross-entropy −Σ t·log softmax(z) of logits with labels, in nats, with every usual option.

        loss = (1 − α)·w_y·(−log p_y) + α/V·Σⱼ wⱼ·(−log pⱼ) + λ·log_normalizer²       class id y
        loss = Σⱼ wⱼ·((1 − α)·tⱼ + α/V)·(−log pⱼ) + λ·log_normalizer²                 target probabilities t

    where z = cap·tanh(logits/cap)/T, ``−log p = max − z + log1p(rest)``, α is the label smoothing over the V
    live classes, w are the class weights, and λ is the coefficient of the z-loss. Row weights
    multiply the loss.

    The loss is computed and returned in at least float32. `rest` is the sum of all exponentials except the
    largest: the loss of a confident prediction keeps its relative accuracy down to the smallest normal
    number. A masked class and a logit of −inf (dead classes) have probability 0, and smoothing ignores them.
    The loss is +inf if the label is a dead class, but 0 if no class of the row is live. A class id outside
    [0, V) makes the value and the gradient of its row NaN, and `jax.experimental.checkify` reports it; so
    does +inf or NaN in a live class. Neither affects other rows, or a row that does not count. A target of 0
    on a dead class adds 0. An option out of range raises if its value is known; in an array, or traced, it
    makes its row NaN. `checkify` also reports the first row with a target below 0, or with a sum above 1.

    A row that `where` masks completely, such as padding, does not count: its loss and gradient are 0 whatever
    its label, and the mean excludes it. A row whose logits are all −inf, without a mask, counts.

    On CPU, the loss of class ids without a derivative or options, with 33 classes or more, takes one pass
    where that is equally accurate. Its last digit may differ from that of the loss with a derivative.

    Derivative: ``(Σt)·p − t`` in z (`rules.cross_entropy_residual`), which at the label is ``expm1(−loss)``;
    0 for a masked class and in a row that does not count. Every float argument has a derivative. Residuals:
    the arguments and a few numbers per row.

    Args:
      logits: any shape.
      labels: class ids as integers, in the shape of `logits` without `axis` (for a tuple of axes, the flat
        index along them in their order); or target probabilities as floats, in the shape of `logits`; or
        those of K classes a row, `SparseTargets`.
      axis: the class axis, of any sign, a tuple of axes, or None for all.
      where: True for the classes that count; broadcasts to the shape of `logits`. To mask rows, write
        ``mask[..., None]``, or ``jnp.expand_dims(mask, axis)``.
      ignore_index: rows with this class id have loss 0, and the mean excludes them.
      weights: one number per row, which multiplies the row's loss. 0 hides a row whatever it contains, NaN
        too. The gradient of a weight is the loss, or 0 if the row is hidden and its loss is not finite.
      class_weights: w, in the shape of the class axes.
      label_smoothing: α from 0 to 1, a number, or one per row.
      z_loss: λ, a number, or one per row.
      soft_cap: cap, a number, or one per row.
      temperature: T, a number, or one per row.
      reduction: "none" for one loss per row, "sum" for their sum, or "mean": the sum divided by the number of
        rows that count, or by the sum of their weights; with class ids and class weights, each multiplied by
        the class weight of the label. The mean over no rows is 0.
      axis_name: within `jax.shard_map`, the mesh axis or axes over which the classes are sharded. `logits`,
        target probabilities, `where` and `class_weights` hold the classes of the shard, the same number on
        each: pad the last, and mask the padding. Class ids refer to the classes of all shards.
      row_axis_name: within `jax.shard_map`, the mesh axis or axes over which the rows are sharded. The sum or
        mean is then over the rows of all shards, also where these count different numbers of rows.
      backend: as in `softmax`. The kernels of "mosaic" are for class ids, without a soft cap and smoothing.
        With "mean" or "sum" and no z-loss, one of them reads the logits once and writes their gradient,
        unless they are in float16.

    Returns:
      The losses, in the shape of `logits` without `axis`, or their mean or sum.

    Raises:
      TypeError, ValueError: for complex logits, labels that are neither integers nor floats, no classes, an
        unknown reduction, `ignore_index` with target probabilities, or a number, shape or axis that does not
        fit; for a name that is not a mesh axis here, or over which the logits do not vary.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> logits = jnp.array([[2.0, 1.0, 0.1], [0.0, 30.0, 0.0]])
    >>> loss = jsoftmax.cross_entropy(logits, jnp.array([0, 1]))
    >>> print(f"{loss[0]:.5f}, {loss[1]:.5e}")
    0.41703, 1.87152e-13
    >>> print(jnp.round(1000 * jax.grad(jsoftmax.cross_entropy)(logits[0], jnp.array([1.0, 0.0, 0.0]))))
    [-341.  242.   99.]

    Distillation from a teacher at temperature t, plus the loss on the labels, where there are any:

    >>> def distillation_loss(student, teacher, labels, t=2.0):
    ...     soft = t**2 * jsoftmax.cross_entropy(student, jsoftmax.softmax(teacher / t), temperature=t)
    ...     return jnp.mean(soft) + jsoftmax.cross_entropy(student, labels, ignore_index=-1, reduction="mean")
    >>> print(f"{distillation_loss(logits, 2 * logits, jnp.array([0, -1])):.4f}")
    2.2263

    Source: Blanchard, Higham & Higham (2021) for the max-shifted log-sum-exp. `ignore_index`,
    `class_weights`, `label_smoothing` and the mean follow torch, the z-loss t5x, the soft cap Gemma.
    """
    call = Call(
        "cross_entropy",
        logits=logits,
        labels=labels,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        weights=weights,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        soft_cap=soft_cap,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        row_axis_name=row_axis_name,
        backend=backend,
    )
    x = call.floats("logits")
    axes = call.axes(x.shape)
    names = _mesh_axes.of_classes(call, ("logits",))
    scaling = _scaling.of_call(call, x, axes)
    row_names = _mesh_axes.of_rows(call, "logits")
    with _kernels.asked_by(call, "loss and gradient", x, axes, scaling.where):
        if isinstance(labels, SparseTargets):
            return _sparse.loss_of_call(call, x, axes, names, row_names, scaling)
        loss = _loss_terms.of_call(call, x, axes, names, row_names, scaling.where)
        if _modes.kernels() and _fused_loss.fits(loss, x):
            return _fused_loss.reduced(loss, x, scaling, axes)
        arrays = x, loss.labels, scaling, loss.class_weights, loss.counted
        found = numbers(axes, loss.terms.wanted, *arrays, names, hidden=loss.hidden, beside=loss.terms)
        return loss.reduced(loss.terms.losses(found), axes)


@compiled("axis")
def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> Array:
    """`cross_entropy` with target probabilities, with the signature of ``optax.softmax_cross_entropy``.

    A drop-in, also in forward mode: this function needs no `forward_mode`. As in optax, the targets of masked
    classes do not count, and `where` may have one entry per row. The loss is in at least float32.

    >>> import jax.numpy as jnp, jsoftmax
    >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
    >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> print(jnp.round(10000 * jsoftmax.softmax_cross_entropy(logits, labels)))
    [ 2761. 29518.]
    """
    call = Call("softmax_cross_entropy", logits=logits, labels=labels, axis=axis, where=where)
    x = call.floats("logits")
    axes = call.axes(x.shape)
    mask = call.mask(x.shape, axes)
    targets = _scaling.masked(call.targets(x.shape), mask)
    with forward_mode():
        return numbers(axes, NLL, x, targets, Scaling(mask))["nll"]


@compiled("axis")
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> Array:
    """`cross_entropy` with class ids, with the signature of optax's function of this name.

    A drop-in for ``optax.softmax_cross_entropy_with_integer_labels``, also in forward mode: this function
    needs no `forward_mode`. As in optax, `where` may have one entry per row. The loss is in at least float32;
    a class id outside [0, V) gives NaN.

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
    x = call.floats("logits")
    axes = call.axes(x.shape)
    with forward_mode():
        return numbers(axes, NLL, x, call.class_ids(x.shape, axes), Scaling(call.mask(x.shape, axes)))["nll"]
