"""The numbers of segments: maxima, states and probabilities, and what the rules of all functions share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends._choice import choose
from jsoftmax.backends._request import Request
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling, Shifted
from jsoftmax.rows import _probabilities
from jsoftmax.rows._segments import Kind, Segments
from jsoftmax.transforms._platforms import by_platform

Tangents = tuple[Any, ...]  # of x, of the segments, of the scaling, and of what follows
Asked = tuple[Any, ...]  # which of these are differentiated


def top_of(kind: Kind, segments: Segments, x: Array, scaling: Scaling, *, bounded: bool = False) -> Array:
    """The maximum of each segment in the order of z; −inf without a live entry, `bounded` as in `_peaks`."""
    ordered = lax.stop_gradient(_scaling.ordered_live(x, segments.scaling(scaling)))
    top = segments.maximum(kind, ordered.astype(rules.computing_dtype(x.dtype)), -jnp.inf)
    return rules.below_infinity(top) if bounded else top


def shifted(segments: Segments, x: Array, scaling: Scaling, top: Array) -> Shifted:
    """The entries minus the maximum of their segment, divided by T."""
    return _scaling.shifted(x, segments.scaling(scaling), segments.looked_up(top), at_top=True)


def measured(
    kind: Kind, segments: Segments, x: Array, scaling: Scaling, *, bounded: bool = False
) -> tuple[Shifted, Array]:
    """The shifted entries, and the maximum of each segment.

    XLA on CPU computes an exponential one number at a time if its argument is a select by one condition for
    several numbers. So entries of several numbers are −inf where masked before they are shifted, on CPU in a
    conditional, which XLA does not fuse with the exponential.
    """
    if x.ndim > 1:

        def unless_all_are_live(x: Array, where: Array) -> Array:
            masked: Array = lax.cond(jnp.all(where), lambda x, _: x, _live, x, where)
            return masked

        forms = choose(Request("masked entries", x, (0,))).functions({"conditional": unless_all_are_live})
        x = by_platform("masked entries", x, scaling.where, plain=_live, **forms)
        scaling = scaling._replace(where=None)
    top = top_of(kind, segments, x, scaling, bounded=bounded)
    return shifted(segments, x, scaling, top), top


def _live(x: Array, where: Array | None) -> Array:
    return _scaling.live(x, Scaling(where))


def state(kind: Kind, segments: Segments, z: Shifted, top: Array) -> online.State:
    """The state of every segment; its rest keeps its digits if one entry leads."""
    # An exponential below the normal numbers is computed as exp(u/2)², with the scale between the factors.
    deep = z.u < -64
    root = jnp.exp(jnp.where(deep, z.u / 2, z.u))
    leads = z.u == 0
    terms = _scaling.with_slip(jnp.where(deep, rules.scaled(root), root * rules.SCALE), z)
    rest = segments.sum(kind, terms - jnp.where(leads, rules.SCALE, 0)) / rules.SCALE
    ones = (
        jnp.zeros(rest.shape, jnp.int32)
        .at[segments.ids]
        .add(leads.astype(jnp.int32), mode="promise_in_bounds", indices_are_sorted=kind.is_sorted)
    )
    (ones,) = rules.across(kind.names, ones)
    return online.State(top, rest + (ones - 1).astype(rest.dtype))


def total(kind: Kind, segments: Segments, z: Shifted, top: Array) -> online.State:
    """As `state`, in one sum less: enough for probabilities, whose rest need not keep its digits."""
    return online.State(top, segments.sum(kind, _scaling.exponentials(z)) - 1)


def probabilities(segments: Segments, z: Shifted, rest: Array) -> Array:
    """``exp(u)/(1 + rest)``; 0 in a segment without a live entry."""
    return _probabilities.of_shifted(z, segments.spread(rest))


def pull(
    kind: Kind, segments: Segments, x: Array, u: Array, dz: Array, scaling: Scaling, asked: Scaling
) -> tuple[Array, Scaling]:
    """The cotangents of x and of the temperature, if `asked` for, from that of z, which sums to 0."""
    dx, of_entries = _scaling.pull_per_class(x, u, dz, segments.scaling(scaling))
    dt = of_entries.temperature
    if dt is None or scaling.temperature is None or not asked.temperature:
        return dx, Scaling(None)
    return dx, Scaling(None, _scaling.sum_to_shape(segments.sum(kind, dt), scaling.temperature))


def push(segments: Segments, x: Array, u: Array, tangents: Any, scaling: Scaling) -> Array:
    """The tangent of z, up to a constant per segment, from those of x and of the scaling."""
    dx, _, of_scaling, *_ = tangents
    if of_scaling.temperature is not None:
        of_scaling = segments.scaling(of_scaling)
    return _scaling.push(x, u, dx, of_scaling, segments.scaling(scaling))


class Saved(NamedTuple):
    """The logits of the entries, and the state of every segment."""

    x: Array
    segments: Segments
    scaling: Scaling
    state: online.State

    def restored(self) -> tuple[Array, Array]:
        """The probabilities and u."""
        z = shifted(self.segments, self.x, self.scaling, self.state.max)
        return probabilities(self.segments, z, self.state.rest), z.u

    def without(self, hidden: Array | None, numbers: Array) -> tuple[Array, Saved]:
        """The numbers of segments, and the residuals, as if hidden segments with NaN were not there."""
        if hidden is None:
            return numbers, self
        has_numbers = jnp.isfinite(numbers) | ~hidden
        scaling, _ = _scaling.mask_rows(self.scaling, self.segments.looked_up(has_numbers))
        none = online.empty(numbers.shape, numbers.dtype)
        state = online.State(*(jnp.where(has_numbers, a, b) for a, b in zip(self.state, none, strict=True)))
        return jnp.where(has_numbers, numbers, 0), self._replace(scaling=scaling, state=state)

    def pull(self, kind: Kind, asked: Asked, u: Array, dz: Array) -> tuple[Array, None, Scaling]:
        """The cotangents of the first arguments, from that of z."""
        dx, dscaling = pull(kind, self.segments, self.x, u, dz, self.scaling, asked[2])
        return dx, None, dscaling

    def push(self, u: Array, tangents: Tangents) -> Array:
        """The tangent of z, up to a constant per segment."""
        return push(self.segments, self.x, u, tangents, self.scaling)


def reduced(
    kind: Kind, x: Array, segments: Segments, scaling: Scaling, *, bounded: bool = False
) -> tuple[Array, Saved]:
    """u, and the residuals."""
    z, top = measured(kind, segments, x, scaling, bounded=bounded)
    return z.u, Saved(x, segments, scaling, state(kind, segments, z, top))
