"""``python -m tests.benchmarks evaluate``: the loop of the command `evaluate` beside reading and one softmax.

The file of float16 logits is made block by block in a temporary folder. The command's loop takes turns with
its peer, which reads the same batches and takes one `jax.nn.softmax` of each; the first turn, which compiles,
does not count. A process of its own runs the command, for its memory. With ``--check``, every metric is
compared with its definition in float64.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jsoftmax import evaluation
from jsoftmax._cli import evaluation_inputs, evaluation_loop
from jsoftmax._cli.evaluation_loop import Measures
from tests.benchmarks import timing

BLOCK = 2**24  # logits made or checked at once
BINS, TOP_K = 15, 5
BOUND = 1e-6  # of the errors, relative to a metric above 1
CHILD = """
import resource, sys
from jsoftmax._cli import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(status)
"""


def make(folder, rows, classes):
    """Logits that are right in about two of three rows, and surer than that."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    header = {"descr": "<f2", "fortran_order": False, "shape": (rows, classes)}
    step = max(BLOCK // classes, 1)
    with (folder / "logits.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, rows, step):
            ids = labels[start : start + step]
            x = 1.5 * rng.standard_normal((len(ids), classes), np.float32)
            x[np.arange(len(ids)), ids] += rng.normal(6, 2, len(ids))
            stream.write(x.astype(np.float16).tobytes())
    np.save(folder / "labels.npy", labels)


def definitions(folder):
    """Every metric in float64, block by block, from the formulas."""
    logits, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("logits", "labels"))
    rows, classes = logits.shape
    nll, brier, confidence, odds = np.zeros((4, rows))
    prediction, rank = np.zeros(rows, int), np.zeros(rows, int)
    step = max(BLOCK // 4 // classes, 1)
    for start in range(0, rows, step):
        block = slice(start, start + step)
        x, y = logits[block].astype(np.float64), np.asarray(labels[block])
        own = x[np.arange(len(y)), y][:, None]
        rank[block] = ((x > own) | ((x == own) & (np.arange(classes) < y[:, None]))).sum(1)
        prediction[block] = x.argmax(1)
        x -= x.max(1, keepdims=True)
        e = np.exp(x)
        log_p = x - np.log(e.sum(1, keepdims=True))
        e[np.arange(len(y)), prediction[block]] = 0
        odds[block] = 1 / e.sum(1)
        nll[block] = -log_p[np.arange(len(y)), y]
        p = np.exp(log_p)
        confidence[block] = p.max(1)
        p[np.arange(len(y)), y] -= 1
        brier[block] = (p * p).sum(1)
    right = rank == 0
    # The bin is that of the confidence in float32, in which an edge may be on the other side of it.
    edges = np.arange(1, BINS).astype(np.float32) / np.float32(BINS)
    gap = _gaps(np.searchsorted(edges, confidence.astype(np.float32)), BINS, confidence, right)
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (np.asarray(labels), prediction), 1)
    weight, predicted, hits = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    recall = hits / np.maximum(weight, 1)
    f1 = 2 * hits / np.maximum(weight + predicted, 1)
    aurc, cell, before = _risk(odds, right)
    equal = np.minimum(BINS * (before + np.bincount(cell)[cell] / 2) / rows, BINS - 1).astype(int)
    equal_gap, _ = _gaps(equal, BINS, confidence, right)
    return {
        "weight": rows,
        "nll": nll.mean(),
        "perplexity": np.exp(nll.mean()),
        "bits_per_token": nll.mean() / np.log(2),
        "accuracy": right.mean(),
        "top_k_accuracy": [(rank < k).mean() for k in range(1, TOP_K + 1)],
        "brier": brier.mean(),
        "calibration_error": np.abs(gap[0]).sum() / rows,
        "max_calibration_error": np.max(np.abs(gap[0]) / np.maximum(gap[1], 1)),
        "rms_calibration_error": np.sqrt((gap[0] ** 2 / np.maximum(gap[1], 1)).sum() / rows),
        "per_class_accuracy": recall,
        "per_class_weight": weight,
        "per_class_precision": hits / np.maximum(predicted, 1),
        "per_class_f1": f1,
        "macro_accuracy": recall[weight > 0].mean(),
        "macro_f1": f1[weight + predicted > 0].mean(),
        "confusion": confusion,
        "equal_mass_calibration_error": np.abs(equal_gap).sum() / rows,
        "aurc": aurc,
    }


def _gaps(index, bins, confidence, right):
    return np.bincount(index, confidence - right, bins), np.bincount(index, minlength=bins)


def _risk(odds, right):
    """The area under the risk-coverage curve; the cell of each row, and the rows in cells of less confidence.

    A cell is 1/128 of an octave of the odds. At the x-th row of a cell with the error rate r, after N rows
    with E errors, the risk is (E + r x)/(N + x).
    """
    mantissa, exponent = np.frexp(odds)
    cell = np.clip(128 * (exponent + 30) + (256 * mantissa).astype(int) - 128, 0, None)
    w, wrong = np.bincount(cell), np.bincount(cell, ~right)
    below = np.cumsum(w) - w
    area = done = failed = 0.0
    for size, errors in zip(w[::-1], wrong[::-1], strict=True):
        if size:
            rate = errors / size
            area += rate * size + ((failed - rate * done) * np.log1p(size / done) if done else 0)
            done, failed = done + size, failed + errors
    return area / done, cell, below[cell]


def errors(metrics, exact):
    """The largest error of each metric, relative to the metric where that is above 1."""
    found = metrics._asdict() | {"aurc": metrics.risk_coverage.aurc}
    return {
        name: float(
            np.max(np.abs(np.asarray(found[name], np.float64) - value) / np.maximum(np.abs(value), 1))
        )
        for name, value in exact.items()
    }


def peak(folder):
    """The peak memory of a process that runs the command, in bytes.

    On Linux it is at least the memory that this process has when it starts the other one.
    """
    command = ["evaluate", folder / "logits.npy", folder / "labels.npy", "--out", folder / "out"]
    run = [sys.executable, "-c", CHILD, *map(str, command)]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()[-1])


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks evaluate", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3, help="how often each side reads the file")
    parser.add_argument("--folder", type=Path, help="for the file; default: the system's folder")
    parser.add_argument("--check", action="store_true", help="compare every metric with float64")
    options = parser.parse_args(arguments)
    print(json.dumps(timing.machine()))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make(folder, options.rows, options.classes)
        return _run(options, folder)


