"""`python -m jsoftmax train`: learn, evaluate, verify, and draw."""

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from jsoftmax._cli import data, figures, training, verification
from jsoftmax._cli.errors import UserError
from jsoftmax._cli.models import Network, Parameters
from jsoftmax._cli.training import Epoch, Settings
from jsoftmax._cli.verification import Comparison

VERIFIED_ROWS = 1000  # enough to differ, few enough to differentiate op by op
PLAIN_WIDTH = 100
PLAIN_LINES = 10


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if a verification fails, else 0."""
    console = _console()
    out = _make_folder(arguments.out)
    dataset = data.load(arguments.data, arguments.path)
    settings = Settings(
        network=_network(arguments),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        l2=arguments.l2,
        seed=arguments.seed,
    )
    rows, columns = dataset.test.images.shape[1:]
    console.print(
        f"{arguments.data}: {len(dataset.train.labels)} training and "
        f"{len(dataset.test.labels)} test images of {rows} x {columns} pixels; "
        f"model {arguments.model} on {jax.default_backend()}"
    )
    start = time.perf_counter()
    parameters, history = _train(console, dataset, settings)
    console.print(f"trained in {time.perf_counter() - start:.1f} s")

    evaluation = training.make_evaluator(settings.network, dataset.test)(parameters)
    confusion = np.zeros((data.CLASSES, data.CLASSES), int)
    np.add.at(confusion, (dataset.test.labels, evaluation.logits.argmax(axis=-1)), 1)
    console.print(
        f"\ntest accuracy {evaluation.accuracy:.4f}, NLL {evaluation.nll:.4f} nats\n",
        style="bold",
    )
    console.print(_confusion_table(confusion))

    examples = data.Examples(dataset.test.images[:VERIFIED_ROWS], dataset.test.labels[:VERIFIED_ROWS])
    comparisons = list(
        verification.compare_all(
            settings.network, parameters, examples, settings.l2, jax.random.key(settings.seed)
        )
    )
    failures = sum(not comparison.ok for comparison in comparisons)
    console.print(_verification_table(comparisons))
    console.print(f"bound: {verification.BOUND}")
    if failures:
        console.print(f"{failures} of {len(comparisons)} comparisons FAILED", style="bold red")

    try:
        figures.draw(out, history, confusion, dataset.test, evaluation.logits)
    except OSError as error:
        raise UserError(f"{out}: cannot write the pictures ({error})") from None
    console.print(f"\npictures in {out}: {', '.join(figures.NAMES)}")
    return 1 if failures else 0


def _network(arguments: argparse.Namespace) -> Network:
    if arguments.model == "linear":
        return Network()
    return Network((arguments.hidden,), arguments.activation, arguments.dropout)


def _console() -> Console:
    """Rich's console; a pipe or a file gets plain text, as wide as the tables need."""
    plain = not sys.stdout.isatty()
    return Console(
        highlight=False,
        markup=False,
        force_terminal=False if plain else None,
        color_system=None if plain else "auto",
        width=PLAIN_WIDTH if plain else None,
        soft_wrap=True,
    )


def _make_folder(folder: Path) -> Path:
    """Make the folder now: a minute of training should not end in a typing mistake."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be the folder for pictures ({error.strerror})") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be the folder for pictures (not writable)")
    return folder


def _train(console: Console, dataset: data.Dataset, settings: Settings) -> tuple[Parameters, list[Epoch]]:
    """Train behind a progress bar, or, on a pipe, with a line now and then."""
    if console.is_terminal:
        with Progress(
            TextColumn("epoch"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            console=console,
        ) as progress:
            task = progress.add_task("", total=settings.epochs)
            return training.train(
                dataset,
                settings,
                lambda number, epoch: progress.update(task, completed=number, description=_describe(epoch)),
            )

    every = max(1, settings.epochs // PLAIN_LINES)

    def on_epoch(number: int, epoch: Epoch) -> None:
        if number % every == 0 or number == settings.epochs:
            console.print(f"epoch {number:3}/{settings.epochs}  {_describe(epoch)}")

    return training.train(dataset, settings, on_epoch)


def _describe(epoch: Epoch) -> str:
    return f"loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}  test {epoch.test_accuracy:.4f}"


def _confusion_table(confusion: NDArray[np.int_]) -> Table:
    table = Table(title="confusion matrix", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("true \\ predicted")
    for label in range(data.CLASSES):
        table.add_column(str(label), justify="right")
    for label, counts in enumerate(confusion):
        table.add_row(str(label), *(str(count) if count else "." for count in counts))
    return table


def _verification_table(comparisons: Iterable[Comparison]) -> Table:
    table = Table(
        title="largest difference from the textbook definitions and their jax.grad",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("quantity")
    table.add_column("difference", justify="right")
    table.add_column("of bound", justify="right")
    table.add_column("")
    for quantity, difference, ratio in comparisons:
        verdict = Text("ok", "green") if ratio <= 1 else Text("FAILED", "bold red")
        table.add_row(quantity, f"{difference:.1e}", f"{ratio:.2g}", verdict)
    return table
