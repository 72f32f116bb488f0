"""The contrastive loss: values, derivatives, sharding, memory and errors, beside its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contrast_cases import (
    CASES,
    EYE,
    FEATURES,
    OTHERS,
    ROWS,
    WRONG,
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


def definition(a, b, temperature, hits, live=True, weights=1.0, column_weights=1.0, symmetric=True):
    """From all logits, the positives, the pairs that count, and the weights of both."""
    z = jnp.where(live, a @ b.T / temperature, -jnp.inf)

    def direction(axis, weights):
        log_p = jnp.where(hits & live, jax.nn.log_softmax(z, axis), 0)
        count = jnp.sum(hits & live, axis).astype(z.dtype)
        w = jnp.where(count > 0, jnp.asarray(weights, z.dtype), 0)
        return jnp.sum(-w * jnp.sum(log_p, axis) / jnp.maximum(count, 1)) / jnp.sum(w)

    of_rows = direction(1, weights)
    return (of_rows + direction(0, column_weights)) / 2 if symmetric else of_rows


def functions(name, **more):
    """Ours, the definition, both of (a, b, T), and these arguments in float64."""
    kind, options, of_definition = CASES[name]
    a, b, t = arrays(others=OTHERS if kind == "others" else ROWS)

    def ours(a, b, t):
        b = None if kind == "itself" else b
        return jsoftmax.contrastive_loss(a, b, temperature=t, **options, **more)

    def plain(a, b, t):
        return definition(a, a if kind == "itself" else b, t, **of_definition)

    return ours, plain, (a, b, t)


@pytest.mark.share(6)
@pytest.mark.usefixtures("not_plain")
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, x64):
    """In blocks that do not divide the rows."""
    ours, plain, given = functions(name, block_size=5)
    both = jax.jit(lambda *given: [jax.value_and_grad(f, (0, 1, 2))(*given) for f in (ours, plain)])
    agree(*both(*given))


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.usefixtures("not_plain")
@pytest.mark.parametrize("name", ["ids, weights", "itself, labels"])
def test_second_derivatives_and_tangents(name, x64):
    ours, plain, given = functions(name, block_size=5)
    along = *arrays(seed=1)[:2], jnp.asarray(0.3)
    along = tuple(d[: len(x)] if x.ndim else d for d, x in zip(along, given, strict=True))

    def curved(f, *given):
        gradient = jax.grad(lambda *given: jnp.sin(f(*given)), (0, 1, 2))
        return jax.vjp(gradient, *given)[1](along)

    @jax.jit
    def everything(*given):
        with jsoftmax.forward_mode():
            tangents = [jax.jvp(f, given, along) for f in (ours, plain)]
        return [curved(f, *given) for f in (ours, plain)], tangents

    for got, want in everything(*given):
        agree(got, want)


def open_clip_in_numpy(image, text, logit_scale):
    """open_clip's ClipLoss: the mean of two cross-entropies of the same logits, by rows and by columns."""
    logits = logit_scale * image @ text.T

    def cross_entropy(z):
        top = z.max(1, keepdims=True)
        log_p = z - top - np.log(np.exp(z - top).sum(1, keepdims=True))
        return -np.mean(np.diagonal(log_p))

    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2


def test_the_value_is_open_clips():
    rng = np.random.default_rng(0)
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 700, 6)))
    want = open_clip_in_numpy(image, text, 1 / 0.07)
    got = jsoftmax.contrastive_loss(*map(jnp.float32, (image, text)), temperature=0.07)
    np.testing.assert_allclose(got, want, rtol=1e-6)


REGIMES = {
    "flat": lambda a, b: (0 * a, 0 * b),
    "unit": lambda a, b: (a / 4, b / 4),
    "spread": lambda a, b: (2 * a, 2 * b),
    "tied": lambda a, b: (a, np.roll(np.repeat(b[::2], 2, 0), 1, 0)[: len(b)]),
    "an offset of 1e4": lambda a, b: (np.pad(a / 4, ((0, 0), (0, 1)), constant_values=100),) * 2,
    "sure": lambda a, b: (5 * np.eye(len(a), dtype=np.float32), 4 * np.eye(len(a), dtype=np.float32)),
    "surer": lambda a, b: (7 * np.eye(len(a), dtype=np.float32), 7 * np.eye(len(a), dtype=np.float32)),
}


@jax.jit
def in_float32(a, b):
    return jax.value_and_grad(
        lambda a, b: jsoftmax.contrastive_loss(a, b, temperature=jnp.float32(0.75), block_size=5), (0, 1)
    )(a, b)


