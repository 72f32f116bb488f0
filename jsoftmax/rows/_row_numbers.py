"""A few numbers of every row of logits and its label, with one derivative rule for all.

Losses, entropies and metrics are ordinary arithmetic on these numbers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax.backends._row_blocks import both_in_row_blocks, in_row_blocks
from jsoftmax.border._label_checks import reported_ids, reported_targets
from jsoftmax.logits._scaling import Scaling, of_used_rows
from jsoftmax.rows import _masks
from jsoftmax.rows._statistics import (
    Numbers,
    RowArguments,
    Saved,
    Static,
    are_ids,
    save,
    zero_unless_counted,
)
from jsoftmax.rows._statistics_rules import pull, push, with_rule
from jsoftmax.transforms._autodiff import with_rules
from jsoftmax.transforms._rule_trees import mapped_together
from jsoftmax.transforms._sharding import sharded_like

Axes = tuple[int, ...]


class RowStatistics(NamedTuple):
    """The results of `row_statistics`, each in the shape of the logits without the class axis.

    >>> import jax.numpy as jnp, jsoftmax
    >>> print(jsoftmax.row_statistics(jnp.array([0.0, 3.0]), 1).prediction)
    1
    """

    log_normalizer: Array
    nll: Array
    entropy: Array
    prediction: Array


def numbers(
    axes: Axes,
    wanted: frozenset[str],
    x: Array,
    labels: Any,
    scaling: Scaling,
    weights: Array | None = None,
    counted: Array | None = None,
    names: tuple[str, ...] = (),
    hidden: Array | None = None,
    beside: Any = None,
) -> Numbers:
    """The wanted numbers, in the shape of `x` without `axes`; several class axes are merged into one.

    `names` are the mesh axes of the shards of the classes, `beside` is as in `with_rules`. In rows of weight
    0, where `hidden` is True, numbers that would be NaN or infinite are 0, and so are all gradients.
    """
    if len(axes) != 1:
        x, scaling, labels, counted, hidden = on_one_axis(axes, x, scaling, labels, counted, hidden)
        axes = (x.ndim - 1,)
    if weights is not None:
        weights = weights.reshape([-1 if i in axes else 1 for i in range(x.ndim)])
    if labels is not None:
        labels = sharded_like(labels, x)
    if are_ids(labels):
        labels = reported_ids(labels, x.shape[axes[0]], names)
    scaling = Scaling(scaling.where, *of_used_rows(scaling[1:], counted, hidden))
    row_args = RowArguments(x, labels, weights, scaling, counted, hidden)
    found = _of_rows((axes[0], names, wanted), row_args, beside=beside)
    if labels is not None and not are_ids(labels):
        targets = zero_unless_counted(labels, counted)
        targets = targets if hidden is None else jnp.where(hidden, 0.0, targets)
        found["nll"] = reported_targets(found["nll"], targets, axes[0], names)
    return {name: jnp.squeeze(number, axes) for name, number in found.items()}


def one_axis(array: Array, axes: Axes) -> Array:
    """The array with its class axes merged into one, the last."""
    rows = tuple(i for i in range(array.ndim) if i not in axes)
    size = math.prod(array.shape[i] for i in axes)
    return jnp.transpose(array, (*rows, *axes)).reshape(*(array.shape[i] for i in rows), size)


def on_one_axis(axes: Axes, x: Array, scaling: Scaling, *others: Any) -> Any:
    """Logits, their scaling and other arrays, each with its class axes merged as by `one_axis`.

    A mask is broadcast to the shape of the logits first.
    """
    where = None if scaling.where is None else jnp.broadcast_to(scaling.where, x.shape)
    return jax.tree.map(lambda a: one_axis(a, axes), (x, scaling._replace(where=where), *others))


def _value(static: Static, row_args: RowArguments) -> Numbers:
    """The numbers without residuals."""
    return save(static, row_args, result_used_for="nothing")[0]


def _is_bare(static: Static, row: RowArguments | Saved, *others: Any) -> bool:
    """XLA stores little for class ids, and with a mask only if there are no further sums."""
    row_args = row.row_args if isinstance(row, Saved) else row
    has_targets = row_args.labels is not None and not are_ids(row_args.labels)
    is_weighted = "spread" in static[2] and row_args.weights is not None
    is_masked = row_args.scaling.where is not None and bool(static[2] & {"entropy", "spread"})
    if has_targets or is_weighted or is_masked:
        return False
    return _masks.are_bare(row_args.x, row_args.scaling, (static[0], *static[1]))


def _has_sums(asked: tuple[RowArguments], saved: Saved) -> bool:
    """Whether the gradient has sums: that of an argument with one entry per row or class, or with targets."""
    labels = saved.row_args.labels
    has_targets = labels is not None and not are_ids(labels)
    return has_targets or any(jax.tree.leaves((asked[0].weights, asked[0].scaling)))


_options: dict[str, Any] = {"is_bare": _is_bare, "axes_of": lambda static: (static[0], *static[1])}
_save, _pull = both_in_row_blocks(save, pull, has_sums=_has_sums, **_options)


def _save_with_rule(static: Static, row_args: RowArguments) -> tuple[Numbers, Saved]:
    found, saved = _save(static, row_args)
    found = mapped_together(found)  # the tangent of each number may depend on all arguments
    return with_rule(static, found, saved), saved


_of_rows = with_rules(_save_with_rule, _pull, push, value=in_row_blocks(_value, **_options), selective=True)
