"""The softmax family in closed form, for JAX."""

import importlib.metadata

from jsoftmax import evaluation, online, rules
from jsoftmax._autodiff import forward_mode
from jsoftmax._blocks import BlockPlan
from jsoftmax._information import entropy, js_divergence, kl_divergence, log_prob
from jsoftmax._linear_head import (
    linear_cross_entropy,
    linear_plan,
    linear_row_statistics,
)
from jsoftmax._logsumexp import logsumexp
from jsoftmax._losses import (
    cross_entropy,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from jsoftmax._maps import log_softmax, softmax
from jsoftmax._placement import Placement, linear_placement
from jsoftmax._row_statistics import RowStatistics, row_statistics

__all__ = [
    "BlockPlan",
    "Placement",
    "RowStatistics",
    "cross_entropy",
    "entropy",
    "evaluation",
    "forward_mode",
    "js_divergence",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_placement",
    "linear_plan",
    "linear_row_statistics",
    "log_prob",
    "log_softmax",
    "logsumexp",
    "online",
    "row_statistics",
    "rules",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
]
__version__: str


def __getattr__(name: str) -> str:
    """The version, looked up when asked for: sources that are not installed have none."""
    if name == "__version__":
        try:
            return importlib.metadata.version("jsoftmax")
        except importlib.metadata.PackageNotFoundError as error:
            raise AttributeError("jsoftmax is not installed, so it has no __version__") from error
    raise AttributeError(f"module 'jsoftmax' has no attribute {name!r}")
