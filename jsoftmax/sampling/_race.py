"""The Gumbel-max trick: the class of every row with the largest sum of logit and noise.

argmax (z + g),   g = −log E,   E exponential,   is a class drawn from softmax(z)
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.border import _given
from jsoftmax.border._arrays import rows_of, with_rank
from jsoftmax.border._call import Axes, Call, Logits
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows._peaks import first_of_largest, peak
from jsoftmax.sampling import _noise
from jsoftmax.sampling._noise import Positions
from jsoftmax.transforms._sharding import sharded_like

NONE = jnp.iinfo(jnp.int32).max  # larger than any class id


class Draw(NamedTuple):
    """The ids of the drawn classes, int32, and their log-probabilities.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> ids, log_probs = jsoftmax.sampling.categorical(jax.random.key(0), jnp.array([0.0, 40.0]))
    >>> print(ids, f"{log_probs:.4e}")
    1 -4.2484e-18
    """

    ids: Array
    log_probs: Array


class Static(NamedTuple):
    """The static arguments: hashable, and constant in a traced program."""

    axis: int
    names: tuple[str, ...] = ()  # the mesh axes of the shards of the classes
    is_greedy: bool = False  # whether every row is greedy


class ShiftedRows(NamedTuple):
    """The shifted logits of every row, and flags with one entry per row."""

    u: Array  # logits/T minus their maximum; −inf for a dead class
    is_greedy: Array | None
    is_empty: Array  # whether no class is live
    is_bad: Array  # whether a live class is NaN or +inf

    def winners(self, ids: Array) -> Array:
        """The ids, −1 in empty and bad rows."""
        return jnp.where(self.is_empty | self.is_bad, -1, ids)

    def log_probs(self, found: Array, static: Static) -> Array:
        """The log-probabilities `found`, but 0 in greedy rows that are not bad, and −inf in empty rows."""
        is_sure = self.is_greedy
        if static.is_greedy:
            is_sure = jnp.asarray(True)
        if is_sure is not None:
            found = jnp.where(is_sure & ~self.is_bad, 0, found)
        return jnp.where(self.is_empty, -jnp.inf, found)


def greedy_rows(call: Call) -> Any:
    """Which rows have temperature 0: True for all, None for none, or an array.

    In the arguments of the call, None or an entry of 1 replaces a temperature of 0.
    """
    given = call.arguments["temperature"]
    known = _given.known_number(given)
    if given is None or (known is not None and known != 0):
        return None
    if known is not None:
        call.arguments["temperature"] = None
        return True
    temperature = call.floats("temperature")
    call.arguments["temperature"] = jnp.where(temperature == 0, 1, temperature)
    return temperature == 0


def as_rows(is_greedy: Any, x: Logits, axes: Axes) -> Any:
    """`is_greedy`, if it is an array, with length 1 along the classes; it has one entry per row."""
    if not isinstance(is_greedy, Array):
        return is_greedy
    if is_greedy.shape == rows_of(x.shape, axes):
        is_greedy = jnp.expand_dims(is_greedy, sorted(axes))
    return sharded_like(with_rank(is_greedy, x.ndim), x)


@partial(jax.jit, static_argnums=0)
def shifted_rows(static: Static, x: Array, scaling: Scaling, is_greedy: Array | None = None) -> ShiftedRows:
    """The `ShiftedRows` of logits with one class axis."""
    x, scaling = lax.stop_gradient((x, scaling))
    top = peak(x, scaling, (static.axis, *static.names))
    u = _scaling.shifted(x, scaling, top).u
    is_bad = jnp.any(jnp.isnan(u), static.axis, keepdims=True)
    if static.names:
        is_bad = lax.pmax(is_bad.astype(jnp.int32), static.names) > 0
    return ShiftedRows(u, is_greedy, (top == -jnp.inf) & ~is_bad, is_bad)


def scores(words: Array, at: Positions, row: ShiftedRows, *, is_greedy: bool = False) -> Array:
    """The shifted logits plus their noise; greedy rows get no noise."""
    if is_greedy:
        return row.u
    noise = _noise.gumbel(words, at).astype(row.u.dtype)
    return row.u + (noise if row.is_greedy is None else jnp.where(row.is_greedy, 0, noise))


def winner(scores: Array, axis: int, names: tuple[str, ...] = ()) -> Array:
    """The first class with the largest score of every row, as an id over all shards; length 1 on `axis`.

    Shards exchange one maximum and one minimum per row.
    """
    ids = first_of_largest(scores, axis)
    if not names:
        return ids
    ids = ids + lax.axis_index(names) * scores.shape[axis]
    best = jnp.max(scores, axis, keepdims=True)
    return lax.pmin(jnp.where(best == lax.pmax(best, names), ids, NONE), names)
