"""Losses and log-sum-exps of long rows, in every regime."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_in_full
from jax.experimental import checkify

import jsoftmax
from jsoftmax.transforms._platforms import MOST_PLAIN

CLASSES = 40_000
each_axis = pytest.mark.parametrize("axis", [-1, 0])


def regimes(classes=CLASSES, rows=4):
    """Logits by name, with class ids: the largest class, the first, and two others."""
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(rows, classes))
    top = unit.max(1, keepdims=True)
    middle = np.arange(classes) == classes // 2
    kinds = {
        "unit": unit,
        "N(0, 3²)": 3 * unit,
        "N(0, 30²)": 30 * unit,
        "flat": np.full(unit.shape, 1.5),
        "offset 1e4": 1e4 + unit,
        "offset −20": unit - 20,
        "offset −1e6": unit - 1e6,
        **{f"one ahead by {by}": np.where(middle, top + by, unit) for by in (2, 15, 30, 60, 85, 120)},
        "log-probabilities": unit - np.log(np.exp(unit).sum(1, keepdims=True)),
        "dead classes": np.where(np.arange(classes) % 3, -np.inf, unit),
        "dead but one": np.where(middle, unit, -np.inf),
        "the first ones dead": np.where(np.arange(classes) < classes // 40, -np.inf, unit),
    }
    for name, x in kinds.items():
        x = x.astype(np.float32)
        ids = np.array([x[0].argmax(), 0, classes // 2, classes - 1])[np.arange(rows) % 4]
        yield name, x, ids


def exact(x, ids):
    """The loss and the log-sum-exp in float64, and the lead of the label, at least 0."""
    x, rows = x.astype(np.float64), np.arange(len(x))
    top = x.max(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = np.exp(x - x[rows, ids][:, None])
        terms[rows, ids] = 0
        loss = np.log1p(terms.sum(1))
        overflows = ~np.isfinite(loss)
        by_top = np.log(np.exp(x - top[:, None]).sum(1))
        loss = np.where(overflows, top - x[rows, ids] + by_top, loss)
    others = x.copy()
    others[rows, ids] = -np.inf
    lead = np.maximum(x[rows, ids] - others.max(1), 0)
    return loss, top + by_top, np.where(np.isfinite(lead), lead, 0)


def assert_within(ulps, ours, want, largest=0):
    """Ulp of the exact value, or of the sum of its |terms|, if that is larger."""
    want = want.astype(np.float64)
    ours = np.asarray(ours, np.float64)
    tiny = np.finfo(np.float32).tiny
    with np.errstate(invalid="ignore"):
        off = np.abs(ours - want)
        ulp = np.spacing(np.maximum(np.maximum(np.abs(want), np.abs(largest)), tiny).astype(np.float32))
    # The last are the errors of float64 itself.
    known = (ours == want) | (np.abs(want) < tiny) | (off < 1e-15)
    assert np.all(known | (off <= ulps * ulp)), off / ulp


@pytest.mark.share(4)
@pytest.mark.diagonal
@each_axis
@pytest.mark.parametrize("classes", [33, 100, 521, 1000, 4096, CLASSES, 50257])
def test_values_in_every_regime(classes, axis):
    """Within the contract's 4 ulp; for a tiny loss the lead more."""
    loss = jit_in_full(functools.partial(jsoftmax.cross_entropy, axis=axis))
    logsumexp = jit_in_full(functools.partial(jsoftmax.logsumexp, axis=axis))
    for _, x, ids in regimes(classes, max(4, MOST_PLAIN // classes + 1)):
        nll, lse, lead = exact(x, ids)
        x = x if axis else x.T
        assert_within(4 + lead, loss(x, ids), nll)
        assert_within(4, logsumexp(x), lse, largest=x.max(axis))


@pytest.mark.share(2)
@each_axis
def test_log_prob_is_minus_the_loss(axis):
    functions = jsoftmax.log_prob, jsoftmax.cross_entropy
    log_prob, loss = (jit_in_full(functools.partial(function, axis=axis)) for function in functions)
    for name, x, ids in regimes():
        x = x if axis else x.T
        np.testing.assert_array_equal(log_prob(x, ids), -loss(x, ids), err_msg=name)


@pytest.mark.share(4)
@pytest.mark.diagonal
@each_axis
@pytest.mark.parametrize("classes", [10, 100, 1000, CLASSES])
def test_a_value_beside_its_gradient(classes, axis):
    """The same number, except that XLA may sum longer rows of stored terms in another order: then 2 ulp."""

    def loss(x, ids):
        return jsoftmax.cross_entropy(x, ids, axis=axis)

    def logsumexp(x, ids):
        return jsoftmax.logsumexp(x, axis)

    def with_gradient(function, x, ids):
        values, pull = jax.vjp(lambda x: function(x, ids), x)
        return values, pull(jnp.ones_like(values))

    both = [(jit_in_full(f), jit_in_full(functools.partial(with_gradient, f))) for f in (loss, logsumexp)]
    for name, x, ids in regimes(classes, max(4, 2 * MOST_PLAIN // classes + 1)):
        x = x if axis else x.T
        for alone, beside in both:
            value, (again, _) = alone(x, ids), beside(x, ids)
            if classes == 10:
                np.testing.assert_array_equal(value, again, err_msg=name)
            off = np.abs(np.asarray(value, np.float64) - again)
            assert np.all((value == again) | (off <= 2 * np.spacing(np.abs(value)))), name


@pytest.mark.share(2)
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_what_is_wrong_in_a_row_stays_there(mode):
    _, x, ids = next(regimes())
    x = x.copy()
    x[0, 5], x[1] = np.nan, -np.inf
    ids = np.array([0, 1, CLASSES, 3])
    loss = functools.partial(jsoftmax.cross_entropy, ignore_index=3)
    sum_of = functools.partial(jsoftmax.logsumexp, axis=-1)
    if mode == "forward":
        with jsoftmax.forward_mode():
            losses, sums = jit_in_full(loss)(x, ids), jit_in_full(sum_of)(x)
    else:
        losses, sums = loss(x, ids), sum_of(x)
    np.testing.assert_array_equal(losses, [np.nan, 0, np.nan, 0])
    np.testing.assert_array_equal(np.isnan(sums), [True, False, False, False])
    assert sums[1] == -np.inf
    assert_within(4, sums[2:], exact(x[2:], ids[:2])[1], largest=x[2:].max(1))


def test_a_bad_label_is_named():
    _, x, ids = next(regimes())
    error, losses = checkify.checkify(jax.jit(jsoftmax.cross_entropy))(x, np.where(ids == 0, -3, ids))
    assert "class id -3 of row 1 is outside [0, 40000)" in error.get()
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False, False])


@pytest.mark.share(2)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_logits(dtype):
    """The loss of the same numbers in float32, and the log-sum-exp, rounded."""
    loss, sum_of = map(jit_in_full, (jsoftmax.cross_entropy, lambda x: jsoftmax.logsumexp(x, -1)))
    for name, x, ids in regimes():
        if dtype == jnp.float16 and np.abs(x[np.isfinite(x)]).max() > 6e4:
            continue
        x = jnp.asarray(x, dtype)
        nll, lse, lead = exact(np.asarray(x, np.float64), ids)
        assert_within(4 + lead, loss(x, ids), nll)
        ours = np.asarray(sum_of(x))
        # 1 ulp of the exact value, and 4 float32 ulp of the maximum, with which the logarithm may cancel
        off = np.abs(ours.astype(np.float64) - lse) - 4 * np.spacing(np.abs(np.float32(x).max(1)))
        assert np.all(off <= 1.01 * np.abs(np.spacing(ours)).astype(np.float64)), name


def test_the_derivative_is_as_ever():
    _, x, ids = next(regimes())
    gradient = jax.grad(lambda x: jsoftmax.cross_entropy(x, ids, reduction="sum"))(x)
    one_hot = np.float32(np.arange(CLASSES) == ids[:, None])
    np.testing.assert_allclose(gradient, jax.nn.softmax(x) - one_hot, rtol=1e-5, atol=1e-9)
    with jsoftmax.forward_mode():
        out, along = jax.jvp(lambda x: jsoftmax.logsumexp(x, -1), (x,), (np.ones_like(x),))
    np.testing.assert_allclose(out, jsoftmax.logsumexp(x, -1), rtol=3e-7)
    np.testing.assert_allclose(along, np.ones(4), rtol=1e-5)
