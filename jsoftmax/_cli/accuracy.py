"""The accuracy of jsoftmax beside its peers, function by function, in the regimes where they part.

The largest error of a row in float32 ulp of the exact value, which is NumPy's in float64. A loss or a
gradient that is lost altogether is off by 2²³ ulp and more.
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
Pair = tuple[Callable[[Any], Any], Callable[[Any], Any]]

ROWS = 16
TINY = np.finfo(np.float32).tiny


def peer_loss() -> tuple[str, Callable[[Any, Any], Any]]:
    """Optax's integer-label loss where optax is installed, or the same of jax.nn."""
    try:
        import optax
    except ModuleNotFoundError:
        return "jax.nn", lambda x, y: -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1)[:, 0]
    return "jax.nn, optax", optax.softmax_cross_entropy_with_integer_labels


def table() -> Iterator[str]:
    """One line for each regime: for every function, the error of ours / of the peer."""
    name, loss = peer_loss()
    columns = ("softmax", "log_softmax", "logsumexp", "loss", "its gradient")
    yield f"Largest error in ulp: jsoftmax / {name}"
    yield f"{'':26}" + "".join(f"{column:>18}" for column in columns)
    for regime, logits in regimes():
        labels = logits.argmax(axis=-1)
        errors = _errors(logits, labels, loss)
        yield f"{regime:26}" + "".join(f"{f'{a:.2g} / {b:.2g}':>18}" for a, b in errors)


def regimes() -> Iterator[tuple[str, Reals]]:
    """Seeded rows, the label being the largest class."""
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


def _errors(logits: Reals, labels: Any, loss: Callable[[Any, Any], Any]) -> Iterator[tuple[float, float]]:
    x, y = logits.astype(np.float64), jnp.asarray(labels)
    at_label = np.arange(x.shape[-1]) == labels[:, None]
    p, log_p = definitions.softmax(np, x), definitions.log_softmax(np, x)
    lse = definitions.logsumexp(np, x)
    rows = np.arange(len(x))
    # p - 1 at the label, the largest class, without the cancellation: minus the others.
    gradient = np.where(at_label, -np.where(at_label, 0, p).sum(axis=-1, keepdims=True), p)
    pairs: tuple[tuple[Pair, Reals, Reals], ...] = (
        ((jsoftmax.softmax, jax.nn.softmax), p, p),
        ((jsoftmax.log_softmax, jax.nn.log_softmax), log_p, log_p),
        (
            (lambda x: jsoftmax.logsumexp(x, -1), lambda x: jax.nn.logsumexp(x, -1)),
            lse,
            lse,
        ),
        (
            (lambda x: jsoftmax.cross_entropy(x, y), lambda x: loss(x, y)),
            -log_p[rows, labels],
            log_p[rows, labels],
        ),
        (
            (
                jax.grad(lambda x: jsoftmax.cross_entropy(x, y, reduction="sum")),
                jax.grad(lambda x: loss(x, y).sum()),
            ),
            gradient,
            gradient,
        ),
    )
    for functions, exact, size in pairs:
        ulp = np.spacing(np.maximum(abs(size), TINY).astype(np.float32)).astype(np.float64)
        normal = abs(exact) >= TINY
        ours, peer = (np.asarray(jax.jit(f)(logits), np.float64) for f in functions)
        a, b = (float(np.where(normal, abs(out - exact) / ulp, 0).max()) for out in (ours, peer))
        yield a, b
