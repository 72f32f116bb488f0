"""The derivative rules of the softmax and the log-softmax: of a row, its scaling and its sink."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from jsoftmax import online, rules
from jsoftmax.backends import _accelerators, _kernels
from jsoftmax.backends._blocks import sums_apart
from jsoftmax.backends._choice import choose, choose_kernel, kernels
from jsoftmax.backends._request import Request, UsedFor
from jsoftmax.backends._row_blocks import in_row_blocks
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _curvature, _leading, _masks, _probabilities
from jsoftmax.rows._map_residuals import Applied, Saved, Tangents, keeps_p
from jsoftmax.transforms._autodiff import with_rules
from jsoftmax.transforms._platforms import by_platform, hidden
from jsoftmax.transforms._rule_trees import Static

Axes = tuple[int | str, ...]


def _applied(
    axes: Axes,
    saved: Saved,
    given: Any,
    rule: Callable[..., Array],
    *,
    forward: bool = False,
    weighted: bool = False,
    marks_empty: bool = False,
) -> Applied:
    """The rule applied to `given`: a cotangent of the output, or tangents if `forward`."""
    own, names = rules.split_axes(axes)
    in_z = Saved.push if forward else Saved.live

    def sink_of(saved: Saved, p_sink: Array | None, given: Any) -> rules.Sink | None:
        if p_sink is None:
            return None
        return rules.Sink(p_sink, saved.push_sink(given) if forward else None)

    def of_sink(p: Array, p_sink: Array | None, v: Array, sums: rules.RowSums | None = None) -> Array | None:
        """The cotangent of z of the sink."""
        if p_sink is None or forward:
            return None
        return rules.sink_vjp(p_sink, p * v if weighted else v, axes, sums=sums)

    def after_two_sums(saved: Saved, given: Any, apart: bool = False, in_chain: bool = False) -> Applied:
        row = saved.restore_in_chain(axes, marks_empty=marks_empty) if in_chain else saved.restore(axes)
        p, u, p_sink, live = row
        rows = sums_apart(own[0], p) if apart else axes
        v = in_z(saved, u, given)
        v = v if live is None else v * live  # an empty row has p = 0
        out = rule(p, v, rows, sink=sink_of(saved, p_sink, given))
        if marks_empty and live is None:
            out = out * _probabilities.is_live(saved.state.rest)
        if p_sink is None or forward:
            return Applied(u, out, None)
        # With the barrier XLA on CPU runs all of the above as one kernel, and this sum as another.
        p, g = hidden((p, given))
        return Applied(u, out, of_sink(p, p_sink, in_z(saved, u, g)))

    def after_one_pass(saved: Saved, given: Any) -> Applied:
        p, u, p_sink, _ = saved.restore(axes)
        v, sink = in_z(saved, u, given), sink_of(saved, p_sink, given)
        sums, leads = None, rules.leading(p)
        if saved.holds == Static("x"):
            row = saved.kept, saved.scaling, saved.state._replace(max=hidden(saved.state.max))
            sums = _leading.lead_sums(*row, v, axes, weighted=weighted)
            if sink is not None:
                with_sink = sink.weighted().added_to
                sums = sums._replace(g_all=with_sink(sums.g_all), g_others=with_sink(sums.g_others))
        out = rule(p, v, axes, sums=sums, leads=leads, sink=sink)
        out = jnp.where(saved.state.rest < 0, 0, out) if marks_empty else out
        return Applied(u, out, of_sink(p, p_sink, v, sums))

    def in_one_kernel(saved: Saved, given: Any) -> Applied:
        row = _accelerators.fused_row(hidden(saved.kept), saved.scaling, own)
        v, sink = in_z(saved, row.u, given), sink_of(saved, row.p_sink, given)
        out = rule(row.p, v, axes, leads=row.leads, sink=sink)
        out = jnp.where(row.empty, 0, out) if marks_empty else out
        return Applied(row.u, out, of_sink(row.p, row.p_sink, v))

    if names:
        # JAX cannot split one sum over shards into a part linear in a tangent and a part that is not.
        return (after_two_sums if forward else after_one_pass)(saved, given)
    forms: dict[str, Callable[..., Applied]] = {
        "sums in one pass": after_one_pass,
        "one kernel": in_one_kernel,
        "one chain": partial(after_two_sums, in_chain=True),
        "sums apart": partial(after_two_sums, apart=True),
    }
    bare = saved.holds == Static("x") and saved.scaling._replace(sink=None) == Scaling(None)
    used_for: UsedFor = "exponentials" if weighted else "differences"
    request = Request("derivative of a map", saved.kept, own, bare=bare, result_used_for=used_for)
    own_forms = choose(request).functions(forms)
    return by_platform("the derivative of a map", saved, given, plain=after_two_sums, **own_forms)


def _softmax_save(static: tuple[Axes, bool], x: Array, scaling: Scaling) -> tuple[Array, Saved]:
    axes, with_p = static
    found = _probabilities.all_probabilities(x, scaling, axes, with_state=not with_p)
    if with_p:
        return found.p.astype(x.dtype), Saved(found.p, scaling, None, found.p_sink, Static("p"))
    return found.p.astype(x.dtype), Saved(x, scaling, found.state)


def _pull_with(
    rule: Callable[..., Array], name: _kernels.Name, **kinds: bool
) -> Callable[[Axes, Saved, Array], tuple[Array, Scaling]]:
    def pull(axes: Axes, saved: Saved, g: Array) -> tuple[Array, Scaling]:
        own, names = rules.split_axes(axes)

        def by_rule(saved: Saved, g: Array) -> tuple[Array, Scaling]:
            return saved.pull(_applied(axes, saved, g, rule, **kinds), names)

        def in_a_kernel(platform: _kernels.Platform, saved: Saved, g: Array) -> tuple[Array, Scaling]:
            def of_kernel(x: Array, scaling: Scaling, state: online.State, g: Array) -> Array:
                of_row = {"top": state.max.astype(state.rest.dtype), "rest": state.rest, "g": g}
                dx: Array = _kernels.called(name, platform, _kernels.arrays_of(x, scaling, **of_row))
                return dx

            def plain(x: Array, scaling: Scaling, state: online.State, g: Array) -> Array:
                return by_rule(Saved(x, scaling, state), g)[0]

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


def _is_bare(static: Any, row: Any, other: Any) -> bool:
    scaling: Scaling = row.scaling if isinstance(row, Saved) else other
    return scaling._replace(sink=None) == Scaling(None)


def _with_rules(
    save: Callable[..., Any], pull: Callable[..., Any], push: Callable[..., Any]
) -> Callable[..., Any]:
    """A map with its rules, by `in_row_blocks`. All blocks keep the same kind of array."""
    saved = in_row_blocks(save, is_bare=_is_bare, axes_of=lambda static: static[0])

    def save_all(axes: Axes, x: Array, scaling: Scaling) -> tuple[Array, Saved]:
        return saved((axes, keeps_p(x, scaling, axes)), x, scaling)

    def value(axes: Axes, x: Array, scaling: Scaling) -> Array:
        out: Array = save((axes, keeps_p(x, scaling, axes)), x, scaling)[0]
        return out

    return with_rules(
        save_all,
        in_row_blocks(pull, is_bare=_is_bare, kind="gradient of a map"),
        push,
        value=in_row_blocks(value, is_bare=lambda axes, x, scaling: _masks.are_bare(x, scaling, axes)),
    )


def _softmax_push(axes: Axes, saved: Saved, tangents: Tangents) -> Array:
    found = _applied(axes, saved, tangents, rules.softmax_product, forward=True, weighted=True)
    return found.out.astype(saved.kept.dtype)


_softmax_pull = _pull_with(rules.softmax_product, "softmax backward", weighted=True)
softmax = _with_rules(_softmax_save, _softmax_pull, _softmax_push)


def _log_softmax_save(static: tuple[Axes, bool], x: Array, scaling: Scaling) -> tuple[Array, Saved]:
    axes, with_p = static
    out, state = _probabilities.all_log_probabilities(x, scaling, axes)
    if not with_p:
        return out.astype(x.dtype), Saved(x, scaling, state)
    p = _probabilities.of_shifted(_scaling.shifted(x, scaling, state.max), state.rest)
    p = _curvature.of_probabilities(axes, p, (x, scaling, state))
    return out.astype(x.dtype), Saved(p, scaling, state, holds=Static("p"))


def _log_softmax_push(axes: Axes, saved: Saved, tangents: Tangents) -> Array:
    rule = rules.log_softmax_jvp
    found = _applied(axes, saved, tangents, rule, forward=True, weighted=True, marks_empty=True)
    return _scaling.masked(found.out, saved.scaling.where).astype(saved.kept.dtype)


_log_softmax_pull = _pull_with(rules.log_softmax_vjp, "log_softmax backward", marks_empty=True)
log_softmax = _with_rules(_log_softmax_save, _log_softmax_pull, _log_softmax_push)
