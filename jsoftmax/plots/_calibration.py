"""The reliability diagram and the risk–coverage curve."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.gridspec import GridSpecFromSubplotSpec
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from jsoftmax.border._call import Call
from jsoftmax.plots import _arguments as arguments
from jsoftmax.plots._figures import (
    BLUE,
    COLOURS,
    PALE,
    PERCENT,
    SMALL,
    VERMILION,
    axes_for,
    points,
    set_title,
    text_colour,
)

WIDE = 100  # counts in the histogram whose largest is this multiple of the smallest have a log axis
ROOMY = 160  # points: a legend beside the diagonal needs axes of this width
LINES = ("-", "--", "-.", ":")
OVER: dict[str, Any] = {"facecolor": "#F6D5C3", "edgecolor": VERMILION, "hatch": "/////", "linewidth": 0.5}
UNDER: dict[str, Any] = {"facecolor": BLUE, "edgecolor": BLUE, "linewidth": 0.5}
Vector = NDArray[np.float64]


def reliability_diagram(
    reliability: Any,
    *,
    counts: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy by confidence, with the gap of each bin to the diagonal, above the count of rows in each bin.

    The bar of a bin spans its mean confidence and its accuracy. Below the diagonal, hatched in vermilion, the
    model was surer than right; above it, in plain blue, less sure. The title has the calibration error:

        Σ weight·abs(confidence − accuracy)/Σ weight

    The counts have a logarithmic axis where they differ by a factor of 100 or more.

    Args:
      reliability: `Metrics.reliability` of `jsoftmax.evaluation`, or any object with arrays ``weight``,
        ``confidence`` and ``accuracy`` of shape [bins]. Of bins without rows, weight 0, nothing is drawn. The
        bins are equally wide if the confidences are; else their edges lie midway between the confidences.
      counts: whether to draw the counts. They take the lower part of the axes, as a colorbar takes a side.
      ax: the matplotlib axes to draw on; by default those of a new figure.

    Returns:
      The axes of the diagram; those of the counts are ``ax.figure.axes[-1]``.

    Raises:
      TypeError, ValueError: for an object without these arrays, arrays of several lengths, weights below 0,
        or a confidence or accuracy outside [0, 1] in a bin that has rows.

    >>> from types import SimpleNamespace
    >>> from jsoftmax import plots
    >>> bins = SimpleNamespace(weight=[0, 10, 30], confidence=[0, 0.6, 0.9], accuracy=[0, 0.6, 0.7])
    >>> print(plots.reliability_diagram(bins).get_title("left"))
    calibration error 0.150
    """
    call = Call("plots.reliability_diagram", reliability=reliability, counts=counts, ax=ax)
    weight = arguments.field(call, "reliability", "weight")
    arguments.within(call, "reliability.weight", weight)
    held = weight > 0
    confidence, accuracy = (
        arguments.field(call, "reliability", key, weight.shape) for key in ("confidence", "accuracy")
    )
    arguments.within(call, "reliability.confidence", confidence, 1.0, held)
    arguments.within(call, "reliability.accuracy", accuracy, 1.0, held)
    edges = _edges(confidence, held)
    left, width = edges[:-1][held], np.diff(edges)[held]
    weight, confidence, accuracy = weight[held], confidence[held], accuracy[held]

    with axes_for(call, 3.6, 4.3 if counts else 3.6) as ax:
        ax.plot((0, 1), (0, 1), color=PALE, linewidth=1, zorder=1)
        over = accuracy < confidence
        for chosen, label, style in ((over, "over-confident", OVER), (~over, "under-confident", UNDER)):
            if chosen.any():
                at, size, base = left[chosen], width[chosen], confidence[chosen]
                ax.bar(at, accuracy[chosen] - base, size, base, align="edge", label=label, **style)
        ax.hlines(accuracy, left, left + width, color=text_colour(), linewidth=1.6, label="accuracy of a bin")
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        error = np.sum(weight * np.abs(confidence - accuracy)) / max(weight.sum(), np.finfo(float).tiny)
        set_title(ax, f"calibration error {error:.3f}" if len(weight) else "no rows")
        high = (left < 0.5) & (np.maximum(accuracy, confidence) > 0.75)
        if len(weight) and points(ax, horizontal=True) > ROOMY:
            ax.legend(loc="lower right" if high.any() else "upper left", fontsize=SMALL, frameon=False)
        if counts:
            _histogram(_below(ax), left, width, weight)
    return ax


def _edges(confidence: Vector, held: NDArray[np.bool_]) -> Vector:
    """The edges of the bins: i/n if every confidence lies between its two, else midway between them."""
    equal = np.linspace(0, 1, len(confidence) + 1)
    slack = 1e-6
    inside = (confidence >= equal[:-1] - slack) & (confidence <= equal[1:] + slack)
    if inside[held].all():
        return equal
    order = np.flatnonzero(held)
    known = np.interp(np.arange(len(confidence)), order, confidence[order])
    between = (known[:-1] + known[1:]) / 2
    first, last = 2 * known[0] - between[:1], 2 * known[-1] - between[-1:]
    return np.concatenate([np.maximum(first, 0), between, np.minimum(last, 1)])


