"""Trees of arguments, residuals and cotangents, as derivative rules pass them; some leaves are None."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jsoftmax.transforms._sharding import in_order, varies

# JAX refuses forward mode by these names. It does so during the call, unless a `jax.jit` is between the two.
REFUSALS = ("custom_vjp", "custom_lin")
REMEDY = "Write `with jsoftmax.forward_mode():` around the derivative: see jsoftmax.forward_mode."


def made_at_first_call(make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """The function that ``make()`` returns. A `jax.jit` for every rule would take most of an import."""
    made = functools.cache(make)

    def call(*arguments: Any, **options: Any) -> Any:
        return made()(*arguments, **options)

    return call


def as_custom_vjp(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(static, *arguments)`` as a call of a `custom_vjp` needs it.

    - Within `jax.shard_map` it is within `jax.jit` too: outside, JAX does not accept symbolic zeros there.
    - JAX's refusal of forward mode names the remedy.
    """
    traced = jax.jit(function, static_argnums=0, inline=True)

    def call(static: Any, *arguments: Any) -> Any:
        within_shard_map = bool(jax.sharding.get_abstract_mesh().manual_axes)
        try:
            return (traced if within_shard_map else function)(static, *arguments)
        except (TypeError, NotImplementedError) as error:
            is_refusal = any(name in str(error) for name in REFUSALS)
            if is_refusal and REMEDY not in getattr(error, "__notes__", ()):
                error.add_note(REMEDY)
            raise

    return call


def with_arguments_kept(save: Callable[..., Any]) -> Callable[..., Any]:
    """``save(static, *arguments)``, compiled; residuals that are arguments are the same arrays, not copies.

    As outputs of the program they would be copies, and a NaN under a mask would trigger `jax_debug_nans`.
    """

    @partial(jax.jit, static_argnums=0)
    def program(static: Any, *arguments: Any) -> Any:
        output, residuals = save(static, *arguments)
        positions = {id(a): i for i, a in enumerate(jax.tree.leaves(arguments))}
        leaves, tree = jax.tree.flatten(residuals)
        origins = tuple(positions.get(id(leaf)) for leaf in leaves)
        made = [leaf for leaf, origin in zip(leaves, origins, strict=True) if origin is None]
        return output, made, Static((tree, origins))

    def call(static: Any, *arguments: Any) -> Any:
        output, made, layout = program(static, *arguments)
        tree, origins = layout.value
        given, rest = jax.tree.leaves(arguments), iter(made)
        leaves = [next(rest) if origin is None else given[origin] for origin in origins]
        return output, jax.tree.unflatten(tree, leaves)

    return call


@jax.tree_util.register_static
class Static:
    """A hashable value that may be part of the residuals."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.value == other.value


def mapped_together(outputs: Any, *others: Any) -> Any:
    """The outputs of a function with rules, each as a function of all of them and of `others`.

    Then under `jax.vmap` all outputs have the mapped axis, or none has. Of an output without it, whose
    derivative has it, JAX may count the derivative once for each element: so does a `custom_vjp` before jax
    0.12, and a `custom_jvp` within `jax.jit`. In other cases JAX raises an error. XLA removes the selects, as
    both branches are the same, and with them the sums over mesh axes: within `jax.shard_map`, a number of an
    output that varies over more axes would make this output vary over them.
    """
    leaves, tree = jax.tree.flatten(outputs)
    arrays = [*leaves, *jax.tree.leaves(others)]
    if len(arrays) < 2:
        return outputs
    alike = all(a.shape == leaves[0].shape for a in arrays)
    are_numbers = [a == a if alike else jnp.all(a == a) for a in arrays]

    def fitting(is_number: Array, a: Array) -> Array:
        more = in_order(varies(is_number) - varies(a))
        return lax.psum(is_number.astype(jnp.int32), more) > 0 if more else is_number

    def dependent(a: Array) -> Array:
        each = (fitting(is_number, a) for is_number in are_numbers)
        return lax.select_n(functools.reduce(jnp.logical_and, each), a, a)

    return jax.tree.unflatten(tree, list(map(dependent, leaves)))


def values_and_asked(primals: Any) -> tuple[Any, Any]:
    """The values of the arguments that `custom_vjp` passes, and which of them are differentiated."""

    def is_leaf(p: Any) -> bool:
        return hasattr(p, "perturbed")

    return tuple(
        jax.tree.map(attribute, primals, is_leaf=is_leaf)
        for attribute in (lambda p: p.value, lambda p: p.perturbed)
    )


def along(f: Callable[..., Any], cotangents: Any, *facts: Any) -> Any:
    """`f` of every cotangent and the facts about its argument; None stays None, also for a whole subtree."""

    def apply(d: Any, *facts: Any) -> Any:
        return None if d is None else f(d, *facts)

    return jax.tree.map(apply, cotangents, *facts, is_leaf=lambda d: d is None)


def in_dtypes_of(arguments: Any, cotangents: Any) -> Any:
    """The cotangents in the dtypes of their arguments; None stays None."""
    return along(lambda d, a: d.astype(a.dtype), cotangents, arguments)


def fill_none(chosen: Any, others: Any) -> Any:
    """The tree `chosen`, with each None replaced by the argument from `others`."""
    return jax.tree.map(lambda a, b: b if a is None else a, chosen, others, is_leaf=lambda a: a is None)


def without_zeros(tree: Any) -> Any:
    def known_zero(leaf: Any) -> bool:
        return isinstance(leaf, SymbolicZero)

    return jax.tree.map(lambda leaf: None if known_zero(leaf) else leaf, tree, is_leaf=known_zero)


def sweep_of_each(values: Any, asked: Any) -> Any:
    """The sweep over the residuals that computes each cotangent: 0 for the largest, then one for each sum.

    In one sweep, XLA would store what a sum, such as the cotangent of a temperature, shares with others.
    """
    sizes, tree = jax.tree.flatten(jax.tree.map(lambda a, is_asked: a.size if is_asked else 0, values, asked))
    known = all(isinstance(size, int) for size in sizes)  # under `jax.export`, one may be a symbol
    own = [known and 0 < size < max(sizes) for size in sizes]
    return jax.tree.unflatten(tree, (is_own * sum(own[: i + 1]) for i, is_own in enumerate(own)))
