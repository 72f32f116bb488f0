"""``python -m tests.benchmarks segments``: softmax over segments beside jraph's formula, time and error.

jraph's formula is the plain one: `jax.ops.segment_max`, exponentials, and `jax.ops.segment_sum`. The sizes of
the segments have a heavy tail, as the degrees of a graph's nodes: a few have a large part of all entries.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax
from tests.benchmarks import timing

# Entries, segments, further axes (the heads of an attention), dtype, and whether the ids are sorted.
CELLS = (
    (100_000, 1_000, (), "float32", False),
    (1_000_000, 1_000, (), "float32", False),
    (1_000_000, 1_000, (), "float32", True),
    (1_000_000, 100_000, (), "float32", False),
    (1_000_000, 100_000, (), "float32", True),
    (125_000, 10_000, (8,), "float32", False),
    (125_000, 10_000, (8,), "float32", True),
    (1_000_000, 1_000, (), "bfloat16", False),
    (1_000_000, 1, (), "float32", True),
)


def jraph_softmax(x, ids, count, **options):
    """jraph 0.0.6, `segment_softmax`."""
    top = jax.ops.segment_max(x, ids, count, **options)
    terms = jnp.exp(x - top[ids])
    return terms / jax.ops.segment_sum(terms, ids, count, **options)[ids]


def plain_log_softmax(x, ids, count, **options):
    top = jax.ops.segment_max(x, ids, count, **options)
    u = x - top[ids]
    return u - jnp.log(jax.ops.segment_sum(jnp.exp(u), ids, count, **options))[ids]


FUNCTIONS = {
    "softmax": (jsoftmax.segment_softmax, jraph_softmax),
    "log_softmax": (jsoftmax.segment_log_softmax, plain_log_softmax),
}


def arrays(entries, count, further, dtype, is_sorted):
    """Logits, ids and cotangents."""
    rng = np.random.default_rng(0)
    ids = (count * rng.random(entries) ** 4).astype(np.int32)
    ids = np.sort(ids) if is_sorted else ids
    x, g = (rng.normal(size=(entries, *further)) for _ in range(2))
    return jnp.asarray(3 * x, dtype), jnp.asarray(ids), jnp.asarray(g, dtype)


def error(p, ids, count):
    """The largest difference from 1 of the sum of a segment, in units of float32's eps."""
    sums = np.zeros((count, *p.shape[1:]))
    np.add.at(sums, np.asarray(ids), np.asarray(p, np.float64))
    return float(np.max(np.abs(np.where(sums == 0, 1, sums) - 1)) / np.finfo(np.float32).eps)


def measured(cell, name, seconds):
    x, ids, g = arrays(*cell)
    options = {"indices_are_sorted": cell[-1]}
    record = {"function": name, "cell": cell}
    values = [jax.jit(lambda x, ids, f=f: f(x, ids, cell[1], **options)) for f in FUNCTIONS[name]]

    def with_gradient(f):
        def call(x, ids):
            out, pull = jax.vjp(lambda x: f(x, ids), x)
            return out, pull(g)

        return jax.jit(call)

    for what, (ours, peer) in (("value", values), ("gradient", map(with_gradient, values))):
        times = timing.seconds_each(
            {"ours": lambda f=ours: f(x, ids), "peer": lambda f=peer: f(x, ids)}, seconds
        )
        record[what] = timing.compared(times["ours"], times["peer"])
    probabilities = (f(x, ids) if name == "softmax" else jnp.exp(f(x, ids)) for f in values)
    record["errors"] = [error(p, ids, cell[1]) for p in probabilities]
    return record


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks segments", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2, help="for every column")
    parser.add_argument("--cell", type=int, nargs=2, metavar=("N", "S"), help="N entries in S segments alone")
    options = parser.parse_args(arguments)
    cells = [(*options.cell, (), "float32", False)] if options.cell else CELLS
    print(timing.machine())
    print(
        f"{'function':12}{'entries':>9}{'segments':>9} {'axes':6}{'dtype':9} {'ids':9}"
        f"{'ours ms':>8}{'ratio':>6}{'with gradient':>15}{'ratio':>6} {'errors of sums, eps':20}"
    )
    records = []
    for cell in cells:
        for name in FUNCTIONS:
            r = measured(cell, name, options.seconds)
            entries, count, further, dtype, is_sorted = cell
            print(
                f"{name:12}{entries:9}{count:9} {further!s:6}{dtype:9} {'sorted' if is_sorted else 'any':9}"
                f"{r['value'].ours:8.1f}{r['value'].ratio:6.2f}{r['gradient'].ours:15.1f}"
                f"{r['gradient'].ratio:6.2f} {r['errors'][0]:8.1f}{r['errors'][1]:12.1f}",
                flush=True,
            )
            records.append(r)
    return records


if __name__ == "__main__":
    main()
