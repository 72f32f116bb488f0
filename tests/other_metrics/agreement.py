"""Where the definitions agree: the metrics of every library, from the same logits, to 1e-6.

    python -m tests.other_metrics.agreement

The calibration errors also have a definition in NumPy with the bins of each library: what differs between
libraries is the bins, and nothing else. One line for each metric and library.
"""

import sys
import warnings

import numpy as np
import torch
from netcal.metrics import ECE, MCE
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from torchmetrics import functional as tm
from torchmetrics.functional import classification as tmc

import jsoftmax
from jsoftmax import evaluation
from tests.digits import digits

WITHIN = 1e-6


def steps():
    """Rows of 1, 2, 4 or 8 equal logits: confidences on the edges of 8 bins, or a little below them."""
    rng = np.random.default_rng(0)
    rank = rng.permuted(np.tile(np.arange(16), (2000, 1)), axis=1)
    on_edge = rng.random(2000) < 0.5  # the others are right more often
    top = rank < 2 ** rng.integers(0, 4, (2000, 1))
    x = np.where(top, 0, np.where(on_edge, -200, -5)[:, None]).astype(np.float32)
    right = rng.random(2000) < np.where(on_edge, 0.3, 0.9)
    return x, np.where(right, x.argmax(1), rng.integers(0, 16, 2000)).astype(np.int32)


def sets():
    """Name: logits, labels and the number of bins. In float32, nine of ten `sure` rows have confidence 1."""
    x, y = digits()
    return {"digits": (x, y, 15), "sure": (20 * x, y, 15), "steps": (*steps(), 8)}


def bins_of(library, confidence, bins):
    """The bin of each confidence, as the library chooses it."""
    if library == "torchmetrics":  # [i/n, (i + 1)/n), and a bin of its own for 1
        return torch.bucketize(torch.tensor(confidence), torch.linspace(0, 1, bins + 1), right=True) - 1
    if library == "netcal":  # [i/n, (i + 1)/n), after 1 is made smaller
        below_1 = np.minimum(confidence, 1 - np.finfo(confidence.dtype).eps)
        return np.searchsorted(np.linspace(0, 1, bins + 1), below_1, side="right") - 1
    return np.searchsorted(np.float32([i / bins for i in range(1, bins)]), confidence)  # (i/n, (i + 1)/n]


def by_definition(bin_of, confidence, right):
    """The calibration errors in NumPy: mean, largest and root mean square."""
    share = np.bincount(bin_of) / len(right)
    gap = abs(np.bincount(bin_of, np.float64(confidence) - right)) / np.maximum(share * len(right), 1)
    return {"l1": share @ gap, "max": gap.max(), "l2": np.sqrt(share @ gap**2)}


def calibration(name, x, y, bins, found):
    """Every error against its definition with the bins of the library; the errors against ours on digits."""
    p = np.asarray(jsoftmax.softmax(x))
    tensors = torch.from_numpy(p), torch.from_numpy(y).long()
    confidence, right = p.max(1), p.argmax(1) == y
    of_torch = {"num_classes": p.shape[1], "n_bins": bins}
    theirs = {
        "jsoftmax": {
            "l1": found.calibration_error,
            "max": found.max_calibration_error,
            "l2": found.rms_calibration_error,
        },
        "torchmetrics": {
            norm: tmc.multiclass_calibration_error(*tensors, norm=norm, **of_torch)
            for norm in ("l1", "max", "l2")
        },
        "netcal": {"l1": ECE(bins).measure(p, y), "max": MCE(bins).measure(p, y)},
    }
    for library, errors in theirs.items():
        want = by_definition(bins_of(library, confidence, bins), confidence, right)
        for norm, error in errors.items():
            yield f"{name}: {library}, {norm}, by its bins", error, want[norm]
            if name == "digits":  # no confidence is on an edge
                yield f"{name}: {library}, {norm}, ours", error, theirs["jsoftmax"][norm]
    curve = found.reliability
    used = np.asarray(curve.weight) > 0
    drawn = calibration_curve(right, np.float64(confidence), n_bins=bins)
    yield f"{name}: scikit-learn, accuracy of the bins", curve.accuracy[used], drawn[0]
    yield f"{name}: scikit-learn, confidence of the bins", curve.confidence[used], drawn[1]
    if name == "digits":
        yield from class_wise(p, y, bins, found.class_calibration_error)


