"""``python -m tests.benchmarks compile``: the time to trace and compile programs, ours and the peer's.

Ours and the peer's program are traced and compiled again in turns; the results are medians in milliseconds.
The import of the package is timed in separate processes, after the import of JAX.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax
from tests.benchmarks import timing

HEADER = (
    f"{'program':32}{'rows':>6}{'classes':>8}{'trace':>9}{'peer':>8}{'compile':>9}{'peer':>8}{'ratio':>7}"
)
IMPORT = """
import time, jax, jax.numpy
start = time.process_time()
import jsoftmax
print(1e3 * (time.process_time() - start))
"""


def import_time(turns):
    """Milliseconds to import this package from bytecode, as all imports except the first."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder

        def once():
            command = [sys.executable, "-c", IMPORT]
            return float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

        once()
        return np.median([once() for _ in range(turns)])


def peer_head(hidden, weight, ids):
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ weight, ids)


def attention(softmax):
    """Twelve layers of causal attention."""

    def layers(x, scale):
        mask = jnp.tril(jnp.ones((x.shape[0],) * 2, bool))
        for _ in range(12):
            x = softmax(x @ x.T * scale, where=mask) @ x
        return x

    return layers


PAIRS = {
    "softmax": (jsoftmax.softmax, jax.nn.softmax, "x"),
    "log_softmax": (jsoftmax.log_softmax, jax.nn.log_softmax, "x"),
    "logsumexp": (
        functools.partial(jsoftmax.logsumexp, axis=-1),
        functools.partial(jax.nn.logsumexp, axis=-1),
        "x",
    ),
    "cross_entropy": (jsoftmax.cross_entropy, optax.softmax_cross_entropy_with_integer_labels, "x ids"),
    "linear_cross_entropy": (jsoftmax.linear_cross_entropy, peer_head, "hidden weight ids"),
    "twelve layers of attention": (attention(jsoftmax.softmax), attention(jax.nn.softmax), "hidden number"),
}


def with_gradient(function):
    return jax.value_and_grad(lambda *arguments: jnp.mean(function(*arguments)))


def once(function, arguments):
    """Milliseconds to trace and to compile a program once."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(lambda *a: function(*a)).lower(*arguments)
    traced = time.perf_counter()
    lowered.compile()
    return 1e3 * (traced - start), 1e3 * (time.perf_counter() - traced)


def measured(rows, classes, turns):
    shapes = {
        "x": (rows, classes),
        "ids": (rows,),
        "hidden": (rows, 64),
        "weight": (64, classes),
        "number": (),
    }
    for name, (ours, peer, names) in PAIRS.items():
        arguments = [
            jax.ShapeDtypeStruct(shapes[n], jnp.int32 if n == "ids" else jnp.float32) for n in names.split()
        ]
        for suffix, wrap in (("", lambda f: f), (", gradient", with_gradient)):
            both = [wrap(f) for f in (ours, peer)]
            times = np.median([[once(f, arguments) for f in both] for _ in range(turns)], axis=0)
            (trace, build), (peer_trace, peer_build) = times.tolist()
            yield {
                "program": name + suffix,
                "rows": rows,
                "classes": classes,
                "trace": trace,
                "trace, peer": peer_trace,
                "compile": build,
                "compile, peer": peer_build,
                "ratio": (trace + build) / (peer_trace + peer_build),
            }


def line(r):
    return (
        f"{r['program']:32}{r['rows']:6}{r['classes']:8}{r['trace']:9.1f}{r['trace, peer']:8.1f}"
        f"{r['compile']:9.1f}{r['compile, peer']:8.1f}{r['ratio']:7.2f}"
    )


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks compile", description=__doc__)
    parser.add_argument("--sizes", nargs="*", default=["16x10", "4096x1000"], help="rows x classes")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args(arguments)
    print(json.dumps(timing.machine()))
    print(f"import jsoftmax, after jax: {import_time(options.turns):.0f} ms of CPU time")
    print(HEADER)
    records = []
    for size in options.sizes:
        for record in measured(*map(int, size.split("x")), options.turns):
            records.append(record)
            print(line(record), flush=True)
    return records
