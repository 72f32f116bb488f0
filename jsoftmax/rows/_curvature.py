"""Gradients of whole rows with their own derivatives in closed form, for second derivatives.

The derivative of the operations that compute p has 1 − p as a difference of nearly equal numbers where p is
near 1. `rules.softmax_product` keeps its digits.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.backends._blocks import sums_apart
from jsoftmax.backends._choice import choose
from jsoftmax.backends._request import Request
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _leading
from jsoftmax.rows._probabilities import Row
from jsoftmax.transforms._autodiff import known_with
from jsoftmax.transforms._platforms import by_platform, is_plain, recomputed

Axes = tuple[int | str, ...]


def of_probabilities(axes: Axes, p: Array, row: Row) -> Array:
    """p, with its derivative in the row; with a sink, which is not in the row, unchanged."""
    if row[1].sink is not None:
        return p
    known: Array = of_residuals(axes, p, p, row)
    return known


def _in_p(axes: Axes, values: Any, arguments: tuple[Array, Row], tangents: Any) -> Any:
    p, along = _along_row(axes, *arguments, tangents[1])
    return jax.tree.map(lambda a: (p * along).astype(a.dtype), values)


def _in_targets(axes: Axes, residual: Array, arguments: tuple[Array, Array, Row], tangents: Any) -> Array:
    p, t, row = arguments
    _, dt, of_row = tangents
    p, along = _along_row(axes, p, row, of_row)
    (total,) = rules.row_sums(axes, t)
    out = total * p * along
    return out if dt is None else out + rules.cross_entropy_residual(p, dt, axes)


def _in_entropy(axes: Axes, residual: Array, arguments: Any, tangents: Any) -> Array:
    p, u, mean, row = arguments
    p, along = _along_row(axes, p, row, tangents[-1])
    u, dp = jnp.where(p == 0, 0, u), p * along
    change = along - rules.row_sums(axes, dp * u)[0]
    return -dp * (u - mean) - p * change


def _in_kl(axes: Axes, residuals: Any, arguments: Any, tangents: Any) -> tuple[Array | None, Array]:
    (p, along_p), (q, along_q) = (
        _along_row(axes, *of_row) for of_row in zip(*arguments, tangents[1], strict=True)
    )
    in_p, in_q = residuals
    of_q = q * along_q - p * along_p
    if in_p is None:
        return None, of_q
    change = rules.row_sums(axes, in_p * along_p + in_q * along_q)[0]  # of KL
    return in_p * along_p - p * (along_q - along_p + change), of_q


# ``(axes, values, p, row)``: a tree of arrays, each p minus a constant.
of_residuals = known_with(_in_p)
# ``(axes, residual, p, t, row)``: the residual is (Σt)·p − t.
of_target_residual = known_with(_in_targets)
# ``(axes, residual, p, u, mean, row)``: the residual is −p·(u − mean), mean = ⟨p, u⟩.
of_entropy_residual = known_with(_in_entropy)
# ``(axes, residuals, (p, q), rows)``: −p·(log q − log p + KL), or None, and q − p; p and q are 0 where KL is
# infinite.
of_kl_residuals = known_with(_in_kl)


def _along_row(axes: Axes, p: Array, row: Row, tangents: Any) -> tuple[Array, Array]:
    """p, and the tangent of log p, ``dz − ⟨p, dz⟩``, from those of the row."""
    p, (dx, dscaling, _) = of_probabilities(axes, p, row), tangents
    own, names = rules.split_axes(axes)

    def in_z(row: Row, dx: Array | None, dscaling: Scaling) -> Array:
        x, scaling, state = row
        u = _scaling.shifted(x, scaling, state.max).u
        return _scaling.push(x, dead_at_p_0(u), dx, dscaling, scaling)

    def after_two_sums(p: Array, row: Row, *tangents: Any, apart: bool = False) -> Array:
        # In a plain program, XLA may round the terms of the second sum otherwise than those of the first. A
        # sum without the leading class does not depend on that, but takes several times longer.
        leads = rules.leading(p) if is_plain() else None
        rows = sums_apart(own[0], p) if apart else axes
        return rules.log_softmax_jvp(p, in_z(row, *tangents), rows, leads=leads)

    def after_one_pass(p: Array, row: Row, *tangents: Any) -> Array:
        x, scaling, state = row
        # Two barriers: XLA merges equal ones, and the gradient has one already. Behind one, a mask is stored.
        numbers, state = recomputed(recomputed((scaling._replace(where=None), state)))
        again = x, numbers._replace(where=scaling.where), state
        sums = _leading.lead_sums(*again, in_z(again, *tangents), axes, weighted=True)
        return rules.log_softmax_jvp(p, in_z(row, *tangents), axes, sums=sums, leads=rules.leading(p))

    arguments = p, row, dx, dscaling
    if names:  # JAX cannot split one sum over shards into a part linear in a tangent and a part that is not.
        return p, after_two_sums(*arguments)
    forms = dict.fromkeys(("sums in one pass", "one kernel"), after_one_pass)
    forms["sums apart"] = partial(after_two_sums, apart=True)
    own_forms = choose(Request("derivative of a map", row[0], own, bare=False)).functions(forms)
    return p, by_platform("the derivative of p", *arguments, plain=after_two_sums, **own_forms)


def dead_at_p_0(u: Array) -> Array:
    """u, to be multiplied by p: replaced by −inf, as for a dead class, where p is 0 in every dtype.

    There u may be so large that a product with it overflows.
    """
    return jnp.where(u < -1024, -jnp.inf, u)
