"""What XLA is to compute again where it would store it.

Of a row, a GPU computes an exponential faster than it reads one; but what two sums share, or a sum and an
array, XLA stores, in float32 and in the shape of the logits.
"""

from __future__ import annotations

from typing import TypeVar

import jax
from jax import lax

T = TypeVar("T")


def anew(values: T) -> T:
    """The same arrays, of which XLA does not see that it has them. On CPU, where storing pays, it does."""

    def hidden(values: T) -> T:
        return jax.tree.map(lax.optimization_barrier, values)

    return lax.platform_dependent(values, cpu=lambda values: values, default=hidden)
