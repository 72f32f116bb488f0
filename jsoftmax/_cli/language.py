"""A small language model: it predicts the next word from the last C words, with one table of embeddings E.

    h = W₂ relu(W₁ [√D E_1 … √D E_C] + b₁) + b₂,    p = softmax(E h + b),

where E_1 … E_C are the rows of E for the last C words. W₂ and b₂ start at zero, and b at the logarithms of
the word frequencies: before the training, this is the unigram model.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.lib.stride_tricks import sliding_window_view

from jsoftmax import sampling
from jsoftmax._cli.models import Layer
from jsoftmax._cli.text import PARAGRAPH_ID, UNKNOWN_ID, Corpus, Ids


class Parameters(NamedTuple):
    """The trained parameters."""

    table: jax.Array  # E, [V, D]: the embeddings of the words, also the weights of the output
    bias: jax.Array  # b, [V]
    mixing: Layer  # [C * D, hidden]
    output: Layer  # [hidden, D]


@dataclass(frozen=True)
class Network:
    """The sizes of the model."""

    context: int  # C
    features: int  # D
    hidden: int
    dropout: float = 0.0

    def initialise(self, key: jax.Array, corpus: Corpus) -> Parameters:
        """Draw the table and the mixing weights at random; the others start as the module says."""
        of_table, of_mixing = jax.random.split(key)
        inputs, shape = self.context * self.features, (len(corpus.vocabulary), self.features)
        weights = jax.random.normal(of_mixing, (inputs, self.hidden)) / np.sqrt(np.float32(inputs))
        return Parameters(
            jax.random.normal(of_table, shape) / np.sqrt(np.float32(self.features)),
            jnp.log(jnp.asarray(corpus.frequencies)),
            Layer(weights, jnp.zeros(self.hidden)),
            Layer(jnp.zeros((self.hidden, self.features)), jnp.zeros(self.features)),
        )

    def hidden_of(
        self, parameters: Parameters, contexts: ArrayLike, key: jax.Array | None = None
    ) -> jax.Array:
        """h, [N, D], for contexts [N, C]; with a key, with dropout before each layer."""
        keys = (None, None) if key is None else jax.random.split(key)
        x = parameters.table[jnp.asarray(contexts)] * np.sqrt(np.float32(self.features))
        x = self._drop(x.reshape(len(x), -1), keys[0])
        x = jax.nn.relu(parameters.mixing(x))
        return parameters.output(self._drop(x, keys[1]))

    def _drop(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        if key is None or self.dropout == 0:
            return x
        return jnp.where(jax.random.bernoulli(key, 1 - self.dropout, x.shape), x / (1 - self.dropout), 0)


def contexts(ids: Ids, count: int) -> Ids:
    """The `count` words before each word, [N, count], as a view; before the text, paragraph ends."""
    begun = np.concatenate([np.full(count, PARAGRAPH_ID, np.int32), ids])
    return sliding_window_view(begun, count)[:-1]


@dataclass(frozen=True)
class Sampling:
    """How words are drawn: at a temperature, from the fewest words whose probabilities sum to `top_p`."""

    temperature: float
    top_p: float = 1.0


def write(network: Network, parameters: Parameters, count: int, how: Sampling, key: jax.Array) -> Ids:
    """Words of a new paragraph, drawn one after the other from the model, without the unknown word."""
    known = jnp.arange(len(parameters.bias)) != UNKNOWN_ID

    def draw(context: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = parameters.table @ network.hidden_of(parameters, context[None])[0] + parameters.bias
        kept = sampling.keep_mask(logits, top_p=how.top_p, where=known, temperature=how.temperature)
        word = sampling.categorical(key, logits, where=kept, temperature=how.temperature).ids
        return jnp.append(context[1:], word), word

    start = jnp.full(network.context, PARAGRAPH_ID, jnp.int32)
    return np.asarray(jax.jit(lambda keys: jax.lax.scan(draw, start, keys)[1])(jax.random.split(key, count)))
