"""Two classes with the logits (z, 0), entry by entry: their log-probabilities and their cross-entropy.

With the weights a and b of the two classes,

    loss = a·softplus(−z) + b·softplus(z),   d/dz = b·sigmoid(z) − a·sigmoid(−z)

No term of the loss is negative, and each probability is computed on its own, so the tiny loss and gradient
of a sure entry keep their digits. A class of weight 0 adds 0, also where its probability is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.logits import _moments, _scaling
from jsoftmax.transforms._autodiff import with_rules
from jsoftmax.transforms._rule_trees import mapped_together
from jsoftmax.transforms._sharding import varying


class Entries(NamedTuple):
    """The arguments, which broadcast to z; also their tangents or cotangents."""

    z: Array
    targets: Array  # probabilities of the first class, or booleans, or 0 and 1
    label_smoothing: Array | None
    pos_weight: Array | None
    weights: Array | None  # of the entries


class _Costs(NamedTuple):
    """What an entry has, all of it 0 in an entry of weight 0 that has no numbers."""

    first: Array  # −log p of both classes, 0 where it is infinite and its weight is 0
    second: Array
    loss: Array
    slope: Array  # in z


def _weights_of_classes(
    dtype: jnp.dtype, infinite: Array, given: dict[str, Array | None]
) -> tuple[Array, Array]:
    """The weights a and b of the two classes; `infinite` marks logits of ±inf."""
    targets = jnp.asarray(given["targets"])
    first = targets.astype(dtype)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        first = rules.nan_where((targets != 0) & (targets != 1), first)
    second = 1 - first
    if (alpha := given["label_smoothing"]) is not None:
        first, second = mapped_together((first, second), infinite)  # as their tangents are
        first, second = (rules.smoothed(t, alpha, infinite) for t in (first, second))
    if (weight := given["pos_weight"]) is not None:
        first = weight * first
    return first, second


def _split(entries: Entries, dtype: jnp.dtype) -> tuple[Callable[..., tuple[Array, Array]], dict[str, Array]]:
    """The weights of the classes as a function of the floats among the options, and these floats."""
    given = {name: a for name, a in entries._asdict().items() if name not in ("z", "weights")}
    floats = {n: a for n, a in given.items() if a is not None and jnp.issubdtype(a.dtype, jnp.floating)}
    return (lambda floats: _weights_of_classes(dtype, jnp.isinf(entries.z), given | floats)), floats


def _costs(entries: Entries, weights: tuple[Array, Array]) -> _Costs:
    z, (a, b) = entries.z.astype(weights[0].dtype), weights
    gone = None
    if entries.weights is not None:
        gone = (entries.weights == 0) & ~jnp.isfinite(z + a + b)  # in the shape of z
        z, a, b = (jnp.where(gone, 0, values) for values in (z, a, b))
    first, second = rules.softplus(-z), rules.softplus(z)
    loss = _moments.times(a, first) + _moments.times(b, second)
    slope = rules.binary_residual(z, a, b)
    first, second = (jnp.where((w == 0) & jnp.isinf(c), 0, c) for w, c in ((a, first), (b, second)))
    found = _Costs(first, second, loss, slope)
    return found if gone is None else jax.tree.map(lambda values: jnp.where(gone, 0, values), found)


def _times(values: Array, weights: Array | None) -> Array:
    return values if weights is None else values * weights


def _save(_: None, entries: Entries) -> tuple[Array, Entries]:
    of_floats, floats = _split(entries, rules.computing_dtype(entries.z.dtype))
    return _times(_costs(entries, of_floats(floats)).loss, entries.weights), entries


def _pull(_: None, entries: Entries, g: Array) -> tuple[Entries]:
    of_floats, floats = _split(entries, g.dtype)
    weights, back = jax.vjp(of_floats, floats)
    costs, gw = _costs(entries, weights), _times(g, entries.weights)
    of_classes = (
        jnp.broadcast_to(_moments.times(gw, c), w.shape) for c, w in zip(costs[:2], weights, strict=True)
    )
    (found,) = back(tuple(of_classes))
    of_weights = None
    if entries.weights is not None:
        of_weights = _scaling.sum_to_shape(_moments.times(g, costs.loss), entries.weights)
    dz = (gw * costs.slope).astype(entries.z.dtype)
    return (Entries(**{**dict.fromkeys(Entries._fields), **found, "z": dz, "weights": of_weights}),)


def _push(_: None, entries: Entries, tangents: tuple[Entries]) -> Array:
    of_floats, floats = _split(entries, rules.computing_dtype(entries.z.dtype))
    along = {n: jnp.zeros_like(a) if (d := getattr(tangents[0], n)) is None else d for n, a in floats.items()}
    weights, (da, db) = jax.jvp(of_floats, (floats,), (along,))
    costs = _costs(entries, weights)
    # An infinite cost times a tangent of 0 is 0; a select by the tangent could not be transposed.
    first, second, loss = map(rules.below_infinity, costs[:3])
    out = da * first + db * second
    if (dz := tangents[0].z) is not None:
        out = out + costs.slope * dz.astype(out.dtype)
    out = _times(out, entries.weights)
    return out if (dw := tangents[0].weights) is None else out + dw * loss


_losses = with_rules(_save, _pull, _push)


def losses(entries: Entries) -> Array:
    """The loss of every entry, times its weight."""
    # Within `jax.shard_map`, JAX asks that the weights of the classes vary as their cotangents do.
    return _losses(None, jax.tree.map(lambda a: varying(a, entries), entries))


def _log_sigmoid_save(_: None, x: Array) -> tuple[Array, Array]:
    return -rules.softplus(-x.astype(rules.computing_dtype(x.dtype))).astype(x.dtype), x


def _log_sigmoid_pull(_: None, x: Array, g: Array) -> tuple[Array]:
    return (_log_sigmoid_push(None, x, (g,)),)


def _log_sigmoid_push(_: None, x: Array, tangents: tuple[Array]) -> Array:
    slope = rules.sigmoid(-x.astype(rules.computing_dtype(x.dtype)))
    return (tangents[0].astype(slope.dtype) * slope).astype(x.dtype)


_log_sigmoid = with_rules(_log_sigmoid_save, _log_sigmoid_pull, _log_sigmoid_push)


def log_sigmoid(x: Array) -> Array:
    """The log-probability of the first class."""
    return _log_sigmoid(None, x)