def exactly(a, b):
    """The loss and dz in extended precision, without a difference of nearly equal numbers."""
    a, b = (x.astype(np.longdouble) for x in (a, b))
    z, n = a @ b.T / np.longdouble(0.75), len(a)
    loss, dz = 0, 0
    for axis in (0, 1):
        gaps = z - np.expand_dims(np.diagonal(z), axis)  # to the positive
        e = np.where(np.eye(n, dtype=bool), 0, np.exp(gaps))
        others = e.sum(axis, keepdims=True)
        p = e / (1 + others)
        loss = loss + np.log1p(others).mean() / 2
        dz = dz + (p - np.eye(n) * p.sum(axis, keepdims=True)) / (2 * n)
    dx = dz / np.longdouble(0.75)
    return loss, (dx @ b, dx.T @ a), (abs(dx) @ abs(b), abs(dx).T @ abs(a)), np.ptp(z)


@pytest.mark.usefixtures("not_plain")
@pytest.mark.parametrize("regime", REGIMES)
def test_float32_keeps_its_digits(regime):
    """Errors in ulp of the loss, and in ulp of the sum of all terms of each gradient."""
    rng = np.random.default_rng(2)
    a, b = REGIMES[regime](whole(rng, ROWS), whole(rng, ROWS))
    loss, gradients = in_float32(
        jnp.pad(a, ((0, 0), (0, 13 - a.shape[1]))), jnp.pad(b, ((0, 0), (0, 13 - b.shape[1])))
    )
    exact, of_features, terms, width = exactly(a, b)
    eps = float(jnp.finfo(jnp.float32).eps)
    assert abs(float(loss) - exact) <= (4 + width) * eps * exact
    for got, want, size in zip(gradients, of_features, terms, strict=True):
        error = abs(np.asarray(got, np.float64)[:, : want.shape[1]] - want)
        assert np.all(error <= (8 + width) * eps * size), np.max(error / np.maximum(eps * size, 1e-30))


def test_sixteen_bits():
    agree_in_sixteen_bits(functools.partial(jsoftmax.contrastive_loss, temperature=0.5))


@pytest.mark.long
def test_eager_mapped_and_negative(x64):
    """Without jit; in a portable program; under vmap, also of T, of which the negative is that of −a."""
    a, b, t = arrays()
    loss = functools.partial(jsoftmax.contrastive_loss, block_size=5)
    agree(loss(a, b, temperature=t), definition(a, b, t, EYE))
    step = jax.value_and_grad(lambda a, b, t: loss(a, b, temperature=t), (0, 1, 2))
    with jsoftmax.portable():
        agree(jax.jit(loss)(a, b, temperature=t), definition(a, b, t, EYE))
    sets = jnp.stack([a, b, -a]), jnp.stack([b, b, b]), jnp.asarray([0.7, 3.0, -0.7])
    found = jax.jit(jax.vmap(step))(*sets)
    agree(found, jax.tree.map(lambda *x: jnp.stack(x), *map(jax.jit(step), *sets)))
    value, (da, db, dt) = jax.tree.map(lambda x: x[0] - x[2], found)
    agree((value, db), (0 * value, 0 * db))
    agree((da, dt), (2 * found[1][0][0], 2 * found[1][2][0]))


@pytest.mark.parametrize("options", [{}, {"positives": jnp.zeros(1, int)}], ids=["pairs", "ids"])
def test_one_row_is_sure(options):
    one = jnp.ones((1, 3))
    step = jax.value_and_grad(
        lambda a, b: jsoftmax.contrastive_loss(a, b, temperature=0.1, **options), (0, 1)
    )
    found = jax.jit(step)(one, 2 * one)
    agree(found, jax.tree.map(jnp.zeros_like, found), atol=0)


def test_nothing_counts():
    """Without rows, with all rows hidden, and without a single positive: 0, with gradients 0."""
    none, some, bad = jnp.zeros((0, 3)), jnp.ones((4, 3)), jnp.full((4, 3), NAN)
    apart = jnp.arange(4), jnp.arange(4, 8)
    calls = (
        (none, none, {}),
        (bad, bad, {"weights": jnp.zeros(4)}),
        (bad, bad, {"weights": jnp.zeros(4), "symmetric": False}),
        (some, some, {"positives": apart}),
    )
    for a, b, options in calls:
        step = jax.value_and_grad(
            lambda a, b, options=options: jsoftmax.contrastive_loss(a, b, temperature=0.1, **options), (0, 1)
        )
        loss, gradients = jax.jit(step)(a, b)
        assert loss == 0
        assert not any(np.any(g) for g in gradients)


@pytest.mark.long
def test_hidden_rows_hold_anything():
    """A hidden pair is no negative: the result is that of the others; also with `jax_debug_nans`."""

    @jax.jit
    def steps(a, b, w, ids):
        def loss(a, b, w, **options):
            return jsoftmax.contrastive_loss(a, b, temperature=0.5, weights=w, **options)

        each = loss, functools.partial(loss, symmetric=False), functools.partial(loss, positives=ids)
        return [jax.value_and_grad(f, (0, 1, 2))(a, b, w) for f in each]

    agree_without_hidden_rows(steps)


