"""What XLA is to compute again where it would store it.

Of a row, a GPU computes an exponential faster than it reads one; but what two sums share, or a sum and an
array, XLA stores, in float32 and in the shape of the logits. On CPU it may: the exponentials will be the
gradient, in its place. Not so of 16-bit logits, where it would store what it converts.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from jax import lax

T = TypeVar("T")


@jax.custom_jvp
def anew(values: T, after: Any = ()) -> T:
    """The same arrays, once others are known, of which XLA does not see that it has them.

    On CPU, where storing pays, it does.
    """

    def hidden(values: T, after: Any) -> T:
        if after:
            return lax.optimization_barrier((values, after))[0]
        return jax.tree.map(lax.optimization_barrier, values)  # none waits for the others

    return lax.platform_dependent(values, after, cpu=lambda values, _: values, default=hidden)


anew.defjvp(lambda primals, tangents: (anew(*primals), tangents[0]))


@jax.custom_jvp
def unseen_on_cpu(values: T, after: Any = ()) -> T:
    """The same arrays, of which XLA on CPU does not see that it has them before others are known."""

    def hidden(values: T, after: Any) -> T:
        return lax.optimization_barrier((values, after))[0]

    return lax.platform_dependent(values, after, cpu=hidden, default=lambda values, _: values)


unseen_on_cpu.defjvp(lambda primals, tangents: (unseen_on_cpu(*primals), tangents[0]))
