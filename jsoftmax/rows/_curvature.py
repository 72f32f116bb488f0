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

from jsoftmax import online, rules
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.transforms._rule_trees import without_zeros

Axes = tuple[int | str, ...]
Pair = tuple[Array, Array]
Row = tuple[Array, Scaling, online.State]  # the logits, their scaling, and the state of every row


def of_probabilities(axes: Axes, p: Array, row: Row) -> Array:
    """p, with its derivative in the row; with a sink, which is not in the row, unchanged."""
    return p if row[1].sink is not None else as_probabilities(axes, p, p, row)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def as_probabilities(axes: Axes, values: Array, p: Array, row: Row) -> Array:
    """`values`, which are p minus a constant, with the derivative of p in the row."""
    return values


def _as_probabilities_jvp(axes: Axes, primals: tuple[Array, Array, Row], tangents: Any) -> Any:
    values, p, row = primals
    p, along = _along_row(axes, p, row, tangents[2])
    return as_probabilities(axes, values, p, row), (p * along).astype(values.dtype)


as_probabilities.defjvp(_as_probabilities_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def as_entropy_residual(axes: Axes, residual: Array, p: Array, u: Array, mean: Array, row: Row) -> Array:
    """The residual ``−p·(u − mean)``, where mean = ⟨p, u⟩, with its derivative in the row."""
    return residual


def _as_entropy_residual_jvp(axes: Axes, primals: Any, tangents: Any) -> tuple[Array, Array]:
    residual, p, u, mean, row = primals
    p, along = _along_row(axes, p, row, tangents[-1])
    u, dp = jnp.where(p == 0, 0, u), p * along
    change = along - rules.row_sums(axes, dp * u)[0]
    return as_entropy_residual(axes, residual, p, u, mean, row), -dp * (u - mean) - p * change


as_entropy_residual.defjvp(_as_entropy_residual_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def as_kl_residuals(axes: Axes, residuals: Pair, p: Pair, rows: tuple[Row, Row]) -> Pair:
    """The residuals ``−p·(log q − log p + KL)`` and ``q − p`` of KL(p‖q), with their derivatives in the rows.

    `p` are both probabilities, 0 in a row of a divergence that is infinite.
    """
    return residuals


def _as_kl_residuals_jvp(axes: Axes, primals: Any, tangents: Any) -> tuple[Pair, Pair]:
    residuals, probabilities, rows = primals
    (p, along_p), (q, along_q) = (
        _along_row(axes, *of_row) for of_row in zip(probabilities, rows, tangents[2], strict=True)
    )
    in_p, in_q = residuals = as_kl_residuals(axes, residuals, (p, q), rows)
    change = rules.row_sums(axes, in_p * along_p + in_q * along_q)[0]  # of KL
    return residuals, (in_p * along_p - p * (along_q - along_p + change), q * along_q - p * along_p)


as_kl_residuals.defjvp(_as_kl_residuals_jvp, symbolic_zeros=True)


def _along_row(axes: Axes, p: Array, row: Row, tangents: Any) -> tuple[Array, Array]:
    """p, and the tangent of log p, ``dz − ⟨p, dz⟩``, from those of the row."""
    x, scaling, state = row
    dx, dscaling, _ = without_zeros(tangents)
    p, u = of_probabilities(axes, p, row), _scaling.shifted(x, scaling, state.max).u
    along = _scaling.push(x, dead_at_p_0(u), dx, dscaling, scaling)
    return p, rules.log_softmax_jvp(p, along, axes)


def dead_at_p_0(u: Array) -> Array:
    """u, to be multiplied by p: replaced by −inf, as for a dead class, where p is 0 in every dtype.

    There u may be so large that a product with it overflows.
    """
    return jnp.where(u < -1024, -jnp.inf, u)
