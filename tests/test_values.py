"""Every function has the value of its definition."""

from functools import partial

import definitions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampling
from cases import REGIMES, SHAPES, logits, mask, named
from compiling import jit_in_full

import jsoftmax
from jsoftmax import evaluation

EPS = np.finfo(np.float32).eps


def error(ours, exact):
    """The exact error, and the exact values in float64."""
    difference = np.asarray(abs(definitions.exactly(ours) - exact))
    return difference.astype(np.float64), exact.astype(np.float64)


@pytest.mark.share(3)
@pytest.mark.diagonal
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("function", **named())
def test_value_on_any_shape_and_axis(function, shape, axis):
    arguments = function.arguments(logits("unit", shape, axis, np.float32), axis)
    ours = jax.jit(lambda *arguments: function.ours(*arguments, axis=axis))(*arguments)
    off, exact = error(ours, function.exact(arguments, axis))
    assert ours.dtype == jnp.float32
    assert ours.shape == exact.shape
    assert np.all(off <= EPS * (16 * np.abs(exact) + 4))


@pytest.mark.share(10)
@pytest.mark.diagonal
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", **named())
def test_value_in_any_regime(function, dtype):
    """An exponential of u has |u| roundings: the error is at most that, relative to the value."""
    with jax.enable_x64(dtype == np.float64):
        call = jit_in_full(lambda *arguments: function.ours(*arguments, axis=-1))
        for regime in REGIMES:
            x = logits(regime, (6, 30), dtype=dtype)
            arguments = function.arguments(x)
            ours = call(*arguments)
            assert ours.dtype == dtype
            off, exact = error(ours, function.exact(arguments))
            scale = np.abs(exact) + function.slope
            if "logsumexp" in function.name:
                scale = scale + np.abs(x).max(-1)  # the maximum and the logarithm may cancel
            reach = 8 + 4 * np.ptp(x, axis=-1, keepdims=not function.reduces)
            bound = np.finfo(dtype).eps * reach * scale + np.finfo(dtype).tiny
            assert np.all(off <= bound), regime


def test_softmax_in_round_numbers():
    np.testing.assert_allclose(jsoftmax.softmax(jnp.array([1, 2, 3])), [0.09, 0.24, 0.67], atol=0.01)
    np.testing.assert_allclose(jsoftmax.softmax(jnp.array([1, 2, 5])), [0.02, 0.05, 0.93], atol=0.01)


@pytest.mark.share(2)
@pytest.mark.diagonal
@pytest.mark.parametrize("axis", [None, (0, 2), (2, 0), (-1, -2), (1,), [0, 1], ()], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["bare", "masked"])
def test_maps_take_the_axes_and_masks_of_jax_nn(axis, masked):
    x = jnp.asarray(logits("unit", (3, 4, 5), dtype=np.float32))
    where = jnp.asarray(mask(np.random.default_rng(0), (1, 4, 5), -1)[0]) if masked else None
    axis_of_jax = tuple(axis) if isinstance(axis, list) else axis

    def all_of(library, axis, x, where):
        maps = [getattr(library, name)(x, axis, where) for name in ("softmax", "log_softmax")]
        return maps, [library.logsumexp(x, axis, keepdims=k, where=where) for k in (False, True)]

    of_each = (partial(all_of, jsoftmax, axis), partial(all_of, jax.nn, axis_of_jax))
    ours, peer = (jax.jit(f)(x, where) for f in of_each)
    for kind, atol in ((0, 0), (1, EPS)):  # the maximum and the logarithm of a sum may cancel
        for a, b in zip(ours[kind], peer[kind], strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=16 * EPS, atol=atol)


@pytest.mark.share(5)
@pytest.mark.parametrize("axis", [None, 0, (0, 1)], ids=str)
@pytest.mark.parametrize("return_sign", [False, True])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("b", ["none", "scalar", "row", "negative"])
def test_logsumexp_takes_every_argument_of_jax_nn(axis, return_sign, keepdims, b):
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    b = {
        "none": None,
        "scalar": jnp.float32(0.5),
        "row": jnp.asarray(rng.uniform(size=(1, 6)), jnp.float32),
        "negative": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32),
    }[b]
    where = jnp.asarray(rng.random((4, 6)) < 0.7)
    ours = jsoftmax.logsumexp(a, axis, b, keepdims, return_sign, where)
    full = None if b is None else jnp.broadcast_to(b, a.shape)
    peer = jax.nn.logsumexp(a, axis, full, keepdims, return_sign, where)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), ours, peer)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, bool])
