"""The confusion matrix, and the Jacobian of the softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from jsoftmax import rules
from jsoftmax.border._call import Call
from jsoftmax.plots import _arguments as arguments
from jsoftmax.plots._figures import SMALL, Place, axes_for, ink_on, points, set_title
from jsoftmax.plots._labels import MOST, TOP, name_ticks, numbered, room_for, shortened

LEGIBLE = 4.5  # the smallest font size of a number in a cell
DIGIT = 0.62  # the width of a digit, in font sizes
IN_A_RANGE = 8  # letters of a name at the ends of a range
SHARES = (0, 0.02, 0.1, 0.3, 0.6, 1)  # the ticks of the colours, which show the square root


def confusion_matrix(
    counts: ArrayLike,
    *,
    names: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    most: int = MOST,
    colorbar: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How often each true class (down) was predicted as each class (across).

    Each cell has its count, and the colour of its share of the row. The colours follow the square root of the
    share, so that a few mistakes are visible beside many correct predictions. If there are more than `most`
    classes, neighbours are summed in at most `most` blocks; the title says so, and names say which.

    Args:
      counts: the count, or the sum of the weights, of each pair of a true and a predicted class, ``[V, V]``.
      names: the name of each class; by default its id.
      groups: the group of each class, a name or an id: one block per group, in the order of their first
        class. More than `most` groups are summed as classes are.
      most: the most rows and columns of the picture, by default 30.
      colorbar: a bar that explains the colours; by default, where the cells are too small for numbers.
      ax: the matplotlib axes to draw on; by default those of a new figure.

    Returns:
      The axes. The picture ``ax.images[0]`` contains the share of each cell, and ``ax.texts`` the numbers.

    Raises:
      TypeError, ValueError: for counts that are not square, negative or not finite; for names or groups of
        another length.

    >>> from jsoftmax import plots
    >>> ax = plots.confusion_matrix([[9, 1, 0], [2, 6, 2], [0, 0, 10]], names=["cat", "dog", "owl"])
    >>> print(ax.get_title("left"))
    confusion matrix, accuracy 83.3%
    """
    call = Call("plots.confusion_matrix", counts=counts, names=names, groups=groups, most=most, ax=ax)
    given = arguments.array(call, "counts", counts)
    classes = len(given) if given.ndim else 0
    if given.shape != (classes, classes) or not classes:
        problem = f"counts has shape {given.shape}"
        raise call.error(ValueError, problem, "give one row and one column per class, shape (V, V)")
    arguments.within(call, "counts", given)
    known, grouping = arguments.names(call, classes), arguments.names(call, classes, "groups")
    found, labels, what = _blocks(given, known, grouping, call.size("most", 1))
    total = found.sum(axis=1, keepdims=True)
    share = found / np.where(total > 0, total, 1)
    accuracy = given.trace(dtype=np.float64) / max(total.sum(), np.finfo(np.float64).tiny)

    with axes_for(call, *_figure(labels, 0.42, colorbar)) as ax:
        image = _matrix(ax, share, labels, "Blues", PowerNorm(0.5, 0, 1))
        written = [[_short(count) if count else "" for count in row] for row in found]
        is_written = _write(ax, image, written)
        if colorbar or (colorbar is None and not is_written):
            bar = _bar(ax, image)
            bar.set_ticks(SHARES, labels=[f"{share:.0%}" for share in SHARES])
            bar.set_label("share of the true class")
        ax.set_xlabel(f"predicted ({what})" if what else "predicted")
        ax.set_ylabel(f"true ({what})" if what else "true")
        title = f"{classes} classes in {len(found)} {what}" if what else "confusion matrix"
        set_title(ax, title, f"accuracy {accuracy:.1%}" if total.any() else "no rows")
    return ax


