"""The output of training runs and evaluations: the console, the progress, and the table of comparisons."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from jsoftmax._cli.errors import UserError

if TYPE_CHECKING:  # `evaluate` needs the console, and not the packages of `train`
    from jsoftmax._cli.verification import Comparison

PLAIN_WIDTH = 100
PLAIN_LINES = 10

Report = Callable[[float, str | None], None]


def screen() -> Console:
    """Rich's console; for a pipe or a file it writes plain text, wide enough for the tables."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a text may contain characters that a terminal cannot show
    plain = not sys.stdout.isatty()
    return Console(
        highlight=False,
        markup=False,
        emoji=False,
        force_terminal=False if plain else None,
        color_system=None if plain else "auto",
        width=PLAIN_WIDTH if plain else None,
        soft_wrap=True,
    )


def make_folder(folder: Path) -> Path:
    """Create the folder before the training, so that a wrong path is reported at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be the folder for pictures ({error.strerror})") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be the folder for pictures (not writable)")
    return folder


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Report an error in writing the pictures as a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot write the pictures ({error})") from None


@contextmanager
def progress(screen: Console, epochs: int) -> Iterator[Report]:
    """Yield `report(epochs, text)`: it moves a progress bar or, on a pipe, prints about `PLAIN_LINES` lines.

    The text is None within an epoch: then only the bar moves.
    """
    if screen.is_terminal:
        columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=screen) as bar:
            task = bar.add_task("", total=epochs)
            yield lambda done, text: bar.update(task, completed=done, description=text)
        return

    every = max(1, epochs // PLAIN_LINES)

    def print_line(done: float, text: str | None) -> None:
        if text is not None and (done % every == 0 or done == epochs):
            screen.print(f"epoch {done:3}/{epochs}  {text}")

    yield print_line


def show_comparisons(screen: Console, comparisons: Sequence[Comparison], bound: str) -> int:
    """Print a table of the comparisons and their bound, and return how many failed."""
    table = Table(
        title="largest difference from the textbook definitions and their jax.grad",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("quantity")
    table.add_column("difference", justify="right")
    table.add_column("of bound", justify="right")
    table.add_column("")
    for comparison in comparisons:
        verdict = Text("ok", "green") if comparison.ok else Text("FAILED", "bold red")
        table.add_row(comparison.quantity, f"{comparison.difference:.1e}", f"{comparison.ratio:.2g}", verdict)
    screen.print(table)
    screen.print(f"bound: {bound}")
    failures = sum(not comparison.ok for comparison in comparisons)
    if failures:
        screen.print(f"{failures} of {len(comparisons)} comparisons FAILED", style="bold red")
    return failures
