"""The distribution over the classes, and the accuracy of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.markers import CARETDOWN, CARETLEFT
from numpy.typing import NDArray

from jsoftmax.border._call import Call
from jsoftmax.plots import _arguments as arguments
from jsoftmax.plots._figures import BLUE, PALE, PERCENT, SMALL, VERMILION, axes_for, set_title, text_colour
from jsoftmax.plots._labels import MOST, TOP, name_ticks, numbered, plain, room_for, shortened

WORST = 8  # the classes named beside the curve of many
BAR = 0.8


def distribution(
    p: ArrayLike,
    *,
    names: Sequence[Any] | None = None,
    label: int | None = None,
    top: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One predicted distribution as bars: the true class blue, with a triangle, those preferred to it orange.

    Up to 30 classes stand side by side in their order. Of more, or if `top` is given, only the most probable
    ones are shown, as horizontal bars from the most probable one down, and the true class in its place.

    Args:
      p: the probabilities of one row, ``[V]``.
      names: the name of each class; by default its id.
      label: the id of the true class, if known.
      top: how many of the most probable classes to show; by default all up to 30, and 10 of more.
      ax: the matplotlib axes to draw on; by default those of a new figure.

    Returns:
      The axes; ``ax.containers[0]`` contains the bars.

    Raises:
      TypeError, ValueError: if `p` is not one distribution, or `label` not a class; for names of another
        length; for a `top` below 1.

    >>> from jsoftmax import plots
    >>> ax = plots.distribution([0.6, 0.3, 0.1], names=["cat", "dog", "owl"], label=1)
    >>> print([float(bar.get_height()) for bar in ax.patches])
    [0.6, 0.3, 0.1]
    """
    call = Call("plots.distribution", p=p, names=names, label=label, top=top, ax=ax)
    row = arguments.probabilities(call)
    known = numbered(arguments.names(call, len(row)), len(row))
    true = arguments.index(call, "label", len(row))
    is_list = top is not None or len(row) > MOST
    shown = list(range(len(row)))
    if is_list:
        shown = np.argsort(-row, kind="stable").tolist()
        few = shown[: TOP if top is None else call.size("top", 1)]
        shown = few if true is None or true in few else [*few, true]
    colours = [BLUE if true is None else PALE] * len(shown)
    if true is not None:
        colours = [BLUE if k == true else VERMILION if row[k] > row[true] else PALE for k in shown]

    places, labels = np.arange(len(shown)), [known[k] for k in shown]
    side, room = min(max(0.32 * len(shown), 2.4), 7.2), room_for(labels)
    upright = room if room > side / len(shown) else 0.2
    with axes_for(call, *(3 + room, 0.22 * len(shown) + 0.7) if is_list else (side + 0.6, 2 + upright)) as ax:
        if is_list:
            ax.barh(places, row[shown], BAR, color=colours)
            ax.set_ylim(len(shown) - 0.4, -0.6)
            ax.set_xlim(0, 1)
            ax.set_xlabel("probability")
            name_ticks(ax, "y", labels)
        else:
            ax.bar(places, row[shown], BAR, color=colours)
            ax.set_xlim(-0.6, len(shown) - 0.4)
            ax.set_ylim(0, 1)
            ax.set_ylabel("probability")
            name_ticks(ax, "x", labels)
        if true is not None:
            _mark(ax, shown.index(true), row[true], is_list)
    return ax


def _mark(ax: Axes, place: int, height: float, is_list: bool) -> None:
    """A triangle at the end of the bar of the true class, which may be too small to be seen."""
    x, y, marker = (height, place, CARETLEFT) if is_list else (place, height, CARETDOWN)
    ax.plot(x, y, marker=marker, markersize=4, color=BLUE, linestyle="", clip_on=False)


