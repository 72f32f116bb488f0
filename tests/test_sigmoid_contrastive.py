"""The sigmoid contrastive loss: values, derivatives, sharding, memory and errors, beside its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_in_full
from contrast_cases import (
    CASES,
    FEATURES,
    OTHERS,
    ROWS,
    WRONG,
    A,
    agree,
    agree_in_sixteen_bits,
    agree_tangents_when_sharded,
    agree_under_jit,
    agree_when_sharded,
    agree_without_hidden_rows,
    arrays,
    lowered,
    of_sixteen,
    whole,
)
from jax.sharding import AxisType

import jsoftmax
from jsoftmax.linear import _contrast

NAN = np.nan
NAMES = [name for name in CASES if name not in ("InfoNCE, weights", "labels, one direction")]  # as others
BIAS = jnp.float32(-1.25)


def definition(a, b, t, bias, weights, hits, live=True):
    """From all logits: open_clip's and big_vision's form, with the positives and the pairs that count."""
    z = a @ b.T / t + bias
    losses = jnp.sum(jnp.where(live, -jax.nn.log_sigmoid(jnp.where(hits, z, -z)), 0), 1)
    return jnp.sum(weights * losses) / jnp.sum(weights)


def functions(name, **more):
    """Ours, the definition, and their arguments in float64: the features, T, the bias and the weights."""
    kind, given, of_definition = CASES[name]
    options = {key: given[key] for key in ("labels", "positives") if key in given}
    pairs = {key: of_definition[key] for key in ("hits", "live") if key in of_definition}
    a, b, t = arrays(others=OTHERS if kind == "others" else ROWS)
    weights = jnp.asarray(given.get("weights", np.ones(ROWS)))

    def ours(a, b, t, bias, weights):
        b, weights = None if kind == "itself" else b, weights if "weights" in given else None
        return jsoftmax.sigmoid_contrastive_loss(
            a, b, temperature=t, bias=bias, weights=weights, **options, **more
        )

    def plain(a, b, t, bias, weights):
        weights = jnp.where(weights == 0, 0, weights) if "weights" in given else jnp.ones_like(weights)
        return definition(a, a if kind == "itself" else b, t, bias, weights, **pairs)

    return ours, plain, (a, b, t, jnp.asarray(-1.25), weights)


@pytest.mark.share(3)
@pytest.mark.usefixtures("not_plain")
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(name, x64):
    """In blocks that do not divide the rows; and the value without its gradients."""
    ours, plain, given = functions(name, block_size=5)
    steps = [jax.value_and_grad(f, range(5)) for f in (ours, plain)]
    (found, want), value = jax.jit(lambda *given: ([f(*given) for f in steps], ours(*given)))(*given)
    agree(found, want)
    agree(value, want[0])


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.usefixtures("not_plain")
@pytest.mark.parametrize("name", ["pairs, weights", "ids, weights", "itself, labels"])
def test_second_derivatives_and_tangents(name, x64):
    ours, plain, given = functions(name, block_size=5)
    rng = np.random.default_rng(1)
    along = tuple(jnp.asarray(rng.normal(size=x.shape)) for x in given)

    def curved(f, *given):
        gradient = jax.grad(lambda *given: jnp.sin(f(*given)), range(5))
        return jax.vjp(gradient, *given)[1](along)

    @jax.jit
    def everything(*given):
        with jsoftmax.forward_mode():
            tangents = [jax.jvp(f, given, along) for f in (ours, plain)]
        return [curved(f, *given) for f in (ours, plain)], tangents

    for got, want in everything(*given):
        agree(got, want)


def open_clip_in_numpy(image, text, logit_scale, logit_bias):
    """open_clip's SigLipLoss: labels of 1 and −1, the sum of all pairs over the number of images."""
    logits = logit_scale * image @ text.T + logit_bias
    labels = 2 * np.eye(len(image)) - np.ones(len(image))
    return np.sum(np.log1p(np.exp(-labels * logits))) / len(image)


