"""The linear head, optax on full logits, jax-cce, tokamax and torch; plain products are the limit."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax
from tests import shapes
from tests.benchmarks import timing, trained
from tests.benchmarks.dense import torch

try:
    import jax_cce
except ImportError:
    jax_cce = None
try:
    import tokamax
except ImportError:
    tokamax = None


class Head(NamedTuple):
    """The sizes of a head."""

    rows: int
    features: int
    classes: int
    trained: bool = False

    def arrays(self):
        if self.trained:
            h, w, y = trained.arrays(self.rows, self.features, self.classes)
            return jnp.asarray(h), jnp.asarray(w), jnp.asarray(y, jnp.int32)
        rng = np.random.default_rng(0)
        h, w = (
            jnp.asarray(rng.normal(size=shape, scale=scale), jnp.float32)
            for shape, scale in (
                ((self.rows, self.features), 1),
                ((self.features, self.classes), self.features**-0.5),
            )
        )
        return h, w, jnp.asarray(rng.integers(0, self.classes, self.rows), jnp.int32)


def ours(h, w, y):
    return jsoftmax.linear_cross_entropy(h, w, y, reduction="mean")


def on_full_logits(h, w, y):
    return optax.softmax_cross_entropy_with_integer_labels(h @ w, y).mean()


def sampled(h, w, y):
    options = {"gradient": "sampled", "key": jax.random.key(0)}
    return jsoftmax.linear_cross_entropy(h, w, y, reduction="mean", **options)


LOSSES = {"ours": ours, "ours, sampled": sampled, "optax": on_full_logits}
if jax_cce is not None:
    LOSSES["jax-cce"] = lambda h, w, y: jax_cce.linear_cross_entropy(h, w.T, y)
if tokamax is not None:
    for name in ("xla", "chunked_xla"):
        LOSSES[f"tokamax {name}"] = functools.partial(
            lambda h, w, y, implementation: tokamax.linear_softmax_cross_entropy_loss(
                h, y, w, reduction="mean", implementation=implementation
            ),
            implementation=name,
        )


def in_torch(gradient):
    """Torch's loss on full logits, and its linear loss if torch has it."""

    def call(loss, h, w, y):
        h, w = (a.detach().requires_grad_(gradient) for a in (h, w))
        with torch.set_grad_enabled(gradient):
            value = loss(h, w, y)
        return torch.autograd.grad(value, (h, w)) if gradient else value

    functional = torch.nn.functional
    losses = {"torch": lambda h, w, y: functional.cross_entropy(h @ w, y)}
    if hasattr(functional, "linear_cross_entropy"):
        losses["torch linear"] = lambda h, w, y: functional.linear_cross_entropy(h, w.T, y)
    return {name: functools.partial(call, loss) for name, loss in losses.items()}


def products(h, w, y):
    """Calls of the plain products: the logits, and both gradients."""
    x = jax.jit(jnp.matmul)(h, w)
    forward = jax.jit(jnp.matmul)
    of_hidden = jax.jit(lambda x, w: x @ w.T)
    of_weight = jax.jit(lambda h, x: h.T @ x)
    return {
        "one product": lambda: forward(h, w),
        "three products": lambda: (forward(h, w), of_hidden(x, w), of_weight(h, x)),
    }


def exact(h, w, y):
    """The loss and both gradients in float64."""
    h, w, y = (np.asarray(a, np.float64 if a.ndim > 1 else np.int64) for a in (h, w, y))
    x = h @ w
    p = np.exp(x - x.max(1, keepdims=True))
    total = p.sum(1, keepdims=True)
    loss = np.mean(np.log(total[:, 0]) + x.max(1) - x[np.arange(len(y)), y])
    p /= total
    p[np.arange(len(y)), y] -= 1
    return loss, p @ w.T / len(y), h.T @ p / len(y)


def errors(loss, head):
    """The largest errors, relative to the largest magnitude, against float64, of a head with few rows."""
    arrays = head._replace(rows=min(head.rows, 64)).arrays()
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arrays)
    pairs = zip((value, *gradients), exact(*arrays), strict=True)
    return max(float(np.max(np.abs(np.asarray(g, np.float64) - w)) / np.max(np.abs(w))) for g, w in pairs)


def measured(head, seconds):
    """One record for the loss, one for the loss and both gradients: all times over those of the products."""
    arrays = head.arrays()
    for gradient in (False, True):
        programs = {
            name: jax.jit(jax.value_and_grad(loss, (0, 1)) if gradient else loss)
            for name, loss in LOSSES.items()
        }
        calls = {name: functools.partial(f, *arrays) for name, f in programs.items()}
        limit = "three products" if gradient else "one product"
        calls[limit] = products(*arrays)[limit]
        if torch is not None:
            h, w, y = (torch.from_numpy(np.array(a)) for a in arrays)
            calls |= {name: functools.partial(f, h, w, y.long()) for name, f in in_torch(gradient).items()}
        times = timing.seconds_each(calls, seconds)
        for name, t in times.items():
            low, ratio, high = np.quantile(t / times[limit], [0.25, 0.5, 0.75])
            record = head._asdict() | {"what": "loss and gradients" if gradient else "loss", "who": name}
            record |= {"model": shapes.model(head.classes), "ms": float(np.median(t))}
            record |= {"ratio": float(ratio), "low": float(low), "high": float(high)}
            record |= {"temporaries": None, "error": None}
            if name in LOSSES:
                record["temporaries"] = timing.temporaries(programs[name], arrays) / 2**20
                record["error"] = errors(LOSSES[name], head)
            yield record


HEADER = (
    f"{'what':20}{'rows':>6}{'D':>6}{'V':>8}  {'who':16}{'ms':>10}{'of limit':>10} {'quartiles':12}"
    f"{'temporaries MB':>15}{'error':>10}"
)


def line(r):
    temporaries = "" if r["temporaries"] is None else f"{r['temporaries']:15.1f}{r['error']:10.1e}"
    return (
        f"{r['what']:20}{r['rows']:6}{r['features']:6}{r['classes']:8}  {r['who']:16}{r['ms']:10.1f}"
        f"{r['ratio']:10.3f} {r['low']:5.3f}-{r['high']:<6.3f}{temporaries:25} {r['model']}"
    )
