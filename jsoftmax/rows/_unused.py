"""A product and a quotient of losses that may be +inf. One that is not used has the gradient 0, not 0·inf."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.logits import _moments
from jsoftmax.transforms._autodiff import with_rules


def _product_save(_: None, weight: Array, loss: Array) -> tuple[Array, tuple[Array, Array]]:
    return weight * loss, (weight, loss)


def _product_pull(_: None, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    weight, loss = saved
    return _moments.times(g, loss), g * weight


def _product_push(_: None, saved: tuple[Array, Array], tangents: tuple[Any, Any]) -> Array:
    (weight, loss), (dweight, dloss) = saved, tangents
    finite = rules.below_infinity(loss)  # a tangent of 0 times +inf is 0
    terms = [a * b for a, b in ((dweight, finite), (weight, dloss)) if a is not None and b is not None]
    return functools.reduce(jnp.add, terms, jnp.zeros_like(loss))


product = with_rules(_product_save, _product_pull, _product_push)


def _quotient_save(_: None, total: Array, count: Array) -> tuple[Array, tuple[Array, Array]]:
    return total / count, (total, count)


def _quotient_pull(_: None, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    total, count = saved
    return g / count, -_moments.times(g, total / count) / count


def _quotient_push(_: None, saved: tuple[Array, Array], tangents: tuple[Any, Any]) -> Array:
    (total, count), (dtotal, dcount) = saved, tangents
    terms = [] if dtotal is None else [dtotal / count]
    terms += [] if dcount is None else [-dcount * (total / count) / count]
    return functools.reduce(jnp.add, terms, jnp.zeros_like(total))


quotient = with_rules(_quotient_save, _quotient_pull, _quotient_push)
