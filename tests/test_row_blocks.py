"""Functions of many rows run on CPU in blocks of rows: the same numbers, and no array of all logits."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FUNCTIONS

import jsoftmax
from jsoftmax.backends import _block_sizes, _choice, _request

ROWS, CLASSES = 89, 120  # more logits than a plain program has; 89 is prime
BARE = {  # sums of bare logits, of which XLA stores nothing
    "entropy",
    "softmax",
    "softmax, sink",
    "log_softmax",
    "logsumexp",
    "logsumexp, masked",
    "cross_entropy, ids",
    "softmax_cross_entropy_with_integer_labels",
    "log_prob",
}
# Heads, segments, and no rows at all.
OTHERS = "linear", "contrastive", "sigmoid_contrastive", "segment", "binary", "log_sigmoid"
OF_ROWS = [function for function in FUNCTIONS if not function.name.startswith(OTHERS)]


@pytest.fixture
def blocks_of(monkeypatch):
    """A function that sets the number of logits of a block; few logits are cut into blocks too."""

    def set_size(logits):
        monkeypatch.setattr(_block_sizes, "ROW_BLOCK", logits)
        monkeypatch.setattr(_block_sizes, "LEAST_PIECE", 1)
        jax.clear_caches()

    yield set_size
    jax.clear_caches()  # no later test may find a program with these blocks


@pytest.fixture
def _in_blocks(blocks_of):
    blocks_of(7 * CLASSES)  # 7 rows, and one of the remaining 5


def runs_in_blocks(call, *arguments):
    return "in blocks of" in str(jsoftmax.explain(call, *arguments))


def values_and_gradients(call, arguments, wanted):
    """The values of a call, and the gradients in the wanted arguments of their sum times some weights."""

    def total(*arguments):
        values = call(*arguments)
        weights = jnp.cos(jnp.arange(values.size, dtype=values.dtype)).reshape(values.shape)
        return jnp.sum(jnp.nan_to_num(values) * weights), values

    (_, values), gradients = jax.value_and_grad(total, wanted, has_aux=True)(*arguments)
    return values, *gradients


def assert_as_whole(call, arguments, wanted, eps=2**-23):
    """In blocks of rows as in a plain program: within some roundings of the largest number of an array."""
    assert runs_in_blocks(call, *arguments)
    found = functools.partial(values_and_gradients, wanted=wanted)
    got = jax.jit(found, static_argnums=0)(call, arguments)
    with jsoftmax.portable():
        want = jax.jit(found, static_argnums=0)(call, arguments)
    for a, b in zip(got, want, strict=True):
        a, b = np.float64(a), np.float64(b)
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        size = np.max(abs(b[np.isfinite(b)]))
        np.testing.assert_allclose(a, b, rtol=16 * eps, atol=16 * eps * size)


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.share(9)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize(
    "function", [f for f in OF_ROWS if f.name not in BARE], ids=lambda function: function.name
)
def test_every_function_has_the_same_values_and_gradients(function, axis, dtype):
    x = np.random.default_rng(0).normal(size=(ROWS, CLASSES) if axis else (CLASSES, ROWS))
    arguments = function.arguments(jnp.asarray(3 * x, dtype), axis)
    call = functools.partial(function.ours, axis=axis)
    assert_as_whole(call, arguments, function.floats(arguments), 2**-23 if dtype == jnp.float32 else 2**-8)


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.parametrize("function", [f for f in OF_ROWS if f.name in BARE], ids=lambda f: f.name)
def test_a_function_that_stores_nothing_reads_all_rows_at_once(function):
    arguments = function.arguments(jnp.zeros((ROWS, CLASSES)))
    assert not runs_in_blocks(functools.partial(function.ours, axis=-1), *arguments)


NO_SUMS = {  # name: a function of the logits, whose gradient in them has no sum over a row
    "cross_entropy, mask": lambda x, y, t: jsoftmax.cross_entropy(x, y, where=t > -1, soft_cap=5.0),
    "cross_entropy, temperatures": lambda x, y, t: jsoftmax.cross_entropy(x, y, temperature=jnp.exp(t[:, 0])),
    "cross_entropy, smoothed": lambda x, y, t: jsoftmax.cross_entropy(
        x, y, label_smoothing=0.1, soft_cap=5.0
    ),
    "entropy, mask": lambda x, y, t: jsoftmax.entropy(x, where=t > -1),
    "logsumexp, weighted": lambda x, y, t: jsoftmax.logsumexp(x, -1, b=t),
    "kl_divergence, q": lambda x, y, t: jsoftmax.kl_divergence(t, x),
    "log_odds": lambda x, y, t: jsoftmax.log_odds(x, y),
    "entmax_loss": lambda x, y, t: jsoftmax.entmax_loss(x, y, 1.5),
}


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.parametrize("name", NO_SUMS)
def test_a_gradient_without_sums_is_one_loop_over_all_rows(name):
    """XLA stores nothing of it, and would run a loop over blocks of it on one core."""
    x = 3 * jax.random.normal(jax.random.key(0), (ROWS, CLASSES))
    function = functools.partial(lambda t, x, y: NO_SUMS[name](x, y, t), x[::-1])
    value, gradient = str(jsoftmax.explain(function, x, jnp.arange(ROWS) % CLASSES)).split("gradient\n")
    assert "in blocks of" in value
    assert "in blocks of" not in gradient


@pytest.fixture
def _far_apart(monkeypatch, blocks_of):
    """Classes count as far apart from a distance of 33; the blocks have 15 rows, and one has the other 14."""
    monkeypatch.setattr(_request, "MOST_STRIDE", 32)
    for module in (_request, _block_sizes):
        monkeypatch.setattr(module, "BLOCK_STRIDE", 15)
    blocks_of(20 * CLASSES)


@pytest.mark.usefixtures("_far_apart")
@pytest.mark.share(5)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("function", OF_ROWS, ids=lambda function: function.name)
def test_classes_far_apart_in_memory(function, dtype):
    """Every function, also a bare sum, has the same values and gradients."""
    x = np.random.default_rng(0).normal(size=(CLASSES, ROWS))
    arguments = function.arguments(jnp.asarray(3 * x, dtype), 0)
    call = functools.partial(function.ours, axis=0)
    assert_as_whole(call, arguments, function.floats(arguments), 2**-23 if dtype == jnp.float32 else 2**-8)


@pytest.mark.usefixtures("_far_apart")
@pytest.mark.parametrize("map_", [jsoftmax.softmax, jsoftmax.log_softmax])
def test_the_gradient_of_a_few_classes_far_apart(map_):
    x, g = 3 * jax.random.normal(jax.random.key(0), (2, 3, 8, 5, 300))

    def gradient(x):
        return jax.vjp(lambda x: map_(x, 1), x)[1](g)[0]

    value, of_gradient = str(jsoftmax.explain(functools.partial(map_, axis=1), x)).split("gradient\n")
    assert "class by class" in value
    assert "in blocks of 3 rows" in of_gradient
    got = jax.jit(gradient)(x)
    with jsoftmax.portable():
        want = jax.jit(gradient)(x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    temporary = jax.jit(gradient).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * x.size


@pytest.mark.parametrize("gradient", [False, True], ids=["value", "gradient"])
def test_no_arithmetic_is_fused_with_a_write(blocks_of, gradient):
    """XLA runs a write on one core, and all that it fuses with it."""
    blocks_of(8 * CLASSES)

    def total(x):
        return jnp.sum(jsoftmax.log_softmax(x, temperature=2.7)[:, 0])

    call = jax.grad(total) if gradient else functools.partial(jsoftmax.softmax, temperature=2.7)
    text = jax.jit(call).lower(jax.ShapeDtypeStruct((96, CLASSES), jnp.float32)).compile().as_text()
    written = re.findall(rf"= f32\[96,{CLASSES}\]\S* dynamic-update-slice\(\S+ %([a-z_-]+)", text)
    assert written
    assert {*written} <= {"get-tuple-element", "param_"}  # of the conditional


SHARED = {
    "temperature": (lambda x, y, t: jsoftmax.softmax(x, temperature=t), ()),
    "soft cap, mask": (
        lambda x, y, c: jsoftmax.cross_entropy(x, y % 50, soft_cap=c, where=jnp.arange(CLASSES) < 60),
        (),
    ),
    "sink": (lambda x, y, s: jsoftmax.softmax(x, temperature=2.0, sink=s), ()),
    "class weights": (
        lambda x, y, w: jsoftmax.cross_entropy(x, y, class_weights=w, label_smoothing=0.1),
        (CLASSES,),
    ),
    "alpha": (jsoftmax.entmax_loss, ()),
    "beta": (lambda x, y, b: jsoftmax.js_divergence(x, x[::-1], beta=b / 4), ()),
}


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.parametrize("name", SHARED)
def test_gradients_of_shared_arguments_are_sums_over_the_blocks(name):
    function, shape = SHARED[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 * rng.normal(size=(ROWS, CLASSES)), jnp.float32)
    y = jnp.asarray(rng.integers(CLASSES, size=ROWS))
    shared = jnp.asarray(rng.uniform(1.3, 1.8, shape), jnp.float32)
    assert_as_whole(lambda x, shared: function(x, y, shared), (x, shared), (0, 1))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_rows_of_several_axes_are_cut_along_the_longest(axis, blocks_of):
    """Here into blocks of 36 rows, 2 of the 10 along the longest axis."""
    blocks_of(40 * CLASSES)
    shape = [6, 3, 10]
    shape.insert(axis % 4, CLASSES)
    x = 3 * jax.random.normal(jax.random.key(0), shape)
    assert_as_whole(lambda x: jsoftmax.kl_divergence(x, jnp.flip(x), axis=axis), (x,), (0,))


@pytest.mark.usefixtures("_in_blocks")
def test_numbers_that_are_not_finite_stay_in_their_rows():
    x = np.random.default_rng(0).normal(size=(ROWS, CLASSES)).astype(np.float32)
    x[3], x[20, 4], x[21, 4], x[88] = np.nan, np.nan, np.inf, -np.inf
    assert_as_whole(lambda x: jsoftmax.softmax(x, temperature=0.5), (jnp.asarray(x),), (0,))


def test_second_derivatives_store_no_more_than_those_of_whole_rows(blocks_of):
    x, v = 3 * jax.random.normal(jax.random.key(0), (2, ROWS, CLASSES))

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(jsoftmax.js_divergence(x, v))))(x)

    def in_reverse(x):
        return jax.vjp(gradient, x)[1](v)[0]

    found = []
    for rows in (7, 2 * ROWS):
        blocks_of(rows * CLASSES)
        programs = [
            jax.jit(f).lower(x).compile() for f in (in_reverse, lambda x: jax.jvp(gradient, (x,), (v,))[1])
        ]
        found.append([(p(x), p.memory_analysis().temp_size_in_bytes) for p in programs])
    for (got, stored), (want, of_whole) in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
        assert stored < 1.1 * of_whole


@pytest.mark.usefixtures("_in_blocks")
def test_a_mapped_axis_is_beside_the_blocks():
    both = 3 * jax.random.normal(jax.random.key(0), (2, ROWS, CLASSES))
    statistics = functools.partial(
        jsoftmax.row_statistics, labels=0 * both[0, :, 0].astype(int), temperature=both[0, :, 1] + 9
    )
    assert runs_in_blocks(statistics, both[0])
    for got, want in zip(
        jax.jit(jax.vmap(statistics))(both), zip(*map(statistics, both), strict=True), strict=True
    ):
        np.testing.assert_allclose(got, jnp.stack(want), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.diagonal
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("function", [jsoftmax.softmax, jsoftmax.log_softmax])
def test_gradients_of_maps_in_16_bits(function, dtype, axis, monkeypatch):
    """Those of bfloat16 along the last axis run in a library; jax before 0.11.2 writes its slices slowly."""
    monkeypatch.setattr(_choice, "IS_OLD_XLA", False)
    x, g = 3 * np.random.default_rng(0).normal(size=(2, ROWS, CLASSES)).astype(dtype)
    x[3], x[20, 4], x[21, 4], x[88], x[40, 7] = np.nan, np.nan, np.inf, -np.inf, 40
    x, g = (jnp.asarray(a if axis else a.T) for a in (x, g))

    def gradient(x, g):
        return jax.vjp(functools.partial(function, axis=axis), x)[1](g)[0]

    def second(x, g):
        return jax.vjp(lambda x: gradient(x, g), x)[1](g)[0]

    assert ("while" in jax.jit(gradient).lower(x, g).as_text()) == (axis == 0 or dtype == jnp.float16)
    for of_x in gradient, second:
        got = jax.jit(of_x)(x, g).astype(float)
        with jsoftmax.portable():
            want = jax.jit(of_x)(x, g).astype(float)
        np.testing.assert_allclose(got, want, rtol=0.02, atol=0.02)


FEW_ARRAYS = {
    "softmax, temperature": lambda x, y, t: jsoftmax.softmax(x, temperature=2.0),
    "log_softmax, temperature": lambda x, y, t: jsoftmax.log_softmax(x, temperature=2.0),
    "cross_entropy, temperatures": lambda x, y, t: jsoftmax.cross_entropy(
        x, y, temperature=1.0 + y.astype(x.dtype)
    ),
    "cross_entropy, smoothed": lambda x, y, t: jsoftmax.cross_entropy(x, y, label_smoothing=0.1),
    "cross_entropy, targets": lambda x, y, t: jsoftmax.cross_entropy(x, t),
    "kl_divergence": lambda x, y, t: jsoftmax.kl_divergence(x, t),
    "js_divergence": lambda x, y, t: jsoftmax.js_divergence(x, t),
    "log_odds": lambda x, y, t: jsoftmax.log_odds(x, y),
    "logsumexp, weighted": lambda x, y, t: jsoftmax.logsumexp(x, -1, b=t),
    "sparsemax": lambda x, y, t: jsoftmax.sparsemax(x),
    "entmax_loss": lambda x, y, t: jsoftmax.entmax_loss(x, y, 1.5),
}


@pytest.mark.share(5)
@pytest.mark.parametrize("what", ["value", "gradient"])
@pytest.mark.parametrize("name", FEW_ARRAYS)
def test_no_array_of_all_logits_is_stored(name, what, blocks_of):
    """Only arrays of a block, a 64th of the rows."""
    blocks_of(2**17)
    x, y = jax.ShapeDtypeStruct((8192, 1024), jnp.float32), jax.ShapeDtypeStruct((8192,), jnp.int32)
    function, given = FEW_ARRAYS[name], (x, y, x)
    if what == "gradient":
        given += (jax.eval_shape(function, *given),)

        def function(x, y, t, g):
            return jax.vjp(lambda x: FEW_ARRAYS[name](x, y, t), x)[1](g)

    stored = jax.jit(function).lower(*given).compile().memory_analysis().temp_size_in_bytes
    assert stored < 0.2 * 4 * x.size


CUT = {  # the shape of the logits, and the class axis: the rows of a block of 2**18 logits
    ((1024, 32000), -1): 8,
    ((16777, 1000), -1): 262,  # 16777 = 19 · 883 has no divisor near it
    ((64, 131072), 0): 4096,
    ((40, 4, 2**15), 0): 1024,  # of each of 4 arrays
    ((8, 40, 128, 160), 1): 4,  # 4 · 160 of the rows of each of 8 arrays
    ((32000, 1024), 0): None,  # pieces of 8 logits
    ((2**20, 32), -1): None,  # few classes
    ((4, 2**20), -1): None,  # a row is longer than a block
    ((512, 1024), -1): None,  # few logits
    ((2**22,), -1): None,
}


@pytest.mark.parametrize(("shape", "axis"), CUT, ids=str)
def test_the_rows_of_a_block(shape, axis, monkeypatch):
    monkeypatch.setattr(_block_sizes, "ROW_BLOCK", 2**18)
    monkeypatch.setattr(_request, "MOST_STRIDE", 2**14)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    size = CUT[shape, axis]
    reasons = str(jsoftmax.explain(lambda x: jsoftmax.softmax(x, axis, temperature=2.0), x))
    assert f"in blocks of {size} rows" in reasons if size else "in blocks of" not in reasons
