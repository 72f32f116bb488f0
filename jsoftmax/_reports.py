"""Class ids outside the classes, reported by name where the caller asks: `jax.experimental.checkify`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import checkify

from jsoftmax._sharding import ids_of_shard, shard_count

_reports: Any = jax.make_user_context(default_value=True)


def without_reports() -> AbstractContextManager[None]:
    """Trace losses without the report that `jax.experimental.checkify` makes of bad class ids.

    The report costs nothing where checkify is not used, but it is an effect of the traced program, and
    ``jax.export`` cannot serialize effects of that kind. Trace what you serialize in this context.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> loss = jax.jit(jsoftmax.softmax_cross_entropy_with_integer_labels)
    >>> with jsoftmax.without_reports():
    ...     exported = jax.export.export(loss)(jnp.zeros((2, 3)), jnp.array([0, 1]))
    >>> print(exported.call(jnp.zeros((2, 3)), jnp.array([0, 3])))
    [1.0986123       nan]
    """
    return _reports(False)


def reported_ids(labels: Array, classes: int, names: tuple[str, ...]) -> Array:
    """The class ids as a shard counts them, which has so many of the classes along mesh axes: from 0 up.

    Stages a check that names the first bad one; outside checkify it compiles to nothing.
    """
    if _reports.value and labels.size:
        _check(
            labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32), classes * shard_count(names)
        )
    return ids_of_shard(labels, classes, names)


@jax.jit(static_argnums=1)
def _check(labels: Array, classes: int) -> None:
    bad = (labels < 0) | (labels >= classes)
    # Sums and minima, which any sharding of the labels keeps.
    row = jnp.zeros(labels.shape, jnp.int32)
    for axis, size in enumerate(labels.shape):
        row = row * size + lax.broadcasted_iota(jnp.int32, labels.shape, axis)
    first = jnp.min(jnp.where(bad, row, labels.size))
    checkify.debug_check(
        ~jnp.any(bad),
        f"jsoftmax: class id {{label}} of row {{row}} is outside [0, {classes})",
        label=jnp.sum(jnp.where(row == first, labels, 0)),
        row=first,
    )
