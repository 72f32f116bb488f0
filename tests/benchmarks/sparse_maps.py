"""``python -m tests.benchmarks sparse_maps``: sparsemax and entmax beside the forms with a sort, in jnp.

Each with its gradient too, and with the largest error of a probability against float64.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax
from tests.benchmarks import timing

SHAPES = ((512, 1000), (64, 50257))


def sorted_sparsemax(x):
    """Martins & Astudillo's algorithm: the support is a prefix of the sorted row."""
    z = -jnp.sort(-x, -1)
    k = jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    sums = jnp.cumsum(z, -1)
    size = jnp.sum(1 + k * z > sums, -1, keepdims=True)
    return jnp.maximum(x - (jnp.take_along_axis(sums, size - 1, -1) - 1) / size.astype(x.dtype), 0)


def sorted_entmax15(x):
    """Peters, Niculae & Martins's algorithm, with the mean and the variance of each prefix."""
    x = (x - jnp.max(x, -1, keepdims=True)) / 2
    z = -jnp.sort(-x, -1)
    k = jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    mean, squares = jnp.cumsum(z, -1) / k, jnp.cumsum(z * z, -1) / k
    tau = mean - jnp.sqrt(jnp.maximum(1 / k - (squares - mean * mean), 0))
    size = jnp.sum(tau <= z, -1, keepdims=True)
    return jnp.maximum(x - jnp.take_along_axis(tau, size - 1, -1), 0) ** 2


def bisected_entmax(x, alpha=1.3, steps=50):
    """As in the package entmax: 50 bisections, then a division by the sum."""
    x = (alpha - 1) * (x - jnp.max(x, -1, keepdims=True))
    low = jnp.full_like(x[:, :1], -1)
    width = 1 - x.shape[-1] ** (1 - alpha)

    def powers(tau):
        return jnp.maximum(x - tau, 0) ** (1 / (alpha - 1))

    def halved(i, low):
        at = low + width / 2.0 ** (i + 1)
        return jnp.where(jnp.sum(powers(at), -1, keepdims=True) >= 1, at, low)

    p = powers(jax.lax.fori_loop(0, steps, halved, low))
    return p / jnp.sum(p, -1, keepdims=True)


PAIRS = {
    "sparsemax": (jsoftmax.sparsemax, sorted_sparsemax),
    "entmax15": (jsoftmax.entmax15, sorted_entmax15),
    "entmax": (lambda x: jsoftmax.entmax(x, jnp.asarray(1.3, x.dtype)), bisected_entmax),
}


def with_gradient(function):
    def both(x, g):
        p, pull = jax.vjp(function, x)
        return p, pull(g)[0]

    return both


def error(p, name, x):
    """The largest error of a probability: against the peer's form in float64."""
    with jax.enable_x64(True):
        exact = PAIRS[name][1](jnp.asarray(np.asarray(x, np.float64)))
        return float(jnp.max(jnp.abs(exact - jnp.asarray(p, jnp.float64))))


def measured(name, shape, what, seconds):
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(1 + (what == "gradient"))]
    forms = [with_gradient(f) if what == "gradient" else f for f in PAIRS[name]]
    if name == "entmax" and what == "gradient":
        forms = forms[:1]  # autodiff of the bisection is not the derivative
    programs = dict(zip(("ours", "peer"), map(jax.jit, forms), strict=False))
    times = timing.seconds_each(
        {who: lambda f=f: f(*arrays) for who, f in programs.items()}, seconds, least=3
    )
    record = {"function": name, "what": what, "shape": shape}
    for who, f in programs.items():
        record[f"ms, {who}"] = float(np.median(times[who]))
        record[f"MiB, {who}"] = timing.temporaries(f, arrays) / 2**20
        if what == "value":
            record[f"error, {who}"] = error(f(*arrays), name, arrays[0])
    return record


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks sparse_maps", description=__doc__)
    parser.add_argument("--shape", type=int, nargs=2, metavar=("ROWS", "CLASSES"), help="this shape alone")
    parser.add_argument("--only", nargs="*", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--seconds", type=float, default=3, help="for every line")
    options = parser.parse_args(arguments)
    print(json.dumps(timing.machine()))
    records = []
    for shape in (tuple(options.shape),) if options.shape else SHAPES:
        for name in options.only:
            for what in ("value", "gradient"):
                records.append(measured(name, shape, what, options.seconds))
                print(json.dumps(records[-1]), flush=True)
    return records