def test_integers_and_bools_become_floats(dtype):
    x = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    for function in (jsoftmax.softmax, jsoftmax.log_softmax, jsoftmax.logsumexp):
        assert function(x, -1).dtype == jnp.float32
        np.testing.assert_array_equal(function(x, -1), function(x.astype(np.float32), -1))


@pytest.mark.share(2)
@pytest.mark.parametrize("b", [2, 2.0, jnp.array([1, 0, 1]), jnp.array([True, False, True])], ids=repr)
def test_weights_without_a_float_type_adopt_that_of_the_exponents(b):
    a = jnp.array([0.5, 1, 2], jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        want = jax.nn.logsumexp(a, b=b)
    for found in (jsoftmax.logsumexp(a, b=b), jax.jit(lambda b: jsoftmax.logsumexp(a, b=b))(b)):
        assert found.dtype == want.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(found), np.float32(want), rtol=0.01)
    assert jsoftmax.logsumexp(jnp.arange(3), b=b).dtype == jnp.float32


@pytest.mark.share(8)
@pytest.mark.diagonal
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("function", **named())
def test_low_precision_is_computed_in_float32(function, dtype):
    """The error is one rounding of the output."""
    x = jnp.asarray(logits("unit", (4, 200), dtype=np.float32)).astype(dtype)
    arguments = function.arguments(x)
    ours = jax.jit(lambda *arguments: function.ours(*arguments, axis=-1))(*arguments)
    is_map = not function.reduces and "loss" not in function.name and "entropy" not in function.name
    returns_its_own = is_map or "logsumexp" in function.name or function.name == "log_sigmoid"
    assert ours.dtype == (dtype if returns_its_own else jnp.float32)
    off, exact = error(ours, function.exact(arguments))
    eps = max(float(jnp.finfo(ours.dtype).eps), 16 * EPS)
    least = float(jnp.finfo(ours.dtype).smallest_subnormal)
    assert np.all(off <= 0.51 * eps * np.abs(exact) + 4 * EPS * function.slope + least)


def test_classes_first_is_the_transposed_answer():
    x, y = jnp.asarray(logits("unit", (20, 10), dtype=np.float32)), jnp.arange(20) % 10
    np.testing.assert_array_equal(jsoftmax.softmax(x.T, axis=0), jsoftmax.softmax(x).T)
    loss = jsoftmax.cross_entropy(x.T, y, axis=0, reduction="mean")
    np.testing.assert_allclose(loss, jnp.mean(jsoftmax.cross_entropy(x, y)), rtol=4 * EPS)
    one_hot = jax.nn.one_hot(y, 10)
    loss = jsoftmax.cross_entropy(x.T, one_hot.T, axis=0, reduction="mean")
    np.testing.assert_allclose(loss, jnp.mean(jsoftmax.cross_entropy(x, y)), rtol=4 * EPS)


@pytest.mark.parametrize("axis", [None, (1, 2), (2, 0), (0, -1)], ids=str)
def test_class_ids_count_along_a_tuple_of_axes_in_its_order(axis):
    x = jnp.asarray(logits("unit", (3, 4, 5), dtype=np.float32))
    axes = tuple(i % 3 for i in (range(3) if axis is None else axis))
    rows = [i for i in range(3) if i not in axes]
    flat = jnp.transpose(x, (*rows, *axes)).reshape(*(x.shape[i] for i in rows), -1)
    y = jnp.asarray(np.random.default_rng(0).integers(0, flat.shape[-1], flat.shape[:-1]))
    np.testing.assert_allclose(
        jsoftmax.cross_entropy(x, y, axis=axis), jsoftmax.cross_entropy(flat, y), rtol=4 * EPS
    )


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32])
def test_class_ids_of_any_integer_dtype(dtype):
    x = jnp.asarray(logits("unit", (3, 300), dtype=np.float32))
    y = np.array([0, 7, 100])
    np.testing.assert_array_equal(
        jsoftmax.cross_entropy(x, y.astype(dtype)), jsoftmax.cross_entropy(x, y.astype(np.int32))
    )


