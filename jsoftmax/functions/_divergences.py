"""The divergences of two distributions, from their logits."""

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
from jsoftmax.logits._scaling import one_if_unused
from jsoftmax.rows import _loss_terms
from jsoftmax.rows._divergences import jensen_shannon, kullback_leibler
from jsoftmax.rows._loss_terms import Reduction


@compiled("axis", "reduction", "axis_name", "row_axis_name")
def kl_divergence(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    reduction: Reduction = "none",
    axis_name: MeshAxes = None,
    row_axis_name: MeshAxes = None,
) -> Array:
    """The Kullback-Leibler divergence KL(p‖q) of two softmaxes, in nats.

        KL(p‖q) = Σ p·(log p − log q) = Σ (q − p − p·d),   d = log q − log p

    where p is the softmax of ``p_logits/T``, and q that of ``q_logits/T``, computed and returned in at least
    float32. No term of the second sum is negative, and d comes from differences of the logits. So the
    divergence is never negative, is 0 if p and q are equal, and is as accurate for close distributions as
    for others: within 4 ulp plus ``Σ |q − p|·|d| / KL`` ulp for the rounding of d, about 2 ulp if p and q are
    close or far apart, plus half of the mean |z − max| of its terms, for the exponentials. Terms below the
    normal numbers are lost, 1e-38 per class. Gradients have the rounding errors of p and q, as in `softmax`,
    and of the two terms that they subtract.

    A class does not count if it is masked, or −inf in both arguments; with −inf in `p_logits` only, its term
    is 0·log 0 = 0. If a class is −inf in `q_logits` only, KL is +inf. If p or q has no live class in a row,
    KL is 0. +inf or NaN in a live class of either argument makes that row NaN, and no other row. For huge
    logits, d may overflow where p·d does not: KL is +inf only if it exceeds the largest float.

    Derivative: ``−p·(d + KL)/T`` in `p_logits`, ``(q − p)/T`` in `q_logits` (`rules.kl_gradient_in_p`,
    `rules.kl_gradient_in_q`), and the derivative in T that these give; 0 for a dead class. If KL is +inf, the
    gradient in `p_logits` is 0. Residuals: the arguments and six numbers per row.

    Args:
      p_logits: logits of p, any shape.
      q_logits: logits of q, in the same shape.
      axis: the class axis, of any sign, a tuple of axes, or None for all.
      where: True for the classes that count, in both; broadcasts to the shape of the logits.
      weights: one number per row, as in `cross_entropy`: 0 hides a row.
      temperature: T of both, a number, or an array with one entry per row.
      reduction: "none", "mean" or "sum", as in `cross_entropy`; a row that `where` masks completely does not
        count.
      axis_name: as in `softmax`; both arguments then hold the classes of the shard.
      row_axis_name: as in `cross_entropy`.

    Returns:
      The divergences, in the shape of the logits without `axis`, or their mean or sum.

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
        weights=weights,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        row_axis_name=row_axis_name,
    )
    return _rowwise(kullback_leibler, call)


@compiled("axis", "reduction", "axis_name", "row_axis_name")
def js_divergence(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    beta: ArrayLike = 0.5,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    reduction: Reduction = "none",
    axis_name: MeshAxes = None,
    row_axis_name: MeshAxes = None,
) -> Array:
    """The generalised Jensen-Shannon divergence of two softmaxes with weight β, in nats.

        JS = β·KL(p‖m) + (1 − β)·KL(q‖m),   m = β·p + (1 − β)·q

    With β = ½ it is symmetric in p and q, and at most log 2. It is always finite; apart from that, its
    numerical contract is that of `kl_divergence`. For β → 0, JS/β tends to KL(p‖q); for β → 1, JS/(1 − β)
    tends to KL(q‖p). With a teacher p and a student q it is the loss of GKD, and β is the `beta` of TRL.

    Derivative: ``−β·p·(log(m/p) + KL(p‖m))/T`` in `p_logits`, the same with q and 1 − β in
    `q_logits` (`rules.log_to_mean`, `rules.log_to_mixture`), ``KL(p‖m) − KL(q‖m)`` in β, and the derivative
    in T that these give; 0 for a dead class. Residuals: the arguments and seven numbers per row.

    Args, Returns, Raises: as for `kl_divergence`; `beta` is a number between 0 and 1, or one per row.

    >>> import jax.numpy as jnp, jsoftmax
    >>> p, q = jnp.array([2.0, 1.0, 0.1]), jnp.array([1.0, 2.0, 3.0])
    >>> print(f"{jsoftmax.js_divergence(p, q):.5f}, {jsoftmax.js_divergence(100 * p, 100 * q):.5f}")
    0.23988, 0.69315

    Near 0 and 1, β gives the two Kullback-Leibler divergences, here 1.1213 and 1.0932:

    >>> for beta in (0.0001, 0.9999):
    ...     print(f"{jsoftmax.js_divergence(p, q, beta=beta) / min(beta, 1 - beta):.3f}")
    1.121
    1.093

    Source: Lin, *Divergence measures based on the Shannon entropy*, IEEE Trans. Inf. Theory 37 (1991);
    Agarwal et al., *On-policy distillation of language models* (GKD), arXiv 2306.13649.
    """
    call = Call(
        "js_divergence",
        p_logits=p_logits,
        q_logits=q_logits,
        beta=beta,
        axis=axis,
        where=where,
        weights=weights,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        row_axis_name=row_axis_name,
    )
    return _rowwise(jensen_shannon, call)


def _rowwise(divergence: Callable[..., Array], call: Call) -> Array:
    p, q = call.with_same_shape("p_logits", "q_logits")
    axes = call.axes(p.shape)
    names = _mesh_axes.of_classes(call, ("p_logits", "q_logits"))
    dtype = max((rules.computing_dtype(x.dtype) for x in (p, q)), key=lambda dtype: dtype.itemsize)
    # Residuals keep 16-bit logits in 16 bits; only the computation is wider.
    p, q = (x if rules.computing_dtype(x.dtype) == dtype else x.astype(dtype) for x in (p, q))
    scaling = _scaling.of_call(call, p, axes)
    loss = _loss_terms.of_rows(call, p, axes, names, _mesh_axes.of_rows(call, "p_logits"), scaling.where)
    scaling = scaling._replace(temperature=one_if_unused(scaling.temperature, None, loss.hidden))
    arrays = [p, q, scaling, loss.hidden, one_if_unused(call.share(p, axes), None, loss.hidden)]
    divergences = divergence((*axes, *names), *arrays)
    return loss.reduced(loss.terms.weighted(jnp.squeeze(divergences, axes)), axes)
