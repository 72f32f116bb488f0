"""Information from logits: entropy, the log-probability of a class, divergences of two distributions."""

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
from jsoftmax.rows._divergences import jensen_shannon, kullback_leibler
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


@compiled("axis", "axis_name")
def kl_divergence(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> Array:
    """The Kullback-Leibler divergence KL(p‖q) of two softmaxes, in nats.

        KL(p‖q) = Σ p·(log p − log q) = Σ (q − p − p·d),   d = log q − log p

    where p is the softmax of ``p_logits/T``, and q that of ``q_logits/T``, computed and returned in at least
    float32. No term of the second sum is negative, and d comes from differences of the logits. So the
    divergence is never negative, is 0 if p and q are equal, and is as accurate for close distributions as
    for others: within 4 ulp plus ``Σ |q − p|·|d| / KL`` ulp for the rounding of d, about 2 ulp if p and q are
    close or far apart. Terms below the normal numbers are lost, 1e-38 per class. Gradients have the rounding
    errors of the two terms that they subtract.

    A class does not count if it is masked, or −inf in both arguments; with −inf in `p_logits` only, its term
    is 0·log 0 = 0. If a class is −inf in `q_logits` only, KL is +inf. If p or q has no live class in a row,
    KL is 0. +inf or NaN in a live class of either argument makes that row NaN, and no other row.

    Derivative: ``−p·(d + KL)/T`` in `p_logits`, ``(q − p)/T`` in `q_logits` (`rules.kl_gradient_in_p`,
    `rules.kl_gradient_in_q`), and the derivative in T that these give; 0 for a dead class. If KL is +inf, the
    gradient in `p_logits` is 0. Residuals: the arguments and six numbers per row.

    Args:
      p_logits: logits of p, any shape.
      q_logits: logits of q, in the same shape.
      axis: the class axis, of any sign, a tuple of axes, or None for all.
      where: True for the classes that count, in both; broadcasts to the shape of the logits.
      temperature: T of both, a number, or an array with one entry per row.
      axis_name: as in `softmax`; both arguments then hold the classes of the shard.

    Returns:
      The divergences, in the shape of the logits without `axis`.

    Raises:
      TypeError, ValueError: for complex logits, logits of different shapes, no classes, or an axis, mask, or
        temperature that does not fit.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> p, q = jnp.array([2.0, 1.0, 0.1]), jnp.array([1.0, 2.0, 3.0])
    >>> print(f"{jsoftmax.kl_divergence(p, q):.5f}")
    1.12130
    >>> print(f"{jsoftmax.kl_divergence(p, p + jnp.array([1e-6, 0.0, 0.0])):.3e}")
    1.022e-13
    >>> print(jnp.round(1000 * jax.grad(jsoftmax.kl_divergence, 1)(p, q)))
    [-569.    2.  567.]

    Source: Kullback & Leibler, *On information and sufficiency*, Ann. Math. Stat. 22 (1951).
    """
    call = Call(
        "kl_divergence",
        p_logits=p_logits,
        q_logits=q_logits,
        axis=axis,
        where=where,
        temperature=temperature,
        axis_name=axis_name,
    )
    return _rowwise(kullback_leibler, call)


@compiled("axis", "axis_name")
def js_divergence(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> Array:
    """The Jensen-Shannon divergence of two softmaxes, in nats: at most log 2.

        JS = ½·KL(p‖m) + ½·KL(q‖m),   m = (p + q)/2

    It is symmetric in p and q, and finite for all p and q. The rest of its numerical contract is that of
    `kl_divergence`.

    Derivative: ``−p·(log(m/p) + KL(p‖m))/2T`` in `p_logits`, the same with q in `q_logits`
    (`rules.log_to_mean`), and the derivative in T that these give; 0 for a dead class. Residuals: the
    arguments and seven numbers per row.

    Args, Returns, Raises: as in `kl_divergence`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> p, q = jnp.array([2.0, 1.0, 0.1]), jnp.array([1.0, 2.0, 3.0])
    >>> print(f"{jsoftmax.js_divergence(p, q):.5f}, {jsoftmax.js_divergence(100 * p, 100 * q):.5f}")
    0.23988, 0.69315

    Source: Lin, *Divergence measures based on the Shannon entropy*, IEEE Trans. Inf. Theory 37 (1991).
    """
    call = Call(
        "js_divergence",
        p_logits=p_logits,
        q_logits=q_logits,
        axis=axis,
        where=where,
        temperature=temperature,
        axis_name=axis_name,
    )
    return _rowwise(jensen_shannon, call)


def _rowwise(divergence: Callable[..., Array], call: Call) -> Array:
    p, q = call.alike("p_logits", "q_logits")
    axes = call.axes(p.shape)
    names = _mesh_axes.of_classes(call, ("p_logits", "q_logits"))
    dtype = max((rules.computing_dtype(x.dtype) for x in (p, q)), key=lambda dtype: dtype.itemsize)
    # Residuals keep 16-bit logits in 16 bits; only the computation is wider.
    p, q = (x if rules.computing_dtype(x.dtype) == dtype else x.astype(dtype) for x in (p, q))
    divergences = divergence((*axes, *names), p, q, _scaling.of_call(call, p, axes))
    return jnp.squeeze(divergences, axes)
