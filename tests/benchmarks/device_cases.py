"""The cases for a device: functions of full logits, and linear heads; their limits and their checks.

An array consists of a few distinct rows, repeated in random order: so float64 on the host gives all rows of
any size, and means and sums over all rows follow from the few.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests import shapes
from tests.benchmarks import dense, device_peers, linear
from tests.benchmarks.dense import torch

DISTINCT = 32


def repeated(rows):
    """The index of the distinct row at each position, the count of each, and its first position."""
    distinct = math.gcd(rows, DISTINCT)
    index = np.random.default_rng(0).permutation(np.arange(rows) % distinct)
    return index, distinct, np.unique(index, return_index=True)[1]


def some(rows):
    return np.arange(0, rows, max(1, rows // 16))


def taken(array, places, axis=0):
    """A part of an array of JAX or of torch, on the host in float64."""
    if isinstance(array, np.ndarray):
        return np.take(array, places, axis)
    if torch is not None and isinstance(array, torch.Tensor):
        places = torch.as_tensor(places, device=array.device)
        return array.index_select(axis, places).double().cpu().numpy()
    return np.asarray(jnp.take(array, places, axis), np.float64)


def scalar(array):
    return np.array(float(array))


def at_labels_and_elsewhere(rows, labels):
    """Two parts: an error elsewhere is too small to show next to the −1 at a label."""
    at = np.arange(len(rows)), labels
    elsewhere = rows.copy()
    elsewhere[at] = 0
    return [rows[at], elsewhere]


def error(parts, exact):
    """The largest error of the parts, each ‖out − exact‖ / ‖exact‖."""
    errors = [np.linalg.norm(p - e) / np.linalg.norm(e) for p, e in zip(parts, exact, strict=True)]
    return float(np.max(errors))


class Logits(NamedTuple):
    """A function of full logits."""

    function: str
    rows: int
    classes: int
    dtype: str = "bfloat16"

    @property
    def name(self):
        return f"{self.rows}x{self.classes} {self.function}"

    @property
    def peers(self):
        return device_peers.ROWS[self.function]

    @property
    def takes_cotangent(self):
        """Whether the second array is a cotangent of the result, not class ids."""
        return self.function.endswith("and backward")

    def arrays(self):
        index, distinct, _ = repeated(self.rows)
        of_x, of_g = jax.random.split(jax.random.key(0))

        def rows(key):
            few = jax.random.normal(key, (distinct, self.classes)).astype(self.dtype)
            return jnp.take(few, index, axis=0)

        if self.takes_cotangent:
            return rows(of_x), rows(of_g)
        y = np.random.default_rng(1).integers(0, self.classes, distinct)
        return rows(of_x), jnp.asarray(y[index], jnp.int32)

    def programs(self):
        functions = {"ours": self.peers.ours, "kernel": self.peers.kernel, self.peers.peer: self.peers.jax}
        return {who: functools.partial(f, axis=-1) for who, f in functions.items() if f is not None}

    def of_torch(self):
        derivatives = 1 if "gradient" in self.function or self.takes_cotangent else 0
        return device_peers.in_torch("torch", self.peers.torch, derivatives, self.takes_cotangent)

    def limits(self, sets):
        limits = {name: jax.jit(functools.partial(f, axis=-1)) for name, f in dense.LIMITS.items()}
        return {name: (f, [s[:1] for s in sets]) for name, f in limits.items()}

    def limit(self, times):
        """A copy is two passes; one pass is the time of a maximum, or of half a copy if that is faster."""
        one_pass = np.minimum(times["max"], times["copy"] / 2)
        limits = {
            1: ("one pass", one_pass),
            2: ("copy", times["copy"]),
            5: ("2½ copies", 2.5 * times["copy"]),
        }
        return limits[self.peers.passes]

    def work(self):
        """The bytes that have to be moved, and the operations."""
        logits = self.rows * self.classes
        return logits * jnp.dtype(self.dtype).itemsize * self.peers.passes, logits * self.peers.operations

    def exact(self, x, y):
        """The `parts` of the exact results."""
        index, distinct, first = repeated(self.rows)
        few, second = taken(x, first), taken(y, first)
        places = index[some(self.rows)]
        if self.takes_cotangent:
            name = self.function.removesuffix(" and backward")
            exact = dense.PAIRS[name].exact(few, None, -1)
            backward = {"softmax": dense.plain_backward, "log_softmax": dense.plain_log_backward}[name]
            p = exact if name == "softmax" else np.exp(exact)
            return [taken(exact, places), taken(backward(np, second, p, -1), places)]
        results = jax.tree.leaves(dense.PAIRS[self.function].exact(few, second.astype(int), -1))
        if "gradient" in self.function:
            results[1] = results[1] * (distinct / self.rows)
        return self.of_results(results, places, second[places].astype(int))

    def parts(self, results, x, y):
        if self.takes_cotangent:
            return [taken(result, some(self.rows)) for result in results]
        return self.of_results(results, some(self.rows), taken(y, some(self.rows)).astype(int))

    def of_results(self, results, rows, labels):
        found = []
        for result in results:
            if result.ndim == 2:
                found += at_labels_and_elsewhere(taken(result, rows), labels)
            else:
                found.append(taken(result, rows) if result.ndim else scalar(result))
        return found


class Head(NamedTuple):
    """The loss of a linear head, or the loss and both gradients."""

    function: str
    rows: int
    features: int
    classes: int
    dtype: str = "bfloat16"

    @property
    def name(self):
        return f"{self.rows}x{self.features}x{self.classes} {self.function}"

    @property
    def products(self):
        return 3 if "gradients" in self.function else 1

    def arrays(self):
        index, distinct, _ = repeated(self.rows)
        of_hidden, of_weight = jax.random.split(jax.random.key(0))
        few = jax.random.normal(of_hidden, (distinct, self.features)).astype(self.dtype)
        w = jax.random.normal(of_weight, (self.features, self.classes), self.dtype) * self.features**-0.5
        y = np.random.default_rng(1).integers(0, self.classes, distinct)
        return jnp.take(few, index, axis=0), w.astype(self.dtype), jnp.asarray(y[index], jnp.int32)

    def programs(self):
        losses = {"ours": linear.ours} | device_peers.HEADS
        if self.products == 1:
            return losses | {"kernel": device_peers.head_in_kernels}
        return {who: jax.value_and_grad(loss, (0, 1)) for who, loss in losses.items()}

    def of_torch(self):
        derivatives = 2 if self.products == 3 else 0
        return {
            who: call
            for name, loss in device_peers.torch_heads().items()
            for who, call in device_peers.in_torch(name, loss, derivatives).items()
        }

    def limits(self, sets):
        name = "three products" if self.products == 3 else "one product"
        return {name: (linear.products(*sets[0])[name], [()])}

    def limit(self, times):
        return next((name, t) for name, t in times.items() if "product" in name)

    def work(self):
        """The bytes that have to be moved, and the operations."""
        numbers = self.features * (self.rows + self.classes) * (2 if self.products == 3 else 1)
        operations = 2 * self.rows * self.features * self.classes * self.products
        return numbers * jnp.dtype(self.dtype).itemsize, operations

    def columns(self, y):
        """The columns of the labels, and some others."""
        labels = np.unique(y)
        return labels, np.setdiff1d(np.linspace(0, self.classes - 1, 64).astype(int), labels)

    def exact(self, h, w, y):
        index, distinct, first = repeated(self.rows)
        value, dh, dw = linear.exact(taken(h, first), w, taken(y, first).astype(int))
        results = (value, dh * (distinct / self.rows), dw)
        return self.of_results(results[: self.products], index[some(self.rows)], np.asarray(y))

    def parts(self, results, h, w, y):
        return self.of_results(results, some(self.rows), np.asarray(y))

    def of_results(self, results, rows, y):
        value, *gradients = results
        if not gradients:
            return [scalar(value)]
        dh, dw = gradients
        return [scalar(value), taken(dh, rows), *(taken(dw, at, 1) for at in self.columns(y))]


def cases(rows=shapes.DEVICE_ROWS, heads=shapes.DEVICE_HEADS):
    """The first case of each kind comes first, so that a run that ends early has the most important ones."""
    logits = [Logits(function, *shape) for shape in rows for function in device_peers.ROWS]
    gradients = [Head("loss and gradients", *shape) for shape in heads]
    losses = [Head("loss", *shape) for shape in heads]
    first = len(device_peers.ROWS)
    return logits[:first] + gradients[:2] + losses[:1] + logits[first:] + gradients[2:] + losses[1:]
