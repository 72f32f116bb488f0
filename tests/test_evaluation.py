"""Evaluation: the metrics of scikit-learn and numpy, equal for any batches, order and shards."""

import contextlib
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sampling
from digits import digits
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn import metrics

import jsoftmax
from jsoftmax import evaluation

INF, NAN = np.inf, np.nan
EPS = np.finfo(np.float32).eps
IGNORED = -100
SUMS = {"rtol": 1e-12, "atol": 1e-300}  # for two words; a rounding of one word is 6e-8
is_sum = functools.partial(lambda kind, node: isinstance(node, kind), type(evaluation.empty().nll))


def sums(state):
    """All sums of a state, in float64."""
    return [np.float64(s.high) + np.float64(s.low) for s in jax.tree.leaves(state, is_leaf=is_sum)]


def entry(stacked, i):
    return jax.tree.map(lambda leaf: leaf[i], stacked)


def assert_same_sums(got, want, **tolerance):
    for one, other in zip(sums(got), sums(want), strict=True):
        np.testing.assert_allclose(one, other, **(tolerance or SUMS))


def assert_equal(got, want):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(one, other)


def definition(logits, labels, weights=None, top_k=5, bins=15):
    """The textbook definitions of the metrics, in float64."""
    z, rows = np.float64(logits), np.arange(len(labels))
    w = np.ones(len(labels)) if weights is None else np.float64(weights)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    hot = np.eye(z.shape[1])[labels]
    right, confidence = p.argmax(1) == labels, p.max(1)
    order = np.argsort(-z, 1, kind="stable")
    bin_of = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)
    gaps = [abs((w * (confidence - right))[bin_of == b].sum()) for b in range(bins)]
    nll = np.average(-np.log(p[rows, labels]), weights=w)
    return {
        "weight": w.sum(),
        "nll": nll,
        "perplexity": np.exp(nll),
        "bits_per_token": nll / np.log(2),
        "accuracy": np.average(right, weights=w),
        "top_k_accuracy": [
            np.average((order[:, :k] == labels[:, None]).any(1), weights=w) for k in range(1, top_k + 1)
        ],
        "brier": np.average(((p - hot) ** 2).sum(1), weights=w),
        "calibration_error": sum(gaps) / w.sum(),
        "per_class_weight": hot.T @ w,
        "per_class_accuracy": hot.T @ (w * right) / np.maximum(hot.T @ w, 1e-300),
    }


def assert_metrics(got, want, rtol=1e-6):
    for name, value in want.items():
        np.testing.assert_allclose(getattr(got, name), value, rtol=rtol, atol=1e-30, err_msg=name)


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_metrics_of_scikit_learn_on_digits(weighted):
    x, y = digits()
    w = np.random.default_rng(0).uniform(0, 2, len(y)).astype(np.float32) if weighted else None
    found = evaluation.compute(evaluation.update(evaluation.empty(10), x, y, weights=w))
    want = definition(x, y, w)
    assert_metrics(found, want)
    p = np.exp(np.float64(x)) / np.exp(np.float64(x)).sum(1, keepdims=True)
    options = {"sample_weight": w}
    right = p.argmax(1)
    theirs = {
        "nll": metrics.log_loss(y, p, **options),
        "accuracy": metrics.accuracy_score(y, right, **options),
        "top_k_accuracy": [metrics.top_k_accuracy_score(y, p, k=k, **options) for k in range(1, 6)],
        "brier": metrics.brier_score_loss(y, p, **options),
        "per_class_accuracy": metrics.recall_score(y, right, average=None, **options),
    }
    assert_metrics(found, theirs)
    assert 0.5 < found.accuracy < 1
    reliability = found.reliability
    np.testing.assert_allclose(reliability.weight.sum(), want["weight"], rtol=1e-6)
    np.testing.assert_allclose(
        reliability.weight @ reliability.accuracy / want["weight"], found.accuracy, rtol=1e-6
    )
    held = reliability.weight > 0
    upper = np.arange(1, 16) / 15
    assert (
        held & (reliability.confidence <= upper) & (reliability.confidence > upper - 1 / 15) == held
    ).all()


@pytest.mark.long
def test_row_statistics_tell_the_same():
    x, y = digits()
    statistics = jsoftmax.row_statistics(x, y)
    small = evaluation.empty(10, top_k=1, bins=None)
    state = evaluation.update_from_statistics(small, statistics, y)
    assert_same_sums(state, evaluation.update(small, x, y), rtol=EPS)
    found = evaluation.compute(state)
    assert found.brier is found.calibration_error is found.reliability is found.bits_per_byte is None
    p = np.asarray(jsoftmax.softmax(x))
    more = {
        "rank": (p > np.take_along_axis(p, y[:, None], 1)).sum(1),
        "confidence": p.max(1),
        "brier": ((p - np.eye(10)[y]) ** 2).sum(1),
    }
    state = evaluation.update_from_statistics(evaluation.empty(10), statistics, y, **more)
    assert_metrics(evaluation.compute(state), definition(x, y))


