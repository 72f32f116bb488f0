"""``python -m tests.benchmarks sampling``: draws and masks compared with JAX's, and a head's memory."""

import argparse

import jax
import jax.numpy as jnp

from jsoftmax import sampling
from tests.benchmarks import timing

KEY = jax.random.key(0)
DRAWS = ((64, 50257), (512, 1000))
MASK = (64, 128256)
HEAD = (4096, 512, 32768), (512, 8192)  # rows, features, classes; a block


def by_sorting(x, p=0.9):
    """Top-p as usually written: a sort, its cumulative sums, and the threshold that they give."""
    z = jnp.sort(x, -1)
    below = jnp.sum(jnp.cumsum(jax.nn.softmax(z, -1), -1) <= 1 - p, -1, keepdims=True)
    return x >= jnp.take_along_axis(z, jnp.minimum(below, x.shape[-1] - 1), -1)


def by_argsort(x, p=0.9):
    """Top-p that splits ties, as in vllm and transformers: a sort with indices, and a scatter."""
    order = jnp.argsort(x, -1, descending=True)
    q = jax.nn.softmax(jnp.take_along_axis(x, order, -1), -1)
    kept = jnp.cumsum(q, -1) - q < p
    return jnp.put_along_axis(jnp.zeros(x.shape, bool), order, kept, -1, inplace=False)


def pairs():
    for shape in DRAWS:
        x = jax.random.normal(KEY, shape)
        yield (
            "categorical",
            x,
            lambda x: sampling.categorical(KEY, x),
            lambda x: jax.random.categorical(KEY, x),
        )
    x = 3 * jax.random.normal(KEY, MASK)
    yield "top-p, sort", x, lambda x: sampling.keep_mask(x, top_p=0.9), by_sorting
    yield "top-p, argsort", x, lambda x: sampling.keep_mask(x, top_p=0.9), by_argsort


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks sampling", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3, help="for every row")
    options = parser.parse_args(arguments)
    print(timing.machine())
    print(
        f"{'function':18}{'rows':>6}{'classes':>8}{'ours ms':>9}{'peer ms':>9}{'ratio':>7}{'quartiles':>13}"
    )
    found = []
    for name, x, ours, peer in pairs():
        calls = {"ours": jax.jit(ours), "peer": jax.jit(peer)}
        calls = {who: lambda f=f, x=x: f(x) for who, f in calls.items()}
        times = timing.seconds_each(calls, options.seconds, least=3)
        t = timing.compared(times["ours"], times["peer"])
        rows, classes = x.shape
        print(
            f"{name:18}{rows:6}{classes:8}{t.ours:9.1f}{t.peer:9.1f}{t.ratio:7.2f}{t.low:7.2f}-{t.high:.2f}",
            flush=True,
        )
        found.append((name, x.shape, t))
    (rows, features, classes), block = HEAD
    shapes = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, features), (features, classes)))
    held = timing.temporaries(
        lambda h, w: sampling.linear_categorical(KEY, h, w, block_size=block), [*shapes]
    )
    print(f"linear_categorical of {rows} rows holds {held / (4 * block[0] * block[1]):.2f} blocks")
    return found


if __name__ == "__main__":
    main()
