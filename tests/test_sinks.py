"""A sink in the maps: one more class per row, without an output and without a copy of the logits."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_in_full

import jsoftmax

INF, NAN = np.inf, np.nan
MAPS = {"softmax": jsoftmax.softmax, "log_softmax": jsoftmax.log_softmax}
each = pytest.mark.parametrize("name", MAPS)


def beside(name, x, sink, axis=-1):
    """The definition: the map of the logits and the sink, without the sink's output."""
    whole = jnp.concatenate([x, jnp.broadcast_to(sink, (*x.shape[:-1], 1)).astype(x.dtype)], -1)
    return getattr(jax.nn, name)(whole, axis)[..., :-1]


def value_and_gradients(function, x, sink):
    def total(x, sink):
        out = function(x, sink=sink)
        return jnp.sum(
            jnp.where(jnp.isfinite(out), out * jnp.cos(jnp.arange(x.size)).reshape(x.shape), 0)
        ), out

    gradients, out = jax.grad(total, (0, 1), has_aux=True)(x, sink)
    return out, *gradients


@each
def test_rows_of_every_kind(name):
    """No sink, no live class, and a sink that is no number; no row changes another."""
    x = jnp.array([[1.0, 2.0, -INF], [-INF] * 3, [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, NAN, 0.0]])
    sink = jnp.array([[-INF], [0.5], [NAN], [INF], [0.0]])
    function = jax.jit(partial(value_and_gradients, MAPS[name]))
    with jax.debug_nans(True):
        out, dx, ds = function(x[:2], sink[:2])
    bare, dbare, _ = jax.jit(lambda x: value_and_gradients(lambda x, sink: MAPS[name](x), x, 0.0))(x[:2])
    np.testing.assert_allclose(out, bare, rtol=1e-6)
    np.testing.assert_allclose(dx, dbare, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(ds, np.zeros((2, 1)))
    bad = np.broadcast_to(np.arange(5)[:, None] > 1, (5, 3))
    out, dx, _ = function(x, sink)
    np.testing.assert_array_equal(np.isnan(out), bad)
    assert not np.isnan(dx[:2]).any()


@pytest.mark.share(2)
@each
@pytest.mark.parametrize("kind", ["-inf", "masked"])
@pytest.mark.parametrize("temperature", [None, 2.0])
@pytest.mark.parametrize("classes", [3, 50257])
def test_a_row_without_a_live_class_has_no_sink(name, kind, temperature, classes):
    """Not one of +inf or NaN either, except in a softmax of few logits without a temperature."""
    live = jnp.array([[False], [False], [True]])
    x = jnp.where(live, jnp.cos(jnp.arange(classes)), -INF if kind == "-inf" else 7.0)
    function = partial(MAPS[name], temperature=temperature, where=None if kind == "-inf" else live)
    bad, none = jnp.array([[INF], [NAN], [0.5]]), jnp.array([[-INF], [-INF], [0.5]])
    both = jax.jit(partial(value_and_gradients, function))
    want = both(x, none)
    np.testing.assert_array_equal(want[0][:2], np.full((2, classes), 0 if name == "softmax" else -INF))
    if name == "softmax" and temperature is None and classes == 3:
        out, _, of_sink = both(x, bad)
        assert np.isnan(out[:2]).all()
        assert np.isnan(of_sink[:2]).all()
        np.testing.assert_array_equal(out[2], want[0][2])
        return
    for got, wanted in zip(both(x, bad), want, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_sink_far_above_or_below_the_logits():
    """With the largest logit as the shift, exp(sink − max) would overflow; with the sink, it is 1."""
    x = jnp.array([1.0, 2.0, 3.0])
    for sink in (50.0, 80.0):
        exact = np.exp(np.float64(x) - sink)
        np.testing.assert_allclose(jsoftmax.softmax(x, sink=sink), exact, rtol=80 * 2**-23)
    for sink in (200.0, 1e30):
        np.testing.assert_allclose(jsoftmax.log_softmax(x, sink=sink), x - np.float32(sink), rtol=1e-7)
        for gradient in jax.grad(lambda *a: jsoftmax.log_softmax(a[0], sink=a[1])[0], (0, 1))(x, sink):
            assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(jsoftmax.softmax(x, sink=-1e30), jsoftmax.softmax(x))
    # A confident class keeps its digits: its log-probability is −(rest + exp(sink − max)).
    found = jsoftmax.log_softmax(jnp.array([40.0, 0.0]), sink=2.0)[0]
    np.testing.assert_allclose(found, -np.float64(np.exp(-40.0) + np.exp(-38.0)), rtol=1e-6)


def test_off_by_one():
    x = jnp.array([[0.3, -2.0, 1.5], [-50.0, -60.0, -70.0]])
    want = np.exp(np.float64(x)) / (1 + np.exp(np.float64(x)).sum(1, keepdims=True))
    np.testing.assert_allclose(jsoftmax.softmax(x, sink=0.0), want, rtol=1e-5)


@pytest.mark.share(2)
@each
def test_one_per_head_beside_masks_and_temperatures(name):
    """As in attention: the sink broadcasts like a row of the mask, and is divided by T as the scores are."""
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(2, 4, 5, 5)), jnp.float32)
    sink, causal = jnp.asarray(rng.normal(size=(4, 1, 1)), jnp.float32), jnp.tril(jnp.ones((5, 5), bool))

    def ours(x, sink, t):
        return jnp.where(causal, MAPS[name](x, where=causal, sink=sink, temperature=t), 0)

    def plain(x, sink, t):
        masked = jnp.where(causal, x / t, -1e9)
        return jnp.where(causal, beside(name, masked, sink / t), 0)

    def all_of(f):
        pull = jax.grad(lambda *a: jnp.sum(f(*a) * jnp.cos(scores)), (0, 1, 2))
        return jax.jit(lambda *a: (f(*a), pull(*a)))

    arguments = scores, sink, jnp.float32(0.7)
    for got, want in zip(*(jax.tree.leaves(all_of(f)(*arguments)) for f in (ours, plain)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6)
    with pytest.raises(ValueError, match=r"sink of shape \(5,\) is neither one number nor one per row"):
        MAPS[name](scores, sink=jnp.zeros(5))


@pytest.mark.share(4)
@each
@pytest.mark.parametrize("shape", [(1024, 256), (64, 8192)], ids=str)
def test_it_takes_no_memory(name, shape):
    """Temporaries are those without a sink and a few numbers per row; so are the residuals."""
    rows, classes = shape
    x, short = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    sink = jax.ShapeDtypeStruct((rows, 1), jnp.float32)

    def temporaries(f, *arguments):
        return jit_in_full(f).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    def residuals(f, *arguments):
        return jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], *arguments)

    bare, sunk = MAPS[name], lambda x, s: MAPS[name](x, sink=s)
    slack = 16 * rows * 4
    for logits in (x, short):
        assert temporaries(sunk, logits, sink) <= 1.05 * temporaries(bare, logits) + slack
    saved = residuals(sunk, x, sink)
    at_most = 1.05 * temporaries(lambda pull, g: pull(g), residuals(bare, x), x) + slack
    assert temporaries(lambda pull, g: pull(g), saved, x) <= at_most
    assert [leaf.size for leaf in jax.tree.leaves(saved) if leaf.size > rows] == [x.size]
    assert f"[{rows},{classes + 1}]" not in str(jax.make_jaxpr(jax.grad(lambda *a: sunk(*a).sum()))(x, sink))


