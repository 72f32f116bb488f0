"""The softmax on CPU, in forms that XLA's reduction library can run."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import rules
from jsoftmax.backends import _by_class, _cpu
from jsoftmax.backends._choice import Form
from jsoftmax.transforms._autodiff import with_tangent

Axes = tuple[int, ...]


def softmax(form: Form, axes: Axes, x: Array, top: Array) -> Array:
    """The probabilities, from logits and the maximum of every row, in the form "chain" or "stored blocks"."""
    if form.name == "chain":
        return _softmax(axes, x, top)
    return _stored((form.size, axes[0]), x)


def _softmax(axes: Axes, x: Array, top: Array) -> Array:
    """``exp(u)/Σ exp(u)``; 0 in an empty row. A separate sum of the ones keeps the digits of small terms."""
    terms = _by_class.exponentials(x, _by_class.tops(x, top)[1])
    if x.dtype.itemsize == 2:
        total = jnp.sum(terms, axes, keepdims=True)
    else:
        ones = jnp.floor(terms)
        rest, ones = (jnp.sum(a, axes, keepdims=True) for a in (terms - ones, ones))
        total = rest + ones
    return terms / (total + 2.0**-60)  # the sum is NaN even if XLA's maximum has dropped a NaN


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
