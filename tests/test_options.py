"""All options of the cross-entropy, alone and combined, compared with its formula and its peers."""

import functools
import itertools
import json
import operator
import re
from pathlib import Path

import definitions
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from cases import logits
from compiling import jit_in_full
from definitions import mp
from mpmath import mpf

import jsoftmax

EPS = float(jnp.finfo(jnp.float32).eps)
ROWS, CLASSES = 6, 7
IGNORED = 3
REDUCTIONS = ("none", "mean", "sum")


def inputs(soft, dtype):
    """Logits, labels, and a value for every option, in the computing dtype except for the logits."""
    rng = np.random.default_rng(5)
    x = jnp.asarray(3 * rng.normal(size=(ROWS, CLASSES)), dtype)
    labels = jnp.array([0, IGNORED, 2, IGNORED, 6, 1])
    if soft:
        labels = jnp.asarray(rng.dirichlet(np.ones(CLASSES), ROWS), dtype)
    where = np.ones((ROWS, CLASSES), bool)
    where[np.arange(ROWS), [5, 5, 0, 1, 2, 4]] = False
    return {
        "x": x,
        "labels": labels,
        "where": jnp.asarray(where),
        "class_weights": jnp.asarray(rng.uniform(0.5, 2, CLASSES), jnp.float32),
        "label_smoothing": jnp.asarray(rng.uniform(0.05, 0.3, ROWS), jnp.float32),
        "z_loss": jnp.asarray(rng.uniform(0.01, 0.1, ROWS), jnp.float32),
        "soft_cap": jnp.asarray(rng.uniform(4, 9, ROWS), jnp.float32),
        "temperature": jnp.asarray(rng.uniform(0.4, 2, ROWS), jnp.float32),
    }


# The value of an option that is switched off, as an array.
NEUTRAL = {
    "where": lambda a: jnp.ones_like(a),
    "class_weights": jnp.ones_like,
    "label_smoothing": jnp.zeros_like,
    "z_loss": jnp.zeros_like,
    "temperature": jnp.ones_like,
}


def ours(given, axis, ignore_index, reduction):
    given = dict(given)
    x, labels = given.pop("x"), given.pop("labels")
    soft = not jnp.issubdtype(labels.dtype, jnp.integer)
    if soft:
        labels = jnp.where(given["where"], labels, 0) if "where" in given else labels
    else:
        given["ignore_index"] = ignore_index
    if axis == 0:
        x, labels = x.T, labels.T if soft else labels
        given["where"] = given["where"].T if "where" in given else None
    return jsoftmax.cross_entropy(x, labels, axis=axis, reduction=reduction, **given)


def plain(given, ignore_index, reduction):
    """The formulas, for arrays in float64."""
    x, labels, where = given["x"], given["labels"], given.get("where")
    rows = (labels != ignore_index) if labels.ndim == 1 else jnp.ones(len(x), bool)
    ids = labels.ndim == 1
    expand = {k: given[k][:, None] for k in ("temperature", "soft_cap") if k in given}
    options = {k: given[k] for k in ("label_smoothing", "z_loss") if k in given}
    weights = given.get("class_weights")
    labels = jnp.where(rows, labels, 0) if ids else labels
    loss = definitions.cross_entropy(x, labels, -1, where, weights=weights, **expand, **options)
    loss = jnp.where(rows, loss, 0)
    count = jnp.ones(len(x)) if weights is None or not ids else weights[labels]
    count = jnp.where(rows, count, 0).sum()
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / count}[reduction]


