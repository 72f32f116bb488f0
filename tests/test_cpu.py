"""The forms of rows on CPU: each gives the rest of any row, and none stores the row."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_in_full

import jsoftmax
from jsoftmax import online
from jsoftmax.backends import _block_sizes, _by_class, _choice, _cpu, _reading, _request
from jsoftmax.backends._request import Form, Request
from jsoftmax.transforms._platforms import MOST_PLAIN

FORMS = {
    "few classes": ((1025, 8), Form("by class")),
    "few classes, in parts": ((1030, 8), Form("by class", terms_used_again=True)),
    "class by class": ((16, 100), Form("by class")),
    "whole": ((16, 1000), Form("whole")),
    "blocks": ((2, 40000), Form("blocks", 1000)),
}


def rows(rng, shape):
    """Rows of all regimes in one array, and their names."""
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
        "one ahead, most sums of others too": np.where(middle, 0, -96 - abs(unit) / 4),
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


@pytest.mark.diagonal
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", FORMS)
def test_the_rest_of_any_row(name, axis):
    """It keeps its digits for any lead of a class: a relative error of a few ulp and the gap."""
    shape, form = FORMS[name]
    names, x = rows(np.random.default_rng(0), shape)
    rest = jit_in_full(lambda x: _cpu.rest(form, x, x.max(axis, keepdims=True), axis))
    got = np.ravel(rest(x if axis else x.T))
    for kind, ours, want in zip(names, got, exact_rest(x), strict=True):
        want = want if want >= np.finfo(np.float32).tiny else 0  # XLA on CPU has no subnormal numbers
        gap = max(0.0, -np.log(want)) if want else 0
        assert abs(ours - want) <= (6 + gap) * 2**-23 * want, (kind, ours, want)


LABEL_FORMS = {
    "by class": [2, 8, 100],
    "beside the label": [100, 512],
    "blocks": [1000],
    "stored beside the label": [2, 8, 100, 1000],
    "whole": [1000],
}


@pytest.mark.share(3)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("name", "classes"), [(name, n) for name, sizes in LABEL_FORMS.items() for n in sizes]
)
def test_a_rest_that_is_good_for_a_label(name, classes, axis):
    """Wherever the label is: ``−log p`` has a relative error of a few ulp and the gap."""
    names, x = rows(np.random.default_rng(0), (1, classes))
    ids = np.stack([x.argmax(1), x.argmin(1), *np.full((2, len(x)), [[0], [classes // 2]])]).reshape(-1, 1)
    x = np.concatenate([x] * 4)
    logits, top = np.take_along_axis(x, ids, 1), x.max(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        away = x.astype(np.float64) - logits
        np.put_along_axis(away, ids, -np.inf, 1)
        want = np.where(np.isinf(logits), np.inf, np.log1p(np.exp(away).sum(1, keepdims=True)))
    x, top, label = jax.tree.map(lambda a: a if axis else a.T, (x, top, _by_class.Label(ids, logits)))
    form = Form(name, 125 if classes == 1000 else 0)
    rest = jit_in_full(functools.partial(_cpu.rest, form), static_argnums=2)(x, top, axis, label)
    got = np.log1p(np.float64(rest)) - (np.float64(label.logit) - top)
    for kind, ours, loss, of_label in zip(
        names * 4, np.ravel(got), np.ravel(want), np.ravel(ids), strict=True
    ):
        gap = max(0.0, -np.log(loss)) if loss else 0
        known = ours == loss or abs(ours - loss) <= (6 + gap) * 2**-23 * loss + np.finfo(np.float32).tiny
        assert known, (kind, of_label, ours, loss)


@pytest.mark.diagonal
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
    first, second = jax.jit(lambda x: (gradient(x), jax.grad(lambda x: gradient(x).sum())(x)))(x)
    terms = weights * jnp.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(first, terms, rtol=1e-5)
    np.testing.assert_allclose(second, terms, rtol=1e-5)


def test_every_form_is_chosen(monkeypatch):
    monkeypatch.setattr(_request, "MOST_STRIDE", 2**14)  # as before jax 0.11.2

    def choose(shape, axis=1, **options):
        x = jnp.broadcast_to(jnp.float32(0), shape)
        return _choice.choose(
            Request("rest", x, (axis,), **{"result_used_for": "exponentials", **options})
        ).cpu

    chosen = {n: choose((2**20 // n, n)) for n in (8, 1000, 9001, 32768, 50257, 131072, 50261)}
    names = {n: form and form.name for n, form in chosen.items()}
    assert names == {
        8: "by class",
        1000: "blocks",
        9001: "whole",
        32768: "blocks",
        50257: "blocks",
        131072: "blocks",
        50261: None,
    }
    assert (chosen[32768].size, chosen[50257].size) == (128, 1733)
    assert chosen[8].terms_used_again
    assert choose((32, 10)) is None
    assert choose((2**17, 8), result_used_for="nothing") == Form("by class")
    assert choose((2, 100, 2**8, 2**8)).name == choose((100, 2**14 + 1), 0).name == "by class"
    assert choose((100, 2**14), 0) == Form("whole")
    alone = {"for_label": True, "result_used_for": "nothing"}
    assert choose((2**17, 8), **alone).name == "by class"
    assert choose((2**13, 100), **alone).name == "beside the label"
    assert choose((2**13, 1000), **alone).name == "blocks"
    with_gradient = [choose((2**20 // n, n), for_label=True) for n in (8, 100, 1000, 9001)]
    stored = "stored beside the label"
    assert with_gradient == [Form(stored), Form(stored), Form(stored, 125), Form("whole")]
    assert choose((2**13, 1000), sharded=True) is choose((2**13, 1000), bare=False) is None


@pytest.mark.parametrize("map_", [jsoftmax.softmax, jsoftmax.log_softmax])
@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_along_the_first_axis(map_, masked):
    """There the sums of a derivative are computed one by one."""
    x, v = jax.random.normal(jax.random.key(0), (2, 90, 120))
    where = jnp.arange(90)[:, None] != 0 if masked else None  # the first class gives no NaN

    def products(x, v):
        def gradient(x):
            return jax.grad(lambda x: jnp.sum(jnp.sin(jnp.maximum(map_(x, 0, where), -99))))(x)

        return gradient(x), jax.jvp(gradient, (x,), (v,))[1], jax.vjp(gradient, x)[1](v)[0]

    assert "a pass of its own" in str(jsoftmax.explain(lambda x: map_(x, 0), x))
    got = jax.jit(products)(x, v)
    with jsoftmax.portable():
        want = jax.jit(products)(x, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


STORES = {
    "softmax": lambda x, ids: jsoftmax.softmax(x),
    "log_softmax": lambda x, ids: jsoftmax.log_softmax(x),
    "logsumexp": lambda x, ids: jsoftmax.logsumexp(x, -1),
    "loss": jsoftmax.cross_entropy,
    "loss and gradient": jax.value_and_grad(functools.partial(jsoftmax.cross_entropy, reduction="mean")),
}

STORES_IN_FLOAT32 = {
    "entropy": lambda x, ids: jsoftmax.entropy(x),
    "softmax with a sink": lambda x, ids: jsoftmax.softmax(x, sink=ids[:, None].astype(x.dtype)),
}


def share_stored(name, classes, dtype):
    """The bytes stored besides the logits, divided by theirs; their gradient is a result."""
    x = jax.ShapeDtypeStruct((2**24 // classes, classes), dtype)
    function = (STORES | STORES_IN_FLOAT32)[name]
    compiled = jit_in_full(function).lower(x, jax.ShapeDtypeStruct(x.shape[:1], jnp.int32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (x.size * x.dtype.itemsize)


def of_block(name, classes):
    """The size of the block that is read again, in float32, as a share."""
    return 0 if name.startswith("softmax") else (_block_sizes.block_size(classes) or 0) / classes


@pytest.mark.share(3)
@pytest.mark.diagonal
@pytest.mark.parametrize("classes", [10, 1000, 9001, 32768, 50257, 131072])
@pytest.mark.parametrize("name", STORES)
def test_no_array_of_the_logits_size_is_stored(name, classes):
    few = 0.06 if classes > 16 else 8 / classes  # up to 8 numbers of every row
    assert share_stored(name, classes, jnp.float32) < few + of_block(name, classes)


@pytest.mark.diagonal
@pytest.mark.parametrize("classes", [1000, 50257])
@pytest.mark.parametrize("name", STORES_IN_FLOAT32)
def test_none_is_stored_for_float32_logits(name, classes):
    """Logits of 16 bits are converted to an array of float32 here."""
    assert share_stored(name, classes, jnp.float32) < 0.06 + of_block(name, classes)


@pytest.mark.share(3)
@pytest.mark.diagonal
@pytest.mark.parametrize("classes", [100, 1000, 9000, 50257])
@pytest.mark.parametrize("name", STORES)
def test_no_wider_copy_is_stored(name, classes):
    assert share_stored(name, classes, jnp.bfloat16) < 0.15 + 2 * of_block(name, classes)


@pytest.mark.diagonal
@pytest.mark.parametrize("shape", [(40000, 10), (4096, 100), (4096, 1000)])
@pytest.mark.parametrize("sink", [None, 0.5])
@pytest.mark.parametrize("function", [jsoftmax.softmax, jsoftmax.log_softmax])
def test_a_gradient_of_bfloat16_stores_nothing_in_float32(function, sink, shape):
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def gradient(x, g):
        return jax.vjp(functools.partial(function, sink=sink), x)[1](g)[0]

    stored = jit_in_full(gradient).lower(x, x).compile().memory_analysis().temp_size_in_bytes
    assert stored < max(5 * 4 * shape[0], 0.3 * 2 * math.prod(shape))  # numbers of every row, or one block


AS_IN_FLOAT32 = {
    "gradient": lambda f, x, v: jax.vjp(f, x)[1](v)[0],
    "tangent": jsoftmax.forward_mode()(lambda f, x, v: jax.jvp(f, (x,), (v,))[1]),
    "second derivative": lambda f, x, v: jax.jvp(lambda x: jax.vjp(f, x)[1](v)[0], (x,), (v,))[1],
    "second derivative in reverse": lambda f, x, v: jax.vjp(lambda x: jax.vjp(f, x)[1](v)[0], x)[1](v)[0],
}


@pytest.mark.diagonal
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("what", AS_IN_FLOAT32)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_derivatives_of_maps_in_16_bits_are_those_in_float32(dtype, what, axis):
    x, v = 4 * np.random.default_rng(0).normal(size=(2, 96, 128)).astype(dtype)
    x[3], x[4], x[5, 7], x[6, 7], x[7, 1:], x[8, 5] = np.nan, -np.inf, np.inf, np.nan, -np.inf, 40
    x, v = (jnp.asarray(a if axis else a.T) for a in (x, v))
    for function in jsoftmax.softmax, jsoftmax.log_softmax:
        for sink in None, 0.5:
            call = functools.partial(function, axis=axis, sink=sink)
            got, want = (
                jax.jit(functools.partial(AS_IN_FLOAT32[what], call))(x.astype(of), v.astype(of)).astype(
                    float
                )
                for of in (dtype, jnp.float32)
            )
            scale = jnp.max(jnp.abs(jnp.nan_to_num(want)), axis, keepdims=True)
            np.testing.assert_array_equal(jnp.isnan(got), jnp.isnan(want))
            bound = 4 * (scale * float(jnp.finfo(dtype).eps) + float(jnp.finfo(dtype).smallest_subnormal))
            assert jnp.nanmax(jnp.abs(got - want) / bound) < 1


@pytest.mark.parametrize("function", [jsoftmax.softmax, jsoftmax.log_softmax])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_gradient_of_a_sink_in_16_bits_is_that_in_float32(dtype, function):
    """0 in an empty row, as all its gradients."""
    x = 4 * np.random.default_rng(0).normal(size=(96, 128)).astype(dtype)
    x[4], x[5, 1:], x[6, 3] = -np.inf, -np.inf, 40
    sinks = jnp.linspace(-3, 3, 96)[:, None].at[7].set(60)
    g = np.cos(np.arange(x.size)).reshape(x.shape).astype(dtype)

    def gradient(sinks, x):
        return jax.vjp(lambda sinks: function(x, sink=sinks), sinks)[1](jnp.asarray(g, x.dtype))[0]

    def second(sinks, x):
        return jax.vjp(lambda sinks: gradient(sinks, x), sinks)[1](jnp.ones_like(sinks))[0]

    for of_sink in gradient, second:
        got, want = (jax.jit(of_sink)(sinks, jnp.asarray(x, of)) for of in (dtype, jnp.float32))
        assert got[4] == 0
        np.testing.assert_allclose(got, want, rtol=0.02, atol=0.02)


WITH_FURTHER_SUMS = {
    "smoothed": lambda x, y: jsoftmax.cross_entropy(x, y, label_smoothing=0.1),
    "smoothed, z-loss": lambda x, y: jsoftmax.cross_entropy(x, y, label_smoothing=0.1, z_loss=1e-3),
    "temperature": lambda x, y: jsoftmax.cross_entropy(x, y, temperature=0.7),
    "targets": lambda x, y: jsoftmax.cross_entropy(x, jnp.cos(jnp.arange(x.size).reshape(x.shape)) ** 2),
    "entropy": lambda x, y: jsoftmax.entropy(x),
    "masked": lambda x, y: jsoftmax.logsumexp(x, -1, where=x > -1),
    "row statistics": lambda x, y: jnp.stack(jsoftmax.row_statistics(x, y)[:3]),
}


@pytest.mark.share(3)
@pytest.mark.parametrize("with_errors", [False, True])
@pytest.mark.parametrize("classes", [9, 32, 700])
@pytest.mark.parametrize("name", WITH_FURTHER_SUMS)
def test_many_rows_are_as_those_of_a_portable_program(name, classes, with_errors):
    """All forms for CPU of sums besides that of the exponentials, next to rows with NaN and infinities."""
    rows = 2**17 // classes
    x = 3 * np.random.default_rng(0).normal(size=(rows, classes)).astype(np.float32)
    x[1], x[2, 3], x[3] = x[1] + 1e4, 60, 0
    if with_errors:
        x[4], x[5], x[6, 1], x[7, 2], x[8, 1:], x[9, :4] = np.nan, -np.inf, np.inf, np.nan, -np.inf, -np.inf
    x, y = jnp.asarray(x), jnp.arange(rows) % classes
    call = WITH_FURTHER_SUMS[name]

    def both(x):
        values, pull = jax.vjp(lambda x: call(x, y), x)
        return values, pull(jnp.cos(jnp.arange(values.size, dtype=x.dtype)).reshape(values.shape))[0]

    got = jax.jit(both)(x)
    with jsoftmax.portable():
        want = jax.jit(both)(x)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("classes", [8, 100, 1000, 32000])
def test_the_loss_with_its_gradient_computes_each_exponential_once(classes):
    """And once more where terms underflow: in a branch that ordinary rows do not take."""
    x = jax.ShapeDtypeStruct((2**20 // classes, classes), jnp.float32)
    rows = x.shape[0]
    lowered = jit_in_full(STORES["loss and gradient"]).lower(x, jax.ShapeDtypeStruct((rows,), jnp.int32))
    shapes = re.findall(r"= f32\[([\d,]+)\]\S* exponential\(", lowered.compile().as_text())
    sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
    assert sizes.count(x.size) == 2
    assert sum(sizes) < 2 * x.size + 4 * rows  # and a few for every row


def test_no_wider_copy_of_bfloat16_logits_is_stored():
    x = jax.ShapeDtypeStruct((8192, 131072), jnp.bfloat16)
    loss = jax.value_and_grad(functools.partial(jsoftmax.cross_entropy, reduction="mean"))
    compiled = jit_in_full(loss).lower(x, jax.ShapeDtypeStruct((8192,), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.05 * 2 * x.size


OF_ROWS = {
    "softmax": lambda x, ids: jsoftmax.softmax(x),
    "log_softmax": lambda x, ids: jsoftmax.log_softmax(x),
    "logsumexp": lambda x, ids: jsoftmax.logsumexp(x, 1),
    "logsumexp, weighted": lambda x, ids: jsoftmax.logsumexp(x, 1, jnp.full_like(x, 2.0)),
    "loss": lambda x, ids: jsoftmax.cross_entropy(x, ids),
    "loss, targets": lambda x, ids: jsoftmax.cross_entropy(x, jnp.full_like(x, 0.125)),
    "row statistics": lambda x, ids: jnp.stack(jsoftmax.row_statistics(x, ids)[:3], 1),
    "entropy": lambda x, ids: jsoftmax.entropy(x),
    "KL": lambda x, ids: jsoftmax.kl_divergence(x, jnp.zeros_like(x)),
    "JS": lambda x, ids: jsoftmax.js_divergence(x, jnp.zeros_like(x)),
}


ACROSS = {
    "softmax": lambda x, ids, t, axis: jsoftmax.softmax(x, axis),
    "log_softmax": lambda x, ids, t, axis: jsoftmax.log_softmax(x, axis),
    "logsumexp": lambda x, ids, t, axis: jsoftmax.logsumexp(x, axis),
    "loss": lambda x, ids, t, axis: jsoftmax.cross_entropy(x, ids, axis=axis),
    "loss, targets": lambda x, ids, t, axis: jsoftmax.cross_entropy(x, t, axis=axis),
    "loss, options": lambda x, ids, t, axis: jsoftmax.cross_entropy(
        x, ids, axis=axis, where=x > -6, label_smoothing=0.1, temperature=0.7
    ),
    "entropy": lambda x, ids, t, axis: jsoftmax.entropy(x, axis=axis),
}


@pytest.mark.long
@pytest.mark.share(7)
@pytest.mark.diagonal
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ACROSS)
def test_rows_that_lie_across_memory(name, dtype, monkeypatch):
    """Values and gradients as for the same rows with adjacent classes; an error stays in its row."""
    monkeypatch.setattr(_request, "MOST_STRIDE", 2**14)
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(2, 40, 2, _request.MOST_STRIDE)).astype(np.float32)
    x[:, 7, 0] += 30
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, 3, 0, 2], x[0, 3, 0, 3] = np.nan, -np.inf, np.inf, -np.inf
    x = jnp.asarray(x, dtype)
    ids = jnp.asarray(rng.integers(0, 40, np.delete(x.shape, 1)))
    t = jnp.asarray(rng.gamma(0.5, size=x.shape), jnp.float32).at[0, 3, 0, 3].set(0)
    assert Request("rest", x, (1,)).is_strided

    @functools.partial(jit_in_full, static_argnums=3)
    def values_and_gradients(x, ids, t, axis):
        values, pull = jax.vjp(lambda x: ACROSS[name](x, ids, t, axis), x)
        g = jnp.cos(7 * jnp.arange(ids.size, dtype=jnp.float32)).reshape(ids.shape).astype(values.dtype)
        g = jnp.expand_dims(g, axis) if values.ndim == 4 else g
        return values, *pull(jnp.broadcast_to(g, values.shape))

    def times_sign(a):
        return jnp.moveaxis(a, 1, -1) if a.ndim == 4 else a

    got = values_and_gradients(x, ids, t, 1)
    want = values_and_gradients(times_sign(x), ids, times_sign(t), -1)
    for a, b in zip(got, want, strict=True):
        assert np.isnan(a).sum() > 0
        np.testing.assert_allclose(times_sign(a), b, rtol=3e-6 if dtype == jnp.float32 else 2e-2, atol=1e-6)


def test_bfloat16_rows_in_blocks():
    _, x = rows(np.random.default_rng(0), FORMS["blocks"][0])
    x = jnp.asarray(x, jnp.bfloat16)
    form = FORMS["blocks"][1]
    short, full = (
        jit_in_full(lambda x: _cpu.rest(form, x, x.max(1, keepdims=True), 1))(a)
        for a in (x, x.astype(jnp.float32))
    )
    np.testing.assert_allclose(short, full, rtol=1e-6)


@pytest.mark.share(10)
@pytest.mark.diagonal
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("classes", [3, 10, 20, 100, 1000, 9000, 40000])
@pytest.mark.parametrize("name", OF_ROWS)
def test_rows_of_16_bits(name, classes, dtype):
    """Many rows: the results of float32 for the same logits, rounded."""
    _, x = rows(np.random.default_rng(0), (1, classes))
    x = np.tile(x, (MOST_PLAIN // x.size + 1, 1))
    ids = jnp.arange(len(x)) % classes
    logits = jnp.asarray(np.where(abs(x) < 6e4, x, -np.inf), dtype)
    got, want = (jit_in_full(OF_ROWS[name])(a, ids) for a in (logits, logits.astype(jnp.float32)))
    ulps = 1 if got.dtype == dtype else 200
    limits, got, want = jnp.finfo(got.dtype), *(np.asarray(a, np.float64) for a in (got, want))
    with np.errstate(invalid="ignore"):
        near = abs(got - want) <= ulps * float(limits.eps) * abs(want) + 8 * float(limits.tiny)
    assert np.all(near | (got == want))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("read", ["picked", "part"])
def test_what_is_read_has_its_derivative(read, dtype):
    x, index = jnp.arange(12.0, dtype=dtype).reshape(3, 4), jnp.array([[1], [0], [3]])
    function, want = {
        "picked": (lambda x: _reading.picked(x, index, 1), np.arange(4) == np.asarray(index)),
        "part": (lambda x: _reading.part(x, 1, 3, 1), np.tile([False, True, True, False], (3, 1))),
    }[read]
    np.testing.assert_array_equal(function(x).ravel(), x[want])
    np.testing.assert_array_equal(jax.grad(lambda x: function(x).sum())(x), want)


@pytest.mark.share(4)
@pytest.mark.diagonal
@pytest.mark.parametrize("classes", [100, 1000, 9000, 40000])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_second_derivatives_of_many_rows(name, classes):
    """Along one direction, of the sum of the cubes of the probabilities; some rows have a leading class."""
    rng, shape = np.random.default_rng(0), (MOST_PLAIN // classes + 2, classes)
    x, v = rng.normal(size=(2, *shape)).astype(np.float32)
    x[::2, 3] += 14

    def of(function):
        return lambda x: jnp.sum(function(x) ** 3 if name == "softmax" else jnp.exp(3 * function(x)))

    def along(f, x, v):
        return jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), v))(x)

    ours = of(getattr(jsoftmax, name))
    with jax.enable_x64(True):
        want = along(of(getattr(jax.nn, name)), *(jnp.asarray(a, jnp.float64) for a in (x, v)))
    with jsoftmax.forward_mode():
        forward = jax.jvp(jax.grad(ours), (x,), (v,))[1]
    for got in (along(ours, x, v), forward):
        np.testing.assert_allclose(got, want, atol=3e-6 * np.abs(want).max())


@pytest.mark.share(5)
@pytest.mark.parametrize("name", [*FORMS, "one sum"])
def test_a_nan_stays_in_its_row(name):
    """Next to it, a leading class keeps its digits, and an empty row is empty."""
    shape = FORMS[name][0] if name in FORMS else (4, 7)
    x = np.random.default_rng(0).normal(size=(4, shape[1])).astype(np.float32)
    x[0, 1] += 40
    x[1] = -np.inf
    ill = x.copy()
    ill[2, 3], ill[3, 5] = np.nan, np.inf
    maps = (jsoftmax.softmax, np.nan), (jsoftmax.log_softmax, np.nan)
    for function, of_infinity in (*maps, (lambda x: jsoftmax.logsumexp(x, -1), np.inf)):
        function = jit_in_full(function)
        well, beside = np.asarray(function(x)), np.asarray(function(ill))
        np.testing.assert_array_equal(beside[:2], well[:2])
        np.testing.assert_array_equal(beside[2], np.full_like(beside[2], np.nan))
        np.testing.assert_array_equal(beside[3], np.full_like(beside[3], of_infinity))


@pytest.mark.share(5)
@pytest.mark.diagonal
@pytest.mark.parametrize("classes", [2, 9, 40, 100, 9000])
@pytest.mark.parametrize("name", OF_ROWS)
def test_a_nan_is_seen_in_many_rows(name, classes):
    """XLA's library returns −inf as the maximum of a row of NaNs, and may drop a NaN from other maxima."""
    count = max(2**19 // classes, 8)
    x = np.zeros((count, classes), np.float32)
    x[1], x[2], x[2, 1:], x[3, -1], x[4, 0] = np.nan, np.nan, -np.inf, np.nan, np.inf
    found = np.asarray(jit_in_full(OF_ROWS[name])(x, jnp.zeros(count, int))).reshape(count, -1)
    assert np.array_equal(np.flatnonzero(~np.isfinite(found).all(1)), [1, 2, 3, 4])
    assert np.isnan(found[1:4]).all()
    assert (found[4] == np.inf if "logsumexp" in name else np.isnan(found[4])).all()


@pytest.mark.share(5)
@pytest.mark.diagonal
@pytest.mark.parametrize("classes", [2, 8, 100, 9000])
@pytest.mark.parametrize("name", OF_ROWS)
def test_a_nan_is_seen_in_gradients(name, classes):
    x = np.zeros((max(2**14 // classes, 4), classes), np.float32)
    x[1], x[2], x[2, 1:] = np.nan, np.nan, -np.inf
    ids = jnp.zeros(len(x), int)
    total = jax.grad(lambda x: jnp.sum(OF_ROWS[name](x, ids)))
    ill = np.isnan(jit_in_full(total)(x))
    assert np.array_equal(np.flatnonzero(ill.any(1)), [1, 2])
    assert ill[1:3].all()


def test_a_program_is_right_beside_programs_for_other_numbers_of_classes():
    """XLA's library may use the iota of another: findings/iota_of_another_program_in_a_sum_of_rows.sh."""
    programs = []  # the library takes nothing from a program that is gone
    for classes in (2, 7, 10, 40, 3, 100, 9):
        x = np.random.default_rng(0).normal(size=(max(2**19 // classes, 10), classes)).astype(np.float32)
        y = np.arange(len(x)) % classes
        x[1, y[1]] = 80  # so sure that the terms of the other classes underflow
        loss = jit_in_full(lambda x, y: jsoftmax.cross_entropy(x, y))
        programs.append(loss)
        wide = np.float64(x)
        away = np.where(np.arange(classes) == y[:, None], -np.inf, wide - wide[np.arange(len(x)), y][:, None])
        np.testing.assert_allclose(loss(x, y), np.log1p(np.exp(away).sum(1)), rtol=2e-5, atol=1e-37)


@pytest.mark.parametrize("classes", [8, 100])
def test_probabilities_of_logits_that_are_a_product(classes):
    """XLA computes the product again in the shift, without rounding: the term of the maximum is not 1."""
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


@pytest.mark.share(4)
@pytest.mark.parametrize("classes", [8, 100, 1000, 40000])
def test_logits_that_are_a_product(classes):
    """XLA computes the product again in the shift, without rounding: the term of the maximum is not 1."""
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


@pytest.mark.share(4)
@pytest.mark.diagonal
@pytest.mark.parametrize("function", [jsoftmax.softmax, jsoftmax.log_softmax], ids=lambda f: f.__name__)
@pytest.mark.parametrize("classes", [2, 3, 8, 9, 60, 600, 9000, 40000])
def test_classes_that_are_alike_round_alike(classes, function):
    """As with label smoothing: next to the 1 of the leading class, a plain sum rounds each by the same."""
    rng = np.random.default_rng(0)
    count = max(MOST_PLAIN // classes + 1, min(2000, 2**21 // classes))
    x = np.repeat(rng.uniform(-20, 0, (count, 1)), classes, 1).astype(np.float32)
    leads = np.arange(classes) == rng.integers(classes, size=(count, 1))
    x[leads] = 0
    e = np.exp(x.astype(np.float64))
    others = np.where(leads, 0, e).sum(1, keepdims=True)
    lead = np.where(leads, -x.min(1, keepdims=True), 0)
    want, more = (e / (1 + others), -x) if function is jsoftmax.softmax else (x - np.log1p(others), lead)
    off = np.abs(np.asarray(jit_in_full(function)(x), np.float64) - want)
    assert np.all(off <= (4 + more) * np.spacing(np.abs(want).astype(np.float32)))


def test_the_gradient_of_a_dense_head_is_computed_once():
    """The rows have two axes, which XLA merges for the products of the gradients. optax stores two arrays."""
    shapes = (2, 64, 16), (16, 2048), (1, 1, 2048)
    floats = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(hidden, weight, bias, labels):
        return jsoftmax.cross_entropy(hidden @ weight + bias, labels, reduction="mean")

    gradients = jit_in_full(jax.grad(loss, (0, 1, 2)))
    program = gradients.lower(*floats, jax.ShapeDtypeStruct((2, 64), jnp.int32)).compile()
    assert program.memory_analysis().temp_size_in_bytes < 3.1 * 4 * 128 * 2048
