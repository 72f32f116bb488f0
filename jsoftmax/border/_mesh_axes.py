"""Checks the mesh axes that a call within `jax.shard_map` names: `axis_name` and `row_axis_name`."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jsoftmax.border._call import Call
from jsoftmax.transforms._sharding import varies

MeshAxes = str | Sequence[str] | None

# These arguments may differ from one shard of the classes to the next; all others must be equal on them.
_OF_CLASSES = frozenset({"where", "class_weights", "b"})
_OF_HEADS = ("hidden", "weight", "bias")


def of_classes(call: Call, sharded: Sequence[str]) -> tuple[str, ...]:
    """The names in `axis_name`. The arguments in `sharded` must vary over them, shared arguments must not."""
    names = _names(call, "axis_name", sharded)
    for argument, value in call.arguments.items():
        if (
            not names
            or argument in sharded
            or argument in _OF_CLASSES
            or argument.endswith(_OF_HEADS)
            or not hasattr(value, "dtype")
        ):
            continue
        if argument == "labels" and jnp.issubdtype(value.dtype, jnp.floating):
            continue
        if common := varies(value) & set(names):
            problem = f"{argument} varies over {', '.join(map(repr, sorted(common, key=str)))}"
            remedy = f"if it is the same on all shards of the classes, write lax.pmax({argument}, axis_name)"
            raise call.error(ValueError, problem, remedy)
    return names


def of_rows(call: Call, sharded: str) -> tuple[str, ...]:
    """The names in `row_axis_name`. The argument `sharded` must vary over them."""
    names = _names(call, "row_axis_name", (sharded,))
    if names and call.arguments["reduction"] == "none":
        problem = 'row_axis_name is for sums and means, and the reduction is "none"'
        raise call.error(ValueError, problem, 'write reduction="mean" or "sum", or leave it out')
    return names


def of_batch(call: Call, sharded: Sequence[str]) -> tuple[str, ...]:
    """The names in `axis_name` of a batch. The arguments in `sharded` must vary over them."""
    return _names(call, "axis_name", sharded)


def _names(call: Call, argument: str, sharded: Sequence[str]) -> tuple[str, ...]:
    given = call.arguments[argument]
    if given is None:
        return ()
    several = isinstance(given, Sequence) and not isinstance(given, str)
    names = tuple(given) if several else (given,)
    for name in names:
        try:
            lax.axis_size(name)
        except (NameError, TypeError, ValueError):
            problem = f"{argument} {name!r} is not a mesh axis here"
            remedy = f"call it within a jax.shard_map whose mesh has the axis, or leave {argument} out"
            raise call.error(ValueError, problem, remedy) from None
        for array in sharded:
            if name not in varies(jnp.asarray(call.arguments[array])):
                problem = f"{array} does not vary over {argument} {name!r}"
                remedy = f"shard it over the axis by in_specs, with check_vma=True, or leave {argument} out"
                raise call.error(ValueError, problem, remedy)
    return names
