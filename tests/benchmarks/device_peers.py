"""The other programs on a device: our kernels; jax.nn, optax, two plain formulas of a linear head, torch."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import jsoftmax
from tests.benchmarks import dense
from tests.benchmarks.dense import torch

CHUNK = 2048  # in classes, as in tokamax's chunked_xla


def of_logits(function):
    return lambda x, y, axis: function(x, axis)


def value_and_backward(function):
    """The value, and a cotangent g pulled back, as in a training step."""

    def both(x, g, axis):
        out, pull = jax.vjp(lambda x: function(x, axis), x)
        return out, pull(g)[0]

    return both


def in_kernels(function, **options):
    return functools.partial(function, backend="mosaic", **options)


def loss_in_kernels(x, y, axis):
    return jsoftmax.cross_entropy(x, y, axis=axis, backend="mosaic")


def mean_in_kernels(x, y, axis):
    def mean(x):
        return jsoftmax.cross_entropy(x, y, axis=axis, reduction="mean", backend="mosaic")

    return jax.value_and_grad(mean)(x)


def head_in_kernels(h, w, y):
    return jsoftmax.linear_cross_entropy(h, w, y, reduction="mean", backend="mosaic")


def optax(x, y, axis):
    """In float32: from 16-bit logits, optax computes a loss with only two digits."""
    return dense.PAIRS["loss"].peer(x.astype(jnp.float32), y, axis)


class Rows(NamedTuple):
    """A function of full logits: its programs, and the passes and operations that it needs.

    The operations per logit: a comparison, a difference, an exponential, a sum, and those of the result.
    """

    ours: object
    kernel: object  # ours with kernels; None if there is none
    peer: str
    jax: object
    torch: object
    passes: int
    operations: int


def map_of(name, operations):
    """The map, and the map with its backward pass, from the logits and a cotangent."""
    ours, jaxs = getattr(jsoftmax, name), getattr(jax.nn, name)
    kernel = in_kernels(ours)
    theirs = None if torch is None else functools.partial(getattr(torch, name), dim=-1)
    alone = [of_logits(f) for f in (ours, kernel, jaxs)]
    both = [value_and_backward(f) for f in (ours, kernel, jaxs)]
    return {
        name: Rows(*alone[:2], "jax.nn", alone[2], lambda x, y: theirs(x), 2, operations),
        f"{name} and backward": Rows(*both[:2], "jax.nn", both[2], theirs, 5, 2 * operations),
    }


def reduced(name, kernel, peer, jaxs, torchs, passes, operations):
    return {name: Rows(dense.PAIRS[name].ours, kernel, peer, jaxs, torchs, passes, operations)}


ROWS = {
    **reduced(
        "loss and gradient",
        mean_in_kernels,
        "optax",
        dense.value_and_gradient(optax),
        lambda x, y: torch.nn.functional.cross_entropy(x.float(), y),
        2,
        6,
    ),
    **reduced(
        "loss",
        loss_in_kernels,
        "optax",
        optax,
        lambda x, y: dense.PAIRS["loss"].torch(x.float(), y, -1),
        1,
        4,
    ),
    **map_of("softmax", 5),
    **map_of("log_softmax", 5),
    **reduced(
        "logsumexp", None, "jax.nn", dense.PAIRS["logsumexp"].peer, lambda x, y: torch.logsumexp(x, -1), 1, 4
    ),
}


def optax_on_full_logits(h, w, y):
    return optax(h @ w, y, -1).mean()


def float32_logits(h, w):
    return jnp.dot(h, w, preferred_element_type=jnp.float32)


@jax.custom_vjp
def materialised(h, w, y):
    """The formula of tokamax's xla, with all logits at once, and float32 where that rounds to 16 bits."""
    return _materialised(h, w, y)[0]


def _materialised(h, w, y):
    logits = float32_logits(h, w)
    log_normalizer = jax.nn.logsumexp(logits, -1)
    label = jnp.take_along_axis(logits, y[:, None], -1)[:, 0]
    return jnp.mean(log_normalizer - label), (h, w, y, log_normalizer)


def _materialised_back(kept, g):
    h, w, y, log_normalizer = kept
    p = jnp.exp(float32_logits(h, w) - log_normalizer[:, None])
    s = ((p - jax.nn.one_hot(y, w.shape[1])) * (g / len(h))).astype(h.dtype)
    return s @ w.T, h.T @ s, None


materialised.defvjp(_materialised, _materialised_back)


