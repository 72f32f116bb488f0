"""The derivative rules of the softmax and the log-softmax: of a row, its scaling and its sink."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jsoftmax import online, rules
from jsoftmax.backends import _accelerators, _kernels, _sinks
from jsoftmax.backends._choice import choose, choose_kernel, kernels
from jsoftmax.backends._request import Request
from jsoftmax.backends._row_blocks import both_in_row_blocks
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _curvature, _probabilities
from jsoftmax.transforms import _modes
from jsoftmax.transforms._autodiff import with_rules
from jsoftmax.transforms._platforms import by_platform, hidden
from jsoftmax.transforms._rule_trees import Static
from jsoftmax.transforms._sharding import on_first_shard

Axes = tuple[int | str, ...]
Tangents = tuple[Array | None, Scaling]


class _Row(NamedTuple):
    """The probabilities, the shifted logits u if a temperature needs them, and the p of the sink."""

    p: Array
    u: Array
    p_sink: Array | None


class _Applied(NamedTuple):
    """u, a rule applied to a row, and to its sink if that is a cotangent."""

    u: Array
    out: Array
    of_sink: Array | None


class _Saved(NamedTuple):
    """The residuals of a map: one array in the shape of its output, and possibly the state of every row.

    `kept` are the logits for 16 bits, which would round p too far; with a temperature, whose derivative needs
    the logits; for sharded classes, where the state saves a sum over shards; and for kernels, which make only
    one array. Else they are p.
    """

    kept: Array
    scaling: Scaling
    state: Any  # an `online.State` with the sink; None for a softmax that keeps its probabilities
    p_sink: Any = None  # without a state, the probability of the sink
    holds: Static = Static("x")  # or "p"

    # Without a barrier at each use of the logits, XLA on GPU stores the exponentials that the value shares.

    def restore(self, axes: Axes) -> _Row:
        """The row that the derivative needs."""
        p_sink = self.p_sink
        if self.state is not None and self.scaling.sink is not None:
            p_sink = rules.per_row(axes, _sinks.probability, self.state, self._without_mask())
        if self.holds == Static("p"):
            return _Row(self.kept, self.kept, p_sink)
        shifted = _scaling.shifted(hidden(self.kept), self.scaling, self.state.max)
        p = _probabilities.of_shifted(shifted, self.state.rest)
        p = _curvature.of_probabilities(axes, p, (self.kept, self.scaling, self.state))
        return _Row(p, shifted.u, p_sink)

    def live(self, u: Array, g: Array) -> Array:
        """The cotangent g of the output, set to 0 where masked."""
        return _scaling.masked(g, self.scaling.where).astype(u.dtype)

    def pull(self, found: _Applied, names: tuple[str, ...]) -> tuple[Array, Scaling]:
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


def _keeps_p(dtype: jnp.dtype, scaling: Scaling, names: tuple[str, ...]) -> bool:
    wide = rules.computing_dtype(dtype) == dtype
    return wide and scaling.temperature is None and not names and not _modes.kernels()


def _applied(
    axes: Axes,
    saved: _Saved,
    given: Any,
    rule: Callable[..., Array],
    *,
    forward: bool = False,
    weighted: bool = False,
    marks_empty: bool = False,
) -> _Applied:
    """The rule applied to `given`: a cotangent of the output, or tangents if `forward`."""
    own, names = rules.split_axes(axes)
    in_z = _Saved.push if forward else _Saved.live

    def sink_of(saved: _Saved, p_sink: Array | None, given: Any) -> rules.Sink | None:
        if p_sink is None:
            return None
        return rules.Sink(p_sink, saved.push_sink(given) if forward else None)

    def of_sink(p: Array, p_sink: Array | None, v: Array, sums: rules.RowSums | None = None) -> Array | None:
        """The cotangent of z of the sink."""
        if p_sink is None or forward:
            return None
        return rules.sink_vjp(p_sink, p * v if weighted else v, axes, sums=sums)

    def after_two_sums(saved: _Saved, given: Any) -> _Applied:
        p, u, p_sink = saved.restore(axes)
        v = in_z(saved, u, given)
        out = rule(p, v, axes, sink=sink_of(saved, p_sink, given))
        out = out * _probabilities.is_live(saved.state.rest) if marks_empty else out
        if p_sink is None or forward:
            return _Applied(u, out, None)
        # With the barrier XLA on CPU runs all of the above as one kernel, and this sum as another.
        p, g = hidden((p, given))
        return _Applied(u, out, of_sink(p, p_sink, in_z(saved, u, g)))

    def after_one_pass(saved: _Saved, given: Any) -> _Applied:
        p, u, p_sink = saved.restore(axes)
        v, sink = in_z(saved, u, given), sink_of(saved, p_sink, given)
        sums, leads = None, rules.leading(p)
        if saved.holds == Static("x"):
            row = saved.kept, saved.scaling, saved.state._replace(max=hidden(saved.state.max))
            sums = _probabilities.lead_sums(*row, v, axes, weighted=weighted)
            if sink is not None:
                with_sink = sink.weighted().added_to
                sums = sums._replace(g_all=with_sink(sums.g_all), g_others=with_sink(sums.g_others))
        out = rule(p, v, axes, sums=sums, leads=leads, sink=sink)
        out = jnp.where(saved.state.rest < 0, 0, out) if marks_empty else out
        return _Applied(u, out, of_sink(p, p_sink, v, sums))

    def in_one_kernel(saved: _Saved, given: Any) -> _Applied:
        row = _accelerators.fused_row(hidden(saved.kept), saved.scaling, own)
        v, sink = in_z(saved, row.u, given), sink_of(saved, row.p_sink, given)
        out = rule(row.p, v, axes, leads=row.leads, sink=sink)
        out = jnp.where(row.empty, 0, out) if marks_empty else out
        return _Applied(row.u, out, of_sink(row.p, row.p_sink, v))

    if names:
        # JAX cannot split one sum over shards into a part linear in a tangent and a part that is not.
        return (after_two_sums if forward else after_one_pass)(saved, given)
    forms = {"sums in one pass": after_one_pass, "one kernel": in_one_kernel}
    own_forms = choose(Request("derivative of a map", saved.kept, own)).functions(forms)
    return by_platform("the derivative of a map", saved, given, plain=after_two_sums, **own_forms)


def _softmax_save(axes: Axes, x: Array, scaling: Scaling) -> tuple[Array, _Saved]:
    keeps_p = _keeps_p(x.dtype, scaling, rules.split_axes(axes)[1])
    found = _probabilities.all_probabilities(x, scaling, axes, with_state=not keeps_p)
    if keeps_p:
        return found.p.astype(x.dtype), _Saved(found.p, scaling, None, found.p_sink, Static("p"))
    return found.p.astype(x.dtype), _Saved(x, scaling, found.state)


def _pull_with(
    rule: Callable[..., Array], name: _kernels.Name, **kinds: bool
) -> Callable[[Axes, _Saved, Array], tuple[Array, Scaling]]:
    def pull(axes: Axes, saved: _Saved, g: Array) -> tuple[Array, Scaling]:
        own, names = rules.split_axes(axes)

        def by_rule(saved: _Saved, g: Array) -> tuple[Array, Scaling]:
            return saved.pull(_applied(axes, saved, g, rule, **kinds), names)

        def in_a_kernel(platform: _kernels.Platform, saved: _Saved, g: Array) -> tuple[Array, Scaling]:
            def of_kernel(x: Array, scaling: Scaling, state: online.State, g: Array) -> Array:
                of_row = {"top": state.max.astype(state.rest.dtype), "rest": state.rest, "g": g}
                dx: Array = _kernels.called(name, platform, _kernels.arrays_of(x, scaling, **of_row))
                return dx

            def plain(x: Array, scaling: Scaling, state: online.State, g: Array) -> Array:
                return by_rule(_Saved(x, scaling, state), g)[0]

            dx = _kernels.with_plain_tangent(of_kernel, plain)(saved.kept, saved.scaling, saved.state, g)
            if saved.scaling.temperature is None:
                return dx, Scaling(None)
            # XLA removes this unless the cotangent of the temperature is asked for.
            return dx, by_rule(saved, g)[1]

        kernel = _kernels.Wanted(name, saved.scaling.where) if saved.scaling.sink is None else None
        request = Request("derivative of a map", saved.kept, own, bool(names), kernel=kernel)
        own_forms = choose_kernel(request).functions(kernels(in_a_kernel))
        return by_platform("the derivative of a map", saved, g, plain=by_rule, **own_forms)

    return pull


def _is_bare(axes: Axes, row: Any, other: Any) -> bool:
    scaling: Scaling = row.scaling if isinstance(row, _Saved) else other
    return scaling._replace(sink=None) == Scaling(None)


_in_row_blocks = partial(both_in_row_blocks, is_bare=_is_bare)


def _softmax_push(axes: Axes, saved: _Saved, tangents: Tangents) -> Array:
    found = _applied(axes, saved, tangents, rules.softmax_product, forward=True, weighted=True)
    return found.out.astype(saved.kept.dtype)


_softmax_pull = _pull_with(rules.softmax_product, "softmax backward", weighted=True)
softmax = with_rules(*_in_row_blocks(_softmax_save, _softmax_pull), _softmax_push)


def _log_softmax_save(axes: Axes, x: Array, scaling: Scaling) -> tuple[Array, _Saved]:
    out, state = _probabilities.all_log_probabilities(x, scaling, axes)
    if not _keeps_p(x.dtype, scaling, rules.split_axes(axes)[1]):
        return out.astype(x.dtype), _Saved(x, scaling, state)
    p = _probabilities.of_shifted(_scaling.shifted(x, scaling, state.max), state.rest)
    p = _curvature.of_probabilities(axes, p, (x, scaling, state))
    return out.astype(x.dtype), _Saved(p, scaling, state, holds=Static("p"))


def _log_softmax_push(axes: Axes, saved: _Saved, tangents: Tangents) -> Array:
    rule = rules.log_softmax_jvp
    found = _applied(axes, saved, tangents, rule, forward=True, weighted=True, marks_empty=True)
    return _scaling.masked(found.out, saved.scaling.where).astype(saved.kept.dtype)


_log_softmax_pull = _pull_with(rules.log_softmax_vjp, "log_softmax backward", marks_empty=True)
log_softmax = with_rules(*_in_row_blocks(_log_softmax_save, _log_softmax_pull), _log_softmax_push)
