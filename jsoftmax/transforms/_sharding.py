"""Where an array lies: over which manual axes of `jax.shard_map` it varies, and how a mesh shards it."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec

Names = frozenset[Hashable]


def varies(a: Any) -> Names:
    """The manual axes over which an array varies; none outside `jax.shard_map`."""
    return jax.typeof(a).manual_axis_type.varying


def varying(a: Array, *like: Any) -> Array:
    """An array, as one that varies wherever those of the trees `like` do: what a loop's carry has to be."""
    over = frozenset[Hashable]().union(*map(varies, jax.tree.leaves(like))) - varies(a)
    return lax.pcast(a, tuple(sorted(over, key=str)), to="varying") if over else a


class Place(NamedTuple):
    """Where an argument lies: the manual axes over which it varies, and the explicit ones that shard it."""

    varying: Names
    explicit: PartitionSpec | None


def place(a: Array) -> Place:
    """Where an array lies."""
    return Place(varies(a), laid_out(a, *spec(a)))


def brought_back(cotangent: Array, to: Place) -> Array:
    """The cotangent of an argument: summed over the shards that share the argument, and sharded as it is."""
    over = varies(cotangent) - to.varying
    if over:
        cotangent = lax.psum(cotangent, tuple(sorted(over, key=str)))
    if to.explicit is not None and place(cotangent).explicit != to.explicit:
        cotangent = jax.sharding.reshard(cotangent, to.explicit)
    return cotangent


def spec(a: Array) -> tuple[Any, ...]:
    """How the explicit axes of a mesh shard an array, axis by axis; None where they do not."""
    return tuple(jax.typeof(a).sharding.spec)


def laid_like(a: Array, x: Any, *axes: int) -> Array:
    """An array that broadcasts along axes of x, all of them if none are named, laid out as x is there."""
    if not isinstance(x, Array):
        return a
    axes = axes or tuple(range(x.ndim))
    names = (None if n == 1 else spec(x)[axis] for axis, n in zip(axes, a.shape, strict=True))
    wanted = laid_out(x, *names)
    same = wanted is None or place(a).explicit == wanted
    return a if same else jax.sharding.reshard(a, wanted)


def laid_out(a: Array, *names: Any) -> PartitionSpec | None:
    """How to lay out what is made of an array, in terms of the explicit axes of its mesh, if it has any."""
    kinds = jax.typeof(a).sharding.mesh.axis_types
    return PartitionSpec(*names) if AxisType.Explicit in kinds else None


def zeros(shape: tuple[int, ...], like: Any) -> Array:
    """Zeros of the dtype of an array of the same rank, laid out and varying as it is."""
    return varying(jnp.zeros(shape, like.dtype, out_sharding=laid_out(like, *spec(like))), like)


def is_known(a: Array) -> bool:
    """Whether the shape is one of numbers; `jax.export` takes symbols too, which no bound holds for."""
    return all(isinstance(n, int) for n in a.shape)


def is_whole(a: Array, *axes: int) -> bool:
    """Whether axes of an array of known shape are known to lie on one device: slicing them moves nothing.

    Under `jax.jit` alone an array may be sharded in any way, which is not known while it is traced.
    """
    if not is_known(a):
        return False
    mesh = jax.typeof(a).sharding.mesh
    if mesh.empty:
        return one_device()
    known = AxisType.Auto not in mesh.axis_types
    return mesh.size == 1 or (known and all(spec(a)[axis] is None for axis in axes))


def one_device() -> bool:
    """Whether there is no second device that an array could lie on."""
    try:
        return jax.device_count() == jax.device_count("cpu") == 1
    except RuntimeError:  # JAX may be told to use no CPU at all
        return jax.device_count() == 1


def shard_count(names: tuple[str, ...]) -> int:
    """How many shards there are along mesh axes of `jax.shard_map`."""
    return lax.axis_size(names) if names else 1


def ids_of_shard(ids: Array, classes: int, names: tuple[str, ...]) -> Array:
    """Class ids as counted on a shard that holds so many of the classes: its own are those from 0 up."""
    return ids - (lax.axis_index(names) * classes).astype(ids.dtype) if names else ids


def of_first_shard(a: Array, names: tuple[str, ...]) -> Array:
    """An array on the first shard, and 0 on the others: what their sum is to hold once."""
    return jnp.where(lax.axis_index(names) == 0, a, 0) if names else a


def shards(a: Array, axis: int) -> int:
    """Into how many parts the explicit axes of a mesh cut an axis of an array."""
    names = spec(a)[axis]
    sizes = jax.typeof(a).sharding.mesh.shape
    return math.prod(sizes[name] for name in ((names,) if isinstance(names, str) else names or ()))


def most_shards(a: Array, axis: int) -> int:
    """Into how many parts an axis of an array may be cut, as far as is known."""
    if is_whole(a, axis):
        return 1
    mesh = jax.typeof(a).sharding.mesh
    if mesh.empty:
        return jax.device_count()
    return mesh.size if AxisType.Auto in mesh.axis_types else shards(a, axis)
