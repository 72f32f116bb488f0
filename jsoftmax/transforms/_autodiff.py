"""How JAX attaches a derivative rule to a function: the only place that knows.

A function of this package is written as three plain ones, none of which calls the decorated function:

- ``save(static, *arguments) -> (output, residuals)``
- ``pull(static, residuals, cotangent) -> cotangents``: one for each argument, None where there is none
- ``push(static, residuals, tangents) -> tangent``: of the output, linear in the arguments' tangents

A cotangent of an output, or a tangent of an argument, is None where JAX knows it to be 0: what would follow
from it is never computed.

Higher orders differentiate these three as ordinary JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import Array

from jsoftmax.transforms import _modes
from jsoftmax.transforms._platforms import by_platform, recomputed
from jsoftmax.transforms._rule_trees import (
    Static,
    along,
    in_a_program,
    or_else,
    values_and_asked,
    with_arguments_kept,
    without_zeros,
)
from jsoftmax.transforms._sharding import brought_back, place


def _in_its_form(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function((form, static), …)``: the static argument holds the form of the call, for later traces."""

    def call(static: tuple[str | None, Any], *arguments: Any) -> Any:
        form, own = static
        with _modes.in_form(form):
            return function(own, *arguments)

    return call


def with_rules(
    save: Callable[..., Any],
    pull: Callable[..., Any],
    push: Callable[..., Any],
    *,
    value: Callable[..., Any] | None = None,
    selective: bool = False,
) -> Callable[..., Any]:
    """The function whose value `save` computes, with its rules for reverse and for forward mode.

    Where no derivative is asked for, ``value(static, *arguments)`` may compute it in a shorter way.

    A selective `pull` is also told which arguments are asked for, ``pull(static, asked, residuals,
    cotangent)``: a tree like theirs, of booleans.

    ``function(static, *arguments, beside=arrays)`` names arrays that the caller multiplies the output by. A
    derivative in one of these goes by the rule too: otherwise JAX would refuse to push it forward in the
    arguments, as ``jacfwd(grad(loss, argnums=z_loss))`` does in the logits.
    """
    alone = _in_its_form(value or (lambda static, *arguments: save(static, *arguments)[0]))
    kept, push = with_arguments_kept(_in_its_form(save)), _in_its_form(push)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    @partial(jax.jit, static_argnums=0)
    def reverse(static: Any, beside: Any, *arguments: Any) -> Any:
        return alone(static, *arguments)

    pull = jax.jit(_in_its_form(pull), static_argnums=(0, 1) if selective else 0)

    def save_values(static: Any, beside: Any, *primals: Any) -> tuple[Any, Any]:
        values, asked = values_and_asked(primals)
        output, residuals = kept(static, *values)
        sweeps = jax.tree.map(lambda _: 0, asked) if selective else _sweeps(values, asked)
        return output, (residuals, Static((asked, sweeps, jax.tree.map(place, values))))

    def pull_back(static: Any, saved: Any, cotangent: Any) -> Any:
        residuals, (asked, sweeps, places) = saved[0], saved[1].value
        cotangent = without_zeros(cotangent)
        if not (jax.tree.leaves(cotangent) and any(jax.tree.leaves(asked))):
            return (None,) * (1 + len(asked))
        what = (asked,) if selective else ()

        def at_once(residuals: Any, cotangent: Any) -> Any:
            return pull(static, *what, residuals, cotangent)

        def in_sweeps(residuals: Any, cotangent: Any) -> Any:
            found = [at_once(residuals, cotangent)]
            for _ in range(max(jax.tree.leaves(sweeps))):
                residuals = recomputed(residuals)
                found.append(at_once(residuals, cotangent))
            return along(lambda _, sweep, *found: found[sweep], found[0], sweeps, *found)

        if any(jax.tree.leaves(sweeps)):
            swept = in_sweeps, "one sweep for each sum: XLA stores what two sums share"
            with _modes.in_form(static[0]):
                cotangents = by_platform(
                    "the gradients", residuals, cotangent, plain=at_once, gpu=swept, tpu=swept
                )
        else:
            cotangents = at_once(residuals, cotangent)
        return None, *along(brought_back, cotangents, places)

    reverse.defvjp(save_values, pull_back, symbolic_zeros=True)

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    @partial(jax.jit, static_argnums=0)
    def forward(static: Any, *arguments: Any) -> Any:
        return alone(static, *arguments)

    def push_forward(static: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
        output, residuals = kept(static, *primals)
        # Without the checkpoint, reversing `push` would store its intermediate arrays; with it, `residuals`.
        return output, jax.checkpoint(partial(push, static))(residuals, without_zeros(tangents))

    forward.defjvp(push_forward, symbolic_zeros=True)

    def differentiable(static: Any, beside: Any, *arguments: Any) -> Any:
        if _modes.in_forward_mode():
            return forward(static, *arguments)
        return reverse(static, beside, *arguments)

    traced = in_a_program(differentiable)

    def call(static: Any, *arguments: Any, beside: Any = None) -> Any:
        return traced((_modes.form(), static), beside, *arguments)

    return call


def with_tangent(value: Callable[..., Any], tangent: Callable[..., Any]) -> Callable[..., Any]:
    """The function ``value(static, *arguments)``, differentiated in its first argument alone, in both modes.

    ``tangent(static, arguments, dx)`` is ordinary JAX, linear in dx: it serves every order.
    """

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    def function(static: Any, *arguments: Any) -> Any:
        return value(static, *arguments)

    def push_forward(static: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
        return function(static, *primals), tangent(static, primals, tangents[0])

    function.defjvp(push_forward)
    return function


def with_gradients(
    value_and_gradients: Callable[..., Any], value: Callable[..., Any], are_held: Callable[..., bool]
) -> Callable[..., Any]:
    """A function to a scalar, and what is not differentiated, that finds its gradients along with its value.

    ``value_and_gradients(static, asked, *arguments)`` gives both; `asked` is a tree of booleans like that of
    the arguments, and a gradient is None where it is not asked for. Reverse mode only. Where the gradients
    are not to be held, unless ``are_held(asked)``, those of ``value(static, *arguments)`` take their place.
    """
    both = jax.jit(_in_its_form(value_and_gradients), static_argnums=(0, 1))
    value = _in_its_form(value)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def function(static: Any, *arguments: Any) -> Any:
        return both(static, jax.tree.map(lambda _: False, arguments), *arguments)[0]

    def find(static: Any, *primals: Any) -> tuple[Any, Any]:
        values, asked = values_and_asked(primals)
        if not are_held(asked):
            chosen = jax.tree.map(lambda a, is_asked: a if is_asked else None, values, asked)
            found, pull, beside = jax.vjp(
                lambda chosen: value(static, *or_else(chosen, values)), chosen, has_aux=True
            )
            return (found, beside), pull
        found, gradients = both(static, asked, *values)
        return found, (gradients, Static(jax.tree.map(lambda a: (a.dtype, place(a)), values)))

    def scale(static: Any, saved: Any, cotangents: tuple[Array, Any]) -> Any:
        g, _ = cotangents
        if not isinstance(saved, tuple):
            return saved(g)[0]
        gradients, kinds = saved[0], saved[1].value
        return along(lambda d, kind: brought_back(g * d, kind[1]).astype(kind[0]), gradients, kinds)

    function.defvjp(find, scale, symbolic_zeros=True)
    traced = in_a_program(function)
    return lambda static, *arguments: traced((_modes.form(), static), *arguments)


def _sweeps(values: Any, asked: Any) -> Any:
    """In which sweep over the residuals to find a cotangent: the longest in the first, each sum in its own.

    A sum, as a temperature's cotangent is, would else share exponentials with what lies beside it.
    """
    sizes, tree = jax.tree.flatten(jax.tree.map(lambda a, is_asked: a.size if is_asked else 0, values, asked))
    own = [0 < size < max(sizes) for size in sizes]
    return jax.tree.unflatten(tree, (is_own * sum(own[: i + 1]) for i, is_own in enumerate(own)))
