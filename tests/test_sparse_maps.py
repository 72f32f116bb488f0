"""The laws of sparsemax, entmax and their losses beyond those of all functions, and the answers of entmax."""

import json
from functools import partial
from pathlib import Path

import definitions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import logits
from definitions import mp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jsoftmax
from jsoftmax import rules

EPS = np.finfo(np.float32).eps
RECORDED = json.loads((Path(__file__).parent / "data" / "entmax.json").read_text())
MAPS = {
    "sparsemax": (jsoftmax.sparsemax, 2.0),
    "entmax15": (jsoftmax.entmax15, 1.5),
    "entmax 1.2": (partial(jsoftmax.entmax, alpha=jnp.float32(1.2)), 1.2),
    "entmax 3": (partial(jsoftmax.entmax, alpha=jnp.float32(3)), 3.0),
}


def rows_of_every_kind(classes=300):
    """Flat, unit, peaked, tied, with an offset, with dead classes, with one class, and two far ahead."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, classes))
    x[0], x[2], x[3] = 1.5, 30 * x[2], np.round(x[3])
    x[4], x[5, 7:], x[6, 1:] = 1e4 + x[4], -np.inf, -np.inf
    x[7, :2], x[8] = (50, 50.25), -np.sqrt(np.arange(classes)) / 9
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("name", MAPS)
def test_probabilities_add_up_to_1_and_ties_are_split_evenly(name):
    function, _ = MAPS[name]
    x = rows_of_every_kind()
    p = np.asarray(jax.jit(function)(x))
    np.testing.assert_allclose(np.sum(p, 1, dtype=np.float64), 1, rtol=0, atol=4 * EPS)
    for row, of_row in zip(np.asarray(x), p, strict=True):
        for value in set(row):
            assert len(set(of_row[row == value])) == 1
        order = np.argsort(row, kind="stable")
        assert np.all(np.diff(of_row[order]) >= 0)
    many = jnp.zeros((1, 100_000), jnp.bfloat16)
    np.testing.assert_allclose(np.sum(np.asarray(function(many), np.float64)), 1, rtol=2**-8)


@pytest.mark.parametrize("name", MAPS)
def test_the_search_ends_at_the_root(name):
    """Against mpmath, also where many classes leave the support one after the other, and with two levels."""
    function, alpha = MAPS[name]
    x = np.concatenate([np.asarray(rows_of_every_kind(60))[[1, 2, 3, 4, 8]], np.full((2, 60), -0.4)])
    x[-1, 3] = 0.125
    x[-2, ::7] = -0.40001
    alpha = float(np.float32(alpha))
    exact = definitions.entmax(definitions.exactly(x.astype(np.float32)), mp.mpf(alpha))
    off = abs(definitions.exactly(function(jnp.asarray(x, jnp.float32))) - exact).astype(np.float64)
    exact = exact.astype(np.float64)
    slopes = np.where(exact > 0, np.where(exact > 0, exact, 1) ** (2 - alpha), 0)
    assert np.all(off <= EPS * (4 * exact + 8 * slopes + 1e-30))


def by_bisection(x, alpha):
    """The definition in NumPy, by 100 bisections for the threshold."""
    z = (alpha - 1) * x
    high = z.max(1, keepdims=True)
    low = high - 1
    for _ in range(100):
        middle = (low + high) / 2
        above = np.sum(np.maximum(z - middle, 0) ** (1 / (alpha - 1)), 1, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.maximum(z - low, 0) ** (1 / (alpha - 1))


def test_the_search_ends_at_the_root_for_any_row_and_alpha(x64):
    """For α > 2, Newton's steps alone may alternate between two points."""
    rng = np.random.default_rng(0)
    alphas = np.repeat([1.1, 1.7, 2.0, 2.3, 2.5, 3, 4], 300)
    for classes in (2, 6, 50):
        x = rng.normal(size=(len(alphas), classes))
        off = np.abs(jsoftmax.entmax(x, alphas) - by_bisection(x, alphas[:, None]))
        assert off.max() < 1e-6


@pytest.mark.share(2)
@pytest.mark.parametrize("name", ["sparsemax", "entmax 1.2"])
def test_a_portable_program_ends_there_too(name):
    """The loop is unrolled there."""
    x, (function, _) = rows_of_every_kind(10), MAPS[name]
    with jsoftmax.portable():
        found = jax.jit(lambda x: function(x))(x)
    np.testing.assert_allclose(found, jax.jit(lambda x: function(x))(x), rtol=1e-5, atol=1e-6)


