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
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
from jax import Array
from jax.custom_derivatives import SymbolicZero

_forward_mode: Any = jax.make_user_context(default_value=False)


def forward_mode() -> AbstractContextManager[None]:
    """Trace the functions of this package with forward-mode rules.

    Inside, ``jax.jvp``, ``jacfwd``, ``linearize`` and ``hessian`` work as well as reverse mode does, which
    keeps the same residuals. Outside, each function carries a ``jax.custom_vjp`` rule, which JAX refuses to
    push forward. The mode is part of ``jax.jit``'s cache key: one function traced inside and outside gives
    both programs.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> with jsoftmax.forward_mode():
    ...     p, dp = jax.jvp(jsoftmax.softmax, (jnp.zeros(2),), (jnp.array([1.0, 0.0]),))
    >>> print(dp)
    [ 0.25 -0.25]
    """
    return _forward_mode(True)


def with_rules(
    save: Callable[..., Any], pull: Callable[..., Any], push: Callable[..., Any]
) -> Callable[..., Any]:
    """The function whose value `save` computes, with its rules for reverse and for forward mode."""
    save = jax.jit(save, static_argnums=0)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    @partial(jax.jit, static_argnums=0)
    def reverse(static: Any, *arguments: Any) -> Any:
        return save(static, *arguments)[0]

    pull = jax.jit(pull, static_argnums=0)

    def save_values(static: Any, *primals: Any) -> tuple[Any, Any]:
        values = jax.tree.map(lambda p: p.value, primals, is_leaf=lambda p: hasattr(p, "perturbed"))
        output, residuals = save(static, *values)
        return output, (residuals, (None,) * len(primals))

    def pull_back(static: Any, saved: Any, cotangent: Any) -> Any:
        residuals, no_cotangents = saved
        cotangent = _without_zeros(cotangent)
        return pull(static, residuals, cotangent) if jax.tree.leaves(cotangent) else no_cotangents

    reverse.defvjp(save_values, pull_back, symbolic_zeros=True)

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    @partial(jax.jit, static_argnums=0)
    def forward(static: Any, *arguments: Any) -> Any:
        return save(static, *arguments)[0]

    def push_forward(static: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
        output, residuals = save(static, *primals)
        # Without the checkpoint, reversing `push` would store its intermediate arrays; with it, `residuals`.
        return output, jax.checkpoint(partial(push, static))(residuals, _without_zeros(tangents))

    forward.defjvp(push_forward, symbolic_zeros=True)

    def call(static: Any, *arguments: Any) -> Any:
        return (forward if _forward_mode.value else reverse)(static, *arguments)

    return call


def with_tangent(value: Callable[..., Array], tangent: Callable[..., Array]) -> Callable[..., Array]:
    """The function ``value(static, *arguments)``, differentiated in its first argument alone, in both modes.

    ``tangent(static, arguments, dx)`` is ordinary JAX, linear in dx: it serves every order.
    """

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    def function(static: Any, *arguments: Array) -> Array:
        return value(static, *arguments)

    def push_forward(static: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
        return function(static, *primals), tangent(static, primals, tangents[0])

    function.defjvp(push_forward)
    return function


def _without_zeros(tree: Any) -> Any:
    def known_zero(leaf: Any) -> bool:
        return isinstance(leaf, SymbolicZero)

    return jax.tree.map(lambda leaf: None if known_zero(leaf) else leaf, tree, is_leaf=known_zero)
