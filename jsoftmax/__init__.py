"""The softmax family in closed form, for JAX."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from jsoftmax import online, rules
from jsoftmax.functions._contrastive import contrastive_loss
from jsoftmax.functions._divergences import js_divergence, kl_divergence
from jsoftmax.functions._explain import explain
from jsoftmax.functions._focal import focal_loss, poly_loss
from jsoftmax.functions._information import entropy, log_prob
from jsoftmax.functions._linear import linear_cross_entropy
from jsoftmax.functions._linear_divergences import linear_js_divergence, linear_kl_divergence
from jsoftmax.functions._linear_plan import linear_plan
from jsoftmax.functions._logsumexp import logsumexp
from jsoftmax.functions._losses import (
    cross_entropy,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from jsoftmax.functions._maps import log_softmax, softmax
from jsoftmax.functions._odds import log_odds
from jsoftmax.functions._placement import Placement, linear_placement
from jsoftmax.functions._row_statistics import linear_row_statistics, row_statistics
from jsoftmax.functions._segment_logsumexp import segment_logsumexp
from jsoftmax.functions._segment_losses import segment_cross_entropy
from jsoftmax.functions._segment_maps import segment_log_softmax, segment_softmax
from jsoftmax.functions._sigmoid_contrastive import sigmoid_contrastive_loss
from jsoftmax.functions._sparse_divergences import linear_sparse_kl_divergence, sparse_kl_divergence
from jsoftmax.functions._sparse_losses import entmax_loss, sparsemax_loss
from jsoftmax.functions._sparse_maps import entmax, entmax15, sparsemax
from jsoftmax.functions._top_log_probs import TopLogProbs, linear_top_log_probs, top_log_probs
from jsoftmax.functions._two_classes import binary_cross_entropy, log_sigmoid
from jsoftmax.linear._plan import BlockPlan
from jsoftmax.rows._row_numbers import RowStatistics
from jsoftmax.rows._sparse import SparseTargets
from jsoftmax.transforms._modes import config, forward_mode, portable

if TYPE_CHECKING:
    from jsoftmax import evaluation, sampling
    from jsoftmax import plots as plots

__all__ = [
    "BlockPlan",
    "Placement",
    "RowStatistics",
    "SparseTargets",
    "TopLogProbs",
    "binary_cross_entropy",
    "config",
    "contrastive_loss",
    "cross_entropy",
    "entmax",
    "entmax15",
    "entmax_loss",
    "entropy",
    "evaluation",
    "explain",
    "focal_loss",
    "forward_mode",
    "js_divergence",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_js_divergence",
    "linear_kl_divergence",
    "linear_placement",
    "linear_plan",
    "linear_row_statistics",
    "linear_sparse_kl_divergence",
    "linear_top_log_probs",
    "log_odds",
    "log_prob",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "online",
    "poly_loss",
    "portable",
    "row_statistics",
    "rules",
    "sampling",
    "segment_cross_entropy",
    "segment_log_softmax",
    "segment_logsumexp",
    "segment_softmax",
    "sigmoid_contrastive_loss",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "sparse_kl_divergence",
    "sparsemax",
    "sparsemax_loss",
    "top_log_probs",
]
__version__: str


# Subpackages that are loaded at their first use; `plots` needs an extra, so ``import *`` leaves it out.
_LOADED_LATER = {"evaluation", "plots", "sampling"}


def __getattr__(name: str) -> Any:
    """A subpackage that is loaded at its first use, or the version, which sources not installed lack."""
    if name in _LOADED_LATER:
        return importlib.import_module(f"jsoftmax.{name}")
    if name == "__version__":
        try:
            return importlib.metadata.version("jsoftmax")
        except importlib.metadata.PackageNotFoundError as error:
            raise AttributeError("jsoftmax is not installed, so it has no __version__") from error
    raise AttributeError(f"module 'jsoftmax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
