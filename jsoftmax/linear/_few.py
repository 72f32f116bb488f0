"""What rows of a linear head come to by a few classes: losses of sparse targets, and the largest logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import Array

from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Call
from jsoftmax.border._label_checks import reported_ids
from jsoftmax.linear import _arguments, _pairs, _row_functions
from jsoftmax.linear._arguments import Head
from jsoftmax.linear._row_functions import Logits, Rows, Static
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _loss_terms, _sparse, _top
from jsoftmax.rows._loss_terms import Loss, LossTerms
from jsoftmax.rows._sparse import Targets
from jsoftmax.transforms import _platforms
from jsoftmax.transforms._sharding import shard_count

Axes = tuple[int | str, ...]
Numbers = tuple[tuple[Array, ...], tuple[Array, ...]]


class _Columns(NamedTuple):
    """What belongs to every row, [B, 1] each; of the targets [B, K]."""

    temperature: Array | None
    soft_cap: Array | None
    hidden: Array | None = None
    targets: Targets | None = None
    terms: LossTerms = LossTerms()
    labels: Array | None = None

    def scaling(self, where: Array | None) -> Scaling:
        """What turns a row's logits into z."""
        return Scaling(where, self.temperature, self.soft_cap)


def _columns(head: Head, loss: Loss, targets: Targets) -> _Columns:
    """Options of rows of weight 0 may be NaN."""
    hidden = head.column(loss.hidden)
    flat: Targets = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), targets)
    terms = LossTerms(*(head.column(a) for a in loss.terms))
    return _Columns(*head.options(None, hidden), hidden, flat, terms)


def _losses(static: Static, logits: Logits, rows: Rows) -> Numbers:
    """The cross-entropies of a block."""
    (x,), c = logits, rows.columns
    axes: Axes = (1, *static.head.names)
    wanted = frozenset(str(static.options).split())
    found = _sparse.sparse_numbers(
        axes, wanted, x, c.targets, c.scaling(rows.where), hidden=c.hidden, beside=c.terms
    )
    return (c.terms.losses({name: number[:, None] for name, number in found.items()}),), ()


def loss(call: Call, head: Head, row_names: tuple[str, ...]) -> Array:
    """The cross-entropy of a head with sparse targets that a call asks for."""
    targets = _sparse.of_call(call, "labels", head.logits, head.class_axis, head.names)
    where, stand_in = head.scaling.where, targets.log_probs
    loss = _loss_terms.of_call(call, head.logits, head.class_axis, head.names, row_names, where, stand_in)
    if call.arguments["statistics"]:
        raise call.error(ValueError, "statistics of SparseTargets", "call linear_row_statistics for them")
    if loss.class_weights is not None and loss.terms.label_smoothing is not None:
        problem = "label_smoothing beside class_weights and SparseTargets"
        raise call.error(ValueError, problem, "leave one of them out")
    columns = _columns(head, loss, targets.weighed(loss.class_weights, head.names))
    options = " ".join(sorted(loss.terms.wanted))
    return _pairs.reduced(_losses, options, [head], head, loss, columns)


def _divergences(static: Static, logits: Logits, rows: Rows) -> Numbers:
    """KL of the targets from every row of a block, times its weight."""
    (x,), c = logits, rows.columns
    axes: Axes = (1, *static.head.names)
    tail = bool(static.options)
    arrays = x, c.targets, c.scaling(rows.where), c.hidden
    return (c.terms.weighted(_sparse.sparse_divergences(axes, *arrays, tail)),), ()


def divergence(call: Call) -> Array:
    """The divergence of sparse targets from a head that a call asks for."""
    head = _arguments.of_call(call, "q_")
    targets = _sparse.of_call(call, "p", head.logits, head.class_axis, head.names)
    names = head.names, _mesh_axes.of_rows(call, "q_hidden")
    loss = _loss_terms.of_rows(call, head.logits, head.class_axis, *names, head.scaling.where)
    columns = _columns(head, loss, targets)
    with _platforms.for_logits(head.logits.size):
        return _pairs.reduced(_divergences, bool(call.arguments["tail"]), [head], head, loss, columns)


def _largest(static: Static, logits: Logits, rows: Rows) -> Numbers:
    """The events of the largest logits of a block, and of its labels."""
    (x,), c = logits, rows.columns
    found = _top.largest(
        (1, *static.head.names), int(str(static.options)), x, c.labels, c.scaling(rows.where)
    )
    return tuple(found.events), (found.ids, *(() if found.label is None else found.label))


def largest(call: Call) -> _top.Largest:
    """The k largest logits of a head, and its labels beside them, row by row."""
    head = _arguments.of_call(call)
    classes = head.logits.shape[-1] * shard_count(head.names)
    k, labels = call.size("k", 1, classes), None
    if call.arguments["labels"] is not None:
        y = call.class_ids(head.logits.shape, head.class_axis)
        labels = reported_ids(y, classes, ()).reshape(-1, 1)
    counted = _loss_terms.counted_rows(None, None, head.scaling.where, head.class_axis, head.names)
    none = Loss(None, None, counted, None, LossTerms(), "none", ())
    columns = _Columns(*head.options(None, None), labels=labels)
    with _platforms.for_logits(head.logits.size):
        static, rows, shared = _pairs.arguments(_largest, k, [head], head, none, columns)
        (u, top), (ids, *label_terms) = _row_functions.numbers(static, rows, shared)
    found: Any = (a.reshape(*head.row_shape, a.shape[-1]) for a in (u, top, ids, *label_terms))
    return _top.of_arrays(*found)
