"""The accuracy of jsoftmax and of its peers, function by function, in regimes where they differ.

The error is the largest in float32 ulp of the exact value, which NumPy computes in float64. A loss or a
gradient without a correct digit has an error of at least 2²³ ulp.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import jsoftmax
from jsoftmax._cli import definitions

Reals = NDArray[np.floating[Any]]
Program = Callable[[Any, Any], Any]  # of logits and labels

ROWS = 16
TINY = np.finfo(np.float32).tiny


def peer_loss() -> tuple[str, Program]:
    """Optax's loss with integer labels if optax is installed, else the same loss by jax.nn."""
    try:
        import optax
    except ModuleNotFoundError:
        return "jax.nn", lambda x, y: -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1)[:, 0]
    return "jax.nn, optax", optax.softmax_cross_entropy_with_integer_labels


def table() -> Iterator[str]:
    """One line for each regime: for every function, our error / the peer's error."""
    name, loss = peer_loss()
    programs = {function: tuple(map(jax.jit, pair)) for function, pair in _pairs(loss).items()}
    yield f"Largest error in ulp: jsoftmax / {name}"
    yield f"{'':26}" + "".join(f"{function:>18}" for function in programs)
    for regime, logits in regimes():
        labels = logits.argmax(axis=-1)
        exact = _exact(logits.astype(np.float64), labels)
        line = f"{regime:26}"
        for function, pair in programs.items():
            a, b = (_largest_error(program(logits, labels), exact[function]) for program in pair)
            line += f"{f'{a:.2g} / {b:.2g}':>18}"
        yield line


def _pairs(loss: Program) -> dict[str, tuple[Program, Program]]:
    """For every function, our program and the peer's."""
    return {
        "softmax": (lambda x, y: jsoftmax.softmax(x), lambda x, y: jax.nn.softmax(x)),
        "log_softmax": (lambda x, y: jsoftmax.log_softmax(x), lambda x, y: jax.nn.log_softmax(x)),
        "logsumexp": (lambda x, y: jsoftmax.logsumexp(x, -1), lambda x, y: jax.nn.logsumexp(x, -1)),
        "loss": (jsoftmax.cross_entropy, loss),
        "its gradient": (
            jax.grad(lambda x, y: jsoftmax.cross_entropy(x, y, reduction="sum")),
            jax.grad(lambda x, y: loss(x, y).sum()),
        ),
    }


def regimes() -> Iterator[tuple[str, Reals]]:
    """Seeded rows of logits by regime; the label of a row is its largest class."""
    random = np.random.default_rng(0)
    for classes in (2, 100, 50257):
        yield f"N(0, 3^2), {classes} classes", _float32(3 * random.normal(size=(ROWS, classes)))
    yield "N(0, 30^2)", _float32(30 * random.normal(size=(ROWS, 100)))
    for lead in (15, 30, 80):
        logits = random.normal(size=(ROWS, 100))
        logits[:, 7] = logits.max(axis=-1) + lead
        yield f"one class ahead by {lead}", _float32(logits)
    for offset in (1e4, 1e6):
        yield f"N(0, 1) + {offset:.0e}", _float32(offset + random.normal(size=(ROWS, 100)))


def _float32(logits: Reals) -> Reals:
    return logits.astype(np.float32)


def _exact(x: Reals, labels: Any) -> dict[str, Reals]:
    p, log_p = definitions.softmax(np, x), definitions.log_softmax(np, x)
    at_label = np.arange(x.shape[-1]) == labels[:, None]
    return {
        "softmax": p,
        "log_softmax": log_p,
        "logsumexp": definitions.logsumexp(np, x),
        "loss": -log_p[at_label],
        # At the label, the largest class, p - 1 without cancellation: minus the sum of the other p.
        "its gradient": np.where(at_label, -np.where(at_label, 0, p).sum(axis=-1, keepdims=True), p),
    }


def _largest_error(ours: Any, exact: Reals) -> float:
    """The largest error in ulp of the exact value, over the exact values that are normal numbers."""
    ulp = np.spacing(np.maximum(abs(exact), TINY).astype(np.float32)).astype(np.float64)
    off = abs(np.asarray(ours, np.float64) - exact) / ulp
    return float(np.where(abs(exact) >= TINY, off, 0).max())
