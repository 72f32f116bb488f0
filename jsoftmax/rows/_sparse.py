"""Target probabilities of a few classes per row, and the losses of rows with such targets."""

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
from jsoftmax.logits._scaling import Scaling, mask_rows, one_if_unused
from jsoftmax.rows import _events, _loss_terms
from jsoftmax.rows._divergences import kullback_leibler
from jsoftmax.rows._row_numbers import numbers, on_one_axis
from jsoftmax.rows._statistics import Numbers
from jsoftmax.rows._weights import taken
from jsoftmax.transforms._sharding import ids_of_shard, shard_count


class SparseTargets(NamedTuple):
    """The target probabilities of K classes per row, such as a teacher's largest: ids and log-probabilities.

    `ids` are integers and `log_probs` floats, both of shape [..., K]: the shape of the rows, then K. The
    probabilities of equal ids in a row are added. Pad a row with fewer than K classes with ids of −1 whose
    log-probability is −inf; any other id outside [0, V) makes its row NaN, like a bad class id.
    `cross_entropy` and `linear_cross_entropy` take such targets as `labels`, `sparse_kl_divergence` and
    `linear_sparse_kl_divergence` as p.

    >>> import jax.numpy as jnp, jsoftmax
    >>> p = jsoftmax.SparseTargets(jnp.array([2, 0, -1]), jnp.array([-0.5, -1.0, -jnp.inf]))
    >>> print(f"{jsoftmax.cross_entropy(jnp.array([1.0, 2.0, 3.0]), p):.4f}")
    1.1329
    """

    ids: ArrayLike
    log_probs: ArrayLike


class Targets(NamedTuple):
    """Checked sparse targets: distinct ids [..., K], relative to this shard, and log-probabilities."""

    ids: Array
    log_probs: Array
    weights: Array | None = None  # the class weights of the ids, [..., K]

    def with_class_weights(self, weights: Array | None, names: tuple[str, ...]) -> Targets:
        """The targets with the entries of the class weights [V] at their ids."""
        if weights is None:
            return self
        here = (self.ids >= 0) & (self.ids < weights.size)
        of_ids = jnp.where(here, taken(weights, self.ids), 0)
        return self._replace(weights=rules.across(names, of_ids)[0])


def of_call(call: Call, name: str, x: Logits, axes: Axes, names: tuple[str, ...]) -> Targets:
    """The `Targets` of the argument `name` of a public call, in at least float32."""
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
    return _distinct(_reported(ids, log_probs, classes, names), classes, names)


def _reported(ids: Array, log_probs: Array, classes: int, names: tuple[str, ...]) -> Targets:
    """The targets, after checkify has reported bad ids; a bad id becomes −1 with log-probability NaN."""
    ids = ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids
    is_padding = (ids == -1) & (log_probs == -jnp.inf)
    bad = ~is_padding & ((ids < 0) | (ids >= classes * shard_count(names)))
    least = jnp.iinfo(ids.dtype).min
    largest = jnp.max(jnp.where(bad, ids, least), -1, keepdims=True, initial=least)
    any_bad = jnp.any(bad, -1, keepdims=True)
    checked = reported_ids(jnp.where(any_bad, largest, 0), classes * shard_count(names), ())
    ids = ids + 0 * checked.astype(ids.dtype)  # keeps the check: JAX removes one whose result is unused
    return Targets(jnp.where(bad, -1, ids).astype(jnp.int32), rules.nan_where(bad, log_probs))


def _distinct(targets: Targets, classes: int, names: tuple[str, ...]) -> Targets:
    """The targets with distinct ids, relative to this shard.

    The first of several equal ids of a row gets the sum of their probabilities; the others become padding.
    """
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
    is_padding = repeats | (ids < 0)
    ids = ids_of_shard(ids, classes, names)
    return Targets(jnp.where(is_padding, -1, ids), jnp.where(repeats, -jnp.inf, log_probs))


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
    """The result of `numbers` for the same targets as an array like x, without creating this array."""
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
    """The cross-entropy with sparse targets, from the arguments of a public call."""
    targets = of_call(call, "labels", x, axes, names)
    loss = _loss_terms.of_call(call, x, axes, names, row_names, scaling.where, targets.log_probs)
    x, scaling, hidden = on_last_axis(x, axes, scaling, loss.counted, loss.hidden)
    terms = loss.terms
    arrays = x, targets.with_class_weights(loss.class_weights, names), scaling, loss.class_weights, hidden
    found = sparse_numbers((x.ndim - 1, *names), terms.wanted, *arrays, beside=terms)
    return loss.reduced(terms.losses(found), axes)


def on_last_axis(
    x: Array, axes: Axes, scaling: Scaling, counted: Array | None, hidden: Array | None
) -> tuple[Array, Scaling, Array | None]:
    """The logits with their class axes merged into the last one; rows that do not count are fully masked."""
    x, own, counted, hidden = on_one_axis(axes, x, scaling, counted, hidden)
    options = (one_if_unused(a, counted, hidden) for a in own[1:])
    own, _ = mask_rows(Scaling(own.where, *options), counted)
    return x, own, hidden


def sparse_divergences(
    axes: Named, x: Array, targets: Targets, scaling: Scaling, hidden: Array | None, tail: bool
) -> Array:
    """KL(targets‖softmax) of every row, [..., 1]: over the K + 1 events, or over the K ids without a tail."""
    own, log_probs = (x.ndim - 1,), targets.log_probs
    if not tail:
        cost = sparse_numbers(axes, frozenset({"nll"}), x, targets, scaling, hidden=hidden)["nll"]
        live = log_probs > -jnp.inf
        terms = jnp.where(live, jnp.exp(log_probs) * jnp.where(live, log_probs, 0), 0)
        terms = jnp.where(jnp.isnan(log_probs), log_probs, terms)
        return jnp.sum(terms, -1, keepdims=True) + cost[..., None]
    found = _events.events(axes, x, targets.ids, scaling, hidden)
    total = numbers(own, frozenset({"log_normalizer"}), log_probs, None, Scaling(None))["log_normalizer"]
    rest = _log1mexp(total[..., None])
    if scaling.where is not None or log_probs.shape[-1] >= x.shape[-1] * shard_count(
        rules.split_axes(axes)[1]
    ):
        rest = jnp.where(_events.has_tail(axes, x, targets.ids, scaling), rest, -jnp.inf)
    p = jnp.concatenate([log_probs, rest], -1).astype(found.u.dtype)
    return kullback_leibler(own, p, found.u, Scaling(None), hidden, None)


def _log1mexp(total: Array) -> Array:
    """``log(1 − exp(total))``; −inf if rounding made the total 0 or larger."""
    below = total < 0
    log = rules.log1mexp(-jnp.where(below, total, -1.0))
    return jnp.where(below, log, jnp.where(jnp.isnan(total), total, -jnp.inf))