def test_the_value_is_open_clips():
    rng = np.random.default_rng(0)
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 700, 6)))
    want = open_clip_in_numpy(image, text, 10, -10)
    got = jsoftmax.sigmoid_contrastive_loss(
        *map(jnp.float32, (image, text)), temperature=jnp.exp(-jnp.log(10.0)), bias=-10
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


def eye(high, low):
    """Features of which only a pair has a product."""
    return lambda a, b: (high * np.eye(len(a), dtype=np.float32), low * np.eye(len(a), dtype=np.float32))


REGIMES = {  # the features, and the bias
    "flat": (lambda a, b: (0 * a, 0 * b), 0.5),
    "flat, SigLIP's bias": (lambda a, b: (0 * a, 0 * b), -10),
    "unit": (lambda a, b: (a / 4, b / 4), -1.25),
    "spread": (lambda a, b: (2 * a, 2 * b), -10),
    "an offset of 1e4": (lambda a, b: (np.pad(a / 4, ((0, 0), (0, 1)), constant_values=100),) * 2, -13333),
    "a bias of 1e4": (lambda a, b: (a, b), 1e4),
    "sure": (eye(15, 7), -60),  # logits of 80 and −60
    "surer": (eye(12, 10.125), -80),  # of 82 and −80: the smallest gradients are near the smallest float
    "wrong": (eye(-15, 7), 60),
}


@jit_in_full
def in_float32(a, b, bias):
    def loss(a, b, t, bias):
        return jsoftmax.sigmoid_contrastive_loss(a, b, temperature=t, bias=bias, block_size=5)

    return jax.value_and_grad(loss, range(4))(a, b, jnp.float32(0.75), bias)


def exactly(a, b, bias):
    """The loss and its gradients in extended precision, and a bound of their errors in float32.

    Each of −log sigmoid(u), of sigmoid(−u) and of the sums has a few roundings, and its argument u = ±z has
    those of a·b/T and z. Terms of both signs may cancel, so errors are relative to the sum of their sizes.
    """
    a, b = (x.astype(np.longdouble) for x in (a, b))
    t, n, sign = np.longdouble(0.75), len(a), 2 * np.eye(len(a)) - 1
    eps, tiny = (getattr(np.finfo(np.float32), name) for name in ("eps", "tiny"))
    z = a @ b.T / t + np.longdouble(bias)
    u = sign * z
    moved = (abs(z - bias) + abs(z)) / 2  # the error of z, over eps
    loss = np.maximum(-u, 0) + np.log1p(np.exp(-abs(u)))
    p, q = (np.exp(np.minimum(v, 0)) / (1 + np.exp(-abs(u))) for v in (-u, u))
    dz, off = -sign * p / n, (eps * p * (8 + q * moved) + tiny) / n
    at_z, at_dz = (loss.sum() / n, (eps * (4 * loss + p * moved)).sum() / n), off
    found = (
        at_z,
        (dz @ b / t, at_dz @ abs(b) / t),
        (dz.T @ a / t, at_dz.T @ abs(a) / t),
        (-(dz * (z - bias)).sum() / t, (at_dz * abs(z - bias)).sum() / t),
        (dz.sum(), at_dz.sum()),
    )
    return found


@pytest.mark.usefixtures("not_plain")
@pytest.mark.parametrize("regime", REGIMES)
def test_float32_keeps_its_digits(regime):
    rng = np.random.default_rng(2)
    make, bias = REGIMES[regime]
    a, b = make(whole(rng, ROWS), whole(rng, ROWS))
    wide = (np.pad(x, ((0, 0), (0, 13 - x.shape[1]))) for x in (a, b))
    loss, gradients = in_float32(*wide, np.float32(bias))
    for got, (want, bound) in zip((loss, *gradients), exactly(a, b, bias), strict=True):
        got = np.asarray(got, np.float64)
        error = abs(got[:, : want.shape[1]] - want if got.ndim else got - want)
        assert np.all(error <= bound), np.max(error / bound)


def test_a_sure_pair_has_small_numbers():
    """Logits of 80 and −60: the loss and every gradient are far below the rounding of 1, and not 0."""
    a, b = eye(15, 7)(np.ones((4, 4)), None)
    loss, gradients = in_float32(a, b, jnp.float32(-60))
    np.testing.assert_allclose(loss, 3 * np.exp(-60.0), rtol=1e-5)
    np.testing.assert_allclose(np.diagonal(gradients[0]), -7 / 3 * np.exp(-80.0), rtol=1e-5)
    assert np.all(gradients[0] != 0)


def test_a_large_temperature():
    """Of which the inverse is no normal number: the loss is that of features and T of a usual size."""
    a, b = (jnp.float32(x) for x in arrays()[:2])
    loss = jax.jit(lambda t, scale: jsoftmax.sigmoid_contrastive_loss(scale * a, scale * b, temperature=t))
    large, usual = (loss(*map(jnp.float32, given)) for given in ((2.0**127, 2.0**62), (8, 1)))
    agree(large, usual, rtol=1e-6)


def test_sixteen_bits():
    def of_features(a, b):
        return jsoftmax.sigmoid_contrastive_loss(a, b, temperature=0.5, bias=BIAS)

    agree_in_sixteen_bits(of_features)


@pytest.mark.long
def test_eager_portable_and_mapped(x64):
    """Without jit; in a portable program, without loops; under vmap, also of T and of the bias."""
    ours, plain, (a, b, t, bias, weights) = functions("pairs, weights")
    given = a, b, t, bias, weights
    want = plain(*given)
    agree(ours(*given), want)
    with jsoftmax.portable():
        agree(jax.jit(ours)(*given), want)
        assert "while" not in jax.jit(ours).lower(*given).as_text()
    step = jax.value_and_grad(ours, range(5))
    sets = tuple(jnp.stack([x, -x / 2]) for x in given)  # the second T is negative
    each = [jax.jit(jax.value_and_grad(plain, range(5)))(*(x[i] for x in sets)) for i in range(2)]
    agree(jax.jit(jax.vmap(step))(*sets), jax.tree.map(lambda *x: jnp.stack(x), *each))


def test_nothing_counts():
    """Without rows, and with all rows hidden: 0, with gradients 0."""
    none, bad = jnp.zeros((0, 3)), jnp.full((4, 3), NAN)
    for a, options in ((none, {}), (bad, {"weights": jnp.zeros(4)})):

        def loss(a, b, t, bias, options=options):
            return jsoftmax.sigmoid_contrastive_loss(a, b, temperature=t, bias=bias, **options)

        value, gradients = jax.jit(jax.value_and_grad(loss, range(4)))(a, a, jnp.float32(0.1), BIAS)
        assert value == 0
        assert not any(np.any(g) for g in gradients)


def test_a_row_without_positives_counts():
    """All its pairs are negative; and without another row, it has none."""
    one = jnp.ones((1, 3))
    loss = functools.partial(jsoftmax.sigmoid_contrastive_loss, temperature=2.0, bias=BIAS)
    apart = jnp.arange(1), jnp.arange(1, 2)
    np.testing.assert_allclose(loss(one, one, positives=apart), jax.nn.softplus(1.5 + BIAS), rtol=1e-6)
    assert loss(one, None, positives=jnp.arange(1)) == 0


@pytest.mark.long
def test_hidden_rows_hold_anything():
    """A hidden pair is no negative: the result is that of the others; also with `jax_debug_nans`."""

    @jax.jit
    def steps(a, b, w, bias, ids):
        def loss(a, b, w, bias, **options):
            return jsoftmax.sigmoid_contrastive_loss(a, b, temperature=0.5, bias=bias, weights=w, **options)

        each = loss, functools.partial(loss, positives=ids)
        return [jax.value_and_grad(f, range(4))(a, b, w, bias) for f in each]

    agree_without_hidden_rows(steps, BIAS)


def test_a_row_that_counts_shows_its_nan():
    for value in (NAN, jnp.inf):
        assert np.isnan(jsoftmax.sigmoid_contrastive_loss(A.at[2, 1].set(value), A - 1, temperature=1.0))


@pytest.mark.parametrize("label", [-1, 5, 2**31 - 1])
def test_a_label_that_is_no_row_gives_nan(label):
    """In the loss and in the gradient, but not in a hidden row."""
    labels, b = jnp.asarray([0, 4, label]), jnp.ones((5, 4))

    def loss(a, weights):
        return jsoftmax.sigmoid_contrastive_loss(a, b, temperature=1.0, labels=labels, weights=weights)

    for weights, is_known in ((jnp.ones(3), False), (jnp.asarray([1.0, 1, 0]), True)):
        value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.eye(3, 4), weights)
        assert np.isfinite(value) == is_known
        assert np.isfinite(gradient).all(1).tolist() == [True, True, is_known]
    assert np.isnan(jsoftmax.sigmoid_contrastive_loss(jnp.eye(3, 4), b, temperature=1.0, labels=labels))


