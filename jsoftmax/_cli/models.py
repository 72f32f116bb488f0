"""The two classifiers: linear, z = x W + b, and a network with hidden layers before that."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

import jsoftmax
from jsoftmax import rules


class Layer(NamedTuple):
    """One affine map."""

    weights: jax.Array  # [inputs, outputs]
    bias: jax.Array  # [outputs]

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.weights + self.bias


Parameters = tuple[Layer, ...]


class Trace(NamedTuple):
    """The results of the forward pass that the backward pass needs."""

    inputs: tuple[jax.Array, ...]  # the input of each layer, [N, inputs]
    slopes: tuple[jax.Array, ...]  # f'(a) of each hidden layer's activation, [N, hidden]
    logits: jax.Array  # [N, classes]


class Activation(NamedTuple):
    """A nonlinearity f, and its slope f'(a) as a function of h = f(a)."""

    value: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]


ACTIVATIONS = {
    "relu": Activation(jax.nn.relu, lambda h: (h > 0).astype(h.dtype)),
    "tanh": Activation(jnp.tanh, lambda h: (1 - h) * (1 + h)),
}


@dataclass(frozen=True)
class Network:
    """Layers with an activation between them; without hidden layers, logistic regression."""

    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    dropout: float = 0.0

    def initialise(self, key: jax.Array, inputs: int, classes: int) -> Parameters:
        """Draw weights with variance 1 / inputs; biases start at zero."""
        sizes = (inputs, *self.hidden, classes)
        keys = jax.random.split(key, len(sizes) - 1)
        return tuple(
            Layer(jax.random.normal(k, (n, m)) * jnp.sqrt(1 / n), jnp.zeros(m))
            for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
        )

    def logits(self, parameters: Parameters, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Apply the network; with a key, with dropout of hidden units (for training)."""
        *hidden, output = parameters
        for index, layer in enumerate(hidden):
            x = ACTIVATIONS[self.activation].value(layer(x))
            if dropout_key is not None and self.dropout > 0:
                key = jax.random.fold_in(dropout_key, index)
                kept = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
                x = jnp.where(kept, x / (1 - self.dropout), 0)
        return output(x)

    def trace(self, parameters: Parameters, x: jax.Array) -> Trace:
        """Apply the network without dropout, and keep the results that `backward` needs."""
        activation = ACTIVATIONS[self.activation]
        *hidden, output = parameters
        inputs, slopes = [x], []
        for layer in hidden:
            inputs.append(activation.value(layer(inputs[-1])))
            slopes.append(activation.slope(inputs[-1]))
        return Trace(tuple(inputs), tuple(slopes), output(inputs[-1]))


def loss(logits: jax.Array, labels: jax.Array, parameters: Parameters, l2: float) -> jax.Array:
    """Mean cross-entropy in nats, plus l2/2 sum W^2 over the weights, without the biases."""
    penalty = sum(jnp.sum(layer.weights**2) for layer in parameters)
    return jsoftmax.cross_entropy(logits, labels, reduction="mean") + l2 / 2 * penalty


def output_error(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """(p - t) / N: the derivative of the mean cross-entropy in the logits."""
    return rules.cross_entropy_residual(jsoftmax.softmax(logits), targets) / len(logits)


def backward(
    parameters: Parameters, trace: Trace, error: jax.Array, l2: float
) -> tuple[Parameters, tuple[jax.Array, ...]]:
    """Propagate the output error by hand; return the gradients and the error of every layer.

    The error of a layer is the derivative in its result x W + b:
        dW = x^T error + l2 W,    db = sum_n error_n,
        error of the layer below = (error W^T) * f'(a).
    """
    gradients, errors = [], [error]
    for index in reversed(range(len(parameters))):
        weights, inputs = parameters[index].weights, trace.inputs[index]
        gradients.append(Layer(inputs.T @ error + l2 * weights, jnp.sum(error, axis=0)))
        if index > 0:
            error = (error @ weights.T) * trace.slopes[index - 1]
            errors.append(error)
    return tuple(reversed(gradients)), tuple(reversed(errors))
