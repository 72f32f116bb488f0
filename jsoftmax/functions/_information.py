"""Information from logits: entropy, the log-probability of a class, the divergences of two distributions."""

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

    Computed in at least float32, and returned so. No term is negative: the tiny entropy of a confident row
    keeps its digits. 0·log 0 is 0; a row with no live class has entropy 0; +inf or NaN in a live class makes
    that row NaN, and no other.

    Derivative: ``−p·(u − ⟨p, u⟩)/T`` with u = z − max (`rules.entropy_residual`); 0 for a masked class. Kept
    for it: the arguments and three numbers a row.

    Args, Raises: as for `softmax`.

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
    """The log-probability of each row's class, log softmax(logits/T) at the labels.

        log p_y = (z_y − max)/T − log1p(rest)

    The log-softmax of one class a row, at the cost of a logsumexp. Computed in at least float32, and returned
    so. Corners as for `cross_entropy`: −inf for a dead class, but 0 in a row with no live class; NaN for a
    class id outside [0, V).

    Derivative: ``(e_y − p)/T``, which at the label is ``−expm1(log p_y)`` (`rules.label_residual`). Kept for
    it: the arguments and three numbers a row.

    Args, Raises: as for `cross_entropy`; labels are class ids.

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

    p is the softmax of ``p_logits/T``, q that of ``q_logits/T``. Computed in at least float32, and returned
    so. No term of the second sum is negative, and d comes from differences of the logits: the divergence is
    never negative, 0 where p and q are equal, and as accurate where they are close as anywhere: within 4 ulp,
    and what the rounding of d, which the terms pass on times q − p, adds, ``Σ |q − p|·|d| / KL`` ulp: about 2
    where p and q are close or far apart. Terms below the normal numbers are lost, 1e-38 a class. Gradients
    carry the roundings of the two terms they subtract.

    A class that is masked, or −inf in both, counts for nothing; one that is −inf in `p_logits` alone has
    0·log 0 = 0. Where a class is −inf in `q_logits` alone, KL is +inf. A row where p or q has no live class
    gives 0. +inf or NaN in a live class, of either, makes that row NaN, and no other.

    Derivative: ``−p·(d + KL)/T`` in `p_logits`, ``(q − p)/T`` in `q_logits` (`rules.kl_gradient_in_p`,
    `rules.kl_gradient_in_q`), and in T what follows from them; 0 for a class that is dead. Where KL is +inf
    the gradient in `p_logits` is 0. Kept for it: the arguments and six numbers a row.

    Args:
      p_logits: logits of p, any shape.
      q_logits: logits of q, in the same shape.
      axis: the class axis, of any sign, a tuple of axes, or None for all.
      where: True for the classes that count, in both; broadcasts to the shape of the logits.
      temperature: T of both, a number, or an array with one entry a row.
      axis_name: as in `softmax`; both arguments are then the shard's own classes.

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

    Symmetric in p and q, and finite whatever they are; its numerical contract is otherwise that of
    `kl_divergence`.

    Derivative: ``−p·(log(m/p) + KL(p‖m))/2T`` in `p_logits`, the same of q in `q_logits`
    (`rules.log_to_mean`), and in T what follows from them; 0 for a class that is dead. Kept for it: the
    arguments and seven numbers a row.

    Args, Returns, Raises: as for `kl_divergence`.

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
    # Short logits stay short where they are kept: only what is computed from them is wider.
    p, q = (x if rules.computing_dtype(x.dtype) == dtype else x.astype(dtype) for x in (p, q))
    divergences = divergence((*axes, *names), p, q, _scaling.of_call(call, p, axes))
    return jnp.squeeze(divergences, axes)
