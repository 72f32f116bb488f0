"""Compare jsoftmax with jax.grad of the textbook definitions, on a trained network.

Both sides are computed in float32 and differ by rounding only. The bound for each entry is

    (8 + s) * eps * m.

m is the sum of the |terms| of the entry: where terms cancel, their rounding errors remain. s is the
spread max - min of the logits of the row: the rounding of its argument gives exp(x - max) a relative
error that is |x - max| times as large.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jsoftmax
from jsoftmax import rules
from jsoftmax._cli import definitions, models
from jsoftmax._cli.data import Examples
from jsoftmax._cli.functions import FUNCTIONS, Function, Rows
from jsoftmax._cli.models import Layer, Network, Parameters

BOUND = "(8 + spread of the logits) * float32 eps * sum of |terms|, entry by entry"
FLOAT32 = np.finfo(np.float32)
JACOBIAN_ROWS = 8


class Comparison(NamedTuple):
    """The differences between two computations of one quantity."""

    quantity: str
    difference: float  # the largest difference
    ratio: float  # the largest ratio of a difference to its bound

    @property
    def ok(self) -> bool:
        return self.ratio <= 1  # False for NaN


def compare(quantity: str, ours: Array, plain: Array, terms: Array, spread: Array | float) -> Comparison:
    """Compare ours with plain; `terms` is m of the bound, and `spread` is s."""
    if not ours.shape == plain.shape == terms.shape:
        raise ValueError(f"{quantity}: shapes {ours.shape}, {plain.shape}, {terms.shape}")
    difference = np.abs(np.asarray(ours, np.float64) - np.asarray(plain, np.float64))
    # A device may round subnormal numbers to zero, the terms as well as their sum.
    bound = (8 + np.asarray(spread)) * FLOAT32.eps * np.asarray(terms) + 4 * FLOAT32.tiny
    return Comparison(quantity, float(difference.max()), float((difference / bound).max()))


def compare_all(
    network: Network, parameters: Parameters, examples: Examples, l2: float, seed: int
) -> Iterator[Comparison]:
    """Every comparison of this module, at the logits of these examples."""
    # Without "highest", an accelerator may multiply matrices with fewer digits than float32.
    with jax.default_matmul_precision("highest"):
        x, labels = jnp.asarray(examples.inputs), jnp.asarray(examples.labels)
        random = np.random.default_rng(seed)  # JAX's generator would be compiled into each comparison
        classes = len(examples.classes)
        noise = random.dirichlet(np.ones(classes), len(labels)).astype(np.float32)
        targets = 0.9 * jax.nn.one_hot(labels, classes) + 0.1 * noise
        rows = Rows(network.logits(parameters, x), labels, targets)
        for function in FUNCTIONS:
            yield from compare_function(function, rows, random)
        yield from compare_jacobians(rows.logits[:JACOBIAN_ROWS])
        yield from compare_backward_pass(network, parameters, x, labels, l2)


def by_differences(terms: Array, x: Array) -> Array:
    """`terms` for jax.grad of a definition, whose x - x_top adds the terms of the row at the top entry."""
    top = x == jnp.max(x, axis=-1, keepdims=True)
    return jnp.where(top, jnp.sum(terms, axis=-1, keepdims=True), terms)


def compare_function(function: Function, rows: Rows, random: np.random.Generator) -> Iterator[Comparison]:
    """Compare the value of a public function, and the pullback of a random cotangent by its rule."""

    def value_and_pullback(f: Callable[[Rows], Any], rows: Rows, g: Array) -> tuple[Array, Array]:
        value, pull = jax.vjp(lambda x: f(rows._replace(logits=x)), rows.logits)
        return value, *pull(g)

    @jax.jit
    def compute(rows: Rows, g: Array) -> tuple[Array, ...]:
        value, gradient = value_and_pullback(function.ours, rows, g)
        plain = partial(function.definition, jnp)
        plain_value, plain_gradient = value_and_pullback(plain, rows, g)
        terms = function.terms(jnp, rows, definitions.softmax(jnp, rows.logits), g)
        terms = by_differences(terms, rows.logits)
        return value, plain_value, abs(plain_value), gradient, plain_gradient, terms

    shape = jax.eval_shape(function.ours, rows).shape
    g = random.normal(size=shape).astype(np.float32)
    value, plain_value, size, gradient, plain_gradient, terms = compute(rows, g)
    spread = np.ptp(np.asarray(rows.logits), axis=-1)
    value_spread = spread[:, None] if value.ndim > 1 else spread
    yield compare(function.name, value, plain_value, size, value_spread)
    yield compare("  gradient", gradient, plain_gradient, terms, spread[:, None])


def compare_jacobians(x: Array) -> Iterator[Comparison]:
    """Compare the Jacobians of some rows: jax.jacrev of our functions, and of the definitions."""

    @jax.jit
    def compute(x: Array) -> tuple[tuple[Array, Array, Array], ...]:
        p, eye = definitions.softmax(jnp, x), jnp.eye(x.shape[-1])
        softmax_terms = p[:, :, None] * (eye + p[:, None, :])  # of p_i (delta_ij - p_j)
        log_softmax_terms = jnp.broadcast_to(p[:, None, :], softmax_terms.shape) + eye
        softmax_terms, log_softmax_terms = (
            by_differences(terms, x[:, None, :]) for terms in (softmax_terms, log_softmax_terms)
        )

        def jacobians(f: Callable[[Array], Array]) -> Array:
            return jax.vmap(jax.jacrev(f))(x)

        plain, log_plain = (
            jacobians(partial(f, jnp)) for f in (definitions.softmax, definitions.log_softmax)
        )
        return (
            (jacobians(jsoftmax.softmax), plain, softmax_terms),
            (rules.softmax_jacobian(jsoftmax.softmax(x)), plain, softmax_terms),
            (jacobians(jsoftmax.log_softmax), log_plain, log_softmax_terms),
        )

    spread = np.ptp(np.asarray(x), axis=-1)[:, None, None]
    names = ("softmax, Jacobian", "rules.softmax_jacobian", "log_softmax, Jacobian")
    for name, (ours, plain, terms) in zip(names, compute(x), strict=True):
        yield compare(name, ours, plain, terms, spread)


def compare_backward_pass(
    network: Network, parameters: Parameters, x: Array, labels: Array, l2: float
) -> Iterator[Comparison]:
    """Compare the backward pass by hand, without dropout, with jax.grad of the textbook loss."""

    def textbook_loss(parameters: Parameters) -> Array:
        logits = network.logits(parameters, x)
        nll = definitions.cross_entropy_with_integer_labels(jnp, logits, labels)
        penalty = sum(jnp.sum(layer.weights**2) for layer in parameters)
        return jnp.mean(nll) + l2 / 2 * penalty

    @jax.jit
    def compute(parameters: Parameters) -> tuple[Any, ...]:
        trace = network.trace(parameters, x)
        targets = jax.nn.one_hot(labels, trace.logits.shape[-1])
        error = models.output_error(trace.logits, targets)
        gradients, errors = models.backward(parameters, trace, error, l2)
        plain_gradients = jax.grad(textbook_loss)(parameters)
        # With its own bias for every example, the gradient in a bias is the error of that example.
        ones = jnp.ones((len(x), 1))
        own_biases = tuple(Layer(layer.weights, ones * layer.bias) for layer in parameters)
        plain_errors = [layer.bias for layer in jax.grad(textbook_loss)(own_biases)]
        # The same pass on absolute values adds up the |terms|. A slope is 0, 1, or 1 - tanh^2, a
        # difference of terms near 1: as |terms|, every slope except 0 counts as 1.
        p = jsoftmax.softmax(trace.logits)
        unsigned_parameters, unsigned_trace = jax.tree.map(jnp.abs, (parameters, trace))
        unsigned_trace = unsigned_trace._replace(slopes=jax.tree.map(jnp.sign, trace.slopes))
        unsigned_error = by_differences(p + targets, trace.logits) / len(x)
        terms, error_terms = models.backward(unsigned_parameters, unsigned_trace, unsigned_error, l2)
        ours, plain = (errors, gradients), (plain_errors, plain_gradients)
        return trace.logits, ours, plain, (error_terms, terms)

    logits, ours, plain, terms = compute(parameters)
    spread = float(np.ptp(np.asarray(logits), axis=-1).max())
    for index, name in reversed(list(enumerate(layer_names(len(network.hidden))))):
        parts = ([errors[index], *gradients[index]] for errors, gradients in (ours, plain, terms))
        for quantity, by_hand, by_grad, m in zip(("error", "dW", "db"), *parts, strict=True):
            yield compare(f"{name}, {quantity}", by_hand, by_grad, m, spread)


def layer_names(hidden: int) -> list[str]:
    """The names of the layers, of which one hidden layer needs no number."""
    numbered = [f"hidden layer {number}" for number in range(1, hidden + 1)]
    return [*(numbered if hidden > 1 else ["hidden layer"] * hidden), "output layer"]
