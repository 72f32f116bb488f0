"""The accuracy of the contract in every regime, compared with MPFR at 400 bits, and the errors of the peers.

Errors are in ulp of the exact value, over the outputs that are normal numbers. `pytest -rP -k accuracy -m ""`
prints the tables.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sampling
from cases import ahead
from compiling import jit_in_full
from definitions import EXP, FINE, LOG, LOG1P, SQRT, error

import jsoftmax


def tied(rng, shape):
    x = rng.normal(size=shape)
    x[:, 0] = x[:, -1] = x.max(1)
    return x


class Regime(NamedTuple):
    rows: object
    shape: tuple[int, int] = (6, 100)
    temperature: float | None = None


REGIMES = {
    "N(0, 3²)": Regime(lambda rng, shape: 3 * rng.normal(size=shape)),
    "N(0, 30²)": Regime(lambda rng, shape: 30 * rng.normal(size=shape)),
    **{f"one ahead by {by}": Regime(ahead(by)) for by in (15, 20, 30, 50, 80, 84)},
    "one of 1000 ahead by 80": Regime(ahead(80), (2, 1000)),
    "one of 16384 ahead by 90": Regime(ahead(90), (1, 16384)),
    "offset 1e4": Regime(lambda rng, shape: 1e4 + rng.normal(size=shape)),
    "offset 1e6": Regime(lambda rng, shape: 1e6 + rng.normal(size=shape)),
    "flat": Regime(lambda rng, shape: np.full(shape, 1.7)),
    "ties for the maximum": Regime(tied),
    "two classes": Regime(lambda rng, shape: np.resize(3 * rng.normal(size=(60, 2)), shape), (2000, 2)),
    "two classes, one ahead by 0 to 4": Regime(
        lambda rng, shape: rng.uniform([0, 0], [4, 0], shape), (2000, 2)
    ),
    "two classes, one ahead by 30": Regime(ahead(30), (2000, 2)),
    "50257 classes": Regime(lambda rng, shape: rng.normal(size=shape), (1, 50257)),
    "128256 classes": Regime(lambda rng, shape: 3 * rng.normal(size=shape), (1, 128256)),
    **{
        f"temperature {t}": Regime(lambda rng, shape: rng.normal(size=shape), temperature=t)
        for t in (0.01, 0.7, 100.0)
    },
}


def logsumexp(x):
    return jsoftmax.logsumexp(x, -1)


class Exact(NamedTuple):
    """For every row, by mpmath: the exact results, and the bounds of the contract in ulp."""

    softmax: np.ndarray
    log_softmax: np.ndarray
    logsumexp: np.ndarray
    label_loss: np.ndarray
    label_gradient: np.ndarray
    gap: np.ndarray  # (max − x)/T
    lead: np.ndarray  # the lead of the largest class over the next, divided by T, [rows, 1]


def exact(x, labels, temperature):
    rows = np.arange(len(x))
    z = FINE(x) if temperature is None else FINE(x) / FINE(x.dtype.type(temperature))
    order = np.argsort(x, axis=1, kind="stable")
    top = order[:, -1]
    gap = z[rows, top][:, None] - z
    terms = EXP(-gap)
    terms[rows, top] = 0
    rest = terms.sum(1, keepdims=True)
    terms[rows, top] = 1
    p, log_p = terms / (1 + rest), -gap - LOG1P(rest)
    gradient = p.copy()
    terms[rows, labels] = 0
    gradient[rows, labels] = -terms.sum(1) / (1 + rest[:, 0])
    lead = gap[rows, order[:, -2]][:, None].astype(float)
    return Exact(
        p,
        log_p,
        z[rows, top] + LOG1P(rest[:, 0]),
        -log_p[rows, labels],
        gradient,
        gap.astype(float),
        lead,
    )


def ulps(ours, exact, largest=0):
    """The error of every entry in ulp of the exact value, or of the sum of its |terms|, if that is larger.

    0 where that is below the normal numbers.
    """
    ours = np.asarray(ours)
    off, exact = error(ours, exact)
    size = np.maximum(abs(exact), largest).astype(ours.dtype)
    tiny = np.finfo(ours.dtype).tiny
    return np.where(size >= tiny, abs(off) / np.spacing(np.maximum(size, tiny)).astype(float), 0)


@functools.cache
def programs(temperature=None):
    """For each function (ours, the peer's), of logits, labels and one-hot labels; compiled once per shape.

    T is a constant of the program, or one more argument. A gradient is the one in the logits before the
    division by T, and the exact gradient leaves out this division too.
    """

    def divided(f):
        return lambda x, *labels, **t: f(x / jnp.asarray(t["temperature"], x.dtype) if t else x, *labels)

    def gradient(f):
        def of_sum(x, *labels, **t):
            return t.get("temperature", 1) * jax.grad(lambda x: f(x, *labels, **t).sum())(x)

        return of_sum

    def label_loss(x, y, one_hot, **t):
        return jsoftmax.cross_entropy(x, y, **t)

    def target_loss(x, y, one_hot, **t):
        return jsoftmax.cross_entropy(x, one_hot, **t)

    peer_loss = divided(lambda x, y, one_hot: optax.softmax_cross_entropy_with_integer_labels(x, y))
    pairs = {
        "softmax": (
            lambda x, *_, **t: jsoftmax.softmax(x, **t),
            divided(lambda x, *_: jax.nn.softmax(x)),
        ),
        "log_softmax": (
            lambda x, *_, **t: jsoftmax.log_softmax(x, **t),
            divided(lambda x, *_: jax.nn.log_softmax(x)),
        ),
        "entropy": (
            lambda x, *_, **t: jsoftmax.entropy(x, **t),
            divided(lambda x, *_: -jnp.sum(jax.nn.softmax(x) * jax.nn.log_softmax(x), -1)),
        ),
        "cross_entropy, ids": (label_loss, peer_loss),
        "  gradient": (gradient(label_loss), gradient(peer_loss)),
        "cross_entropy, targets": (target_loss, peer_loss),
        "  gradient of targets": (gradient(target_loss), gradient(peer_loss)),
        "logsumexp": (lambda x, *_: logsumexp(x), lambda x, *_: jax.nn.logsumexp(x, -1)),
    }
    constant = {} if temperature is None else {"temperature": temperature}
    return {
        name: [jit_in_full(functools.partial(f, **constant)) for f in pair] for name, pair in pairs.items()
    }


def measure(dtype, regime, peers=False, names=None):
    """For each function, or the named ones: ulps of ours, of the peer on request, and the bound, by entry."""
    x = regime.rows(np.random.default_rng(0), regime.shape).astype(dtype)
    labels = np.where(np.arange(len(x)) % 2, 0, x.argmax(1))
    labels[0] = x[0].argmax()
    e = exact(x, labels, regime.temperature)
    tiny_loss = 4 + np.where(e.gap == 0, e.lead, 0)  # the largest class: its lead counts
    rows = np.arange(len(x))
    gradient_bound = 4 + e.gap
    gradient_bound[rows, labels] = tiny_loss[rows, labels]
    loss, gradient = (e.label_loss, tiny_loss[rows, labels]), (e.label_gradient, gradient_bound)
    table = {
        "softmax": (e.softmax, 4 + e.gap),
        "log_softmax": (e.log_softmax, tiny_loss),
        "entropy": (-(e.softmax * e.log_softmax).sum(1), 4 + e.lead[:, 0]),
        "cross_entropy, ids": loss,
        "  gradient": gradient,
    }
    one_hot = None
    if x.shape[1] < 2000:
        one_hot = np.eye(x.shape[1], dtype=dtype)[labels]
        table |= {"cross_entropy, targets": loss, "  gradient of targets": gradient}
    # A constant T in float32, an argument in float64.
    traced = regime.temperature is not None and dtype == np.float64
    found = programs(None if traced else regime.temperature)
    given = {"temperature": dtype(regime.temperature)} if traced else {}
    if regime.temperature is None:
        table["logsumexp"] = e.logsumexp, np.full(len(x), 4.0)
    for name in names or table:
        want, bound = table[name]
        ours, *peer = (ulps(f(x, labels, one_hot, **given), want) for f in found[name][: 1 + peers])
        yield name, ours, *peer, bound


def grid():
    """All regimes in float32, and in float64 without many classes; the default sample compiles less."""
    new_programs = ("one of 1000 ahead by 80", "128256 classes", "temperature 0.01", "temperature 100.0")
    for dtype in (np.float32, np.float64):
        for name, regime in REGIMES.items():
            if dtype == np.float32 or regime.shape[1] <= 2000:
                runs = name not in new_programs if dtype == np.float32 else regime.shape == (6, 100)
                marks = () if runs else pytest.mark.full
                yield pytest.param(name, dtype, marks=marks, id=f"{name}-{np.dtype(dtype).name}")


@pytest.mark.share(10)
@pytest.mark.parametrize("peers", sampling.sample([False, True], False), ids=["ours", "peers"])
@pytest.mark.parametrize(("regime", "dtype"), [*grid()])
def test_accuracy(regime, dtype, peers):
    """On request, with the errors of jax.nn and optax."""
    with jax.enable_x64(dtype == np.float64), jax.numpy_dtype_promotion("standard"):
        print(f"\n{regime}, {np.dtype(dtype).name}: error in ulp, jax {jax.__version__}")
        print(f"{'':24}{'ours':>10}{'bound':>10}{'peer':>10}")
        failures = []
        for name, ours, *peer, bound in measure(dtype, REGIMES[regime], peers):
            worst = np.unravel_index(np.argmax(ours / bound), ours.shape)
            print(f"{name:24}{ours[worst]:10.2f}{bound[worst]:10.2f}", *(f"{p.max():9.2g}" for p in peer))
            if not np.all(ours <= bound):
                failures.append(f"{name}: {ours[worst]:.2f} ulp of {bound[worst]:.2f}")
    assert not failures, failures


def by_sorting(x, alpha):
    """√p for entmax with α = 3/2, p for α = 2: from the means of the largest classes, by sorting them."""
    xp = np if x.dtype == object else jnp
    z = (x - x.max(1, keepdims=True)) * (FINE(alpha - 1) if x.dtype == object else alpha - 1)
    u, k = -xp.sort(-z, 1), xp.arange(1, x.shape[1] + 1).astype(x.dtype)[None]
    mean, square = (xp.cumsum(a, 1) / k for a in (u, u * u))
    if alpha == 2:
        tau = mean - 1 / k
    else:
        left = 1 / k - square + mean * mean
        tau = mean - (SQRT if x.dtype == object else jnp.sqrt)(xp.where(left > 0, left, 0 * left))
    last = (u > tau).astype(int).sum(1, keepdims=True) - 1
    base = z - xp.take_along_axis(tau, last, 1)
    return xp.where(base > 0, base, 0 * base)


def sparse(x, y, alpha):
    """p, and the loss as ⟨p − t, z⟩ plus the entropy of p, as the entmax package computes it."""
    base, power = by_sorting(x, alpha), 1 if alpha == 2 else 2
    p, is_label = base**power, np.arange(x.shape[1])[None] == y[:, None]
    z = x - x.max(1, keepdims=True)
    entropy = (1 - (base ** (power + 1)).sum(1)) / (alpha * (alpha - 1))
    return p, ((p - is_label.astype(x.dtype)) * z).sum(1) + entropy


def in_segments(x):
    """The entries of the rows, and their segments."""
    return x.ravel(), jnp.repeat(jnp.arange(len(x), dtype=jnp.int32), x.shape[1])


def others(x, y, one_hot, pairs):
    """A sink with the logit of the label, losses of a row that may be sure, its odds, and two classes.

    Also segments that are the rows, sparse maps and their losses, and the logits `pairs` of a batch of pairs.
    """
    sink, (entries, ids), count = x[jnp.arange(len(y)), y], in_segments(x), len(x)
    positions = y + x.shape[1] * np.arange(count, dtype=y.dtype)
    return {
        "softmax, sink": jsoftmax.softmax(x, sink=sink),
        "log_softmax, sink": jsoftmax.log_softmax(x, sink=sink),
        "log_odds": jsoftmax.log_odds(x, y),
        "focal_loss": jsoftmax.focal_loss(x, y),
        "poly_loss": jsoftmax.poly_loss(x, y),
        "binary_cross_entropy": jsoftmax.binary_cross_entropy(x, one_hot),
        "log_sigmoid": jsoftmax.log_sigmoid(x),
        "  gradient": jax.grad(lambda x: jsoftmax.binary_cross_entropy(x, one_hot).sum())(x),
        "segment_softmax": jsoftmax.segment_softmax(entries, ids, count).reshape(x.shape),
        "segment_log_softmax": jsoftmax.segment_log_softmax(entries, ids, count).reshape(x.shape),
        "segment_logsumexp": jsoftmax.segment_logsumexp(entries, ids, count),
        "segment_cross_entropy": jsoftmax.segment_cross_entropy(entries, positions, ids, count),
        "sparsemax": jsoftmax.sparsemax(x),
        "sparsemax_loss": jsoftmax.sparsemax_loss(x, y),
        "entmax15": jsoftmax.entmax15(x),
        "entmax_loss": jsoftmax.entmax_loss(x, y),
        "contrastive_loss": jsoftmax.contrastive_loss(
            pairs, jnp.eye(len(pairs), dtype=x.dtype), temperature=1.0
        )[None],
        "sigmoid_contrastive_loss": jsoftmax.sigmoid_contrastive_loss(
            pairs, jnp.eye(len(pairs), dtype=x.dtype), temperature=1.0
        )[None],
    }


def their_peers(x, y, one_hot, pairs):
    entries, ids = in_segments(x)
    top = jax.ops.segment_max(entries, ids, len(x))
    terms = jnp.exp(entries - top[ids])
    total = jax.ops.segment_sum(terms, ids, len(x))
    of_segments = (entries - (top + jnp.log(total))[ids]).reshape(x.shape)
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(z, jnp.arange(len(z))) for z in (pairs, pairs.T)
    ]
    whole = jnp.concatenate([x, x[jnp.arange(len(y)), y][:, None]], -1)
    log_p = jax.nn.log_softmax(x)[jnp.arange(len(y)), y]
    return {
        "softmax, sink": jax.nn.softmax(whole)[:, :-1],
        "log_softmax, sink": jax.nn.log_softmax(whole)[:, :-1],
        "log_odds": log_p - jnp.log1p(-jnp.exp(log_p)),
        "focal_loss": (1 - jnp.exp(log_p)) ** 2 * -log_p,
        "poly_loss": optax.losses.poly_loss_cross_entropy(x, one_hot, epsilon=1.0),
        "binary_cross_entropy": optax.sigmoid_binary_cross_entropy(x, one_hot),
        "log_sigmoid": jax.nn.log_sigmoid(x),
        "  gradient": jax.grad(lambda x: optax.sigmoid_binary_cross_entropy(x, one_hot).sum())(x),
        "segment_softmax": (terms / total[ids]).reshape(x.shape),
        "segment_log_softmax": of_segments,
        "segment_logsumexp": top + jnp.log(total),
        "segment_cross_entropy": -of_segments[jnp.arange(len(x)), y],
        "sparsemax": jax.vmap(optax.projections.projection_simplex)(x),
        "sparsemax_loss": optax.losses.multiclass_sparsemax_loss(x, y),
        **dict(zip(("entmax15", "entmax_loss"), sparse(x, y, 1.5), strict=True)),
        "contrastive_loss": jnp.mean(sum(losses) / 2)[None],
        "sigmoid_contrastive_loss": optax.sigmoid_binary_cross_entropy(
            pairs, jnp.eye(len(pairs), dtype=x.dtype)
        ).sum(keepdims=True)[0]
        / len(pairs),
    }


def exact_sparse(x, y):
    """The exact sparse maps and their losses; rounding of z − max changes them by slope·|z − max|."""
    for names, alpha in ((("sparsemax", "sparsemax_loss"), 2), (("entmax15", "entmax_loss"), 1.5)):
        p, loss = sparse(FINE(x), y, alpha)
        gap, is_label = (x.max(1, keepdims=True) - x).astype(float), np.arange(x.shape[1]) == y[:, None]
        slope = p.astype(float) ** (2 - alpha) * (p > 0)
        yield names[0], (p, 5, slope * gap)
        yield names[1], (loss, 5, (abs(p.astype(float) - is_label) * gap).sum(1))


def exact_contrast(pairs):
    """The mean loss of both directions; the largest lead of a label counts, and one more rounding."""
    each = [exact(z, np.arange(len(z)), None) for z in (pairs, pairs.T)]
    leads = [np.where(np.diagonal(e.gap) == 0, e.lead[:, 0], 0).max() for e in each]
    total = sum(e.label_loss.sum(keepdims=True) for e in each)
    return total / (2 * len(pairs)), 5 + max(leads)


def exact_others(x, y, pairs):
    """The exact results and their bounds in ulp; with the size of its terms, where two of them may cancel."""
    e, rows = exact(x, y, None), np.arange(len(x))
    gap = FINE(e.gap)
    total = EXP(-gap).sum(1) + EXP(-gap[rows, y])
    log_p = -gap - LOG(total)[:, None]
    q = -e.label_gradient[rows, y]
    log_others = LOG(q * EXP(-gap).sum(1))
    leads = e.gap[rows, y] == 0
    lead = np.where(leads, e.lead[:, 0], 0)
    tiny = 4 + lead
    # Its two terms: how far the label is from the largest other class, and the log1p of the rest of these.
    of_odds = np.maximum(np.where(leads, lead, e.gap[rows, y]), (log_others + lead).astype(float))
    first, second = LOG1P(EXP(FINE(-x))), LOG1P(EXP(FINE(x)))
    is_label = np.arange(x.shape[1]) == y[:, None]
    loss = np.where(is_label, first, second)
    of_pairs = LOG1P(EXP(FINE(np.where(np.eye(len(pairs), dtype=bool), -pairs, pairs))))
    gradient = np.where(is_label, -EXP(-second), EXP(-first))
    return {
        "softmax, sink": (EXP(log_p), 4 + e.gap),
        "log_softmax, sink": (log_p, 4 + np.where(e.gap == 0, e.lead + e.gap[rows, y][:, None], 0)),
        "log_odds": (-gap[rows, y] - log_others, 4, of_odds),
        "focal_loss": (q * q * e.label_loss, 3 * tiny),
        "poly_loss": (e.label_loss + q, 1 + tiny),
        "binary_cross_entropy": (loss, 4),
        "log_sigmoid": (-first, 4),
        "  gradient": (gradient, 4),
        # Without a derivative, the leading 1 is among the terms of the sum: up to four more roundings.
        "segment_softmax": (e.softmax, 8 + e.gap),
        "segment_log_softmax": (e.log_softmax, 4 + np.where(e.gap == 0, e.lead, 0)),
        "segment_logsumexp": (e.logsumexp, 4, abs(x.max(1))),
        "segment_cross_entropy": (e.label_loss, tiny),
        **dict(exact_sparse(x, y)),
        "contrastive_loss": exact_contrast(pairs),
        "sigmoid_contrastive_loss": (of_pairs.sum(keepdims=True)[0] / len(pairs), 4),
    }


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_accuracy_of_the_others(dtype):
    """With the errors of jax.nn, optax and the plain formulas."""
    failures = []
    with jax.enable_x64(dtype == np.float64), jax.numpy_dtype_promotion("standard"):
        ours, peers = jit_in_full(others), jit_in_full(their_peers)
        for name in ("N(0, 3²)", "N(0, 30²)", "one ahead by 15", "one ahead by 80", "offset 1e4", "flat"):
            x, pairs = (
                REGIMES[name].rows(np.random.default_rng(0), shape).astype(dtype)
                for shape in ((6, 100), (6, 6))
            )
            y = np.where(np.arange(len(x)) % 2, 0, x.argmax(1))
            one_hot = np.eye(x.shape[1], dtype=dtype)[y]
            got, theirs = ours(x, y, one_hot, pairs), peers(x, y, one_hot, pairs)
            print(f"\n{name}, {np.dtype(dtype).name}: error in ulp{'ours':>12}{'bound':>10}{'peer':>10}")
            for function, (want, bound, *size) in exact_others(x, y, pairs).items():
                off, of_peer = (ulps(found[function], want, *size) for found in (got, theirs))
                bound = np.broadcast_to(bound, off.shape)
                worst = np.unravel_index(np.argmax(off / bound), off.shape)
                print(f"{function:34}{off[worst]:10.2f}{bound[worst]:10.2f}{np.max(of_peer):10.2g}")
                if not np.all(off <= bound):
                    failures.append(f"{name}, {function}: {off[worst]:.2f} ulp of {bound[worst]:.2f}")
    assert not failures, failures


def log_probabilities(x):
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def of_two(a, b):
    """Rows of two live classes."""
    x = np.full((len(a), 100), -np.inf)
    x[:, 3], x[:, 70] = a, b
    return x


NEAR_ZERO = {
    "pairs near −log 2": lambda rng: of_two(*np.array([[-0.7, -0.7], [np.log(0.5)] * 2, [-0.69, -0.696]]).T),
    "pairs": lambda rng: of_two(*3 * rng.normal(size=(2, 60))),
    "log-probabilities": lambda rng: log_probabilities(3 * rng.normal(size=(20, 100))),
    "log-probabilities, flat": lambda rng: log_probabilities(np.full((1, 100), 1.7)),
    **{
        f"log-probabilities, one ahead by {by}": functools.partial(
            lambda by, rng: log_probabilities(np.float64(ahead(by)(rng, (10, 100)))), by
        )
        for by in (1, 6, 10, 15, 30)
    },
    "a small maximum": lambda rng: of_two(rng.uniform(-1e-5, 1e-5, 60), -np.arange(2, 14, 0.2)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logsumexp_near_zero(dtype):
    """Where the maximum and the logarithm cancel: 4 ulp of the maximum."""
    rng = np.random.default_rng(0)
    rows = {name: make(rng).astype(dtype) for name, make in NEAR_ZERO.items()}
    with jax.enable_x64(dtype == np.float64), jax.numpy_dtype_promotion("standard"):
        found = jit_in_full(logsumexp)(np.concatenate(list(rows.values())))
        found = np.split(np.asarray(found), np.cumsum([len(x) for x in rows.values()])[:-1])
        if dtype == np.float32:
            rows["50257 classes"] = log_probabilities(rng.normal(size=(1, 50257))).astype(dtype)
            found.append(jit_in_full(logsumexp)(rows["50257 classes"]))
    for (name, x), ours in zip(rows.items(), found, strict=True):
        exact = LOG(EXP(FINE(np.where(np.isinf(x), -1e4, x))).sum(1))
        off = ulps(ours, exact, np.abs(x).max(1, where=np.isfinite(x), initial=0))
        print(f"{name:40}{off.max():10.2f} ulp")
        assert off.max() <= 4, name


def test_the_peers_lose_every_digit_of_a_confident_loss():
    """The reason for the accuracy: the loss and the gradient of optax are exactly 0 here."""
    names = ("log_softmax", "cross_entropy, ids", "  gradient")
    for _, ours, peer, _ in measure(np.float32, REGIMES["one ahead by 30"], peers=True, names=names):
        assert ours.max() <= 35
        assert peer.max() > 1e6