def value_and_gradients(loss, given):
    """For every float argument; a loss per row is weighted, so that rows have different cotangents."""
    floats = {k: v for k, v in given.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    rest = {k: v for k, v in given.items() if k not in floats}

    def total(floats):
        value = loss({**floats, **rest})
        return jnp.sum(value * jnp.arange(1.0, value.size + 1, dtype=value.dtype).reshape(value.shape)), value

    (_, value), gradients = jax.value_and_grad(total, has_aux=True)(floats)
    return value, gradients


def by_reduction(loss, given):
    return {r: value_and_gradients(functools.partial(loss, reduction=r), given) for r in REDUCTIONS}


def assert_near(got, want, eps, name):
    (value, gradients), (plain_value, plain_gradients) = got, want
    np.testing.assert_allclose(value, plain_value, rtol=200 * EPS, atol=50 * EPS, err_msg=name)
    for key, gradient in gradients.items():
        rounding = max(eps, 400 * EPS) * np.abs(plain_gradients[key]).max(initial=1e-3)
        off = np.abs(np.asarray(gradient, np.float64) - plain_gradients[key])
        assert off.max() <= rounding, f"{name}: gradient of {key} is off by {off.max()}"


@jax.jit
def all_of_plain(switches, exact):
    """The formulas with every subset of the given options."""
    soft = exact["labels"].ndim == 2

    def one(switch):
        chosen = dict(exact)
        for i, (name, neutral) in enumerate(NEUTRAL.items()):
            chosen[name] = jnp.where(switch[i], exact[name], neutral(exact[name]))
        if soft:
            chosen["labels"] = jnp.where(chosen["where"], chosen["labels"], 0)
        ignored = -1 if soft else jnp.where(switch[-1], IGNORED, -100)
        return by_reduction(functools.partial(plain, ignore_index=ignored), chosen)

    return jax.vmap(one)(switches)


@pytest.mark.long
@pytest.mark.share(4)
@pytest.mark.diagonal
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("capped", [False, True], ids=["uncapped", "capped"])
@pytest.mark.parametrize("soft", [False, True], ids=["ids", "targets"])
def test_every_combination_of_options(soft, capped, dtype, axis):
    """Values and gradients of all float arguments; 192 combinations a test for ids, 96 for targets: 3456."""
    given = inputs(soft, dtype)
    if not capped:
        del given["soft_cap"]
    switches = list(itertools.product([False, True], repeat=len(NEUTRAL) + (not soft)))

    def choose(switch):
        chosen = dict(given)
        for on, (name, neutral) in zip(switch, NEUTRAL.items(), strict=False):
            chosen[name] = jnp.where(on, given[name], neutral(given[name]))
        ignore_index = -1 if soft else jnp.where(switch[-1], IGNORED, -100)
        return chosen, ignore_index

    @jax.jit
    def all_of_ours(switches):
        def one(switch):
            chosen, ignored = choose(switch)
            return by_reduction(functools.partial(ours, axis=axis, ignore_index=ignored), chosen)

        return jax.vmap(one)(switches)

    got = jax.device_get(all_of_ours(jnp.array(switches)))
    with jax.enable_x64(True):
        exact = {
            k: np.asarray(v, np.float64) if k == "x" or v.dtype.kind != "i" else v for k, v in given.items()
        }
        exact["where"] = given["where"]
        exact = {k: jnp.asarray(v) for k, v in exact.items()}

        want = jax.device_get(all_of_plain(jnp.array(switches), exact))
    eps = float(jnp.finfo(dtype).eps)
    for i, switch in enumerate(switches):
        for reduction in REDUCTIONS:
            pair = (jax.tree.map(operator.itemgetter(i), tree[reduction]) for tree in (got, want))
            assert_near(*pair, eps, f"{reduction}, {dict(zip(NEUTRAL, switch, strict=False))}, {switch[-1]}")
    assert got["none"][0].dtype == np.float32


STATIC = ("where", "class_weights", "label_smoothing", "z_loss", "soft_cap", "temperature")
SUBSETS = [(), *((name,) for name in STATIC), *itertools.combinations(STATIC, 2), STATIC]


@pytest.mark.share(10)
@pytest.mark.diagonal
@pytest.mark.parametrize("soft", [False, True], ids=["ids", "targets"])
@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "+".join(names) or "none")
def test_options_alone_and_in_pairs(names, soft):
    """Given or left out, which gives different programs."""
    given = {k: v for k, v in inputs(soft, jnp.float32).items() if k in ("x", "labels", *names)}
    loss = functools.partial(ours, axis=-1, ignore_index=None, reduction="mean")
    got = jax.jit(lambda given: value_and_gradients(loss, given))(given)
    with jax.enable_x64(True):
        exact = {k: v if v.dtype in (bool, np.int32) else v.astype(np.float64) for k, v in given.items()}
        if soft and "where" in exact:
            exact["labels"] = jnp.where(exact["where"], exact["labels"], 0)
        want = jax.jit(lambda e: value_and_gradients(lambda g: plain(g, -100, "mean"), e))(exact)
        want = jax.device_get(want)
    assert_near(got, want, EPS, str(names))


