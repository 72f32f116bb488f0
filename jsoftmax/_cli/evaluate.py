"""`python -m jsoftmax evaluate`: measure logits in files, print tables, write pictures and JSON."""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jsoftmax import evaluation
from jsoftmax._cli import console, evaluation_figures, evaluation_inputs, evaluation_loop, evaluation_report
from jsoftmax._cli.errors import UserError
from jsoftmax._cli.evaluation_inputs import Inputs
from jsoftmax._cli.evaluation_loop import MOST_CONFUSED, Measures
from jsoftmax._cli.evaluation_options import FIT
from jsoftmax.evaluation import Metrics

TOP_K = 5
FEW_GROUPS = 30  # so few groups say little about how groups differ
RANGE = (1e-30, 1e30)  # a temperature outside is a limit: the loss has no minimum


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    screen = console.screen()
    inputs = evaluation_inputs.load(
        arguments.logits,
        arguments.labels,
        arguments.weights,
        arguments.groups,
        arguments.ignore_index,
        arguments.probabilities,
    )
    names = _names(arguments.names, inputs.classes)
    if arguments.top_k is not None and arguments.top_k > inputs.classes:
        raise UserError(f"--top-k {arguments.top_k}: there are {inputs.classes} classes")
    if arguments.temperature == FIT and inputs.are_soft:
        raise UserError("--temperature fit needs class ids as labels; the labels are probabilities")
    out = console.make_folder(arguments.out)
    measures = Measures(
        arguments.top_k or TOP_K, arguments.bins, arguments.class_bins, arguments.confidence_intervals
    )
    size = arguments.batch_size or evaluation_loop.batch_size(inputs.classes, measures)
    screen.print(_described(inputs))

    start = time.perf_counter()
    progress = partial(evaluation_report.progress, screen, inputs.rows)
    measure = partial(evaluation_loop.measured, inputs, measures, size, progress)
    # 1 instead of none, so that the two passes share their compiled program.
    temperature = 1.0 if arguments.temperature == FIT else arguments.temperature
    states = {"value": measure("evaluated", temperature)}
    if arguments.temperature == FIT:
        temperature = evaluation_loop.fitted_temperature(inputs, size, progress)
        if RANGE[0] < temperature < RANGE[1]:
            name = f"T = {temperature:.4g}"
            states = {"T = 1": states["value"], name: measure(f"evaluated at {name}", temperature)}
        else:
            why = "every row is right" if temperature < 1 else "the logits tell nothing of the labels"
            screen.print(
                f"no temperature has the smallest loss, because {why}: the metrics are those of T = 1"
            )
            temperature = None
    seconds = time.perf_counter() - start
    columns = {name: jax.device_get(evaluation.compute(state)) for name, state in states.items()}
    intervals: dict[str, Metrics] = {}
    if measures.replicates:
        intervals = {
            name: jax.device_get(evaluation.confidence_intervals(state)) for name, state in states.items()
        }

    name, metrics = list(columns.items())[-1]
    screen.print(evaluation_report.metrics_table(columns, intervals))
    if intervals and inputs.group_names is not None and len(inputs.group_names) < FEW_GROUPS:
        remedy = "without --groups, rows are drawn one by one"
        screen.print(f"the intervals draw whole groups, and {len(inputs.group_names)} are few; {remedy}")
    screen.print(evaluation_report.worst_classes(metrics, names))
    group_names = None if inputs.group_names is None else [_text(group) for group in inputs.group_names]
    if group_names is not None:
        screen.print(evaluation_report.worst_groups(metrics, group_names))
    if np.isinf(metrics.nll):
        screen.print("the loss is infinite: the label of a row has probability 0")
    if metrics.confusion is None:
        screen.print(f"no confusion matrix: there are more than {MOST_CONFUSED} classes")
    with console.writing_to(out):
        written = evaluation_figures.draw(out, columns, names)
        content: dict[str, Any] = {
            "files": _files(inputs),
            "rows": inputs.rows,
            "classes": inputs.classes,
            "temperature": 1.0 if temperature is None else temperature,
            "metrics": evaluation_report.without_large_confusion(metrics.as_dict()),
        }
        if intervals:
            content["confidence_intervals"] = intervals[name].as_dict()
        if len(columns) > 1:
            before = columns["T = 1"].as_dict()
            content["metrics_before_fit"] = evaluation_report.without_large_confusion(before)
        if arguments.names is not None:
            content["class_names"] = names
        if group_names is not None:
            content["group_names"] = group_names
        if metrics.confusion is not None and "confusion" not in content["metrics"]:
            np.save(out / "confusion-matrix.npy", metrics.confusion)
            written.append("confusion-matrix.npy")
        content["seconds"] = round(seconds, 3)
        content["versions"] = evaluation_report.versions()
        evaluation_report.write_json(out / "metrics.json", content)
    screen.print(f"in {out}: {', '.join([*written, 'metrics.json'])}")
    return 0


def _described(inputs: Inputs) -> str:
    kind = "probabilities" if inputs.probabilities else "logits"
    soft = ", soft labels" if inputs.are_soft else ""
    groups = "" if inputs.group_names is None else f", {len(inputs.group_names):,} groups"
    return (
        f"{inputs.logits.name}: {inputs.rows:,} rows of {inputs.classes:,} {kind} in {inputs.logits.dtype}"
        f"{soft}{groups}; on {jax.default_backend()}"
    )


def _files(inputs: Inputs) -> dict[str, Any]:
    stored = {name: getattr(inputs, name) for name in ("logits", "labels", "weights", "groups")}
    return {
        name: {"file": array.name, "shape": list(array.shape), "dtype": str(array.dtype)}
        for name, array in stored.items()
        if array is not None
    }


def _text(group: Any) -> str:
    return group.decode(errors="replace") if isinstance(group, bytes) else str(group)


def _names(path: Path | None, classes: int) -> list[str]:
    """The names of the classes, by default their ids."""
    if path is None:
        return [str(k) for k in range(classes)]
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a UTF-8 text") from None
    if len(names) != classes:
        raise UserError(f"{path}: has {len(names)} lines for {classes} classes; write one name per line")
    return names
