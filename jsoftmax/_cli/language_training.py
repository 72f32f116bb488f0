"""Trains the language model with the linear head, and evaluates it on held-out text."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax
from jsoftmax._cli import language
from jsoftmax._cli.errors import UserError
from jsoftmax._cli.language import Network, Parameters
from jsoftmax._cli.text import Corpus, Ids
from jsoftmax.linear._arguments import Gradient

EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class Settings:
    """All settings: with the text, they determine the result."""

    network: Network
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    gradient: Gradient = "exact"


class Epoch(NamedTuple):
    """The losses of one pass over the training words, in nats per word."""

    nll: float  # mean over the pass, with dropout
    held_out_nll: float


class State(NamedTuple):
    """The state that a training step updates."""

    parameters: Parameters
    optimizer: Any


def perplexity(nll: float) -> float:
    """exp(nll): a uniform choice among this number of words has the same nll."""
    return math.exp(nll) if nll < 700 else math.inf


def unigram_nll(corpus: Corpus) -> float:
    """The mean nll of the held-out words under the unigram model, the word frequencies."""
    return -float(np.mean(np.log(corpus.frequencies[corpus.held_out]), dtype=np.float64))


def train(
    corpus: Corpus,
    settings: Settings,
    on_epoch: Callable[[int, Epoch], None],
    on_step: Callable[[float], None] = lambda epochs: None,
) -> tuple[Parameters, list[Epoch]]:
    """Train; call `on_epoch(number, epoch)` after every pass, and `on_step(passes)` at every step."""
    labels = corpus.train
    inputs = language.contexts(labels, settings.network.context)
    batch_size = min(settings.batch_size, len(labels))
    steps = len(labels) // batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.epochs * steps))
    start_key, dropout_key = jax.random.split(jax.random.key(settings.seed))
    parameters = settings.network.initialise(start_key, corpus)
    state = State(parameters, optimizer.init(parameters))
    step = make_step(settings.network, optimizer, settings.gradient)
    evaluate = make_evaluator(settings.network, corpus.held_out)
    shuffler = np.random.default_rng(settings.seed)

    history: list[Epoch] = []
    for number in range(1, settings.epochs + 1):
        epoch_key = jax.random.fold_in(dropout_key, number)
        # Whole minibatches only, so that every step has the same shape.
        batches = shuffler.permutation(len(labels))[: steps * batch_size].reshape(steps, -1)
        losses = []
        for index, batch in enumerate(batches):
            key = jax.random.fold_in(epoch_key, index)
            state, loss = step(state, inputs[batch], labels[batch], key)
            losses.append(loss)
            on_step(number - 1 + index / steps)
        nll = float(np.mean(jax.device_get(losses)))
        held_out = float(np.mean(evaluate(state.parameters).nll))
        if not math.isfinite(nll + held_out):
            raise UserError(
                f"training diverged in epoch {number}: loss {nll}, of the held-out text {held_out}; "
                f"expected finite numbers, try a --learning-rate below {settings.learning_rate:g}"
            )
        history.append(Epoch(nll, held_out))
        on_epoch(number, history[-1])
    return state.parameters, history


def make_step(
    network: Network, optimizer: optax.GradientTransformation, gradient: Gradient = "exact"
) -> Callable[..., tuple[State, jax.Array]]:
    """Return a compiled training step, which reuses the memory of the old state.

    The key may be None without dropout, if the gradient is not "sampled".
    """

    @partial(jax.jit, donate_argnums=0)
    def step(state: State, contexts: Ids, labels: Ids, key: jax.Array | None) -> tuple[State, jax.Array]:
        gradient_key = None if key is None else jax.random.fold_in(key, 1)

        def mean_nll(parameters: Parameters) -> jax.Array:
            return jsoftmax.linear_cross_entropy(
                network.hidden_of(parameters, contexts, key),
                parameters.table,
                labels,
                vocab_axis=0,
                bias=parameters.bias,
                reduction="mean",
                gradient=gradient,
                key=gradient_key,
            )

        loss, gradients = jax.value_and_grad(mean_nll)(state.parameters)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer)
        return State(optax.apply_updates(state.parameters, updates), optimizer_state), loss

    return step


def make_evaluator(network: Network, ids: Ids) -> Callable[[Parameters], jsoftmax.RowStatistics]:
    """Return a function of parameters: the row statistics of each of these words, given the words before."""
    count = len(ids)
    size = min(EVALUATION_BATCH, count)
    places = np.arange(-(-count // size) * size).reshape(-1, size) % count  # padded with the first
    batches = language.contexts(ids, network.context)[places], ids[places]

    @jax.jit
    def evaluate_batches(parameters: Parameters) -> jsoftmax.RowStatistics:
        def evaluate_one(batch: tuple[jax.Array, jax.Array]) -> jsoftmax.RowStatistics:
            contexts, labels = batch
            h = network.hidden_of(parameters, contexts)
            return jsoftmax.linear_row_statistics(
                h, parameters.table, labels, vocab_axis=0, bias=parameters.bias
            )

        found: jsoftmax.RowStatistics = jax.lax.map(evaluate_one, jax.tree.map(jnp.asarray, batches))
        return found

    def evaluate(parameters: Parameters) -> jsoftmax.RowStatistics:
        found = evaluate_batches(parameters)
        return jax.tree.map(lambda a: np.asarray(a).ravel()[:count], found)

    return evaluate
