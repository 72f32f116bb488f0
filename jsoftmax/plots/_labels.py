"""Names of classes along an axis: as many as have room when the picture is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, Locator
from numpy.typing import NDArray

from jsoftmax.plots._figures import SMALL, points

MOST = 30  # the most classes that a picture shows one by one, unless the call says otherwise
TOP = 10  # the classes of one row that a picture shows if there are more
LONGEST = 20  # letters of a name
LINE = 1.2  # the height of a line of text, in font sizes
SPACE, SPACE_OF_DIGITS = 0.4, 0.15  # between names side by side, in font sizes; of one letter each
MARGIN = 0.2  # beside the bars of all classes
TINY = 6.5  # the font size of names that would not all have room in the usual one


def numbered(names: Sequence[str] | None, classes: int) -> Sequence[str]:
    """The names, by default the class ids."""
    return [str(k) for k in range(classes)] if names is None else names


def shortened(name: str, longest: int = LONGEST) -> str:
    """The name in one line, or its beginning."""
    line = " ".join(name.split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def plain(text: str) -> str:
    """The text for matplotlib, which is to show a dollar sign as it is."""
    return text.replace("$", r"\$") if matplotlib.rcParams["text.parse_math"] else text


def text_width(text: str, size: float) -> float:
    """The width of a text in points."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width)


def room_for(names: Sequence[str], size: float = SMALL) -> float:
    """The width of the longest name, in inches."""
    return max(text_width(shortened(name), size) for name in names) / 72


def name_ticks(ax: Axes, axis: Literal["x", "y"], names: Sequence[str]) -> None:
    """Name the classes at 0, 1, … along an axis; along x upright if they are words that do not all fit."""
    labels = [shortened(name) for name in names]
    space = SPACE if max(map(len, labels)) > 1 else SPACE_OF_DIGITS
    room = points(ax, horizontal=axis == "x") / (len(labels) + MARGIN)

    def lengths(size: float) -> NDArray[np.float64]:
        if axis == "y":
            return np.full(len(labels), LINE * size)
        return np.array([text_width(label, size) + space * size for label in labels])

    size = next((size for size in (SMALL, TINY) if lengths(size).max() <= room), SMALL)
    is_upright = axis == "x" and lengths(size).max() > room and not all(map(str.isdecimal, labels))
    ticks = ax.xaxis if axis == "x" else ax.yaxis
    ticks.set_major_locator(
        _Places(ax, axis, np.full(len(labels), LINE * size) if is_upright else lengths(size))
    )
    ticks.set_major_formatter(FuncFormatter(lambda place, _: plain(labels[round(place)])))
    ax.tick_params(axis=axis, length=0, labelsize=size)
    if axis == "x":
        ax.tick_params(axis="x", labelrotation=90 if is_upright else 0)


class _Places(Locator):
    """Every k-th class, with the least k of 1, 2, 5, 10, … for which neighbouring names do not touch.

    Matplotlib asks for the places whenever it draws, so they follow the size of the axes.
    """

    def __init__(self, ax: Axes, axis: Literal["x", "y"], lengths: NDArray[np.float64]):
        self.ax = ax
        self.is_x = axis == "x"
        self.lengths = lengths  # of the names along the axis, in points

    def __call__(self) -> list[int]:
        return self.tick_values(*(self.ax.get_xlim() if self.is_x else self.ax.get_ylim()))

    def tick_values(self, vmin: float, vmax: float) -> list[int]:
        low, high = sorted((vmin, vmax))
        pitch = points(self.ax, self.is_x) / (high - low)
        classes = len(self.lengths)
        step = next(
            k
            for power in range(1 + len(str(classes)))
            for k in (10**power, 2 * 10**power, 5 * 10**power)
            if k >= classes or (self.lengths[:-k:k] + self.lengths[k::k]).max() / 2 <= k * pitch
        )
        return list(range(step * math.ceil(max(low, 0) / step), min(classes - 1, math.floor(high)) + 1, step))
