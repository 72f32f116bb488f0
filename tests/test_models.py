"""A training step with our loss instead of a hand-written one, on real digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import jsoftmax

STEPS = 60
Z_LOSS = 1e-3


@jax.custom_vjp
def t5x_loss(logits, targets, z_loss):
    """As in a trainer: cross-entropy plus the z-loss, with a hand-written rule."""
    return t5x_forward(logits, targets, z_loss)[0]


def t5x_forward(logits, targets, z_loss):
    top = logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - top)
    total = exponentials.sum(axis=-1, keepdims=True)
    log_z = jnp.squeeze(jnp.log(total) + top, -1)
    loss = log_z - jnp.sum(targets * logits, axis=-1)
    return loss + z_loss * log_z**2, (targets, exponentials / total, log_z, z_loss)


def t5x_backward(saved, g):
    targets, p, log_z, z_loss = saved
    return g[:, None] * ((1 + 2 * z_loss * log_z)[:, None] * p - targets), None, None


t5x_loss.defvjp(t5x_forward, t5x_backward)


def by_hand_with_z_loss(logits, labels):
    return t5x_loss(logits, jax.nn.one_hot(labels, 10), Z_LOSS)


def by_hand_with_smoothing(logits, labels):
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.1))


STEPS_OF = {
    "t5x, z-loss": (by_hand_with_z_loss, functools.partial(jsoftmax.cross_entropy, z_loss=Z_LOSS)),
    "optax, ids": (
        optax.softmax_cross_entropy_with_integer_labels,
        jsoftmax.softmax_cross_entropy_with_integer_labels,
    ),
    "optax, smoothing": (
        by_hand_with_smoothing,
        functools.partial(jsoftmax.cross_entropy, label_smoothing=0.1),
    ),
}


def training_curve(loss):
    """The losses of the first steps of an MLP."""
    digits = load_digits()
    images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target, jnp.int32)
    keys = jax.random.split(jax.random.key(0))
    parameters = [jax.random.normal(k, s) / 8 for k, s in zip(keys, ((64, 32), (32, 10)), strict=True)]
    optimizer = optax.adam(1e-2)

    def total(parameters, x, y):
        first, second = parameters
        return jnp.mean(loss(jnp.tanh(x @ first) @ second, y))

    @jax.jit
    def train(parameters):
        def step(carry, i):
            parameters, state = carry
            x, y = (jax.lax.dynamic_slice_in_dim(a, 29 * i, 29) for a in (images, labels))
            value, gradient = jax.value_and_grad(total)(parameters, x, y)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(parameters, updates), state), value

        return jax.lax.scan(step, (parameters, optimizer.init(parameters)), jnp.arange(STEPS))[1]

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        return np.asarray(train(parameters))


@pytest.mark.share(2)
@pytest.mark.parametrize(("theirs", "ours"), STEPS_OF.values(), ids=STEPS_OF)
def test_the_training_curve_is_the_same(theirs, ours):
    want, got = training_curve(theirs), training_curve(ours)
    np.testing.assert_allclose(got, want, rtol=2e-5)
    assert got[-1] < 0.6 * got[0]
