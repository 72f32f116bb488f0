"""The forms that rows take on CPU: each gives the rest of any row, and none stores the row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_in_full

import jsoftmax
from jsoftmax import _cpu, online

FORMS = {
    "columns": ((1025, 8), _cpu.Form("columns")),
    "columns in parts": ((1030, 8), _cpu.Form("columns", in_parts=True)),
    "whole": ((16, 1000), _cpu.Form("whole")),
    "blocks": ((2, 40000), _cpu.Form("blocks", 1000)),
}


def rows(rng, shape):
    """Rows of every regime, one under the other, and their names."""
    _, classes = shape
    unit = rng.normal(size=classes).astype(np.float32)
    middle = np.arange(classes) == classes // 2
    apart = np.where(middle, unit.max(), unit)
    kinds = {
        "unit": unit,
        "flat": np.full(classes, 1.5),
        "spread": 30 * unit,
        "offset": 1e4 + unit,
        "tied": np.where(np.arange(classes) % (classes - 1) == 0, unit.max() + 1, unit),
        **{f"one ahead by {by}": np.where(middle, apart.max() + by, apart) for by in (2, 15, 30, 80)},
        "one ahead, all others beyond the range of exp": np.where(middle, 0, -88 - abs(unit) / 4),
        "dead classes": np.where(np.arange(classes) % 2, unit, -np.inf),
        "one class": np.where(middle, 1, -np.inf),
    }
    x = np.stack(list(kinds.values())).astype(np.float32)
    return list(kinds), x


def exact_rest(x):
    x = x.astype(np.float64)
    terms = np.exp(x - x.max(1, keepdims=True))
    np.put_along_axis(terms, x.argmax(1)[:, None], 0, 1)
    return terms.sum(1)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", FORMS)
def test_the_rest_of_any_row(name, axis):
    """Its digits stay where one class leads by any distance: a relative error of a few ulp and the gap."""
    shape, form = FORMS[name]
    names, x = rows(np.random.default_rng(0), shape)
    rest = jit_in_full(lambda x: _cpu.rest(form, x, x.max(axis, keepdims=True), axis))
    got = np.ravel(rest(x if axis else x.T))
    for kind, ours, want in zip(names, got, exact_rest(x), strict=True):
        gap = max(0.0, -np.log(want)) if want else 0
        assert abs(ours - want) <= (6 + gap) * 2**-23 * want, (kind, ours, want)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("classes", [2, 8, 100, 512, 1000])
def test_a_rest_that_is_good_for_a_label(classes, axis):
    """Wherever the label stands: in ``−log p`` a relative error of a few ulp and the gap."""
    names, x = rows(np.random.default_rng(0), (1, classes))
    ids = np.stack([x.argmax(1), x.argmin(1), *np.full((2, len(x)), [[0], [classes // 2]])]).reshape(-1, 1)
    x = np.concatenate([x] * 4)
    logits, top = np.take_along_axis(x, ids, 1), x.max(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        away = x.astype(np.float64) - logits
        np.put_along_axis(away, ids, -np.inf, 1)
        want = np.where(np.isinf(logits), np.inf, np.log1p(np.exp(away).sum(1, keepdims=True)))
    x, top, label = jax.tree.map(lambda a: a if axis else a.T, (x, top, _cpu.Label(ids, logits)))
    form = _cpu.Form("columns" if classes <= _cpu.LONGEST_COLUMNS else "whole")
    rest = jit_in_full(functools.partial(_cpu.rest, form), static_argnums=2)(x, top, axis, label)
    got = np.log1p(np.float64(rest)) - (np.float64(label.logit) - top)
    for kind, ours, loss, of_label in zip(
        names * 4, np.ravel(got), np.ravel(want), np.ravel(ids), strict=True
    ):
        gap = max(0.0, -np.log(loss)) if loss else 0
        known = ours == loss or abs(ours - loss) <= (6 + gap) * 2**-23 * loss + np.finfo(np.float32).tiny
        assert known, (kind, of_label, ours, loss)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", FORMS)
def test_empty_rows_and_overflows_stay_in_their_rows(name, axis):
    shape, form = FORMS[name]
    x = np.zeros((5, shape[1]), np.float32)
    x[1] = -np.inf
    x[2, 3], x[3, 3] = np.inf, np.nan
    rest = jit_in_full(lambda x: _cpu.rest(form, x, x.max(axis, keepdims=True), axis))
    got = np.ravel(rest(x if axis else x.T))
    others = shape[1] - 1
    np.testing.assert_array_equal(got, [others, -1, np.nan, np.nan, others])


@pytest.mark.parametrize("name", FORMS)
def test_derivatives_are_those_of_the_sum(name):
    shape, form = FORMS[name]
    x = jnp.asarray(rows(np.random.default_rng(0), shape)[1][:6])
    weights = jnp.arange(1.0, 7.0)[:, None]

    def total(x):
        return jnp.sum(weights * _cpu.rest(form, x, jax.lax.stop_gradient(x.max(1, keepdims=True)), 1))

    gradient = jax.grad(total)
    terms = weights * jnp.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(gradient(x), terms, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda x: gradient(x).sum())(x), terms, rtol=1e-5)


def test_every_form_is_chosen():
    chosen = {n: _cpu.choose((2**20 // n, n), 1) for n in (8, 1000, 32768, 50257, 131072, 50261)}
    names = {n: form and form.name for n, form in chosen.items()}
    assert names == {
        8: "columns",
        1000: "whole",
        32768: "whole",
        50257: "blocks",
        131072: "blocks",
        50261: None,
    }
    assert chosen[50257].size == 1733
    assert chosen[8].in_parts
    assert _cpu.choose((32, 10), 1) is None
    assert _cpu.choose((2**17, 8), 1, alone=True) == _cpu.Form("columns")


# What may be stored beside the logits, over their bytes; their gradient is a result.
@pytest.mark.parametrize("classes", [10, 16, 1000, 32768, 50257, 131072])
@pytest.mark.parametrize("name", ["log_softmax", "logsumexp", "loss", "loss and gradient"])
def test_no_array_of_the_logits_size_is_stored(name, classes):
    x = jax.ShapeDtypeStruct((2**24 // classes, classes), jnp.float32)
    labels = jax.ShapeDtypeStruct(x.shape[:1], jnp.int32)
    mean = functools.partial(jsoftmax.cross_entropy, reduction="mean")
    function, arguments = {
        "log_softmax": (jsoftmax.log_softmax, (x,)),
        "logsumexp": (functools.partial(jsoftmax.logsumexp, axis=-1), (x,)),
        "loss": (jsoftmax.cross_entropy, (x, labels)),
        "loss and gradient": (jax.value_and_grad(mean), (x, labels)),
    }[name]
    compiled = jit_in_full(function).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * x.size * (0.05 if classes > 16 else 0.6)


def test_no_wider_copy_of_bfloat16_logits_is_stored():
    x = jax.ShapeDtypeStruct((8192, 131072), jnp.bfloat16)
    loss = jax.value_and_grad(functools.partial(jsoftmax.cross_entropy, reduction="mean"))
    compiled = jit_in_full(loss).lower(x, jax.ShapeDtypeStruct((8192,), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.05 * 2 * x.size


def test_bfloat16_rows_in_blocks():
    _, x = rows(np.random.default_rng(0), FORMS["blocks"][0])
    x = jnp.asarray(x, jnp.bfloat16)
    form = FORMS["blocks"][1]
    short, full = (
        jit_in_full(lambda x: _cpu.rest(form, x, x.max(1, keepdims=True), 1))(a)
        for a in (x, x.astype(jnp.float32))
    )
    np.testing.assert_allclose(short, full, rtol=1e-6)


@pytest.mark.parametrize("name", [*FORMS, "one sum"])
def test_a_nan_stays_in_its_row(name):
    """Beside it a leading class keeps its digits, and an empty row is empty."""
    shape = FORMS[name][0] if name in FORMS else (4, 7)
    x = np.random.default_rng(0).normal(size=(4, shape[1])).astype(np.float32)
    x[0, 1] += 40
    x[1] = -np.inf
    ill = x.copy()
    ill[2, 3], ill[3, 5] = np.nan, np.inf
    for function in (jsoftmax.softmax, jsoftmax.log_softmax, lambda x: jsoftmax.logsumexp(x, -1)):
        function = jit_in_full(function)
        well, beside = np.asarray(function(x)), np.asarray(function(ill))
        np.testing.assert_array_equal(beside[:2], well[:2])
        assert np.isnan(beside[2:]).all()


@pytest.mark.parametrize("classes", [2, 8, 100, 9000])
def test_a_row_of_nans_is_no_empty_row(classes):
    """Though the maximum that XLA's library finds for it is −inf."""
    x = np.zeros((max(2**14 // classes, 4), classes), np.float32)
    x[1], x[2], x[2, 1:] = np.nan, np.nan, -np.inf
    rows = len(x)

    def found(x):
        of_labels = jsoftmax.row_statistics(x, jnp.zeros(rows, int))[:3]
        losses = (
            jsoftmax.cross_entropy(x, jnp.zeros(rows, int)),
            jsoftmax.cross_entropy(x, jnp.full_like(x, 0.1)),
        )
        sums = jsoftmax.logsumexp(x, 1), jsoftmax.logsumexp(x, 1, jnp.full_like(x, 2.0)), jsoftmax.entropy(x)
        return *of_labels, *losses, *sums, jsoftmax.softmax(x)[:, 0], jsoftmax.log_softmax(x)[:, 0]

    for values in (jit_in_full(found)(x), jit_in_full(jax.grad(lambda x: sum(map(jnp.sum, found(x)))))(x).T):
        for value in values:
            np.testing.assert_array_equal(np.flatnonzero(np.isnan(value)), [1, 2])


@pytest.mark.parametrize("classes", [8, 100])
def test_probabilities_of_logits_that_are_a_product(classes):
    """XLA computes the product anew beside the shift, unrounded: the maximum's term is not quite 1."""
    x = 30 * np.random.default_rng(0).normal(size=(2**14 // classes, classes)).astype(np.float32)
    got = jit_in_full(lambda x: jsoftmax.softmax(0.3535534 * x))(x)
    np.testing.assert_allclose(got, jax.nn.softmax(np.float32(0.3535534) * x), rtol=1e-4, atol=1e-6)


def sure_losses(logits, labels):
    return {
        "cross_entropy": jsoftmax.cross_entropy(logits, labels),
        "log_softmax": -jnp.take_along_axis(jsoftmax.log_softmax(logits), labels[:, None], 1)[:, 0],
        "row_statistics": jsoftmax.row_statistics(logits, labels).nll,
        "online": jnp.log1p(online.absorb(online.empty(labels.shape), logits).rest),
    }


@pytest.mark.parametrize("classes", [8, 100, 1000, 40000])
def test_logits_that_are_a_product(classes):
    """XLA computes the product anew beside the shift, unrounded, and the maximum's term is not quite 1."""
    rng, count = np.random.default_rng(0), max(16, 2**14 // classes)
    x = rng.normal(size=(count, classes)).astype(np.float32)
    labels = rng.integers(0, classes, count).astype(np.int32)
    x[np.arange(count), labels] = 3 + rng.uniform(30, 120, count)
    scale = np.float32(0.3535534)

    got, p = jit_in_full(lambda x: (sure_losses(scale * x, labels), jsoftmax.softmax(scale * x)))(x)
    want = np.log1p(exact_rest(scale * x))
    for name, losses in got.items():
        np.testing.assert_allclose(losses, want, rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(p[np.arange(count), labels], np.exp(-want), rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 8, 9, 60, 600])
def test_classes_that_are_alike_round_alike(classes):
    """As label smoothing leaves them: beside the leading one's 1, each would lose the same in a plain sum."""
    rng = np.random.default_rng(0)
    count = max(2000, _cpu.LEAST_SIZE // classes + 1)
    x = np.repeat(rng.uniform(-20, 0, (count, 1)), classes, 1).astype(np.float32)
    leads = np.arange(classes) == rng.integers(classes, size=(count, 1))
    x[leads] = 0
    e = np.exp(x.astype(np.float64))
    others = np.where(leads, 0, e).sum(1, keepdims=True)
    lead = np.where(leads, -x.min(1, keepdims=True), 0)
    for function, want, more in (
        (jsoftmax.softmax, e / (1 + others), -x),
        (jsoftmax.log_softmax, x - np.log1p(others), lead),
    ):
        off = np.abs(np.asarray(jit_in_full(function)(x), np.float64) - want)
        assert np.all(off <= (4 + more) * np.spacing(np.abs(want).astype(np.float32)))
