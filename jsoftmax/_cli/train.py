"""`python -m jsoftmax train`: train a classifier, evaluate it, verify the gradients, draw the pictures."""

import argparse
import time
from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from jsoftmax._cli import console, data, figures, training, verification
from jsoftmax._cli.models import Network
from jsoftmax._cli.training import Epoch, Settings

VERIFIED_ROWS = 1000  # enough for differences to show, few enough to differentiate op by op
WIDEST_TABLE = 12  # the most classes of a confusion matrix as text
SHOWN_MISTAKES = 10


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if a verification fails, else 0."""
    screen = console.screen()
    out = console.make_folder(arguments.out)
    if arguments.data == "digits":
        dataset = data.digits()
    else:
        dataset = data.read(arguments.data, arguments.path, arguments.set, bool(arguments.transpose))
    settings = Settings(
        network=_network(arguments),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        l2=arguments.l2,
        seed=arguments.seed,
    )
    rows, columns = dataset.test.images.shape[1:]
    classes = dataset.train.classes
    screen.print(
        f"{dataset.name}: {len(dataset.train.labels)} training and "
        f"{len(dataset.test.labels)} test images of {rows} x {columns} pixels; "
        f"{len(classes)} classes, labels {data.described(classes)}; "
        f"model {arguments.model} on {jax.default_backend()}"
    )
    if arguments.data == "mnist" and dataset.name.startswith("emnist") and not arguments.transpose:
        screen.print("EMNIST's files hold their images transposed: --data emnist turns them upright")
    start = time.perf_counter()
    with console.progress(screen, settings.epochs) as report:
        parameters, history = training.train(
            dataset, settings, lambda number, epoch: report(number, _describe(epoch))
        )
    screen.print(f"trained in {time.perf_counter() - start:.1f} s")

    evaluation = training.make_evaluator(settings.network, dataset.test)(parameters)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (dataset.test.labels, evaluation.logits.argmax(axis=-1)), 1)
    screen.print(
        f"\ntest accuracy {evaluation.accuracy:.4f}, NLL {evaluation.nll:.4f} nats\n",
        style="bold",
    )
    screen.print(confusion_table(confusion, classes))

    examples = dataset.test.first(VERIFIED_ROWS)
    comparisons = list(
        verification.compare_all(settings.network, parameters, examples, settings.l2, settings.seed)
    )
    failures = console.show_comparisons(screen, comparisons, verification.BOUND)
    with console.writing_to(out):
        figures.draw(out, history, settings.network.dropout, confusion, dataset.test, evaluation.logits)
    screen.print(f"\npictures in {out}: {', '.join(figures.NAMES)}")
    return 1 if failures else 0


def _network(arguments: argparse.Namespace) -> Network:
    if arguments.model == "linear":
        return Network()
    return Network(arguments.hidden, arguments.activation, arguments.dropout)


def _describe(epoch: Epoch) -> str:
    return f"loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}  test {epoch.test_accuracy:.4f}"


def confusion_table(confusion: NDArray[np.int_], classes: Sequence[object]) -> Table:
    """The confusion matrix or, for many classes, the most frequent mistakes."""
    if len(classes) > WIDEST_TABLE:
        return _mistakes_table(confusion, classes)
    table = Table(title="confusion matrix", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("true \\ predicted")
    for label in classes:
        table.add_column(str(label), justify="right")
    for label, counts in zip(classes, confusion, strict=True):
        table.add_row(str(label), *(str(count) if count else "." for count in counts))
    return table


def _mistakes_table(confusion: NDArray[np.int_], classes: Sequence[object]) -> Table:
    table = Table(title="most frequent mistakes", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("true", "predicted", "images", "of"):
        table.add_column(column, justify="right")
    mistakes = np.where(np.eye(len(classes), dtype=bool), 0, confusion)
    for place in np.argsort(-mistakes, axis=None, kind="stable")[:SHOWN_MISTAKES]:
        true, predicted = divmod(int(place), len(classes))
        if mistakes[true, predicted]:
            counts = (mistakes[true, predicted], confusion[true].sum())
            table.add_row(str(classes[true]), str(classes[predicted]), *map(str, counts))
    return table
