"""The log-odds of a class: its log-probability minus that of all other classes together."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._label_checks import are_classes, reported_ids
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.logits import _scaling
from jsoftmax.rows import _events, _sparse
from jsoftmax.rows._loss_terms import ids_of_live_rows
from jsoftmax.rows._row_numbers import one_axis


@compiled("axis", "axis_name")
def log_odds(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> Array:
    """The log-odds of the label of each row against all other classes, log(p_y/(1 − p_y)).

        log_odds = z_y − logsumexp of the other z,   z = logits/T

    in nats, computed and returned in at least float32. The sum leaves out the label, so nothing is taken from
    1: the log-odds of a class that leads by 1000 are accurate, where its probability is 1 in any float type.
    Where both terms are near each other, the error is that of the larger one.

    +inf if the label is the only live class, −inf if it is dead, and 0 in a row without a live class; NaN
    for a class id outside [0, V), which `jax.experimental.checkify` reports, and for +inf or NaN in a live
    class.

    Derivative: 1/T at the label and −p_j/(1 − p_y)/T at the others, the softmax without the label; 0 for a
    masked class, and if the label is the only live class. Residuals: the arguments and a few numbers per row.

    Args, Raises: as in `log_prob`.

    Returns:
      Log-odds in the shape of `labels`.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> odds, gradient = jax.value_and_grad(jsoftmax.log_odds)(jnp.array([100.0, 0.0, 0.0]), 0)
    >>> print(f"{odds:.4f}", gradient)
    99.3069 [ 1.  -0.5 -0.5]

    The odds of a sequence, from the mean log-probability of its tokens, for ORPO: the loss of the chosen
    answer, and that of its odds against those of the rejected one.

    >>> def mean_log_prob(logits, tokens):
    ...     return jnp.mean(jsoftmax.log_prob(logits, tokens), -1)
    >>> def orpo_loss(chosen, rejected, weight=0.1):  # pairs of logits [..., T, V] and tokens [..., T]
    ...     chosen, rejected = mean_log_prob(*chosen), mean_log_prob(*rejected)
    ...     odds, others = (log_p - jsoftmax.rules.log1mexp(-log_p) for log_p in (chosen, rejected))
    ...     return jnp.mean(-chosen - weight * jsoftmax.log_sigmoid(odds - others))
    >>> logits = jnp.array([[2.0, 1.0, 0.1], [0.0, 3.0, 0.0]])
    >>> chosen, rejected = (logits, jnp.array([0, 1])), (logits, jnp.array([1, 0]))
    >>> print(f"{orpo_loss(chosen, rejected):.5f}")
    0.25933

    SimPO compares the mean log-probabilities themselves, with a margin:

    >>> def simpo_loss(chosen, rejected, scale=2.0, margin=0.5):
    ...     gap = mean_log_prob(*chosen) - mean_log_prob(*rejected)
    ...     return -jnp.mean(jsoftmax.log_sigmoid(scale * gap - margin))
    >>> print(f"{simpo_loss(chosen, rejected):.5f}")
    0.02975

    Source: Hong et al., *ORPO*, arXiv:2403.07691; Meng et al., *SimPO*, arXiv:2405.14734.
    """
    call = Call(
        "log_odds",
        logits=logits,
        labels=labels,
        axis=axis,
        where=where,
        temperature=temperature,
        axis_name=axis_name,
    )
    x = call.floats("logits")
    axes = call.axes(x.shape)
    names = _mesh_axes.of_classes(call, ("logits",))
    scaling = _scaling.of_call(call, x, axes)
    y = one_axis(ids_of_live_rows(call.class_ids(x.shape, axes), scaling.where, axes, names), axes)
    x, scaling, _ = _sparse.on_last_axis(x, axes, scaling, None, None)
    known = are_classes(y, x.shape[-1], names)
    ids = reported_ids(y, x.shape[-1], names)
    u = _events.events((x.ndim - 1, *names), x, ids, scaling, None).u
    of_label, of_others = u[..., 0], u[..., 1]
    alone = of_others == -jnp.inf
    only = jnp.where(of_label == -jnp.inf, 0.0, jnp.inf).astype(u.dtype)  # 0 in a row without a live class
    only = rules.nan_where(jnp.isnan(of_label), only)
    odds = jnp.where(alone, only, of_label - jnp.where(alone, 0, of_others))
    return odds * rules.nan_where(~known[..., 0], jnp.ones_like(odds))
