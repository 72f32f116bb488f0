"""``python -m tests.benchmarks modes``: what forward mode would cost as the default of the maps.

Each function is traced with its rule for reverse mode, as by default, and within `jsoftmax.forward_mode`. The
programs run in turns: the value, and the value with its gradient. The residuals are the arrays that `jax.vjp`
keeps, operations are those of the StableHLO, and a trace includes its lowering. Of two numbers, the second is
that of forward mode; the ratio of the times is forward over reverse.
"""

import argparse
import contextlib
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax
from tests.benchmarks import compiling, timing

SIZES = ("16x10", "4096x1000", "512x32000")
MODES = {"reverse": contextlib.nullcontext, "forward": jsoftmax.forward_mode}
FUNCTIONS = {
    "softmax": jsoftmax.softmax,
    "log_softmax": jsoftmax.log_softmax,
    "logsumexp": functools.partial(jsoftmax.logsumexp, axis=-1),
}
HEADER = (
    f"{'function':12}{'rows':>6}{'classes':>8}  {'what':10}{'reverse ms':>11}{'forward ms':>11}{'ratio':>7}"
    f"  {'quartiles':11}{'operations':>12}{'trace ms':>16}{'temporaries MB':>16}  residuals"
)


def with_gradient(function):
    """The output, and the gradient of its product with a fixed array."""

    def call(x, g):
        out, pull = jax.vjp(function, x)
        return out, pull(g)[0]

    return call


def residuals(function, x):
    """The number and the bytes of the arrays that reverse mode keeps."""
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(function, x)[1], x))
    return len(kept), sum(leaf.size * leaf.dtype.itemsize for leaf in kept)


def within(context, function):
    """The function, traced in a mode."""

    def call(*arguments):
        with context():
            return function(*arguments)

    return call


def measured(name, rows, classes, seconds, turns):
    """A record for the value, and one for the value with its gradient."""
    rng = np.random.default_rng(0)
    x = jnp.float32(3 * rng.normal(size=(rows, classes)))
    g = jnp.float32(rng.normal(size=jax.eval_shape(FUNCTIONS[name], x).shape))
    for what, function, arguments in (
        ("value", FUNCTIONS[name], (x,)),
        ("gradient", with_gradient(FUNCTIONS[name]), (x, g)),
    ):
        both = {mode: within(context, function) for mode, context in MODES.items()}
        traces = [{m: compiling.once(f, arguments)[0] for m, f in both.items()} for _ in range(turns)]
        lowered = {mode: jax.jit(f).lower(*arguments) for mode, f in both.items()}
        compiled = {mode: low.compile() for mode, low in lowered.items()}
        calls = {mode: functools.partial(program, *arguments) for mode, program in compiled.items()}
        times = timing.seconds_each(calls, seconds)
        record = {"function": name, "rows": rows, "classes": classes, "what": what}
        for mode, context in MODES.items():
            record[f"trace, {mode}"] = float(np.median([turn[mode] for turn in traces]))
            record[f"operations, {mode}"] = len(re.findall(r"= \"?stablehlo\.", lowered[mode].as_text()))
            record[f"temporaries, {mode}"] = compiled[mode].memory_analysis().temp_size_in_bytes
            record[f"residuals, {mode}"] = residuals(within(context, FUNCTIONS[name]), x)
        yield record | timing.compared(times["forward"], times["reverse"])._asdict()


def line(r):
    kept = ("{} arrays, {} bytes".format(*r[f"residuals, {mode}"]) for mode in MODES)
    columns = (
        f"{r['function']:12}{r['rows']:6}{r['classes']:8}  {r['what']:10}",
        f"{r['peer']:11.3f}{r['ours']:11.3f}{r['ratio']:7.2f}  {r['low']:.2f}-{r['high']:<6.2f}",
        f"{r['operations, reverse']:6}{r['operations, forward']:6}",
        f"{r['trace, reverse']:8.1f}{r['trace, forward']:8.1f}",
        f"{r['temporaries, reverse'] / 1e6:9.2f}{r['temporaries, forward'] / 1e6:7.2f}  ",
        " / ".join(dict.fromkeys(kept)),
    )
    return "".join(columns)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks modes", description=__doc__)
    parser.add_argument("--sizes", nargs="*", default=SIZES, help="rows x classes")
    parser.add_argument("--seconds", type=float, default=2, help="for every line")
    parser.add_argument("--turns", type=int, default=7, help="traces for every line")
    options = parser.parse_args(arguments)
    print(json.dumps(timing.machine()))
    print(HEADER)
    records = []
    for size in options.sizes:
        for name in FUNCTIONS:
            for record in measured(name, *map(int, size.split("x")), options.seconds, options.turns):
                records.append(record)
                print(line(record), flush=True)
    return records
