"""Calls a kernel on logits of any rank, under `jax.vmap`, explicit sharding and differentiation.

A kernel itself takes two-dimensional arrays on one device, with the classes along the last axis.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from jsoftmax.backends._kernel_rows import Row
from jsoftmax.border import _backends, _given
from jsoftmax.border._call import Call
from jsoftmax.logits._scaling import Scaling
from jsoftmax.transforms import _modes
from jsoftmax.transforms._platforms import is_portable, with_kernels
from jsoftmax.transforms._sharding import is_known, partition_spec, sharded_like, spec, varying

Name = Literal[
    "state", "softmax", "log_softmax", "softmax backward", "log_softmax backward", "loss and gradient"
]
Platform = Literal["gpu", "tpu"]
BACKENDS = ("xla", "mosaic")
HOPPER = "9.0"
DTYPES = ("bfloat16", "float16", "float32")


class Wanted(NamedTuple):
    """A kernel, and what it needs to know beside the logits to say whether it fits."""

    name: Name
    where: Array | None = None


class Arrays(NamedTuple):
    """The arguments of a kernel; those that it does not take are None.

    x and g have the shape of the logits, `where` broadcasts to it; others have length 1 along the classes.
    """

    x: Array
    where: Array | None = None
    temperature: Array | None = None
    labels: Array | None = None
    scale: Array | None = None
    top: Array | None = None
    rest: Array | None = None
    g: Array | None = None

    @property
    def row(self) -> Row:
        """The logits and their scaling, as a kernel takes them."""
        return Row(self.x, self.where, self.temperature)


def module(platform: Literal["gpu", "tpu", "gpu_head"]) -> Any:
    """The kernels of a platform, loaded when a call asks for one."""
    return importlib.import_module(f"jsoftmax.backends._mosaic_{platform}")


def refuses(wanted: Wanted, x: Any, axes: tuple[int, ...], platform: Platform) -> str | None:
    """Why the kernel of this platform cannot compute rows like these; None if it can."""
    if jax.__version_info__ < (0, 11):
        return f"the kernels need jax 0.11 or later, and this is jax {jax.__version__}"
    if axes != (x.ndim - 1,):
        return "the classes are not along the last axis"
    if x.dtype.name not in DTYPES:
        return f"the dtype is {x.dtype.name}, not {', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
    if not is_known(x):
        return "the shape has a symbol"
    if not x.size:
        return "there are no logits"
    rows, classes = math.prod(x.shape[:-1]), x.shape[-1]
    shape: Any = jax.ShapeDtypeStruct  # the kernels look at shapes and dtypes
    where = None
    if wanted.where is not None:
        of_mask = 1 if math.prod(wanted.where.shape[:-1]) == 1 else rows
        where = shape((of_mask, classes), jnp.int8)
    row = Row(shape((rows, classes), x.dtype), where)
    reason: str | None = module(platform).refuses(row, wanted.name)
    return reason


def _refuses_here(wanted: Wanted, x: Any, axes: tuple[int, ...]) -> str | None:
    """Why no kernel can compute rows like these on JAX's default device; on CPU: on a GPU and on a TPU."""
    here = jax.default_backend()
    if here == "gpu" and (found := getattr(jax.devices()[0], "compute_capability", "")) != HOPPER:
        return f"the GPU has compute capability {found}, not {HOPPER} as those of the Hopper generation"
    of_here: list[Platform] = ["tpu"] if here == "tpu" else ["gpu"] if here == "gpu" else ["gpu", "tpu"]
    reasons = [refuses(wanted, x, axes, platform) for platform in of_here]
    if len(set(reasons)) > 1 and all(reasons):
        return f"for a GPU {reasons[0]}, and for a TPU {reasons[1]}"
    return reasons[0] if all(reasons) else None


@contextmanager
def asked_by(call: Call, name: Name, x: Any, axes: tuple[int, ...], where: Array | None) -> Iterator[None]:
    """Trace a public call with kernels, if its backend is "mosaic" and they can compute it."""

    def refused() -> str | None:
        given = call.arguments
        for option in ("sink", "soft_cap", "axis_name"):
            if given.get(option) is not None:
                return f"its kernels have no {option}"
        if _given.known_number(given.get("label_smoothing", 0)) != 0:
            return "its kernels have no label_smoothing but a known 0"
        if "labels" in given and not call.has_class_ids():
            return "its kernels are for class ids, not for target probabilities"
        if is_portable():
            return "a portable program has no kernels"
        return _refuses_here(Wanted(name, where), x, axes)

    if _backends.of_call(call, BACKENDS, refused) == "mosaic":
        with with_kernels():
            yield
    else:
        yield


