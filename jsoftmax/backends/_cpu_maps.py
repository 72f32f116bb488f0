"""The softmax on CPU, in forms that XLA's reduction library can run."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _by_class, _cpu
from jsoftmax.transforms._autodiff import with_tangent


def softmax_in_blocks(size: int, axis: int, x: Array) -> Array:
    """The probabilities of long rows, with sums over blocks of `size` classes."""
    return _stored((size, axis), x)


def _stored_value(static: tuple[int, int], x: Array) -> Array:
    """``exp(u)/(1 + rest)``; 0 in an empty row.

    The maximum starts from a finite number: then XLA computes it and stores exp(u) in one pass.
    """
    size, axis = static
    top = lax.expand_dims(lax.reduce(x, jnp.finfo(x.dtype).min, lax.max, (axis,)), (axis,))
    rest = _cpu.rest_of_blocks(size, x, top, axis, stored=True)
    return _by_class.exponentials(x, top) / (1 + jnp.maximum(rest, 0))


def _stored_tangent(static: tuple[int, int], arguments: tuple[Array], dx: Array) -> Array:
    return rules.softmax_product(_stored(static, *arguments), dx, static[1])


_stored = with_tangent(_stored_value, _stored_tangent)