def class_wise(p, y, bins, ours):
    """The mean of the errors for two classes, each class against the others."""
    of_classes = [(p[:, j], (y == j).astype(np.int32)) for j in range(p.shape[1])]
    torchs = [
        tmc.binary_calibration_error(torch.tensor(q), torch.tensor(hit), n_bins=bins) for q, hit in of_classes
    ]
    yield "digits: torchmetrics, class-wise", ours, np.mean(torchs)
    yield "digits: netcal, class-wise", ours, np.mean([ECE(bins).measure(q, hit) for q, hit in of_classes])


def without_bins(x, y, found):
    """Digits without bins: the loss, Brier score, accuracy, F1 and confusion."""
    p, classes = np.asarray(jsoftmax.softmax(np.float64(x))), x.shape[1]
    guess, n = x.argmax(1), {"num_classes": classes}
    tx, ty, tguess = torch.from_numpy(x), torch.from_numpy(y).long(), torch.from_numpy(guess)
    one_hot = torch.eye(classes)[ty]
    yield "nll: scikit-learn, log_loss", found.nll, sk.log_loss(y, p)
    yield "perplexity: torchmetrics", found.perplexity, tm.text.perplexity(tx[None], ty[None])
    yield "brier: scikit-learn", found.brier, sk.brier_score_loss(y, p)
    of_all = tm.mean_squared_error(torch.softmax(tx, 1).flatten(), one_hot.flatten())
    yield "brier: torchmetrics, mean_squared_error times classes", found.brier, classes * of_all
    for k in range(1, 6):
        ours = found.top_k_accuracy[k - 1]
        yield f"top {k}: scikit-learn", ours, sk.top_k_accuracy_score(y, x, k=k)
        micro = tmc.multiclass_accuracy(tx, ty, top_k=k, average="micro", **n)
        yield f"top {k}: torchmetrics, micro", ours, micro
    macro = tmc.multiclass_accuracy(tguess, ty, **n)
    yield "macro accuracy: torchmetrics", found.macro_accuracy, macro
    yield "macro accuracy: scikit-learn", found.macro_accuracy, sk.balanced_accuracy_score(y, guess)
    for average, ours in (("macro", found.macro_f1), (None, found.per_class_f1)):
        yield f"F1, {average}: scikit-learn", ours, sk.f1_score(y, guess, average=average)
        f1 = tmc.multiclass_f1_score(tguess, ty, average=average or "none", **n)
        yield f"F1, {average}: torchmetrics", ours, f1
    yield "confusion: scikit-learn", found.confusion, sk.confusion_matrix(y, guess)
    yield "confusion: torchmetrics", found.confusion, tmc.multiclass_confusion_matrix(tguess, ty, **n)


def comparisons():
    for name, (x, y, bins) in sets().items():
        state = evaluation.empty(x.shape[1], bins=bins, class_bins=bins, confusion=True)
        found = evaluation.compute(evaluation.update(state, x, y))
        yield from calibration(name, x, y, bins, found)
        if name == "digits":
            yield from without_bins(x, y, found)


def main():
    warnings.simplefilter("ignore")
    wrong = 0
    for what, one, other in comparisons():
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        error = np.max(abs(one - other)) if one.shape == other.shape else np.inf
        wrong += not error <= WITHIN
        shown = f"{one:.6f} {other:.6f}" if one.ndim == 0 else f"shape {one.shape}"
        print(f"{'ok   ' if error <= WITHIN else 'WRONG'} {what:52} {shown}, difference {error:.0e}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