def test_a_row_is_not_its_own_positive():
    labels = jnp.asarray([1, 1, 0])
    assert np.isnan(jsoftmax.sigmoid_contrastive_loss(jnp.eye(3, 4), None, temperature=1.0, labels=labels))


SHARDED = ["pairs, weights", "labels", "ids, weights", "itself, ids, weights", "a mask, one direction"]


@pytest.mark.share(5)
@pytest.mark.usefixtures("not_plain")
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_rows_give_the_answers_of_one_device(name, x64):
    """Of the loss and of every gradient, whole on every shard: none is off by the number of devices."""
    kind = CASES[name][0]
    a, b, t, options = of_sixteen(name)
    options.pop("symmetric", None)

    def loss(a, b, t, bias, options, **on):
        b = None if kind == "itself" else b
        return jsoftmax.sigmoid_contrastive_loss(
            a, b, temperature=t, bias=bias, block_size=3, **options, **on
        )

    agree_when_sharded(loss, (a, b, t, jnp.asarray(-1.25)), options)


def test_tangents_of_sharded_rows(x64):
    def loss(a, b, t, bias, **on):
        return jsoftmax.sigmoid_contrastive_loss(a, b, temperature=t, bias=bias, **on)

    given, along = ((a[:12], b[:12], t, t - 2) for a, b, t in (arrays(), arrays(seed=1)))
    agree_tangents_when_sharded(loss, given, along)


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_rows_sharded_under_jit(kind, several_devices):
    def losses(a, b, bias, ids):
        loss = functools.partial(jsoftmax.sigmoid_contrastive_loss, temperature=0.5, bias=bias, block_size=8)
        weights = jnp.where(ids == 1, 0.0, 1.0)
        return loss(a, b) + loss(a, b, positives=ids, weights=weights) + loss(a, None, labels=ids[::-1])

    agree_under_jit(losses, kind, BIAS)


