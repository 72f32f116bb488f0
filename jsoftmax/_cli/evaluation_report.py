"""What `evaluate` prints and writes: the progress, the tables, and metrics.json."""

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

import jsoftmax
from jsoftmax.evaluation import Metrics

WORST = 10  # classes or groups in a table
PLAIN_SECONDS = 5.0  # between two lines of progress in plain text
MOST_IN_JSON = 100  # the most classes whose confusions are in metrics.json


@contextmanager
def progress(screen: Console, rows: int, what: str) -> Iterator[Callable[[int], None]]:
    """Yield `advance(rows)`: it moves a progress bar or, on a pipe, prints a line from time to time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    start = shown = time.perf_counter()
    done, first, begun = 0, 0, start
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=rows, speed="compiling")

        def advance(more: int) -> None:
            nonlocal done, first, begun, shown
            done, now = done + more, time.perf_counter()
            if not first:  # the first batch takes the time to compile, and is not in the rate
                first, begun = done, now
                bar.update(task, completed=done, speed="")
                return
            rate = (done - first) / max(now - begun, 1e-9)
            bar.update(task, completed=done, speed=f"{rate:,.0f} rows/s")
            if not screen.is_terminal and done < rows and now - shown > PLAIN_SECONDS:
                shown = now
                left = f"{(rows - done) / rate:,.0f} s left"
                screen.print(f"{what}: {done:,} of {rows:,} rows, {rate:,.0f} rows/s, {left}")

        yield advance
    end = time.perf_counter()
    rate = (
        f", {(done - first) / max(end - begun, 1e-9):,.0f} rows/s after the first batch"
        if done > first
        else ""
    )
    screen.print(f"{what}: {done:,} rows in {end - start:.1f} s{rate}")


def metrics_table(columns: dict[str, Metrics], intervals: dict[str, Metrics]) -> Table:
    """The single numbers of one or two evaluations, each with its intervals if there are any."""
    table = Table(title="metrics", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    shown: list[dict[str, str]] = []
    for name, metrics in columns.items():
        table.add_column(name, justify="right")
        shown.append(_numbers(metrics))
        if name in intervals:
            table.add_column("95 % interval", justify="right")
            low, high = (_numbers(jax.tree.map(lambda a, i=i: a[i], intervals[name])) for i in (0, 1))
            shown.append({key: f"{low[key]} to {high[key]}" for key in low if not key.startswith("rows")})
    for key in shown[0]:
        table.add_row(key, *(column.get(key, "") for column in shown))
    return table


def _numbers(metrics: Metrics) -> dict[str, str]:
    return dict(metrics._rows() or ())


def worst_classes(metrics: Metrics, names: Sequence[str]) -> Table:
    """The classes of the lowest accuracy."""
    columns = {
        "rows": (metrics.per_class_weight, "{:,.6g}"),
        "accuracy": (metrics.per_class_accuracy, "{:.4f}"),
        "precision": (metrics.per_class_precision, "{:.4f}"),
        "F1": (metrics.per_class_f1, "{:.4f}"),
    }
    return _worst("class", names, columns)


def worst_groups(metrics: Metrics, names: Sequence[str]) -> Table:
    """The groups of the lowest accuracy."""
    assert metrics.groups is not None
    columns = {
        "rows": (metrics.groups.weight, "{:,.6g}"),
        "accuracy": (metrics.groups.accuracy, "{:.4f}"),
        "loss": (metrics.groups.nll, "{:.4f}"),
    }
    return _worst("group", names, columns)


def _worst(what: str, names: Sequence[str], columns: dict[str, tuple[Any, str]]) -> Table:
    weight, accuracy = (np.asarray(columns[key][0]) for key in ("rows", "accuracy"))
    held = np.flatnonzero(weight > 0)
    order = held[np.argsort(accuracy[held], kind="stable")][:WORST]
    plural = "classes" if what == "class" else f"{what}s"
    title = f"accuracy by {what}" if len(held) <= WORST else f"the {WORST} worst of {len(held):,} {plural}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(what)
    for name in columns:
        table.add_column(name, justify="right")
    for k in order.tolist():
        table.add_row(names[k], *(form.format(float(values[k])) for values, form in columns.values()))
    return table


def without_large_confusion(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics without the confusions of many classes, which are a file of their own."""
    few = len(metrics.get("confusion", ())) <= MOST_IN_JSON
    return {name: value for name, value in metrics.items() if few or name != "confusion"}


def versions() -> dict[str, str]:
    """The versions that the numbers come from."""
    return {
        "jsoftmax": jsoftmax.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write strict JSON, one entry per line, and the arrays in one line each."""

    def lines(value: Any, depth: int, indent: str) -> str:
        if not isinstance(value, dict) or not depth:
            return json.dumps(value, allow_nan=False)
        inner = indent + "  "
        entries = (f"{inner}{json.dumps(k)}: {lines(v, depth - 1, inner)}" for k, v in value.items())
        return "{\n" + ",\n".join(entries) + f"\n{indent}}}"

    path.write_text(lines(content, 2, "") + "\n", encoding="utf-8")
