"""Values alone, on CPU: from one pass where it is sure, and by the maximum where it is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_in_full
from jax.experimental import checkify

import jsoftmax
from jsoftmax import _cpu, _pivots

CLASSES = 40_000
each_axis = pytest.mark.parametrize("axis", [-1, 0])


def regimes(classes=CLASSES, rows=4):
    """Logits by name, with class ids: of the largest class, of the first, and of two others."""
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
    """The loss and the log-sum-exp in float64, and by how much the label leads, at least 0."""
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


def assert_within(ulps, ours, want):
    want = want.astype(np.float64)
    ours = np.asarray(ours, np.float64)
    tiny = np.finfo(np.float32).tiny
    with np.errstate(invalid="ignore"):
        off = np.abs(ours - want)
        ulp = np.spacing(np.maximum(np.abs(want), tiny).astype(np.float32))
    # The last are float64's own errors.
    known = (ours == want) | (np.abs(want) < tiny) | (off < 1e-15)
    assert np.all(known | (off <= ulps * ulp)), off / ulp


@each_axis
@pytest.mark.parametrize("classes", [33, 100, 521, 1000, 4096, CLASSES, 50257])
def test_values_in_every_regime(classes, axis):
    """Within the contract's 4 ulp, and a tiny loss within the lead more."""
    loss = jit_in_full(functools.partial(jsoftmax.cross_entropy, axis=axis))
    logsumexp = jit_in_full(functools.partial(jsoftmax.logsumexp, axis=axis))
    for _, x, ids in regimes(classes, max(4, _cpu.LEAST_SIZE // classes + 1)):
        nll, lse, lead = exact(x, ids)
        x = x if axis else x.T
        assert_within(4 + lead, loss(x, ids), nll)
        assert_within(4, logsumexp(x), lse)


@each_axis
def test_log_prob_is_minus_the_loss(axis):
    functions = jsoftmax.log_prob, jsoftmax.cross_entropy
    log_prob, loss = (jit_in_full(functools.partial(function, axis=axis)) for function in functions)
    for name, x, ids in regimes():
        x = x if axis else x.T
        np.testing.assert_array_equal(log_prob(x, ids), -loss(x, ids), err_msg=name)


def by_maximum(axes, x, *ids):
    """A mark of what one pass does not give."""
    return jnp.full_like(jnp.max(x, axes, keepdims=True), jnp.nan)


@functools.partial(jit_in_full, static_argnums=2)
def in_one_pass(x, ids, axis=1):
    """The loss and the log-sum-exp, NaN where the maximum is called for."""
    return (
        _pivots.nll(x, jnp.expand_dims(ids, axis), (axis,), by_maximum).squeeze(axis),
        _pivots.log_sum_exp(x, (axis,), by_maximum).squeeze(axis),
    )


def test_which_rows_want_their_maximum():
    """Those that overflow beside the entry or vanish, and sums that cancel with it."""
    found = {name: [np.isnan(out).all() for out in in_one_pass(x, ids)] for name, x, ids in regimes()}
    of_loss, of_sum = ({name for name, wants in found.items() if wants[i]} for i in range(2))
    dead = {"dead classes", "dead but one", "the first ones dead"}  # with the class of some label
    assert of_loss == {"N(0, 30²)", "one ahead by 85", "one ahead by 120"} | dead
    assert of_sum == {"log-probabilities", "one ahead by 120", "dead but one", "the first ones dead"}


@pytest.mark.parametrize("lead", [30, 60, 70, 80])
def test_a_tiny_loss_keeps_its_digits(lead):
    """And is left to the maximum before what underflows beside the label counts."""
    _, x, _ = next(regimes())
    ids = np.full(len(x), 7)
    x[:, 7] = x.max(1) + lead
    nll, _, leads = exact(x, ids)
    assert_within(4 + leads, jit_in_full(jsoftmax.cross_entropy)(x, ids), nll)
    assert np.isnan(in_one_pass(x, ids)[0]).all() == (lead > 60)


def test_one_row_calls_for_the_maxima_of_all():
    """The branch stays a branch under vmap, over any axes; one row with many labels keeps its one maximum."""
    _, x, ids = next(regimes())
    x, ids = np.stack([x, x + 1]), np.stack([ids] * 2)
    ill = x.copy()
    ill[1, 2, 5000] += 200
    whole = [
        np.stack(outs) for outs in zip(*(in_one_pass(a, i) for a, i in zip(x, ids, strict=True)), strict=True)
    ]
    for mapped in (jax.vmap(in_one_pass), jax.vmap(in_one_pass, (1, 1), 1)):
        for out, want in zip(mapped(x, ids), whole, strict=True):
            np.testing.assert_allclose(out, want, rtol=3e-7)
    twice = jax.vmap(jax.vmap(functools.partial(in_one_pass, axis=0)))
    for out, want in zip(twice(x, ids), whole, strict=True):
        np.testing.assert_allclose(out, want, rtol=3e-7)
    for mapped in (jax.vmap(in_one_pass), twice):
        assert all(np.isnan(out).all() for out in mapped(ill, ids))
    loss, lse = jax.vmap(in_one_pass, (None, 0))(x[0], ids)
    assert np.isnan(loss).all()
    np.testing.assert_array_equal(lse, [whole[1][0]] * 2)
    of_row = functools.partial(in_one_pass, axis=0)
    loss, _ = jax.vmap(jax.vmap(of_row, (0, None)), (None, 0))(x[0], ids[0])  # all labels with all rows
    assert np.isnan(loss).all()


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
    assert_within(4, sums[2:], exact(x[2:], ids[:2])[1])


def test_a_bad_label_is_named():
    _, x, ids = next(regimes())
    error, losses = checkify.checkify(jax.jit(jsoftmax.cross_entropy))(x, np.where(ids == 0, -3, ids))
    assert "class id -3 of row 1 is outside [0, 40000)" in error.get()
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False, False])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_logits(dtype):
    """The loss of the same numbers, widened, and the log-sum-exp, rounded."""
    loss, sum_of = map(jit_in_full, (jsoftmax.cross_entropy, lambda x: jsoftmax.logsumexp(x, -1)))
    for name, x, ids in regimes():
        if dtype == jnp.float16 and np.abs(x[np.isfinite(x)]).max() > 6e4:
            continue
        x = jnp.asarray(x, dtype)
        nll, lse, lead = exact(np.asarray(x, np.float64), ids)
        assert_within(4 + lead, loss(x, ids), nll)
        ours = np.asarray(sum_of(x))
        off = np.abs(ours.astype(np.float64) - lse)
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