def test_the_numbers_with_own_forms_are_those_of_an_array():
    x = rows_of_every_kind()
    for alpha, function in ((2, jsoftmax.sparsemax), (1.5, jsoftmax.entmax15)):
        np.testing.assert_array_equal(jsoftmax.entmax(x, alpha), function(x))
        np.testing.assert_allclose(jsoftmax.entmax(x, jnp.float32(alpha)), function(x), atol=8 * EPS)


def test_a_large_alpha_leaves_the_largest_classes():
    x = jnp.array([[0.0, 1.0, 1.0], [3.0, 3.0, 3.0], [0.0, 1.0, -1.0]])
    for alpha in (10.0, 100.0, 1e6):
        p = jsoftmax.entmax(x, alpha)
        np.testing.assert_allclose(p, [[0, 0.5, 0.5], [1 / 3] * 3, [0, 1, 0]], atol=1e-6)


def test_alpha_towards_1_is_softmax_with_its_derivatives():
    """The derivative in α tends to −p·(log²p − ⟨p, log²p⟩)/2."""
    x = jnp.asarray(logits("unit", (3, 7)), jnp.float32)
    g = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
    alpha = jnp.full((3,), 1 + EPS, jnp.float32)
    p, pull = jax.vjp(jsoftmax.entmax, x, alpha)
    want, of_softmax = jax.vjp(jsoftmax.softmax, x)
    np.testing.assert_allclose(p, want, rtol=1e-5)
    np.testing.assert_allclose(pull(g)[0], of_softmax(g)[0], rtol=1e-4, atol=1e-6)
    square = np.log(np.float64(want)) ** 2
    slope = -want * (square - np.sum(want * square, -1, keepdims=True)) / 2
    np.testing.assert_allclose(pull(g)[1], np.sum(g * slope, -1), rtol=1e-4, atol=1e-6)
    labels = jnp.array([0, 3, 6])
    np.testing.assert_allclose(
        jsoftmax.entmax_loss(x, labels, alpha), jsoftmax.cross_entropy(x, labels), rtol=1e-5
    )


def test_no_class_and_no_row_is_alive():
    x = jnp.array([[-jnp.inf] * 3, [1.0, -jnp.inf, 1.0], [jnp.nan, 0, 0], [jnp.inf, 0, 0]])
    for function, _ in MAPS.values():
        p, pull = jax.vjp(function, x)
        np.testing.assert_array_equal(p[0], [0, 0, 0])
        np.testing.assert_allclose(p[1], [0.5, 0, 0.5], rtol=4 * EPS)
        assert np.isnan(p[2:]).all()
        (gradient,) = pull(jnp.ones_like(p).at[:, 0].set(2))
        assert np.isfinite(gradient[:2]).all()
        assert np.isnan(gradient[2:]).all()
        hidden = function(x[2:], where=jnp.array([False, True, True]))
        np.testing.assert_allclose(hidden, [[0, 0.5, 0.5]] * 2, rtol=4 * EPS)
        few = x[:3]
        with jax.debug_nans(True):
            jax.grad(lambda x, f=function: jnp.max(f(x, where=~jnp.isnan(x))[1]))(few)


