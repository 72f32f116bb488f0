"""Calls outside all transformations: one compiled program each, with the same results."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FUNCTIONS, logits, named

import jsoftmax

COMPILED = [
    jsoftmax.softmax,
    jsoftmax.log_softmax,
    jsoftmax.sparsemax,
    jsoftmax.sparsemax_loss,
    jsoftmax.logsumexp,
    jsoftmax.cross_entropy,
    jsoftmax.softmax_cross_entropy,
    jsoftmax.softmax_cross_entropy_with_integer_labels,
    jsoftmax.log_prob,
    jsoftmax.entropy,
    jsoftmax.kl_divergence,
    jsoftmax.js_divergence,
    jsoftmax.row_statistics,
]


def programs(caplog, call):
    """The names of the programs that are compiled during a call."""
    caplog.clear()
    with jax.log_compiles():
        jax.block_until_ready(call())
    messages = [record.getMessage() for record in caplog.records]
    return [message.split()[1] for message in messages if message.startswith("Compiling")]


@pytest.mark.long
@pytest.mark.share(13)
@pytest.mark.parametrize("function", COMPILED, ids=lambda f: f.__name__)
def test_a_call_is_one_program_and_new_values_are_none(function, caplog):
    def arguments(seed):
        x, y = (np.random.default_rng(seed + i).normal(size=(3, 5, 7)).astype(np.float32) for i in range(2))
        labels = y[..., 0].astype(int) % 7
        second = {
            "softmax_cross_entropy": np.abs(y),
            "kl_divergence": y,
            "js_divergence": y,
            "cross_entropy": labels,
            "log_prob": labels,
            "softmax_cross_entropy_with_integer_labels": labels,
            "row_statistics": labels,
            "sparsemax_loss": labels,
        }.get(function.__name__)
        return (jnp.asarray(x),) if second is None else (jnp.asarray(x), second)

    name, batches = f"jit({function.__name__})", [arguments(seed) for seed in (0, 7, 9)]
    jax.clear_caches()
    with jax.numpy_rank_promotion("allow"):
        assert programs(caplog, lambda: function(*batches[0])) == [name]
        assert programs(caplog, lambda: function(*batches[1], axis=-1)) in ([], [name])
        assert not programs(caplog, lambda: function(*batches[2], axis=-1))


def test_whatever_logsumexp_returns_is_one_program(caplog):
    x = jnp.zeros((3, 4))
    for options in ({"keepdims": True}, {"return_sign": True}, {"keepdims": False, "axis": (0, 1)}):
        jax.clear_caches()
        assert programs(caplog, lambda o=options: jsoftmax.logsumexp(x, **o)) == ["jit(logsumexp)"]


@pytest.mark.share(14)
@pytest.mark.parametrize("function", **named(FUNCTIONS))
def test_the_answers_are_those_of_jit(function):
    arguments = function.arguments(logits("unit", dtype=np.float32))
    compiled = jax.jit(lambda *arguments: function.ours(*arguments, axis=-1))
    np.testing.assert_allclose(function.ours(*arguments, axis=-1), compiled(*arguments), rtol=3e-7)


def test_a_python_number_is_not_compiled_in(caplog):
    x, y = jnp.zeros((3, 4)), jnp.array([0, 1, 2])

    def call(number):
        return jsoftmax.cross_entropy(x, y, label_smoothing=number, temperature=1 + number)

    call(0.25)
    assert not programs(caplog, lambda: call(0.5))


def test_any_spelling_of_an_argument_is_taken():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    want = np.asarray(jax.nn.softmax(x, 0))
    for call in (
        lambda: jsoftmax.softmax(x, 0),
        lambda: jsoftmax.softmax(jnp.asarray(x), axis=np.int64(0)),
        lambda: jsoftmax.softmax(x.tolist(), axis=[0]),
        lambda: jsoftmax.softmax(axis=(0,), x=jnp.asarray(x), where=None),
    ):
        np.testing.assert_allclose(call(), want, rtol=1e-6)
        with jax.disable_jit():
            np.testing.assert_allclose(call(), want, rtol=1e-6)
    for axis in (7, "rows", 0.5, (0, 0)):
        with pytest.raises((TypeError, ValueError), match=r"jsoftmax.softmax\(x=float32\[3, ?4\]"):
            jsoftmax.softmax(jnp.asarray(x), axis)


@pytest.mark.parametrize("function", COMPILED, ids=lambda f: f.__name__)
def test_it_is_a_function_as_any(function):
    assert inspect.isfunction(function)
    assert "axis" in inspect.signature(function).parameters
    assert ">>>" in function.__doc__
    assert pickle.loads(pickle.dumps(function)) is function


def test_a_call_within_a_program_is_part_of_it():
    """Its arguments may be known there, but a program of its own could not be differentiated."""
    x = jnp.array([1.0, 2.0, 3.0])

    def of_weight(w):
        return w * jsoftmax.logsumexp(x) + jsoftmax.logsumexp(w * x)

    value, slope = jax.jit(jax.value_and_grad(of_weight))(2.0)
    np.testing.assert_allclose(value, 2 * jax.nn.logsumexp(x) + jax.nn.logsumexp(2 * x), rtol=1e-6)
    np.testing.assert_allclose(slope, jax.nn.logsumexp(x) + jax.nn.softmax(2 * x) @ x, rtol=1e-6)
