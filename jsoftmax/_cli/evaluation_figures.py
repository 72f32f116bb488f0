"""The four pictures of an evaluation."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from jsoftmax import plots
from jsoftmax.evaluation import Metrics
from jsoftmax.plots._figures import DPI, STYLE
from jsoftmax.plots._labels import MOST


def draw(folder: Path, columns: dict[str, Metrics], names: Sequence[str]) -> list[str]:
    """Write the pictures of one evaluation, or of two beside each other; return the names of the files."""
    written = []
    for name, figure in _pictures(columns, names):
        figure.savefig(folder / name, dpi=DPI)
        written.append(name)
    return written


def _pictures(columns: dict[str, Metrics], names: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    metrics = list(columns.values())[-1]
    yield "reliability-diagram.png", reliability(columns)
    if metrics.confusion is not None:
        yield "confusion-matrix.png", confusion(metrics, names)
    yield "risk-coverage.png", risk_coverage(columns)
    yield "per-class-accuracy.png", per_class_accuracy(metrics, names)


@matplotlib.style.context(STYLE)
def reliability(columns: dict[str, Metrics]) -> Figure:
    """The diagrams beside each other, each above its counts."""
    figure = Figure(figsize=(3.6 * len(columns), 4.3), layout="constrained")
    places = figure.subplots(1, len(columns), squeeze=False)[0]
    for ax, (name, metrics) in zip(places, columns.items(), strict=True):
        plots.reliability_diagram(metrics.reliability, ax=ax)
        if len(columns) > 1:
            ax.set_title(f"{name}: {ax.get_title(loc='left')}")
    return figure


@matplotlib.style.context(STYLE)
def confusion(metrics: Metrics, names: Sequence[str]) -> Figure:
    """The counts; of many classes, those of neighbours together, under the ids of the first and the last."""
    assert metrics.confusion is not None
    side = 4.4 * max(1, min(len(names), MOST) / 15)
    figure = Figure(figsize=(side, side), layout="constrained")
    shown = names if len(names) <= MOST else None
    plots.confusion_matrix(np.asarray(metrics.confusion), names=shown, ax=figure.subplots())
    return figure


@matplotlib.style.context(STYLE)
def risk_coverage(columns: dict[str, Metrics]) -> Figure:
    """One curve for each evaluation."""
    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    ax = figure.subplots()
    for name, metrics in columns.items():
        plots.risk_coverage(metrics.risk_coverage, label=name if len(columns) > 1 else None, ax=ax)
    return figure


@matplotlib.style.context(STYLE)
def per_class_accuracy(metrics: Metrics, names: Sequence[str]) -> Figure:
    """Bars, or a curve for many classes."""
    held = int(np.count_nonzero(np.asarray(metrics.per_class_weight)))
    height = 0.2 * max(held, 4) + 0.8 if held <= MOST else 3.0
    figure = Figure(figsize=(4.2, height), layout="constrained")
    accuracy, weight = metrics.per_class_accuracy, metrics.per_class_weight
    plots.per_class_accuracy(accuracy, weight, names=names, ax=figure.subplots())  # type: ignore[arg-type]
    return figure
