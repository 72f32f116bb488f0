"""Information from logits: entropy, and the log-probability of a class."""

from __future__ import annotations

from jax import Array
from jax.typing import ArrayLike

from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.logits import _scaling
from jsoftmax.rows._row_numbers import numbers


@compiled("axis", "axis_name")
def entropy(
    logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> Array:
    """The entropy of the softmax of logits/T, in nats.

        H = −Σ p·log p = log1p(rest) + Σ p·(max − z)

    with z = logits/T. It is computed and returned in at least float32. No term is negative, so the tiny
    entropy of a confident row keeps its digits. 0·log 0 is 0; a row without a live class has entropy 0; +inf
    or NaN in a live class makes that row NaN, and no other row.

    Derivative: ``−p·(u − ⟨p, u⟩)/T`` with u = z − max (`rules.entropy_residual`); 0 for a masked class.
    Residuals: the arguments and three numbers per row.

    Args, Raises: as in `softmax`.

    Returns:
      Entropies in the shape of `logits` without `axis`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> print(f"{jsoftmax.entropy(jnp.zeros(8)):.5f} {jsoftmax.entropy(jnp.array([50.0, 0.0])):.4e}")
    2.07944 9.8366e-21

    Source: as for `softmax`.
    """
    call = Call(
        "entropy", logits=logits, axis=axis, where=where, temperature=temperature, axis_name=axis_name
    )
    x = call.floats("logits")
    axes = call.axes(x.shape)
    names = _mesh_axes.of_classes(call, ("logits",))
    scaling = _scaling.of_call(call, x, axes)
    return numbers(axes, frozenset({"entropy"}), x, None, scaling, names=names)["entropy"]


@compiled("axis", "axis_name")
def log_prob(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> Array:
    """The log-probability of the label of each row: log softmax(logits/T) at the class id y.

        log p_y = (logits_y − max)/T − log1p(rest)

    This is the log-softmax of one class per row, at the cost of a logsumexp, computed and returned in at
    least float32. Corner cases are as in `cross_entropy`: −inf for a dead class, but 0 in a row without a
    live class; NaN for a class id outside [0, V).

    Derivative: ``(e_y − p)/T``, which at the label is ``−expm1(log p_y)/T`` (`rules.label_residual`).
    Residuals: the arguments and three numbers per row.

    Args, Raises: as in `cross_entropy`; labels are class ids.

    Returns:
      Log-probabilities in the shape of `labels`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> print(f"{jsoftmax.log_prob(jnp.array([50.0, 0.0]), 0):.5e}")
    -1.92875e-22

    Source: as for `softmax`.
    """
    call = Call(
        "log_prob",
        logits=logits,
        labels=labels,
        axis=axis,
        where=where,
        temperature=temperature,
        axis_name=axis_name,
    )
    x = call.floats("logits")
    axes = call.axes(x.shape)
    y = call.class_ids(x.shape, axes)
    names = _mesh_axes.of_classes(call, ("logits",))
    scaling = _scaling.of_call(call, x, axes)
    return -numbers(axes, frozenset({"nll"}), x, y, scaling, names=names)["nll"]