def many_rows(rows, classes=4):
    """Losses that drift along the rows: no float32 sum over them keeps its digits."""
    rng = np.random.default_rng(0)
    x = (
        rng.normal(size=(rows, classes)).astype(np.float32)
        * np.linspace(0.5, 3, rows, dtype=np.float32)[:, None]
    )
    return x, rng.integers(0, classes, rows).astype(np.int32)


@jax.jit
def scanned(state, x, y):
    """A scan over chunks of rows."""
    return jax.lax.scan(lambda s, batch: (evaluation.update(s, *batch), None), state, (x, y))[0]


@pytest.mark.long
@pytest.mark.parametrize("count", sampling.sample([2**17, 2**20], 2**17))
def test_many_rows_agree_with_float64_in_any_order(count):
    """On one device, on eight shards, and merged in any order."""
    x, y = many_rows(count)
    want = definition(x, y)
    nothing = evaluation.empty(4)
    chunks = x.reshape(256, -1, 4), y.reshape(256, -1)
    whole = scanned(nothing, *chunks)
    assert_metrics(evaluation.compute(whole), want)

    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    rows, everywhere = PartitionSpec("rows"), PartitionSpec()

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(rows, rows), out_specs=(everywhere, rows))
    def across(x, y):
        own = scanned(jax.lax.pcast(nothing, "rows", to="varying"), x, y)
        return evaluation.merge_across(own, "rows"), entry(own, None)

    together, stacked = jax.device_get(across(*chunks))  # to the host: else all eight devices index
    assert_same_sums(together, whole)
    shards = [entry(stacked, i) for i in range(8)]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(8)
        assert_same_sums(functools.reduce(evaluation.merge, [shards[i] for i in order]), whole)
    pairs = [evaluation.merge(*shards[i : i + 2]) for i in range(0, 8, 2)]
    assert_same_sums(evaluation.merge(evaluation.merge(*pairs[:2]), evaluation.merge(*pairs[2:])), whole)


def test_rows_are_counted_past_the_digits_of_a_float():
    nothing = evaluation.empty(2, top_k=1, bins=2)
    one = evaluation.update(nothing, jnp.array([[3.0, 0.0]]), jnp.array([0]))
    state = one
    for _ in range(40):
        state = evaluation.merge(state, state)
    state = evaluation.merge(state, one)
    for counted in (state.weight, state.ranks, state.classes.weight, state.calibration.bins.correct):
        assert np.max(np.float64(counted.high) + np.float64(counted.low)) == 2**40 + 1
    np.testing.assert_allclose(sums(state)[1], (2**40 + 1) * sums(one)[1], rtol=1e-12)
    rows = jnp.zeros(2**24 + 1)
    statistics = jsoftmax.RowStatistics(rows, rows, rows, rows.astype(jnp.int32))
    in_one_batch = evaluation.update_from_statistics(
        evaluation.empty(top_k=1, bins=None), statistics, statistics.prediction
    )
    assert sums(in_one_batch) == [len(rows), 0, [len(rows)]]


ROWS = st.lists(
    st.tuples(
        st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3),
        st.sampled_from([0, 1, 2, IGNORED]),
        st.sampled_from([0.0, 0.3, 1.0, 1e-6, 1e6]),
    ),
    max_size=8,
)
laws = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@jax.jit
def seen(x, y, w):
    return evaluation.update(evaluation.empty(3, top_k=2, bins=4), x, y, weights=w, ignore_index=IGNORED)


def state_of(rows):
    """The state of rows, padded to one shape with rows that do not count."""
    rows = [*rows, *[((NAN,) * 3, 7, 0.0)] * (24 - len(rows))]
    x, y, w = zip(*rows, strict=True)
    return seen(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32), jnp.asarray(w, jnp.float32))


