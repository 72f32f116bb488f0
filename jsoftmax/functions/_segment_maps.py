"""The maps of entries to probabilities over segments: softmax and log-softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax import online, rules
from jsoftmax.border import _segment_ids
from jsoftmax.border._call import Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _probabilities, _segment_numbers, _segments
from jsoftmax.rows._segments import Kind, Segments
from jsoftmax.transforms._autodiff import with_rules
from jsoftmax.transforms._platforms import hidden

Tangents = tuple[Array | None, Any, Scaling]  # of x, of the ids, and of the scaling
Asked = tuple[bool, Any, Scaling]


@_segment_ids.counted
@compiled("num_segments", "indices_are_sorted", "axis_name")
@_segment_ids.placed(by_entry=True)
def segment_softmax(
    x: ArrayLike,
    segment_ids: ArrayLike,
    num_segments: int | None = None,
    *,
    temperature: ArrayLike | None = None,
    where: ArrayLike | None = None,
    indices_are_sorted: bool = False,
    axis_name: MeshAxes = None,
) -> Array:
    """The softmax of x/T over the entries of each segment.

        pᵢ = exp(xᵢ/T) / Σⱼ exp(xⱼ/T), over all j in the segment of i

    For the neighbours of the nodes of a graph, packed sequences, and lists of several lengths. It is computed
    as `softmax` is, in at least float32, and has its contract with a segment for a row; a sum over a segment
    is accurate to a few ulp for any number of entries. An entry whose id is outside [0, num_segments) is in
    no segment: its probability and its gradient are 0, whatever it contains.

    Derivative: ``p·(g − Σ p·g)/T``, the sum over the segment (`rules.softmax_product`); 0 for a masked entry.
    Residuals: the output and the ids; for 16-bit `x` or a temperature `x`, the ids, and two numbers per
    segment.

    Args:
      x: logits, entries along the first axis; every position along further axes is on its own.
      segment_ids: the segment of each entry, integers of shape ``x.shape[:1]``, in any order.
      num_segments: the number of segments, S; None for the largest id + 1, if the ids are not traced.
      temperature: T, a number, or one per segment: shape ``(S, *x.shape[1:])``, or one that broadcasts to it.
      where: True for the entries that count; broadcasts to the shape of `x`.
      indices_are_sorted: promises that the ids do not decrease, which is faster. Else, the result is
        undefined.
      axis_name: within `jax.shard_map`, the mesh axis or axes over which the entries are sharded. A segment
        may have entries on any shard; ids and `num_segments` refer to the segments of all shards. `x`,
        `segment_ids` and `where` hold the entries of the shard.

    Returns:
      Probabilities in the shape and the dtype of `x`.

    Raises:
      TypeError, ValueError: for complex `x`, ids that are no integers or do not fit, traced ids without
        `num_segments`, or a mask or a temperature that does not fit.

    >>> import jax.numpy as jnp, jsoftmax
    >>> x, ids = jnp.array([1.0, 2.0, 3.0, 5.0]), jnp.array([0, 1, 0, 0])
    >>> print(jnp.round(100 * jsoftmax.segment_softmax(x, ids)))
    [  2. 100.  12.  87.]

    Source: as for `softmax`.
    """
    call = Call(
        "segment_softmax",
        x=x,
        segment_ids=segment_ids,
        num_segments=num_segments,
        temperature=temperature,
        where=where,
        indices_are_sorted=indices_are_sorted,
        axis_name=axis_name,
    )
    return _mapped(call, _softmax, 0.0)


@_segment_ids.counted
@compiled("num_segments", "indices_are_sorted", "axis_name")
@_segment_ids.placed(by_entry=True)
def segment_log_softmax(
    x: ArrayLike,
    segment_ids: ArrayLike,
    num_segments: int | None = None,
    *,
    temperature: ArrayLike | None = None,
    where: ArrayLike | None = None,
    indices_are_sorted: bool = False,
    axis_name: MeshAxes = None,
) -> Array:
    """The logarithm of `segment_softmax`, accurate even where that rounds to 0 or to 1.

        log pᵢ = (xᵢ − max)/T − log1p(rest), max and rest over the segment of i

    It has the contract of `log_softmax`. An entry that is masked or in no segment gives −inf.

    Derivative: ``(g − p·Σg)/T``, the sum over the segment (`rules.log_softmax_vjp`); 0 for a masked entry.
    Residuals: as in `segment_softmax`, and one more number per segment.

    Args, Returns, Raises: as in `segment_softmax`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> x, ids = jnp.array([50.0, 0.0, 3.0]), jnp.array([0, 0, 1])
    >>> log_p = jsoftmax.segment_log_softmax(x, ids)
    >>> print(f"{log_p[0]:.5e}", log_p[1:])
    -1.92875e-22 [-50.   0.]

    Source: as for `softmax`.
    """
    call = Call(
        "segment_log_softmax",
        x=x,
        segment_ids=segment_ids,
        num_segments=num_segments,
        temperature=temperature,
        where=where,
        indices_are_sorted=indices_are_sorted,
        axis_name=axis_name,
    )
    return _mapped(call, _log_softmax, -jnp.inf)


def _mapped(call: Call, function: Callable[..., Array], of_none: float) -> Array:
    """A map of the entries of a call; `of_none` for all of them if there are no segments."""
    x, segments, scaling, kind = _segments.of_call(call, "x")
    narrow = call.narrow_type("x")
    out = function(kind, x, segments, scaling) if x.size and kind.size else jnp.full_like(x, of_none)
    return out if narrow is None else out.astype(narrow)


class _Saved(NamedTuple):
    """The residuals of a map: p in float32 and float64 without a temperature, else the logits; and states."""

    kept: Array
    segments: Segments
    scaling: Scaling
    state: online.State | None  # None for a softmax that keeps p

    @property
    def is_p(self) -> bool:
        return rules.computing_dtype(self.kept.dtype) == self.kept.dtype and self.scaling.temperature is None

    def restored(self) -> tuple[Array, Array]:
        """The probabilities, and u if a temperature needs it."""
        if self.is_p:
            return self.kept, self.kept
        assert self.state is not None
        z = _segment_numbers.shifted(self.segments, self.kept, self.scaling, self.state.max)
        return _segment_numbers.probabilities(self.segments, z, self.state.rest), z.u

    def applied(self, rule: Callable[..., Array], kind: Kind, v: Array, p: Array) -> Array:
        """The rule of a map; 0 in a segment without a live entry."""
        out = rule(p, v, self.segments.rows(kind))
        if self.state is None:
            return out
        return out * self.segments.looked_up(_probabilities.is_live(self.state.rest))

    def pull(
        self, rule: Callable[..., Array], kind: Kind, asked: Asked, g: Array
    ) -> tuple[Array, None, Scaling]:
        p, u = self.restored()
        dz = self.applied(rule, kind, _scaling.masked(g, self.scaling.where).astype(p.dtype), p)
        dx, dscaling = _segment_numbers.pull(kind, self.segments, self.kept, u, dz, self.scaling, asked[2])
        return dx, None, dscaling

    def push(self, rule: Callable[..., Array], kind: Kind, tangents: Tangents) -> Array:
        p, u = self.restored()
        dz = _segment_numbers.push(self.segments, self.kept, u, tangents, self.scaling)
        out = self.applied(rule, kind, dz, p)
        return _scaling.masked(out, self.scaling.where).astype(self.kept.dtype)


def _softmax_save(kind: Kind, x: Array, segments: Segments, scaling: Scaling) -> tuple[Array, _Saved]:
    z, top = _segment_numbers.measured(kind, segments, x, scaling)
    state = _segment_numbers.total(kind, segments, z, top)
    p = _segment_numbers.probabilities(segments, z, state.rest)
    saved = _Saved(x, segments, scaling, state)
    return p.astype(x.dtype), _Saved(p, segments, scaling, None) if saved.is_p else saved


def _softmax_pull(kind: Kind, asked: Asked, saved: _Saved, g: Array) -> tuple[Array, None, Scaling]:
    return saved.pull(rules.softmax_product, kind, asked, g)


def _softmax_push(kind: Kind, saved: _Saved, tangents: Tangents) -> Array:
    return saved.push(rules.softmax_product, kind, tangents)


_softmax = with_rules(_softmax_save, _softmax_pull, _softmax_push, selective=True, sweeps=False)


def _log_softmax_save(kind: Kind, x: Array, segments: Segments, scaling: Scaling) -> tuple[Array, _Saved]:
    z, top = _segment_numbers.measured(kind, segments, x, scaling)
    state = _segment_numbers.state(kind, segments, z, top)
    out = z.u - segments.spread(hidden(online.log_total(state.rest)))
    saved = _Saved(x, segments, scaling, state)
    if saved.is_p:
        saved = saved._replace(kept=_segment_numbers.probabilities(segments, z, state.rest))
    return out.astype(x.dtype), saved


def _log_softmax_pull(kind: Kind, asked: Asked, saved: _Saved, g: Array) -> tuple[Array, None, Scaling]:
    return saved.pull(rules.log_softmax_vjp, kind, asked, g)


def _log_softmax_push(kind: Kind, saved: _Saved, tangents: Tangents) -> Array:
    return saved.push(rules.log_softmax_jvp, kind, tangents)


_log_softmax = with_rules(
    _log_softmax_save, _log_softmax_pull, _log_softmax_push, selective=True, sweeps=False
)
