"""The placement of arrays: manual axes of `jax.shard_map` they vary over, and explicit mesh axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Names = frozenset[Hashable]


def varies(a: Any) -> Names:
    """The manual axes over which an array varies; none outside `jax.shard_map`."""
    return jax.typeof(a).manual_axis_type.varying


def in_order(names: Iterable[Hashable]) -> tuple[Any, ...]:
    """The names of mesh axes in an order that does not depend on the process."""
    return tuple(sorted(names, key=str))


def varying(a: Array, *like: Any, except_for: tuple[str, ...] = ()) -> Array:
    """The array, marked as varying over every axis that the trees `like` vary over: loop carries need it."""
    over = frozenset[Hashable]().union(*map(varies, jax.tree.leaves(like))) - varies(a) - {*except_for}
    return lax.pcast(a, in_order(over), to="varying") if over else a


class Place(NamedTuple):
    """The placement of an argument: manual axes it varies over, and its spec over explicit axes, if any."""

    varying: Names
    explicit: PartitionSpec | None


def place(a: Array) -> Place:
    """The placement of an array."""
    return Place(varies(a), partition_spec(a, *spec(a)))


def sharded_like_argument(cotangent: Array, to: Place) -> Array:
    """A cotangent, summed over the shards that share its argument, and sharded like the argument."""
    over = varies(cotangent) - to.varying
    if over:
        cotangent = lax.psum(cotangent, in_order(over))
    if to.explicit is not None and place(cotangent).explicit != to.explicit:
        cotangent = jax.sharding.reshard(cotangent, to.explicit)
    return cotangent


def shared_axes(arrays: Any, *, except_for: tuple[str, ...] = ()) -> Any:
    """For each array, the manual axes over which another one varies, but not this one."""
    over = frozenset[Hashable]().union(*map(varies, jax.tree.leaves(arrays))) - {*except_for}
    return jax.tree.map(lambda a: over - varies(a), arrays)


def spec(a: Array) -> tuple[Any, ...]:
    """The explicit mesh axes that shard each axis of an array; None for an axis that is not sharded."""
    return tuple(jax.typeof(a).sharding.spec)


def sharded_like(a: Array, x: Any, *axes: int) -> Array:
    """The array `a`, sharded like these axes of x (all by default), along which it broadcasts."""
    if not isinstance(x, Array):
        return a
    axes = axes or tuple(range(x.ndim))
    names = (None if n == 1 else spec(x)[axis] for axis, n in zip(axes, a.shape, strict=True))
    wanted = partition_spec(x, *names)
    same = wanted is None or place(a).explicit == wanted
    return a if same else jax.sharding.reshard(a, wanted)


def replicated(a: Array) -> Array:
    """The array, the same on all devices of a mesh with explicit axes."""
    layout = partition_spec(a, *(None,) * a.ndim)
    return a if layout is None or not any(spec(a)) else jax.sharding.reshard(a, layout)


def partition_spec(a: Array, *names: Any) -> PartitionSpec | None:
    """The `PartitionSpec` with these names, if the mesh of the array has explicit axes; else None."""
    kinds = jax.typeof(a).sharding.mesh.axis_types
    return PartitionSpec(*names) if AxisType.Explicit in kinds else None


def on_automatic_axes(function: Callable[[Any], Any], arrays: Any, names: Sequence[Any], like: Any) -> Any:
    """``function(arrays)``, as if the explicit axes of the mesh of `like` were automatic.

    `names` are the mesh axes that shard each axis of the output; XLA places all other arrays.
    """
    mesh = jax.typeof(like).sharding.mesh
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = [name for name, kind in kinds if kind == AxisType.Explicit]
    placed = NamedSharding(mesh, PartitionSpec(*names))
    return jax.sharding.auto_axes(function, axes=tuple(explicit), out_sharding=placed)(arrays)


def zeros(shape: tuple[int, ...], like: Any) -> Array:
    """Zeros of this shape, with the dtype and the placement of `like`, which has the same rank."""
    return varying(jnp.zeros(shape, like.dtype, out_sharding=partition_spec(like, *spec(like))), like)


def is_known(a: Array) -> bool:
    """Whether the shape consists of numbers; under `jax.export` it may contain symbols, without bounds."""
    return all(isinstance(n, int) for n in a.shape)


def on_one_device(a: Array, *axes: int) -> bool:
    """Whether these axes certainly lie on one device, so that slicing them moves no data between devices.

    False for an unknown shape, and if a mesh may shard the array in a way unknown at trace time, as under
    `jax.jit` with several devices.
    """
    if not is_known(a):
        return False
    mesh = jax.typeof(a).sharding.mesh
    if mesh.empty:
        return one_device()
    known = AxisType.Auto not in mesh.axis_types
    return mesh.size == 1 or (known and all(spec(a)[axis] is None for axis in axes))


def one_device() -> bool:
    """Whether the process has one device only."""
    try:
        return jax.device_count() == jax.device_count("cpu") == 1
    except RuntimeError:  # JAX may be told to use no CPU at all
        return jax.device_count() == 1


def shard_count(names: tuple[str, ...]) -> int:
    """The number of shards along mesh axes of `jax.shard_map`; 1 without names."""
    return lax.axis_size(names) if names else 1


def ids_of_shard(ids: Array, classes: int, names: tuple[str, ...]) -> Array:
    """Class ids relative to this shard, which holds `classes` classes: its own classes have ids from 0 up."""
    return ids - (lax.axis_index(names) * classes).astype(ids.dtype) if names else ids


def on_first_shard(a: Array, names: Iterable[Hashable]) -> Array:
    """The array on the first shard and 0 on the others, so that a sum over the shards counts it once."""
    axes = in_order(names)
    return jnp.where(lax.axis_index(axes) == 0, a, 0) if axes else a


def shared_like(tangent: Array, output: Array) -> Array:
    """A tangent that is the same on the shards that share the output, marked as shared by the same shards."""
    if axes := varies(tangent) - varies(output):
        tangent = lax.psum(on_first_shard(tangent, axes), in_order(axes))
    return varying(tangent, output)


def shards(a: Array, axis: int) -> int:
    """The number of shards into which explicit mesh axes divide an axis of an array."""
    names = spec(a)[axis]
    sizes = jax.typeof(a).sharding.mesh.shape
    return math.prod(sizes[name] for name in ((names,) if isinstance(names, str) else names or ()))


def most_shards(a: Array, axis: int) -> int:
    """An upper bound, as known at trace time, for the number of shards that divide an axis of an array."""
    if on_one_device(a, axis):
        return 1
    mesh = jax.typeof(a).sharding.mesh
    if mesh.empty:
        return jax.device_count()
    return mesh.size if AxisType.Auto in mesh.axis_types else shards(a, axis)
