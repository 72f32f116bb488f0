"""The numbers of a row of logits and its label, and the residuals of their derivatives."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends._request import UsedFor
from jsoftmax.logits import _moments, _scaling
from jsoftmax.logits._moments import Moment
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _reductions
from jsoftmax.transforms import _rule_trees

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
    is_whole: Any = _rule_trees.Static(False)  # whether `row_args` has the logits of all classes

    def with_logits(self, row_args: RowArguments, *, whole: bool) -> Saved:
        """The residuals with these arguments, of all classes if `whole`."""
        return self._replace(row_args=row_args, is_whole=_rule_trees.Static(whole))

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
        found["nll"] = nan_if_bad(log_total - u, ~(valid > 0), empty, is_masked=scaling.where is not None)
    # The residuals of a row that does not count are 0: a NaN would trigger `jax_debug_nans` outside jit.
    found, state, mean_u = jax.tree.map(lambda a: zero_unless_counted(a, counted), (found, state, mean_u))
    saved = Saved(None, state, found, sum_weights, mean_u).with_logits(row_args, whole=True).without(hidden)
    if saved.has_numbers is not None:
        counted = saved.has_numbers if counted is None else counted & saved.has_numbers
        saved = saved._replace(row_args=row_args._replace(counted=counted))
    return saved.numbers, saved


def nan_if_bad(nll: Array, is_bad: Array, empty: Array, *, is_masked: bool = False) -> Array:
    """The nll, NaN if the label is bad, else 0 in an empty row.

    A mask may mask all of an empty row. Such a row is padding, and its label may be anything.
    """
    return rules.nan_where(is_bad & ~empty if is_masked else is_bad, jnp.where(empty, 0, nll))


def zero_unless_counted(values: Any, counted: Array | None, otherwise: float = 0) -> Any:
    return values if counted is None or values is None else jnp.where(counted, values, otherwise)
