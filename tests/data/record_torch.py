"""Records value and gradient of torch's cross_entropy over its options: `python record_torch.py`.

It needs only torch, and writes torch_cross_entropy.json into the folder of this file.
"""

import itertools
import json
from pathlib import Path

import torch

torch.manual_seed(0)
ROWS, CLASSES = 6, 5
logits = 3 * torch.randn(ROWS, CLASSES)
weights = torch.rand(CLASSES) + 0.5
ids = torch.tensor([0, 3, 2, 2, 4, 1])
targets = torch.softmax(torch.randn(ROWS, CLASSES), dim=1)


def record(soft, weighted, ignored, smoothing, reduction):
    x = logits.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        x,
        targets if soft else ids,
        weight=weights if weighted else None,
        ignore_index=2 if ignored else -100,
        label_smoothing=smoothing,
        reduction=reduction,
    )
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return {
        "soft": soft,
        "weighted": weighted,
        "ignored": ignored,
        "smoothing": smoothing,
        "reduction": reduction,
        "loss": loss.tolist(),
        "gradient": gradient.tolist(),
    }


flags = (False, True)
cases = [
    record(*options)
    for options in itertools.product(flags, flags, flags, (0.0, 0.1), ("none", "mean", "sum"))
    if not (options[0] and options[2])  # ignore_index is for class ids
]
recorded = {
    "torch": torch.__version__,
    "logits": logits.tolist(),
    "weights": weights.tolist(),
    "ids": ids.tolist(),
    "targets": targets.tolist(),
    "cases": cases,
}
Path(__file__).with_name("torch_cross_entropy.json").write_text(json.dumps(recorded))
