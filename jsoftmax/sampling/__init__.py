"""Draws from the softmax of logits, right in 16 bits, and the same on any number of devices."""

from jsoftmax.sampling._categorical import categorical
from jsoftmax.sampling._keep import keep_mask
from jsoftmax.sampling._race import Draw

__all__ = ["Draw", "categorical", "keep_mask"]
