"""`python -m jsoftmax train`: learn, evaluate, verify, and draw."""

import argparse
import time

import jax
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from jsoftmax._cli import console, data, figures, training, verification
from jsoftmax._cli.models import Network
from jsoftmax._cli.training import Epoch, Settings

VERIFIED_ROWS = 1000  # enough to differ, few enough to differentiate op by op


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if a verification fails, else 0."""
    screen = console.screen()
    out = console.make_folder(arguments.out)
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
    screen.print(
        f"{arguments.data}: {len(dataset.train.labels)} training and "
        f"{len(dataset.test.labels)} test images of {rows} x {columns} pixels; "
        f"model {arguments.model} on {jax.default_backend()}"
    )
    start = time.perf_counter()
    with console.progress(screen, settings.epochs) as report:
        parameters, history = training.train(
            dataset, settings, lambda number, epoch: report(number, _describe(epoch))
        )
    screen.print(f"trained in {time.perf_counter() - start:.1f} s")

    evaluation = training.make_evaluator(settings.network, dataset.test)(parameters)
    confusion = np.zeros((data.CLASSES, data.CLASSES), int)
    np.add.at(confusion, (dataset.test.labels, evaluation.logits.argmax(axis=-1)), 1)
    screen.print(
        f"\ntest accuracy {evaluation.accuracy:.4f}, NLL {evaluation.nll:.4f} nats\n",
        style="bold",
    )
    screen.print(_confusion_table(confusion))

    examples = data.Examples(dataset.test.images[:VERIFIED_ROWS], dataset.test.labels[:VERIFIED_ROWS])
    comparisons = list(
        verification.compare_all(settings.network, parameters, examples, settings.l2, settings.seed)
    )
    failures = console.show_comparisons(screen, comparisons, verification.BOUND)
    with console.writing_to(out):
        figures.draw(out, history, confusion, dataset.test, evaluation.logits)
    screen.print(f"\npictures in {out}: {', '.join(figures.NAMES)}")
    return 1 if failures else 0


def _network(arguments: argparse.Namespace) -> Network:
    if arguments.model == "linear":
        return Network()
    return Network((arguments.hidden,), arguments.activation, arguments.dropout)


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
