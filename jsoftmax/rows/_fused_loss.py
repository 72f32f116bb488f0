"""The weighted sum of losses with class ids, whose gradient a kernel writes while it reads the logits.

The gradient in the logits is needed before the cotangent of the sum is known. So the weights of the rows hold
all other factors, also the count of a mean: then the cotangent is 1, and the gradient is read no second time.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import online, rules
from jsoftmax.backends import _kernels
from jsoftmax.backends._choice import choose_kernel, kernels
from jsoftmax.backends._kernel_rows import with_unused
from jsoftmax.backends._request import Request
from jsoftmax.border._label_checks import are_classes, reported_ids
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling, of_used_rows
from jsoftmax.rows._loss_terms import Loss, LossTerms, divisor
from jsoftmax.rows._row_numbers import numbers
from jsoftmax.rows._statistics import nan_if_bad, zero_unless_counted
from jsoftmax.transforms import _modes
from jsoftmax.transforms._autodiff import with_gradients
from jsoftmax.transforms._platforms import by_platform
from jsoftmax.transforms._sharding import sharded_like, varying

NLL = frozenset({"nll"})


class Rows(NamedTuple):
    """The rows of a sum of weighted losses."""

    x: Array
    labels: Any  # class ids, and all further arrays, with length 1 along the classes
    scaling: Scaling
    weights: Array
    counted: Any = None  # False in rows that do not count
    hidden: Any = None  # True in rows of weight 0, which may hold anything


def fits(loss: Loss, x: Array) -> bool:
    """Whether this module computes the loss: a reduced one, with no terms beside −log p of the labels.

    The gradient is rounded before the cotangent of the loss is known. In float16, a small one would then be 0
    under the scaling of losses.
    """
    reduced = loss.reduction != "none" and loss.terms.wanted == NLL
    return reduced and x.dtype != jnp.float16 and not _modes.in_forward_mode()


def reduced(loss: Loss, x: Array, scaling: Scaling, axes: tuple[int, ...]) -> Array:
    """The sum or the mean of the losses."""
    rows = x.shape[:-1]
    ones = jnp.ones(rows, rules.computing_dtype(x.dtype))
    weights = sharded_like(ones, x, *range(len(rows))) if rows else ones
    for given in (loss.terms.label_weights, loss.terms.weights):
        weights = weights if given is None else weights * given
    if loss.reduction == "mean":
        counts = loss.counts(rows, axes, weights.dtype)
        if counts is None:
            weights = weights / loss.number_of_rows(rows)
        else:
            weights = weights / divisor(*rules.across(loss.row_names, *counts))
    labels = reported_ids(loss.labels, x.shape[-1], ())
    scaling = Scaling(scaling.where, *of_used_rows(scaling[1:], loss.counted, loss.hidden))
    weights = varying(weights[..., None], x, labels)
    total, _ = _total(axes, *Rows(x, labels, scaling, weights, loss.counted, loss.hidden))
    return rules.across(loss.row_names, total)[0]


def _weighted(weights: Array, losses: Array) -> Array:
    return jnp.sum(LossTerms(weights=weights).weighted(losses))


def _value(axes: tuple[int, ...], *arguments: Any) -> tuple[Array, tuple[()]]:
    x, labels, scaling, weights, counted, hidden = arguments
    found = numbers(axes, NLL, x, labels, scaling, counted=counted, hidden=hidden, beside=weights)["nll"]
    return _weighted(weights, found[..., None]), ()


def _value_and_gradients(axes: tuple[int, ...], asked: Any, *arguments: Any) -> Any:
    if not any(jax.tree.leaves(asked)):
        return _value(axes, *arguments), jax.tree.map(lambda _: None, asked)

    def plain(*arguments: Any) -> tuple[Array, Array, Array]:
        rows = Rows(*arguments)

        def value(x: Array, weights: Array) -> Array:
            return _value(axes, *rows._replace(x=x, weights=weights))[0]

        found, (dx, dweights) = jax.value_and_grad(value, (0, 1))(rows.x, rows.weights)
        return found, dx, dweights

    def in_a_kernel(platform: _kernels.Platform, *arguments: Any) -> tuple[Array, Array, Array]:
        return _kernels.with_plain_tangent(partial(_of_kernel, platform), plain)(*arguments)

    rows = Rows(*arguments)
    kernel = _kernels.Wanted("loss and gradient", rows.scaling.where)
    own_forms = choose_kernel(Request("state", rows.x, axes, kernel=kernel)).functions(kernels(in_a_kernel))
    total, dx, dweights = by_platform("the loss and its gradient", *rows, plain=plain, **own_forms)
    return (total, ()), (dx, None, Scaling(None), dweights if asked[3] else None, None, None)


def _of_kernel(platform: _kernels.Platform, *arguments: Any) -> tuple[Array, Array, Array]:
    x, labels, scaling, weights, counted, hidden = arguments
    is_class = are_classes(labels, x.shape[-1], ())
    unused = jnp.zeros_like(is_class) if hidden is None else jnp.broadcast_to(hidden, is_class.shape)
    unused = unused if counted is None else unused | ~counted
    ids = with_unused(jnp.where(is_class, labels, jnp.where(unused, 0, -1)), unused)
    arrays = _kernels.arrays_of(x, scaling, labels=ids, scale=weights)
    top, rest, logit, dx = _kernels.called("loss and gradient", platform, arrays)
    u = _scaling.shifted(logit, scaling._replace(where=None), top, at_top=True).u
    is_masked = scaling.where is not None
    losses = nan_if_bad(online.log_total(rest) - u, ~is_class, rest < 0, is_masked=is_masked)
    losses = zero_unless_counted(losses, counted)
    if hidden is not None:
        losses = jnp.where(hidden & ~jnp.isfinite(losses), 0, losses)
    # The loss of a row is the slope in its weight, but 0 if `LossTerms.weighted` does not use it.
    slopes = jnp.where((weights == 0) & (losses == jnp.inf), 0, losses)
    return _weighted(weights, losses), dx, slopes


# With a temperature that is differentiated, JAX differentiates the value.
_total = with_gradients(_value_and_gradients, _value, lambda asked: not any(jax.tree.leaves(asked[2])))
