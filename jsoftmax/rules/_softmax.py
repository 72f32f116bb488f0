"""The closed forms of the derivatives of the softmax, the log-softmax, the cross-entropy and the entropy."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax.rules._rows import Rows, computing_dtype, per_row, row_sums


def softmax_jacobian(p: ArrayLike, axis: int = -1) -> Array:
    """The Jacobian of the softmax, ``diag(p) − p pᵀ``, of shape ``[..., V, V]``.

    Entry ``[..., i, j]`` is ∂pᵢ/∂zⱼ. The Jacobian is symmetric, and each of its rows sums to 0.

    >>> import jax.numpy as jnp
    >>> from jsoftmax import rules
    >>> rules.softmax_jacobian(jnp.array([0.5, 0.25, 0.25]))
    Array([[ 0.25  , -0.125 , -0.125 ],
           [-0.125 ,  0.1875, -0.0625],
           [-0.125 , -0.0625,  0.1875]], dtype=float32)
    """
    p = jnp.moveaxis(jnp.asarray(p), axis, -1)[..., None, :]
    basis = jnp.eye(p.shape[-1], dtype=p.dtype)
    return softmax_product(p, jnp.broadcast_to(basis, (*p.shape[:-2], *basis.shape)))


class Sink(NamedTuple):
    """One more class per row, which the arrays leave out: its p, and its v; None for 0, as a cotangent is."""

    p: Array
    v: ArrayLike | None = None

    def weighted(self) -> Sink:
        """The sink with p·v in place of v."""
        return self if self.v is None else Sink(self.p, self.p * self.v)

    def added_to(self, total: Array) -> Array:
        """The sum of v over a row with the sink, from that over its other classes."""
        return total if self.v is None else total + self.v


class RowSums(NamedTuple):
    """Sums over every row: of p without the leading class, of all g, and of g without the leading class."""

    p_others: Array
    g_all: Array
    g_others: Array


def softmax_product(
    p: ArrayLike,
    v: ArrayLike,
    axis: Rows = -1,
    *,
    sums: RowSums | None = None,
    leads: Array | None = None,
    sink: Sink | None = None,
) -> Array:
    """The softmax Jacobian applied to `v`, ``p·(v − ⟨p, v⟩)``. J is symmetric, so this is J v and Jᵀ v.

    `sums`, `leads` and `sink` are as in `log_softmax_vjp`, for p and p·v.

    >>> import jax.numpy as jnp
    >>> from jsoftmax import rules
    >>> rules.softmax_product(jnp.array([0.5, 0.25, 0.25]), jnp.array([1.0, 0.0, 0.0]))
    Array([ 0.25 , -0.125, -0.125], dtype=float32)
    """
    p, v, dtype = _operands(p, v)
    # The softmax is exp of the log-softmax: pull p·v back through the log-softmax.
    sink = None if sink is None else sink.weighted()
    return log_softmax_vjp(p, p * v, axis, sums=sums, leads=leads, sink=sink).astype(dtype)


def log_softmax_jvp(
    p: ArrayLike,
    v: ArrayLike,
    axis: Rows = -1,
    *,
    sums: RowSums | None = None,
    leads: Array | None = None,
    sink: Sink | None = None,
) -> Array:
    """The derivative of the log-softmax along `v`, ``v − ⟨p, v⟩``.

    `sums`, `leads` and `sink` are as in `log_softmax_vjp`, for p and p·v.
    """
    p, v, dtype = _operands(p, v)
    if sums is None and leads is None:
        for _ in range(2):
            (mean,) = row_sums(axis, p * v)
            if sink is not None:
                mean = sink.weighted().added_to(mean)
                sink = Sink(sink.p, -mean if sink.v is None else sink.v - mean)
            v = v - mean
        return v.astype(dtype)
    leads = leading(p) if leads is None else leads
    of_sink = None if sink is None else sink.weighted()
    sums = _row_sums(p, p * v, leads, axis, of_sink) if sums is None else sums
    # At the leading class v − ⟨p, v⟩ = v·(1 − p) − Σ_others p·v.
    return jnp.where(leads, v * sums.p_others - sums.g_others, v - sums.g_all).astype(dtype)


def log_softmax_vjp(
    p: ArrayLike,
    g: ArrayLike,
    axis: Rows = -1,
    *,
    sums: RowSums | None = None,
    leads: Array | None = None,
    scale: Array | None = None,
    sink: Sink | None = None,
) -> Array:
    """The cotangent `g` pulled back through the log-softmax, ``g − p·Σg``.

    The exact result sums to 0. The rounded result does not: the two terms cancel where p is near 1. So the
    formula is applied twice: the second time, it subtracts the sum of the rounding errors, which is the error
    of that class.

    This takes two sums, one after the other. With the `RowSums` of p and g as `sums`, or with `leads`, which
    is True where p is above 1/2, the leading class is computed from the others, and one pass is enough.

    `scale`, one number per row, multiplies p, g and the result if p would be below the normal numbers.

    `sink` is a class that p and g leave out; given `sums` contain it.
    """
    p, g, dtype = _operands(p, g)
    if sums is None and leads is None:
        for _ in range(2):
            (total,) = row_sums(axis, g)
            if sink is not None:
                total, sink = per_row(axis, _with_sink, total, sink)
            g = g - p * (total if scale is None else total / scale)
        return g.astype(dtype)
    leads = leading(p) if leads is None else leads
    sums = _row_sums(p, g, leads, axis, sink) if sums is None else sums
    # At the leading class g − p·Σg = g·(1 − p) − p·Σ_others g.
    at_lead = g * sums.p_others - p * sums.g_others
    return jnp.where(leads, at_lead, g - p * sums.g_all).astype(dtype)


def _with_sink(total: Array, sink: Sink) -> tuple[Array, Sink]:
    """The sum of a row with its sink, and the sink with its share of that sum subtracted."""
    total = sink.added_to(total)
    share = sink.p * total
    return total, Sink(sink.p, -share if sink.v is None else sink.v - share)


def sink_vjp(p_sink: ArrayLike, g: ArrayLike, axis: Rows = -1, *, sums: RowSums | None = None) -> Array:
    """The cotangent of a sink of probability p_s, ``−p_s·Σg``, one per row, with length 1 on `axis`.

    `g` is the cotangent of a log-softmax; of a softmax, put p·g in its place: ``−p_s·⟨p, g⟩``. `sums` are as
    in `log_softmax_vjp`.

    >>> import jax.numpy as jnp
    >>> from jsoftmax import rules
    >>> p, g = jnp.array([0.5, 0.25]), jnp.array([1.0, 0.0])
    >>> rules.sink_vjp(0.25, p * g)
    Array([-0.125], dtype=float32)
    """
    (total,) = row_sums(axis, jnp.asarray(g)) if sums is None else (sums.g_all,)
    return per_row(axis, lambda p, total: -p * total, p_sink, total)


def _row_sums(p: Array, g: Array, leads: Array, axis: Rows, sink: Sink | None = None) -> RowSums:
    (p_others,) = row_sums(axis, jnp.where(leads, 0, p))
    sums = RowSums(p_others, *row_sums(axis, g, jnp.where(leads, 0, g)))
    if sink is None:
        return sums
    return RowSums(sums.p_others + sink.p, sink.added_to(sums.g_all), sink.added_to(sums.g_others))


def cross_entropy_residual(
    p: ArrayLike,
    t: ArrayLike,
    axis: Rows = -1,
    *,
    sums: RowSums | None = None,
    scale: Array | None = None,
) -> Array:
    """The gradient in the logits of the cross-entropy with targets `t`, ``(Σt)·p − t``.

    It is correct also if `t` does not sum to 1, and keeps its digits where p is near t = 1. `sums` and
    `scale` are as in `log_softmax_vjp`, for p and t.

    >>> import jax.numpy as jnp
    >>> from jsoftmax import rules
    >>> rules.cross_entropy_residual(jnp.array([0.5, 0.25, 0.25]), jnp.array([1.0, 0.0, 0.0]))
    Array([-0.5 ,  0.25,  0.25], dtype=float32)
    """
    return -log_softmax_vjp(p, t, axis, sums=sums, scale=scale)


def weighted_residual(p: ArrayLike, w: ArrayLike, total: ArrayLike) -> Array:
    """`cross_entropy_residual` with weights `w` of all classes as targets; `total` is their sum."""
    return jnp.asarray(total) * p - jnp.asarray(w)


def entropy_residual(p: ArrayLike, u: ArrayLike, mean: ArrayLike) -> Array:
    """The gradient in the logits of the entropy, ``−p·(u − ⟨p, u⟩)``; 0 where p is 0, for any u.

    u is log p up to a constant per row, and `mean` is ⟨p, u⟩. With u = z − max z, the difference keeps its
    digits if all p are nearly equal; ``log p + H`` would lose all of them.
    """
    p = jnp.asarray(p)
    return p * jnp.where(p == 0, 0, jnp.subtract(mean, u))


def cross_entropy_hvp(p: ArrayLike, v: ArrayLike, axis: Rows = -1) -> Array:
    """The Hessian of the cross-entropy in the logits, for Σt = 1, applied to `v`: `softmax_product`.

    The gradient is p − t, so its derivative is that of the softmax.
    """
    return softmax_product(p, v, axis)


def _operands(p: ArrayLike, v: ArrayLike) -> tuple[Array, Array, jnp.dtype]:
    p, v = jnp.asarray(p), jnp.asarray(v)
    dtype = jnp.promote_types(p.dtype, v.dtype)
    computed = computing_dtype(dtype)
    return p.astype(computed), v.astype(computed), dtype


def leading(p: Array) -> Array:
    """Where p is above 1/2 by more than a rounding of p; at all other classes 1 − p keeps its digits."""
    return p > 0.5625


def finite(u: Array) -> Array:
    """u with −inf replaced by 0: a dead class has dz = 0, and 0·log 0 is 0."""
    return jnp.where(u == -jnp.inf, 0, u)