@pytest.mark.share(2)
@pytest.mark.parametrize("label", [-1, 5])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_label_that_is_no_row_gives_nan(label, symmetric):
    a = jnp.eye(3, 4)
    labels = jnp.asarray([0, 4, label])
    options = {"temperature": 1.0, "symmetric": symmetric}
    assert np.isnan(jsoftmax.contrastive_loss(a, jnp.ones((5, 4)), labels=labels, **options))
    found = jsoftmax.contrastive_loss(
        a, jnp.ones((5, 4)), labels=labels, weights=jnp.asarray([1, 1, 0]), **options
    )
    assert np.isfinite(found)


def test_a_row_is_not_its_own_positive():
    a = jnp.eye(3, 4)
    assert np.isnan(jsoftmax.contrastive_loss(a, None, temperature=1.0, labels=jnp.asarray([1, 1, 0])))


@pytest.mark.share(6)
@pytest.mark.usefixtures("not_plain")
@pytest.mark.parametrize(
    "name",
    [
        "pairs, weights",
        "InfoNCE, weights",
        "labels",
        "ids, weights",
        "itself, ids, weights",
        "a mask, one direction",
    ],
)
def test_sharded_rows_give_the_answers_of_one_device(name, x64):
    """Of the loss and of every gradient, whole on every shard: none is off by the number of devices."""
    kind = CASES[name][0]
    a, b, t, options = of_sixteen(name)
    flags = {key: options.pop(key) for key in ("symmetric",) if key in options}

    def loss(a, b, t, options, **on):
        b = None if kind == "itself" else b
        return jsoftmax.contrastive_loss(a, b, temperature=t, block_size=3, **options, **flags, **on)

    agree_when_sharded(loss, (a, b, t), options)


def test_tangents_of_sharded_rows(x64):
    def loss(a, b, t, **on):
        return jsoftmax.contrastive_loss(a, b, temperature=t, **on)

    given, along = ((a[:12], b[:12], t) for a, b, t in (arrays(), arrays(seed=1)))
    agree_tangents_when_sharded(loss, given, along)


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_rows_sharded_under_jit(kind, several_devices):
    def losses(a, b, ids):
        loss = functools.partial(jsoftmax.contrastive_loss, temperature=0.5, block_size=8)
        return loss(a, b) + loss(a, b, positives=ids)

    agree_under_jit(losses, kind)


def dense(a, b, t):
    z, ids = a @ b.T / t, jnp.arange(len(a))
    loss = optax.softmax_cross_entropy_with_integer_labels
    return (loss(z, ids).mean() + loss(z.T, ids).mean()) / 2


def test_memory_of_a_step_is_a_few_blocks():
    """At most an eighth of the dense form's temporaries: 4 blocks of 512 rows, of which 8192 rows have 16."""

    def ours(a, b, t):
        return jsoftmax.contrastive_loss(a, b, temperature=t)

    held, peers = (lowered(f).compile().memory_analysis().temp_size_in_bytes for f in (ours, dense))
    assert held <= 4 * _contrast.SMALL_BLOCK
    assert held <= peers / 8


@pytest.mark.parametrize(("symmetric", "products"), [(True, 4), (False, 3)])
def test_products_of_a_step(symmetric, products):
    """Those of all rows, in one block; the center of the logits is one of a single pair."""

    def loss(a, b, t):
        return jsoftmax.contrastive_loss(a, b, temperature=t, symmetric=symmetric, block_size=200)

    found = lowered(loss, 200, 16).as_text()
    of_rows = [line for line in found.splitlines() if "dot_general" in line and "1x1xf32" not in line]
    assert len(of_rows) == products


def test_a_program_for_any_number_of_pairs(x64):
    """`jax.export` with a symbol for the number of rows, and for every platform."""
    (rows,) = jax.export.symbolic_shape("n")
    features, t = jax.ShapeDtypeStruct((rows, FEATURES), float), jax.ShapeDtypeStruct((), float)
    step = jax.jit(
        jax.value_and_grad(lambda a, b, t: jsoftmax.contrastive_loss(a, b, temperature=t), (0, 1, 2))
    )
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(features, features, t)
    agree(exported.call(*arrays()), step(*arrays()))


@pytest.mark.parametrize(("given", "options", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_call_is_refused_in_words(given, options, message):
    with pytest.raises((TypeError, ValueError), match=r"jsoftmax\.contrastive_loss\(a=.*" + message):
        jsoftmax.contrastive_loss(*given, **{"temperature": 0.1} | options)
