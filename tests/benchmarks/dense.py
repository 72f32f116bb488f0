"""The functions of full logits compared with jax.nn, optax and torch, on the grid of `shapes`."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax
from tests import shapes
from tests.benchmarks import timing

try:
    import torch
except ImportError:
    torch = None


class Pair(NamedTuple):
    """Ours and the peer's, of logits, labels and the class axis; the torch call; the float64 definition."""

    ours: object
    peer: object
    torch: object
    exact: object


def _optax(x, y, axis):
    return optax.softmax_cross_entropy_with_integer_labels(x, y, axis=axis)


def value_and_gradient(loss):
    return lambda x, y, axis: jax.value_and_grad(lambda x: jnp.mean(loss(x, y, axis)))(x)


def _loss(x, y, axis):
    return jsoftmax.cross_entropy(x, y, axis=axis)


def _exact_logsumexp(x, axis):
    top = x.max(axis, keepdims=True)
    return top + np.log(np.exp(x - top).sum(axis, keepdims=True))


def _exact_log_softmax(x, y, axis):
    return x - _exact_logsumexp(x, axis)


def _exact_loss(x, y, axis):
    label = np.take_along_axis(x, np.expand_dims(y, axis), axis)
    return np.squeeze(_exact_logsumexp(x, axis) - label, axis)


def _exact_gradient(x, y, axis):
    p = np.exp(_exact_log_softmax(x, y, axis))
    at_label = np.take_along_axis(p, np.expand_dims(y, axis), axis) - 1
    np.put_along_axis(p, np.expand_dims(y, axis), at_label, axis)
    return _exact_loss(x, y, axis).mean(), p / y.size


# The logits are also the cotangent, and their squares the targets. The peer of a backward is its formula.
def backward(function):
    return lambda x, y, axis: jax.vjp(lambda x: function(x, axis), x)[1](x)[0]


def gradient(loss):
    return lambda x, y, axis: jax.grad(lambda x: jnp.mean(loss(x, jax.lax.stop_gradient(x * x), axis)))(x)


def hessian_product(loss, in_reverse):
    """The Hessian of the sum times the logits: forward over reverse, or reverse over reverse."""

    def product(x, y, axis):
        gradient = jax.grad(lambda x: jnp.sum(loss(x, y, axis)))
        return jax.vjp(gradient, x)[1](x)[0] if in_reverse else jax.jvp(gradient, (x,), (x,))[1]

    return product


def _plain_entropy(x, y, axis):
    log_p = jax.nn.log_softmax(x, axis)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis)


def _entropy(x, y, axis):
    return jsoftmax.entropy(x, axis=axis)


def _exact_product(x, y, axis):
    return plain_backward(np, x, np.exp(_exact_log_softmax(x, y, axis)), axis)


def _exact_entropy_product(x, y, axis):
    log_p = _exact_log_softmax(x, y, axis)
    p = np.exp(log_p)
    along = x - np.sum(p * x, axis, keepdims=True)
    mean = np.sum(p * log_p, axis, keepdims=True)
    change = along - np.sum(p * along * log_p, axis, keepdims=True)
    return -p * along * (log_p - mean) - p * change


def plain_backward(np, g, p, axis):
    return p * (g - np.sum(p * g, axis, keepdims=True))


def plain_log_backward(np, g, p, axis):
    return g - p * np.sum(g, axis, keepdims=True)


# Each row has its own sink, as each attention head has. One peer copies the logits, and "none", is ours
# without a sink.
def _sink(np, x, y, axis):
    return np.expand_dims(y % 5, axis).astype(x.dtype)


def _with_sink(x, y, axis):
    return jsoftmax.softmax(x, axis, sink=_sink(jnp, x, y, axis))


def _copied(x, y, axis):
    whole = jax.nn.softmax(jnp.concatenate([x, _sink(jnp, x, y, axis)], axis), axis)
    return jax.lax.slice_in_dim(whole, 0, x.shape[axis], axis=axis % x.ndim)


def _exact_sink(x, y, axis):
    whole = np.exp(_exact_log_softmax(np.concatenate([x, _sink(np, x, y, axis)], axis), y, axis))
    return np.take(whole, np.arange(x.shape[axis]), axis)


def _exact_binary(x, t):
    return np.maximum(x, 0) - x * t + np.log1p(np.exp(-abs(x)))