def ours(a, b, t, bias):
    return jsoftmax.sigmoid_contrastive_loss(a, b, temperature=t, bias=bias)


def test_memory_of_a_step_is_a_few_blocks():
    """Five blocks of 512 rows, of which 8192 rows have 16, with gradients: an eighth of the dense form."""

    def dense(a, b, t, bias):
        return definition(a, b, t, bias, jnp.ones(len(a)), jnp.eye(len(a), dtype=bool))

    held, peers = (
        lowered(f, numbers=2).compile().memory_analysis().temp_size_in_bytes for f in (ours, dense)
    )
    assert held <= 5.1 * _contrast.SMALL_BLOCK
    assert held <= peers / 8


def test_products_of_a_step():
    """Three of all rows, in one block; and one for the value alone."""
    loss = functools.partial(jsoftmax.sigmoid_contrastive_loss, temperature=0.5, block_size=200)
    features = [jax.ShapeDtypeStruct((200, 16), jnp.float32)] * 2
    for function, products in ((loss, 1), (jax.grad(loss, (0, 1)), 3), (jax.grad(loss), 2)):
        assert jax.jit(function).lower(*features).as_text().count("dot_general") == products
    assert lowered(ours, 200, 16, numbers=2).as_text().count("dot_general") == 3


def test_a_program_for_any_number_of_pairs(x64):
    """`jax.export` with a symbol for the number of rows, and for every platform."""
    (rows,) = jax.export.symbolic_shape("n")
    features, number = jax.ShapeDtypeStruct((rows, FEATURES), float), jax.ShapeDtypeStruct((), float)
    step = jax.jit(jax.value_and_grad(ours, range(4)))
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(features, features, number, number)
    given = *arrays(), jnp.asarray(-1.25)
    agree(exported.call(*given), step(*given))


WRONG_HERE = {
    "biases": ((A, A), {"bias": jnp.ones(4)}, r"bias of shape \(4,\); give one number"),
    "one bias in a list": ((A, A), {"bias": [1.0]}, r"bias of shape \(1,\); give one number"),
    "no bias": ((A, A), {"bias": None}, "bias is None, not an array of numbers"),
    "text": ((A, A), {"bias": "-10"}, "bias is '-10', not an array of numbers"),
}


@pytest.mark.parametrize(
    ("given", "options", "message"), (WRONG | WRONG_HERE).values(), ids=WRONG | WRONG_HERE
)
def test_a_wrong_call_is_refused_in_words(given, options, message):
    with pytest.raises((TypeError, ValueError), match=r"jsoftmax\.sigmoid_contrastive_loss\(a=.*" + message):
        jsoftmax.sigmoid_contrastive_loss(*given, **{"temperature": 0.1} | options)


def test_the_temperature_has_no_default():
    with pytest.raises(TypeError, match="temperature"):
        jsoftmax.sigmoid_contrastive_loss(A, A)
