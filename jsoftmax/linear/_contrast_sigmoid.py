"""The sigmoid loss of two batches of features: each pair is classified on its own, from its logit.

With z = a·b/T + bias, a pair has the loss softplus(−z) if it is positive, else softplus(z). No pair needs the
numbers of another, so a block of logits has its loss and its gradient at once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.linear import _contrast, _contrast_sides, _products, _row_functions
from jsoftmax.linear._contrast_arguments import Given
from jsoftmax.linear._contrast_sides import ROWS
from jsoftmax.linear._row_functions import Logits, Rows, Shared, Static
from jsoftmax.rows._loss_terms import counts_of, divisor
from jsoftmax.transforms._modes import in_forward_mode
from jsoftmax.transforms._platforms import recomputed_everywhere


class _Columns(NamedTuple):
    """The arguments of `_losses` with entries per row."""

    pairs: _contrast_sides.Rows  # without features
    temperature: Array  # [N, 1]
    bias: Array  # [N, 1]
    weights: Array | None  # [N, 1]


@jax.custom_jvp
def _softplus(z: Array) -> Array:
    """`rules.softplus`, whose derivative computes exp(−|z|) again: XLA would store it, and what follows."""
    return rules.softplus(z)


@_softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    again = recomputed_everywhere(primals[0])
    return rules.softplus(primals[0]), jax.jvp(rules.softplus, (again,), tangents)[1]


def _losses(static: Static, logits: Logits, rows: Rows) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The sum over the pairs of every row of a block, times the weight of the row."""
    (x,), c = logits, rows.columns
    z = rules.divided(rules.signed(x, c.temperature), c.temperature) + c.bias
    live, hits = _contrast_sides.masks(c.pairs, rows.of_classes, rows.where, x.shape[ROWS])
    z = jnp.where(hits, -z, z)
    z = z if live is None else jnp.where(live, z, -jnp.inf)
    loss = jnp.sum(_softplus(z), ROWS, keepdims=True)
    return (loss if c.weights is None else loss * c.weights,), ()


def mean(given: Given, bias: Array) -> Array:
    """The mean over the rows of the sums over their pairs; `bias` has the shape [1, 1]."""
    batch, counted = given.batch, given.counted()
    n = counted.a.shape[0]
    weights = counted.weights
    counts = (jnp.asarray(n, given.dtype),) if weights is None else counts_of(weights)
    if (bad := counted.bad_labels(given.relation)) is not None:
        weights = rules.nan_where(bad, jnp.ones_like(bad, given.dtype) if weights is None else weights)
    pairs, columns = counted.pairs(given)
    temperature, bias = (jnp.broadcast_to(number, (n, 1)) for number in (given.temperature, bias))
    # The features and what counts are arguments of every function of rows.
    of_rows = _Columns(pairs._replace(features=None, counted=None), temperature, bias, weights)
    rows = Rows((counted.a,), of_rows, None, counted.of_a)
    of_classes = columns._replace(features=None, counted=None)
    shared = Shared((_products.Shared(counted.b),), columns.counted, of_classes)
    head = given.head._replace(block_size=_contrast.plan(given.head, counted.a, counted.b).block_rows)
    static = Static(_losses, None, head, ())
    if in_forward_mode():
        total = jnp.sum(_row_functions.numbers(static, rows, shared)[0][0])
    else:
        total = _row_functions.total(static, rows, shared)
    total, *of_all = rules.across(batch.names, total, *counts)
    return total / divisor(*of_all)