def _run(options, folder):
    memory = peak(folder)
    paths = [str(folder / "logits.npy"), str(folder / "labels.npy")]
    inputs = evaluation_inputs.load(*paths, None, None, None, False)
    measures = Measures(TOP_K, BINS, None, None)
    size = evaluation_loop.batch_size(options.classes, measures)

    @contextlib.contextmanager
    def silent(what):
        yield lambda rows: None

    softmax = jax.jit(jax.nn.softmax)

    def ours():
        return evaluation_loop.measured(inputs, measures, size, silent, "")

    def peer():
        for batch in inputs.batches(size):
            softmax(batch.logits).block_until_ready()

    seconds = {"ours": [], "peer": []}
    for turn in range(options.turns + 1):
        for name, call in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            found = call()
            if turn:  # the first pass compiles
                seconds[name].append(time.perf_counter() - start)
            if name == "ours":
                state = found
    best = {name: float(np.median(taken)) for name, taken in seconds.items()}
    gigabytes = options.rows * options.classes * 2 / 1e9
    record = {
        "rows": options.rows,
        "classes": options.classes,
        "batch": size,
        "file, GB": gigabytes,
        "seconds, ours": best["ours"],
        "seconds, reading and one softmax": best["peer"],
        "speed of ours": best["peer"] / best["ours"],
        "rows/s": options.rows / best["ours"],
        "peak memory of the command, GB": memory / 1e9,
    }
    if options.check:
        record["errors"] = errors(jax.device_get(evaluation.compute(state)), definitions(folder))
    for name, value in record.items():
        if name != "errors":
            print(f"{name:40}{value:,.4g}")
    for name, error in record.get("errors", {}).items():
        print(f"error of {name:31}{error:.1e}")
    if wrong := [name for name, error in record.get("errors", {}).items() if not error <= BOUND]:
        raise SystemExit(f"off by more than {BOUND}: {', '.join(wrong)}")
    return record
