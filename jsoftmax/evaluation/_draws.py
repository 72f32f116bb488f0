"""The Poisson bootstrap: replicates of the sums, each of which draws every row a random number of times.

A bootstrap draws n rows with replacement, so the number of copies of a row is nearly Poisson distributed,
with mean 1. Independent draws for each row give replicates of a stream whose length is not known. Source:
Chamandy et al. (2012).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.evaluation._state import Replicates, State
from jsoftmax.evaluation._sums import Sum

BITS = 16
# 2¹⁶·P(draws ≤ k), rounded: a row is drawn as often as there are entries up to a random 16-bit integer.
THRESHOLDS = [
    round(2**BITS * math.exp(-1) * sum(1 / math.factorial(j) for j in range(k + 1))) for k in range(8)
]


def of_rows(state: State, key: Array | None, shape: tuple[int, ...], groups: Array | None) -> Array | None:
    """How often each replicate draws each row, [replicates, rows]; the rows of a group are drawn together."""
    if state.replicates is None or key is None:
        return None
    replicates = len(state.replicates.weight.high)
    if groups is None:
        return _poisson(jax.random.bits(key, (replicates, math.prod(shape)), jnp.uint16))

    def of_group(group: Array) -> Array:
        return _poisson(jax.random.bits(jax.random.fold_in(key, group), (replicates,), jnp.uint16))

    return jax.vmap(of_group, out_axes=1)(groups.ravel())


def _poisson(bits: Array) -> Array:
    numbers = bits.astype(jnp.int32)
    return sum((numbers >= threshold).astype(jnp.float32) for threshold in THRESHOLDS)


def resampled(
    drawn: Array,
    weights: Array,
    counted: Array,
    nll: Array,
    ranks: Array,
    brier: Array | None,
    dtype: jnp.dtype,
) -> Replicates:
    """The sums of every replicate: one matrix product for all of them."""
    rows, kept = nll.size, counted.reshape(-1, 1)
    infinite = nll == jnp.inf
    # An infinite loss has a column of its own, for in the product an infinity times 0 would be NaN.
    parts = [jnp.ones(nll.shape), jnp.where(infinite, 0, nll), infinite]
    parts += [ranks] if brier is None else [brier, ranks]
    columns = [jnp.where(kept, part.reshape(rows, -1).astype(jnp.float32), 0) for part in parts]
    features = jnp.concatenate(columns, 1) * weights.reshape(rows, 1).astype(jnp.float32)
    sums = jnp.matmul(drawn, features, precision=lax.Precision.HIGHEST).astype(dtype)

    def as_sum(values: Array) -> Sum:
        return Sum(values, jnp.zeros_like(values))

    weight, losses, infinities = sums[:, 0], sums[:, 1], sums[:, 2]
    return Replicates(
        as_sum(weight),
        as_sum(jnp.where(infinities > 0, jnp.inf, losses)),
        as_sum(sums[:, len(parts) - 1 :]),
        None if brier is None else as_sum(sums[:, 3]),
    )
