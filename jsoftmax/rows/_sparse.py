"""Target probabilities of a few classes a row, and the losses of rows by them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border._call import Axes, Call, Logits
from jsoftmax.border._label_checks import reported_ids
from jsoftmax.logits import _moments
from jsoftmax.logits._scaling import Scaling, counting, usable
from jsoftmax.rows import _events, _loss_terms
from jsoftmax.rows._divergences import kullback_leibler
from jsoftmax.rows._loss_terms import taken
from jsoftmax.rows._row_numbers import numbers, on_one_axis
from jsoftmax.rows._statistics import Numbers
from jsoftmax.transforms._sharding import ids_of_shard, shard_count


class SparseTargets(NamedTuple):
    """Target probabilities of K classes a row, as a teacher's largest: their ids and log-probabilities.

    `ids` are integers and `log_probs` floats, of shape [..., K] each, after the shape of the rows. The same
    id twice in a row adds up. A short row is filled up with ids of −1 whose log-probability is −inf; any
    other id outside [0, V) makes its row NaN, as a bad class id does. `cross_entropy` and
    `linear_cross_entropy` take it as `labels`, and `sparse_kl_divergence` as p.

    >>> import jax.numpy as jnp, jsoftmax
    >>> p = jsoftmax.SparseTargets(jnp.array([2, 0, -1]), jnp.array([-0.5, -1.0, -jnp.inf]))
    >>> print(f"{jsoftmax.cross_entropy(jnp.array([1.0, 2.0, 3.0]), p):.4f}")
    1.1329
    """

    ids: ArrayLike
    log_probs: ArrayLike


class Targets(NamedTuple):
    """Sparse targets of rows of one axis: distinct ids [..., K] of this shard, and log-probabilities."""

    ids: Array
    log_probs: Array
    weights: Array | None = None  # of their classes, [..., K]

    def weighed(self, weights: Array | None, names: tuple[str, ...]) -> Targets:
        """With the class weights [V] of the ids."""
        if weights is None:
            return self
        here = (self.ids >= 0) & (self.ids < weights.size)
        of_ids = jnp.where(here, taken(weights, self.ids), 0)
        return self._replace(weights=rules.across(names, of_ids)[0])


def of_call(call: Call, name: str, x: Logits, axes: Axes, names: tuple[str, ...]) -> Targets:
    """The sparse targets that an argument gives, in at least float32."""
    given = call.arguments[name]
    if not isinstance(given, SparseTargets):
        problem = f"{name} is {type(given).__name__}, not SparseTargets"
        raise call.error(TypeError, problem, "write jsoftmax.SparseTargets(ids, log_probs)")
    inner = Call(call.function, ids=given.ids, log_probs=given.log_probs)
    ids, log_probs = inner.array("ids"), inner.floats("log_probs")
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise call.error(TypeError, f"ids have dtype {ids.dtype}", "give class ids as integers")
    rows = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    if ids.ndim != len(rows) + 1 or ids.shape[:-1] != rows or ids.shape != log_probs.shape:
        problem = (
            f"ids of shape {ids.shape} and log_probs of shape {log_probs.shape} for rows of shape {rows}"
        )
        raise call.error(ValueError, problem, f"give both the shape {(*rows, 'K')}".replace("'", ""))
    dtype = jnp.promote_types(rules.computing_dtype(x.dtype), rules.computing_dtype(log_probs.dtype))
    log_probs = log_probs.astype(dtype)
    classes = math.prod(x.shape[axis] for axis in axes)
    return _distinct(_seen(ids, log_probs, classes, names), classes, names)


def _seen(ids: Array, log_probs: Array, classes: int, names: tuple[str, ...]) -> Targets:
    """Bad ids named by checkify, and with a log-probability of NaN."""
    ids = ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids
    fills = (ids == -1) & (log_probs == -jnp.inf)
    bad = ~fills & ((ids < 0) | (ids >= classes * shard_count(names)))
    least = jnp.iinfo(ids.dtype).min
    largest = jnp.max(jnp.where(bad, ids, least), -1, keepdims=True, initial=least)
    any_bad = jnp.any(bad, -1, keepdims=True)
    checked = reported_ids(jnp.where(any_bad, largest, 0), classes * shard_count(names), ())
    ids = ids + 0 * checked.astype(ids.dtype)  # a check is made where its outcome is used
    return Targets(jnp.where(bad, -1, ids).astype(jnp.int32), rules.nan_where(bad, log_probs))


def _distinct(targets: Targets, classes: int, names: tuple[str, ...]) -> Targets:
    """Of several alike in a row the first has all, and the others are no class."""
    ids, log_probs, _ = targets
    count = ids.shape[-1]
    same = ids[..., :, None] == ids[..., None, :]
    before = jnp.arange(count)[:, None] > jnp.arange(count)[None, :]
    repeats = jnp.any(same & jnp.broadcast_to(before, same.shape), -1)
    several = jnp.sum(same, -1) > 1
    top = jax.lax.stop_gradient(jnp.max(log_probs, -1, keepdims=True, initial=-jnp.inf))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.sum(jnp.where(same, jnp.exp(log_probs - top)[..., None, :], 0), -1)
    live = several & (total != 0)
    summed = jnp.where(total == 0, -jnp.inf, top + jnp.log(jnp.where(live, total, 1)))
    log_probs = jnp.where(several, summed, log_probs)
    fill = repeats | (ids < 0)
    ids = ids_of_shard(ids, classes, names)
    return Targets(jnp.where(fill, -1, ids), jnp.where(repeats, -jnp.inf, log_probs))


Named = tuple[int | str, ...]  # the last axis, and the mesh axes of the shards of the classes


def sparse_numbers(
    axes: Named,
    wanted: frozenset[str],
    x: Array,
    targets: Targets,
    scaling: Scaling,
    weights: Array | None = None,
    hidden: Array | None = None,
    beside: Any = None,
) -> Numbers:
    """As `numbers` of the targets as an array like x, which is never made."""
    _, names = rules.split_axes(axes)
    found = _events.events(axes, x, targets.ids, scaling, hidden)
    t, own = jnp.exp(targets.log_probs), (x.ndim - 1,)
    if targets.weights is not None:
        t = _moments.times(t, targets.weights)
    t = jnp.concatenate([t, jnp.zeros_like(t[..., :1])], -1).astype(found.u.dtype)
    of_events = wanted & {"nll", "log_normalizer"}
    out = numbers(own, of_events, found.u, t, Scaling(None), hidden=hidden, beside=beside)
    if "log_normalizer" in wanted:
        out["log_normalizer"] += jnp.squeeze(found.top, -1)
    if of_all := wanted - of_events:
        out |= numbers(own, of_all, x, None, scaling, weights, names=names, hidden=hidden, beside=beside)
    return out


def loss_of_call(
    call: Call, x: Array, axes: Axes, names: tuple[str, ...], row_names: tuple[str, ...], scaling: Scaling
) -> Array:
    """The cross-entropy with sparse targets that a call asks for."""
    targets = of_call(call, "labels", x, axes, names)
    loss = _loss_terms.of_call(call, x, axes, names, row_names, scaling.where, targets.log_probs)
    x, scaling, hidden = along_last(x, axes, scaling, loss.counted, loss.hidden)
    terms = loss.terms
    arrays = x, targets.weighed(loss.class_weights, names), scaling, loss.class_weights, hidden
    found = sparse_numbers((x.ndim - 1, *names), terms.wanted, *arrays, beside=terms)
    return loss.reduced(terms.losses(found), axes)


def along_last(
    x: Array, axes: Axes, scaling: Scaling, counted: Array | None, hidden: Array | None
) -> tuple[Array, Scaling, Array | None]:
    """The classes made one axis, the last, and rows masked whole that do not count."""
    x, own, counted, hidden = on_one_axis(axes, x, scaling, counted, hidden)
    options = (usable(a, counted, hidden) for a in own[1:])
    own, _ = counting(Scaling(own.where, *options), counted)
    return x, own, hidden


def sparse_divergences(
    axes: Named, x: Array, targets: Targets, scaling: Scaling, hidden: Array | None, tail: bool
) -> Array:
    """KL of the targets from every row, [..., 1]: over K + 1 events, or without the tail."""
    own, log_probs = (x.ndim - 1,), targets.log_probs
    if not tail:
        cost = sparse_numbers(axes, frozenset({"nll"}), x, targets, scaling, hidden=hidden)["nll"]
        live = log_probs > -jnp.inf
        terms = jnp.where(live, jnp.exp(log_probs) * jnp.where(live, log_probs, 0), 0)
        terms = jnp.where(jnp.isnan(log_probs), log_probs, terms)
        return jnp.sum(terms, -1, keepdims=True) + cost[..., None]
    found = _events.events(axes, x, targets.ids, scaling, hidden)
    total = numbers(own, frozenset({"log_normalizer"}), log_probs, None, Scaling(None))["log_normalizer"]
    rest = _log_of_rest(total[..., None])
    if scaling.where is not None or log_probs.shape[-1] >= x.shape[-1] * shard_count(
        rules.split_axes(axes)[1]
    ):
        rest = jnp.where(_events.has_tail(axes, x, targets.ids, scaling), rest, -jnp.inf)
    p = jnp.concatenate([log_probs, rest], -1).astype(found.u.dtype)
    return kullback_leibler(own, p, found.u, Scaling(None), hidden, None)


def _log_of_rest(total: Array) -> Array:
    """``log(1 − exp(total))``; −inf from 0 up, where roundings may have left it."""
    below = total < 0
    safe = jnp.where(below, total, -1.0)
    near = safe > -0.6931472
    log = jnp.log(-rules.expm1(jnp.where(near, safe, -1.0)))
    log = jnp.where(near, log, rules.log1p(-jnp.exp(jnp.where(near, -1.0, safe))))
    return jnp.where(below, log, jnp.where(jnp.isnan(total), total, -jnp.inf))
