"""The style of the pictures, and the axes to draw on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from jsoftmax.border._call import Call

STYLE = "jsoftmax.style"  # the file jsoftmax/style.mplstyle
with matplotlib.style.context(STYLE):
    COLOURS = [to_hex(c) for c in matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]]
    INK = to_hex(matplotlib.rcParams["text.color"])
BLUE, VERMILION, GREEN, SKY, AMBER, GREY = COLOURS
DPI = 150  # of files
PALE = "#CCCCCC"  # what is there to be compared with: a diagonal, the other classes
Place = dict[str, float]  # the left, right, bottom and top of axes, as shares of the figure
PLACE = {"left": 0.12, "right": 0.98, "bottom": 0.12, "top": 0.92}
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g}%")
SMALL = 8  # the font size of what stands in the picture itself
DARK = 0.45  # the luminance below which a cell takes white numbers


@contextmanager
def axes_for(call: Call, width: float, height: float, place: Place = PLACE) -> Iterator[Axes]:
    """The axes of a call, or those of a new figure, in inches, with the style of the package inside.

    A new figure moves its axes when it is drawn, so that all labels have room; `place` should be near that.
    """
    given = call.arguments["ax"]
    if given is not None and not isinstance(given, Axes):
        problem = f"ax is {type(given).__name__}, not Axes of matplotlib"
        remedy = "write ax=figure.subplots()" if isinstance(given, Figure) else "give one Axes"
        raise call.error(TypeError, problem, remedy)
    if given is not None:
        yield given
        return
    new = _new_figure()
    with matplotlib.style.context(STYLE):
        yield new(figsize=(width, height), layout="constrained").subplots(gridspec_kw={**place})


def _new_figure() -> type[Figure]:
    """What makes a figure: pyplot, where it is in use, shows it; elsewhere nothing keeps it."""
    shell = sys.modules.get("IPython")
    if "matplotlib.pyplot" not in sys.modules and (shell is None or shell.get_ipython() is None):
        return Figure
    import matplotlib.pyplot as plt

    return plt.figure  # type: ignore[return-value]


def points(ax: Axes, horizontal: bool) -> float:
    """The width or the height of the axes as they are now, in points."""
    figure = ax.get_figure(root=True)
    box = ax.get_window_extent()
    return float(box.width if horizontal else box.height) * 72 / (figure.dpi if figure else 72)


def set_title(ax: Axes, *parts: str) -> None:
    """The parts of a title in one line, or in lines of their own if that is longer than the axes."""
    title = ax.set_title(", ".join(parts))
    if title.get_window_extent().width > ax.get_window_extent().width:
        title.set_text("\n".join(parts))


def text_colour() -> str:
    """The colour of text in the style of the picture, which stands out on its background."""
    return to_hex(matplotlib.rcParams["text.color"])


def ink_on(colours: Colormap, level: float) -> str:
    """The colour of text that is legible on a colour of a map, at a level from 0 to 1."""
    red, green, blue, _ = colours(level)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < DARK else INK
