"""Trains with Adam on minibatches, and evaluates in batches of one fixed shape."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

import jsoftmax
from jsoftmax._cli import models
from jsoftmax._cli.data import Dataset, Examples
from jsoftmax._cli.errors import UserError
from jsoftmax._cli.models import Network, Parameters

EVALUATION_BATCH = 256

Outcome = tuple[jax.Array, jax.Array]  # the loss and the accuracy on a minibatch


@dataclass(frozen=True)
class Settings:
    """All settings: with the data, they determine the result."""

    network: Network
    epochs: int
    batch_size: int
    learning_rate: float
    l2: float
    seed: int


class Epoch(NamedTuple):
    """The results of one pass over the training images."""

    loss: float  # mean over the pass, with dropout and the L2 term
    accuracy: float  # mean over the minibatches of the pass, each before its step
    test_nll: float
    test_accuracy: float


class Evaluation(NamedTuple):
    """The results of a network on a set of examples."""

    logits: NDArray[np.float32]
    nll: float  # mean negative log-likelihood in nats
    accuracy: float


class State(NamedTuple):
    """The state that a training step updates."""

    parameters: Parameters
    optimizer: Any


def train(
    data: Dataset, settings: Settings, on_epoch: Callable[[int, Epoch], None]
) -> tuple[Parameters, list[Epoch]]:
    """Train; call `on_epoch(number, epoch)` after every pass; return the parameters and all epochs."""
    inputs, labels = data.train.inputs, data.train.labels
    batch_size = min(settings.batch_size, len(labels))
    steps = len(labels) // batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.epochs * steps))
    start_key, dropout_key = jax.random.split(jax.random.key(settings.seed))
    parameters = settings.network.initialise(start_key, inputs.shape[1], len(data.train.classes))
    state = State(parameters, optimizer.init(parameters))
    step = make_step(settings, optimizer)
    evaluate = make_evaluator(settings.network, data.test)
    shuffler = np.random.default_rng(settings.seed)

    history: list[Epoch] = []
    for number in range(1, settings.epochs + 1):
        epoch_key = jax.random.fold_in(dropout_key, number)
        # Only full minibatches, so that every step has the same shape. Each epoch leaves out a few
        # other images.
        batches = shuffler.permutation(len(labels))[: steps * batch_size].reshape(steps, -1)
        outcomes = []
        for index, batch in enumerate(batches):
            key = jax.random.fold_in(epoch_key, index)
            state, outcome = step(state, inputs[batch], labels[batch], key)
            outcomes.append(outcome)  # stays on the device, so that the loop does not wait for it
        loss, accuracy = np.mean(jax.device_get(outcomes), axis=0).tolist()
        test = evaluate(state.parameters)
        if not math.isfinite(loss + test.nll):
            raise UserError(
                f"training diverged in epoch {number}: loss {loss}, test NLL {test.nll}; "
                f"expected finite numbers, try a --learning-rate below {settings.learning_rate:g}"
            )
        history.append(Epoch(loss, accuracy, test.nll, test.accuracy))
        on_epoch(number, history[-1])
    return state.parameters, history


def make_step(
    settings: Settings, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[State, Outcome]]:
    """Return a compiled training step, which reuses the memory of the old state."""

    @partial(jax.jit, donate_argnums=0)
    def step(state: State, x: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[State, Outcome]:
        def objective(parameters: Parameters) -> tuple[jax.Array, jax.Array]:
            logits = settings.network.logits(parameters, x, key)
            return models.loss(logits, labels, parameters, settings.l2), logits

        (loss, logits), gradients = jax.value_and_grad(objective, has_aux=True)(state.parameters)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer)
        parameters = optax.apply_updates(state.parameters, updates)
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        return State(parameters, optimizer_state), (loss, accuracy)

    return step


def make_evaluator(network: Network, examples: Examples) -> Callable[[Parameters], Evaluation]:
    """Return a compiled function that evaluates parameters on the examples.

    The examples are split into batches of equal size; examples of weight 0 pad the last batch.
    """
    count = len(examples.labels)
    size = EVALUATION_BATCH
    padding = -count % size

    def in_batches(values: NDArray[Any]) -> jax.Array:
        padded = np.pad(values, [(0, padding)] + [(0, 0)] * (values.ndim - 1))
        return jnp.asarray(padded.reshape(-1, size, *values.shape[1:]))

    x, labels = in_batches(examples.inputs), in_batches(examples.labels)
    weights = in_batches(np.ones(count, np.float32))

    @jax.jit
    def evaluate_batches(parameters: Parameters) -> tuple[jax.Array, ...]:
        def evaluate_one(batch: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            x, labels, weights = batch
            logits = network.logits(parameters, x)
            nll = jsoftmax.cross_entropy(logits, labels)
            correct = jnp.argmax(logits, axis=-1) == labels
            return logits, jnp.sum(weights * nll), jnp.sum(weights * correct)

        batches: tuple[jax.Array, ...] = jax.lax.map(evaluate_one, (x, labels, weights))
        return batches

    def evaluate(parameters: Parameters) -> Evaluation:
        logits, nll, correct = evaluate_batches(parameters)
        logits = np.asarray(logits).reshape(-1, len(examples.classes))[:count]
        return Evaluation(logits, float(nll.sum()) / count, float(correct.sum()) / count)

    return evaluate
