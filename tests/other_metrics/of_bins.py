"""Calibration errors of a few rows, made for one question about bins each."""

import jax.numpy as jnp
import numpy as np
import torch
from netcal.metrics import ACE, ECE
from sklearn.calibration import calibration_curve
from torchmetrics.functional import classification as tmc

import jsoftmax
from jsoftmax import evaluation
from tests.other_metrics.agreement import sets

OURS, TORCH, NETCAL, SKLEARN = "jsoftmax", "torchmetrics", "netcal", "scikit-learn"


def probabilities(confidence, right):
    """Rows of 32 classes with these confidences for class 0, and labels; a last row has both 1.

    The last one has a third label: netcal takes labels of two values for those of two classes.
    """
    c = np.append(confidence, np.ones(1, confidence.dtype))[:, None]
    rest = np.repeat((1 - c) / 31, 31, 1)
    labels = np.where(right, 0, 1)
    p = np.concatenate([c, rest], 1).astype(confidence.dtype)
    p[-1] = np.eye(32)[2]
    return p, np.append(labels, 2)


def calibration_error(library, confidence, right, bins=10):
    """The error of rows with these confidences, as a mean over them."""
    if library == SKLEARN:  # has the curve only
        of_bins = calibration_curve(right, confidence, n_bins=bins)
        return np.mean(abs(np.subtract(*of_bins)))
    if library == OURS:
        rows = jnp.zeros(len(right), confidence.dtype)
        statistics = jsoftmax.RowStatistics(rows, rows, rows, jnp.zeros(len(right), jnp.int32))
        state = evaluation.empty(top_k=1, bins=bins, dtype=confidence.dtype)
        labels, more = jnp.where(right, 0, 1), {"confidence": confidence, "brier": rows}
        state = evaluation.update_from_statistics(state, statistics, labels, **more)
        return float(evaluation.compute(state).calibration_error)
    p, y = probabilities(confidence, right)
    n = len(y) / (len(y) - 1)  # the last row has no gap
    if library == NETCAL:
        return n * ECE(bins).measure(p, y)
    return n * float(
        tmc.multiclass_calibration_error(torch.tensor(p), torch.tensor(y), num_classes=32, n_bins=bins)
    )


def edges(library, bins, dtype):
    """Of the inner edges as confidences, how many are in the bin below, in the bin above, and in both.

    In both: a row is counted in one bin, and its confidence and accuracy enter the means of the other.
    """
    below = above = 0
    for i in range(1, bins):
        edge, inside = np.asarray(i / bins, dtype), np.asarray((i - 0.5) / bins, dtype)
        found = calibration_error(library, np.stack([edge, inside]), np.array([True, False]), bins)
        below += np.isclose(found, abs(edge - 1 + inside) / 2, rtol=0, atol=1e-6)
        above += np.isclose(found, (1 - edge + inside) / 2, rtol=0, atol=1e-6)
    counts = {"below": below, "above": above, "in both": bins - 1 - below - above}
    return ", ".join(f"{count} {where}" for where, count in counts.items() if count)


def of_ones(library):
    """Ten bins. 100 rows with confidence 0.95 are all right; of 100 with confidence 1, 90 are."""
    confidence = np.repeat(np.float32([0.95, 1]), 100)
    return calibration_error(library, confidence, np.arange(200) < 190)


def of_zeros(library):
    """Ten bins. A row with confidence 0 and right, one with 0.05 and wrong: 0.475 in one bin, else 0.525."""
    if library == NETCAL:  # for two classes, because a largest probability is not 0
        return ECE(10).measure(np.array([0, 0.05]), np.array([1, 0]))
    if library == TORCH:
        pair = torch.tensor([0, 0.05]), torch.tensor([1, 0])
        return float(tmc.binary_calibration_error(*pair, n_bins=10))
    return calibration_error(library, np.float32([0, 0.05]), np.array([True, False]))


def of_sure_rows(library):
    """The root mean square error of rows of which nine of ten have confidence 1 in float32."""
    x, y, bins = sets()["sure"]
    if library == OURS:
        found = evaluation.compute(evaluation.update(evaluation.empty(bins=bins), x, y))
        return float(found.rms_calibration_error)
    of_all = {"num_classes": 10, "n_bins": bins, "norm": "l2"}
    return float(tmc.multiclass_calibration_error(torch.tensor(x), torch.tensor(y).long(), **of_all))


def many_rows(library):
    """4 000 000 rows of two classes with confidence 0.9, of which 0.9 are right."""
    rows = 4_000_000
    p = np.full((rows, 2), np.float32([0.1, 0.9]))
    y = (np.arange(rows) % 10 != 0).astype(np.int32)
    if library == OURS:
        state = evaluation.update(evaluation.empty(), np.log(p), y)
        return float(evaluation.compute(state).calibration_error)
    if library == NETCAL:
        return ECE(15).measure(p, y)
    error = tmc.multiclass_calibration_error(torch.tensor(p), torch.tensor(y), num_classes=2)
    return round(float(error), 2)


def equal_mass(library, name):
    """The error in 10 bins of equal mass, or the number of bins that are left."""
    x, y, _ = sets()[name]
    p = np.asarray(jsoftmax.softmax(x))
    if library == OURS:
        found = evaluation.compute(evaluation.update(evaluation.empty(bins=10, selective=True), x, y))
        return float(found.equal_mass_calibration_error)
    if library == NETCAL:
        return ECE(10, equal_intervals=False).measure(p, y)
    of_bins = calibration_curve(p.argmax(1) == y, p.max(1), n_bins=10, strategy="quantile")
    return f"bins left: {len(of_bins[0])}"


def average(library):
    """netcal's ACE of 99 rows with gap 0 and one with gap 0.5, in another bin."""
    confidence = np.append(np.ones(99), 0.5)
    p, y = probabilities(confidence, np.append(np.ones(99, bool), False))
    assert library == NETCAL
    return ACE(10).measure(p, y)