def test_reductions():
    x, y = jnp.asarray(logits("unit", (3, 4, 5), dtype=np.float32)), jnp.ones((3, 4), jnp.int32)
    losses = jsoftmax.cross_entropy(x, y)
    assert losses.shape == (3, 4)
    np.testing.assert_allclose(jsoftmax.cross_entropy(x, y, reduction="sum"), losses.sum(), rtol=4 * EPS)
    np.testing.assert_allclose(jsoftmax.cross_entropy(x, y, reduction="mean"), losses.mean(), rtol=4 * EPS)
    nothing, none = jnp.zeros((0, 5)), jnp.zeros(0, jnp.int32)
    mean, gradient = jax.value_and_grad(jsoftmax.cross_entropy)(nothing, none, reduction="mean")
    assert mean == 0
    assert gradient.shape == (0, 5)


def test_masks_as_optax_takes_them():
    """One entry per row masks the row; the targets of masked classes do not count."""
    x = jnp.asarray(logits("unit", (4, 5), dtype=np.float32))
    t = jax.nn.softmax(x[::-1])
    rows = jnp.array([True, False, True, False])
    for labels, loss in (
        (t, jsoftmax.softmax_cross_entropy),
        (jnp.arange(4), jsoftmax.softmax_cross_entropy_with_integer_labels),
    ):
        dropped = loss(x, labels, where=rows)
        np.testing.assert_array_equal(dropped, jnp.where(rows, loss(x, labels), 0))
    live = jnp.array([True, True, False, True, False])
    np.testing.assert_allclose(
        jsoftmax.softmax_cross_entropy(x, t, where=live[None]),
        jsoftmax.softmax_cross_entropy(x[:, live], t[:, live]),
        rtol=16 * EPS,
    )
    one_hot = jax.nn.one_hot(jnp.arange(4), 5, dtype=int)
    np.testing.assert_array_equal(
        jsoftmax.softmax_cross_entropy(x, one_hot), jsoftmax.softmax_cross_entropy(x, one_hot.astype(float))
    )


NARROW = [getattr(jnp, name) for name in dir(jnp) if name.startswith("float8") and "e8m0" not in name]


# With an infinity, without, and without a negative zero.
OF_EACH_KIND = jnp.float8_e5m2, jnp.float8_e4m3fn, jnp.float8_e4m3fnuz


@pytest.mark.share(3)
@pytest.mark.parametrize("dtype", sampling.sample(NARROW, *OF_EACH_KIND), ids=lambda d: d.__name__)
def test_8_bits_are_computed_as_float32(dtype):
    """Rounded once; if the output type has no −inf, −inf becomes NaN there, and nothing else does."""
    x, w = jnp.asarray([1.0, 2.0, 3.0], dtype), jnp.asarray([1.0, 0.5, 2.0], dtype)
    live = jnp.array([True, True, False])

    @jax.jit
    def of(x, w):
        one = jnp.asarray(1, x.dtype)
        losses = jax.value_and_grad(lambda x: jsoftmax.cross_entropy(x, 0, where=live))(x)
        return {
            "maps": [f(x, where=live) for f in (jsoftmax.softmax, jsoftmax.log_softmax, jsoftmax.logsumexp)],
            "weighted": jsoftmax.logsumexp(x, b=w, where=live, return_sign=True),
            "by integers": jsoftmax.logsumexp(x, b=2),
            "gradient": losses[1],
            "wide": (losses[0], jsoftmax.row_statistics(x, 1, where=live, temperature=one, soft_cap=8 * one)),
        }

    ours, wide = of(x, w), of(x.astype(jnp.float32), w.astype(jnp.float32))
    for found, want in zip(*map(jax.tree.leaves, (ours["wide"], wide["wide"])), strict=True):
        assert found.dtype == want.dtype
        np.testing.assert_allclose(found, want, rtol=2 * EPS)
    assert ours["wide"][1].prediction == 1
    for key in ("maps", "weighted", "by integers", "gradient"):
        for found, want in zip(*map(jax.tree.leaves, (ours[key], wide[key])), strict=True):
            assert found.dtype == dtype
            np.testing.assert_array_equal(np.float32(found), np.float32(want.astype(dtype)))
    np.testing.assert_allclose(np.float32(ours["maps"][0]), [0.269, 0.731, 0], atol=0.02)
    dead = np.float32(ours["maps"][1][2])
    assert np.isneginf(dead) if np.isneginf(np.float32(dtype(-np.inf))) else np.isnan(dead)