@pytest.mark.long
@laws
@given(ROWS, ROWS, ROWS)
def test_merge_is_a_commutative_monoid(x, y, z):
    a, b, c = map(state_of, (x, y, z))
    merge = evaluation.merge
    assert_equal(merge(a, b), merge(b, a))
    assert_equal(merge(a, evaluation.empty(3, top_k=2, bins=4)), a)
    assert_same_sums(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert_same_sums(merge(merge(a, b), c), state_of([*x, *y, *z]))


def test_rows_that_do_not_count_are_not_seen():
    x, y = (a[:64].copy() for a in digits())
    kept, ignored = np.arange(64) % 3 > 0, np.arange(64) % 6 == 0
    w = np.where(np.arange(64) % 3 == 1, 0.7, 1.3).astype(np.float32)
    want = definition(x[kept], y[kept], w[kept])
    x[~kept] = np.resize([NAN, INF, -INF, 1e38], (64, 10))[~kept]
    y[~kept], w[~kept] = 1000, 0
    y[ignored], w[ignored] = IGNORED, NAN
    rows = [jnp.asarray(a) for a in (x, y, np.where(kept, y, IGNORED), w)]
    with jax.debug_nans(True):
        got = evaluation.update(evaluation.empty(10), *rows[:2], weights=rows[3], ignore_index=IGNORED)
        unweighted = evaluation.update(evaluation.empty(10), rows[0], rows[2], ignore_index=IGNORED)
    assert_metrics(evaluation.compute(got), want)
    assert_metrics(evaluation.compute(unweighted), definition(x[kept], y[kept]))


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("axis", [-1, 1])
def test_rows_masked_whole_are_not_seen(axis):
    """Padding with any values; for statistics, rows of weight 0."""
    x, y = (a[:64].copy() for a in digits())
    kept = np.arange(64) % 3 > 0
    live = np.broadcast_to(kept[:, None], x.shape)
    want, temperature = definition(x[kept], y[kept]), evaluation.fit_temperature(x[kept], y[kept])
    x[~kept], y[~kept] = NAN, 1000
    x, y, live = (np.moveaxis(a.reshape(8, 8, -1), -1, axis) for a in (x, y, live))
    rows = np.expand_dims(kept.reshape(8, 8), axis)
    x, y = jnp.asarray(x), jnp.asarray(y.reshape(8, 8))
    with jax.debug_nans(True):
        for where in (live, rows):
            given = {"axis": axis, "where": where}
            found = evaluation.update(evaluation.empty(10), x, y, **given)
            assert_metrics(evaluation.compute(found), want)
            np.testing.assert_allclose(evaluation.fit_temperature(x, y, **given), temperature, rtol=4 * EPS)
        small = evaluation.empty(top_k=1, bins=None)
        statistics = jsoftmax.row_statistics(x, y, **given)
        padded = np.int32(kept.reshape(8, 8))
        found = evaluation.update_from_statistics(small, statistics, y, weights=padded)
    assert_metrics(evaluation.compute(found), {name: want[name] for name in ("weight", "nll", "accuracy")})
    weighted = evaluation.update(small, x, y, **given, weights=np.full((8, 8), 0.5, np.float32))
    np.testing.assert_allclose(evaluation.compute(weighted).weight, 0.5 * kept.sum(), rtol=EPS)


@pytest.mark.share(3)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e5m2"])
def test_sums_of_few_bits_are_kept_in_float32(dtype):
    rows, x = 70_000, jnp.asarray([[0, 0, 0, 0], [1, 0, 0, 0]], dtype)
    x, y = jnp.tile(x, (rows // 2, 1)), jnp.zeros(rows, jnp.int32)
    state = evaluation.update(evaluation.empty(4, dtype=dtype), x, y)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    assert state.weight.high == state.ranks.high[0] == rows
    losses = np.log([4, (np.e + 3) / np.e])
    np.testing.assert_allclose(evaluation.compute(state).nll, losses.mean(), rtol=2 * EPS)


def test_weights_whose_sum_overflows_leave_no_plausible_number():
    x, y = jnp.tile(X[:1] * 8, (10, 1)), jnp.zeros(10, jnp.int32)
    found = evaluation.compute(evaluation.update(evaluation.empty(3), x, y, weights=jnp.full(10, 1e38)))
    assert found.weight == INF
    assert all(np.isnan(metric).all() for metric in jax.tree.leaves(found._replace(weight=NAN)))
    np.testing.assert_allclose(
        evaluation.fit_temperature(X, Y[::-1], weights=jnp.full(3, 2e38)),
        evaluation.fit_temperature(X, Y[::-1]),
        rtol=2 * EPS,
    )


def test_a_donated_state():
    update = jax.jit(evaluation.update, donate_argnums=0)
    state = evaluation.empty(3)
    for _ in range(3):
        state = update(state, X, Y)
    assert evaluation.compute(state).weight == 9


X = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.5]])
Y = jnp.array([0, 1, 2])
BAD = {
    "label below": (X, Y.at[1].set(-1), None),
    "label above": (X, Y.at[1].set(3), None),
    "overflow": (X.at[1, 0].set(INF), Y, None),
    "nan": (X.at[1, 2].set(NAN), Y, None),
    "weight below 0": (X, Y, jnp.array([1.0, -1.0, 1.0])),
    "nan weight": (X, Y, jnp.array([1.0, NAN, 1.0])),
}


@pytest.mark.parametrize(("x", "y", "w"), BAD.values(), ids=BAD)
def test_a_bad_row_leaves_no_plausible_number(x, y, w):
    good, bad = (evaluation.update(evaluation.empty(3), *row, weights=w) for row in ((X, Y), (x, y)))
    merged = evaluation.merge(bad, evaluation.merge(bad, good))
    for state in (bad, evaluation.merge(good, bad), merged):
        found = evaluation.compute(state, num_bytes=10)
        assert all(np.isnan(metric).all() for metric in jax.tree.leaves(found._replace(weight=NAN)))
        assert w is not None or found.weight % 3 == 0