@pytest.mark.share(4)
@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda c: f"{c['map']}, {c['regime']}")
def test_the_answers_of_the_package_entmax(case):
    """Ours and the package's against exact ones: its bisection and its losses lose digits to an offset.

    It multiplies the logits by α − 1 before it subtracts their maximum, and computes a loss as ⟨p − t, x⟩
    plus an entropy, which cancel where the loss is small.
    """
    x, alpha = np.float32(RECORDED["logits"][case["regime"]]), case["alpha"]
    g, labels = jnp.asarray(RECORDED["g"]), jnp.asarray(case["labels"])
    exact = definitions.exactly(x), mp.mpf(alpha)
    right = definitions.entmax(*exact).astype(float)
    loss = definitions.entmax_loss(exact[0], np.asarray(labels), exact[1]).astype(float)
    p, pull = jax.vjp(lambda x: jsoftmax.entmax(x, alpha), jnp.asarray(x))
    losses, of_loss = jax.vjp(lambda x: jsoftmax.entmax_loss(x, labels, alpha), jnp.asarray(x))
    one_hot = np.eye(x.shape[1])[np.asarray(labels)]
    np.testing.assert_allclose(p, right, rtol=4e-6, atol=4e-7)
    np.testing.assert_allclose(losses, loss, rtol=4e-6, atol=4e-7)
    np.testing.assert_allclose(of_loss(jnp.ones(len(x)))[0], right - one_hot, rtol=4e-6, atol=4e-7)

    is_offset, is_bisected = case["regime"] == "offset 1e4", case["map"].startswith("entmax ")
    if is_offset:
        assert np.max(abs(loss - case["loss"])) > 1e-4
    elif case["regime"] == "nearly sure" and alpha == 2:
        assert np.max(abs(case["loss"] / loss - 1)) > 0.01
    else:
        np.testing.assert_allclose(case["loss"], loss, rtol=1e-4, atol=1e-5)
    if is_offset and is_bisected and alpha < 2:
        assert np.max(abs(right - case["p"])) > 1e-5
    elif not is_offset:
        np.testing.assert_allclose(case["p"], right, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(pull(g)[0], case["gradient"], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(case["gradient of loss"], right - one_hot, rtol=1e-4, atol=1e-5)
        if 1.2 <= alpha <= 2:
            in_alpha = jax.vjp(lambda a: jsoftmax.entmax(x, a), jnp.full((len(x),), alpha))[1](g)[0]
            np.testing.assert_allclose(in_alpha, np.ravel(case["in alpha"]), rtol=2e-3, atol=2e-4)


@pytest.mark.share(2)
@pytest.mark.parametrize("alpha", [1.01, 1.001])
def test_the_derivative_in_alpha_near_1_keeps_its_digits(alpha):
    """The form with differences, as in the package entmax, in float32: its error is 1e-7/(α − 1)² or more."""
    x = jnp.asarray(logits("unit", (3, 7)), jnp.float32)
    g = np.random.default_rng(1).normal(size=x.shape)
    with jax.enable_x64(True):
        exact = jax.vjp(
            lambda a: definitions.entmax(jnp.asarray(x, jnp.float64), a), np.full(3, np.float32(alpha), float)
        )[1](jnp.asarray(g))[0]
    a = jnp.full((3,), alpha, jnp.float32)
    p, pull = jax.vjp(lambda a: jsoftmax.entmax(x, a), a)
    np.testing.assert_allclose(pull(jnp.asarray(g, jnp.float32))[0], exact, rtol=1e-3, atol=1e-4)
    s = rules.entmax_slopes(p, a[:, None])
    shares, log_p, beta = s / jnp.sum(s, -1, keepdims=True), jnp.log(p), a[:, None] - 1
    entropy = jnp.sum(p * log_p, -1, keepdims=True)
    naive = (p - shares) / beta**2 - (p * log_p - shares * entropy) / beta
    off = np.max(abs(np.sum(np.asarray(naive) * g, -1) - np.asarray(exact)))
    assert off > (1e-4 if alpha == 1.01 else 1e-2)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("short", [1e-1, 1e-3, 1e-5])
def test_a_tiny_loss_keeps_its_digits(alpha, short):
    """Two classes, with a lead that is less than the margin 1/(α − 1) by `short`."""
    lead = np.float32(1 / (alpha - 1) - short)
    x = jnp.asarray([lead, 0.0, -30.0])
    exact = definitions.entmax(definitions.exactly(x), mp.mpf(alpha))
    loss = definitions.entmax_loss(definitions.exactly(x), np.asarray(0, np.int32), mp.mpf(alpha))
    value, gradient = jax.value_and_grad(jsoftmax.entmax_loss)(x, 0, alpha)
    np.testing.assert_allclose(value, float(loss), rtol=1e-5)
    np.testing.assert_allclose(gradient, (exact - np.array([1, 0, 0])).astype(float), rtol=1e-5)


def test_the_loss_is_exactly_0_from_the_margin_on():
    x = jnp.array([[1.0, 0.0, 0.0], [5.0, 4.0, 1.0], [1e4, 9999.0, 0.0], [2.0, -1.0, 0.0]])
    for function, rows in ((jsoftmax.sparsemax_loss, 4), (jsoftmax.entmax_loss, 1)):
        value, pull = jax.vjp(lambda x, f=function: f(x, jnp.zeros(len(x), jnp.int32)), x[-rows:])
        np.testing.assert_array_equal(value, np.zeros(rows))
        np.testing.assert_array_equal(pull(jnp.ones(rows))[0], np.zeros((rows, 3)))


@pytest.mark.share(4)
@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0, 2.5])
def test_the_loss_of_targets(alpha):
    """Never below 0; 0 at its own p; of a one-hot target that of the id; n times it for targets times n."""
    x = rows_of_every_kind(8)
    x = jnp.where(jnp.isinf(x), -3, x)
    t = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(8), 9), jnp.float32).at[:, 2].set(0)
    losses = partial(jsoftmax.entmax_loss, alpha=alpha)
    own = losses(x, jsoftmax.entmax(x, alpha))
    assert np.all(own >= 0)
    np.testing.assert_allclose(own, 0, atol=1e-6)
    assert np.all(losses(x, t) > 0)
    np.testing.assert_allclose(losses(x, 3 * t), 3 * losses(x, t), rtol=1e-5)
    ids = jnp.arange(9) % 8
    np.testing.assert_allclose(losses(x, jax.nn.one_hot(ids, 8)), losses(x, ids), rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(losses(x, 3 * t)))(x)
    np.testing.assert_allclose(gradient, 3 * (t.sum(1)[:, None] * jsoftmax.entmax(x, alpha) - t), atol=2e-5)
    nothing = jax.value_and_grad(lambda x: jnp.sum(losses(x, jnp.zeros_like(t))))(x)
    assert all(not np.any(a) for a in nothing)