def _below(ax: Axes) -> Axes:
    """New axes in the lower part of the place of the given ones, with the same x axis."""
    figure, place = ax.figure, ax.get_subplotspec()
    if place is None:
        x, y, width, height = ax.get_position().bounds
        ax.set_position((x, y + 0.3 * height, width, 0.7 * height))
        below = figure.add_axes((x, y, width, 0.22 * height), sharex=ax)
    else:
        parts = GridSpecFromSubplotSpec(2, 1, place, height_ratios=(3.4, 1), hspace=0.12)
        ax.set_subplotspec(parts[0])
        below = figure.add_subplot(parts[1], sharex=ax)
    below.set_xlabel(ax.get_xlabel())
    ax.set_xlabel("")
    ax.tick_params(axis="x", labelbottom=False)
    return below


def _histogram(ax: Axes, left: Vector, width: Vector, weight: Vector) -> None:
    ax.bar(left, weight, width, align="edge", color="#BBBBBB", edgecolor="white", linewidth=0.5)
    is_log = bool(len(weight)) and weight.max() >= WIDE * weight.min()
    are_counts = bool((weight == np.round(weight)).all())
    ax.set_ylabel("rows" if are_counts else "weight")
    if is_log:
        ax.set_yscale("log")
        ax.set_ylim(weight.min() / 2, weight.max() * 2)
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter("{x:,.6g}")
    else:
        ax.set_ylim(0, 1.1 * weight.max(initial=0) or 1)
        ax.yaxis.set_major_locator(MaxNLocator(2, integer=are_counts))


def risk_coverage(
    curve: Any,
    *,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The share of errors among the accepted rows, the risk, by the share of rows accepted, the coverage.

    A model that knows what it does not know has a low curve: it errs in the rows that it rejects first. The
    legend, or the title without a label, has the area under the curve. Call it again with the axes that it
    returned for a second curve, in the next colour and dashes.

    Args:
      curve: an object of `jsoftmax.evaluation` with ``coverage`` and ``risk`` of shape [K], and ``aurc``. The
        coverage rises; a risk may be NaN, where no row is accepted.
      label: the name of the curve in the legend.
      ax: the matplotlib axes to draw on; by default those of a new figure.

    Returns:
      The axes; the curve is ``ax.lines[-1]``.

    Raises:
      TypeError, ValueError: for an object without these, arrays of several lengths, values outside [0, 1], or
        a coverage that falls.

    >>> from types import SimpleNamespace
    >>> from jsoftmax import plots
    >>> curve = SimpleNamespace(coverage=[0.25, 0.5, 1], risk=[0, 0.1, 0.3], aurc=0.12)
    >>> ax = plots.risk_coverage(curve, label="a network")
    >>> print(ax.get_legend().texts[0].get_text())
    a network, area 0.120
    """
    call = Call("plots.risk_coverage", curve=curve, label=label, ax=ax)
    coverage = arguments.field(call, "curve", "coverage")
    risk = arguments.field(call, "curve", "risk", coverage.shape)
    arguments.within(call, "curve.coverage", coverage, 1.0)
    arguments.within(call, "curve.risk", risk, 1.0, ~np.isnan(risk))
    if (falls := np.flatnonzero(np.diff(coverage) < 0)).size:
        i = int(falls[0]) + 1
        problem = f"curve.coverage[{i}] is {coverage[i]:.4g}, after {coverage[i - 1]:.4g}"
        raise call.error(ValueError, problem, "give the coverage in rising order, and the risk with it")
    area = getattr(curve, "aurc", None)
    if area is None or np.ndim(area):
        raise call.error(TypeError, f"curve.aurc is {area!r}", "give the area under the curve, one number")
    said = f"area under the curve {float(area):.3f}" if label is None else f"{label}, area {float(area):.3f}"

    with axes_for(call, 4.2, 3.2) as ax:
        number = len(ax.lines)
        style, colour = LINES[number % len(LINES)], COLOURS[number % len(COLOURS)]
        ax.plot(coverage, risk, color=colour, linestyle=style, linewidth=1.6, label=said)
        ax.set_xlim(0, 1)
        highest = max((np.nanmax(line.get_ydata(), initial=0) for line in ax.lines), default=0)
        ax.set_ylim(0, 1.1 * highest or 1)
        ax.xaxis.set_major_formatter(PERCENT)
        ax.yaxis.set_major_formatter(PERCENT)
        ax.set_xlabel("coverage: rows accepted")
        ax.set_ylabel("risk: errors among them")
        if label is None:
            set_title(ax, said)
        else:
            ax.legend(frameon=False, fontsize=SMALL)
    return ax
