"""``python -m tests.benchmarks distillation``: two heads beside the same in jnp, and the products they need.

The teacher is frozen: two products for the logits, two for the gradients of the student.
"""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax
from tests.benchmarks import timing


def kl_in_jnp(h, w, g, v):
    p, q = jax.nn.log_softmax(h @ w), jax.nn.log_softmax(g @ v)
    return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1))


def js_in_jnp(h, w, g, v):
    p, q = jax.nn.log_softmax(h @ w), jax.nn.log_softmax(g @ v)
    m = jnp.log((jnp.exp(p) + jnp.exp(q)) / 2)
    return jnp.mean(jnp.sum(jnp.exp(p) * (p - m) + jnp.exp(q) * (q - m), -1)) / 2


PAIRS = {
    "KL": (functools.partial(jsoftmax.linear_kl_divergence, reduction="mean"), kl_in_jnp),
    "JS": (functools.partial(jsoftmax.linear_js_divergence, reduction="mean"), js_in_jnp),
}


def arrays(rows, features, classes):
    rng = np.random.default_rng(0)
    sizes = ((rows, features), 1), ((features, classes), features**-0.5)
    return [jnp.asarray(rng.normal(size=s, scale=scale), jnp.float32) for s, scale in (*sizes, *sizes)]


def products(h, w, g, v):
    """Calls of the four plain products."""
    logits, of_hidden, of_weight = (
        jax.jit(f) for f in (jnp.matmul, lambda x, v: x @ v.T, lambda g, x: g.T @ x)
    )
    x = logits(g, v)
    return lambda: (logits(h, w), logits(g, v), of_hidden(x, v), of_weight(g, x))


def measured(name, head, seconds, only_memory):
    given = arrays(*head)
    programs = {
        who: jax.jit(jax.value_and_grad(f, (2, 3)))
        for who, f in zip(("ours", "jnp"), PAIRS[name], strict=True)
    }
    record = {"what": name, "head": head}
    record |= {f"MiB, {who}": timing.temporaries(f, given) / 2**20 for who, f in programs.items()}
    if only_memory:
        return record
    values, gradients = zip(*(f(*given) for f in programs.values()), strict=True)
    record["value"] = [float(v) for v in values]
    record["apart"] = max(
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in zip(*gradients, strict=True)
    )
    calls = {who: functools.partial(f, *given) for who, f in programs.items()} | {
        "products": products(*given)
    }
    times = timing.seconds_each(calls, seconds, least=3)
    record |= {f"ms, {who}": float(np.median(t)) for who, t in times.items()}
    record |= {f"over {who}": float(np.median(times["ours"] / times[who])) for who in ("products", "jnp")}
    return record


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks distillation", description=__doc__)
    parser.add_argument("--head", type=int, nargs=3, default=(4096, 512, 50257), metavar=("B", "D", "V"))
    parser.add_argument("--only", nargs="*", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--memory", action="store_true", help="the temporaries alone: nothing is run")
    options = parser.parse_args(arguments)
    print(json.dumps(timing.machine()))
    records = []
    for name in options.only:
        records.append(measured(name, tuple(options.head), options.seconds, options.memory))
        print(json.dumps(records[-1]), flush=True)
    return records
