"""The weighted sum of losses with class ids, whose gradient a kernel writes while it reads the logits.

The gradient in the logits is needed before the cotangent of the sum is known. So the weights of the rows hold
all other factors, also the count of a mean: then the cotangent is 1, and the gradient is read no second time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import online, rules
from jsoftmax.backends import _kernels
from jsoftmax.backends._choice import choose_kernel, kernels
from jsoftmax.backends._request import Request
from jsoftmax.border._label_checks import are_classes, reported_ids
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling, of_used_rows
from jsoftmax.rows._loss_terms import Loss
from jsoftmax.rows._row_numbers import numbers
from jsoftmax.transforms import _modes
from jsoftmax.transforms._autodiff import with_gradients
from jsoftmax.transforms._platforms import by_platform
from jsoftmax.transforms._sharding import sharded_like, varying

NLL = frozenset({"nll"})


def fits(loss: Loss) -> bool:
    """Whether this module computes the loss: a reduced one, with no terms beside −log p of the labels."""
    return loss.reduction != "none" and loss.terms.wanted == NLL and not _modes.in_forward_mode()


def reduced(loss: Loss, x: Array, scaling: Scaling, axes: tuple[int, ...]) -> Array:
    """The sum or the mean of the losses."""
    rows = x.shape[:-1]
    ones = jnp.ones(rows, rules.computing_dtype(x.dtype))
    weights = sharded_like(ones, x, *range(len(rows))) if rows else ones
    if loss.counted is not None:
        weights = jnp.where(jnp.squeeze(loss.counted, axes), weights, 0)
    for given in (loss.terms.label_weights, loss.terms.weights):
        weights = weights if given is None else weights * given
    if loss.reduction == "mean":
        count = loss.total_weight(rows, axes, weights.dtype)
        if count is None:
            weights = weights / loss.number_of_rows(rows)
        else:
            (count,) = rules.across(loss.row_names, count)
            weights = weights / jnp.where(count == 0, 1, count)
    labels = reported_ids(loss.labels, x.shape[-1], ())
    scaling = Scaling(scaling.where, *of_used_rows(scaling[1:], loss.counted, loss.hidden))
    total, _ = _total(axes, x, labels, scaling, varying(weights[..., None], x, labels))
    return rules.across(loss.row_names, total)[0]


def _weighted(weights: Array, losses: Array) -> Array:
    """The sum; a row of weight 0 counts nothing, whatever its loss."""
    return jnp.sum(jnp.where(weights == 0, 0, weights * jnp.where(weights == 0, 0, losses)))


def _value(
    axes: tuple[int, ...], x: Array, labels: Array, scaling: Scaling, weights: Array
) -> tuple[Array, tuple[()]]:
    found = numbers(axes, NLL, x, labels, scaling, hidden=weights == 0)["nll"]
    return _weighted(weights, found[..., None]), ()


def _value_and_gradients(axes: tuple[int, ...], asked: Any, *arguments: Any) -> Any:
    if not any(jax.tree.leaves(asked)):
        return _value(axes, *arguments), jax.tree.map(lambda _: None, asked)

    def plain(*arguments: Any) -> tuple[Array, Array, Array]:
        x, labels, scaling, weights = arguments

        def value(x: Array, weights: Array) -> Array:
            return _value(axes, x, labels, scaling, weights)[0]

        found, (dx, dweights) = jax.value_and_grad(value, (0, 1))(x, weights)
        return found, dx, dweights

    def in_a_kernel(platform: _kernels.Platform, *arguments: Any) -> tuple[Array, Array, Array]:
        return _kernels.with_plain_tangent(partial(_of_kernel, platform), plain)(*arguments)

    kernel = _kernels.Wanted("loss and gradient", arguments[2].where)
    own_forms = choose_kernel(Request("state", arguments[0], axes, kernel=kernel)).functions(
        kernels(in_a_kernel)
    )
    total, dx, dweights = by_platform("the loss and its gradient", *arguments, plain=plain, **own_forms)
    return (total, ()), (dx, None, Scaling(None), dweights if asked[3] else None)


def _of_kernel(
    platform: _kernels.Platform, x: Array, labels: Array, scaling: Scaling, weights: Array
) -> tuple[Array, Array, Array]:
    arrays = _kernels.arrays_of(x, scaling, labels=labels, scale=weights)
    top, rest, logit, dx = _kernels.called("loss and gradient", platform, arrays)
    u = _scaling.shifted(logit, scaling._replace(where=None), top, at_top=True).u
    is_bad = ~are_classes(labels, x.shape[-1], ())
    losses = jnp.where(rest < 0, 0, rules.nan_where(is_bad, online.log_total(rest) - u))
    # The loss of a row of weight 0 is the slope in its weight, unless it is not finite.
    slopes = jnp.where((weights == 0) & ~jnp.isfinite(losses), 0, losses)
    return _weighted(weights, losses), dx, slopes


# With a temperature that is differentiated, JAX differentiates the value.
_total = with_gradients(_value_and_gradients, _value, lambda asked: not any(jax.tree.leaves(asked[2])))
