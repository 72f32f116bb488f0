"""Draws a class of every row from the softmax of its logits."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax.border import _mesh_axes
from jsoftmax.border._arrays import rows_of, with_rank
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.functions._information import log_prob
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows._row_numbers import on_one_axis
from jsoftmax.sampling import _noise, _race
from jsoftmax.sampling._race import Draw, ShiftedRows, Static


@compiled("axis", "shape", "axis_name")
def categorical(
    key: ArrayLike,
    logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    shape: Sequence[int] | None = None,
    axis_name: MeshAxes = None,
) -> Draw:
    """A class drawn from the softmax of logits/T, for every row, and its log-probability.

        ids = argmax (z + g),   g = −log E,   E exponential;     log_probs = log p at the ids

    This is the Gumbel-max trick. z = logits/T is shifted and computed in at least float32. The noise g is in
    float32 and has 63 random bits, whatever the dtype of the logits: a class of probability 1e-12 is drawn
    with that probability. The noise is a function of the key, the row and the class only, so a draw does not
    depend on the sharding of rows and classes.

    With a temperature of 0, the draw is the first of the largest logits, with log-probability 0. A row
    without a live class draws −1 with log-probability −inf; a row with NaN or +inf in a live class draws −1
    with NaN.

    Derivative: that of `log_prob` at the ids, in the logits and the temperature; 0 if T is 0. Ids have none.

    Args:
      key: a random key, of `jax.random.key`.
      logits: any shape.
      axis: the class axis, of any sign, a tuple of axes, or None for all.
      where: True for the classes that may be drawn; broadcasts to the shape of the logits.
      temperature: T, a number, or an array with one entry per row; 0 is greedy.
      shape: the shape of the ids, (…, *rows), for several draws per row; None for one draw per row.
      axis_name: as in `softmax`. Ids count the classes of all shards. The draw exchanges one maximum and one
        minimum per row. Rows sharded over other mesh axes have distinct noise, if the key is the same there.

    Returns:
      `Draw`: ids as int32, and log-probabilities in at least float32.

    Raises:
      TypeError, ValueError: for no key or several keys; for a `shape` that does not end in the shape of the
        rows; otherwise as in `softmax`.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> logits = jnp.log(jnp.array([0.7, 0.2, 0.1]))
    >>> draw = jsoftmax.sampling.categorical(jax.random.key(0), logits, shape=(10_000,))
    >>> print(jnp.bincount(draw.ids))
    [6910 2102  988]
    >>> print(jsoftmax.sampling.categorical(jax.random.key(0), logits, temperature=0).ids)
    0

    Source: Gumbel, *Statistical theory of extreme values*, 1954; Maddison, Tarlow & Minka, A* sampling,
    NeurIPS 2014.
    """
    call = Call(
        "sampling.categorical",
        key=key,
        logits=logits,
        axis=axis,
        where=where,
        temperature=temperature,
        shape=shape,
        axis_name=axis_name,
    )
    x = call.floats("logits")
    axes = call.axes(x.shape)
    names = _mesh_axes.of_classes(call, ("logits",))
    words = _noise.words(call)
    prefix = _prefix(call, rows_of(x.shape, axes))
    is_greedy = _race.as_rows(_race.greedy_rows(call), x, axes)
    scaling = _scaling.of_call(call, x, axes)
    static = Static(axes[0] + len(prefix), names, is_greedy is True)
    traced_greedy = None if is_greedy is True else is_greedy
    if len(axes) != 1:
        x, scaling, traced_greedy = on_one_axis(axes, x, scaling, traced_greedy)
        static = static._replace(axis=len(prefix) + x.ndim - 1)
    x = jnp.broadcast_to(x, (*prefix, *x.shape))
    scaling, is_greedy = jax.tree.map(lambda a: with_rank(a, x.ndim), (scaling, traced_greedy))
    ids, row = _draw(static, words, x, scaling, is_greedy)
    log_probs = log_prob(
        x,
        jnp.maximum(ids, 0),
        axis=static.axis,
        where=scaling.where,
        temperature=scaling.temperature,
        axis_name=names or None,
    )
    return Draw(ids, row.log_probs(log_probs, static))


@partial(jax.jit, static_argnums=0)
def _draw(
    static: Static, words: Array, x: Array, scaling: Scaling, is_greedy: Array | None
) -> tuple[Array, ShiftedRows]:
    """The ids, and the `ShiftedRows` without their logits."""
    axis, names, all_greedy = static
    row = _race.shifted_rows(static, x, scaling, is_greedy)
    at = _noise.positions(words, x, (axis,), names)
    scores = _race.scores(words, at, row, is_greedy=all_greedy)
    ids = _race.winner(scores, axis, names)
    row = jax.tree.map(lambda a: jnp.squeeze(a, axis), row._replace(u=jnp.zeros_like(ids)))
    return row.winners(jnp.squeeze(ids, axis)), row


def _prefix(call: Call, rows: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes of the ids, before the axes of the rows."""
    given = call.arguments["shape"]
    if given is None:
        return ()
    try:
        shape = tuple(operator.index(n) for n in given)
    except TypeError:
        raise call.error(
            TypeError, f"shape is {given!r}", f"write a tuple of ints, as {(2, *rows)}"
        ) from None
    count = len(shape) - len(rows)
    if count < 0 or shape[count:] != rows or min(shape, default=0) < 0:
        problem = f"shape {shape} does not end in that of the rows, {rows}"
        raise call.error(ValueError, problem, f"write {(2, *rows)} for two draws of each row")
    return shape[:count]
