"""The derivative rules of the numbers of a row.

With a, b, c, d the cotangents of log-normalizer, nll, entropy and "spread", the gradient in the logits is

    dz = a·p + b·((Σt)·p − t) − c·p·(u − ⟨p, u⟩) + d·((Σw)·p − w),   u = z − max z
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends import _beside_label, _reading
from jsoftmax.logits import _moments, _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _curvature, _leading, _probabilities
from jsoftmax.rows._statistics import (
    Cotangents,
    Numbers,
    RowArguments,
    Saved,
    Static,
    are_ids,
    zero_unless_counted,
)
from jsoftmax.transforms._autodiff import known_with
from jsoftmax.transforms._platforms import hidden, recomputed, recomputed_everywhere, reconverted_on_cpu
from jsoftmax.transforms._sharding import on_first_shard

T = TypeVar("T")


class _Row(NamedTuple):
    """What a derivative computes again from the logits."""

    u: Array
    cost: Array  # −log p, but 0 for a dead class with a target of 0, and in an empty row
    dead: Array
    residuals: Numbers  # the gradient in z of every number that is asked for
    label: tuple[Array, Array] | None  # where a class is the label, and what its residual lacks there

    def times(self, g: Array | float, name: str) -> Array:
        """g times a residual. XLA:CPU computes the last sum once, but a bare product for each of its uses."""
        dz = g * self.residuals[name]
        if self.label is None:
            return dz
        hit, lacking = self.label
        return dz + jnp.where(hit, g * lacking, 0)


class _Exact(NamedTuple):
    """Gives residuals their own derivatives by `_curvature`, unless the logits are a part of each row."""

    axes: tuple[int | str, ...]
    row: _probabilities.Row
    counted: Array | None
    is_whole: Any

    def __call__(self, known: Callable[..., T], residuals: T, *of_row: Array) -> T:
        """The residuals, with the derivative of a function of `_curvature` and its arguments."""
        if not self.is_whole.value:
            return residuals
        of_row = tuple(zero_unless_counted(a, self.counted) for a in of_row)
        return known(self.axes, residuals, *of_row, self.row)

    def constant(self, values: Array) -> Array:
        """What is added to such residuals: their derivative is already complete."""
        return lax.stop_gradient(values) if self.is_whole.value else values


def _restore(static: Static, saved: Saved, asked: Iterable[str]) -> _Row:
    axis, names, _ = static
    if saved.row_args.x.dtype.itemsize == 2 and saved.row_args.scaling == Scaling(None):
        saved = reconverted_on_cpu(saved)  # else XLA stores x in 32 bits, for the sums and for this
    if "entropy" in asked:  # else XLA stores the exponentials that the sums and the gradient share
        saved = saved._replace(state=recomputed_everywhere(saved.state, [saved.mean_u]))
    (x, labels, weights, scaling, counted, _), state, found, sum_weights, mean_u, *_ = saved
    # With the barrier, XLA on GPU computes z again; else it stores z, in float32 in the shape of the logits.
    again = scaling._replace(soft_cap=hidden(scaling.soft_cap))
    # Else a second derivative in a shared temperature would be 0·NaN in a row that does not count.
    again = again._replace(temperature=_scaling.one_if_unused(scaling.temperature, counted))
    z = _scaling.shifted(x, again, state.max, at_top="entropy" in found)
    of_others, rest = z, state.rest
    if "nll" in asked and are_ids(labels):
        rest = jnp.where(jnp.isnan(found["nll"]), found["nll"], rest)
        if set(asked) == {"nll"}:  # the gradient at the label does not use p
            of_others = z._replace(u=_beside_label.without_label(z.u, labels, axis))
    p, dead = _probabilities.of_shifted(of_others, rest), _scaling.is_dead(x, scaling)
    exact = _Exact((axis, *names), (x, _scaling.mask_rows(again, counted)[0], state), counted, saved.is_whole)
    soft = "nll" in asked and not are_ids(labels)
    nothing = (state.rest < 0) | dead & (labels == 0) if soft else dead
    cost = jnp.where(nothing, 0, online.log_total(state.rest) - z.u)
    label, of_classes, all_p = None, {"log_normalizer": p}, p
    if "nll" in asked and not soft:
        hit = _reading.is_label(labels, axis, x.shape[axis])
        all_p = jnp.where(hit, jnp.exp(-found["nll"]), p)
        if set(asked) == {"nll"}:
            of_classes["nll"] = p
            label = hit, exact.constant(rules.residual_at_label(found["nll"], state.rest))
        else:
            of_classes["nll"] = rules.label_residual(p, found["nll"], hit, state.rest)
    of_classes = exact(_curvature.of_residuals, of_classes, all_p)
    residuals: Numbers = {name: values for name, values in of_classes.items() if name in asked}
    if soft:
        t = _moments.weighted(labels, weights, p.dtype)
        t = jnp.where(dead, lax.stop_gradient(t), t)
        in_z = _leading.target_residual((axis, *names), p, t, (x, again, state))
        in_z = exact(_curvature.of_target_residual, in_z, p, t)
        residuals["nll"] = jnp.where(state.rest < 0, 0, in_z)
    if "entropy" in asked:
        numbers = p, z.u if z.slip is None else z.u + z.slip, mean_u
        in_z = rules.entropy_residual(*numbers)
        residuals["entropy"] = exact(_curvature.of_entropy_residual, in_z, *numbers)
    if "spread" in asked:
        w = jnp.where(dead, 0, jnp.ones_like(p) if weights is None else weights)
        residuals["spread"] = rules.weighted_residual(of_classes["log_normalizer"], w, sum_weights)
    return _Row(z.u, cost, dead, residuals, label)


def pull(
    static: Static, saved: Saved, cotangents: Cotangents, of_maximum: bool | Array = True, times: Any = None
) -> tuple[RowArguments]:
    """The cotangents; with `of_maximum`, for one block of each row, they include the slope of its maximum."""
    x, labels, weights, scaling, counted, _ = saved.row_args
    given = {name: g for name, g in cotangents.items() if g is not None and name != "live"}
    if "spread" in given:
        given["spread"] *= _moments.MOMENT_SCALE
    row = _restore(static, saved, given)
    u, cost, dead = row.u, row.cost, row.dead
    dz, dlabels, dweights = jnp.zeros_like(u), None, jnp.zeros_like(u)
    for name, g in given.items():
        dz = dz + row.times(g, name)
    if "spread" in given:
        dweights = given["spread"] * jnp.where(dead, 0, cost)
    if "nll" in given and not are_ids(labels):
        dt = zero_unless_counted(_scaling.masked(_moments.times(given["nll"], cost), scaling.where), counted)
        dweights = dweights + dt * labels.astype(u.dtype)
        dlabels = (dt if weights is None else dt * _moments.live_weights(weights, labels, dead)).astype(
            labels.dtype
        )
    if times is not None:  # [1, V], how often a class counts
        dz, dweights = (jnp.where(times == 0, 0, times * d) for d in (dz, dweights))
    scaling, (u, dz) = _scaling.mask_rows(scaling, counted, u, dz)
    dx, dscaling = _scaling.pull(x, u, dz, scaling)
    if of_maximum is not False and dscaling.temperature is not None and "log_normalizer" in given:
        # z = u + max z, and dz sums to this cotangent over a row.
        dt = zero_unless_counted(
            given["log_normalizer"] * _scaling.slope_of_maximum(scaling, saved.state.max), counted
        )
        dt = on_first_shard(dt, static[1])
        dt = dt if of_maximum is True else jnp.where(of_maximum, dt, 0)
        dt = dscaling.temperature + _scaling.sum_to_shape(dt, dscaling.temperature)
        dscaling = dscaling._replace(temperature=dt)
    of_weights = (
        None if weights is None else _scaling.sum_to_shape(zero_unless_counted(dweights, counted), weights)
    )
    return (RowArguments(dx, dlabels, of_weights, dscaling, None),)


def push(static: Static, saved: Saved, tangents: tuple[RowArguments], of_maximum: bool = True) -> Numbers:
    """The tangents of the numbers; `of_maximum` as in `pull`."""
    axis, names, wanted = static
    x, labels, weights, scaling, counted, _ = saved.row_args
    dx, dlabels, dweights, dscaling, *_ = tangents[0]
    row = _restore(static, saved, wanted)
    scaling, (u, cost) = _scaling.mask_rows(scaling, counted, row.u, row.cost)
    dz = _scaling.push(x, u, dx, dscaling, scaling)
    terms = {name: zero_unless_counted(row.times(1, name), counted) * dz for name in row.residuals}
    if "nll" in wanted and not are_ids(labels):
        dt = jnp.zeros_like(u) if dlabels is None else dlabels.astype(u.dtype)
        dt = dt if weights is None else dt * _moments.live_weights(weights, labels, row.dead)
        dt = dt if dweights is None else dt + labels.astype(u.dtype) * dweights
        terms["nll"] += _scaling.masked(dt, scaling.where) * cost
    if "spread" in wanted and dweights is not None:
        terms["spread"] += dweights * jnp.where(row.dead, 0, cost)
    out = dict(zip(terms, rules.row_sums((axis, *names), *terms.values()), strict=True))
    if of_maximum and dscaling.temperature is not None and "log_normalizer" in wanted:
        out["log_normalizer"] += _scaling.slope_of_maximum(scaling, saved.state.max) * dscaling.temperature
    if "spread" in wanted:
        out["spread"] *= _moments.MOMENT_SCALE
        out["live"] = jnp.zeros_like(out["spread"])
    return {name: zero_unless_counted(number, counted) for name, number in out.items()}


def _own_tangent(static: Static, found: Numbers, arguments: tuple[Saved], tangents: tuple[Saved]) -> Numbers:
    (saved,), (along,) = arguments, tangents
    # Three barriers: XLA merges equal ones, and the gradient and its derivative have one and two.
    state, scaling = recomputed(recomputed(recomputed((saved.state, saved.row_args.scaling))))
    row_args = saved.row_args._replace(scaling=scaling)
    saved = saved._replace(row_args=row_args, state=state, numbers=found)
    return push(static, saved, (along.row_args,))


# ``(static, numbers, saved)``: the numbers, with `push` in place of the derivative of their operations.
with_rule = known_with(_own_tangent)
