"""Records the maps and losses of the package entmax, with their gradients: `python record_entmax.py`.

It needs only torch and entmax, and writes entmax.json into the folder of this file.
"""

import json
from importlib import metadata
from pathlib import Path

import entmax
import torch

torch.manual_seed(0)
ROWS, CLASSES = 4, 6
unit = torch.randn(ROWS, CLASSES)
tied = unit.clone()
tied[:, 3] = tied[:, 0] = tied.max(1).values
logits = {
    "unit": unit,
    "flat": torch.full((ROWS, CLASSES), 1.5),
    "spread": 0.1 * unit,
    "peaked": 5 * unit,
    "tied": tied,
    "offset 1e4": (1e4 + unit),
    "nearly sure": torch.tensor([[0.999, 0, -3, -3, -3, -3]] * ROWS),
}
ids = torch.tensor([0, 3, 5, 2])
g = torch.randn(ROWS, CLASSES)
MAPS = {
    "sparsemax": (entmax.sparsemax, entmax.sparsemax_loss, 2.0),
    "entmax15": (entmax.entmax15, entmax.entmax15_loss, 1.5),
    **{
        f"entmax {alpha}": (
            lambda x, a=alpha: entmax.entmax_bisect(x, a),
            lambda x, y, a=alpha: entmax.entmax_bisect_loss(x, y, a),
            alpha,
        )
        for alpha in (1.01, 1.2, 1.7, 3.0)
    },
}


def record(name, regime):
    function, loss_function, alpha = MAPS[name]
    labels = torch.zeros_like(ids) if regime == "nearly sure" else ids
    x = logits[regime].clone().requires_grad_()
    p = function(x)
    (gradient,) = torch.autograd.grad((p * g).sum(), x)
    loss = loss_function(x, labels)
    (of_loss,) = torch.autograd.grad(loss.sum(), x)
    power = torch.full((ROWS, 1), alpha, requires_grad=True)
    (in_alpha,) = torch.autograd.grad((entmax.entmax_bisect(logits[regime], power) * g).sum(), power)
    found = {"p": p, "gradient": gradient, "loss": loss, "gradient of loss": of_loss, "in alpha": in_alpha}
    return {
        "map": name,
        "alpha": alpha,
        "regime": regime,
        "labels": labels.tolist(),
        **{k: v.tolist() for k, v in found.items()},
    }


recorded = {
    "entmax": metadata.version("entmax"),
    "torch": torch.__version__,
    "logits": {name: x.tolist() for name, x in logits.items()},
    "g": g.tolist(),
    "cases": [record(name, regime) for name in MAPS for regime in logits],
}
Path(__file__).with_name("entmax.json").write_text(json.dumps(recorded))