def test_the_corners_of_a_row():
    """Single rows: a dead label, a masked one, no live class, a tie, a confident row."""
    x = jnp.array([[0, -INF, 1], [0, 3, 1], [-INF] * 3, [0, 0, 0], [60, 0, -INF]])
    live = jnp.ones((5, 3), bool).at[1, 1].set(False)

    @jax.vmap
    def each(x, y, live):
        return evaluation.compute(evaluation.update(evaluation.empty(), x, y, where=live))

    with jax.debug_nans(True):
        found = each(x, jnp.array([1, 1, 0, 2, 0]), live)
    small = jax.nn.softmax(x[0])[0]
    assert_metrics(
        found,
        {
            "weight": np.ones(5),
            "nll": [INF, INF, 0, np.log(3), np.exp(-60)],
            "perplexity": [INF, INF, 1, 3, 1],
            "accuracy": [0, 0, 0, 0, 1],
            "top_k_accuracy": [[0] * 5, [0] * 5, [0] * 5, [0, 0, 1, 1, 1], [1] * 5],
            "brier": [*[1 + small**2 + (1 - small) ** 2] * 2, 1, 2 / 3, 2 * np.exp(-120)],
            "calibration_error": [1 - small, 1 - small, 0, 1 / 3, 0],
        },
        rtol=1e-5,
    )


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    logits = jnp.array([[0.0, 0.0], [0.0, -INF]])
    found = evaluation.compute(evaluation.update(evaluation.empty(bins=2), logits, jnp.array([0, 0])))
    np.testing.assert_array_equal(found.reliability, [[1, 1], [0.5, 1], [1, 1]])
    assert found.calibration_error == 0.25


@pytest.mark.share(4)
@pytest.mark.parametrize("bins", [13, 21, 45, 90])
def test_every_edge_is_in_the_bin_below_as_it_is_rounded(bins):
    edges = (np.arange(1, bins + 1) / bins).astype(np.float32)
    rows = jnp.zeros(bins)
    statistics = jsoftmax.RowStatistics(rows, rows, rows, rows.astype(jnp.int32))
    state = evaluation.update_from_statistics(
        evaluation.empty(top_k=1, bins=bins), statistics, statistics.prediction, confidence=edges, brier=rows
    )
    np.testing.assert_array_equal(evaluation.compute(state).reliability.weight, np.ones(bins))


def test_infinite_losses_and_no_rows():
    one = evaluation.update(evaluation.empty(3), X, Y)
    infinite = evaluation.update(one, X.at[1, 1].set(-INF), Y)
    with jax.debug_nans(True):
        for state in (infinite, evaluation.merge(one, infinite), evaluation.merge(infinite, infinite)):
            found = evaluation.compute(state)
            assert found.nll == found.perplexity == INF
            assert 0 < found.accuracy < 1
        nothing = evaluation.update(evaluation.empty(3), X[:0], Y[:0])
        assert_equal(nothing, evaluation.empty(3))
    found = evaluation.compute(nothing)
    assert found.weight == 0
    assert all(np.isnan(metric).all() for metric in jax.tree.leaves(found._replace(weight=NAN)))


@pytest.mark.long
def test_any_axis_dtype_mask_and_scaling():
    x, y = digits()
    x, y = x[:60].reshape(3, 20, 10), y[:60].reshape(3, 20)
    nothing, calibrated = evaluation.empty(top_k=2, bins=None), evaluation.empty(top_k=1, bins=3)
    want = evaluation.update(nothing, x, y)
    for got in (
        evaluation.update(nothing, np.moveaxis(x, -1, 1), y, axis=1),
        evaluation.update(nothing, x.reshape(60, 10), y.reshape(60).astype(np.uint8)),
        evaluation.update(nothing, -2 * x, y, temperature=-2.0),
    ):
        assert_same_sums(got, want, rtol=3 * EPS)
    live = np.arange(10) > 2
    coarse = jnp.asarray(x, jnp.bfloat16)
    capped = evaluation.update(calibrated, coarse, y, soft_cap=5.0, where=live)
    assert {leaf.dtype for leaf in jax.tree.leaves(capped)} == {jnp.dtype(jnp.float32)}
    plain = np.where(live, 5 * np.tanh(np.float32(coarse) / 5), -INF)
    assert_same_sums(capped, evaluation.update(calibrated, plain, y), rtol=1e-5)


