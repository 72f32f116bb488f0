"""Attaches derivative rules to functions: the only module that does so.

A function of this package consists of three plain functions, none of which calls the decorated function:

- ``save(static, *arguments) -> (output, residuals)``
- ``pull(static, residuals, cotangent) -> cotangents``: one for each argument, None if it has no cotangent
- ``push(static, residuals, tangents) -> tangent`` of the output, linear in the tangents of the arguments

The cotangent of an output, or the tangent of an argument, is None if JAX knows that it is 0. The rules then
skip all that depends on it.

For higher derivatives, JAX differentiates these three functions as ordinary JAX code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax.transforms import _modes, _sharding
from jsoftmax.transforms._platforms import by_platform, recomputed
from jsoftmax.transforms._rule_trees import (
    Static,
    along,
    as_custom_vjp,
    fill_none,
    made_at_first_call,
    mapped_together,
    sweep_of_each,
    values_and_asked,
    with_arguments_kept,
    without_zeros,
)


def with_rules(
    save: Callable[..., Any],
    pull: Callable[..., Any],
    push: Callable[..., Any],
    *,
    value: Callable[..., Any] | None = None,
    selective: bool = False,
    sweeps: bool = True,
    summed_over: Callable[[Any], tuple[str, ...]] = lambda static: (),
) -> Callable[..., Any]:
    """The function whose value `save` computes, with rules for reverse mode and forward mode.

    `value`, if given, computes ``value(static, *arguments)`` faster, for calls without a derivative.

    A `selective` pull, ``pull(static, asked, residuals, cotangent)``, also learns which arguments are
    differentiated: `asked` is a tree of booleans like the arguments.

    With `sweeps`, accelerators run the pull once for each sum, such as the cotangent of a temperature.

    ``summed_over(static)`` are the mesh axes over whose shards some outputs, but not all, are sums. Over
    other axes, the cotangent of an output that the shards share counts on the first one only.

    ``function(static, *arguments, beside=arrays)`` names arrays by which the caller multiplies the output. A
    derivative in one of these uses the rule as well. Otherwise JAX refuses a forward derivative of it in the
    arguments, such as ``jacfwd(grad(loss, argnums=z_loss))`` in the logits.
    """
    value = value or (lambda static, *arguments: save(static, *arguments)[0])
    return made_at_first_call(partial(_with_rules, save, pull, push, value, selective, sweeps, summed_over))


def _with_rules(
    save: Callable[..., Any],
    pull: Callable[..., Any],
    push: Callable[..., Any],
    value: Callable[..., Any],
    selective: bool,
    sweeps: bool,
    summed_over: Callable[[Any], tuple[str, ...]],
) -> Callable[..., Any]:
    alone, push = _modes.in_modes_of_call(value), _modes.in_modes_of_call(push)

    @with_arguments_kept
    @_modes.in_modes_of_call
    def kept(static: Any, *arguments: Any) -> tuple[Any, Any]:
        output, residuals = save(static, *arguments)
        return mapped_together(output), residuals

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    @partial(jax.jit, static_argnums=0)
    def reverse(static: Any, beside: Any, *arguments: Any) -> Any:
        return mapped_together(alone(static, *arguments))

    pull = jax.jit(_modes.in_modes_of_call(pull), static_argnums=(0, 1) if selective else 0)

    def save_values(static: Any, beside: Any, *primals: Any) -> tuple[Any, Any]:
        values, asked = values_and_asked(primals)
        output, residuals = kept(static, *values)
        of_each = sweep_of_each(values, asked) if sweeps else jax.tree.map(lambda _: 0, asked)
        places = jax.tree.map(_sharding.place, values)
        shared = _sharding.shared_axes(output, except_for=summed_over(static[1]))
        return output, (residuals, Static((asked, of_each, places, shared)))

    def pull_back(static: Any, saved: Any, cotangent: Any) -> Any:
        residuals, (asked, of_each, places, shared) = saved[0], saved[1].value
        cotangent = along(_sharding.on_first_shard, without_zeros(cotangent), shared)
        if not (jax.tree.leaves(cotangent) and any(jax.tree.leaves(asked))):
            return (None,) * (1 + len(asked))
        what = (asked,) if selective else ()

        def at_once(residuals: Any, cotangent: Any) -> Any:
            return pull(static, *what, residuals, cotangent)

        def in_sweeps(residuals: Any, cotangent: Any) -> Any:
            found = [at_once(residuals, cotangent)]
            for _ in range(max(jax.tree.leaves(of_each))):
                residuals = recomputed(residuals)
                found.append(at_once(residuals, cotangent))
            return along(lambda _, sweep, *found: found[sweep], found[0], of_each, *found)

        if any(jax.tree.leaves(of_each)):
            swept = in_sweeps, "one sweep for each sum: XLA stores what two sums share"
            with static[0].again():
                cotangents = by_platform(
                    "the gradients", residuals, cotangent, plain=at_once, gpu=swept, tpu=swept
                )
        else:
            cotangents = at_once(residuals, cotangent)
        return None, *along(_sharding.sharded_like_argument, cotangents, places)

    reverse.defvjp(save_values, pull_back, symbolic_zeros=True)

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    @partial(jax.jit, static_argnums=0)
    def forward(static: Any, *arguments: Any) -> Any:
        return mapped_together(alone(static, *arguments))

    def push_forward(static: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
        output, residuals = kept(static, *primals)
        # With the checkpoint, the transpose of `push` stores `residuals` only, no intermediate arrays.
        tangent = jax.checkpoint(partial(push, static))(residuals, without_zeros(tangents))
        return output, jax.tree.map(_sharding.shared_like, tangent, output)

    forward.defjvp(push_forward, symbolic_zeros=True)

    def differentiable(static: Any, beside: Any, *arguments: Any) -> Any:
        if _modes.in_forward_mode():
            return forward(static, *arguments)
        return reverse(static, beside, *arguments)

    traced = as_custom_vjp(differentiable)

    def call(static: Any, *arguments: Any, beside: Any = None) -> Any:
        return traced((_modes.traced(), static), beside, *arguments)

    return call


def with_tangent(value: Callable[..., Any], tangent: Callable[..., Any]) -> Callable[..., Any]:
    """The function ``value(static, *arguments)``, differentiated in its first argument only, in both modes.

    ``tangent(static, arguments, dx)`` is ordinary JAX code, linear in dx, so it serves every order.
    """

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    def function(static: Any, *arguments: Any) -> Any:
        return value(static, *arguments)

    def push_forward(static: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
        return function(static, *primals), tangent(static, primals, tangents[0])

    function.defjvp(push_forward)
    return function


def known_with(tangent: Callable[..., Any]) -> Callable[..., Any]:
    """The function ``(static, values, *arguments) -> values`` of values that the caller computed already.

    Their tangent is ``tangent(static, values, arguments, tangents)``, in place of the derivative of the
    operations that computed them. A tangent of the arguments is None if JAX knows that it is 0.
    """

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    def function(static: Any, values: Any, *arguments: Any) -> Any:
        return values

    def push_forward(static: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
        modes, own = static
        values = function(static, *primals)
        with modes.again():
            found = tangent(own, values, primals[1:], without_zeros(tangents[1:]))
        return values, jax.tree.map(_sharding.shared_like, found, values)

    function.defjvp(push_forward, symbolic_zeros=True)
    return lambda static, *arguments: function((_modes.traced(), static), *arguments)


def with_gradients(
    value_and_gradients: Callable[..., Any], value: Callable[..., Any], are_held: Callable[..., bool]
) -> Callable[..., Any]:
    """A function whose forward pass computes a scalar and its gradients together; reverse mode only.

    Beside the scalar it may return further values, which are not differentiated.

    ``value_and_gradients(static, asked, *arguments)`` returns both. `asked` is a tree of booleans like the
    arguments; a gradient that it does not ask for is None. Unless ``are_held(asked)``, the gradients are not
    kept from forward to backward pass: JAX differentiates ``value(static, *arguments)`` instead.
    """
    return made_at_first_call(partial(_with_gradients, value_and_gradients, value, are_held))


def _with_gradients(
    value_and_gradients: Callable[..., Any], value: Callable[..., Any], are_held: Callable[..., bool]
) -> Callable[..., Any]:
    both = jax.jit(_modes.in_modes_of_call(value_and_gradients), static_argnums=(0, 1))
    value = _modes.in_modes_of_call(value)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def function(static: Any, *arguments: Any) -> Any:
        return both(static, jax.tree.map(lambda _: False, arguments), *arguments)[0]

    def find(static: Any, *primals: Any) -> tuple[Any, Any]:
        values, asked = values_and_asked(primals)
        if not are_held(asked):
            chosen = jax.tree.map(lambda a, is_asked: a if is_asked else None, values, asked)
            found, pull, beside = jax.vjp(
                lambda chosen: value(static, *fill_none(chosen, values)), chosen, has_aux=True
            )
            return (found, beside), pull
        found, gradients = both(static, asked, *values)
        return found, (gradients, Static(jax.tree.map(lambda a: (a.dtype, _sharding.place(a)), values)))

    def scale(static: Any, saved: Any, cotangents: tuple[Array, Any]) -> Any:
        g, _ = cotangents
        if not isinstance(saved, tuple):
            return saved(g)[0]
        gradients, kinds = saved[0], saved[1].value

        def scaled(d: Array, kind: Any) -> Array:
            d = d.astype(g.dtype)
            d = jnp.where((g == 0) & jnp.isinf(d), 0, d)  # an infinite slope of a sum that is not used
            return _sharding.sharded_like_argument(g * d, kind[1]).astype(kind[0])

        return along(scaled, gradients, kinds)

    function.defvjp(find, scale, symbolic_zeros=True)
    traced = as_custom_vjp(function)
    return lambda static, *arguments: traced((_modes.traced(), static), *arguments)
