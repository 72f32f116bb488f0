"""The programs to convert: every public function, JAX's or optax's counterpart, and the exact values."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax

SIZES = {"16 x 10": (16, 10), "512 x 1000": (512, 1000), "64 x 50257": (64, 50257)}
FEATURES, TEMPERATURE, BIAS, LARGEST = 32, 0.5, -2.0, 3
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
    floats |= {"other features": rng.normal(size=(rows, FEATURES)).astype(np.float32)}
    shares, segments = rng.random((rows, classes)).astype(np.float32), np.zeros(classes, np.int32)
    floats |= {"other weight": (rng.normal(size=(FEATURES, classes)) / FEATURES**0.5).astype(np.float32)}
    few = 1 + np.argsort(rng.random((rows, classes - 1)), -1)[:, :LARGEST]  # no class is given twice
    floats |= {"log-shares": np.log(rng.dirichlet(np.ones(LARGEST + 1), rows)[:, 1:]).astype(np.float32)}
    return floats | {
        "few": few.astype(np.int32),
        "x": x,
        "other": other,
        "labels": labels,
        "targets": targets,
        "shares": shares,
        "segments": segments,
    }


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


def sparse_kl_divergence(few, log_shares, x):
    """From the targets of a few classes, with all other classes as one event."""
    t, is_one = np.exp(log_shares.astype(np.float64)), np.zeros(x.shape, bool)
    np.put_along_axis(is_one, few, True, -1)
    with np.errstate(invalid="ignore"):
        tail = 1 - np.sum(t, -1)
        terms = summed(t, np.log(t) - np.take_along_axis(log_softmax(x), few, -1))
        found = terms + tail * (np.log(tail) - logsumexp(np.where(is_one, -np.inf, log_softmax(x))))
    return np.where(live(x), found, 0)


def row_statistics(x, labels):
    normalizer = np.where(np.max(x, -1) == np.inf, np.nan, logsumexp(x))
    return normalizer, id_loss(x, labels), entropy(x), np.argmax(x, -1)


def log_odds(x, labels):
    """The logit of the label minus the log-sum-exp of the others."""
    is_label = np.arange(x.shape[-1]) == labels[..., None]
    own = np.where(is_label, x, 0).sum(-1, dtype=np.float64)
    others = np.where(is_label, -np.inf, x)
    wrong = ~np.isfinite(np.max(x, -1)) & live(x)
    with np.errstate(invalid="ignore"):
        odds = np.where(live(x), own - logsumexp(others), 0)
    return np.where(wrong | ~is_label.any(-1), np.nan, odds)


def focal_loss(x, labels):
    n = id_loss(x, labels)
    return -np.expm1(-n) * n


def poly_loss(x, labels):
    n = id_loss(x, labels)
    return n - np.expm1(-n)


def softplus(x):
    with np.errstate(invalid="ignore"):
        return np.logaddexp(0, x.astype(np.float64))


def binary_loss(x, shares):
    return summed(np.stack([shares, 1 - shares], -1), np.stack([softplus(-x), softplus(x)], -1))


def entmax(alpha):
    """By bisection for the threshold; a row with an infinity or a NaN is NaN, and 0 without a live class."""

    def of(x):
        shifted, beta = terms(x)[0], alpha - 1
        u = np.where(np.isnan(shifted), 0, beta * shifted)
        low, high = (np.full((len(x), 1), edge, np.float64) for edge in (0, 1))
        for _ in range(60):
            middle = (low + high) / 2
            few = np.sum(np.maximum(u + middle, 0) ** (1 / beta), -1, keepdims=True) < 1
            low, high = np.where(few, middle, low), np.where(few, high, middle)
        return np.where(np.isnan(shifted), np.nan, np.maximum(u + high, 0) ** (1 / beta))

    return of


def next_to_one(function):
    """1 + p, whose relative error is the absolute error of p: at the edge of the support, p has no other."""
    return lambda *arguments: 1 + function(*arguments)


def entmax_loss(alpha):
    """⟨p − t, z⟩ plus the entropy of p."""

    def of(x, labels):
        p, is_label = entmax(alpha)(x), np.arange(x.shape[-1]) == labels[..., None]
        loss = summed(p - is_label, terms(x)[0]) + (1 - np.sum(p**alpha, -1)) / (alpha * (alpha - 1))
        return np.where(live(x), np.where(is_label.any(-1), loss, np.nan), 0)

    return of


def largest(x):
    """The largest log-probabilities, and their ids."""
    ids = np.argsort(-x, -1, stable=True)[..., :LARGEST]
    return np.take_along_axis(log_softmax(x), ids, -1), ids


def of_products(function):
    return lambda p_hidden, p_weight, q_hidden, q_weight: function(
        *(
            a.astype(np.float64) @ b.astype(np.float64)
            for a, b in ((p_hidden, p_weight), (q_hidden, q_weight))
        )
    )


def contrast(a, b):
    """The loss of CLIP, the same number for every row."""
    logits = a.astype(np.float64) @ b.astype(np.float64).T / TEMPERATURE
    own = np.arange(len(a))
    return np.full(len(a), np.mean(id_loss(logits, own) + id_loss(logits.T, own)) / 2)


def sigmoid_contrast(a, b):
    """The loss of SigLIP, the same number for every row."""
    z = a.astype(np.float64) @ b.astype(np.float64).T / TEMPERATURE + BIAS
    return np.full(len(a), np.sum(softplus(np.where(np.eye(len(a), dtype=bool), -z, z))) / len(a))


def of_product(function):
    return lambda hidden, weight, *others: function(
        hidden.astype(np.float64) @ weight.astype(np.float64), *others
    )


# The programs that one writes with JAX and optax.

id_loss_of_optax = optax.softmax_cross_entropy_with_integer_labels


def entropy_of_jax(x):
    return -jnp.sum(jax.nn.softmax(x) * jax.nn.log_softmax(x), -1)


def statistics_of_jax(x, labels):
    nll = id_loss_of_optax(x, labels)
    return jax.nn.logsumexp(x, -1), nll, entropy_of_jax(x), jnp.argmax(x, -1).astype(jnp.int32)


def total_of_jax(segments, entries):
    """The log-sum-exp of the one segment."""
    top = jax.ops.segment_max(entries, segments, 1)
    return top + jnp.log(jax.ops.segment_sum(jnp.exp(entries - top[segments]), segments, 1))


def segment_log_softmax_of_jax(segments, x):
    return (x.T - total_of_jax(segments, x.T)[segments]).T


def kl_divergence_of_optax(p, q):
    return optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(q), jax.nn.log_softmax(p))


def sparse_kl_divergence_of_jax(few, log_shares, x):
    log_q, t = jnp.take_along_axis(jax.nn.log_softmax(x), few, -1), jnp.exp(log_shares)
    tail, q = 1 - jnp.sum(t, -1), 1 - jnp.sum(jnp.exp(log_q), -1)
    return jnp.sum(t * (log_shares - log_q), -1) + tail * jnp.log(tail / q)


def sigmoid_contrast_of_jax(a, b):
    z, signs = a @ b.T / TEMPERATURE + BIAS, 2 * jnp.eye(len(a)) - 1
    return jnp.full(len(a), -jnp.sum(jax.nn.log_sigmoid(signs * z)) / len(a))


def contrast_of_optax(a, b):
    logits, own = a @ b.T / TEMPERATURE, jnp.arange(len(a))
    losses = id_loss_of_optax(logits, own) + id_loss_of_optax(logits.T, own)
    return jnp.full(len(a), jnp.mean(losses) / 2)


class Program(NamedTuple):
    ours: Callable
    twin: Callable | None
    exact: Callable
    arguments: tuple[str, ...]
    corners: bool = True


ROW, IDS, TARGETS = ("x",), ("x", "labels"), ("x", "targets")
# Entries, along the first axis, are the classes of all rows: a segment of a row is the row.
SEGMENTS, SEGMENTS_IDS = ("segments", "x"), ("segments", "x", "labels")
PAIR, HEAD = ("other", "x"), ("hidden", "weight", "labels")
HEADS = ("other features", "other weight", "hidden", "weight")

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
        kl_divergence_of_optax,
        kl_divergence,
        PAIR,
    ),
    "js_divergence": Program(jsoftmax.js_divergence, None, js_divergence, PAIR),
    "sparse_kl_divergence": Program(
        lambda ids, t, x: jsoftmax.sparse_kl_divergence(jsoftmax.SparseTargets(ids, t), x),
        sparse_kl_divergence_of_jax,
        sparse_kl_divergence,
        ("few", "log-shares", "x"),
    ),
    "linear_kl_divergence": Program(
        jsoftmax.linear_kl_divergence,
        lambda p, v, q, w: kl_divergence_of_optax(p @ v, q @ w),
        of_products(kl_divergence),
        HEADS,
        corners=False,
    ),
    "linear_js_divergence": Program(
        jsoftmax.linear_js_divergence, None, of_products(js_divergence), HEADS, corners=False
    ),
    "linear_sparse_kl_divergence": Program(
        lambda ids, t, h, w: jsoftmax.linear_sparse_kl_divergence(jsoftmax.SparseTargets(ids, t), h, w),
        lambda ids, t, h, w: sparse_kl_divergence_of_jax(ids, t, h @ w),
        lambda ids, t, *head: of_product(lambda x: sparse_kl_divergence(ids, t, x))(*head),
        ("few", "log-shares", "hidden", "weight"),
        corners=False,
    ),
    "log_prob": Program(
        jsoftmax.log_prob,
        lambda x, y: jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], -1)[:, 0],
        lambda x, y: -id_loss(x, y),
        IDS,
    ),
    "log_odds": Program(jsoftmax.log_odds, None, log_odds, IDS),
    "focal_loss": Program(lambda x, y: jsoftmax.focal_loss(x, y, gamma=1.0), None, focal_loss, IDS),
    "poly_loss": Program(jsoftmax.poly_loss, None, poly_loss, IDS),
    "log_sigmoid": Program(jsoftmax.log_sigmoid, jax.nn.log_sigmoid, lambda x: -softplus(-x), ROW),
    "binary_cross_entropy": Program(
        jsoftmax.binary_cross_entropy, optax.sigmoid_binary_cross_entropy, binary_loss, ("x", "shares")
    ),
    "sparsemax": Program(
        next_to_one(jsoftmax.sparsemax),
        next_to_one(jax.vmap(optax.projections.projection_simplex)),
        next_to_one(entmax(2)),
        ROW,
    ),
    "entmax15": Program(next_to_one(jsoftmax.entmax15), None, next_to_one(entmax(1.5)), ROW),
    "entmax": Program(next_to_one(lambda x: jsoftmax.entmax(x, 1.25)), None, next_to_one(entmax(1.25)), ROW),
    "sparsemax_loss": Program(
        next_to_one(jsoftmax.sparsemax_loss),
        next_to_one(optax.losses.multiclass_sparsemax_loss),
        next_to_one(entmax_loss(2)),
        IDS,
    ),
    "entmax_loss": Program(next_to_one(jsoftmax.entmax_loss), None, next_to_one(entmax_loss(1.5)), IDS),
    "top_log_probs": Program(
        lambda x: jsoftmax.top_log_probs(x, LARGEST)[:2],
        lambda x: jax.lax.top_k(jax.nn.log_softmax(x), LARGEST),
        largest,
        ROW,
    ),
    "linear_top_log_probs": Program(
        lambda h, w: jsoftmax.linear_top_log_probs(h, w, LARGEST)[:2],
        lambda h, w: jax.lax.top_k(jax.nn.log_softmax(h @ w), LARGEST),
        of_product(largest),
        ("hidden", "weight"),
        corners=False,
    ),
    "segment_softmax": Program(
        lambda ids, x: jsoftmax.segment_softmax(x.T, ids, 1).T,
        lambda ids, x: jnp.exp(segment_log_softmax_of_jax(ids, x)),
        lambda ids, x: softmax(x),
        SEGMENTS,
    ),
    "segment_log_softmax": Program(
        lambda ids, x: jsoftmax.segment_log_softmax(x.T, ids, 1).T,
        segment_log_softmax_of_jax,
        lambda ids, x: log_softmax(x),
        SEGMENTS,
    ),
    "segment_logsumexp": Program(
        lambda ids, x: jsoftmax.segment_logsumexp(x.T, ids, 1)[0],
        lambda ids, x: total_of_jax(ids, x.T)[0],
        lambda ids, x: logsumexp(x),
        SEGMENTS,
    ),
    "segment_cross_entropy": Program(
        lambda ids, x, y: jsoftmax.segment_cross_entropy(x.T, y[None], ids, 1)[0],
        lambda ids, x, y: -jnp.take_along_axis(segment_log_softmax_of_jax(ids, x), y[:, None], -1)[:, 0],
        lambda ids, x, y: id_loss(x, y),
        SEGMENTS_IDS,
    ),
    "contrastive_loss": Program(
        lambda a, b: jnp.full(len(a), jsoftmax.contrastive_loss(a, b, temperature=TEMPERATURE)),
        contrast_of_optax,
        contrast,
        ("hidden", "other features"),
        corners=False,
    ),
    "sigmoid_contrastive_loss": Program(
        lambda a, b: jnp.full(
            len(a), jsoftmax.sigmoid_contrastive_loss(a, b, temperature=TEMPERATURE, bias=BIAS)
        ),
        sigmoid_contrast_of_jax,
        sigmoid_contrast,
        ("hidden", "other features"),
        corners=False,
    ),
}
