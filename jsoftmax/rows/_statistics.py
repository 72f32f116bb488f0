"""The numbers of a row of logits and its label, and their derivative rules.

With a, b, c, d the cotangents of log-normalizer, nll, entropy and "spread", the gradient in the logits is

    dz = a·p + b·((Σt)·p − t) − c·p·(u − ⟨p, u⟩) + d·((Σw)·p − w),   u = z − max z
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends import _beside_label, _reading
from jsoftmax.backends._request import UsedFor
from jsoftmax.logits import _moments, _scaling
from jsoftmax.logits._moments import Moment
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _probabilities, _reductions
from jsoftmax.transforms._platforms import hidden, reconverted_on_cpu
from jsoftmax.transforms._sharding import on_first_shard

Axes = tuple[int, ...]
# The class axis, the mesh axes of the shards of the classes, and the names of the wanted numbers.
Static = tuple[int, tuple[str, ...], frozenset[str]]

# One number per row, under each wanted name: "log_normalizer"; "nll", −log p of a class id or −Σ w·t·log p
# for targets t; "entropy"; "spread", −Σ w·log p over the live classes, scaled by `_moments.MOMENT_SCALE`,
# with the constant "live", the number of live classes.
Numbers = dict[str, Array]
Cotangents = dict[str, Array | None]


class RowArguments(NamedTuple):
    """The arguments; also their tangents or cotangents. There is a single class axis."""

    x: Array
    labels: Any  # class ids [B, 1], relative to this shard; targets [B, V]; or None
    weights: Array | None  # [1, V]
    scaling: Scaling
    counted: Array | None  # [B, 1]: False in a row that does not count, whose numbers are all 0
    hidden: Array | None = None  # [B, 1]: True in a row of weight 0, which may contain anything


class Saved(NamedTuple):
    row_args: Any  # `RowArguments`; None in a linear head, which computes its logits again
    state: online.State
    numbers: Numbers
    sum_weights: Any  # [B, 1], or None
    mean_u: Any  # ⟨p, u⟩, [B, 1], or None
    has_numbers: Any = None  # [B, 1], False in a hidden row that has no numbers; or None

    def without(self, hidden: Array | None) -> Saved:
        """As if the hidden rows whose numbers are NaN or infinite were not there."""
        if hidden is None:
            return self
        has_numbers = functools.reduce(jnp.logical_and, map(jnp.isfinite, self.numbers.values())) | ~hidden
        bare = self._replace(row_args=None)
        return jax.tree.map(lambda a: zero_unless_counted(a, has_numbers), bare)._replace(
            row_args=self.row_args, has_numbers=has_numbers
        )


def are_ids(labels: Any) -> bool:
    return labels is not None and bool(jnp.issubdtype(labels.dtype, jnp.integer))


def save(
    static: Static, row_args: RowArguments, result_used_for: UsedFor = "exponentials"
) -> tuple[Numbers, Saved]:
    """The numbers, and the residuals of their derivative. `result_used_for` is as in `_request.Request`."""
    axis, names, wanted = static
    x, labels, weights, scaling, counted, hidden = row_args
    targets = None if are_ids(labels) or "nll" not in wanted else labels
    if asks_for_id := "nll" in wanted and targets is None:
        here = (labels >= 0) & (labels < x.shape[axis])
        labels = jnp.where(here, labels, -1).astype(jnp.int32)
        row_args = row_args._replace(labels=labels)

    moments = []
    if "spread" in wanted:
        moments += [Moment(() if weights is None else (weights,)), Moment((), only_total=True)]
    if targets is not None:
        moments += [Moment((targets,) if weights is None else (targets, weights), dead_counts=True)]

    def of_id(top: Array, logit: Array | None) -> tuple[Array, ...]:
        """The u of the label, and whether the label is here: both 0 except on the shard that has it."""
        if logit is None:
            return ()
        u = _scaling.shifted(logit, scaling._replace(where=None), top, at_top=True).u
        return jnp.where(here, u, 0.0), here.astype(u.dtype)

    asks_for_entropy = "entropy" in wanted
    state, sums = _reductions.reduce(
        x,
        scaling,
        (axis, *names),
        tuple(moments),
        entropy=asks_for_entropy,
        at_top=asks_for_entropy,
        labels=labels if asks_for_id else None,
        shares=of_id,
        for_label=wanted == {"nll"},
        result_used_for=result_used_for,
    )
    empty, log_total = state.rest < 0, online.log_total(state.rest)
    found: Numbers = {}
    sum_weights = None
    if "log_normalizer" in wanted:
        found["log_normalizer"] = jnp.where(empty, -jnp.inf, _scaling.maximum(scaling, state.max) + log_total)
    mean_u = None
    if sums.entropy is not None:
        mean_u = sums.entropy / jnp.where(empty, 1, 1 + state.rest)
        found["entropy"] = log_total - mean_u
    if "spread" in wanted:
        (moment, sum_weights), (live,), *_ = sums.moments
        found["spread"] = (sum_weights * _moments.MOMENT_SCALE) * log_total - moment
        found["live"] = lax.stop_gradient(live)
    if targets is not None:
        moment, sum_targets = sums.moments[-1]
        found["nll"] = jnp.where(empty, 0, sum_targets * log_total - moment / _moments.MOMENT_SCALE)
    elif asks_for_id:
        u, valid = sums.shares
        found["nll"] = jnp.where(empty, 0, rules.nan_where(~(valid > 0), log_total - u))
    # The residuals of a row that does not count are 0: a NaN would trigger `jax_debug_nans` outside jit.
    found, state, mean_u = jax.tree.map(lambda a: zero_unless_counted(a, counted), (found, state, mean_u))
    saved = Saved(row_args, state, found, sum_weights, mean_u).without(hidden)
    if saved.has_numbers is not None:
        counted = saved.has_numbers if counted is None else counted & saved.has_numbers
        saved = saved._replace(row_args=row_args._replace(counted=counted))
    return saved.numbers, saved


class _Row(NamedTuple):
    """What a derivative computes again from the logits."""

    u: Array
    cost: Array  # −log p, but 0 for a dead class with a target of 0, and in an empty row
    dead: Array
    residuals: Numbers  # the gradient in z of every number that is asked for


def _restore(static: Static, saved: Saved, asked: Iterable[str]) -> _Row:
    axis, names, _ = static
    if saved.row_args.x.dtype.itemsize == 2 and saved.row_args.scaling == Scaling(None):
        saved = reconverted_on_cpu(saved)  # else XLA stores x in 32 bits, for the sums and for this
    (x, labels, weights, scaling, *_), state, found, sum_weights, mean_u, _ = saved
    # With the barrier, XLA on GPU computes z again; else it stores z, in float32 in the shape of the logits.
    again = scaling._replace(soft_cap=hidden(scaling.soft_cap))
    z = _scaling.shifted(x, again, state.max, at_top="entropy" in found)
    of_others, rest = z, state.rest
    if "nll" in asked and are_ids(labels):
        rest = jnp.where(jnp.isnan(found["nll"]), found["nll"], rest)
        if set(asked) == {"nll"}:  # the gradient at the label does not use p
            of_others = z._replace(u=_beside_label.without_label(z.u, labels, axis))
    p, dead = _probabilities.of_shifted(of_others, rest), _scaling.is_dead(x, scaling)
    soft = "nll" in asked and not are_ids(labels)
    nothing = (state.rest < 0) | dead & (labels == 0) if soft else dead
    cost = jnp.where(nothing, 0, online.log_total(state.rest) - z.u)
    residuals: Numbers = {}
    if "log_normalizer" in asked:
        residuals["log_normalizer"] = p
    if soft:
        t = _moments.weighted(labels, weights, p.dtype)
        t = jnp.where(dead, lax.stop_gradient(t), t)
        in_z = _probabilities.target_residual((axis, *names), p, t, (x, again, state))
        residuals["nll"] = jnp.where(state.rest < 0, 0, in_z)
    elif "nll" in asked:
        hit = _reading.is_label(labels, axis, x.shape[axis])
        residuals["nll"] = rules.label_residual(p, found["nll"], hit, state.rest)
    if "entropy" in asked:
        residuals["entropy"] = rules.entropy_residual(p, z.u if z.slip is None else z.u + z.slip, mean_u)
    if "spread" in asked:
        w = jnp.where(dead, 0, jnp.ones_like(p) if weights is None else weights)
        residuals["spread"] = rules.weighted_residual(p, w, sum_weights)
    return _Row(z.u, cost, dead, residuals)


def pull(
    static: Static, saved: Saved, cotangents: Cotangents, of_maximum: bool | Array = True, times: Any = None
) -> tuple[RowArguments]:
    """The cotangents; with `of_maximum`, for one block of each row, they include the slope of its maximum."""
    x, labels, weights, scaling, counted, _ = saved.row_args
    given = {name: g for name, g in cotangents.items() if g is not None and name != "live"}
    if "spread" in given:
        given["spread"] *= _moments.MOMENT_SCALE
    u, cost, dead, residuals = _restore(static, saved, given)
    dz, dlabels, dweights = jnp.zeros_like(u), None, jnp.zeros_like(u)
    for name, g in given.items():
        dz = dz + g * residuals[name]
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
    u, cost, dead, residuals = _restore(static, saved, wanted)
    scaling, (u, cost) = _scaling.mask_rows(scaling, counted, u, cost)
    dz = _scaling.push(x, u, dx, dscaling, scaling)
    terms = {name: zero_unless_counted(residual, counted) * dz for name, residual in residuals.items()}
    if "nll" in wanted and not are_ids(labels):
        dt = jnp.zeros_like(u) if dlabels is None else dlabels.astype(u.dtype)
        dt = dt if weights is None else dt * _moments.live_weights(weights, labels, dead)
        dt = dt if dweights is None else dt + labels.astype(u.dtype) * dweights
        terms["nll"] += _scaling.masked(dt, scaling.where) * cost
    if "spread" in wanted and dweights is not None:
        terms["spread"] += dweights * jnp.where(dead, 0, cost)
    out = dict(zip(terms, rules.row_sums((axis, *names), *terms.values()), strict=True))
    if of_maximum and dscaling.temperature is not None and "log_normalizer" in wanted:
        out["log_normalizer"] += _scaling.slope_of_maximum(scaling, saved.state.max) * dscaling.temperature
    if "spread" in wanted:
        out["spread"] *= _moments.MOMENT_SCALE
        out["live"] = jnp.zeros_like(out["spread"])
    return {name: zero_unless_counted(number, counted) for name, number in out.items()}


def zero_unless_counted(values: Any, counted: Array | None, otherwise: float = 0) -> Any:
    return values if counted is None or values is None else jnp.where(counted, values, otherwise)
