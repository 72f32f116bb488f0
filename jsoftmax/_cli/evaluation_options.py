"""The options of `evaluate`."""

import argparse
import re
from pathlib import Path

from jsoftmax._cli.options import real, whole

FIT = "fit"
REPLICATES = 400
DESCRIPTION = """Measure a classifier from its logits and labels: loss, accuracy, calibration, and the worst
classes and groups, as tables, as pictures and as metrics.json. LOGITS and LABELS are .npy, .npz or
.safetensors files; they are read once, batch by batch, so they may be larger than memory. FILE:NAME is one of
several arrays in a file; without a name, it is the one called logits, labels, weights or groups, or the only
one."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add every option of `evaluate` to a parser."""
    add = parser.add_argument
    add("logits", metavar="LOGITS", help="floats of shape (rows, classes), or with more axes of rows")
    add(
        "labels",
        metavar="LABELS",
        help="class ids, integers of shape (rows,), or probabilities of the shape of the logits; "
        "may be the same file",
    )
    add("--weights", metavar="FILE", help="one weight per row, at least 0; rows of weight 0 do not count")
    add(
        "--groups",
        metavar="FILE",
        help="the group of each row, such as its document, as integers or strings: measures each group",
    )
    add(
        "--ignore-index",
        type=whole(-(2**31), below=2**31),
        metavar="N",
        help="rows with label N do not count",
    )
    add("--probabilities", action="store_true", help="LOGITS holds probabilities")
    add(
        "--temperature",
        type=_temperature,
        metavar="T|fit",
        help="divides the logits by T; fit: by the temperature of the smallest loss, with the metrics before "
        "and after, in about nine passes over the logits",
    )
    add("--top-k", type=whole(1), metavar="K", help="the largest k of the top-k accuracy (default: 5)")
    add("--bins", type=whole(1), default=15, metavar="N", help="confidence bins (default: 15)")
    add(
        "--class-bins",
        type=whole(1),
        metavar="N",
        help="bins of the probability of every class, for the class-wise calibration error; "
        "each bin takes a pass over the probabilities",
    )
    add(
        "--confidence-intervals",
        type=_replicates,
        nargs="?",
        const=REPLICATES,
        metavar="R",
        help="95 %% intervals from R bootstrap replicates of the rows, or of the groups with --groups "
        f"(R without a number: {REPLICATES})",
    )
    add("--names", type=Path, metavar="FILE", help="a UTF-8 text with the name of each class, one per line")
    add("--batch-size", type=whole(1), metavar="N", help="rows in a batch (default: about 2**24 logits)")
    out = Path("jsoftmax-out")
    add("--out", type=Path, default=out, metavar="DIR", help=f"folder for the results (default: {out})")


def _temperature(text: str) -> float | str:
    """A number above 0, or the word."""
    return text if text == FIT else real(above=0)(text)


def _replicates(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        problem = f"{text} is no number of replicates; write the files first, then the options"
        raise argparse.ArgumentTypeError(problem)
    return whole(20)(text)