def per_class_accuracy(
    accuracy: ArrayLike,
    weight: ArrayLike,
    *,
    names: Sequence[Any] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The accuracy of every class, from the lowest to the highest; the title has the mean over the classes.

    Up to 30 classes are bars, with the count of rows at their ends. More are one curve over the share of the
    classes, with the names of the worst. The dashed line is the mean over the classes.

    Args:
      accuracy: the share of the rows of each class that were predicted right, ``[V]``; NaN, or any number, in
        a class without rows.
      weight: the count of rows of each class, or the sum of their weights, ``[V]``.
      names: the name of each class; by default its id.
      ax: the matplotlib axes to draw on; by default those of a new figure.

    Returns:
      The axes; the bars are ``ax.patches``, or the curve ``ax.lines[0]``.

    Raises:
      TypeError, ValueError: for arrays of several lengths, weights below 0, an accuracy outside [0, 1] of a
        class that has rows, or names of another length.

    >>> from jsoftmax import plots
    >>> ax = plots.per_class_accuracy([0.9, 0.5], [20, 10], names=["cat", "dog"])
    >>> print(ax.get_title("left"))
    accuracy by class, mean 70.0%
    """
    call = Call("plots.per_class_accuracy", accuracy=accuracy, weight=weight, names=names, ax=ax)
    rows = arguments.vector(call, "weight", weight)
    found = arguments.vector(call, "accuracy", accuracy, rows.shape)
    arguments.within(call, "weight", rows)
    arguments.within(call, "accuracy", found, 1.0, rows > 0)
    known = numbered(arguments.names(call, len(rows)), len(rows))
    held = np.flatnonzero(rows > 0)
    order = held[np.argsort(found[held], kind="stable")]
    missing = len(rows) - len(held)
    title = [f"accuracy by class, mean {found[held].mean():.1%}" if len(held) else "accuracy by class"]
    if missing:
        title += [f"{missing} {'class has' if missing == 1 else 'classes have'} no rows"]

    is_list = len(order) <= MOST
    with axes_for(call, 4.2, 0.2 * max(len(order), 4) + 0.8 if is_list else 3.0) as ax:
        names_shown = [known[k] for k in order.tolist()]
        if is_list:
            _bars(ax, found[order], rows[order], names_shown)
        else:
            _curve(ax, found[order], names_shown)
        set_title(ax, *title)
    return ax


def _bars(ax: Axes, accuracy: NDArray[np.float64], rows: NDArray[np.float64], names: Sequence[str]) -> None:
    bars = ax.barh(np.arange(len(names)), accuracy, BAR, color=BLUE)
    behind = {
        "facecolor": ax.get_facecolor(),
        "edgecolor": "none",
        "pad": 1,
    }
    ax.bar_label(bars, [f"{count:,.6g}" for count in rows], padding=3, fontsize=SMALL, bbox=behind)
    ax.set_ylim(max(len(names), 1) - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(PERCENT)
    ax.set_xlabel("accuracy, and the number of rows")
    if names:
        ax.axvline(accuracy.mean(), color=text_colour(), linewidth=0.8, linestyle="--")
        name_ticks(ax, "y", names)


def _curve(ax: Axes, accuracy: NDArray[np.float64], names: Sequence[str]) -> None:
    share = np.arange(len(names) + 1) / len(names)
    ax.stairs(accuracy, share, color=BLUE, linewidth=1.6, baseline=None)
    ax.axhline(accuracy.mean(), color=text_colour(), linewidth=0.8, linestyle="--")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"share of the {len(names)} classes", ylabel="accuracy")
    ax.xaxis.set_major_formatter(PERCENT)
    ax.yaxis.set_major_formatter(PERCENT)
    worst = [f"{plain(shortened(names[k]))}  {accuracy[k]:.0%}" for k in range(WORST)]
    # The curve rises: beside a high one there is room at the bottom right, else at the top left.
    low = accuracy[len(names) // 2] > 0.5
    x, y, across, up = (0.97, 0.04, "right", "bottom") if low else (0.03, 0.96, "left", "top")
    ax.text(x, y, "\n".join(["the worst:", *worst]), ha=across, va=up, fontsize=SMALL, transform=ax.transAxes)
