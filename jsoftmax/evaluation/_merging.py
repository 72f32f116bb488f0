"""Merges states: the states of two batches, and the states of all shards."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.border._call import Call
from jsoftmax.evaluation import _sums
from jsoftmax.evaluation._state import State, check_states, measures
from jsoftmax.evaluation._sums import added, is_sum


def merge(a: State, b: State) -> State:
    """The state of the rows of both: of two batches, devices, processes or files, in any order.

    Merging is commutative to the last bit and associative to about 1e-14 per merge; `empty` is neutral.

    Raises:
      TypeError, ValueError: if an argument is not a state, or the states do not measure the same.

    >>> import jax.numpy as jnp
    >>> from jsoftmax import evaluation
    >>> nothing = evaluation.empty()
    >>> one, two = (evaluation.update(nothing, jnp.eye(3), jnp.array(y)) for y in ([0, 1, 2], [0, 0, 0]))
    >>> print(f"{evaluation.compute(evaluation.merge(one, two)).accuracy:.4f}")
    0.6667

    Processes gather all states, stacked, and each process merges them; or they pass files on, with `save`:

    >>> import functools, jax, numpy as np
    >>> stacked = jax.tree.map(lambda *leaves: np.stack(leaves), one, two)  # as process_allgather(state) does
    >>> states = [jax.tree.map(lambda leaf: leaf[i], stacked) for i in range(2)]
    >>> print(f"{evaluation.compute(functools.reduce(evaluation.merge, states)).accuracy:.4f}")
    0.6667
    """
    check_states("merge", a=a, b=b)
    if measures(a) != measures(b):
        call = Call("evaluation.merge", a=measures(a), b=measures(b))
        problem = "the states differ in what they measure"
        raise call.error(ValueError, problem, "begin both with the same evaluation.empty(...)")
    return added(a, b)


def merge_across(state: State, axis_name: str | Sequence[str]) -> State:
    """The state of the rows of all shards along a named axis, the same on every shard.

    One all-reduce gathers the states: each shard contributes an array of zeros that holds its own state at
    its own index. A plain sum of the states would round away their low words.

    >>> import jax, jax.numpy as jnp
    >>> from jsoftmax import evaluation
    >>> def shard(logits, labels):
    ...     state = evaluation.update(evaluation.empty(), logits, labels)
    ...     return evaluation.compute(evaluation.merge_across(state, "shards")).accuracy
    >>> logits, labels = jnp.stack([jnp.eye(3)] * 2), jnp.array([[0, 1, 2], [0, 0, 0]])
    >>> print(jax.vmap(shard, axis_name="shards")(logits, labels))
    [0.6666667 0.6666667]
    """
    check_states("merge_across", state=state)
    shard, shards = lax.axis_index(axis_name), lax.axis_size(axis_name)

    def side_by_side(leaf: Array) -> Array:
        place = lax.broadcasted_iota(jnp.int32, (shards, *(1,) * leaf.ndim), 0)
        return jnp.where(place == shard, leaf[None], 0)

    stacked = lax.psum(jax.tree.map(side_by_side, state), axis_name)
    return jax.tree.map(lambda part: _sums.fold(part, (0,)), stacked, is_leaf=is_sum)
