"""What the row kernels for a GPU and a TPU take: two-dimensional logits, the classes along the last axis."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Row(NamedTuple):
    """The logits of every row, and their scaling."""

    x: Array  # [N, V], in bfloat16, float16 or float32
    where: Array | None = None  # [N, V] or [1, V], int8: 1 for a class that counts
    temperature: Array | None = None  # [N, 1], float32, not 0


# A label is a class id, or −1 if it is no class: then the gradient of its row is NaN. The gradient of an
# unused row is 0, whatever the row holds; its class id y is passed as −2 − y.


def with_unused(ids: Array, unused: Array) -> Array:
    """The labels of rows, some of which are unused."""
    return jnp.where(unused, -2 - ids, ids)


def class_and_unused(label: Array) -> tuple[Array, Array]:
    """The class id of a label, and whether its row is unused."""
    unused = label < -1
    return jnp.where(unused, -2 - label, label), unused
