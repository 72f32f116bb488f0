"""Real models on real data: they train as they do with jax.nn and optax."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sampling
from flax import nnx
from sklearn.datasets import load_digits

import jsoftmax
from jsoftmax._cli import text

STEPS, ROWS, LENGTH, WORDS, FEATURES, HEADS = 8, 8, 16, 256, 16, 2
PADDING = -1


class Parts(NamedTuple):
    """The functions that a model takes from a library."""

    attention: Callable[..., jax.Array]  # probabilities, from scores and a mask
    loss: Callable[..., jax.Array]  # the mean over the labels that are not PADDING, from logits
    head: Callable[..., jax.Array]  # the same, from features and a table of embeddings


def jax_attention(scores, mask):
    """In float32, as trainers do; a position whose scores are all masked attends to nothing."""
    any_live = jnp.any(mask, axis=-1, keepdims=True)
    p = jax.nn.softmax(scores.astype(jnp.float32), where=mask | ~any_live)
    return jnp.where(any_live, p, 0).astype(scores.dtype)


def optax_loss(logits, labels):
    counted = labels != PADDING
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), jnp.where(counted, labels, 0)
    )
    return jnp.sum(jnp.where(counted, losses, 0)) / jnp.sum(counted)


def optax_head(hidden, table, labels):
    return optax_loss(hidden @ table.T, labels)


MEAN = {"ignore_index": PADDING, "reduction": "mean"}
OURS = Parts(
    lambda scores, mask: jsoftmax.softmax(scores, where=mask),
    functools.partial(jsoftmax.cross_entropy, **MEAN),
    functools.partial(jsoftmax.linear_cross_entropy, vocab_axis=0, block_size=32, **MEAN),
)
THEIRS = Parts(jax_attention, optax_loss, optax_head)


@functools.cache
def sentences():
    """Paragraphs of a text, [STEPS, ROWS, LENGTH], padded at both ends, so that some positions see none."""
    words = text.load(None, WORDS - 2).train
    parts = [p[:LENGTH] for p in np.split(words, np.flatnonzero(words == text.PARAGRAPH_ID)) if len(p) > 4]
    padded = [
        np.pad(p, (LENGTH - len(p), 0) if i % 2 else (0, LENGTH - len(p)), constant_values=PADDING)
        for i, p in enumerate(parts[: STEPS * ROWS])
    ]
    return np.stack(padded).reshape(STEPS, ROWS, LENGTH)


@functools.cache
def digits():
    """Images and labels of several batches."""
    images, labels = load_digits(return_X_y=True)
    count = STEPS * 4 * ROWS
    return (
        np.float32(images[:count] / 16).reshape(STEPS, -1, 64),
        np.int32(labels[:count]).reshape(STEPS, -1),
    )


def may_see(words):
    """Which positions attend to which: to those before, but not to padding."""
    return jnp.tri(words.shape[-1], dtype=bool) & (words != PADDING)[:, None, None, :]


def next_words(words):
    return jnp.pad(words[:, 1:], ((0, 0), (0, 1)), constant_values=PADDING)


def attend(attention, q, k, v, mask):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1]).astype(q.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", attention(scores, mask), v)


def optimise(loss, parameters, batches, optimizer):
    """The losses of all steps, and the first gradient, with an optax optimizer."""

    @jax.jit
    def step(parameters, state, batch):
        value, gradient = jax.value_and_grad(loss)(parameters, *batch)
        updates, state = optimizer.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state, value, gradient

    state, found = optimizer.init(parameters), []
    for batch in zip(*batches, strict=True):
        parameters, state, *new = step(parameters, state, batch)
        found.append(new)
    return jnp.stack([value for value, _ in found]), found[0][1]


def block(parts: Parts, dtype: Any = jnp.float32, remat: Callable[..., Any] = lambda f: f):
    """One block of attention in plain JAX, whose table of embeddings is also its head."""

    def of_block(weights, x, mask):
        q, k, v = jnp.einsum("btd,sdhe->sbthe", x, weights["qkv"])
        x += jnp.einsum("bthe,hed->btd", attend(parts.attention, q, k, v, mask), weights["out"])
        return x + jax.nn.gelu(x @ weights["up"]) @ weights["down"]

    def loss(weights, words):
        weights = jax.tree.map(lambda w: w.astype(dtype), weights)
        x = weights["table"][jnp.maximum(words, 0)] + weights["places"]
        return parts.head(remat(of_block)(weights, x, may_see(words)), weights["table"], next_words(words))

    shapes = {
        "table": (WORDS, FEATURES),
        "places": (LENGTH, FEATURES),
        "qkv": (3, FEATURES, HEADS, FEATURES // HEADS),
        "out": (HEADS, FEATURES // HEADS, FEATURES),
        "up": (FEATURES, 4 * FEATURES),
        "down": (4 * FEATURES, FEATURES),
    }
    rng = np.random.default_rng(0)
    weights = {name: jnp.float32(rng.normal(size=s) / 4) for name, s in shapes.items()}
    return optimise(loss, weights, (sentences(),), optax.adam(1e-2))


class Block(nnx.Module):
    """A transformer block, with their attention function or ours."""

    def __init__(self, attention, rngs):
        self.attention = nnx.MultiHeadAttention(
            HEADS,
            FEATURES,
            use_bias=False,
            decode=False,
            attention_fn=lambda q, k, v, mask, **_: attend(attention, q, k, v, mask),
            rngs=rngs,
        )
        self.before, self.within = (nnx.LayerNorm(FEATURES, rngs=rngs) for _ in range(2))
        self.up = nnx.Linear(FEATURES, 4 * FEATURES, rngs=rngs)
        self.down = nnx.Linear(4 * FEATURES, FEATURES, rngs=rngs)

    def __call__(self, x, mask):
        x += self.attention(self.before(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.within(x))))


class Transformer(nnx.Module):
    """A language model, whose table of embeddings is also its head."""

    def __init__(self, parts, remat, rngs):
        self.parts, self.remat = parts, remat
        self.words = nnx.Embed(WORDS, FEATURES, rngs=rngs)
        self.places = nnx.Embed(LENGTH, FEATURES, rngs=rngs)
        self.blocks = nnx.List([Block(parts.attention, rngs) for _ in range(2)])

    def loss(self, words):
        x = self.words(jnp.maximum(words, 0)) + self.places(jnp.arange(LENGTH))
        for block in self.blocks:
            x = self.remat(Block.__call__)(block, x, may_see(words))
        return self.parts.head(x, self.words.embedding[...], next_words(words))


def nnx_transformer(parts: Parts, remat: Callable[..., Any] = lambda f: f):
    model = Transformer(parts, remat, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, words):
        value, gradient = nnx.value_and_grad(Transformer.loss)(model, words)
        optimizer.update(model, gradient)
        return value, gradient

    found = [step(model, optimizer, words) for words in sentences()]
    return jnp.stack([value for value, _ in found]), nnx.to_pure_dict(found[0][1])


class Classifier(eqx.Module):
    """A classifier of one image."""

    layers: eqx.nn.Sequential

    def __init__(self, key):
        keys = jax.random.split(key)
        self.layers = eqx.nn.Sequential(
            [
                eqx.nn.Linear(64, 32, key=keys[0]),
                eqx.nn.LayerNorm(32),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Dropout(0.2),
                eqx.nn.Linear(32, 10, key=keys[1]),
            ]
        )

    def __call__(self, x, key):
        return self.layers(x, key=key)


def equinox_classifier(parts: Parts):
    """The loss inside the function that is mapped over the images, as in Equinox."""
    model, optimizer = Classifier(jax.random.key(0)), optax.adam(1e-2)

    def loss(model, images, labels, key):
        keys = jax.random.split(key, len(labels))
        return jnp.mean(jax.vmap(lambda x, y, k: parts.loss(model(x, k), y))(images, labels, keys))

    @eqx.filter_jit
    def step(model, state, images, labels, key):
        value, gradient = eqx.filter_value_and_grad(loss)(model, images, labels, key)
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(model, updates), state, value, gradient

    state, found = optimizer.init(eqx.filter(model, eqx.is_inexact_array)), []
    keys = jax.random.split(jax.random.key(1), STEPS)
    for batch in zip(*digits(), keys, strict=True):
        model, state, *new = step(model, state, *batch)
        found.append(new)
    return jnp.stack([value for value, _ in found]), found[0][1]


def accumulated(parts: Parts):
    """A network on the digits, with one update for two batches."""

    def loss(weights, images, labels):
        first, second = weights
        return parts.loss(jnp.tanh(images @ first) @ second, labels)

    rng = np.random.default_rng(0)
    weights = [jnp.float32(rng.normal(size=shape) / 8) for shape in ((64, 32), (32, 10))]
    return optimise(loss, weights, digits(), optax.MultiSteps(optax.adam(3e-2), 2))


MODELS = {
    "Flax NNX, a transformer": (nnx_transformer, {}),
    "Flax NNX, a transformer, nnx.remat": (nnx_transformer, {"remat": nnx.remat}),
    "Equinox, a classifier": (equinox_classifier, {}),
    "JAX, attention": (block, {}),
    "JAX, attention, jax.checkpoint": (block, {"remat": jax.checkpoint}),
    "JAX, attention, bfloat16": (block, {"dtype": jnp.bfloat16}),
    "optax, accumulated gradients": (accumulated, {}),
}


@functools.cache
def on_theirs(model, **options):
    return model(THEIRS, **options)


ONE_OF_EACH = (
    "Flax NNX, a transformer, nnx.remat",
    "Equinox, a classifier",
    "JAX, attention, jax.checkpoint",
    "JAX, attention, bfloat16",
    "optax, accumulated gradients",
)


@pytest.mark.share(4)
@pytest.mark.parametrize("name", sampling.sample(MODELS, *ONE_OF_EACH))
def test_a_model_trains_as_on_jax_and_optax(name):
    """Equal to float32 rounding; in bfloat16, at most twice as far from the float32 model as theirs."""
    model, options = MODELS[name]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = model(OURS, **options)
        theirs = on_theirs(model, **{name: o for name, o in options.items() if name == "dtype"})
        exact = on_theirs(model)

    def close(got, theirs, exact):
        assert got.dtype == exact.dtype
        allowed = 1e-5 * np.linalg.norm(exact) + 2 * np.linalg.norm(theirs - exact)
        assert np.linalg.norm(got - exact) <= allowed

    jax.tree.map(close, found, theirs, exact)
    curve, gradient = found
    assert curve[-1] < 0.9 * curve[0]
    assert jax.tree.leaves(gradient)
