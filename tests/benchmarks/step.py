"""``python -m tests.benchmarks step``: a training step of a small transformer, beside jax.nn and optax.

Four layers, a tied embedding, attention masked by `where`, Adam. Words follow Zipf's law, and the bias of the
logits is initialized with the logarithms of these frequencies.
"""

import argparse
import functools
import inspect
import json
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax
from tests.benchmarks import against, timing


class Model(NamedTuple):
    """A small transformer, its sizes, and those of its batch."""

    batch: int = 8
    length: int = 256
    features: int = 256
    heads: int = 8
    layers: int = 4
    classes: int = 32768

    @property
    def frequencies(self):
        ranks = 1 / (np.arange(self.classes) + 10.0)
        return ranks / ranks.sum()

    def parameters(self):
        rng, d = np.random.default_rng(0), self.features

        def normal(*shape):
            return jnp.asarray(rng.normal(size=shape, scale=shape[-2] ** -0.5), jnp.float32)

        shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
        layers = [{name: normal(*shape) for name, shape in shapes.items()} for _ in range(self.layers)]
        bias = jnp.log(jnp.asarray(self.frequencies, jnp.float32))
        return {"table": normal(self.classes, d) / 4, "bias": bias, "layers": layers}

    def words(self):
        shape = (self.batch, self.length + 1)
        drawn = np.random.default_rng(1).choice(self.classes, shape, p=self.frequencies)
        return jnp.asarray(drawn, jnp.int32)

    def hidden(self, softmax, parameters, words):
        def normalized(x):
            return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

        x = parameters["table"][words] * jnp.float32(self.features**0.5)
        causal = jnp.tril(jnp.ones((self.length, self.length), bool))[None, None]
        for layer in parameters["layers"]:
            parts = (normalized(x) @ layer["qkv"]).reshape(self.batch, self.length, 3, self.heads, -1)
            q, k, v = jnp.moveaxis(parts, 2, 0)
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * jnp.float32((self.features / self.heads) ** -0.5)
            p = softmax(scores, where=causal)
            x = x + jnp.einsum("bhqk,bkhd->bqhd", p, v).reshape(x.shape) @ layer["out"]
            x = x + jax.nn.gelu(normalized(x) @ layer["up"]) @ layer["down"]
        return normalized(x)


def _optax(h, table, bias, y):
    logits = h @ table.T + bias[None, None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def _dense(h, table, bias, y):
    return jsoftmax.cross_entropy(h @ table.T + bias[None, None], y, reduction="mean")


def _head(h, table, bias, y, **options):
    options |= {"vocab_axis": 0, "bias": bias, "reduction": "mean"}
    return jsoftmax.linear_cross_entropy(h, table, y, **options)


def _sampled(h, table, bias, y):
    return _head(h, table, bias, y, gradient="sampled", key=jax.random.key(0))


PEER = "jax.nn, optax"
PROGRAMS = {
    PEER: (jax.nn.softmax, _optax),
    "our softmax, dense loss": (jsoftmax.softmax, _dense),
    "our softmax, head": (jsoftmax.softmax, _head),
    "our softmax, sampled": (jsoftmax.softmax, _sampled),
}


def steps(model, programs):
    """Compiled steps, ``parameters, state, loss = step(parameters, state, words)``, and their arguments."""
    optimizer = optax.adam(1e-3)

    def step(softmax, loss, parameters, state, words):
        def of_words(parameters):
            h = model.hidden(softmax, parameters, words[:, :-1])
            return loss(h, parameters["table"], parameters["bias"], words[:, 1:])

        value, gradients = jax.value_and_grad(of_words)(parameters)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(parameters, updates), state, value

    parameters = model.parameters()
    arguments = parameters, optimizer.init(parameters), model.words()
    return {name: jax.jit(functools.partial(step, *both)) for name, both in programs.items()}, arguments


def measured(model, seconds, programs=None):
    """Yields a record per program: its time, relative to the peer's, and the MiB of its temporaries."""
    compiled, arguments = steps(model, programs or PROGRAMS)
    calls = {name: functools.partial(f, *arguments) for name, f in compiled.items()}
    losses = {name: float(call()[2]) for name, call in calls.items()}
    times = timing.seconds_each(calls, seconds)
    for name, t in times.items():
        low, ratio, high = np.quantile(t / times[PEER], [0.25, 0.5, 0.75])
        memory = timing.temporaries(compiled[name], arguments) / 2**20
        record = model._asdict() | {"who": name, "ms": float(np.median(t)), "loss": losses[name]}
        yield record | {
            "ratio": float(ratio),
            "low": float(low),
            "high": float(high),
            "temporaries": memory,
        }


HEADER = f"{'who':32}{'ms':>10}{'ratio':>8} {'quartiles':12}{'temporaries MB':>15}{'loss':>10}"


def line(r):
    return (
        f"{r['who']:32}{r['ms']:10.1f}{r['ratio']:8.3f} {r['low']:5.2f}-{r['high']:<6.2f}"
        f"{r['temporaries']:15.1f}{r['loss']:10.4f}"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks step", description=__doc__)
    for name, size in Model()._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--against", metavar="PATH", help="another checkout, beside this one")
    options = vars(parser.parse_args(arguments))
    seconds, path = options.pop("seconds"), options.pop("against")
    programs = dict(PROGRAMS)
    if path is not None:
        other = against.loaded(sys.modules[__name__], path)
        programs |= {f"against: {name}": both for name, both in other.PROGRAMS.items() if name != PEER}
        if "gradient" not in inspect.signature(other.jsoftmax.linear_cross_entropy).parameters:
            del programs["against: our softmax, sampled"]
    print(json.dumps(timing.machine()))
    print(HEADER)
    records = []
    for record in measured(Model(**options), seconds, programs):
        records.append(record)
        print(line(record), flush=True)
    return records
