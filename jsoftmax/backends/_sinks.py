"""The sink of a row: one more class, with a logit and a share of the probabilities, but without an output.

Its logit s is one per row, in the units of the logits x. With the sink, a row has the maximum max(max x, s),
and the sum of its exponentials has one more term. In a row without a live class the sink is no class either.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling


def logit(scaling: Scaling, top: Array) -> Array:
    """The logit of the sink, −inf in a row without a live class, whose maximum `top` is −inf."""
    return jnp.where(top == -jnp.inf, -jnp.inf, jnp.asarray(scaling.sink))


def peak(top: Array, scaling: Scaling) -> Array:
    """The maximum of a row with its sink, in the order of z, from that of its classes."""
    if scaling.sink is None:
        return top
    ordered = _scaling.ordered_live(logit(scaling, top), scaling._replace(where=None))
    return lax.stop_gradient(jnp.maximum(top.astype(ordered.dtype), ordered))


def u(scaling: Scaling, top: Array) -> Array:
    """u of the sink, z − max z; `top` is the maximum of the row with the sink."""
    return _scaling.shifted(logit(scaling, top), scaling._replace(where=None), top, at_top=True).u


def term(sink: Array, top: Array) -> Array:
    """``exp(s − max)`` for the maximum of the classes, without a temperature, as a term of the divisor.

    It is at most a large number: then all classes are below the normal numbers. In a row without a live class
    it is such a number too. A maximum with the sink would cost a pass: XLA on CPU could not fuse it.
    """
    wide = jnp.maximum(top.astype(sink.dtype), jnp.finfo(sink.dtype).min)
    most = math.log(float(jnp.finfo(sink.dtype).max)) - 1
    return jnp.exp(jnp.minimum(most, sink - wide)) + jnp.maximum(sink, 0) * 0  # NaN for +inf


def with_sink(state: online.State, scaling: Scaling) -> online.State:
    """The state of a row with its sink, from that of its classes."""
    if scaling.sink is None:
        return state
    top = peak(state.max, scaling)
    in_order = scaling._replace(where=None)
    if scaling.temperature is not None:
        in_order = in_order._replace(temperature=jnp.abs(scaling.temperature))
    own_top = state.max.astype(top.dtype)
    share = jnp.exp(_scaling.shifted(own_top, in_order, top, at_top=True).u)
    of_sink = jnp.exp(u(scaling, top))
    # The 1 of the largest class of all is left out; which term has it is known without a sum.
    leads = (own_top == top) & (top > -jnp.inf)
    rest = jnp.where(leads, state.rest + of_sink, (1 + state.rest) * share + (of_sink - 1))
    return online.State(top, rest)


def probability(state: online.State, scaling: Scaling) -> Array:
    """The probability of the sink, from the state of the row with it; 0 in a row without a live class."""
    return jnp.exp(u(scaling, state.max)) / (1 + jnp.where(state.rest < 0, 0, state.rest))
