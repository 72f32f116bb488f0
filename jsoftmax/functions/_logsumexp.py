"""The log-sum-exp, without and with weights."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax import online, rules
from jsoftmax.backends._request import UsedFor
from jsoftmax.backends._row_blocks import in_row_blocks
from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _curvature, _masks, _peaks, _probabilities, _reductions
from jsoftmax.transforms._autodiff import with_rules

Axes = tuple[int | str, ...]
_Saved = tuple[Array, Scaling, online.State]  # a, its mask, and the state of every row
_WeightedSaved = tuple[Array, Array, Array | None, Array, Array]  # a, b, where, maximum, total


@compiled("axis", "keepdims", "return_sign", "axis_name")
def logsumexp(
    a: ArrayLike,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | None = None,
    *,
    axis_name: MeshAxes = None,
) -> Array | tuple[Array, Array]:
    """The logarithm of a sum of exponentials, ``log Σ b·exp(a)``.

        logsumexp a = max + log1p(rest)

    A drop-in for ``jax.nn.logsumexp``, except that ``jax.jvp`` and ``jacfwd`` need `forward_mode`. It is
    computed in at least float32 and returned in the dtype of the arguments; integers and Python numbers adopt
    the dtype of a float argument. It is accurate to 4 ulp of the larger of ``|max|`` and ``|logsumexp|``: max
    and log1p(rest) cancel where the result is near 0, as for log-probabilities. An entry does not count if it
    is masked, −inf, or has the weight 0; without any entry that counts, the result is −inf. +inf in a live
    entry gives +inf, with a NaN gradient; NaN gives NaN.

    Derivative: ``g·p`` in `a`, where p is the share ``b·exp(a − logsumexp)`` of the entry in the sum, and
    ``g·exp(a − logsumexp)`` in `b`; 0 where masked. Residuals: the arguments and two numbers per row.

    Args:
      a: exponents, any shape.
      axis: the axis to sum over, of any sign, a tuple of axes, or None for all.
      b: weights, broadcast against `a`; they may be negative.
      keepdims: whether the summed axes stay, with length 1.
      return_sign: whether to return ``(log |sum|, sign of the sum)``. If not, a negative sum gives NaN.
      where: True for the entries that count; broadcasts to the shape of `a`.
      axis_name: within `jax.shard_map`, the mesh axis or axes over whose shards to sum as well.

    Returns:
      The shape of `a` without `axis`; with `return_sign`, a pair of such arrays.

    Raises:
      TypeError, ValueError: for complex arguments, or an axis, weights, or a mask that does not fit.

    >>> import jax.numpy as jnp, jsoftmax
    >>> print(f"{jsoftmax.logsumexp(jnp.array([1.0, 2.0, 3.0])):.5f}")
    3.40761

    Source: as for `softmax`.
    """
    call = Call("logsumexp", a=a, axis=axis, b=b, where=where, axis_name=axis_name)
    a, narrow = call.floats("a"), call.narrow_type("a", "b")
    names = _mesh_axes.of_classes(call, ("a",))
    if b is not None:
        a, b = call.promoted("a", "b")
    axes, where = call.axes(a.shape, may_be_empty=True), call.mask(a.shape)
    if any(a.shape[axis] == 0 for axis in axes):
        sign = jnp.sum(a, axes, keepdims=True)
        out = sign - jnp.inf
    elif b is None:
        out = _logsumexp((*axes, *names), a, Scaling(where))
        sign = jnp.where(jnp.isnan(out), out, (out > -jnp.inf).astype(out.dtype)) if return_sign else out
    else:
        out, sign = _weighted_logsumexp((*axes, *names), a, b, where)
        if not return_sign:
            out = out * rules.nan_where(sign < 0, jnp.ones_like(out))  # the gradient is NaN too
    if narrow is not None:
        out, sign = out.astype(narrow), sign.astype(narrow)
    if not keepdims:
        out, sign = jnp.squeeze(out, axes), jnp.squeeze(sign, axes)
    return (out, sign) if return_sign else out


def _logsumexp_save(
    axes: Axes, a: Array, scaling: Scaling, result_used_for: UsedFor = "exponentials"
) -> tuple[Array, _Saved]:
    state, _ = _reductions.reduce(a, scaling, axes, result_used_for=result_used_for, bounded=True)
    return online.finish(state).astype(a.dtype), (a, scaling, state)


def _logsumexp_value(axes: Axes, a: Array, scaling: Scaling) -> Array:
    return _logsumexp_save(axes, a, scaling, result_used_for="nothing")[0]


def _shares(axes: Axes, saved: _Saved) -> Array:
    a, scaling, state = saved
    p = _probabilities.of_shifted(_scaling.shifted(a, scaling, state.max), state.rest)
    return _curvature.of_probabilities(axes, p, saved)


def _logsumexp_pull(axes: Axes, saved: _Saved, g: Array) -> tuple[Array, None]:
    shares = _shares(axes, saved)
    return (g.astype(shares.dtype) * shares).astype(g.dtype), None


def _logsumexp_push(axes: Axes, saved: _Saved, tangents: tuple[Array, Scaling]) -> Array:
    shares, da = _shares(axes, saved), _scaling.masked(tangents[0], saved[1].where)
    return rules.row_sums(axes, shares * da.astype(shares.dtype))[0].astype(da.dtype)


_in_row_blocks = partial(in_row_blocks, is_bare=lambda axes, a, scaling: _masks.are_bare(a, scaling, axes))
_logsumexp = with_rules(
    _in_row_blocks(_logsumexp_save),
    _logsumexp_pull,
    _logsumexp_push,
    value=_in_row_blocks(_logsumexp_value),
)


def _weighted_save(
    axes: Axes, a: Array, b: Array, where: Array | None
) -> tuple[tuple[Array, Array], _WeightedSaved]:
    counts = (b != 0) if where is None else where & (b != 0)
    peak = _peaks.peak(a, Scaling(counts), axes, bounded=True)
    exponentials, maximal = _exponentials(a, b, where, peak)
    terms = _scaling.masked(b, where).astype(exponentials.dtype) * exponentials
    maximal = (counts & maximal).astype(terms.dtype)
    total, rest, ones = rules.row_sums(axes, terms, terms - maximal, maximal)
    rest = rest + (ones - 1)
    empty = (peak == -jnp.inf) & (total == 0)  # XLA's maximum may also be −inf for a row of NaNs
    total = jnp.where(empty, 1, total)
    near_one = jnp.abs(rest) < 0.5
    log = jnp.where(near_one, rules.log1p(jnp.where(near_one, rest, 0.0)), jnp.log(jnp.abs(total)))
    out = jnp.where(empty, -jnp.inf, peak.astype(log.dtype) + log)
    sign = jnp.where(empty, 0, jnp.sign(total))
    return (out.astype(a.dtype), sign.astype(a.dtype)), (a, b, where, peak, total)


def _exponentials(a: Array, b: Array, where: Array | None, peak: Array) -> tuple[Array, Array]:
    """``exp(a − max)``, where max is the maximum of the entries with nonzero weight, and where it is reached.

    If the exponential of an entry with weight 0 overflows or is NaN, it is 0 here, and so is the derivative
    in its weight.
    """
    u = _scaling.shifted(a, Scaling(where), peak).u
    overflows = (b == 0) & ~(u < jnp.log(jnp.finfo(u.dtype).max))
    return jnp.exp(jnp.where(overflows, -jnp.inf, u)), u == 0


def _weighted_shares(saved: _WeightedSaved) -> tuple[Array, Array]:
    """The derivatives in a, ``b·exp(a)/Σ``, and in b, ``exp(a)/Σ``."""
    a, b, where, peak, total = saved
    shares = _exponentials(a, b, where, peak)[0] / total
    shares = jnp.where((peak == -jnp.inf) & (total == 1), 0, shares)
    return b.astype(shares.dtype) * shares, shares


def _weighted_pull(
    axes: Axes, saved: _WeightedSaved, cotangents: tuple[Array | None, Array | None]
) -> tuple[Array | None, Array | None, None]:
    g, _ = cotangents  # the sign is a step function, with derivative 0
    if g is None:
        return None, None, None
    da, db = (g.astype(shares.dtype) * shares for shares in _weighted_shares(saved))
    return da.astype(g.dtype), db.astype(g.dtype), None


def _weighted_push(
    axes: Axes, saved: _WeightedSaved, tangents: tuple[Array | None, Array | None, None]
) -> tuple[Array, Array]:
    a, _, where, *_ = saved
    parts = zip(_weighted_shares(saved), tangents[:2], strict=True)
    terms = sum(s * _scaling.masked(d, where).astype(s.dtype) for s, d in parts if d is not None)
    out = rules.row_sums(axes, jnp.asarray(terms))[0].astype(a.dtype)
    return out, jnp.zeros_like(out)


_weighted_logsumexp = with_rules(in_row_blocks(_weighted_save), _weighted_pull, _weighted_push)
