"""The weights of rows, and the class weights of their labels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from jsoftmax import rules
from jsoftmax.backends import _reading
from jsoftmax.border._call import Call, Logits
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.transforms import _sharding

Axes = tuple[int, ...]


def of_rows(
    call: Call, logits: Logits, axes: Axes, counted: Array | None
) -> tuple[Array | None, Array | None]:
    """The weights of the rows, without the class axes; and which are 0, with length 1 on the class axes."""
    weights = call.row_weights(logits, axes, rules.computing_dtype(logits.dtype))
    if weights is None:
        return None, None
    per_row = tuple(1 if i in axes else n for i, n in enumerate(logits.shape))
    weights = _sharding.sharded_like(jnp.broadcast_to(weights, per_row), logits)
    if counted is not None:
        weights = jnp.where(counted, weights, 0)
    return jnp.squeeze(weights, axes), weights == 0


def with_bad_rows_masked(
    axes: tuple[int | str, ...], hidden: Array, scaling: Scaling, *logits: Array
) -> Scaling:
    """The scaling with hidden rows fully masked if a live class of theirs is NaN or +inf.

    Else the second derivatives of all rows in a shared temperature would contain 0·NaN.
    """
    is_bad = functools.reduce(jnp.logical_or, (~(_scaling.live(x, scaling) < jnp.inf) for x in logits))
    (count,) = rules.row_sums(axes, is_bad.astype(jnp.float32))
    return _scaling.mask_rows(scaling, ~hidden | (count == 0))[0]


def of_labels(weights: Array, labels: Array, names: tuple[str, ...]) -> Array:
    """The class weight of each label, from whichever shard has the class."""
    if not names:
        return taken(weights, labels)
    last = weights.size * _sharding.shard_count(names) - 1
    labels = jnp.clip(labels, 0, min(last, jnp.iinfo(labels.dtype).max))
    labels = _sharding.ids_of_shard(labels, weights.size, names)
    here = (labels >= 0) & (labels < weights.size)
    return rules.across(names, jnp.where(here, taken(weights, labels), 0.0))[0]


def taken(values: Array, index: Array) -> Array:
    """The entries of a one-dimensional array at these indices, clipped; sharded like the indices."""
    index = jnp.clip(index, 0, values.size - 1)
    of_values, of_index = _sharding.spec(values), _sharding.spec(index)
    layout = _sharding.partition_spec(index, *of_index)
    if layout is None or not any((*of_values, *of_index)):
        return values[index]
    if set(of_values) & set(of_index):
        values = jax.sharding.reshard(values, PartitionSpec(None))  # one mesh axis cannot shard both
    if of_values == (None,):
        return values.at[index].get(mode="promise_in_bounds", out_sharding=layout)
    # If explicit axes shard the values: a masked sum, so that no device gathers them.
    hit = _reading.is_label(jnp.expand_dims(index, -1).astype(jnp.int32), index.ndim, values.size)
    return jnp.sum(jnp.where(hit, values, 0.0), -1)
