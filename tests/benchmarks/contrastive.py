"""``python -m tests.benchmarks contrastive``: the loss of N pairs with its gradients, beside dense forms.

The dense forms are optax's cross-entropy of the logits and of their transpose, as in CLIP's training code,
and two log-softmaxes in jnp. Beside them: the four products that ours takes, each of them of all logits.
"""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax
from tests.benchmarks import timing


def ours(a, b, t):
    return jsoftmax.contrastive_loss(a, b, temperature=t)


def in_optax(a, b, t):
    z, ids = a @ b.T / t, jnp.arange(len(a))
    loss = optax.softmax_cross_entropy_with_integer_labels
    return (loss(z, ids).mean() + loss(z.T, ids).mean()) / 2


def in_jnp(a, b, t):
    z = a @ b.T / t
    both = (jnp.diagonal(jax.nn.log_softmax(z, axis)) for axis in (0, 1))
    return -sum(log_p.mean() for log_p in both) / 2


def features(pairs, size, sure):
    """Unit vectors; those of a pair are near each other if `sure`, as after training, else random."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, pairs, size))
    b = a + 0.1 * b if sure else b
    return [jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32) for x in (a, b)]


def products(a, b):
    """Calls of the four plain products."""
    logits, of_a, of_b = (jax.jit(f) for f in (lambda a, b: a @ b.T, jnp.matmul, lambda z, a: z.T @ a))
    z = logits(a, b)
    return lambda: (logits(a, b), logits(a, b), of_a(z, b), of_b(z, a))


def measured(pairs, size, sure, seconds, only_memory):
    given = *features(pairs, size, sure), jnp.float32(0.05)
    programs = {
        name: jax.jit(jax.value_and_grad(f, (0, 1, 2)))
        for name, f in (("ours", ours), ("optax", in_optax), ("jnp", in_jnp))
    }
    record = {"pairs": pairs, "features": size, "regime": "sure" if sure else "random"}
    record |= {f"MiB, {name}": timing.temporaries(f, given) / 2**20 for name, f in programs.items()}
    if only_memory:
        return record
    found = {name: f(*given) for name, f in programs.items()}
    record["value"] = [float(value) for value, _ in found.values()]
    record["apart"] = max(
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
        for a, b in zip(found["ours"][1], found["optax"][1], strict=True)
    )
    calls = {name: functools.partial(f, *given) for name, f in programs.items()}
    times = timing.seconds_each(calls | {"products": products(*given[:2])}, seconds, least=3)
    record |= {f"ms, {name}": float(np.median(t)) for name, t in times.items()}
    others = ("optax", "jnp", "products")
    return record | {f"over {name}": float(np.median(times["ours"] / times[name])) for name in others}


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks contrastive", description=__doc__)
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--memory", action="store_true", help="the temporaries alone: nothing is run")
    options = parser.parse_args(arguments)
    print(json.dumps(timing.machine()))
    records = []
    for sure in (False, True)[: 1 if options.memory else 2]:
        sizes = options.pairs, options.features
        records.append(measured(*sizes, sure, options.seconds, options.memory))
        print(json.dumps(records[-1]), flush=True)
    return records