@pytest.mark.long
def test_8_bits_beside_wider_types_are_float32():
    """A quantized head, and other narrow arguments: the same numbers as in float32 throughout."""
    rng = np.random.default_rng(0)
    given = {
        "hidden": jnp.asarray(rng.normal(size=(4, 8)), jnp.bfloat16),
        "weight": jnp.asarray(rng.normal(size=(8, 5)), jnp.float8_e4m3fn),
        "bias": jnp.asarray(rng.normal(size=5), jnp.float32),
        "targets": jnp.asarray(rng.dirichlet(np.ones(5), 4), jnp.float8_e5m2),
        "rows": jnp.asarray([0.5, 1, 2, 1], jnp.float8_e4m3b11fnuz),
        "classes": jnp.asarray([0.5, 1, 2, 1, 4], jnp.float4_e2m1fn),
    }

    @jax.jit
    def of(given):
        names = "hidden", "weight", "bias", "targets", "rows", "classes"
        hidden, weight, bias, targets, rows, classes = (given[name] for name in names)
        options = {
            "class_weights": classes,
            "temperature": rows,
            "soft_cap": 4 * rows,
            "label_smoothing": rows / 8,
        }

        def loss(hidden, weight, bias):
            head = jsoftmax.linear_cross_entropy(hidden, weight, targets, bias=bias, **options)
            return head.sum() + jsoftmax.cross_entropy(weight, jnp.arange(8) % 5, class_weights=classes).sum()

        state = evaluation.update(evaluation.empty(), weight, jnp.arange(8) % 5, weights=abs(weight[:, 0]))
        others = (
            jsoftmax.logsumexp(weight, b=bias, axis=-1, return_sign=True),
            jsoftmax.logsumexp(bias[:4, None], b=targets, axis=-1),
            jsoftmax.kl_divergence(weight[:4], targets),
            jsoftmax.softmax_cross_entropy(weight[:4].astype(jnp.float32), targets),
            evaluation.compute(state).nll,
        )
        return jax.value_and_grad(loss, (0, 1, 2))(hidden, weight, bias), others

    with jax.numpy_dtype_promotion("standard"):
        (loss, gradients), others = of(given)
        (want, slopes), exact = of({name: a.astype(jnp.float32) for name, a in given.items()})
    np.testing.assert_allclose(loss, want, rtol=20 * EPS)
    for found, right in zip(*map(jax.tree.leaves, (others, exact)), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, right, rtol=20 * EPS, atol=EPS)
    for found, right, name in zip(gradients, slopes, given, strict=False):
        assert found.dtype == given[name].dtype
        np.testing.assert_allclose(
            np.float32(found), right, rtol=float(jnp.finfo(found.dtype).eps), atol=1e-2
        )


@pytest.mark.parametrize("dtype", [jnp.int2, jnp.uint2, jnp.int4, jnp.uint4], ids=lambda d: d.__name__)
def test_integers_of_few_bits_are_logits_and_labels(dtype):
    x = jnp.asarray([0, 1, 1], dtype)
    np.testing.assert_array_equal(jsoftmax.softmax(x), jsoftmax.softmax(jnp.array([0, 1, 1])))
    np.testing.assert_array_equal(
        jsoftmax.cross_entropy(jnp.eye(3), x), jsoftmax.cross_entropy(jnp.eye(3), x.astype(int))
    )