def called(name: Name, platform: Platform, arrays: Arrays) -> Any:
    """The results of a kernel, each in the shape of the logits or with length 1 along the classes.

    `jax.vmap` adds its mapped axis to the rows.
    """

    @jax.custom_batching.custom_vmap
    def function(arrays: Arrays) -> Any:
        return _on_all_devices(name, platform, arrays)

    @function.def_vmap
    def with_more_rows(size: int, is_mapped: Any, arrays: Arrays) -> Any:
        if not size:
            one = jax.tree.map(
                lambda a, m: jnp.zeros((1, *a.shape[1:]), a.dtype) if m else a, arrays, *is_mapped
            )
            found, are_mapped = with_more_rows(1, is_mapped, one)
            return jax.tree.map(lambda a: a[:0], found), are_mapped
        arrays = jax.tree.map(lambda a, mapped: a if mapped else a[None], arrays, *is_mapped)
        full = jnp.broadcast_to(arrays.x, (size, *arrays.x.shape[1:]))
        g = None if arrays.g is None else jnp.broadcast_to(arrays.g, full.shape)
        found = function(arrays._replace(x=full, g=g))
        return found, jax.tree.map(lambda _: True, found)

    return function(arrays)


def _on_all_devices(name: Name, platform: Platform, arrays: Arrays) -> Any:
    """Rows that explicit mesh axes shard stay where they are: every device runs the kernel on its rows."""
    x, run = arrays.x, partial(_on_one_device, name, platform)
    rows, mesh = partition_spec(x, *spec(x)), jax.typeof(x).sharding.mesh
    if rows is None:
        return run(arrays)
    arrays = jax.tree.map(lambda a: sharded_like(a, x), arrays)
    layouts = jax.tree.map(lambda a: PartitionSpec(*spec(a)), arrays)
    return jax.shard_map(run, mesh=mesh, in_specs=(layouts,), out_specs=rows)(arrays)


def _on_one_device(name: Name, platform: Platform, arrays: Arrays) -> Any:
    rows = arrays.x.shape[:-1]
    where = arrays.where
    if where is not None:
        where = jnp.broadcast_to(where, (*where.shape[:-1], arrays.x.shape[-1])).astype(jnp.int8)
        arrays = arrays._replace(where=where)

    def flat(a: Array) -> Array:
        if math.prod(a.shape[:-1]) == 1 and a is where:
            return a.reshape(1, -1)
        return jnp.broadcast_to(a, (*rows, a.shape[-1])).reshape(-1, a.shape[-1])

    with jax.enable_x64(False):  # a number of Python would have 64 bits in the kernel
        found = _run(name, module(platform), jax.tree.map(flat, arrays))
    # A kernel for a GPU does not mark its results as varying over the axes of `jax.shard_map`.
    return jax.tree.map(lambda a: varying(a, arrays).reshape(*rows, a.shape[-1]), found)


def _run(name: Name, module: Any, arrays: Arrays) -> Any:
    row = arrays.row
    if name == "state":
        return module.state(row, arrays.labels)
    if name == "loss and gradient":
        return module.loss_and_gradient(row, arrays.labels, arrays.scale)
    if name in ("softmax", "log_softmax"):
        return getattr(module, name)(row)
    return module.backward(name.removesuffix(" backward"), row, arrays.top, arrays.rest, arrays.g)


def arrays_of(x: Array, scaling: Scaling, **others: Array | None) -> Arrays:
    """The arguments of a kernel for logits and their scaling; every mask and number in the rank of x."""
    temperature = scaling.temperature
    if temperature is not None:
        temperature = jnp.broadcast_to(temperature, (*x.shape[:-1], 1)).astype(jnp.float32)
    where = scaling.where
    if where is not None:
        where = where.reshape((1,) * (x.ndim - where.ndim) + where.shape)
    return Arrays(x, where, temperature, **others)


def with_plain_tangent(kernel: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel's value, with the derivatives, of any order, of a plain function that returns the same."""
    modes = _modes.traced()

    @jax.custom_jvp
    def function(*arguments: Any) -> Any:
        return kernel(*arguments)

    @function.defjvp
    def push(primals: Any, tangents: Any) -> tuple[Any, Any]:
        with modes.again():
            return function(*primals), jax.jvp(plain, primals, tangents)[1]

    return function
