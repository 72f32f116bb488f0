"""Elementary functions; a log-sum-exp in two words, where the maximum and the logarithm cancel somewhat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_in_full

import jsoftmax
from jsoftmax import _two_words, rules


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


def test_an_exponential():
    rng = np.random.default_rng(0)
    powers = np.log(2) * (np.arange(-60, 30) / 2)
    x = np.concatenate([rng.uniform(-60, 30, 20000), rng.normal(size=20000), powers, [0, -1e-30]])
    x = x.astype(np.float32)
    high, low = (np.asarray(word).astype(np.longdouble) for word in jit_in_full(_two_words.exp)(x))
    want = np.exp(x.astype(np.longdouble))
    assert np.max(abs(high + low - want) / want) <= 2.0**-33
    below = _two_words.exp(jnp.array([-jnp.inf, -1e30, -81.0]))
    np.testing.assert_array_equal(below, 0)


@pytest.mark.parametrize("classes", [1, 2, 10, 128])
def test_sums_near_1(classes):
    x = np.random.default_rng(classes).normal(size=(50_000, classes)).astype(np.float32)
    x = x - np.float32(np.log(classes) + (classes > 1) / 2)
    want = exact(x)
    off = ulps(np.asarray(jit_in_full(_two_words.log_sum_exp)(x.T)), want)
    assert off[abs(want) >= _two_words.LEAST].max() <= 3


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_short_rows_of_which_many_cancel(classes):
    """Most are within reach of two words; the others are left to fixed point."""
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