@pytest.mark.long
def test_float64_rows_keep_48_bits_in_a_float32_state(x64):
    x, y = digits()
    x = x.astype(np.float64) * 1.1
    narrow, wide = (
        evaluation.update(evaluation.empty(10, dtype=d), x, y) for d in (jnp.float32, jnp.float64)
    )
    assert narrow.nll.high.dtype == jnp.float32
    assert_same_sums(narrow, wide)
    assert_metrics(evaluation.compute(wide), definition(x, y), rtol=1e-13)


def test_a_state_of_every_batch_and_their_merge():
    x, y = many_rows(96)
    nothing = evaluation.empty(top_k=1, bins=None)

    @jax.jit
    @functools.partial(jax.vmap, axis_name="batches")
    def each(x, y):
        state = evaluation.update(nothing, x, y)
        return state, evaluation.compute(state), evaluation.merge_across(state, "batches")

    states, found, together = each(x.reshape(8, 12, 4), y.reshape(8, 12))
    wants = [definition(*batch) for batch in zip(x.reshape(8, 12, 4), y.reshape(8, 12), strict=True)]
    np.testing.assert_allclose(found.nll, [want["nll"] for want in wants], rtol=1e-6)
    np.testing.assert_allclose(found.accuracy, [want["accuracy"] for want in wants], rtol=1e-6)
    merged = functools.reduce(evaluation.merge, [entry(states, i) for i in range(8)])
    for i in range(8):
        assert_same_sums(entry(together, i), merged)


@pytest.mark.share(3)
@pytest.mark.parametrize(
    ("axis_type", "over"),
    [(AxisType.Auto, "rows"), (AxisType.Explicit, "rows"), (AxisType.Explicit, "classes")],
)
def test_sharded_arrays_are_evaluated_where_they_lie(axis_type, over):
    x, y = digits()
    x, y = np.c_[x, np.full((len(x), 6), -INF, np.float32)][:64], y[:64]
    mesh = jax.make_mesh((8,), ("m",), axis_types=(axis_type,))
    specs = [("m",), ("m",)] if over == "rows" else [(None, "m"), ()]
    with jax.set_mesh(mesh):
        on_mesh = [
            jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))
            for a, spec in zip((x, y), specs, strict=True)
        ]
        found = evaluation.compute(evaluation.update(evaluation.empty(16), *on_mesh))
        temperature = evaluation.fit_temperature(*on_mesh)
    want = definition(x[:, :10], y)
    for name in ("per_class_accuracy", "per_class_weight"):
        want[name] = np.r_[want[name], np.zeros(6)]
    assert_metrics(found, want)
    np.testing.assert_allclose(temperature, best_temperature(x[:, :10], y), rtol=1e-5)


@pytest.mark.share(2)
@pytest.mark.parametrize("check", [True, False])
def test_shards_merge_in_one_small_sum(check):
    x, y = many_rows(64)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    rows = PartitionSpec(("a", "b"))

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(rows, rows), out_specs=PartitionSpec(), check_vma=check)
    def across(x, y):
        return evaluation.merge_across(evaluation.update(evaluation.empty(4), x, y), ("a", "b"))

    assert_same_sums(across(x, y), evaluation.update(evaluation.empty(4), x, y))
    text = across.lower(x, y).compile().as_text()
    assert "all-gather" not in text
    assert len(re.findall(r" all-reduce\(", text)) == 1


def test_the_derivative_is_that_of_the_mean_loss():
    x, y = (jnp.asarray(a[:32]) for a in digits())

    def ours(x):
        state = evaluation.update(evaluation.empty(), x, y, ignore_index=IGNORED)
        found = evaluation.compute(evaluation.merge(state, state))
        return found.nll + 3 * found.brier, found

    def plain(x):
        brier = jnp.square(jax.nn.softmax(x) - jax.nn.one_hot(y, 10)).sum(-1)
        return jsoftmax.cross_entropy(x, y, reduction="mean") + 3 * brier.mean()

    want = jax.jit(jax.grad(plain))(x)
    x, y = jnp.pad(x, ((0, 1), (0, 0)), constant_values=NAN), jnp.append(y, IGNORED)
    (_, found), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(x)
    np.testing.assert_allclose(gradient, jnp.pad(want, ((0, 1), (0, 0))), rtol=1e-4, atol=1e-8)
    assert 0 < found.accuracy < 1

    x, y, w = x[:-1], y[:-1], jnp.linspace(0.5, 2, 32)

    def nll(x):
        small = evaluation.empty(top_k=1, bins=None)
        return evaluation.compute(evaluation.update(small, x, y, weights=w)).nll

    with jsoftmax.forward_mode():
        tangent = jax.jit(lambda x: jax.jvp(nll, (x,), (x,))[1])(x)
    losses = jax.jit(jax.grad(lambda x: jnp.average(jsoftmax.cross_entropy(x, y), weights=w)))(x)
    np.testing.assert_allclose(tangent, jnp.vdot(losses, x), rtol=1e-5)


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("forward", [False, True], ids=["reverse", "forward"])
def test_the_derivative_has_a_derivative(forward):
    weights = jnp.array([1.0, 0.5, 2.0])

    def ours(x):
        found = evaluation.compute(evaluation.update(evaluation.empty(), x, Y, weights=weights))
        return found.nll + 3 * found.brier

    def plain(x):
        brier = jnp.square(jax.nn.softmax(x) - jax.nn.one_hot(Y, 3)).sum(-1)
        losses = optax.softmax_cross_entropy_with_integer_labels(x, Y)
        return jnp.average(losses + 3 * brier, weights=weights)

    with jsoftmax.forward_mode() if forward else contextlib.nullcontext():
        second = jax.hessian if forward else lambda f: jax.jacrev(jax.grad(f))
        found, want = jax.jit(lambda x: (second(ours)(x), jax.hessian(plain)(x)))(X)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)


