"""The sigmoid loss of two batches of features, as in SigLIP."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax.border._call import Call
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.linear import _contrast_arguments, _contrast_sigmoid
from jsoftmax.transforms import _platforms


def sigmoid_contrastive_loss(
    a: ArrayLike,
    b: ArrayLike | None,
    *,
    temperature: ArrayLike,
    bias: ArrayLike = 0.0,
    labels: ArrayLike | None = None,
    positives: Any = None,
    weights: ArrayLike | None = None,
    block_size: int | None = None,
    axis_name: MeshAxes = None,
) -> Array:
    """The sigmoid loss of two batches of features, as in SigLIP, without an array of all logits.

        z = a·bᵀ / T + bias        lossᵢ = −Σⱼ log sigmoid(±zᵢⱼ),  + for the positives of row i, else −

    Each pair of a row of `a` and a row of `b` is classified on its own, as positive or not. The result is the
    mean of lossᵢ, in nats. Which pairs are positive is as in `contrastive_loss`: the i-th row of `a` and the
    i-th of `b`, or pairs given by `labels` or `positives`; with ``b=None``, `a` is compared with itself, and
    no row with itself. A row without positives counts too: its pairs are all negative.

    Products accumulate in at least float32, and the loss is in at least float32. The loss and the gradient of
    a sure pair keep their digits, down to the smallest normal number. NaN or infinity in a row of `a` or `b`
    that counts makes the result NaN.

    Memory holds a few blocks of logits of 16 MiB, at least 512 rows by all columns, and for the gradient one
    array like `b` in at least float32.

    Derivative: dz = w·(sigmoid(z) − t), where t is 1 for the positives, else 0, over the sum of the weights;
    ``dz @ b/T`` in `a`, ``dzᵀ @ a/T`` in `b`, ``Σ dz`` in the bias, ``−Σ dz·(z − bias)/T`` in T. The loss is
    one product, and the loss with its gradients three. The residuals are the gradients.

    Args:
      a: features, shape [N, D], used as given; normalise them before the call.
      b: features, shape [M, D]; None for `a` itself.
      temperature: T, a number. SigLIP learns ``t = log(1/T)``, which begins at log 10.
      bias: a number, added to every logit. SigLIP learns it, from −10 on: most pairs are negative.
      labels: for each row of `a` the index of its row of `b`, integers, shape [N].
      positives: ids of the rows, or a boolean mask [N, M], as in `contrastive_loss`.
      weights: w, one per row of `a`, shape [N]. The mean is Σ w·loss / Σ w. A row of weight 0 is hidden,
        whatever it contains; and so is the i-th row of `b`, unless there are `labels` or M differs from N.
        The gradient of its weight is 0.
      block_size: the number of rows in a block; None for the size above.
      axis_name: within `jax.shard_map`, the mesh axis or axes over which the rows of `a` and `b` are sharded,
        as in `contrastive_loss`.

    Returns:
      The loss, a scalar; 0 if no row counts.

    Raises:
      TypeError, ValueError: for features, labels, positives or weights that do not fit, a temperature of 0,
        a bias of more than one number, both labels and positives, or neither with ``b=None``.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> a = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(f"{jsoftmax.sigmoid_contrastive_loss(a, a, temperature=0.1, bias=-5.0):.6f}")
    0.013431
    >>> def of_scale_and_bias(t, bias):
    ...     return jsoftmax.sigmoid_contrastive_loss(a, a, temperature=jnp.exp(-t), bias=bias)
    >>> in_scale, in_bias = jax.grad(of_scale_and_bias, (0, 1))(jnp.log(20.0), -15.0)
    >>> print(f"{in_scale:.5f} {in_bias:.5f}")
    -0.13386 -0.00669

    Source: Zhai et al., arXiv 2303.15343. `rules.softplus` and `rules.sigmoid` are its terms.
    """
    call = Call(
        "sigmoid_contrastive_loss",
        a=a,
        b=b,
        temperature=temperature,
        bias=bias,
        labels=labels,
        positives=positives,
        weights=weights,
        block_size=block_size,
        axis_name=axis_name,
    )
    given = _contrast_arguments.of_call(call)
    number = call.floats("bias")
    if number.ndim:
        raise call.error(ValueError, f"bias of shape {number.shape}", "give one number")
    if given.is_empty:
        return jnp.zeros((), given.dtype)
    with _platforms.for_logits(given.batch.a.shape[0] * given.batch.columns):
        return _contrast_sigmoid.mean(given, number.astype(given.dtype)[None, None])
