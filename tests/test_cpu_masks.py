"""Masked logits that are stored, and the first of the largest classes, on CPU: as in a portable program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import sampling

INF, NAN = np.inf, np.nan

MASKED = {
    "softmax": lambda x, y, m, axis: jsoftmax.softmax(x, axis, where=m),
    "softmax, sink": lambda x, y, m, axis: jsoftmax.softmax(x, axis, where=m, sink=0.5),
    "log_softmax": lambda x, y, m, axis: jnp.where(m, jsoftmax.log_softmax(x, axis, where=m), 0),
    "logsumexp": lambda x, y, m, axis: jsoftmax.logsumexp(x, axis, where=m),
    "cross_entropy": lambda x, y, m, axis: jsoftmax.cross_entropy(x, y, axis=axis, where=m),
    "z-loss": lambda x, y, m, axis: jsoftmax.cross_entropy(x, y, axis=axis, where=m, z_loss=1e-3),
    "log_prob": lambda x, y, m, axis: jsoftmax.log_prob(x, y, axis=axis, where=m),
    "focal_loss": lambda x, y, m, axis: jsoftmax.focal_loss(x, y, axis=axis, where=m, reduction="none"),
}
MASKS = {
    "of every logit": lambda rng, shape: rng.random(shape) > 0.3,
    "of classes": lambda rng, shape: np.arange(shape[1])[None] % 3 > 0,
    "of rows": lambda rng, shape: np.arange(shape[0])[:, None] % 2 > 0,
}


def logits_and_mask(kind, classes):
    """Rows of 2**14 logits or more, with any number under the mask, and with dead and empty rows."""
    rng = np.random.default_rng(0)
    shape = 2**14 // classes + 3, classes
    x, where = 3 * rng.normal(size=shape), MASKS[kind](rng, shape)
    where = np.broadcast_to(where, shape).copy() if kind == "of every logit" else where
    if kind == "of every logit":
        where[1] = False
    hidden = ~np.broadcast_to(where, shape)
    x[hidden] = np.resize([NAN, INF, -INF, 3e38, 1.0], hidden.sum())
    x[3] += 1e4
    x[5, ::2], x[7] = -INF, -INF
    return x, where


def values_and_gradient(call, x):
    def total(x):
        values = call(x)
        weights = jnp.cos(jnp.arange(values.size, dtype=jnp.float32)).reshape(values.shape)
        weights = weights.astype(values.dtype)
        return jnp.sum(jnp.where(jnp.isfinite(values), values, 0) * weights), values

    gradient, values = jax.grad(total, has_aux=True)(x)
    return values, gradient


@pytest.mark.diagonal
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("classes", [7, 100, 1000])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", MASKED)
def test_masked_logits_stored_first(name, kind, classes, dtype, axis):
    x, where = logits_and_mask(kind, classes)
    y = np.argmax(np.broadcast_to(where, x.shape), 1)
    x, where = (jnp.asarray(a if axis else a.T) for a in (x, where))
    call = functools.partial(MASKED[name], y=jnp.asarray(y), m=where, axis=axis)
    x = x.astype(dtype)
    assert "stored first" in str(jsoftmax.explain(lambda x: call(x), x))
    got = jax.jit(functools.partial(values_and_gradient, call))(x)
    value = jax.jit(lambda x: call(x))(x)
    with jsoftmax.portable():
        want = jax.jit(functools.partial(values_and_gradient, call))(x)
    eps = 2.0**-22 if dtype == jnp.float32 else 2.0**-8
    for a, b in zip((value, *got), (want[0], *want), strict=True):
        a, b = np.float64(a), np.float64(b)
        np.testing.assert_allclose(a, b, rtol=16 * eps, atol=eps)


@pytest.mark.parametrize("function", [jsoftmax.softmax, jsoftmax.logsumexp])
def test_masked_logits_under_transforms(function):
    """A batch, a tangent, and a second derivative, of a value that is computed from stored logits."""
    x = 3 * jax.random.normal(jax.random.key(0), (3, 200, 100))
    where = jnp.cos(jnp.arange(x[0].size)).reshape(x.shape[1:]) > -0.5

    def call(x):
        return function(x, -1, where=where)

    def total(x):
        return jnp.sum(call(x) ** 2)

    def all_of(x):
        v = jnp.sin(x)
        with jsoftmax.forward_mode():
            tangent = jax.jvp(call, (x[0],), (v[0],))
        return jax.vmap(call)(x), tangent, jax.grad(lambda x: jnp.vdot(jax.grad(total)(x), v[0]))(x[0])

    got = jax.jit(all_of)(x)
    with jsoftmax.portable():
        want = jax.jit(all_of)(x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.diagonal
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("classes", [7, 20, 36, 100, 101, 1000, 50257])
def test_the_first_of_the_largest(classes, axis, dtype):
    """With ties within and across blocks, in rows of −∞, and with a mask. With NaN it may be any class."""
    rng = np.random.default_rng(0)
    x = np.round(8 * rng.normal(size=(max(2**14 // classes, 12), classes))) / 8
    x[0], x[1], x[2, [3, 5]], x[3, -1] = 0, -INF, NAN, 99
    has_nan = np.arange(len(x)) == 2
    x[4, [2, -2]], x[5, ::3] = INF, 50
    where = rng.random(x.shape) > 0.2
    where[6] = False
    y = jnp.zeros(len(x), jnp.int32)
    given = jnp.asarray(x if axis else x.T, dtype)
    x = np.float32(given if axis else given.T)
    explained = str(jsoftmax.explain(lambda x: jsoftmax.row_statistics(x, y, axis=axis).prediction, given))
    assert ("in the block of" in explained) == (classes not in (7, 101))
    for mask in None, where:
        options = {} if mask is None else {"where": jnp.asarray(mask if axis else mask.T)}
        call = functools.partial(jsoftmax.row_statistics, axis=axis, **options)
        want = np.argmax(x if mask is None else np.where(mask, x, -INF), 1)
        got = np.asarray(jax.jit(call)(given, y).prediction)
        assert np.all((got >= 0) & (got < classes))
        np.testing.assert_array_equal(got[~has_nan], want[~has_nan])


@pytest.mark.parametrize("classes", [7, 36, 101, 1000])
def test_draws_are_those_of_a_portable_program(classes):
    x = jax.random.normal(jax.random.key(1), (2**15 // classes, classes))
    got = jax.jit(sampling.categorical)(jax.random.key(0), x)
    with jsoftmax.portable():
        want = jax.jit(sampling.categorical)(jax.random.key(0), x)
    np.testing.assert_array_equal(got.ids, want.ids)
    np.testing.assert_allclose(got.log_probs, want.log_probs, rtol=1e-5)