RECORDED = json.loads((Path(__file__).parent / "data" / "torch_cross_entropy.json").read_text())


@pytest.mark.share(9)
@pytest.mark.diagonal
@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda c: "-".join(str(c[k]) for k in list(c)[:5]))
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_torch_means_the_same(case, columns):
    x, w = np.float32(RECORDED["logits"]), np.float32(RECORDED["weights"])
    labels = np.float32(RECORDED["targets"]) if case["soft"] else np.int32(RECORDED["ids"])
    if columns:
        x, labels = x.T, labels.T

    def loss(x):
        return jsoftmax.cross_entropy(
            x,
            labels,
            axis=0 if columns else -1,
            ignore_index=2 if case["ignored"] else None,
            class_weights=w if case["weighted"] else None,
            label_smoothing=case["smoothing"],
            reduction=case["reduction"],
        )

    losses, pull = jax.jit(lambda x: jax.vjp(loss, x))(x)
    (gradient,) = pull(jnp.ones_like(losses))
    np.testing.assert_allclose(losses, case["loss"], rtol=20 * EPS, atol=10 * EPS)
    np.testing.assert_allclose(gradient.T if columns else gradient, case["gradient"], atol=10 * EPS)


def test_optax_agrees_where_it_is_right():
    x, y = jnp.asarray(logits("unit", (5, 9), dtype=np.float32)), jnp.arange(5)
    t = jax.nn.softmax(x[::-1])
    live = jnp.arange(9) != 8
    pairs = (
        (jsoftmax.cross_entropy(x, t), optax.softmax_cross_entropy(x, t)),
        (jsoftmax.cross_entropy(x, y), optax.softmax_cross_entropy_with_integer_labels(x, y)),
        (
            jsoftmax.cross_entropy(x, t, label_smoothing=0.1),
            optax.softmax_cross_entropy(x, optax.smooth_labels(t, 0.1)),
        ),
        (
            jsoftmax.cross_entropy(jnp.where(live, x, -jnp.inf), jnp.where(live, t, 0)),
            optax.safe_softmax_cross_entropy(jnp.where(live, x, -jnp.inf), jnp.where(live, t, 0)),
        ),
    )
    for got, want in pairs:
        np.testing.assert_allclose(got, want, rtol=20 * EPS)


def test_the_divergence_is_that_of_optax():
    x, q = (jnp.asarray(logits("unit", (5, 9), dtype=np.float32, seed=seed)) for seed in (0, 1))
    want = optax.kl_divergence(jax.nn.log_softmax(q), jax.nn.softmax(x))
    np.testing.assert_allclose(jsoftmax.kl_divergence(x, q), want, rtol=20 * EPS)


def test_optax_is_wrong_beside_a_class_of_logit_minus_infinity():
    """NaN there; here the result of mpmath without that class."""
    x, t = jnp.array([0.5, 1.0, -jnp.inf]), jnp.array([0.25, 0.75, 0.0])
    assert np.isnan(optax.softmax_cross_entropy(x, t))
    normalizer = mp.log(mp.exp(mpf(0.5)) + mp.exp(mpf(1)))
    exact = float(normalizer - mpf(0.25) * mpf(0.5) - mpf(0.75))
    np.testing.assert_allclose(jsoftmax.cross_entropy(x, t), exact, rtol=2 * EPS)


@pytest.mark.share(2)
@pytest.mark.parametrize("label", [-100, -1, 9])
def test_optax_gives_a_finite_gradient_to_a_label_that_is_no_class(label):
    """Or takes it for another class; here the row is NaN, or 0 if the label is ignored."""
    x = jnp.asarray(logits("unit", (9,), 0, np.float32))
    gradient = jax.grad(optax.softmax_cross_entropy_with_integer_labels)(x, label)
    assert np.isfinite(gradient).all()
    assert np.isnan(jax.grad(jsoftmax.cross_entropy)(x, label)).all()
    ignored = functools.partial(jsoftmax.cross_entropy, ignore_index=label)
    assert ignored(x, label) == 0
    assert not jax.grad(ignored)(x, label).any()