def test_the_options_of_the_losses_are_those_of_cross_entropy():
    x = rows_of_every_kind(8)[:6].at[3].set(jnp.nan)
    ids = jnp.array([0, 7, 3, 1, 9, -1])
    weights = jnp.array([1.0, 2, 1, 0, 1, 1])

    def losses(x, w, **options):
        return jsoftmax.sparsemax_loss(x, ids, ignore_index=-1, weights=w, **options)

    @jax.jit
    def found_and_gradients(x, w):
        found, pull = jax.vjp(losses, x, w)
        return found, pull(jnp.ones(6))

    found, (of_x, of_weights) = found_and_gradients(x, weights)
    bare = jsoftmax.sparsemax_loss(x, ids)
    np.testing.assert_allclose(found[:3], weights[:3] * bare[:3])
    np.testing.assert_array_equal(np.isnan(found), [False] * 4 + [True, False])
    assert found[3] == found[5] == 0
    np.testing.assert_array_equal(np.isnan(of_x).any(1), np.isnan(found))
    assert not of_x[jnp.array([3, 5])].any()
    np.testing.assert_allclose(of_weights[:3], bare[:3])
    good = jnp.array([0, 1, 2, 3, 5])
    mean = jsoftmax.sparsemax_loss(
        x[good], ids[good], ignore_index=-1, weights=weights[good], reduction="mean"
    )
    np.testing.assert_allclose(mean, jnp.sum(found[:3]) / 4, rtol=1e-6)
    dead = jnp.array([True, False, True, True] * 2)
    value, gradient = jax.value_and_grad(jsoftmax.sparsemax_loss)(x[1], 1, where=dead)
    assert value == jnp.inf
    np.testing.assert_allclose(gradient, jsoftmax.sparsemax(x[1], where=dead), rtol=1e-6)
    assert jsoftmax.sparsemax_loss(x[1], 1, where=jnp.zeros(8, bool)) == 0


@pytest.mark.share(2)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_logits_under_jit(kind):
    """Rows and classes, value and gradients, with an α for every row: those of one device."""
    x, labels = rows_of_every_kind(40)[:8], jnp.arange(8)
    alpha = jnp.linspace(1.1, 2.1, 8)

    @jax.jit
    def everything(x, labels, alpha):
        def total(x, alpha):
            p = jsoftmax.sparsemax(x) + jsoftmax.entmax(x, alpha)
            return jnp.sum(p * jnp.square(p)) + jsoftmax.entmax_loss(x, labels, alpha, reduction="mean")

        return jax.value_and_grad(total, (0, 1))(x, alpha)

    want = everything(x, labels, alpha)
    mesh = jax.make_mesh((2, 4), ("rows", "classes"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        specs = P("rows", "classes"), P("rows"), P("rows")
        placed = (
            jax.device_put(a, NamedSharding(mesh, spec))
            for a, spec in zip((x, labels, alpha), specs, strict=True)
        )
        got = everything(*placed)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6), got, want)


def test_errors():
    x = jnp.zeros((2, 3))
    for alpha in (1, 1.0, 0.5, jnp.float32(1), float("nan"), float("inf"), 1 + 1e-9):
        with pytest.raises(
            ValueError, match=r"alpha is .* write a finite number above 1; at 1, the map is softmax"
        ):
            jsoftmax.entmax(x, alpha)
    with pytest.raises(ValueError, match="neither one number nor one per row"):
        jsoftmax.entmax_loss(x, jnp.array([0, 1]), jnp.full((3,), 1.5))
    p = jsoftmax.entmax(x, jnp.array([1.0, 1.5]))
    np.testing.assert_array_equal(np.isnan(p).all(1), [True, False])
