"""Odds, focal and poly losses, two classes, sparse maps, segments: more functions that `check` compares."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

import jsoftmax
from jsoftmax._cli import definitions
from jsoftmax._cli.functions import FUNCTIONS, Function, Rows

EPS = np.finfo(np.float32).eps
TINY = np.finfo(np.float32).tiny


def _in_segments(function: Callable[..., Any], rows: Rows, *labels: Any, by_entry: bool = True) -> Any:
    """A function of segments that are these rows; the entries of the segments take turns."""
    count, classes = rows.logits.shape
    ids = jnp.tile(jnp.arange(count, dtype=jnp.int32), classes)
    out = function(rows.logits.T.reshape(-1), *labels, ids, count, where=rows.where.T.reshape(-1))
    return out.reshape(classes, count).T if by_entry else out


def _segment_loss(rows: Rows) -> Any:
    count = len(rows.logits)
    positions = rows.labels * count + jnp.arange(count)
    return _in_segments(jsoftmax.segment_cross_entropy, rows, positions, by_entry=False)


def _segments() -> tuple[Function, ...]:
    """The functions of segments, in place of those of rows with the same definitions."""
    ours: dict[str, Callable[..., Any]] = {
        "softmax": partial(_in_segments, jsoftmax.segment_softmax),
        "log_softmax": partial(_in_segments, jsoftmax.segment_log_softmax),
        "logsumexp": partial(_in_segments, jsoftmax.segment_logsumexp, by_entry=False),
        "cross_entropy, class ids": _segment_loss,
    }
    return tuple(
        replace(f, name=f"segment_{f.name}", ours=ours[f.name], has_temperature=False, has_one_program=True)
        for f in FUNCTIONS
        if f.name in ours
    )


def _at_label(rows: Rows, values: Any) -> Any:
    return np.take_along_axis(values, rows.labels[..., None], axis=-1)[..., 0]


def _label_loss(xp: ModuleType, rows: Rows) -> Any:
    return definitions.cross_entropy_with_integer_labels(xp, rows.logits, rows.labels, rows.entries)


def _label_terms(slope: Callable[..., Any]) -> Callable[..., Any]:
    """The sum of |terms| of g s(n) (p_i - t_i), where s is the slope of the loss in n = -log p."""

    def terms(xp: ModuleType, rows: Rows, p: Any, g: Any) -> Any:
        of_label = xp.arange(p.shape[-1]) == rows.labels[..., None]
        return (p + of_label) * (abs(g) * slope(xp, _label_loss(xp, rows)))[..., None]

    return terms


def _odds_roundings(rows: Rows, gap: Any, lead: Any) -> Any:
    """Of z_y - max and log1p(rest) of the others, whose difference may be near 0."""
    x = rows.logits.astype(np.float64)
    others = np.where(rows.entries & (np.arange(x.shape[-1]) != rows.labels[:, None]), x, -np.inf).max(-1)
    odds = definitions.log_odds(np, x, rows.labels, rows.entries)
    apart = _at_label(rows, x) - others
    return 4 * (abs(apart) + abs(apart - odds)) / abs(odds)


def _sparse_roundings(alpha: float) -> Callable[..., Any]:
    """A base h + u has a rounding error of a few eps, and p is its power 1/(alpha - 1)."""
    beta = alpha - 1

    def amplified(rows: Rows, gap: Any, lead: Any) -> Any:
        p = definitions.entmax(np, rows.logits.astype(np.float64), alpha, rows.entries)
        error = 4 * EPS
        change = (p**beta + error) ** (1 / beta - 1) * error / beta
        return change / np.spacing(np.maximum(p, TINY).astype(np.float32))

    return amplified


def _sparse_terms(alpha: float) -> Callable[..., Any]:
    """The sum of |terms| of s_i (g_i - sum_j s_j g_j / sum_j s_j), where s = p^(2 - alpha) is rounded."""

    def terms(xp: ModuleType, rows: Rows, p: Any, g: Any) -> Any:
        p = definitions.entmax(xp, rows.logits, alpha, rows.entries)
        s = xp.where(p > 0, xp.where(p > 0, p, 1) ** (2 - alpha), 0)
        mean = xp.sum(s * abs(g), axis=-1, keepdims=True) / xp.sum(s, axis=-1, keepdims=True)
        return xp.where(p > 0, (abs(g) + mean) / (alpha - 1), 0)

    return terms


def _sigmoid(xp: ModuleType, x: Any) -> Any:
    return xp.exp(-definitions.softplus(xp, -x))


def _sparse_map(name: str, ours: Callable[..., Any], alpha: float) -> Function:
    return Function(
        name,
        lambda r: ours(r.logits, where=r.where),
        lambda xp, r: definitions.entmax(xp, r.logits, alpha, r.entries),
        _sparse_terms(alpha),
        cancels=True,
        amplified=_sparse_roundings(alpha),
        has_one_program=True,
    )


def _loss_roundings(alpha: float) -> Callable[..., Any]:
    """A rounding of u changes the loss by that times |p - t|, which is more than the loss if it is tiny."""

    def amplified(rows: Rows, gap: Any, lead: Any) -> Any:
        x = rows.logits.astype(np.float64)
        loss = _SPARSE_LOSSES[alpha](np, x, rows.labels, rows.entries)
        is_label = np.arange(x.shape[-1]) == rows.labels[..., None]
        apart = abs(definitions.entmax(np, x, alpha, rows.entries) - is_label)
        change = 4 * np.sum(np.where(rows.entries, apart * (1 + gap), 0), axis=-1)
        return np.where(loss > 0, change / np.where(loss > 0, loss, 1), 0)

    return amplified


def _loss_terms(alpha: float) -> Callable[..., Any]:
    """The errors of p_i - t_i, as terms: s_i / b of p, and at the label their sum, s = p^(2 - alpha)."""

    def terms(xp: ModuleType, rows: Rows, p: Any, g: Any) -> Any:
        p = definitions.entmax(xp, rows.logits, alpha, rows.entries)
        s = xp.where(p > 0, xp.where(p > 0, p, 1) ** (2 - alpha), 0) / (alpha - 1)
        is_label = xp.arange(p.shape[-1]) == rows.labels[..., None]
        return (s + is_label * (1 + xp.sum(s, axis=-1, keepdims=True))) * abs(g)[..., None]

    return terms


_SPARSE_LOSSES = {2.0: definitions.sparsemax_loss, 1.5: definitions.entmax15_loss}


def _sparse_loss(name: str, ours: Callable[..., Any], alpha: float) -> Function:
    return Function(
        name,
        lambda r: ours(r.logits, r.labels, where=r.where),
        lambda xp, r: _SPARSE_LOSSES[alpha](xp, r.logits, r.labels, r.entries),
        _loss_terms(alpha),
        cancels=True,
        amplified=_loss_roundings(alpha),
        has_one_program=True,
    )


_LARGEST = 10


def _at_largest(rows: Rows, values: Any) -> Any:
    ids = definitions.top_ids(np, rows.logits, _LARGEST, rows.entries)
    return np.take_along_axis(values, ids, axis=-1)


def _largest_terms(xp: ModuleType, rows: Rows, p: Any, g: Any) -> Any:
    """The sum of |terms| of g_i - p_i sum_j g_j, g_i = 0 where i is not one of the largest."""
    g = abs(g)
    ids = definitions.top_ids(xp, rows.logits, _LARGEST, rows.entries)
    at_ids = xp.sum(xp.where(ids[..., None] == xp.arange(p.shape[-1]), g[..., None], 0), axis=-2)
    return at_ids + p * xp.sum(g, axis=-1, keepdims=True)


OTHERS = (
    Function(
        "log_odds",
        lambda r: jsoftmax.log_odds(r.logits, r.labels, where=r.where),
        lambda xp, r: definitions.log_odds(xp, r.logits, r.labels, r.entries),
        _label_terms(lambda xp, n: -1 / xp.expm1(-n)),  # 1 at the label, and elsewhere p / (1 - p_label)
        cancels=True,
        amplified=_odds_roundings,
        has_one_program=True,
    ),
    Function(
        "focal_loss, gamma = 2",
        lambda r: jsoftmax.focal_loss(r.logits, r.labels, gamma=2.0, where=r.where),
        lambda xp, r: definitions.focal_loss(xp, r.logits, r.labels, 2, r.entries),
        # q^2 + 2 q n exp(-n) with q = 1 - exp(-n), in three factors with the relative error of n
        _label_terms(lambda xp, n: 3 * (xp.expm1(-n) ** 2 - 2 * xp.expm1(-n) * n * xp.exp(-n))),
        cancels=True,
        amplified=lambda r, gap, lead: 8 + 3 * _at_label(r, lead),
        has_one_program=True,
    ),
    Function(
        "poly_loss",
        lambda r: jsoftmax.poly_loss(r.logits, r.labels, where=r.where),
        lambda xp, r: definitions.poly_loss(xp, r.logits, r.labels, 1, r.entries),
        _label_terms(lambda xp, n: 1 + xp.exp(-n)),
        cancels=True,
        amplified=lambda r, gap, lead: _at_label(r, lead),
        has_one_program=True,
    ),
    Function(
        "log_sigmoid",
        lambda r: jsoftmax.log_sigmoid(r.logits),
        lambda xp, r: -definitions.softplus(xp, -r.logits),
        lambda xp, r, p, g: abs(g) * _sigmoid(xp, -r.logits),
        cancels=False,
        amplified=lambda r, gap, lead: 0,
        has_one_program=True,
    ),
    Function(
        "binary_cross_entropy",
        lambda r: jsoftmax.binary_cross_entropy(r.logits, r.targets),
        lambda xp, r: definitions.binary_cross_entropy(xp, r.logits, r.targets),
        lambda xp, r, p, g: abs(g) * (_sigmoid(xp, r.logits) + r.targets),
        cancels=True,
        amplified=lambda r, gap, lead: 0,
        has_one_program=True,
    ),
    _sparse_map("sparsemax", jsoftmax.sparsemax, 2.0),
    _sparse_map("entmax15", jsoftmax.entmax15, 1.5),
    _sparse_map("entmax, alpha = 1.25", lambda x, where: jsoftmax.entmax(x, 1.25, where=where), 1.25),
    _sparse_loss("sparsemax_loss", jsoftmax.sparsemax_loss, 2.0),
    _sparse_loss("entmax_loss, alpha = 1.5", jsoftmax.entmax_loss, 1.5),
    Function(
        f"top_log_probs, k = {_LARGEST}",
        lambda r: jsoftmax.top_log_probs(r.logits, _LARGEST, where=r.where).log_probs,
        lambda xp, r: definitions.top_log_probs(xp, r.logits, _LARGEST, r.entries),
        _largest_terms,
        cancels=True,
        amplified=lambda r, gap, lead: _at_largest(r, lead),
        has_one_program=True,
    ),
    *_segments(),
)
