"""Functions of a linear head that use a few classes per row: losses of sparse targets, the largest logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Call
from jsoftmax.border._label_checks import reported_ids
from jsoftmax.linear import _arguments, _pairs, _row_functions
from jsoftmax.linear._arguments import Head
from jsoftmax.linear._row_functions import Logits, Rows, Static
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _loss_terms, _peaks, _sparse, _top
from jsoftmax.rows._loss_terms import Loss, LossTerms
from jsoftmax.rows._row_numbers import RowStatistics
from jsoftmax.rows._sparse import Targets
from jsoftmax.transforms import _modes, _platforms
from jsoftmax.transforms._sharding import shard_count

Axes = tuple[int | str, ...]
Numbers = tuple[tuple[Array, ...], tuple[Array, ...]]


class _Columns(NamedTuple):
    """The other arguments with one entry per row: [B, 1] each, and [B, K] in the targets."""

    temperature: Array | None
    soft_cap: Array | None
    hidden: Array | None = None
    targets: Targets | None = None
    terms: LossTerms = LossTerms()
    labels: Array | None = None

    def scaling(self, where: Array | None) -> Scaling:
        """The mask and the options that map the logits to z."""
        return Scaling(where, self.temperature, self.soft_cap)


def _columns(head: Head, loss: Loss, targets: Targets) -> _Columns:
    """The `_Columns` of a loss; in rows of weight 0, NaN in an option is replaced by 1."""
    hidden = head.column(loss.hidden)
    flat: Targets = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), targets)
    terms = LossTerms(*(head.column(a) for a in loss.terms))
    return _Columns(*head.options(None, hidden), hidden, flat, terms)


_WITH_STATISTICS = "prediction"  # among the names of the wanted numbers


def _losses(static: Static, logits: Logits, rows: Rows) -> Numbers:
    """The loss of every row of a block, from sparse targets; and its statistics, if they are wanted."""
    (x,), c = logits, rows.columns
    axes: Axes = (1, *static.head.names)
    wanted, scaling = frozenset(str(static.options).split()), c.scaling(rows.where)

    def numbers(wanted: frozenset[str], x: Array, targets: Targets, beside: Any) -> dict[str, Array]:
        found = _sparse.sparse_numbers(axes, wanted, x, targets, scaling, hidden=c.hidden, beside=beside)
        return {name: number[:, None] for name, number in found.items()}

    losses = c.terms.losses(numbers(wanted - {_WITH_STATISTICS}, x, c.targets, c.terms))
    if _WITH_STATISTICS not in wanted:
        return (losses,), ()
    names = RowStatistics._fields[:-1]
    found = lax.stop_gradient(numbers(frozenset(names), x, c.targets._replace(weights=None), None))
    prediction = _peaks.prediction(_scaling.ordered_live(x, scaling), axes)
    return (losses, *(found[name] for name in names)), (prediction,)


def loss(call: Call, head: Head, row_names: tuple[str, ...]) -> Any:
    """The cross-entropy of a head with sparse targets, from the arguments of a public call.

    With statistics, it is a pair: this and the `RowStatistics`.
    """
    targets = _sparse.of_call(call, "labels", head.logits, head.class_axis, head.names)
    where, labels = head.scaling.where, targets.log_probs  # of the labels only the float dtype is read
    loss = _loss_terms.of_call(call, head.logits, head.class_axis, head.names, row_names, where, labels)
    if loss.class_weights is not None and loss.terms.label_smoothing is not None:
        problem = "label_smoothing, class_weights and SparseTargets cannot be combined"
        raise call.error(ValueError, problem, "leave out label_smoothing or class_weights")
    columns = _columns(head, loss, targets.with_class_weights(loss.class_weights, head.names))
    options = " ".join(sorted(loss.terms.wanted))
    if not call.arguments["statistics"]:
        return _pairs.reduced(_losses, options, [head], head, loss, columns)
    options = f"{options} {_WITH_STATISTICS}"
    static, rows, shared = _pairs.arguments(_losses, options, [head], head, loss, columns)
    (losses, *found), (prediction,) = _row_functions.numbers(static, rows, shared)
    if rows.counted is not None:
        prediction = jnp.where(rows.counted, prediction, 0)
    statistics = (a.reshape(head.row_shape) for a in (*found, prediction))
    return loss.reduced(losses.reshape(head.row_shape), head.class_axis), RowStatistics(*statistics)


def _divergences(static: Static, logits: Logits, rows: Rows) -> Numbers:
    """KL(targets‖softmax) of every row of a block, times the weight of the row."""
    (x,), c = logits, rows.columns
    axes: Axes = (1, *static.head.names)
    tail = bool(static.options)
    arrays = x, c.targets, c.scaling(rows.where), c.hidden
    return (c.terms.weighted(_sparse.sparse_divergences(axes, *arrays, tail)),), ()


def divergence(call: Call) -> Array:
    """The divergence of sparse targets from a head, from the arguments of a public call."""
    head = _arguments.of_call(call, "q_")
    targets = _sparse.of_call(call, "p", head.logits, head.class_axis, head.names)
    names = head.names, _mesh_axes.of_rows(call, "q_hidden")
    loss = _loss_terms.of_rows(call, head.logits, head.class_axis, *names, head.scaling.where)
    columns = _columns(head, loss, targets)
    with _platforms.for_logits(head.logits.size):
        return _pairs.reduced(_divergences, bool(call.arguments["tail"]), [head], head, loss, columns)


def _largest(static: Static, logits: Logits, rows: Rows) -> Numbers:
    """The arrays of `_top.Largest` for a block of rows."""
    (x,), c = logits, rows.columns
    # The gradient of a log-probability contains the log-probability itself, so jvp of grad takes the tangents
    # of these numbers: JAX finds them by forward-mode rules only.
    with _modes.in_mode(forward=True):
        found = _top.largest(
            (1, *static.head.names), int(str(static.options)), x, c.labels, c.scaling(rows.where)
        )
    return tuple(found.events), (found.ids, *(() if found.label is None else found.label))


def largest(call: Call) -> _top.Largest:
    """The k largest logits of every row of a head, and the label, from the arguments of a public call."""
    head = _arguments.of_call(call)
    classes = head.logits.shape[-1] * shard_count(head.names)
    k, labels = call.size("k", 1, classes), None
    counted = _loss_terms.counted_rows(None, None, head.scaling.where, head.class_axis, head.names)
    if call.arguments["labels"] is not None:
        y = call.class_ids(head.logits.shape, head.class_axis)
        y = y if counted is None else jnp.where(counted, y, 0)  # a masked row is padding
        labels = reported_ids(y, classes, ()).reshape(-1, 1)
    none = Loss(None, None, counted, None, LossTerms(), "none", ())
    columns = _Columns(*head.options(None, None), labels=labels)
    with _platforms.for_logits(head.logits.size):
        static, rows, shared = _pairs.arguments(_largest, k, [head], head, none, columns)
        (u, top), (ids, *label_terms) = _row_functions.numbers(static, rows, shared)
    found: Any = (a.reshape(*head.row_shape, a.shape[-1]) for a in (u, top, ids, *label_terms))
    return _top.of_arrays(*found)
