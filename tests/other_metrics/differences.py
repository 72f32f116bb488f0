"""Where the definitions differ: what each library computes from a few rows made for one question.

    python -m tests.other_metrics.differences

Prints what every library does, as found, and what is no longer as .docs/pages/evaluation.md says.
"""

import inspect
import sys
import warnings

import jax
import numpy as np
import torch
from netcal.metrics import ACE, ECE
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from torchmetrics import functional as tm
from torchmetrics.functional import classification as tmc

from jsoftmax import evaluation
from tests.other_metrics import of_bins
from tests.other_metrics.of_bins import NETCAL, OURS, SKLEARN, TORCH


def two_classes(library):
    """Confidence 0.8, and 0.8 are right: of 10 with the guess 0 all, of 10 with the guess 1 only 6."""
    p = np.repeat(np.float32([[0.8, 0.2], [0.2, 0.8]]), 10, 0)
    y = (np.arange(20) >= 14).astype(np.int32)
    if library == OURS:
        found = evaluation.compute(evaluation.update(evaluation.empty(), np.log(p), y))
        return float(found.calibration_error)
    if library == NETCAL:
        return ECE(15).measure(p, y)
    return float(tmc.multiclass_calibration_error(torch.tensor(p), torch.tensor(y), num_classes=2))


def brier(library, classes):
    """The guess has probability 0.8, and is wrong."""
    p = np.full((6, classes), 0.2 / (classes - 1))
    y = np.arange(6) % classes
    p[np.arange(6), (y + 1) % classes] = 0.8
    if library == OURS:
        return float(evaluation.compute(evaluation.update(evaluation.empty(), np.log(p), y)).brier)
    if library == SKLEARN:
        return sk.brier_score_loss(y, p)
    return float(tm.mean_squared_error(torch.tensor(p).flatten(), torch.eye(classes)[y].flatten()))


def labels_of_two_values(library):
    """Three classes, and a batch in which only two of them are labels."""
    p, y = np.float32([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]), np.array([0, 1])
    if library == OURS:
        found = evaluation.compute(evaluation.update(evaluation.empty(), np.log(p), y))
        return float(found.calibration_error)
    if library == NETCAL:
        return ECE(10).measure(p, y)
    return float(tmc.multiclass_calibration_error(torch.tensor(p), torch.tensor(y), num_classes=3))


def tied_top(library):
    """The top-1 to top-3 accuracy of rows of ten scores, of three levels; the first largest is right."""
    x = np.random.default_rng(0).integers(0, 3, (1000, 10)).astype(np.float32)
    y = x.argmax(1)
    if library == OURS:
        found = evaluation.compute(evaluation.update(evaluation.empty(top_k=3), x, y))
        each = found.top_k_accuracy
    elif library == SKLEARN:
        each = [sk.top_k_accuracy_score(y, x, k=k) for k in (1, 2, 3)]
    else:
        options, pair = {"num_classes": 10, "average": "micro"}, (torch.tensor(x), torch.tensor(y))
        each = [tmc.multiclass_accuracy(*pair, top_k=k, **options) for k in (1, 2, 3)]
    return " ".join(f"{float(share):.3f}" for share in each)


LABELS, GUESSES = (
    np.array([0, 0, 1, 1]),
    np.array([0, 2, 1, 1]),
)  # of 5 classes; 2 is no label, 3 and 4 neither


def macro(library, what):
    if library == OURS:
        x = 5 * np.eye(5, dtype=np.float32)[GUESSES]
        found = evaluation.compute(evaluation.update(evaluation.empty(5), x, LABELS))
        return float(found.macro_f1 if what == "f1" else found.macro_accuracy)
    if library == TORCH:
        metric = tmc.multiclass_f1_score if what == "f1" else tmc.multiclass_accuracy
        return float(metric(torch.tensor(GUESSES), torch.tensor(LABELS), num_classes=5))
    if what == "accuracy":
        return sk.balanced_accuracy_score(LABELS, GUESSES)
    named = {"labels": range(5)} if what == "f1, with labels=" else {}
    return sk.f1_score(LABELS, GUESSES, average="macro", **named)


def weights(library):
    """The functions without weights of rows."""
    of_each = {
        TORCH: (tmc.multiclass_calibration_error, tmc.multiclass_accuracy, tmc.multiclass_f1_score),
        NETCAL: (ECE.measure, ACE.measure),
        SKLEARN: (sk.brier_score_loss, sk.top_k_accuracy_score, sk.f1_score, calibration_curve),
    }
    functions = of_each[library]
    without = [f for f in functions if not any("weight" in name for name in inspect.signature(f).parameters)]
    return (
        "in none" if len(without) == len(functions) else f"all but {', '.join(f.__name__ for f in without)}"
    )


