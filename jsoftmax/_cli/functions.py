"""The maps, losses and divergences with their definitions: the table that `check` and `train` compare."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import jsoftmax
from jsoftmax._cli import definitions


class Rows(NamedTuple):
    """Arguments for any of the functions; each row is an example."""

    logits: Any  # [N, classes]
    labels: Any  # [N], class ids
    targets: Any  # [N, classes], probabilities
    where: Any = None  # [N, classes], or None

    @property
    def entries(self) -> Any:
        """`where` as the definitions take it: True instead of None."""
        return True if self.where is None else self.where


@dataclass(frozen=True)
class Function:
    """A public function, its definition, and the quantities that bound its rounding error."""

    name: str
    ours: Callable[..., Any]  # takes rows, and temperature=T if `has_temperature`
    definition: Callable[[ModuleType, Rows], Any]
    # terms(xp, rows, p, g), g the cotangent: the sum of the |terms| of each entry of the gradient.
    terms: Callable[[ModuleType, Rows, Any, Any], Any]
    # Whether these terms can cancel, so that the gradient is only as exact as they are.
    cancels: bool
    # amplified(rows, gap, lead): the relative error of the value, in ulp, from the rounding of x - max. `gap`
    # is max - x_i, and `lead` the distance of the maximum to the next entry (0 at all other entries).
    amplified: Callable[[Rows, Any, Any], Any]
    has_temperature: bool = False
    # A p that is flushed to zero may be multiplied by a logarithm: its largest factor in the error.
    lost_logarithms: int = 1
    # Whether `check` compiles it once only: with a mask in every regime, and not for each row by jax.vmap.
    has_one_program: bool = False


def _sum(xp: ModuleType, values: Any) -> Any:
    return xp.sum(values, axis=-1, keepdims=True)


def _softmax_terms(xp: ModuleType, rows: Rows, p: Any, g: Any) -> Any:
    """The sum of |terms| of p_i (g_i - sum_j p_j g_j)."""
    return p * (abs(g) + _sum(xp, p * abs(g)))


def _log_softmax_terms(xp: ModuleType, rows: Rows, p: Any, g: Any) -> Any:
    """The sum of |terms| of g_i - p_i sum_j g_j."""
    g = xp.where(rows.entries, abs(g), 0)
    return g + p * _sum(xp, g)


def _logsumexp_terms(xp: ModuleType, rows: Rows, p: Any, g: Any) -> Any:
    """The sum of |terms| of g p_i."""
    return p * abs(g)[..., None]


def _label_terms(xp: ModuleType, rows: Rows, p: Any, g: Any) -> Any:
    """The sum of |terms| of g (p_i - 1) at the label, and of g p_i elsewhere."""
    return (p + (xp.arange(p.shape[-1]) == rows.labels[..., None])) * abs(g)[..., None]


def _target_terms(xp: ModuleType, rows: Rows, p: Any, g: Any) -> Any:
    """The sum of |terms| of g (p_i sum_j t_j - t_i)."""
    return (p * _sum(xp, rows.targets) + rows.targets) * abs(g)[..., None]


def _entropy_terms(xp: ModuleType, rows: Rows, p: Any, g: Any) -> Any:
    """The sum of |terms| of g p_i (log p_i + H)."""
    surprisal = -xp.log(xp.where(p > 0, p, 1))
    return p * (surprisal + _sum(xp, p * surprisal)) * abs(g)[..., None]


def _divergence_terms(xp: ModuleType, rows: Rows, p: Any, g: Any) -> Any:
    """The sum of |terms| of g p_i (log p_i - log q_i - KL), which also bounds the gradient of JS."""
    log_q = definitions.log_softmax(xp, rows.targets, rows.entries)
    apart = abs(xp.log(xp.where(p > 0, p, 1)) - xp.where(p > 0, log_q, 0))
    return p * (1 + apart + _sum(xp, p * apart)) * abs(g)[..., None]


def _of_label(rows: Rows, gap: Any, lead: Any) -> Any:
    """The lead of the label, where the loss -log p_label is tiny; 0 if another class leads."""
    return np.take_along_axis(lead, rows.labels[..., None], axis=-1)[..., 0]


def _define_label_loss(xp: ModuleType, rows: Rows) -> Any:
    return definitions.cross_entropy_with_integer_labels(xp, rows.logits, rows.labels, rows.entries)


def _define_target_loss(xp: ModuleType, rows: Rows) -> Any:
    return definitions.cross_entropy(xp, rows.logits, rows.targets, rows.entries)


FUNCTIONS = (
    Function(
        "softmax",
        lambda r, **t: jsoftmax.softmax(r.logits, where=r.where, **t),
        lambda xp, r: definitions.softmax(xp, r.logits, r.entries),
        _softmax_terms,
        cancels=True,
        amplified=lambda r, gap, lead: gap,
        has_temperature=True,
    ),
    Function(
        "log_softmax",
        lambda r, **t: jsoftmax.log_softmax(r.logits, where=r.where, **t),
        lambda xp, r: definitions.log_softmax(xp, r.logits, r.entries),
        _log_softmax_terms,
        cancels=True,
        amplified=lambda r, gap, lead: lead,
        has_temperature=True,
    ),
    Function(
        "logsumexp",
        lambda r: jsoftmax.logsumexp(r.logits, axis=-1, where=r.where),
        lambda xp, r: definitions.logsumexp(xp, r.logits, r.entries),
        _logsumexp_terms,
        cancels=False,
        amplified=lambda r, gap, lead: 0,
    ),
    Function(
        "cross_entropy, class ids",
        lambda r, **t: jsoftmax.cross_entropy(r.logits, r.labels, where=r.where, **t),
        _define_label_loss,
        _label_terms,
        cancels=False,
        amplified=_of_label,
        has_temperature=True,
    ),
    Function(
        "cross_entropy, probabilities",
        lambda r, **t: jsoftmax.cross_entropy(r.logits, r.targets, where=r.where, **t),
        _define_target_loss,
        _target_terms,
        cancels=True,
        amplified=lambda r, gap, lead: lead.max(axis=-1),
        has_temperature=True,
    ),
    Function(
        "softmax_cross_entropy",
        lambda r: jsoftmax.softmax_cross_entropy(r.logits, r.targets, where=r.where),
        _define_target_loss,
        _target_terms,
        cancels=True,
        amplified=lambda r, gap, lead: lead.max(axis=-1),
    ),
    Function(
        "softmax_cross_entropy_with_integer_labels",
        lambda r: jsoftmax.softmax_cross_entropy_with_integer_labels(r.logits, r.labels, where=r.where),
        _define_label_loss,
        _label_terms,
        cancels=False,
        amplified=_of_label,
    ),
    Function(
        "log_prob",
        lambda r, **t: jsoftmax.log_prob(r.logits, r.labels, where=r.where, **t),
        lambda xp, r: -_define_label_loss(xp, r),
        _label_terms,
        cancels=False,
        amplified=_of_label,
        has_temperature=True,
    ),
)

# The textbook gradients of these cancel in float32, so only `check` compares them, in float64. A divergence
# takes the targets as the logits of the second distribution.
INFORMATION = (
    Function(
        "entropy",
        lambda r, **t: jsoftmax.entropy(r.logits, where=r.where, **t),
        lambda xp, r: definitions.entropy(xp, r.logits, r.entries),
        _entropy_terms,
        cancels=True,
        amplified=lambda r, gap, lead: lead.max(axis=-1),
        has_temperature=True,
        lost_logarithms=32,
    ),
    Function(
        "kl_divergence",
        lambda r: jsoftmax.kl_divergence(r.logits, r.targets, where=r.where),
        lambda xp, r: definitions.kl_divergence(xp, r.logits, r.targets, r.entries),
        _divergence_terms,
        cancels=True,
        amplified=lambda r, gap, lead: 4,
        lost_logarithms=32,
    ),
    Function(
        "js_divergence",
        lambda r: jsoftmax.js_divergence(r.logits, r.targets, where=r.where),
        lambda xp, r: definitions.js_divergence(xp, r.logits, r.targets, r.entries),
        _divergence_terms,
        cancels=True,
        amplified=lambda r, gap, lead: 4,
        lost_logarithms=32,
    ),
)