PAIRS = {
    "logsumexp": Pair(
        lambda x, y, axis: jsoftmax.logsumexp(x, axis),
        lambda x, y, axis: jax.nn.logsumexp(x, axis),
        lambda x, y, axis: torch.logsumexp(x, axis),
        lambda x, y, axis: np.squeeze(_exact_logsumexp(x, axis), axis),
    ),
    "loss": Pair(
        _loss,
        _optax,
        lambda x, y, axis: torch.nn.functional.cross_entropy(x.movedim(axis, -1), y, reduction="none"),
        _exact_loss,
    ),
    "log_prob": Pair(
        lambda x, y, axis: jsoftmax.log_prob(x, y, axis=axis),
        lambda x, y, axis: -_optax(x, y, axis),
        None,
        lambda x, y, axis: -_exact_loss(x, y, axis),
    ),
    "loss and gradient": Pair(value_and_gradient(_loss), value_and_gradient(_optax), None, _exact_gradient),
    **{
        f"{name}, Hessian product{order}": Pair(
            hessian_product(ours, in_reverse), hessian_product(plain, in_reverse), None, exact
        )
        for name, ours, plain, exact in (
            ("loss", _loss, _optax, _exact_product),
            ("entropy", _entropy, _plain_entropy, _exact_entropy_product),
        )
        for order, in_reverse in (("", False), (" in reverse", True))
    },
    "softmax": Pair(
        lambda x, y, axis: jsoftmax.softmax(x, axis),
        lambda x, y, axis: jax.nn.softmax(x, axis),
        lambda x, y, axis: torch.softmax(x, axis),
        lambda x, y, axis: np.exp(_exact_log_softmax(x, y, axis)),
    ),
    "log_softmax": Pair(
        lambda x, y, axis: jsoftmax.log_softmax(x, axis),
        lambda x, y, axis: jax.nn.log_softmax(x, axis),
        lambda x, y, axis: torch.log_softmax(x, axis),
        _exact_log_softmax,
    ),
    "softmax, backward": Pair(
        backward(jsoftmax.softmax),
        lambda x, y, axis: plain_backward(jnp, x, jax.nn.softmax(x, axis), axis),
        None,
        lambda x, y, axis: plain_backward(np, x, np.exp(_exact_log_softmax(x, y, axis)), axis),
    ),
    "log_softmax, backward": Pair(
        backward(jsoftmax.log_softmax),
        lambda x, y, axis: plain_log_backward(jnp, x, jax.nn.softmax(x, axis), axis),
        None,
        lambda x, y, axis: plain_log_backward(np, x, np.exp(_exact_log_softmax(x, y, axis)), axis),
    ),
    "softmax, sink": Pair(
        _with_sink,
        _copied,
        None,
        _exact_sink,
    ),
    "softmax, sink or none": Pair(
        _with_sink,
        lambda x, y, axis: jsoftmax.softmax(x, axis),
        None,
        _exact_sink,
    ),
    "softmax, sink or none, backward": Pair(
        lambda x, y, axis: jax.vjp(lambda x: _with_sink(x, y, axis), x)[1](x)[0],
        backward(jsoftmax.softmax),
        None,
        lambda x, y, axis: plain_backward(np, x, _exact_sink(x, y, axis), axis),
    ),
    "log_sigmoid": Pair(
        lambda x, y, axis: jsoftmax.log_sigmoid(x),
        lambda x, y, axis: jax.nn.log_sigmoid(x),
        None,
        lambda x, y, axis: -_exact_binary(x, 1),
    ),
    "binary_cross_entropy": Pair(
        lambda x, y, axis: jsoftmax.binary_cross_entropy(x, x > 0),
        lambda x, y, axis: optax.sigmoid_binary_cross_entropy(x, x > 0),
        None,
        lambda x, y, axis: _exact_binary(x, x > 0),
    ),
    "binary, gradient": Pair(
        gradient(lambda x, t, axis: jsoftmax.binary_cross_entropy(x, t)),
        gradient(lambda x, t, axis: optax.sigmoid_binary_cross_entropy(x, t)),
        None,
        lambda x, y, axis: (1 / (1 + np.exp(-x)) - x * x) / x.size,
    ),
}
LIMITS = {"copy": lambda x, axis: x + 0, "max": lambda x, axis: jnp.max(x, axis)}
REGIMES = ("unit", "peaked", "wide")


class Cell(NamedTuple):
    """One cell of the grid."""

    rows: int
    classes: int
    dtype: str = "float32"
    axis: int = -1
    regime: str = "unit"
    eager: bool = False

    def arrays(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(self.rows, self.classes)).astype(np.float32)
        if self.regime == "peaked":
            x[:, self.classes // 2] += 20
        elif self.regime == "wide":
            x *= 3
        x = jnp.asarray(x if self.axis else x.T, self.dtype)
        return x, jnp.asarray(rng.integers(0, self.classes, self.rows), jnp.int32)


def grid(elements, classes, dtypes, axes, regimes):
    for n in classes:
        for dtype in dtypes:
            for axis in axes:
                for regime in regimes:
                    yield Cell(max(1, elements // n), n, dtype, axis, regime)


def error(function, cell, exact):
    """The largest error of the outputs against float64, relative to the largest magnitude, for a few rows."""
    x, y = cell._replace(rows=min(cell.rows, max(1, 2**18 // cell.classes))).arrays()
    want = exact(np.asarray(x, np.float64), np.asarray(y), cell.axis)
    got = jax.jit(functools.partial(function, axis=cell.axis))(x, y)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(np.max(np.abs(np.asarray(g, np.float64) - w)) / np.max(np.abs(w))) for g, w in pairs)


def measured(cell, names, seconds):
    """One record for each function."""
    x, y = cell.arrays()
    limits = {
        name: functools.partial(jax.jit(f, static_argnums=1), x, cell.axis) for name, f in LIMITS.items()
    }
    for name in names:
        pair = PAIRS[name]
        functions = {"ours": pair.ours, "peer": pair.peer}
        functions = {who: functools.partial(f, axis=cell.axis) for who, f in functions.items()}
        jitted = functions if cell.eager else {who: jax.jit(f) for who, f in functions.items()}
        calls = {who: functools.partial(f, x, y) for who, f in jitted.items()} | limits
        if torch is not None and pair.torch is not None and cell.dtype == "float32":
            tx, ty = torch.from_numpy(np.array(x)), torch.from_numpy(np.array(y)).long()
            calls["torch"] = functools.partial(pair.torch, tx, ty, cell.axis)
        times = timing.seconds_each(calls, seconds)
        record = cell._asdict() | {"function": name, "model": shapes.model(cell.classes)}
        record |= timing.compared(times["ours"], times["peer"])._asdict()
        record |= {who: float(np.median(t)) for who, t in times.items() if who not in functions}
        for who, function in functions.items():
            record[f"temporaries, {who}"] = timing.temporaries(function, (x, y)) / x.nbytes
            record[f"error, {who}"] = error(function, cell, pair.exact)
        yield record
