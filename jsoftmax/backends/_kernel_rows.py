"""What the row kernels for a GPU and a TPU take: two-dimensional logits, the classes along the last axis."""

from __future__ import annotations

from typing import NamedTuple

from jax import Array


class Row(NamedTuple):
    """The logits of every row, and their scaling."""

    x: Array  # [N, V], in bfloat16, float16 or float32
    where: Array | None = None  # [N, V] or [1, V], int8: 1 for a class that counts
    temperature: Array | None = None  # [N, 1], float32, not 0