def test_the_z_loss_is_that_of_t5x():
    """The loss plus z·log_normalizer², with its gradient 2·z·log_normalizer·p."""
    x, y, z = jnp.asarray(logits("unit", (5, 9), dtype=np.float32)), jnp.arange(5), 0.1
    log_z = jax.nn.logsumexp(x, axis=-1)
    p, one_hot = jax.nn.softmax(x), jax.nn.one_hot(y, 9)
    loss = -jnp.sum(one_hot * (x - log_z[:, None]), axis=-1) + z * log_z**2
    gradient = (1 + 2 * z * log_z)[:, None] * p - one_hot
    value, pull = jax.vjp(lambda x: jsoftmax.cross_entropy(x, y, z_loss=z), x)
    np.testing.assert_allclose(value, loss, rtol=20 * EPS)
    np.testing.assert_allclose(pull(jnp.ones(5))[0], gradient, atol=20 * EPS)


@pytest.mark.parametrize("regime", ["unit", "spread", "peaked by 30"])
def test_the_entropy_is_exact_where_scipy_is_not(regime, x64):
    x = jnp.asarray(logits(regime, (20, 9)))
    exact = definitions.entropy(definitions.exactly(x)).astype(float)
    of_scipy = scipy.stats.entropy(scipy.special.softmax(x, -1), axis=-1)
    np.testing.assert_allclose(of_scipy, exact, rtol=1e-12 if regime == "unit" else 1e-2)
    for ours in (jsoftmax.entropy(x), jsoftmax.row_statistics(x, jnp.zeros(20, int)).entropy):
        np.testing.assert_allclose(ours, exact, rtol=1e-14)


@pytest.mark.share(4)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_what_is_ignored_may_hold_anything(reduction):
    x = jnp.array([[1.0, 2.0, 0.5], [jnp.nan, jnp.inf, 1e38], [0.0, 1.0, 0.0]])
    y = jnp.array([0, -100, 1])
    options = {
        "ignore_index": -100,
        "label_smoothing": 0.1,
        "z_loss": 1e-2,
        "class_weights": jnp.array([1.0, 2.0, 0.5]),
        "temperature": 2.0,
        "soft_cap": 30.0,
    }

    def loss(x, y, o):
        return jsoftmax.cross_entropy(x, y, reduction=reduction, **o)

    @jax.jit
    def gradient(x, y):
        floats = {k: v for k, v in options.items() if k != "ignore_index"}
        return jax.grad(lambda x, o: loss(x, y, {**o, "ignore_index": -100}).sum(), (0, 1))(x, floats)

    losses = jax.jit(lambda x, y: loss(x, y, options))
    got, want = losses(x, y), losses(x[::2], y[::2])
    np.testing.assert_allclose(got[::2] if reduction == "none" else got, want, rtol=4 * EPS)
    (dx, do), (dx_kept, do_kept) = gradient(x, y), gradient(x[::2], y[::2])
    np.testing.assert_allclose(dx[::2], dx_kept, rtol=10 * EPS)
    assert not dx[1].any()
    for name, want in do_kept.items():
        np.testing.assert_allclose(do[name], want, rtol=10 * EPS, err_msg=name)


