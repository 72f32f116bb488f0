"""The four pictures of a training run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import jsoftmax
from jsoftmax import rules
from jsoftmax._cli.data import Examples
from jsoftmax._cli.training import Epoch

NAMES = ("learning-curves.png", "confusion-matrix.png", "predictions.png", "jacobian.png")

# The colours of Okabe and Ito, which people with colour blindness can distinguish.
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#BBBBBB", "#333333"
SHOWN = 5  # digits of each kind in the picture of predictions
DIGITS_UNDER_BARS = 14  # the most digits, in all names together, that fit under the bars
MOST_NUMBERED = 30  # the most classes for which a matrix shows all names and numbers
STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(
    folder: Path,
    history: list[Epoch],
    confusion: NDArray[np.int_],
    examples: Examples,
    logits: NDArray[np.float32],
) -> None:
    """Write the pictures of `NAMES` into the folder."""
    p = np.asarray(jsoftmax.softmax(logits))
    with matplotlib.rc_context(STYLE):
        pictures = (
            learning_curves(history),
            confusion_matrix(confusion, examples.classes),
            predictions(examples, p),
            jacobian(examples, p),
        )
        for name, figure in zip(NAMES, pictures, strict=True):
            figure.savefig(folder / name)


def learning_curves(history: list[Epoch]) -> Figure:
    """Training and test loss, and training and test errors, over the epochs."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    marker = "o" if len(history) == 1 else None  # a line needs two points
    for axes, train, test in (
        (left, [e.loss for e in history], [e.test_nll for e in history]),
        (
            right,
            [100 * (1 - e.accuracy) for e in history],
            [100 * (1 - e.test_accuracy) for e in history],
        ),
    ):
        axes.plot(epochs, train, color=BLUE, label="training", marker=marker)
        axes.plot(epochs, test, color=ORANGE, label="test", marker=marker)
        axes.set_xlabel("epoch")
        axes.grid(axis="y", color="#EEEEEE", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.set_title("loss (nats)", loc="left")
    right.set_title("errors (%)", loc="left")
    left.legend()
    return figure


def confusion_matrix(confusion: NDArray[np.int_], classes: Sequence[int]) -> Figure:
    """The counts, coloured by their share of the row."""
    scale = _scale(len(classes))
    figure = Figure(figsize=(4.4 * scale, 4.2 * scale), layout="constrained")
    axes = figure.subplots()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # The square root makes a few mistakes visible beside many correct predictions.
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(confusion):
        if count and len(classes) <= MOST_NUMBERED:
            colour = "white" if share[row, column] > 0.4 else INK
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    _label_classes(axes, classes, "predicted", "true")
    accuracy = confusion.trace() / confusion.sum()
    axes.set_title(f"test confusion matrix, accuracy {accuracy:.1%}", loc="left")
    return figure


def predictions(examples: Examples, p: NDArray[np.float32]) -> Figure:
    """Ten test digits above their predicted distributions: the first five and the five hardest."""
    p_true = np.take_along_axis(p, examples.labels[:, None], axis=1)[:, 0]
    hardest = np.argsort(p_true, kind="stable")[:SHOWN].tolist()
    first = [i for i in range(len(p)) if i not in hardest][:SHOWN]
    figure = Figure(figsize=(9.6, 2.8))
    for title, chosen, left, right in (
        ("the first of the test set", first, 0.06, 0.505),
        ("the hardest: true \N{RIGHTWARDS ARROW} predicted", hardest, 0.54, 0.985),
    ):
        grid = figure.add_gridspec(
            2, SHOWN, left=left, right=right, top=0.82, bottom=0.19, height_ratios=(1.2, 1)
        )
        figure.text((left + right) / 2, 0.94, title, ha="center", size=10)
        for column, index in enumerate(chosen):
            digit = figure.add_subplot(grid[0, column])
            bars = figure.add_subplot(grid[1, column])
            _show_example(digit, bars, examples, index, p[index])
            bars.tick_params(axis="y", labelleft=chosen is first and column == 0)
            if chosen is first and column == 0:
                bars.set_ylabel("probability")
    for x, text, colour in ((0.45, "true class", BLUE), (0.55, "preferred to it", ORANGE)):
        figure.text(x, 0.03, "\N{BLACK SQUARE} " + text, ha="center", color=colour)
    return figure


def jacobian(examples: Examples, p: NDArray[np.float32]) -> Figure:
    """The Jacobian diag(p) - p p^T of the least certain prediction, beside its digit."""
    # The entropy sum -p log p, with 0 log 0 = 0.
    entropy = -np.sum(p * np.log(np.maximum(p, np.finfo(np.float32).tiny)), axis=-1)
    index = int(entropy.argmax())
    matrix = np.asarray(rules.softmax_jacobian(p[index]))
    scale = _scale(len(examples.classes))
    figure = Figure(figsize=(6.2 * scale, 3.8 * scale), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 2.6))
    digit, bars = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    axes = figure.add_subplot(grid[:, 1])
    _show_example(digit, bars, examples, index, p[index])
    bars.set_ylabel("probability")
    limit = np.abs(matrix).max()
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for (row, column), entry in np.ndenumerate(matrix):
        if abs(entry) >= 0.005 and len(matrix) <= MOST_NUMBERED:
            colour = "white" if abs(entry) > 0.6 * limit else INK
            text = f"{entry:.2f}".replace("0.", ".").replace("-", "\N{MINUS SIGN}")
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    _label_classes(axes, examples.classes, "$j$", "$i$")
    axes.set_title(r"$\partial p_i / \partial z_j = p_i\,(\delta_{ij} - p_j)$")
    figure.colorbar(image, ax=axes, shrink=0.8).outline.set_visible(False)
    return figure


def _show_example(picture: Axes, bars: Axes, examples: Examples, index: int, p: NDArray[np.float32]) -> None:
    """An image with its true and predicted class; bars with the true class blue, likelier classes orange."""
    classes, label, predicted = examples.classes, int(examples.labels[index]), int(p.argmax())
    picture.imshow(examples.images[index], cmap="gray_r", vmin=0, vmax=1)
    picture.set(xticks=[], yticks=[])
    picture.spines[:].set(visible=True, color=GREY)
    names = [str(classes[k]) for k in dict.fromkeys((label, predicted))]
    picture.set_title(" \N{RIGHTWARDS ARROW} ".join(names))

    colours = [ORANGE if of_class > p[label] else GREY for of_class in p]
    colours[label] = BLUE
    bars.bar(range(len(classes)), p, color=colours)
    bars.set_ylim(0, 1)
    bars.set_yticks((0, 0.5, 1))
    bars.set_xticks(*_named(classes, DIGITS_UNDER_BARS // len(str(classes[-1]))))
    bars.tick_params(axis="x", length=0, labelsize=6.5)


def _scale(classes: int) -> float:
    """The factor by which the picture of a matrix is larger for this number of classes."""
    return max(1, classes / 10) if classes <= MOST_NUMBERED else 1.5


def _named(classes: Sequence[int], most: int) -> tuple[list[int], list[str]]:
    """The positions and names of the tick labels of a class axis: at most `most`, at equal distances."""
    places = list(range(0, len(classes), math.ceil(len(classes) / most)))
    return places, [str(classes[place]) for place in places]


def _label_classes(axes: Axes, classes: Sequence[int], across: str, down: str) -> None:
    axes.set_xticks(*_named(classes, MOST_NUMBERED))
    axes.set_yticks(*_named(classes, MOST_NUMBERED))
    axes.tick_params(length=0)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.spines[:].set_visible(False)
