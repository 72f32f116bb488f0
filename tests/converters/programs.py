"""The programs to convert: every public function, JAX's or optax's counterpart, and the exact values."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax

SIZES = {"16 x 10": (16, 10), "512 x 1000": (512, 1000), "64 x 50257": (64, 50257)}
FEATURES = 32
# The first rows are one corner case each: they show what a converter loses. The other rows are ordinary.
CORNERS = ("dead class", "dead label", "no live class", "confident", "infinity", "NaN")


def batch(rows, classes):
    """Arguments by name, in float32 and int32."""
    rng = np.random.default_rng(0)
    x, other, targets = (rng.normal(size=(rows, classes)).astype(np.float32) for _ in range(3))
    labels = rng.integers(1, classes, rows).astype(np.int32)
    x[[0, 1], 0] = other[0, 0] = -np.inf
    labels[1] = 0
    x[2] = -np.inf
    x[3] = 0
    x[3, labels[3]] = 40
    x[4, 1] = np.inf
    x[5, 1] = np.nan
    targets = np.exp(log_softmax(targets)).astype(np.float32)
    targets[0, 0] = 0
    targets[3] = np.arange(classes) == labels[3]
    hidden, weight = rng.normal(size=(rows, FEATURES)), rng.normal(size=(FEATURES, classes)) / FEATURES**0.5
    floats = {"hidden": hidden.astype(np.float32), "weight": weight.astype(np.float32)}
    return floats | {"x": x, "other": other, "labels": labels, "targets": targets}


# The results by the contract, in float64.


def live(x):
    """Whether a row has a live class."""
    return np.max(x, -1) != -np.inf


def terms(x):
    """x − max, and log1p(rest)."""
    x = x.astype(np.float64)
    top = np.max(x, -1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shifted = np.where(live(x)[..., None], x - top, -np.inf)
    others = np.where(np.arange(x.shape[-1]) == np.argmax(x, -1)[..., None], 0, np.exp(shifted))
    log1p = np.log1p(np.sum(others, -1, keepdims=True))
    # With an infinity, the others are -inf, not NaN: the row is NaN.
    wrong = ~np.isfinite(top) & live(x)[..., None]
    return np.where(wrong, np.nan, shifted), np.where(wrong, np.nan, log1p)


def log_softmax(x):
    shifted, log1p = terms(x)
    return shifted - log1p


def softmax(x):
    return np.exp(log_softmax(x))


def logsumexp(x):
    top = np.max(x.astype(np.float64), -1)
    return np.where(np.isfinite(top), top + terms(x)[1][..., 0], top)


def summed(weights, values):
    """The sum of products, where 0 times infinity is 0."""
    with np.errstate(invalid="ignore"):
        return np.sum(np.where(weights == 0, 0, weights * values), -1)


def id_loss(x, labels):
    is_label = np.arange(x.shape[-1]) == labels[..., None]
    picked = summed(is_label, log_softmax(x))
    return np.where(live(x), np.where(is_label.any(-1), -picked, np.nan), 0)


def target_loss(x, targets):
    return np.where(live(x), summed(targets, -log_softmax(x)), 0)


def entropy(x):
    shifted, log1p = terms(x)
    return np.where(live(x), log1p[..., 0] + summed(softmax(x), -shifted), 0)


def kl_divergence(p, q):
    with np.errstate(invalid="ignore"):
        terms = summed(softmax(p), log_softmax(p) - log_softmax(q))
    return np.where(live(p) & live(q), terms, 0)


def js_divergence(p, q):
    mean = (softmax(p) + softmax(q)) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        halves = (summed(softmax(z), log_softmax(z) - np.log(mean)) / 2 for z in (p, q))
    return np.where(live(p) & live(q), sum(halves), 0)


def row_statistics(x, labels):
    normalizer = np.where(np.max(x, -1) == np.inf, np.nan, logsumexp(x))
    return normalizer, id_loss(x, labels), entropy(x), np.argmax(x, -1)


def of_product(function):
    return lambda hidden, weight, labels: function(
        hidden.astype(np.float64) @ weight.astype(np.float64), labels
    )


# The programs that one writes with JAX and optax.

id_loss_of_optax = optax.softmax_cross_entropy_with_integer_labels


def entropy_of_jax(x):
    return -jnp.sum(jax.nn.softmax(x) * jax.nn.log_softmax(x), -1)


def statistics_of_jax(x, labels):
    nll = id_loss_of_optax(x, labels)
    return jax.nn.logsumexp(x, -1), nll, entropy_of_jax(x), jnp.argmax(x, -1).astype(jnp.int32)


class Program(NamedTuple):
    ours: Callable
    twin: Callable | None
    exact: Callable
    arguments: tuple[str, ...]
    corners: bool = True


ROW, IDS, TARGETS = ("x",), ("x", "labels"), ("x", "targets")
PAIR, HEAD = ("other", "x"), ("hidden", "weight", "labels")

PROGRAMS = {
    "softmax": Program(jsoftmax.softmax, jax.nn.softmax, softmax, ROW),
    "log_softmax": Program(jsoftmax.log_softmax, jax.nn.log_softmax, log_softmax, ROW),
    "logsumexp": Program(
        lambda x: jsoftmax.logsumexp(x, -1), lambda x: jax.nn.logsumexp(x, -1), logsumexp, ROW
    ),
    "cross_entropy, ids": Program(jsoftmax.cross_entropy, id_loss_of_optax, id_loss, IDS),
    "cross_entropy, targets": Program(
        jsoftmax.cross_entropy, optax.safe_softmax_cross_entropy, target_loss, TARGETS
    ),
    "softmax_cross_entropy": Program(
        jsoftmax.softmax_cross_entropy, optax.softmax_cross_entropy, target_loss, TARGETS
    ),
    "softmax_cross_entropy_with_integer_labels": Program(
        jsoftmax.softmax_cross_entropy_with_integer_labels, id_loss_of_optax, id_loss, IDS
    ),
    "linear_cross_entropy": Program(
        jsoftmax.linear_cross_entropy,
        lambda h, w, y: id_loss_of_optax(h @ w, y),
        of_product(id_loss),
        HEAD,
        corners=False,
    ),
    "row_statistics": Program(jsoftmax.row_statistics, statistics_of_jax, row_statistics, IDS),
    "linear_row_statistics": Program(
        jsoftmax.linear_row_statistics,
        lambda h, w, y: statistics_of_jax(h @ w, y),
        of_product(row_statistics),
        HEAD,
        corners=False,
    ),
    "entropy": Program(jsoftmax.entropy, entropy_of_jax, entropy, ROW),
    "kl_divergence": Program(
        jsoftmax.kl_divergence,
        lambda p, q: optax.losses.kl_divergence_with_log_targets(
            jax.nn.log_softmax(q), jax.nn.log_softmax(p)
        ),
        kl_divergence,
        PAIR,
    ),
    "js_divergence": Program(jsoftmax.js_divergence, None, js_divergence, PAIR),
    "log_prob": Program(
        jsoftmax.log_prob,
        lambda x, y: jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], -1)[:, 0],
        lambda x, y: -id_loss(x, y),
        IDS,
    ),
}
