"""`python -m jsoftmax train --data text`: train a language model, evaluate it, write text, verify, draw."""

import argparse
import textwrap
import time

import jax
import numpy as np

import jsoftmax
from jsoftmax._cli import console, head_verification, language, language_figures, language_training, text
from jsoftmax._cli.language import Network, Parameters, Sampling
from jsoftmax._cli.language_training import Epoch, Settings, perplexity
from jsoftmax._cli.text import Corpus
from jsoftmax._cli.verification import Comparison

VERIFIED_ROWS = 256  # the textbook loss holds all logits of these rows at once
WRITTEN_WORDS = 150
WIDTH = 96


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if a verification fails, else 0."""
    screen = console.screen()
    out = console.make_folder(arguments.out)
    corpus = text.load(arguments.path, arguments.vocabulary)
    settings = Settings(
        network=Network(arguments.context, arguments.features, arguments.hidden[0], arguments.dropout),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        gradient=arguments.gradient,
    )
    classes = len(corpus.vocabulary)
    unknown = float(np.mean(corpus.held_out == text.UNKNOWN_ID))
    screen.print(
        f"{corpus.name}: {len(corpus.train)} words to learn from and {len(corpus.held_out)} held out, "
        f"{unknown:.1%} of them unknown; {classes} classes on {jax.default_backend()}"
    )
    rows = min(settings.batch_size, len(corpus.train))
    screen.print(f"linear head: {jsoftmax.linear_plan(rows, arguments.features, classes)}")
    start = time.perf_counter()
    with console.progress(screen, settings.epochs) as report:
        parameters, history = language_training.train(
            corpus,
            settings,
            on_epoch=lambda number, epoch: report(number, _describe(epoch)),
            on_step=lambda epochs: report(epochs, None),
        )
    screen.print(f"trained in {time.perf_counter() - start:.1f} s")

    found = language_training.make_evaluator(settings.network, corpus.held_out)(parameters)
    unigram_nll = language_training.unigram_nll(corpus)
    screen.print(
        f"\nheld-out perplexity {perplexity(float(np.mean(found.nll))):.1f}, "
        f"of the unigram model {perplexity(unigram_nll):.1f}; "
        f"next word right {np.mean(found.prediction == corpus.held_out):.1%}\n",
        style="bold",
    )
    how = Sampling(arguments.temperature, arguments.top_p)
    cut = "" if how.top_p == 1 else f", from the likeliest words with {how.top_p:g} of the mass"
    screen.print(f"written at temperature {how.temperature:g}{cut}\n")
    key = jax.random.key(settings.seed)
    ids = language.write(settings.network, parameters, WRITTEN_WORDS, how, key)
    for paragraph in corpus.written(ids).split("\n\n"):
        lines = textwrap.fill(paragraph, WIDTH, initial_indent="  ", subsequent_indent="  ")
        screen.print(f"{lines}\n", style="italic")

    comparisons = _verify(settings.network, parameters, corpus)
    failures = console.show_comparisons(screen, comparisons, head_verification.BOUND)
    with console.writing_to(out):
        language_figures.draw(out, history, unigram_nll, found, settings.network, parameters, corpus)
    screen.print(f"\npictures in {out}: {', '.join(language_figures.NAMES)}")
    return 1 if failures else 0


def _describe(epoch: Epoch) -> str:
    return f"perplexity {perplexity(epoch.nll):.1f}  held out {perplexity(epoch.held_out_nll):.1f}"


def _verify(network: Network, parameters: Parameters, corpus: Corpus) -> list[Comparison]:
    labels = corpus.held_out[:VERIFIED_ROWS]
    hidden = network.hidden_of(parameters, language.contexts(labels, network.context))
    return list(head_verification.compare_head(hidden, parameters.table, parameters.bias, labels))