@each
@pytest.mark.parametrize("asked", ["logits", "logits and sink"])
def test_the_library_computes_the_sinks_of_many_rows_at_once(name, asked):
    """XLA's library on CPU computes along the last axis: of length 1, it costs as much as all of the row."""
    x, sink = jax.ShapeDtypeStruct((4096, 10), jnp.float32), jax.ShapeDtypeStruct((4096, 1), jnp.float32)

    def pull(x, sink):
        if asked == "logits":
            return jax.vjp(lambda x: MAPS[name](x, sink=sink), x)[1]
        return jax.vjp(lambda x, sink: MAPS[name](x, sink=sink), x, sink)[1]

    def computed_row_by_row(function, *arguments):
        text = jit_in_full(function).lower(*arguments).compile().as_text()
        names = re.findall(r"kind=kCustom, calls=(%[\w.]+)", text)
        assert names
        bodies = [text.partition(f"\n{name} ")[2].partition("\n}")[0] for name in names]
        operations = re.findall(r"= f32\[4096,1\]\S* ([\w-]+)\(", "".join(bodies))
        return {"exponential", "divide", "multiply", "subtract"} & set(operations)

    assert not computed_row_by_row(lambda pull, g: pull(g), jax.eval_shape(pull, x, sink), x)
    if name == "softmax":
        assert not computed_row_by_row(lambda x, sink: pull(x, sink)(x), x, sink)


def test_second_derivatives_where_one_class_is_all_but_certain():
    """A shift of the logits and the sink changes nothing, so the derivatives of the gradient sum to 0."""
    x, sink = jnp.array([[3.0, -20.0], [-50.0, 3.0], [-INF, 3.0]]), jnp.array([2.0, 2.0, 2.0])

    def gradient(x, sink):
        return jax.grad(lambda s: jnp.sum(jsoftmax.softmax(x, sink=s) * jnp.array([1.0, 2.0])))(sink)

    in_x, in_sink = jax.jit(jax.vmap(jax.grad(gradient, (0, 1))))(x, sink)
    q = 1 / (1 + np.exp(2.0 - 3.0))  # the probability of the leading class beside the sink
    want = -np.array([1.0, 2.0, 2.0]) * q * (1 - q) * (2 * q - 1)
    np.testing.assert_allclose(in_sink, want, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(in_x, -1), -want, rtol=1e-5)
