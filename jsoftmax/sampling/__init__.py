"""Draws from the softmax of logits of any float type; a draw does not depend on the number of devices."""

from jsoftmax.sampling._categorical import categorical
from jsoftmax.sampling._gumbel_softmax import gumbel_softmax
from jsoftmax.sampling._keep import keep_mask
from jsoftmax.sampling._linear import linear_categorical
from jsoftmax.sampling._race import Draw
from jsoftmax.sampling._without_replacement import sample_without_replacement

__all__ = [
    "Draw",
    "categorical",
    "gumbel_softmax",
    "keep_mask",
    "linear_categorical",
    "sample_without_replacement",
]
