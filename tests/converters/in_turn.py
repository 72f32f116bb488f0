"""Converts programs one after the other in a converter's environment: ``python -m tests.converters.in_turn``.

The request is JSON on standard input; each program writes a line of JSON into the named file. A converter may
end the process: the caller then requests the programs without a line again.
"""

import contextlib
import faulthandler
import json
import re
import sys

import jax
import numpy as np

import jsoftmax
from tests.converters.programs import CORNERS, PROGRAMS, SIZES, batch
from tests.converters.routes import ROUTES

LARGEST = np.finfo(np.float32).max
# A larger relative error is a wrong value, not a rounding. One corner case sums 50256 equal numbers.
WITHIN, CORNER_WITHIN = 1e-4, 1e-2


def first_line(error):
    """The line of a message that says what stopped the converter."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    told = (line for line in lines if re.search(r"\berror: |^TF Select ops: ", line))
    line = next(told, lines[0])
    return f"{type(error).__name__}: {re.sub(r'^.*?error: ', '', line).rstrip(': ')}"


def errors(got, exact):
    """Relative errors by entry: 0 where both are NaN, the same infinity, or too large for the type."""
    got, exact = np.asarray(got, np.float64), np.asarray(exact, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        beyond = np.isinf(exact) & (got * np.sign(exact) >= LARGEST)
        same = (got == exact) | (np.isnan(got) & np.isnan(exact)) | beyond
        return np.where(same, 0, np.nan_to_num(np.abs(got / exact - 1), nan=np.inf))


def compared(results, program, arguments):
    """The largest relative error of an ordinary row, and the corner cases that are lost."""
    exact = program.exact(*arguments)
    results = results if isinstance(results, list | tuple) else (results,)
    exact = exact if isinstance(exact, tuple) else (exact,)
    largest, lost = 0.0, set()
    for got, want in zip(results, exact, strict=True):
        by_row = errors(got, want).reshape(len(want), -1).max(-1)
        largest = max(largest, float(by_row[len(CORNERS) :].max()))
        if program.corners and want.dtype.kind == "f":  # without a class, the prediction is undefined
            lost |= {c for c, e in zip(CORNERS, by_row, strict=False) if e > CORNER_WITHIN}
    return {"error": largest, "lost": [c for c in CORNERS if c in lost]}


def loses_bad_labels(run, program, arguments):
    """Whether the last row is not NaN for a class id out of range, or there is no result."""
    *others, labels = arguments
    labels = np.array([*labels[:-1], arguments[-2].shape[-1]], labels.dtype)  # not a class id
    try:
        return compared(run(*others, labels), program, [*others, labels])["error"] > WITHIN
    except Exception:
        return True


def converted(route, whose, name, size, portable):
    program, values = PROGRAMS[name], batch(*SIZES[size])
    arguments = [values[a] for a in program.arguments]
    function = getattr(program, whose)

    def flat(*arguments):
        return tuple(jax.tree.leaves(function(*arguments)))

    with jsoftmax.portable() if portable else contextlib.nullcontext():
        run = ROUTES[route].convert(flat, arguments)
    if run is None:
        return {"error": None, "lost": []}
    found = compared(run(*arguments), program, arguments)
    if "labels" in program.arguments and loses_bad_labels(run, program, arguments):
        found["lost"].append("bad label")
    return found


def main():
    route, file, limit = sys.argv[1:]
    with open(file, "a") as lines:
        for asked in json.load(sys.stdin):
            faulthandler.dump_traceback_later(float(limit), exit=True)
            try:
                found = converted(route, *asked)
            except Exception as error:
                found = {"stops": first_line(error)}
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(found), file=lines, flush=True)


if __name__ == "__main__":
    main()
