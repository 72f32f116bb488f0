"""Elementary functions; a log-sum-exp in float64, where the maximum and the logarithm cancel somewhat."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_in_full

import jsoftmax
from jsoftmax import _float64, rules


def exact(x):
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x.astype(np.longdouble)).sum(-1))


def ulps(got, want):
    return abs(got - want) / np.spacing(abs(want).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log1p(dtype):
    rng = np.random.default_rng(0)
    r = np.concatenate([10.0 ** rng.uniform(-37, 9, 100_000), rng.uniform(-0.5, 3, 100_000)]).astype(dtype)
    want = np.log1p(r.astype(np.longdouble))
    with jax.enable_x64(dtype == np.float64):
        got = np.asarray(jit_in_full(rules.log1p)(r))
        slope = jit_in_full(jax.vmap(jax.grad(rules.log1p)))(r[:1000])
        np.testing.assert_array_equal(rules.log1p(np.array([0, np.inf, np.nan], dtype)), [0, np.inf, np.nan])
    assert got.dtype == dtype
    assert np.max(abs(got - want) / np.spacing(abs(want).astype(dtype))) <= 2
    np.testing.assert_allclose(slope, 1 / (1 + r[:1000]), rtol=4 * np.finfo(dtype).eps)


def test_expm1():
    d = -np.concatenate([np.geomspace(1e-30, 80, 50_000), [0]]).astype(np.float32)
    got, want = np.asarray(jit_in_full(rules.expm1)(d)), np.expm1(d.astype(np.float64))
    assert ulps(got, want).max() <= 1.5


@pytest.mark.parametrize(("shape", "axis"), [((50_000, 1), 1), ((50_000, 10), 1), ((10, 50_000), 0)], ids=str)
def test_sums_in_float64(shape, axis):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x = x - np.float32(np.log(shape[axis]) + (shape[axis] > 1) / 2)
    got = np.asarray(jit_in_full(lambda x: _float64.log_sum_exp(x, (axis,)))(x)).squeeze(axis)
    assert got.dtype == np.float32
    right = np.asarray(_float64.is_right(got, shape[axis]))
    assert right.mean() > 0.999
    want = exact(np.moveaxis(x, axis, -1))
    assert ulps(got[right], want[right]).max() <= 1


@pytest.mark.parametrize("x", [800.0, -800.0, np.inf, -np.inf, np.nan, 0.0])
def test_what_float64_has_no_digits_of(x):
    out = _float64.log_sum_exp(jnp.array([[x, -np.inf], [1.0, 2.0]]), (1,))
    np.testing.assert_array_equal(_float64.is_right(out, 2), [[False], [True]])


def exported(f, x):
    return jax.export.deserialize(jax.export.export(jax.jit(f))(x).serialize()).call(x)


WRAPPINGS = {
    "eager": lambda f, x: f(x),
    "jit": lambda f, x: jax.jit(f)(x),
    "vmap": lambda f, x: jax.vmap(f)(x),
    "vmap of jit": lambda f, x: jax.jit(jax.vmap(jax.jit(f), 1, 1))(x),
    "scan": lambda f, x: jax.lax.scan(lambda carry, part: (carry, f(part)), None, x)[1],
    "checkpoint": lambda f, x: jax.jit(jax.checkpoint(f))(x),
    "checkpoint, with its derivative": lambda f, x: jax.value_and_grad(
        lambda x: (lambda out: (jnp.sum(out), out))(jax.checkpoint(f)(x)), has_aux=True
    )(x)[0][1],
    "forward mode": lambda f, x: jax.jvp(f, (x,), (x,))[0],
    "export": exported,
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_float64_that_is_not_enabled_goes_through_everything(wrapping):
    """Float32 comes out, of values and of all that JAX traces again."""
    x = np.random.default_rng(0).normal(size=(3, 4096, 3)).astype(np.float32)
    x = x - np.float32(1.5)
    mode = jsoftmax.forward_mode() if wrapping == "forward mode" else contextlib.nullcontext()
    with mode:
        out = WRAPPINGS[wrapping](lambda x: jsoftmax.logsumexp(x, -1), jnp.asarray(x))
    assert out.dtype == jnp.float32
    assert ulps(np.asarray(out), exact(x)).max() <= 4


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_short_rows_of_which_many_cancel(classes):
    """Most are within reach of float64; the others are left to fixed point."""
    x = np.random.default_rng(classes).normal(size=(20_001, classes)).astype(np.float32)
    x = x - np.float32(np.log(classes))
    x[::1000] -= np.float32(exact(x[::1000])[:, None])
    x[5] = np.nan
    x[7] = -np.inf
    got = np.asarray(jit_in_full(lambda x: jsoftmax.logsumexp(x, -1))(x))
    assert np.isnan(got[5])
    assert got[7] == -np.inf
    got, x = (np.delete(a, [5, 7], 0) for a in (got, x))
    assert ulps(got, exact(x)).max() <= 4


def test_weighted_logsumexp_below_1_in_float64(x64):
    """``log(1 − 0.4)`` by XLA's log1p was 90 ulp off on jax 0.10.2."""
    for weight in (0.4, 0.37, 0.3525):
        a, b = np.log(np.array([1, weight])), np.array([1.0, -1.0])
        want = np.log(np.sum(b * np.exp(a.astype(np.longdouble))))
        assert abs(np.longdouble(jsoftmax.logsumexp(a, b=b)) - want) <= 2 * np.spacing(abs(float(want)))
