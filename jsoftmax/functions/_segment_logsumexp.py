"""The log-sum-exp of segments."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax import online
from jsoftmax.border import _segment_ids
from jsoftmax.border._call import Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _segments
from jsoftmax.rows._segment_numbers import Asked, Saved, Tangents, reduced
from jsoftmax.rows._segments import Kind, Segments
from jsoftmax.transforms._autodiff import with_rules


@_segment_ids.counted
@compiled("num_segments", "indices_are_sorted", "axis_name")
@_segment_ids.placed(by_entry=False)
def segment_logsumexp(
    x: ArrayLike,
    segment_ids: ArrayLike,
    num_segments: int | None = None,
    *,
    temperature: ArrayLike | None = None,
    where: ArrayLike | None = None,
    indices_are_sorted: bool = False,
    axis_name: MeshAxes = None,
) -> Array:
    """The log-sum-exp of x/T over the entries of each segment.

        logsumexp = max/T + log1p(rest)

    It has the contract of `logsumexp`. A segment without a live entry gives −inf, with a gradient of 0.

    Derivative: ``g·p/T`` in `x`, and ``−g·Σ p·x/T²`` in T. Residuals: `x`, the ids, and two numbers per
    segment.

    Args, Raises: as in `segment_softmax`.

    Returns:
      One number per segment, shape ``(num_segments, *x.shape[1:])``, in the dtype of `x`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> x, ids = jnp.array([1.0, 2.0, 3.0, 7.0]), jnp.array([0, 0, 0, 2])
    >>> print(jsoftmax.segment_logsumexp(x, ids))
    [3.407606     -inf 7.      ]

    Source: as for `softmax`.
    """
    call = Call(
        "segment_logsumexp",
        x=x,
        segment_ids=segment_ids,
        num_segments=num_segments,
        temperature=temperature,
        where=where,
        indices_are_sorted=indices_are_sorted,
        axis_name=axis_name,
    )
    a, segments, scaling, kind = _segments.of_call(call, "x")
    narrow = call.narrow_type("x")
    if a.size and kind.size:
        out = _logsumexp(kind, a, segments, scaling)
    else:
        out = jnp.full((kind.size, *a.shape[1:]), -jnp.inf, a.dtype)
    return out if narrow is None else out.astype(narrow)


def _logsumexp_save(kind: Kind, x: Array, segments: Segments, scaling: Scaling) -> tuple[Array, Saved]:
    _, saved = reduced(kind, x, segments, scaling, bounded=True)
    top, rest = saved.state
    log = _scaling.maximum(scaling, top) + online.log_total(rest)
    return jnp.where(rest < 0, -jnp.inf, log).astype(x.dtype), saved


def _logsumexp_pull(kind: Kind, asked: Asked, saved: Saved, g: Array) -> tuple[Array, None, Scaling]:
    (p, u), segments = saved.restored(), saved.segments
    dx, _, dscaling = saved.pull(kind, asked, u, segments.spread(g.astype(p.dtype)) * p)
    if (dt := dscaling.temperature) is not None:
        # u is z minus the maximum of z, which has a derivative in T too.
        of_top = g.astype(p.dtype) * _scaling.slope_of_maximum(saved.scaling, saved.state.max)
        dscaling = Scaling(None, dt + _scaling.sum_to_shape(of_top, dt))
    return dx, None, dscaling


def _logsumexp_push(kind: Kind, saved: Saved, tangents: Tangents) -> Array:
    p, u = saved.restored()
    out = saved.segments.sum(kind, p * saved.push(u, tangents))
    if (dt := tangents[2].temperature) is not None:
        out = out + _scaling.slope_of_maximum(saved.scaling, saved.state.max) * dt
    return out.astype(saved.x.dtype)


_logsumexp = with_rules(_logsumexp_save, _logsumexp_pull, _logsumexp_push, selective=True, sweeps=False)