def small_logits(library):
    """Logits between 0 and 1: two classes, 1 and 0. The softmax of class 0 is 0.731, not 1."""
    x, y = np.tile(np.float32([1, 0]), (4, 1)), np.zeros(4, np.int32)
    if library == OURS:
        found = evaluation.compute(evaluation.update(evaluation.empty(), x, y))
        return float(found.calibration_error)
    return float(tmc.multiclass_calibration_error(torch.tensor(x), torch.tensor(y), num_classes=2))


F32, F64 = np.float32, np.float64
TIES = "ValueError: The smallest edge difference is numerically 0."
REFUSED = "RuntimeError: Asserted binary classification problem but retrieved more than 2 confidence dims."
# What is asked: how to find out for each library, and the answers.
QUESTIONS = {
    "confidences on the edges of 10 bins, float64": (
        lambda name: of_bins.edges(name, 10, F64),
        {OURS: "9 below", TORCH: "9 above", NETCAL: "3 below, 6 above", SKLEARN: "9 below"},
    ),
    "confidences on the edges of 10 bins, float32": (
        lambda name: of_bins.edges(name, 10, F32),
        {OURS: "9 below", TORCH: "9 above", NETCAL: "7 above, 2 in both", SKLEARN: "3 below, 6 above"},
    ),
    "confidences on the edges of 15 bins, float32": (
        lambda name: of_bins.edges(name, 15, F32),
        {OURS: "14 below", TORCH: "3 below, 11 above", NETCAL: "14 above", SKLEARN: "14 above"},
    ),
    "confidence 1 beside 0.95, in 10 bins": (
        of_bins.of_ones,
        {OURS: 0.025, TORCH: 0.075, NETCAL: 0.025, SKLEARN: 0.025},
    ),
    "confidence 0 beside 0.05, in 10 bins": (
        of_bins.of_zeros,
        {OURS: 0.475, TORCH: 0.475, NETCAL: 0.475, SKLEARN: 0.475},
    ),
    "root mean square error of sure rows": (of_bins.of_sure_rows, {OURS: 0.107766, TORCH: 0.162501}),
    "4 000 000 rows without an error": (of_bins.many_rows, {OURS: 0, TORCH: 0.03, NETCAL: 0}),
    "equal mass": (
        lambda name: of_bins.equal_mass(name, "digits"),
        {OURS: 0.006928, NETCAL: 0.007087, SKLEARN: "bins left: 10"},
    ),
    "equal mass, nine of ten confidences are 1": (
        lambda name: of_bins.equal_mass(name, "sure"),
        {OURS: 0.091923, NETCAL: TIES, SKLEARN: "bins left: 1"},
    ),
    "ACE of 99 rows without an error, and one with 0.5": (of_bins.average, {NETCAL: 0.25}),
    "two classes: calibration error": (two_classes, {OURS: 0, TORCH: 0, NETCAL: 0.2}),
    "three classes, two of them labels": (labels_of_two_values, {OURS: 0.2, TORCH: 0.2, NETCAL: REFUSED}),
    "two classes: Brier score": (lambda name: brier(name, 2), {OURS: 1.28, TORCH: 0.64, SKLEARN: 0.64}),
    "three classes: Brier score": (
        lambda name: brier(name, 3),
        {OURS: 1.46, TORCH: 1.46 / 3, SKLEARN: 1.46},
    ),
    "top 1, 2, 3 of ties": (
        tied_top,
        {OURS: "1.000 1.000 1.000", TORCH: "1.000 0.620 0.785", SKLEARN: "0.080 0.273 0.537"},
    ),
    "macro F1": (lambda name: macro(name, "f1"), {OURS: 5 / 9, TORCH: 5 / 9, SKLEARN: 5 / 9}),
    "macro F1, with labels=": (lambda name: macro(name, "f1, with labels="), {SKLEARN: 1 / 3}),
    "macro accuracy": (lambda name: macro(name, "accuracy"), {OURS: 0.75, TORCH: 0.5, SKLEARN: 0.75}),
    "weights of rows": (weights, {TORCH: "in none", NETCAL: "in none", SKLEARN: "all but calibration_curve"}),
    "logits 1 and 0": (small_logits, {OURS: 0.268941, TORCH: 0}),
}


def answer(ask, library):
    """What a library answers; the first words of its error if it refuses."""
    try:
        return ask(library)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def main():
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    wrong = 0
    for question, (ask, answers) in QUESTIONS.items():
        print(question)
        for library, said in answers.items():
            found = answer(ask, library)
            same = found == said if isinstance(said, str) else np.allclose(found, said, rtol=0, atol=1e-6)
            wrong += not same
            shown = found if isinstance(found, str) else f"{found:.6f}"
            print(f"    {library:14}{shown}{'' if same else f'    CHANGED: was {said}'}", flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
