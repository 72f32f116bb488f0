"""Two classes with the logits (z, 0): the log-sigmoid, and the binary cross-entropy of every entry."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._label_checks import reported_ids
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.rows import _binary, _loss_terms
from jsoftmax.rows._binary import Entries
from jsoftmax.rows._loss_terms import Reduction


@compiled()
def log_sigmoid(x: ArrayLike) -> Array:
    """The log-probability of the first of two classes with the logits (x, 0), for every entry.

        log_sigmoid = min(x, 0) − log1p(exp(−|x|))

    A drop-in for ``jax.nn.log_sigmoid``, computed in at least float32 and returned in the dtype of `x`. The
    tiny result of a large `x` keeps its digits, down to the smallest normal number. It is 0 at +inf and −inf
    at −inf; NaN stays NaN.

    Derivative: ``g·sigmoid(−x)`` (`rules.sigmoid`), also at ±inf: 0 and 1. Residual: `x`.

    Args:
      x: logits, any shape.

    Returns:
      Log-probabilities in the shape of `x`.

    Raises:
      TypeError: for complex `x`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> print(f"{jsoftmax.log_sigmoid(1.0):.5f} {jsoftmax.log_softmax(jnp.array([1.0, 0.0]))[0]:.5f}")
    -0.31326 -0.31326
    >>> print(f"{jsoftmax.log_sigmoid(30.0):.5e}")
    -9.35762e-14

    Source: as for `softmax`.
    """
    call = Call("log_sigmoid", x=x)
    x, narrow = call.floats("x"), call.narrow_type("x")
    out = _binary.log_sigmoid(x)
    return out if narrow is None else out.astype(narrow)


@compiled("reduction", "row_axis_name")
def binary_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    reduction: Reduction = "none",
    row_axis_name: MeshAxes = None,
) -> Array:
    """The cross-entropy of two classes with the logits (z, 0), for every entry z of the logits.

        loss = −w·(c·t·log p + (1 − t)·log(1 − p)),   p = sigmoid(z)

    in nats, computed and returned in at least float32. c is `pos_weight` and w are the weights. The
    smoothing α replaces t by (1 − α)·t + α/2. No term is negative, and 1 − p is the sigmoid of −z: the tiny
    loss and gradient of a sure entry keep their digits.

    A logit of ±inf makes one class dead: the loss is 0 if its target is 0, else +inf; the gradient
    ``p − t`` is finite. NaN makes its entry NaN, and so does an integer target other than 0 and 1, which
    `jax.experimental.checkify` reports. Targets outside [0, 1] are used as given. An entry of weight 0 has no
    effect, whatever it contains.

    Derivative: ``w·((1 − t)·p − c·t·(1 − p))`` in the logits (`rules.binary_residual`). Every float argument
    has its own; the target of a dead class that is 0 is a constant. Where the loss is +inf, the derivative in
    the smoothing is +inf or −inf, or 0 if the target is ½; a sum of both is NaN. Residuals: the
    arguments.

    Args:
      logits: z, any shape; every entry is a row of its own.
      targets: t, probabilities of the first class as floats, or 0 and 1 as integers or bools, in the shape of
        `logits`, or one that broadcasts to it.
      pos_weight: c from 0 up, a number, or an array that broadcasts to the shape of `logits`.
      weights: w, a number, or an array that broadcasts to the shape of `logits`.
      label_smoothing: α from 0 to 1, likewise.
      reduction: "none" for one loss per entry, "sum" for their sum, or "mean": the sum divided by the number
        of entries, or by the sum of their weights.
      row_axis_name: within `jax.shard_map`, the mesh axis or axes over whose shards the sum or mean is.

    Returns:
      The losses, in the shape of `logits`, or their mean or sum.

    Raises:
      TypeError, ValueError: for complex logits, an unknown reduction, a number out of range, or a shape that
        does not fit.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> z, t = jnp.array([0.0, 30.0, -jnp.inf]), jnp.array([1, 1, 0])
    >>> loss, pull = jax.vjp(lambda z: jsoftmax.binary_cross_entropy(z, t), z)
    >>> print(loss, *pull(jnp.ones(3)))
    [6.931472e-01 9.357623e-14 0.000000e+00] [-5.000000e-01 -9.357623e-14  0.000000e+00]

    Source: as for `softmax`. `pos_weight` follows torch, the mean `cross_entropy`.
    """
    call = Call(
        "binary_cross_entropy",
        logits=logits,
        targets=targets,
        pos_weight=pos_weight,
        weights=weights,
        label_smoothing=label_smoothing,
        reduction=reduction,
        row_axis_name=row_axis_name,
    )
    z = call.floats("logits")
    dtype, row_names = rules.computing_dtype(z.dtype), _mesh_axes.of_rows(call, "logits")
    loss = _loss_terms.of_rows(call, z, (), (), row_names, None)
    t = call.binary_targets(z.shape)
    if jnp.issubdtype(t.dtype, jnp.integer):
        t = reported_ids(t, 2, ())
    alpha = call.coefficient("label_smoothing", z, (), dtype, None)
    options = alpha, call.per_row("pos_weight", z, (), dtype), call.row_weights(z, (), dtype)
    entries = Entries(z, t, *options)
    return loss.reduced(_binary.losses(entries), ())
