"""What a row of logits and its label come to: the statistics that training and evaluation code wants."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.logits import _scaling
from jsoftmax.rows import _loss_terms, _peaks
from jsoftmax.rows._row_numbers import RowStatistics, numbers, one_axis


@compiled("axis", "ignore_index", "axis_name")
def row_statistics(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> RowStatistics:
    """The log-normalizer, negative log-likelihood, entropy and prediction of every row, in one pass.

        log_normalizer = max + log1p(rest)          nll = −log p_y, or −Σ t·log p
        entropy = −Σ p·log p                        prediction = argmax z

    with z = cap·tanh(logits/cap)/T. Computed in at least float32, and returned so; the prediction is int32,
    the first of the largest. What is not used costs nothing in a compiled program. Corners as for
    `cross_entropy`; a row with no live class has log_normalizer −inf and the others 0. A row whose class id
    is `ignore_index` has 0 for each of them, whatever it holds. A mean leaves these out, and the rows that
    `where` masks whole: ``jnp.mean(nll, where=jnp.any(where, axis))``.

    Derivative: ``a·p + b·((Σt)·p − t) − c·p·(u − ⟨p, u⟩)`` in z, for cotangents a, b, c, and u = z − max:
    one pass back for all. The prediction has none. Kept for it: the arguments and a few numbers a row.

    Args, Raises: as for `cross_entropy`.

    Returns:
      `RowStatistics`, each in the shape of `logits` without `axis`.

    A policy-gradient loss (PPO) with an entropy bonus, the log-probabilities and entropies from one pass:

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> def ppo_loss(logits, actions, old_log_prob, advantage, clip=0.2, bonus=0.01):
    ...     policy = jsoftmax.row_statistics(logits, actions)
    ...     ratio = jnp.exp(-policy.nll - old_log_prob)
    ...     gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    ...     return -jnp.mean(gain + bonus * policy.entropy)
    >>> logits, actions = jnp.array([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]]), jnp.array([0, 2])
    >>> old, advantage = jnp.array([-0.5, -1.0]), jnp.array([1.0, -1.0])
    >>> print(f"{ppo_loss(logits, actions, old, advantage):.4f}")
    -0.0999

    Loss and accuracy in one pass:

    >>> found = jsoftmax.row_statistics(logits, actions)
    >>> print(f"{found.nll.mean():.4f} {(found.prediction == actions).mean():.1f}")
    0.7578 0.5

    Source: Blanchard, Higham & Higham (2021). −p·(u − ⟨p, u⟩) is the softmax Jacobian applied to −log p;
    u = z − max is log p up to a number that all classes share, which the Jacobian takes to 0.
    """
    call = Call(
        "row_statistics",
        logits=logits,
        labels=labels,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        soft_cap=soft_cap,
        temperature=temperature,
        axis_name=axis_name,
    )
    x = call.floats("logits")
    axes = call.axes(x.shape)
    names = _mesh_axes.of_classes(call, ("logits",))
    t, counted = _loss_terms.labels_of_call(call, x.shape, axes)
    scaling = _scaling.of_call(call, x, axes)
    wanted = frozenset({"log_normalizer", "nll", "entropy"})
    found = numbers(axes, wanted, x, t, scaling, counted=counted, names=names)
    ordered = _scaling.ordered_live(x, scaling)
    if len(axes) != 1:
        ordered = one_axis(ordered, axes)
        counted = None if counted is None else one_axis(counted, axes)
        axes = (-1,)
    prediction = _peaks.prediction(ordered, (*axes, *names))
    if counted is not None:
        prediction = jnp.where(counted, prediction, 0)
    return RowStatistics(**found, prediction=jnp.squeeze(prediction, axes))
