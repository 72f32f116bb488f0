"""What the softmax and the log-softmax keep for their derivatives, and the row restored from it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.backends import _kernels, _sinks
from jsoftmax.backends._request import Request
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _curvature, _probabilities
from jsoftmax.transforms import _modes
from jsoftmax.transforms._platforms import hidden
from jsoftmax.transforms._rule_trees import Static
from jsoftmax.transforms._sharding import on_first_shard

Axes = tuple[int | str, ...]
Tangents = tuple[Array | None, Scaling]


class Row(NamedTuple):
    """The probabilities, the shifted logits u if a temperature needs them, and the p of the sink.

    `live`, if a chain made it, is 1, but 0 in an empty row.
    """

    p: Array
    u: Array
    p_sink: Array | None
    live: Array | None = None


class Applied(NamedTuple):
    """u, a rule applied to a row, and to its sink if that is a cotangent."""

    u: Array
    out: Array
    of_sink: Array | None


class Saved(NamedTuple):
    """The residuals of a map: one array in the shape of its output, and possibly the state of every row.

    `kept` are the logits for 16 bits, which would round p too far; with a temperature, whose derivative needs
    the logits; for sharded classes, where the state saves a sum over shards; for kernels, which make only one
    array; and for classes far apart in memory, whose gradient is computed in blocks. Else they are p.
    """

    kept: Array
    scaling: Scaling
    state: Any  # an `online.State` with the sink; None for a softmax that keeps its probabilities
    p_sink: Any = None  # without a state, the probability of the sink
    holds: Static = Static("x")  # or "p"

    # Without a barrier at each use of the logits, XLA on GPU stores the exponentials that the value shares.

    def restore(self, axes: Axes) -> Row:
        """The row that the derivative needs."""
        p_sink = self.p_sink
        if self.state is not None and self.scaling.sink is not None:
            p_sink = rules.per_row(axes, _sinks.probability, self.state, self._without_mask())
        if self.holds == Static("p"):
            return Row(self.kept, self.kept, p_sink)
        shifted = _scaling.shifted(hidden(self.kept), self.scaling, self.state.max)
        p = _probabilities.of_shifted(shifted, self.state.rest)
        p = _curvature.of_probabilities(axes, p, (self.kept, self.scaling, self.state))
        return Row(p, shifted.u, p_sink)

    def restore_in_chain(self, axes: Axes, *, marks_empty: bool) -> Row:
        """The row, from the logits alone."""

        def chain(saved: Saved) -> Row:
            found = _probabilities.in_chain(saved.kept, saved.scaling, axes, marks_empty=marks_empty)
            return Row(found.p, found.p, found.p_sink, found.live)

        def plain(saved: Saved) -> Row:
            p, _, p_sink, _ = saved.restore(axes)
            return Row(p, p, p_sink, _probabilities.is_live(saved.state.rest) if marks_empty else None)

        if self.scaling.sink is not None:
            row: Row = _kernels.with_plain_tangent(chain, plain)(self)
            return row
        row = chain(self)
        p = _curvature.of_probabilities(axes, row.p, (self.kept, self.scaling, self.state))
        return row._replace(p=p, u=p)

    def live(self, u: Array, g: Array) -> Array:
        """The cotangent g of the output, set to 0 where masked."""
        return _scaling.masked(g, self.scaling.where).astype(u.dtype)

    def pull(self, found: Applied, names: tuple[str, ...]) -> tuple[Array, Scaling]:
        """The cotangents of x and of the scaling, from those of z."""
        dx, back = _scaling.pull(self.kept, found.u, found.out, self.scaling)
        if found.of_sink is None:
            return dx, back
        ds, of_sink = _scaling.pull_per_class(*self._sink(), found.of_sink, self._without_mask())
        if back.temperature is not None and of_sink.temperature is not None:
            dt = on_first_shard(_scaling.sum_to_shape(of_sink.temperature, back.temperature), names)
            back = back._replace(temperature=back.temperature + dt)
        return dx, back._replace(sink=_scaling.sum_to_shape(ds, jnp.asarray(self.scaling.sink)))

    def push(self, u: Array, tangents: Tangents) -> Array:
        """The tangent of z."""
        return _scaling.push(self.kept, u, *tangents, self.scaling)

    def push_sink(self, tangents: Tangents) -> Array:
        """The tangent of z of the sink."""
        _, by = tangents
        return _scaling.push(*self._sink(), by.sink, by, self._without_mask())

    def _sink(self) -> tuple[Array, Array]:
        """The logit of the sink, and its u, which only a temperature needs."""
        sink = jnp.asarray(self.scaling.sink)
        return sink, sink if self.state is None else _sinks.u(self.scaling, self.state.max)

    def _without_mask(self) -> Scaling:
        return self.scaling._replace(where=None)


def keeps_p(x: Array, scaling: Scaling, axes: Axes) -> bool:
    """Whether a map keeps p, and not the logits and the state of every row."""
    own, names = rules.split_axes(axes)
    request = Request("derivative of a map", x, own, bool(names))
    if scaling.temperature is not None or names or _modes.kernels():
        return False
    return request.is_wide and not (request.is_large and request.is_strided)