@pytest.mark.long
@pytest.mark.share(6)
@pytest.mark.parametrize("soft", [False, True], ids=["ids", "targets"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_row_masked_whole_is_no_row(reduction, soft):
    """Whatever its values: values and gradients are those of the other rows."""
    given = inputs(soft, jnp.float32)
    kept, gone = np.array([0, 2, 3, 5]), np.array([1, 4])
    if soft:
        given["labels"] = jnp.where(given["where"], given["labels"], 0)
    per_row = [name for name in given if name != "class_weights"]
    few = {name: a[kept] if name in per_row else a for name, a in given.items()}
    given |= {
        "x": given["x"].at[gone].set(jnp.nan),
        "labels": given["labels"].at[gone].set(jnp.nan if soft else CLASSES),
        "where": given["where"].at[gone].set(False),
    }

    @jax.jit
    def losses_and_gradients(given, scale):
        options = {k: a for k, a in given.items() if k in ("where", "labels")}

        def of(reduction, floats, **less):
            floats = {name: a for name, a in floats.items() if name not in less}
            x = floats.pop("x")
            given = {**floats, **options, **less}
            loss = jsoftmax.cross_entropy(x, given.pop("labels"), reduction=reduction, **given)
            return jnp.sum(loss * (scale if reduction == "none" else 1)), loss

        floats = {name: a for name, a in given.items() if name not in options}
        (_, loss), gradients = jax.value_and_grad(functools.partial(of, reduction), has_aux=True)(floats)
        return (loss, gradients), {
            "unweighted": of("mean", floats, class_weights=None)[1],
            "of rows": of("mean", floats, where=jnp.any(given["where"], -1, keepdims=True))[1],
            "of ids": None if soft else of("mean", floats, ignore_index=IGNORED)[1],
        }

    with jax.debug_nans(True):
        (loss, gradients), means = losses_and_gradients(given, jnp.arange(1.0, 7))
    (want, of_few), means_of_few = losses_and_gradients(few, jnp.arange(1.0, 7)[kept])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=10 * EPS), means, means_of_few)
    if reduction == "none":
        np.testing.assert_array_equal(loss[gone], 0)
        loss = loss[kept]
    np.testing.assert_allclose(loss, want, rtol=10 * EPS)
    for name, gradient in gradients.items():
        if name in per_row:
            np.testing.assert_array_equal(gradient[gone], 0, err_msg=name)
            gradient = gradient[kept]
        np.testing.assert_allclose(gradient, of_few[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.share(2)
@pytest.mark.parametrize(("axis", "shape"), [(1, (4, 1, 6)), ((0, 2), (1, 5, 1)), (None, (1, 1, 1))], ids=str)
def test_padding_along_any_axis(axis, shape):
    """Masks of length 1 along the classes; if every row is masked, the mean is over no rows."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 5, 6)), jnp.float32)
    live = jnp.asarray(rng.random(shape) < 0.5).at[-1, -1, -1].set(False)
    losses = jsoftmax.cross_entropy(x, jax.nn.softmax(x, axis), axis=axis)
    rows = jnp.broadcast_to(live.reshape([n for n in shape if n > 1]), losses.shape)
    got = jsoftmax.cross_entropy(x, jax.nn.softmax(x, axis), axis=axis, where=live, reduction="mean")
    np.testing.assert_allclose(
        got, jnp.sum(losses, where=rows) / jnp.maximum(rows.sum(), 1).astype(float), rtol=10 * EPS
    )


def test_a_constant_mask_is_not_reduced_by_the_compiler():
    """XLA evaluates reductions of constants at compile time, which takes minutes for large ones."""
    where = np.arange(10_000).reshape(100, 100) % 5 > 0

    def mean(x):
        return jsoftmax.cross_entropy(x, jnp.zeros(100, int), where=where, reduction="mean")

    text = jit_in_full(mean).lower(jnp.zeros((100, 100))).as_text()
    (mask,) = re.findall(r"(%\w+) = stablehlo\.optimization_barrier %\w+ : tensor<100x100xi1>", text)
    assert re.search(rf"stablehlo\.reduce\({mask} init", text)


def test_a_row_that_only_its_logits_leave_without_a_class_counts():
    x, y = jnp.array([[0.0, 0.0], [-jnp.inf, -jnp.inf], [-jnp.inf, 1.0]]), jnp.zeros(3, int)
    where = jnp.array([[True, True], [True, True], [True, False]])
    mean = jsoftmax.cross_entropy(x, y, where=where, reduction="mean")
    np.testing.assert_allclose(mean, np.log(2) / 3, rtol=4 * EPS)


def test_the_mean_over_nothing_is_0():
    x, y = jnp.ones((3, 4)), jnp.full(3, -1)
    loss = functools.partial(jsoftmax.cross_entropy, labels=y, ignore_index=-1, reduction="mean")
    value, gradient = jax.value_and_grad(loss)(x)
    assert value == 0
    assert not gradient.any()


@pytest.mark.share(4)
@pytest.mark.parametrize("axis", [(1, 2), (2, 0), (-1, -3), None], ids=str)
def test_several_class_axes_are_one(axis):
    rng = np.random.default_rng(0)
    axes = tuple(i % 3 for i in (range(3) if axis is None else axis))
    x, t = rng.normal(size=(3, 4, 5)), rng.dirichlet(np.ones(60)).reshape(3, 4, 5)
    w, live = rng.uniform(0.5, 2, [x.shape[i] for i in axes]), rng.random((1, 4, 5)) < 0.8
    x, t, w = (jnp.asarray(a, jnp.float32) for a in (x, np.where(live, t, 0), w))
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "soft_cap": 5.0}

    def flat(a):
        rows = [i for i in range(3) if i not in axes]
        return jnp.transpose(a, (*rows, *axes)).reshape(*(a.shape[i] for i in rows), -1)

    got = jsoftmax.cross_entropy(x, t, axis=axis, where=live, class_weights=w, **options)
    live = flat(jnp.broadcast_to(live, x.shape))
    want = jsoftmax.cross_entropy(flat(x), flat(t), where=live, class_weights=w.ravel(), **options)
    np.testing.assert_allclose(got, want, rtol=4 * EPS)
    statistics = jsoftmax.row_statistics(x, t, axis=axis)
    for ours, same in zip(statistics, jsoftmax.row_statistics(flat(x), flat(t)), strict=True):
        np.testing.assert_allclose(ours, same, rtol=4 * EPS)


@pytest.mark.long
@pytest.mark.share(3)
@pytest.mark.diagonal
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("soft", [False, True], ids=["ids", "targets"])
def test_rows_too_long_for_one_sum(soft, axis):
    """On CPU these are summed in blocks: value, gradients, and a second derivative, for every option."""
    rng = np.random.default_rng(0)
    rows, classes = 2, 33_333
    given = {
        "x": 3 * rng.normal(size=(rows, classes)),
        "labels": rng.dirichlet(np.ones(classes), rows) if soft else np.array([5, classes - 1]),
        "where": rng.random((rows, classes)) < 0.9,
        "class_weights": rng.uniform(0.5, 2, classes),
        "label_smoothing": np.full(rows, 0.1),
        "z_loss": np.full(rows, 0.01),
        "soft_cap": np.full(rows, 8.0),
        "temperature": np.array([0.7, 1.3]),
    }
    given["where"][:, [5, -1]] = True
    given = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in given.items()}
    if soft:
        given["labels"] = np.where(given["where"], given["labels"], 0)
    v = rng.normal(size=(rows, classes)).astype(np.float32)

    def all_of(loss, given, v):
        def gradient(x):
            return value_and_gradients(loss, {**given, "x": x})

        (value, gradients), (_, second) = jax.jvp(gradient, (given["x"],), (v,))
        return value, {**gradients, "second derivative": second["x"]}

    loss = functools.partial(ours, axis=axis, ignore_index=None, reduction="none")
    got = jax.jit(functools.partial(all_of, loss))({k: jnp.asarray(a) for k, a in given.items()}, v)
    with jax.enable_x64(True):
        exact = {
            k: jnp.asarray(a.astype(np.float64) if a.dtype == np.float32 else a) for k, a in given.items()
        }
        loss = functools.partial(plain, ignore_index=-100, reduction="none")
        want = jax.device_get(jax.jit(functools.partial(all_of, loss))(exact, v.astype(np.float64)))
    assert_near(got, want, EPS, "in blocks")


def step_memory(**options):
    """Bytes of temporaries of value and gradient at the size of the head of a language model."""
    x = jax.ShapeDtypeStruct((8192, 131072), jnp.float32)
    y = jax.ShapeDtypeStruct((8192,), jnp.int32)

    def loss(x, y):
        return jsoftmax.cross_entropy(x, y, reduction="mean", **options)

    return jit_in_full(jax.value_and_grad(loss)).lower(x, y).compile().memory_analysis().temp_size_in_bytes


def test_every_option_at_once_stores_no_second_array_of_logits():
    weights = np.linspace(0.5, 2, 131072, dtype=np.float32)
    options = {"class_weights": weights, "label_smoothing": 0.1, "z_loss": 1e-4, "soft_cap": 30.0}
    assert step_memory(**options, ignore_index=-100) < 8192 * 131072 * 4 / 50


def test_statistics_that_are_not_used_cost_nothing():
    """The program of only the nll is as large as that of the loss."""
    x, y = jax.ShapeDtypeStruct((8, 1000), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)

    def transcendentals(loss):
        compiled = jit_in_full(jax.value_and_grad(lambda x, y: loss(x, y).sum())).lower(x, y).compile()
        return compiled.cost_analysis()["transcendentals"]

    alone = transcendentals(lambda x, y: jsoftmax.row_statistics(x, y).nll)
    assert alone <= 1.05 * transcendentals(jsoftmax.cross_entropy)
    assert transcendentals(lambda x, y: jsoftmax.row_statistics(x, y).entropy) < 1.5 * alone