def jacobian(
    p: ArrayLike,
    *,
    names: Sequence[Any] | None = None,
    temperature: float = 1.0,
    top: int | None = None,
    limit: float | None = None,
    colorbar: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The Jacobian of the softmax, ``diag(p) − p pᵀ``: entry (i, j) is ∂pᵢ/∂zⱼ (`rules.softmax_jacobian`).

    At another temperature T than 1, it is ``(diag(p) − p pᵀ)/T``.

    Positive entries are red, negative ones blue, and 0 is white. If `top` is given, or there are more than
    30 classes, the picture shows only the most probable ones, in that order, and the title says so.

    Args:
      p: the probabilities of one row, ``[V]``.
      names: the name of each class; by default its id.
      temperature: the temperature that gave `p`.
      top: how many of the most probable classes to show; by default all up to 30, and 10 of more.
      limit: the absolute value of the darkest colours; by default the largest one of the matrix.
      colorbar: a bar that explains the colours; by default, where the cells are too small for numbers.
      ax: the matplotlib axes to draw on; by default those of a new figure.

    Returns:
      The axes. The picture ``ax.images[0]`` contains the matrix, and ``ax.texts`` the numbers.

    Raises:
      TypeError, ValueError: if `p` is not one distribution; for names of another length; for a temperature
        or a limit that is not a number above 0.

    >>> from jsoftmax import plots
    >>> ax = plots.jacobian([0.5, 0.25, 0.25], names=["cat", "dog", "owl"])
    >>> print(ax.images[0].get_array())
    [[ 0.25   -0.125  -0.125 ]
     [-0.125   0.1875 -0.0625]
     [-0.125  -0.0625  0.1875]]
    """
    call = Call("plots.jacobian", p=p, names=names, temperature=temperature, top=top, limit=limit, ax=ax)
    row = arguments.probabilities(call)
    known = numbered(arguments.names(call, len(row)), len(row))
    shown = call.size("top", 1) if top is not None else len(row) if len(row) <= MOST else TOP
    for name, number in (("temperature", temperature), ("limit", 1 if limit is None else limit)):
        if not 0 < number < np.inf:
            raise call.error(ValueError, f"{name} is {number!r}", "write a number above 0")
    is_all = top is None and len(row) == shown
    chosen = np.arange(len(row)) if is_all else np.argsort(-row, kind="stable")[:shown]
    # Row i of the matrix is the product with e_i: no [V, V] array for a picture of a few of them.
    basis = np.equal.outer(chosen, np.arange(len(row))).astype(row.dtype)
    matrix = (
        np.asarray(rules.softmax_product(np.broadcast_to(row, basis.shape), basis), np.float64)[:, chosen]
        / temperature
    )
    extent = float(limit or np.abs(matrix).max() or 1)

    labels = [known[k] for k in chosen.tolist()]
    with axes_for(call, *_figure(labels, 0.36, colorbar)) as ax:
        image = _matrix(ax, matrix, labels, "RdBu_r", Normalize(-extent, extent))
        is_written = _write(ax, image, [[_decimals(entry) for entry in row] for row in matrix])
        if colorbar or (colorbar is None and not is_written):
            _bar(ax, image)
        ax.set_xlabel("$j$")
        ax.set_ylabel("$i$")
        few = [f"the {len(chosen)} likeliest of {len(row)} classes"] if len(chosen) < len(row) else []
        by = "/T" if temperature != 1 else ""
        set_title(ax, rf"$\partial p_i / \partial z_j = p_i\,(\delta_{{ij}} - p_j){by}$", *few)
    return ax


def _blocks(
    counts: NDArray[Any], names: list[str] | None, groups: list[str] | None, most: int
) -> tuple[NDArray[np.float64], Sequence[str], str]:
    """The counts of at most `most` blocks, the names of the blocks, and what they are."""
    what = ""
    if groups is not None:
        order = {name: i for i, name in enumerate(dict.fromkeys(groups))}
        block = np.array([order[group] for group in groups])
        by_group = np.argsort(block, kind="stable")
        starts = np.searchsorted(block[by_group], np.arange(len(order)))
        counts, names, what = _summed(counts[np.ix_(by_group, by_group)], starts), list(order), "groups"
    if len(counts) <= most:
        return counts.astype(np.float64), numbered(names, len(counts)), what
    size = -(-len(counts) // most)
    starts = np.arange(0, len(counts), size)
    known = numbered(names, len(counts))
    ends = [(known[i], known[min(i + size, len(counts)) - 1]) for i in starts.tolist()]
    labels = ["–".join(shortened(end, IN_A_RANGE) for end in dict.fromkeys(pair)) for pair in ends]
    return _summed(counts, starts), labels, f"blocks of {size} {what}".rstrip()


def _summed(counts: NDArray[Any], starts: NDArray[np.int_]) -> NDArray[np.float64]:
    """The sums of the blocks that begin at these classes."""
    across = np.add.reduceat(counts, starts, axis=1, dtype=np.float64)
    return np.add.reduceat(across, starts, axis=0)


def _figure(names: Sequence[str], cell: float, colorbar: bool | None) -> tuple[float, float, Place]:
    """The width and height of a figure for cells of this size, in inches, and the place of its axes."""
    side, left = min(max(cell * len(names), 3.0), 7.5), room_for(names) + 0.45
    below = left if left - 0.4 > side / len(names) else 0.65
    width = left + side + (1.1 if colorbar or (colorbar is None and len(names) > MOST) else 0.2)
    height = below + side + 0.35
    place = {"left": left / width, "right": (left + side) / width}
    return width, height, place | {"bottom": below / height, "top": (below + side) / height}


def _matrix(
    ax: Axes, values: NDArray[np.float64], names: Sequence[str], colours: str, norm: Normalize
) -> AxesImage:
    image = ax.imshow(values, cmap=colours, norm=norm, interpolation="none")
    name_ticks(ax, "x", names)
    name_ticks(ax, "y", names)
    ax.spines[:].set_visible(False)
    ax.grid(False)
    return image


def _write(ax: Axes, image: AxesImage, texts: list[list[str]]) -> bool:
    """Write the texts into the cells, if they are legible there; return whether any are written."""
    longest = max(len(text) for row in texts for text in row)
    cell = min(points(ax, horizontal=True), points(ax, horizontal=False)) / len(texts)
    size = min(SMALL, 0.9 * cell / max(DIGIT * longest, 1))
    if size < LEGIBLE or not longest:
        return False
    levels = np.asarray(image.norm(np.asarray(image.get_array())))
    for (row, column), level in np.ndenumerate(levels):
        if text := texts[row][column]:
            colour = ink_on(image.cmap, float(level))
            ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=size, in_layout=False)
    return True


def _bar(ax: Axes, image: AxesImage) -> Colorbar:
    """A colour bar that keeps to the cells, wherever the layout puts them."""
    bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0.1, 0.03, 0.8)), format=_number)
    bar.outline.set_visible(False)
    return bar


def _number(value: float, _: int) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _short(count: float) -> str:
    """A count in at most five letters."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 10 * unit:
            return f"{count / unit:.0f}{letter}"
    return f"{count:.0f}" if count == round(count) or count >= 100 else f"{count:.2g}"


def _decimals(entry: float) -> str:
    """Two decimals without the 0 before the point; nothing for what they round to 0."""
    text = f"{entry:.2f}".replace("0.", ".").replace("-", "\N{MINUS SIGN}")
    return "" if abs(entry) < 0.005 else text