def test_what_is_no_rank_confidence_or_score_is_seen():
    of_rows = {"rank": jnp.array([0, 1, 2]), "confidence": jnp.full(3, 0.5), "brier": jnp.full(3, 0.25)}
    for bad in ({}, {"rank": -1}, {"rank": NAN}, {"confidence": 2}, {"confidence": NAN}, {"brier": -0.5}):
        more = of_rows | {name: of_rows[name].astype(float).at[1].set(value) for name, value in bad.items()}
        state = evaluation.update_from_statistics(STATE, jsoftmax.row_statistics(X, Y), Y, **more)
        assert np.isnan(evaluation.compute(state).accuracy) == bool(bad)
        weights = jnp.array([1, 0, 1])
        state = evaluation.update_from_statistics(
            STATE, jsoftmax.row_statistics(X, Y), Y, weights=weights, **more
        )
        assert np.isfinite(evaluation.compute(state).accuracy)


def test_a_state_survives_a_file(tmp_path):
    x, y = many_rows(50)
    state = evaluation.update(evaluation.empty(4), x, y)
    np.savez(tmp_path / "state.npz", *jax.tree.leaves(state))
    with np.load(tmp_path / "state.npz") as file:
        restored = jax.tree.unflatten(jax.tree.structure(evaluation.empty(4)), file.values())
    assert_equal(restored, state)
    assert_equal(evaluation.merge(restored, state), evaluation.merge(state, state))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) < 1000


def test_bits_of_bytes():
    state = evaluation.update(evaluation.empty(top_k=1, bins=None), jnp.zeros((6, 4)), jnp.zeros(6, int))
    for count in (3, 3.0, jnp.int32(3), np.float64(3)):
        np.testing.assert_allclose(evaluation.compute(state, num_bytes=count).bits_per_byte, 4, rtol=EPS)
    assert evaluation.compute(state, num_bytes=10**12).bits_per_byte > 0
    assert np.isnan(evaluation.compute(state, num_bytes=-3).bits_per_byte)


def mean_loss(x, y, temperature):
    z = np.float64(x) / temperature
    z -= z.max(1, keepdims=True)
    return np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y])


def best_temperature(x, y):
    """By bisection of the derivative of the mean loss in 1/T, in float64."""
    gaps = np.float64(x).max(1, keepdims=True) - np.float64(x)
    low, high = -800.0, 800.0
    for _ in range(200):
        middle = (low + high) / 2
        v = np.minimum(np.exp(middle) * gaps, 700)
        e = np.exp(-v)
        slope = np.mean((e * v).sum(1) / e.sum(1)) - np.exp(middle) * np.mean(gaps[np.arange(len(y)), y])
        low, high = (middle, high) if slope > 0 else (low, middle)
    return np.exp(-middle)


fit = jax.jit(evaluation.fit_temperature)


@pytest.mark.parametrize("regime", ["digits", "noise", "one wrong of many", "mostly flat", "all scales"])
def test_the_temperature_of_the_smallest_loss(regime):
    rng = np.random.default_rng(0)
    x, y = digits()
    if regime == "noise":  # the labels depend a little on the logits
        x = rng.normal(size=x.shape).astype(np.float32)
        y = np.argmax(0.3 * x + rng.gumbel(size=x.shape), 1)
    elif regime == "one wrong of many":
        y = x.argmax(1)
        y[7] = x[7].argmin()
    elif regime == "mostly flat":  # a step that suits most rows would go too far
        x = np.where(np.arange(len(x))[:, None] == 7, np.float32(np.arange(10)), 1)
        y = np.full(len(x), 6)
    elif regime == "all scales":
        x = x * (10.0 ** rng.uniform(-4, 4, (len(x), 1))).astype(np.float32)
    for scale in (1.0, 2.0**-80, 2.0**80):
        scaled = x * np.float32(scale)
        temperature = fit(scaled, y)
        assert temperature.dtype == jnp.float32
        np.testing.assert_allclose(temperature, best_temperature(scaled, y), rtol=1e-5, err_msg=f"{scale}")
    best = mean_loss(x, y, float(fit(x, y)))
    assert best <= min(mean_loss(x, y, float(fit(x, y)) * f) for f in (0.999, 1.001))