def _chunks(w):
    """The weight, padded with columns of zeros to whole chunks, and the starts of the chunks."""
    padded = jnp.pad(w, ((0, 0), (0, -w.shape[1] % CHUNK)))
    return padded, jnp.arange(0, padded.shape[1], CHUNK)


def _chunk(h, w, start, classes):
    """A chunk of the logits, −inf in the padding; its columns of the weight; their ids."""
    of_weight = lax.dynamic_slice_in_dim(w, start, CHUNK, 1)
    ids = start + jnp.arange(CHUNK)[None]
    return jnp.where(ids < classes, float32_logits(h, of_weight), -jnp.inf), of_weight, ids


@jax.custom_vjp
def chunked(h, w, y):
    """The formula of tokamax's chunked_xla: a scan over chunks of classes, forward and backward."""
    return _chunked(h, w, y)[0]


def _chunked(h, w, y):
    padded, starts = _chunks(w)

    def absorb(carry, start):
        log_normalizer, label = carry
        logits, _, ids = _chunk(h, padded, start, w.shape[1])
        label = label + jnp.sum(jnp.where(ids == y[:, None], logits, 0), -1)
        return (jnp.logaddexp(log_normalizer, jax.nn.logsumexp(logits, -1)), label), None

    begun = jnp.full(y.shape, -jnp.inf), jnp.zeros(y.shape)
    (log_normalizer, label), _ = lax.scan(absorb, begun, starts)
    return jnp.mean(log_normalizer - label), (h, w, y, log_normalizer)


def _chunked_back(kept, g):
    h, w, y, log_normalizer = kept
    padded, starts = _chunks(w)

    def add(carry, start):
        dh, dw = carry
        logits, of_weight, ids = _chunk(h, padded, start, w.shape[1])
        s = jnp.exp(logits - log_normalizer[:, None]) - (ids == y[:, None]).astype(jnp.float32)
        s = (s * (g / len(h))).astype(h.dtype)
        dh = dh + jnp.dot(s, of_weight.T, preferred_element_type=jnp.float32)
        return (dh, lax.dynamic_update_slice_in_dim(dw, h.T @ s, start, 1)), None

    (dh, dw), _ = lax.scan(add, (jnp.zeros(h.shape), jnp.zeros_like(padded)), starts)
    return dh.astype(h.dtype), dw[:, : w.shape[1]], None


chunked.defvjp(_chunked, _chunked_back)

HEADS = {"optax": optax_on_full_logits, "materialised": materialised, "chunked": chunked}


def torch_heads():
    """Torch's losses of a head, including the linear loss if torch has it."""
    functional = torch.nn.functional
    losses = {"torch": lambda h, w, y: functional.cross_entropy((h @ w).float(), y)}
    if hasattr(functional, "linear_cross_entropy"):
        losses["torch linear"] = lambda h, w, y: functional.linear_cross_entropy(h, w.T, y)
    return losses


class InFlight:
    """Results of torch, with the interface to wait for them that JAX's results have."""

    def __init__(self, results):
        self.results = results

    def block_until_ready(self):
        torch.cuda.synchronize()


def launched(call, results):
    """The call, with its results wrapped so that it can be waited for."""
    if torch is None or not isinstance(results[0], torch.Tensor):
        return call
    return lambda *arrays: InFlight(call(*arrays))


def in_torch(name, loss, derivatives, takes_cotangent=False):
    """The function, eager and compiled; with derivatives in this number of first arguments, if asked for."""

    def called(function, *arrays):
        if not derivatives:
            with torch.no_grad():
                return function(*arrays)
        *arrays, g = arrays if takes_cotangent else (*arrays, None)
        leaves = [a.detach().requires_grad_() for a in arrays[:derivatives]]
        value = function(*leaves, *arrays[derivatives:])
        return value.detach(), torch.autograd.grad(value, leaves, g)

    def of(function):
        return lambda *arrays: called(function, *arrays)

    return {name: of(loss), f"{name}.compile": of(torch.compile(loss, dynamic=False))}


def has_torch():
    """Whether torch runs on the device of JAX."""
    return torch is not None and jax.default_backend() == "gpu" and torch.cuda.is_available()


def of_torch(sets):
    """The same arrays in torch, on the same device, not copied, with labels in the type that torch takes."""
    return [tuple(t.long() if t.dtype == torch.int32 else t for t in map(torch.from_dlpack, s)) for s in sets]
