"""The divergence of two linear heads, from the arguments of a public call."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Call
from jsoftmax.linear import _arguments, _row_functions
from jsoftmax.linear._arguments import Head
from jsoftmax.linear._row_functions import Logits, Rows, Shared, Static
from jsoftmax.logits._scaling import Scaling, one_if_unused
from jsoftmax.rows import _loss_terms
from jsoftmax.rows._divergences import jensen_shannon, kullback_leibler
from jsoftmax.rows._loss_terms import Loss
from jsoftmax.transforms import _platforms
from jsoftmax.transforms._modes import in_forward_mode

DIVERGENCES = {"kl": kullback_leibler, "js": jensen_shannon}


class _Columns(NamedTuple):
    """The arguments of `_divergences` with one entry per row, [B, 1] each."""

    temperature: Array | None
    soft_cap: Array | None
    hidden: Array | None
    weights: Array | None
    beta: Array | None


def _divergences(static: Static, logits: Logits, rows: Rows) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The divergence of every row of a block, times the weight of the row."""
    c: _Columns = rows.columns
    dtype = max((x.dtype for x in logits), key=lambda dtype: dtype.itemsize)
    p, q = (x.astype(dtype) for x in logits)
    scaling = Scaling(rows.where, c.temperature, c.soft_cap)
    found = DIVERGENCES[str(static.options)]((1, *static.head.names), p, q, scaling, c.hidden, c.beta)
    return (_loss_terms.LossTerms(weights=c.weights).weighted(found),), ()


def divergence(call: Call, kind: str) -> Array:
    """The divergence of the heads in a public call: "kl", or "js" for the generalised Jensen-Shannon one."""
    heads = [_arguments.of_call(call, prefix) for prefix in ("p_", "q_")]
    shapes = [head.logits.shape for head in heads]
    if shapes[0] != shapes[1]:
        problem = f"the logits of p have shape {shapes[0]}, and those of q {shapes[1]}"
        raise call.error(ValueError, problem, "give both heads the same numbers of rows and classes")
    head = max(heads, key=lambda head: rules.computing_dtype(head.hidden.dtype).itemsize)
    row_names = _mesh_axes.of_rows(call, "p_hidden")
    where = head.scaling.where
    loss = _loss_terms.of_rows(call, head.logits, head.class_axis, head.names, row_names, where)
    share = call.share(head.logits, head.class_axis)
    with _platforms.for_logits(head.logits.size):
        return reduced(_divergences, kind, heads, head, loss, _columns(head, loss, share))


def _columns(head: Head, loss: Loss, share: Array | None) -> _Columns:
    hidden = head.column(loss.hidden)
    weights, beta = head.column(loss.terms.weights), one_if_unused(head.column(share), None, hidden)
    return _Columns(*head.options(None, hidden), hidden, weights, beta)


def reduced(
    function: _row_functions.Function, options: Any, heads: list[Head], head: Head, loss: Loss, columns: Any
) -> Array:
    """The first number that `function` returns for every row of the heads, or the mean or sum of these.

    `head` is the one whose dtype and options the rows use. A row of weight 0 does not count if one of its
    features is NaN or infinite.
    """
    static, rows, shared = arguments(function, options, heads, head, loss, columns)
    if loss.reduction == "none" or in_forward_mode():
        (losses, *_), _ = _row_functions.numbers(static, rows, shared)
        return loss.reduced(losses.reshape(head.row_shape), head.class_axis)
    return loss.of_sum(_row_functions.total(static, rows, shared), head.row_shape, head.class_axis)


def arguments(
    function: _row_functions.Function, options: Any, heads: list[Head], head: Head, loss: Loss, columns: Any
) -> tuple[Static, Rows, Shared]:
    """The arguments of `_row_functions.numbers` and `_row_functions.total` for these heads."""
    features = tuple(h.hidden.reshape(-1, h.hidden.shape[-1]) for h in heads)
    counted, hidden = head.column(loss.counted), head.column(loss.hidden)
    if hidden is not None:
        for h in features:
            known = jnp.all(jnp.isfinite(h), -1, keepdims=True) | ~hidden
            counted = known if counted is None else counted & known
    where, of_classes = head.masks()
    rows = Rows(features, columns, where, counted)
    shared = Shared(tuple(h.shared()._replace(where=None) for h in heads), of_classes)
    return Static(function, options, heads[0].static(frozenset()), head.names), rows, shared