FLOAT32_SCALES = (1e30, 1e-30, 1e37, 3e37, 1e-37)


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        ("float32", FLOAT32_SCALES),
        ("bfloat16", FLOAT32_SCALES),
        ("float16", (1e3, 1e-3)),
        ("float64", (1e300, 1e-300, 3e306)),
    ],
)
def test_the_temperature_at_every_scale_of_the_logits(dtype, scales, x64):
    """Accurate to a few ulp, for logits that XLA on CPU does not flush to 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    y = np.argmax(x + rng.gumbel(size=x.shape), 1)
    dtype, wide = jnp.dtype(dtype), np.float64 if dtype == "float64" else np.float32
    for scale in (1.0, *scales):
        scaled = np.float64(jnp.asarray(x * scale, dtype))
        scaled = np.where(np.abs(scaled) < np.finfo(wide).tiny, 0, scaled)
        found = fit(jnp.asarray(scaled, dtype), y)
        assert found.dtype == wide
        unit = 2.0 ** np.round(np.log2(scale))
        want = best_temperature(scaled / unit, y)
        np.testing.assert_allclose(
            np.float64(found) / unit, want, rtol=4 * np.finfo(wide).eps, err_msg=f"{scale}"
        )


def test_the_temperature_of_logits_whose_differences_overflow():
    x, y = (a[:200] for a in digits())
    x = x / np.abs(x).max()
    scaled = x * np.float32(3.4e38)
    for cap in (None, 5e37):
        found = evaluation.fit_temperature(scaled, y, soft_cap=cap)
        z = np.float64(scaled) if cap is None else cap * np.tanh(np.float64(scaled) / cap)
        np.testing.assert_allclose(found / 2.0**100, best_temperature(z / 2.0**100, y), rtol=8 * EPS)


@pytest.mark.long
def test_the_temperature_of_rows_that_count():
    x, y = digits()
    w = np.random.default_rng(0).integers(0, 3, len(y))
    want = best_temperature(np.repeat(x, w, 0), np.repeat(y, w))
    np.testing.assert_allclose(evaluation.fit_temperature(x, y, weights=w), want, rtol=1e-5)
    bad = np.where(w[:, None] == 0, NAN, x)
    labels = np.where(w == 0, IGNORED, y)
    np.testing.assert_allclose(evaluation.fit_temperature(bad, y, weights=w), want, rtol=1e-5)
    want = best_temperature(x[w > 0], y[w > 0])
    np.testing.assert_allclose(evaluation.fit_temperature(bad, labels, ignore_index=IGNORED), want, rtol=1e-5)
    masked = np.where(np.arange(12) < 10, np.c_[x, x[:, :2]], NAN)
    masked = evaluation.fit_temperature(masked.T, y, axis=0, where=(np.arange(12) < 10)[:, None])
    np.testing.assert_allclose(masked, fit(x, y), rtol=1e-6)
    groups = jax.vmap(evaluation.fit_temperature)(x[:1796].reshape(4, -1, 10), y[:1796].reshape(4, -1))
    np.testing.assert_allclose(groups[2], best_temperature(x[898:1347], y[898:1347]), rtol=1e-5)


def test_temperatures_at_the_ends():
    x, y = digits()
    right, wrong, limits = x.argmax(1), x.argmin(1), jnp.finfo(jnp.float32)
    with jax.debug_nans(True):
        assert fit(x, right) == limits.tiny
        assert fit(x, wrong) == limits.max
        assert fit(np.zeros_like(x), y) == 1
        assert evaluation.fit_temperature(x[:0], y[:0]) == 1
        assert evaluation.fit_temperature(x, y, weights=np.zeros(len(y))) == 1
    losses = [jsoftmax.cross_entropy(x, right, temperature=fit(x, right), reduction="mean")]
    losses += [jsoftmax.cross_entropy(x, wrong, temperature=fit(x, wrong), reduction="mean")]
    np.testing.assert_allclose(losses, [0, math.log(10)], rtol=1e-6)
    empty_row = np.where(np.arange(len(y))[:, None] == 5, -INF, x)
    np.testing.assert_allclose(
        fit(empty_row, y), best_temperature(np.delete(x, 5, 0), np.delete(y, 5)), rtol=1e-5
    )
    spoiled = x.copy()
    for value in (NAN, INF):
        spoiled[3, 3] = value
        assert np.isnan(fit(spoiled, y))
    spoiled[3, y[3]] = -INF
    assert np.isnan(fit(spoiled, y))
    for label in (-1, 10):
        assert np.isnan(fit(x, np.where(np.arange(len(y)) == 4, label, y)))


STATE = evaluation.empty()
ERRORS = {
    "float labels": (
        lambda: evaluation.update(STATE, X, X[0]),
        ValueError,
        "update",
        r"target probabilities of shape \(3,\).*or class ids as integers",
    ),
    "labels of another shape": (
        lambda: evaluation.update(STATE, X, Y[:2]),
        ValueError,
        "update",
        r"labels=int32\[2\].*give one id for each row, shape \(3,\)",
    ),
    "weights of another shape": (
        lambda: evaluation.update(STATE, X, Y, weights=jnp.ones(3)[:, None]),
        ValueError,
        "update",
        r"weights of shape \(3, 1\) for rows of shape \(3,\); give weights the shape \(3,\)",
    ),
    "several class axes": (
        lambda: evaluation.update(STATE, X, jnp.int32(0), axis=(0, 1)),
        ValueError,
        "update",
        "one class axis",
    ),
    "other classes": (
        lambda: evaluation.update(evaluation.empty(5), X, Y),
        ValueError,
        "update",
        r"logits have 3 classes, and the state is for 5; begin with evaluation\.empty\(3\)",
    ),
    "statistics of other rows": (
        lambda: evaluation.update_from_statistics(
            evaluation.empty(top_k=1, bins=None),
            jsoftmax.row_statistics(X, Y)._replace(prediction=jnp.array([1])),
            Y,
        ),
        ValueError,
        "update_from_statistics",
        r"a prediction of shape \(1,\) for rows of shape \(3,\); give the row_statistics of these rows",
    ),
    "statistics without a rank": (
        lambda: evaluation.update_from_statistics(STATE, jsoftmax.row_statistics(X, Y), Y),
        ValueError,
        "update_from_statistics",
        r"give rank=, or begin with evaluation\.empty\(top_k=1\)",
    ),
    "statistics without a confidence": (
        lambda: evaluation.update_from_statistics(STATE, jsoftmax.row_statistics(X, Y), Y, rank=Y),
        ValueError,
        "update_from_statistics",
        r"give confidence= and brier=, or begin with evaluation\.empty\(bins=None\)",
    ),
    "metrics of metrics": (
        lambda: evaluation.compute(evaluation.compute(STATE)),
        TypeError,
        "compute",
        r"state is of type Metrics, not State; begin with evaluation\.empty\(\)",
    ),
    "no state": (lambda: evaluation.update(None, X, Y), TypeError, "update", "state is of type NoneType"),
    "a state as a list": (
        lambda: evaluation.merge_across(jax.tree.leaves(STATE), "rows"),
        TypeError,
        "merge_across",
        "state is of type list",
    ),
    "a state and metrics": (
        lambda: evaluation.merge(STATE, evaluation.compute(STATE)),
        TypeError,
        "merge",
        "b is of type Metrics, not State",
    ),
    "statistics without a state": (
        lambda: evaluation.update_from_statistics(jsoftmax.row_statistics(X, Y), Y, Y),
        TypeError,
        "update_from_statistics",
        "state is of type RowStatistics",
    ),
    "logits as statistics": (
        lambda: evaluation.update_from_statistics(STATE, X, Y),
        TypeError,
        "update_from_statistics",
        r"not RowStatistics; pass the result of row_statistics .*, or call evaluation\.update",
    ),
    "a state of 16 bits": (
        lambda: evaluation.update(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), STATE), X, Y),
        TypeError,
        "update",
        "the sums of state are bfloat16; leave a state in the dtype",
    ),
    "states of other measures": (
        lambda: evaluation.merge(STATE, evaluation.empty(3, bins=10)),
        ValueError,
        "merge",
        r"\(a=empty\(\), b=empty\(num_classes=3, bins=10\)\): .* begin both with the same",
    ),
    "no bins": (
        lambda: evaluation.empty(bins=0),
        ValueError,
        "empty",
        "bins is 0; write an integer of at least 1",
    ),
    "half a choice": (
        lambda: evaluation.empty(top_k=2.5),
        ValueError,
        "empty",
        "top_k is 2.5; write an integer",
    ),
    "sums in integers": (lambda: evaluation.empty(dtype="int32"), TypeError, "empty", "write a float type"),
    "bytes of rows": (
        lambda: evaluation.compute(STATE, num_bytes=Y),
        ValueError,
        "compute",
        "give one number",
    ),
    "fit to targets": (
        lambda: evaluation.fit_temperature(X, X),
        TypeError,
        "fit_temperature",
        "class ids as integers",
    ),
}


@pytest.mark.parametrize(("call", "kind", "function", "message"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_call_is_refused_in_words(call, kind, function, message):
    for attempt in (call, jax.jit(call)):
        with pytest.raises(kind, match=rf"^jsoftmax\.evaluation\.{function}(?s:.*){message}"):
            attempt()
