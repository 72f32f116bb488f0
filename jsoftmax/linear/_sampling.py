"""An unbiased gradient of a block of rows, from some of its classes.

In a trained model, almost all classes have a negligible gradient dz. A block takes its active classes (its
labels, and those with p ≥ threshold in one of its rows), and each other class with the probability `keep`:

    dhidden = Σ dz_j w_j/π_j,   dw_j = Σ dz_j h/π_j,   over the classes taken;   π_j = 1, or keep

The mean of each sum is the exact gradient. If most classes are active, a block takes all classes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online
from jsoftmax.linear import _block, _plan, _products, _single_classes
from jsoftmax.linear._products import Rows, Shared, Static
from jsoftmax.logits import _scaling
from jsoftmax.rows._statistics import Saved
from jsoftmax.transforms import _platforms
from jsoftmax.transforms._autodiff import with_tangent
from jsoftmax.transforms._platforms import by_platform, hidden
from jsoftmax.transforms._sharding import is_known, on_one_device, partition_spec, spec, varying, zeros

# If more than 1/CAPACITY of the classes are active, a block takes all: gathering would cost more time.
CAPACITY = 2
# A group of taken classes is 1/32 of all classes, rounded up to a multiple of 128.
GROUPS, GROUP = 32, 128


class _Chosen(NamedTuple):
    times: Array  # [V]: the factor 1/π of a class that is taken, 0 of the others
    every: Array  # whether more classes are active than `CAPACITY` allows


def backward(
    static: Static,
    size: int,
    rows: Rows,
    shared: Shared,
    sums: Shared,
    saved: Saved,
    cotangents: dict[str, Array | None],
    x: Array | None = None,
) -> tuple[Shared, Rows]:
    """`_block.backward` of a block with all classes, from the classes that `static.sampling` selects.

    The key in `sums` is for this block; the returned sums contain the key for the next block.
    """
    rows = rows.of_block(saved.has_numbers)
    x = _block.logits(static, size, rows, shared) if x is None else x
    key, own = (None, None) if sums.key is None else _split(sums.key)
    chosen = _choose(static, rows, shared, saved, x, own)
    arguments = rows, shared, sums._replace(key=None), saved, cotangents, x
    spread = any(name is not None for name in spec(shared.weight))
    if _platforms.is_plain() or spread or not is_known(shared.weight):
        times = jnp.where(chosen.every, 1, chosen.times)[None, :]
        sums, of_rows = _block.backward(static, shared.weight.shape[static.vocab_axis], *arguments, times)
    else:
        sums, of_rows = _gathered((static, size), arguments, chosen)
    return sums._replace(key=key), of_rows


def _split(key: Array) -> tuple[Array, Array]:
    keys = jax.random.split(jax.random.wrap_key_data(key, impl="threefry2x32"))
    return jax.random.key_data(keys[0]), jax.random.key_data(keys[1])


def _choose(static: Static, rows: Rows, shared: Shared, saved: Saved, x: Array, key: Array | None) -> _Chosen:
    """The classes to take: the labels, those with p ≥ threshold in a row, and a sample of the others.

    If a row has a NaN loss, all classes are active, so that NaN is where the exact gradient has it.
    """
    threshold, keep = static.sampling or (0.0, 0.0)
    classes, state = x.shape[1], saved.state
    log_least = math.log(threshold) if threshold else -math.inf
    # p = exp(u)/(1 + rest). A row without a live class, or that does not count, makes no class active.
    least = jnp.where(state.rest < 0, jnp.inf, online.log_total(state.rest) + log_least)
    least = jnp.where(jnp.isnan(saved.numbers["nll"]), jnp.nan, least)
    low = _scaling.shifted(x, rows.scaling, state.max).u < least
    active = ~jnp.all(low if rows.counted is None else low | ~rows.counted, 0)
    labels, everywhere = rows.labels, partition_spec(rows.labels, None, None)
    labels = labels if everywhere is None else jax.sharding.reshard(labels, everywhere)
    labels = jnp.where((labels >= 0) & (labels < classes), labels, classes)
    active = active.at[labels].set(True, mode="drop")
    times = jnp.where(active, 1, 0).astype(x.dtype)
    if key is not None:
        wrapped = jax.random.wrap_key_data(key, impl="threefry2x32")
        is_kept = jax.random.bernoulli(wrapped, keep, (classes,))
        times = jnp.where(active, 1, jnp.where(is_kept, 1 / keep, 0)).astype(x.dtype)
    return _Chosen(times, jnp.sum(active) > classes // CAPACITY)


def _of_taken(static: tuple[Static, int], arguments: Any, chosen: _Chosen) -> tuple[Shared, Rows]:
    """The gradients from the taken classes, group by group, or from all classes if too many are active.

    Each case is a loop, and one of the two has no iterations: a `cond` would copy the sums.
    """
    own, size = static
    rows, shared, sums, saved, cotangents, x = arguments
    classes = len(chosen.times)
    length = min(-(-classes // (GROUPS * GROUP)) * GROUP, classes)
    ids, place = _listed(chosen.times > 0, -(-classes // length) * length)
    valid = (rows.labels >= 0) & (rows.labels < classes)
    renamed = rows._replace(labels=jnp.where(valid, _read(place, rows.labels), -1))

    def of_group(i: Array) -> tuple[Array, Shared, Rows]:
        here = _plan.part(ids, i * length, length, 0)
        tile = own.taken(shared, here)
        of_tile = renamed._replace(where=_single_classes.taken(rows.where, here, 1))
        of_ids = _logits_of(own, x, here, of_tile, tile)
        row_args = _products.row_arguments(of_ids, of_tile, tile, i * length, whole=False)
        times = chosen.times.at[here].get(mode="fill", fill_value=0)[None, :]
        found, of_rows = _block.of_part(
            own,
            of_tile,
            tile,
            _products.zero_gradients(own.asked[1], rows, tile),
            saved._replace(row_args=row_args),
            cotangents,
            i == 0,
            times,
        )
        return here, found, of_rows

    def add(i: Array, carry: tuple[Shared, Rows]) -> tuple[Shared, Rows]:
        here, found, of_rows = of_group(i)
        return own.added(carry[0], found, here), jax.tree.map(jnp.add, carry[1], of_rows)

    def all_at_once(i: Array, carry: tuple[Shared, Rows]) -> tuple[Shared, Rows]:
        # Else XLA moves the products of the first tile before the loop, which mostly has no iteration.
        x_here, _ = hidden((x, i))
        return _block.backward(own, size, rows, shared, carry[0], saved, cotangents, x_here)

    def nothing(a: Any) -> Array:
        return varying(zeros(a.shape, a), arguments, chosen)

    carry = sums, jax.tree.map(nothing, jax.eval_shape(of_group, jnp.int32(0))[2])
    carry = lax.fori_loop(0, jnp.where(chosen.every, 1, 0), all_at_once, carry)
    groups = jnp.where(chosen.every, 0, -(-(place[-1] + 1) // length))
    sums, of_rows = lax.fori_loop(0, groups, add, carry)
    return sums, of_rows._replace(hidden=rows.masked(of_rows.hidden))


def _logits_of(static: Static, x: Array, ids: Array, rows: Rows, shared: Shared) -> Array:
    """The logits of the classes with these ids, which are those of `shared`; x has the logits of all."""

    def again(x: Array, ids: Array, rows: Rows, shared: Shared) -> Array:
        return _products.logits(static, rows, shared)

    def read(x: Array, ids: Array, rows: Rows, shared: Shared) -> Array:
        return _single_classes.columns_of(x, ids)

    if not on_one_device(x, 0, 1):
        return again(x, ids, rows, shared)
    own = read, "read from those of all classes"
    return by_platform("the logits of the taken classes", x, ids, rows, shared, plain=again, cpu=own)


def _listed(is_taken: Array, length: int) -> tuple[Array, Array]:
    """The ids of the taken classes, padded by an id out of range, and the index of each class in them."""
    classes = len(is_taken)
    place = jnp.cumsum(is_taken, dtype=jnp.int32) - 1
    ids = jnp.full(length, classes, jnp.int32).at[jnp.where(is_taken, place, length)]
    return ids.set(jnp.arange(classes, dtype=jnp.int32), mode="drop"), place


def _read(place: Array, labels: Array) -> Array:
    labels = jnp.clip(labels, 0, len(place) - 1)
    return place.at[labels].get(mode="promise_in_bounds", out_sharding=partition_spec(labels, *spec(labels)))


def _derivative(static: tuple[Static, int], arguments: Any, tangents: Any) -> Any:
    """The derivative of the exact gradients, so that second derivatives are exact."""
    own, size = static

    def exact(arguments: Any) -> tuple[Shared, Rows]:
        return _block.backward(own, size, *arguments)

    return jax.jvp(exact, (arguments[0],), (tangents,))[1]


_gathered = with_tangent(_of_taken, _derivative)
