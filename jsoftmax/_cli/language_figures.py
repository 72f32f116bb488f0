"""The two pictures of a language model."""

import textwrap
import warnings
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

import jsoftmax
from jsoftmax._cli import language
from jsoftmax._cli.language import Network, Parameters
from jsoftmax._cli.language_training import Epoch, perplexity
from jsoftmax._cli.text import PARAGRAPH_ID, UNKNOWN_ID, Corpus
from jsoftmax.plots._figures import BLUE, DPI, INK, PALE, SKY, STYLE, VERMILION

NAMES = ("perplexity.png", "next-words.png")

TEMPERATURES = {0.5: INK, 1.0: BLUE, 2.0: SKY}
QUANTILES = (0.2, 0.5, 0.8)  # of the entropy: a certain, a medium and an uncertain prediction
SHOWN = 8  # words of each prediction
GROUPS = 10  # of the held-out words, by entropy


def draw(
    folder: Path,
    history: list[Epoch],
    unigram_nll: float,
    found: jsoftmax.RowStatistics,
    network: Network,
    parameters: Parameters,
    corpus: Corpus,
) -> None:
    """Write the pictures of `NAMES` into the folder; `found` are the statistics of the held-out words."""
    style: list[str | Path | dict[str, Any]] = [
        STYLE,
        {"text.parse_math": False},
    ]  # a dollar sign is an ordinary word
    with matplotlib.style.context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a text may have any alphabet
        pictures = (learning(history, unigram_nll, found), next_words(found, network, parameters, corpus))
        for name, figure in zip(NAMES, pictures, strict=True):
            figure.savefig(folder / name, dpi=DPI)


def learning(history: list[Epoch], unigram_nll: float, found: jsoftmax.RowStatistics) -> Figure:
    """Perplexity over the epochs, and the loss of the held-out words by the entropy of their prediction."""
    figure = Figure(figsize=(7, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    marker = "o" if len(history) == 1 else None  # a line needs two points
    for nll, colour, label in (
        ([epoch.nll for epoch in history], BLUE, "training, with dropout"),
        ([epoch.held_out_nll for epoch in history], VERMILION, "held out"),
    ):
        left.plot(epochs, [perplexity(value) for value in nll], color=colour, label=label, marker=marker)
    left.axhline(perplexity(unigram_nll), color=PALE, linestyle="--", label="held out, unigram model")
    left.set_yscale("log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_locator(NullLocator())
    left.set_xlabel("epoch")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_title("perplexity", loc="left")

    groups = np.array_split(np.argsort(found.entropy, kind="stable"), min(GROUPS, len(found.entropy)))
    entropy, nll = ([float(np.mean(a[group])) for group in groups] for a in (found.entropy, found.nll))
    top = 1.05 * max(*entropy, *nll)
    right.plot((0, top), (0, top), color=PALE, linewidth=0.8)
    right.plot(entropy, nll, color=VERMILION, marker="o", markersize=4, label="a tenth of them each")
    right.set(xlim=(0, top), ylim=(0, top), xlabel="entropy of the prediction (nats)")
    right.set_title("loss of the held-out words (nats)", loc="left")
    for axes in (left, right):
        axes.grid(axis="y")
        axes.legend()
    return figure


def next_words(
    found: jsoftmax.RowStatistics, network: Network, parameters: Parameters, corpus: Corpus
) -> Figure:
    """The most probable next words for three held-out contexts, at several temperatures."""
    contexts = language.contexts(corpus.held_out, network.context)
    chosen = examples(np.asarray(found.entropy), contexts, corpus)
    logits = network.hidden_of(parameters, contexts[chosen]) @ parameters.table.T + parameters.bias
    p = {T: np.asarray(jsoftmax.softmax(logits, temperature=T)) for T in TEMPERATURES}
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(chosen))
    for row, (axes, place) in enumerate(zip(panels, chosen, strict=True)):
        label = int(corpus.held_out[place])
        _show_words(axes, {T: values[row] for T, values in p.items()}, label, corpus)
        context = corpus.written(contexts[place]).replace("\n\n", " ¶ ")
        axes.set_title("\n".join(textwrap.wrap(f"… {context} …", 36, max_lines=3)), loc="left", fontsize=9)
    figure.supxlabel("orange: the word that the text goes on with", color=VERMILION, fontsize=9)
    figure.axes[0].legend(title="temperature", loc="lower right")
    return figure


def examples(entropy: NDArray[np.float32], contexts: NDArray[np.int32], corpus: Corpus) -> list[int]:
    """Positions in the held-out text at quantiles of the entropy, if possible among known words."""
    letters = np.array([word.strip().isalpha() for word in corpus.vocabulary])
    within = (contexts > max(UNKNOWN_ID, PARAGRAPH_ID)).all(axis=1)
    clear = within & letters[contexts[:, -2:]].all(axis=1) & (corpus.held_out != UNKNOWN_ID)
    places = np.flatnonzero(clear) if clear.any() else np.arange(len(clear))
    places = places[np.argsort(entropy[places], kind="stable")]
    return [int(places[int(quantile * (len(places) - 1))]) for quantile in QUANTILES]


def _show_words(axes: Axes, p: dict[float, NDArray[np.float32]], label: int, corpus: Corpus) -> None:
    """Bars of the probabilities for every temperature; the true next word is orange."""
    likeliest = np.argsort(-p[1.0], kind="stable")[:SHOWN].tolist()
    if label not in likeliest:
        likeliest[-1] = label
    height = 0.8 / len(p)
    for index, (temperature, colour) in enumerate(TEMPERATURES.items()):
        places = np.arange(len(likeliest)) + (index - 1) * height
        axes.barh(places, p[temperature][likeliest], height, color=colour, label=f"{temperature:g}")
    axes.set_yticks(range(len(likeliest)), [corpus.vocabulary[i].strip() for i in likeliest])
    axes.get_yticklabels()[likeliest.index(label)].set(color=VERMILION, weight="bold")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("probability")
