"""``python -m tests.benchmarks contrastive``: the loss of N pairs with its gradients, beside dense forms.

The dense forms of the softmax loss are optax's cross-entropy of the logits and of their transpose, as in
CLIP's training code, and two log-softmaxes in jnp. Those of the sigmoid loss are optax's binary
cross-entropy, and log-sigmoids in jnp, as in open_clip and big_vision. Beside them: the products that ours
takes, four or three, each of them of all logits.
"""

import argparse
import functools
import json
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax
from tests.benchmarks import timing


class Loss(NamedTuple):
    """Ours and the dense forms, functions of the features and of some numbers."""

    forms: dict[str, Callable]
    numbers: tuple[float, ...]
    sweeps: int  # how often ours computes the logits


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


def our_sigmoid(a, b, t, bias):
    return jsoftmax.sigmoid_contrastive_loss(a, b, temperature=t, bias=bias)


def sigmoid_in_optax(a, b, t, bias):
    z = a @ b.T / t + bias
    return optax.sigmoid_binary_cross_entropy(z, jnp.eye(len(a))).sum(1).mean()


def sigmoid_in_jnp(a, b, t, bias):
    z = a @ b.T / t + bias
    return -jax.nn.log_sigmoid((2 * jnp.eye(len(a)) - 1) * z).sum(1).mean()


LOSSES = {
    "softmax": Loss({"ours": ours, "optax": in_optax, "jnp": in_jnp}, (0.05,), 2),
    "sigmoid": Loss({"ours": our_sigmoid, "optax": sigmoid_in_optax, "jnp": sigmoid_in_jnp}, (0.05, -10), 1),
}


def features(pairs, size, sure):
    """Unit vectors; those of a pair are near each other if `sure`, as after training, else random."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, pairs, size))
    b = a + 0.1 * b if sure else b
    return [jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32) for x in (a, b)]


def products(a, b, sweeps):
    """Calls of the plain products: as often that of the logits, and one for each gradient."""
    logits, of_a, of_b = (jax.jit(f) for f in (lambda a, b: a @ b.T, jnp.matmul, lambda z, a: z.T @ a))
    z = logits(a, b)
    return lambda: (*(logits(a, b) for _ in range(sweeps)), of_a(z, b), of_b(z, a))


def measured(loss, pairs, size, sure, seconds, only_memory):
    forms, numbers, sweeps = LOSSES[loss]
    given = *features(pairs, size, sure), *map(jnp.float32, numbers)
    wanted = tuple(range(len(given)))
    programs = {name: jax.jit(jax.value_and_grad(f, wanted)) for name, f in forms.items()}
    record = {"loss": loss, "pairs": pairs, "features": size, "regime": "sure" if sure else "random"}
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
    times = timing.seconds_each(calls | {"products": products(*given[:2], sweeps)}, seconds, least=3)
    record |= {f"ms, {name}": float(np.median(t)) for name, t in times.items()}
    others = ("optax", "jnp", "products")
    return record | {f"over {name}": float(np.median(times["ours"] / times[name])) for name in others}


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks contrastive", description=__doc__)
    parser.add_argument("--loss", choices=LOSSES, default="softmax")
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--memory", action="store_true", help="the temporaries alone: nothing is run")
    options = parser.parse_args(arguments)
    print(json.dumps(timing.machine()))
    records = []
    for sure in (False, True)[: 1 if options.memory else 2]:
        sizes = options.pairs, options.features
        records.append(measured(options.loss, *sizes, sure, options.seconds, options.memory))
        print(json.dumps(records[-1]), flush=True)
    return records
