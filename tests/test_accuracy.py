"""The accuracy of the contract, against mpmath at 400 bits, in every regime; and what the peers lose.

Errors are in ulp of the exact value, over the outputs that are normal numbers. `pytest -rP -k accuracy`
prints the tables.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import ahead
from definitions import mp
from mpmath import mpf

import jsoftmax

FINE = np.frompyfunc(lambda a: mpf(float(a)), 1, 1)
LOG1P, EXP = np.frompyfunc(mp.log1p, 1, 1), np.frompyfunc(mp.exp, 1, 1)


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
    **{f"one ahead by {by}": Regime(ahead(by)) for by in (15, 20, 30, 50, 80)},
    "one of 1000 ahead by 80": Regime(ahead(80), (2, 1000)),
    "offset 1e4": Regime(lambda rng, shape: 1e4 + rng.normal(size=shape)),
    "offset 1e6": Regime(lambda rng, shape: 1e6 + rng.normal(size=shape)),
    "flat": Regime(lambda rng, shape: np.full(shape, 1.7)),
    "ties for the maximum": Regime(tied),
    "two classes": Regime(lambda rng, shape: 3 * rng.normal(size=shape), (60, 2)),
    "two classes, one ahead by 30": Regime(ahead(30), (60, 2)),
    "50257 classes": Regime(lambda rng, shape: rng.normal(size=shape), (1, 50257)),
    "128256 classes": Regime(lambda rng, shape: 3 * rng.normal(size=shape), (1, 128256)),
    **{
        f"temperature {t}": Regime(lambda rng, shape: rng.normal(size=shape), temperature=t)
        for t in (0.01, 0.7, 100.0)
    },
}


class Exact(NamedTuple):
    """Of every row, by mpmath: what the functions should be, and the bounds of the contract in ulp."""

    softmax: np.ndarray
    log_softmax: np.ndarray
    logsumexp: np.ndarray
    label_loss: np.ndarray
    label_gradient: np.ndarray
    gap: np.ndarray  # max − x, over T
    lead: np.ndarray  # of the largest over the next, over T, [rows, 1]


def exact(x, labels, temperature):
    rows = np.arange(len(x))
    z = FINE(x) if temperature is None else FINE(x) / mpf(float(x.dtype.type(temperature)))
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


def ulps(ours, exact):
    """The error of every entry in ulp of the exact value; 0 where that is below the normal numbers."""
    ours = np.asarray(ours)
    size = abs(exact).astype(ours.dtype)
    tiny = np.finfo(ours.dtype).tiny
    error = abs(FINE(ours) - exact) / FINE(np.spacing(np.maximum(size, tiny)))
    return np.where(size >= tiny, error.astype(float), 0)


def measure(dtype, regime):
    """Functions × (ulps of ours, of the peer, the bound), every entry."""
    x = regime.rows(np.random.default_rng(0), regime.shape).astype(dtype)
    labels = np.where(np.arange(len(x)) % 2, 0, x.argmax(1))
    labels[0] = x[0].argmax()
    t = regime.temperature
    option = {} if t is None else {"temperature": t}
    e = exact(x, labels, t)
    tiny_loss = 4 + np.where(e.gap == 0, e.lead, 0)  # the largest class, by its lead
    one_hot = jnp.asarray(np.eye(x.shape[1], dtype=dtype)[labels] if x.shape[1] < 2000 else 0)

    def divided(f):
        return lambda x: f(x if t is None else x / x.dtype.type(t))

    def label_loss(z):
        return jsoftmax.cross_entropy(z, labels, **option)

    def target_loss(z):
        return jsoftmax.cross_entropy(z, one_hot, **option)

    def optax_loss(z):
        return optax.softmax_cross_entropy_with_integer_labels(z, labels)

    def gradient(f):
        # The logits' gradient before the division by T, which the exact one leaves out too.
        scale = 1 if t is None else x.dtype.type(t)
        return lambda x: scale * jax.grad(lambda z: f(z).sum())(x)

    rows = np.arange(len(x))
    gradient_bound = 4 + e.gap
    gradient_bound[rows, labels] = tiny_loss[rows, labels]
    table = {
        "softmax": (lambda x: jsoftmax.softmax(x, **option), jax.nn.softmax, e.softmax, 4 + e.gap),
        "log_softmax": (
            lambda x: jsoftmax.log_softmax(x, **option),
            jax.nn.log_softmax,
            e.log_softmax,
            tiny_loss,
        ),
        "entropy": (
            lambda x: jsoftmax.entropy(x, **option),
            lambda x: -jnp.sum(jax.nn.softmax(x) * jax.nn.log_softmax(x), -1),
            -(e.softmax * e.log_softmax).sum(1),
            4 + e.lead[:, 0],
        ),
        "cross_entropy, ids": (label_loss, optax_loss, e.label_loss, tiny_loss[rows, labels]),
        "  gradient": (gradient(label_loss), gradient(divided(optax_loss)), e.label_gradient, gradient_bound),
    }
    if x.shape[1] < 2000:
        table |= {
            "cross_entropy, targets": (target_loss, optax_loss, e.label_loss, tiny_loss[rows, labels]),
            "  gradient of targets": (
                gradient(target_loss),
                gradient(divided(optax_loss)),
                e.label_gradient,
                gradient_bound,
            ),
        }
    if t is None:
        # The maximum and the logarithm may cancel: the ulp is that of the larger.
        size = np.maximum(abs(e.logsumexp), abs(FINE(x.max(1))))
        lse = jax.jit(lambda x: jsoftmax.logsumexp(x, -1))(x)
        peer = jax.jit(lambda x: jax.nn.logsumexp(x, -1))(x)
        spacing = np.spacing(size.astype(dtype)).astype(float)
        off = [abs(FINE(np.asarray(a)) - e.logsumexp).astype(float) / spacing for a in (lse, peer)]
        yield "logsumexp", off[0], off[1], np.full(len(x), 4.0)
    for name, (ours, peer, want, bound) in table.items():
        is_gradient = name.startswith("  ")
        peer = peer if is_gradient else divided(peer)
        yield name, ulps(jax.jit(ours)(x), want), ulps(jax.jit(peer)(x), want), bound


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("regime", REGIMES)
def test_accuracy(regime, dtype):
    if dtype == np.float64 and REGIMES[regime].shape[1] > 2000:
        pytest.skip("float32 shows what many classes do")
    with jax.enable_x64(dtype == np.float64), jax.numpy_dtype_promotion("standard"):
        print(f"\n{regime}, {np.dtype(dtype).name}: error in ulp, jax {jax.__version__}")
        print(f"{'':24}{'ours':>10}{'bound':>10}{'peer':>10}")
        failures = []
        for name, ours, peer, bound in measure(dtype, REGIMES[regime]):
            worst = np.unravel_index(np.argmax(ours / bound), ours.shape)
            print(f"{name:24}{ours[worst]:10.2f}{bound[worst]:10.2f}{peer.max():10.2g}")
            if not np.all(ours <= bound):
                failures.append(f"{name}: {ours[worst]:.2f} ulp of {bound[worst]:.2f}")
    assert not failures, failures


def test_the_peers_lose_every_digit_of_a_confident_loss():
    """What the accuracy is for: optax's loss and gradient are exactly 0 here."""
    table = {name: (ours, peer) for name, ours, peer, _ in measure(np.float32, REGIMES["one ahead by 30"])}
    for name in ("log_softmax", "cross_entropy, ids", "  gradient"):
        ours, peer = table[name]
        assert ours.max() <= 35
        assert peer.max() > 1e6
