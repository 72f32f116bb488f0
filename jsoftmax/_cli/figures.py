"""The four pictures of a training run."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import jsoftmax
from jsoftmax import plots
from jsoftmax._cli.data import Examples
from jsoftmax._cli.training import Epoch
from jsoftmax.plots._figures import BLUE, DPI, PALE, STYLE, VERMILION

NAMES = ("learning-curves.png", "confusion-matrix.png", "predictions.png", "jacobian.png")

SHOWN = 5  # digits of each kind in the picture of predictions, and of many classes those with bars
NUMBERED = 30  # the most classes that have their numbers and bars
MOST = 62  # the most classes of a confusion matrix; EMNIST has as many


def draw(
    folder: Path,
    history: list[Epoch],
    dropout: float,
    confusion: NDArray[np.int_],
    examples: Examples,
    logits: NDArray[np.float32],
) -> None:
    """Write the pictures of `NAMES` into the folder."""
    p = np.asarray(jsoftmax.softmax(logits))
    pictures = (
        learning_curves(history, dropout),
        confusion_matrix(confusion, examples.classes),
        predictions(examples, p),
        jacobian(examples, p),
    )
    for name, figure in zip(NAMES, pictures, strict=True):
        figure.savefig(folder / name, dpi=DPI)


@matplotlib.style.context(STYLE)
def learning_curves(history: list[Epoch], dropout: float) -> Figure:
    """Training and test loss, and training and test errors, over the epochs."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    training = "training, with dropout" if dropout else "training"
    marker = "o" if len(history) == 1 else None  # a line needs two points
    for axes, train, test in (
        (left, [e.loss for e in history], [e.test_nll for e in history]),
        (
            right,
            [100 * (1 - e.accuracy) for e in history],
            [100 * (1 - e.test_accuracy) for e in history],
        ),
    ):
        axes.plot(epochs, train, color=BLUE, label=training, marker=marker)
        axes.plot(epochs, test, color=VERMILION, label="test", marker=marker)
        axes.set_xlabel("epoch")
        axes.grid(axis="y")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.set_title("loss (nats)", loc="left")
    right.set_title("errors (%)", loc="left")
    left.legend()
    return figure


@matplotlib.style.context(STYLE)
def confusion_matrix(confusion: NDArray[np.int_], classes: Sequence[int]) -> Figure:
    """The counts, coloured by their share of the row."""
    scale = _scale(len(classes))
    figure = Figure(figsize=(4.4 * scale, 4.2 * scale), layout="constrained")
    axes = plots.confusion_matrix(confusion, names=classes, most=MOST, ax=figure.subplots())
    axes.set_title(f"test {axes.get_title(loc='left')}")
    return figure


@matplotlib.style.context(STYLE)
def predictions(examples: Examples, p: NDArray[np.float32]) -> Figure:
    """Ten test digits above their predicted distributions: the first five and the five hardest."""
    p_true = np.take_along_axis(p, examples.labels[:, None], axis=1)[:, 0]
    hardest = np.argsort(p_true, kind="stable")[:SHOWN].tolist()
    first = [i for i in range(len(p)) if i not in hardest][:SHOWN]
    figure = Figure(figsize=(9.6, 2.8))
    figure.set_layout_engine("none")
    space = 0.2 if len(examples.classes) <= NUMBERED else 0.4  # for names between the bars
    for title, chosen, left, right in (
        ("the first of the test set", first, 0.06, 0.505),
        ("the hardest: true \N{RIGHTWARDS ARROW} predicted", hardest, 0.54, 0.985),
    ):
        grid = figure.add_gridspec(
            2, SHOWN, left=left, right=right, top=0.82, bottom=0.19, wspace=space, height_ratios=(1.2, 1)
        )
        figure.text((left + right) / 2, 0.94, title, ha="center", size=10)
        for column, index in enumerate(chosen):
            digit = figure.add_subplot(grid[0, column])
            bars = figure.add_subplot(grid[1, column])
            _show_example(digit, bars, examples, index, p[index])
            if chosen is hardest or column:
                bars.set(xlabel="", ylabel="")
                bars.tick_params(axis="y", labelleft=len(examples.classes) > NUMBERED)
    for x, text, colour in ((0.45, "true class", BLUE), (0.55, "preferred to it", VERMILION)):
        figure.text(x, 0.03, "\N{BLACK SQUARE} " + text, ha="center", color=colour)
    return figure


@matplotlib.style.context(STYLE)
def jacobian(examples: Examples, p: NDArray[np.float32]) -> Figure:
    """The Jacobian diag(p) - p p^T of the least certain prediction, beside its digit."""
    # The entropy sum -p log p, with 0 log 0 = 0.
    entropy = -np.sum(p * np.log(np.maximum(p, np.finfo(np.float32).tiny)), axis=-1)
    index = int(entropy.argmax())
    scale = _scale(len(examples.classes)) if len(examples.classes) <= NUMBERED else 1
    figure = Figure(figsize=(6.2 * scale, 3.8 * scale), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 2.6))
    digit, bars = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    _show_example(digit, bars, examples, index, p[index])
    axes = figure.add_subplot(grid[:, 1])
    plots.jacobian(p[index], names=examples.classes, colorbar=True, ax=axes)
    return figure


def _show_example(picture: Axes, bars: Axes, examples: Examples, index: int, p: NDArray[np.float32]) -> None:
    """An image with its true and predicted class; bars with the true class blue, likelier classes orange."""
    classes, label, predicted = examples.classes, int(examples.labels[index]), int(p.argmax())
    picture.imshow(examples.images[index], cmap="gray_r", vmin=0, vmax=1)
    picture.set(xticks=[], yticks=[])
    picture.spines[:].set(visible=True, color=PALE)
    names = [str(classes[k]) for k in dict.fromkeys((label, predicted))]
    picture.set_title(" \N{RIGHTWARDS ARROW} ".join(names), loc="center")
    top = None if len(classes) <= NUMBERED else SHOWN
    plots.distribution(p, names=classes, label=label, top=top, ax=bars)
    (bars.xaxis if top else bars.yaxis).set_ticks((0, 0.5, 1), labels=("0", "0.5", "1"))


def _scale(classes: int) -> float:
    """The factor by which the picture of a matrix is larger for this number of classes."""
    return max(1, classes / 15) if classes <= NUMBERED else 1.5
