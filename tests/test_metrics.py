"""Metrics beyond the mean loss, as defined: calibration, classes, risk and coverage, groups, intervals."""

import functools
import io
import json
from collections import Counter

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
import sampling
from digits import digits
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn import metrics

import jsoftmax
from jsoftmax import evaluation

INF, NAN = np.inf, np.nan
GROUPS, BINS, CLASS_BINS, REPLICATES, CELLS = 7, 15, 10, 50, 8192
ALL = evaluation.empty(
    10,
    confusion=True,
    class_bins=CLASS_BINS,
    selective=True,
    num_groups=GROUPS,
    replicates=REPLICATES,
)
KEY = jax.random.key(0)
update = jax.jit(evaluation.update)


def groups_of(rows):
    return (np.arange(rows) ** 2 % 11 % GROUPS).astype(np.int32)


def bins_of(values, bins):
    return np.clip(np.ceil(values * bins) - 1, 0, bins - 1).astype(int)


def gaps(confidence, right, weights, bin_of, bins):
    """For each bin: its weight, and the difference of mean confidence and accuracy."""
    weight = np.bincount(bin_of, weights, bins)
    gap = np.bincount(bin_of, weights * (confidence - right), bins)
    return weight, abs(gap) / np.maximum(weight, 1e-300)


def definition(logits, labels, weights):
    """The textbook definitions, in float64."""
    z, w, rows = np.float64(logits), np.float64(weights), np.arange(len(labels))
    log_p = z - z.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    p = np.exp(log_p)
    confidence, prediction = p.max(1), p.argmax(1)
    right = prediction == labels
    found = {}
    weight, gap = gaps(confidence, right, w, bins_of(confidence, BINS), BINS)
    found["max_calibration_error"] = gap.max()
    found["rms_calibration_error"] = np.sqrt(weight @ gap**2 / w.sum())

    # The cells of equal confidence, by the float32 digits of the odds.
    rest = np.sort(p, 1)[:, :-1].sum(1) / confidence
    odds = np.clip(1 / np.maximum(rest, 2.0**-40), 2.0**-24, 2.0**40)
    cell = np.minimum((np.float32(odds).view(np.int32) >> 16) - (127 - 24) * 128, CELLS - 1)
    of_cells = np.bincount(cell, w, CELLS)
    share = (np.cumsum(of_cells) - of_cells / 2) / w.sum()
    in_bin = np.clip((BINS * share).astype(int), 0, BINS - 1)[cell]
    weight, gap = gaps(confidence, right, w, in_bin, BINS)
    found["equal_mass_calibration_error"] = weight @ gap / w.sum()

    of_classes = [gaps(p[:, j], labels == j, w, bins_of(p[:, j], CLASS_BINS), CLASS_BINS) for j in range(10)]
    found["class_calibration_error"] = np.mean([weight @ gap / w.sum() for weight, gap in of_classes])

    confusion = np.zeros((10, 10))
    np.add.at(confusion, (labels, prediction), w)
    found["confusion"] = confusion
    given, predicted, correct = confusion.sum(1), confusion.sum(0), np.diag(confusion)
    found["per_class_precision"] = correct / np.where(predicted == 0, 1, predicted)
    found["per_class_f1"] = 2 * correct / np.where(given + predicted == 0, 1, given + predicted)
    found["macro_accuracy"] = np.mean((correct / np.where(given == 0, 1, given))[given > 0])
    found["macro_f1"] = np.mean(found["per_class_f1"][given + predicted > 0])

    wrong = np.bincount(cell, w * ~right, CELLS)[::-1]
    accepted, errors = np.cumsum(of_cells[::-1]), np.cumsum(wrong)
    found["coverage"], found["risk"] = accepted / w.sum(), errors / np.where(accepted == 0, 1, accepted)
    # The area, by the midpoint rule on each cell.
    area, steps = 0.0, (np.arange(2000) + 0.5) / 2000
    for n, e, more, more_wrong in zip(accepted, errors, of_cells[::-1], wrong, strict=True):
        if more > 0:
            area += more * np.mean((e - more_wrong + more_wrong * steps) / (n - more + more * steps))
    found["aurc"] = area / w.sum()

    group = groups_of(len(rows))
    of_groups = np.bincount(group, w, GROUPS)  # one group has no rows
    found["groups.nll"] = np.bincount(group, -w * log_p[rows, labels], GROUPS) / np.maximum(of_groups, 1e-300)
    found["groups.accuracy"] = np.bincount(group, w * right, GROUPS) / np.maximum(of_groups, 1e-300)
    found["groups.weight"] = of_groups
    return found


def flat(found):
    """The metrics of `definition`."""
    curve = {} if found.risk_coverage is None else found.risk_coverage._asdict()
    groups = {f"groups.{name}": value for name, value in found.groups._asdict().items()}
    return found._asdict() | curve | groups


REGIMES = {
    "digits": lambda x: x,
    "confident": lambda x: 20 * x,
    "flat": lambda x: 0 * x,
    "two values": lambda x: np.where(x > 4, np.float32(3), 0),
    "classes without rows": lambda x: x - 30 * (np.arange(10) > 6).astype(np.float32),
}


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_metric_is_as_defined(weighted):
    x, y = digits()
    rng = np.random.default_rng(0)
    w = rng.uniform(0, 2, len(y)).astype(np.float32) if weighted else np.ones(len(y), np.float32)
    of_rows = {"groups": groups_of(len(y)), "key": KEY} | ({"weights": w} if weighted else {})
    for name, regime in REGIMES.items():
        logits, labels = regime(x), y % 7 if name == "classes without rows" else y
        found = flat(evaluation.compute(update(ALL, logits, labels, **of_rows)))
        for metric, want in definition(logits, labels, w).items():
            np.testing.assert_allclose(found[metric], want, 1e-6, 1e-6, err_msg=f"{name}: {metric}")


@pytest.mark.long
def test_the_metrics_of_scikit_learn():
    x, y = digits()
    w = np.random.default_rng(1).uniform(0, 2, len(y)).astype(np.float32)
    state = update(ALL, x, y, weights=w, groups=groups_of(len(y)), key=KEY)
    found, given, prediction = evaluation.compute(state), {"sample_weight": w}, x.argmax(1)
    for name, want in {
        "confusion": metrics.confusion_matrix(y, prediction, **given),
        "per_class_precision": metrics.precision_score(y, prediction, average=None, **given),
        "per_class_f1": metrics.f1_score(y, prediction, average=None, **given),
        "macro_f1": metrics.f1_score(y, prediction, average="macro", **given),
        "macro_accuracy": metrics.balanced_accuracy_score(y, prediction, **given),
    }.items():
        np.testing.assert_allclose(getattr(found, name), want, rtol=1e-6, err_msg=name)


@pytest.mark.long
def test_cells_of_confidence_change_little():
    """Beside the exact order of all confidences."""
    x, y = digits()
    found = evaluation.compute(evaluation.update(evaluation.empty(selective=True), x, y))
    p = np.asarray(jsoftmax.softmax(np.float64(x)))
    order = np.argsort(-p.max(1), kind="stable")
    right = (p.argmax(1) == y)[order]
    area = np.mean(np.cumsum(~right) / np.arange(1, len(y) + 1))
    np.testing.assert_allclose(found.risk_coverage.aurc, area, rtol=5e-3)
    parts = np.array_split(np.arange(len(y)), BINS)
    error = sum(abs((p.max(1)[order] - right)[part].sum()) for part in parts) / len(y)
    np.testing.assert_allclose(found.equal_mass_calibration_error, error, atol=1e-3)
    assert (np.diff(found.risk_coverage.coverage) >= 0).all()
    assert found.risk_coverage.coverage[-1] == 1


@pytest.mark.long
def test_a_row_on_the_edge_of_a_bin_of_equal_mass():
    rows, bins = 45, 10
    state = evaluation.empty(top_k=1, bins=bins, selective=True)
    weight = jnp.zeros(CELLS).at[:rows].set(3)
    cells = state.cells._replace(weight=state.cells.weight._replace(high=weight))
    state = state._replace(weight=state.weight._replace(high=jnp.float32(3 * rows)), cells=cells)
    found = evaluation.compute(state).equal_mass_reliability.weight
    of_definition = np.bincount([bins * (2 * i + 1) // (2 * rows) for i in range(rows)])
    np.testing.assert_array_equal(found, 3 * of_definition)


@pytest.mark.long
def test_many_rows_in_groups_keep_their_digits():
    """A plain scatter of 200 000 equal numbers would lose most of them; one group is far smaller."""
    rows = 200_000
    x = jnp.stack([jnp.full(rows, 1e-3), jnp.zeros(rows)], -1).at[-3:].set(jnp.array([12.0, 0.0]))
    groups = jnp.zeros(rows, jnp.int32).at[-3:].set(1)
    state = update(
        evaluation.empty(num_groups=3, selective=True), x, jnp.zeros(rows, jnp.int32), groups=groups
    )
    found = evaluation.compute(state)
    want = jax.nn.softplus(-np.array([1e-3, 12.0]))
    np.testing.assert_allclose(found.groups.nll, [*want, 0], rtol=1e-6)
    np.testing.assert_array_equal(found.groups.weight, [rows - 3, 3, 0])
    np.testing.assert_allclose(state.cells.confidence.high.sum(), rows / 2 + rows / 4e3 + 1.5, rtol=1e-6)


@pytest.mark.long
@pytest.mark.share(4)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "measures",
    [{"confusion": True, "class_bins": CLASS_BINS}, {"selective": True}],
    ids="+".join,
)
def test_shards_merge_to_the_whole(measures, axis_type):
    x, y = (a[:1792] for a in digits())
    measured = evaluation.empty(10, num_groups=GROUPS, **measures)
    whole = evaluation.compute(update(measured, x, y, groups=groups_of(1792)))
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(axis_type,))
    rows, everywhere = PartitionSpec("rows"), PartitionSpec()
    if axis_type == AxisType.Explicit:
        with jax.set_mesh(mesh):
            arrays = (jax.device_put(a, NamedSharding(mesh, rows)) for a in (x, y, groups_of(1792)))
            x, y, groups = arrays
            found = evaluation.compute(evaluation.update(measured, x, y, groups=groups))
    else:

        @jax.jit
        @jax.shard_map(mesh=mesh, in_specs=(rows, rows, rows), out_specs=everywhere)
        def across(x, y, groups):
            return evaluation.merge_across(evaluation.update(measured, x, y, groups=groups), "rows")

        found = evaluation.compute(across(x, y, groups_of(1792)))
    for name, want in flat(whole).items():
        if want is not None and not isinstance(want, tuple):
            np.testing.assert_allclose(flat(found)[name], want, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("grouped", [False, True], ids=["rows", "groups"])
def test_an_interval_is_as_wide_as_the_theory_says(grouped):
    """The standard error of a mean, for rows that are drawn alone and for groups of equal rows."""
    rng, rows = np.random.default_rng(0), 4000
    x = np.eye(3, dtype=np.float32)[rng.integers(0, 3, rows)] * 2
    y = np.where(rng.uniform(size=rows) < 0.7, x.argmax(1), (x.argmax(1) + 1) % 3)
    losses = np.asarray(jsoftmax.cross_entropy(x, y))
    if not grouped:
        start = evaluation.empty(replicates=1000, bins=None)
        state = evaluation.update(start, x[:2000], y[:2000], key=jax.random.key(1))
        state = evaluation.update(state, x[2000:], y[2000:], key=jax.random.key(2))
        low, high = evaluation.confidence_intervals(state).nll
        mean = evaluation.compute(state).nll
        np.testing.assert_allclose((high - low) / (2 * 1.96), losses.std() / np.sqrt(rows), rtol=0.1)
        assert low < mean < high
        narrow = evaluation.confidence_intervals(state, level=0.5).nll
        assert low < narrow[0] < mean < narrow[1] < high
        return

    # Ten copies of each row as one group carry no more than one copy. Batches may cut through a group.
    tens, group = np.repeat(np.arange(400), 10), np.repeat(np.arange(400), 10)
    state = evaluation.empty(replicates=1000, bins=None, num_groups=400)
    for part in (slice(0, 1995), slice(1995, 4000)):
        state = evaluation.update(state, x[tens[part]], y[tens[part]], groups=group[part], key=KEY)
    low, high = evaluation.confidence_intervals(state).nll
    np.testing.assert_allclose((high - low) / (2 * 1.96), losses[:400].std() / np.sqrt(400), rtol=0.1)


@pytest.mark.long
def test_replicates_see_the_rows_that_count():
    x, y = (a[:96].copy() for a in digits())
    w = (np.arange(96) % 3 > 0).astype(np.float32)
    hidden = np.where(w[:, None] == 0, NAN, x)
    start = evaluation.empty(replicates=20)
    found, want = (evaluation.update(start, a, y, weights=w, key=KEY).replicates for a in (hidden, x))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(one, other)
    intervals = evaluation.confidence_intervals(evaluation.update(start, x, y, weights=w, key=KEY))
    assert all(np.isfinite(ends).all() for ends in (intervals.nll, intervals.brier, intervals.accuracy))
    assert intervals.calibration_error is intervals.reliability is None
    dead = np.where(np.arange(10) == y[:, None], np.where(np.arange(96)[:, None] == 5, -INF, x), x)
    found = evaluation.confidence_intervals(evaluation.update(start, dead, y, key=KEY))
    assert np.isfinite(found.nll[0])
    assert found.nll[1] == INF
    bad = evaluation.update(start, np.where(np.arange(96)[:, None] == 5, NAN, x), y, key=KEY)
    assert np.isnan(evaluation.confidence_intervals(bad).nll).all()


@pytest.mark.long
@pytest.mark.parametrize("everything", sampling.sample([False, True], False), ids=["basic", "everything"])
def test_target_probabilities(everything):
    x, y = (a[:64] for a in digits())
    rng = np.random.default_rng(0)
    t = rng.dirichlet(np.full(10, 0.3), 64).astype(np.float32)
    p = np.asarray(jsoftmax.softmax(np.float64(x)))
    found = evaluation.compute(evaluation.update(evaluation.empty(10), x, t))
    np.testing.assert_allclose(found.nll, -np.sum(t * np.log(p)) / 64, rtol=1e-6)
    np.testing.assert_allclose(found.brier, np.sum((p - t) ** 2) / 64, rtol=1e-6)
    assert found.accuracy == np.mean(p.argmax(1) == t.argmax(1))
    np.testing.assert_array_equal(found.per_class_weight, np.bincount(t.argmax(1), minlength=10))
    hot = np.eye(10, dtype=np.float32)[y]
    start = ALL_BUT_DRAWS if everything else evaluation.empty(10)
    one, other = (evaluation.compute(evaluation.update(start, x, labels)) for labels in (hot, y))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-12)
    w = np.float32(np.arange(64) % 2)
    hidden = np.where(w[:, None] == 0, NAN, t)
    found = evaluation.compute(evaluation.update(evaluation.empty(), x, hidden, weights=w))
    np.testing.assert_allclose(found.nll, -np.sum((t * np.log(p))[1::2]) / 32, rtol=1e-6)


ALL_BUT_DRAWS = evaluation.empty(10, confusion=True, class_bins=CLASS_BINS, selective=True)


@pytest.mark.long
def test_probabilities_are_logits_after_their_logarithm():
    x, y = (a[:64] for a in digits())
    p = np.asarray(jsoftmax.softmax(x))
    of_logits = evaluation.compute(evaluation.update(ALL_BUT_DRAWS, x, y))
    of_p = evaluation.compute(evaluation.update(ALL_BUT_DRAWS, p, y, probabilities=True))
    for a, b in zip(jax.tree.leaves(of_logits), jax.tree.leaves(of_p), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    rows = jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    for bad in ([0.5, 0.6, 0.0], [-0.5, 1.5, 0.0], [NAN, 0.5, 0.5], [0.2, 0.2, 0.2]):
        for row, is_bad in ((rows[0], False), (jnp.array(bad), True)):
            p = jnp.stack([row, rows[1]])
            found = evaluation.compute(
                evaluation.update(evaluation.empty(), p, jnp.array([0, 0]), probabilities=True)
            )
            assert np.isnan(found.nll) == np.isnan(found.accuracy) == is_bad
    found = evaluation.compute(
        evaluation.update(evaluation.empty(), rows, jnp.array([2, 0]), probabilities=True)
    )
    assert found.nll == INF
    hidden = jnp.array([[0.3, 0.1, NAN], [0.6, 0.2, 7.0]])
    given = {"where": jnp.array([True, True, False]), "probabilities": True}
    found = evaluation.compute(evaluation.update(evaluation.empty(), hidden, jnp.array([0, 0]), **given))
    np.testing.assert_allclose(found.nll, -np.log(0.75), rtol=1e-6)


def test_a_row_without_a_class_is_in_no_column():
    x = jnp.array([[-INF, -INF], [0.0, 1.0], [2.0, 1.0]])
    found = evaluation.compute(
        evaluation.update(evaluation.empty(2, confusion=True), x, jnp.array([0, 1, 1]))
    )
    np.testing.assert_array_equal(found.confusion, [[0, 0], [1, 1]])
    np.testing.assert_array_equal(found.per_class_weight, [1, 2])
    np.testing.assert_array_equal(found.per_class_precision, [0, 1])


@pytest.mark.long
def test_a_group_that_does_not_exist_leaves_no_plausible_number():
    x, y = (a[:8] for a in digits())
    start = evaluation.empty(num_groups=3)
    for group in (-1, 3, 2**40):
        groups = np.where(np.arange(8) == 5, group, 1)
        found = evaluation.compute(evaluation.update(start, x, y, groups=groups))
        assert np.isnan(found.nll)
        found = evaluation.compute(
            evaluation.update(start, x, y, groups=groups, weights=np.float32(np.arange(8) != 5))
        )
        np.testing.assert_array_equal(found.groups.weight, [0, 7, 0])


@pytest.mark.long
def test_row_statistics_measure_classes_groups_and_risk():
    x, y = digits()
    groups, p = groups_of(len(y)), np.asarray(jsoftmax.softmax(x))
    start = evaluation.empty(
        10, top_k=1, bins=None, confusion=True, selective=True, num_groups=GROUPS, replicates=20
    )
    want = evaluation.update(start, x, y, groups=groups, key=KEY)
    found = evaluation.update_from_statistics(
        start, jsoftmax.row_statistics(x, y), y, groups=groups, key=KEY, confidence=p.max(1)
    )
    wanted = evaluation.compute(want)
    for a, b in zip(jax.tree.leaves(evaluation.compute(found)), jax.tree.leaves(wanted), strict=True):
        if a.shape != wanted.risk_coverage.risk.shape:  # an odd confidence may fall into the next cell
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves(found.replicates), jax.tree.leaves(want.replicates), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.long
def test_batches_of_many_lengths_share_programs():
    x, y = digits()
    compiled = Counter()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **names: compiled.update([(event.rsplit("/", 1)[-1], names.get("fun_name"))])
    )
    start = evaluation.empty(10, top_k=3, bins=4)
    w, live = np.linspace(0.5, 1.5, len(y), dtype=np.float32), np.arange(10) > 1
    given = {"where": live, "temperature": 1.5, "ignore_index": 3}
    state, at, lengths = start, 0, [1, 5, 16, 20, 19, 16, 40, 33, 17, 7]
    for rows in lengths:
        part = slice(at, at + rows)
        state, at = evaluation.update(state, x[part], y[part], weights=w[part], **given), at + rows
    want = update(start, x[:at], y[:at], weights=w[:at], **given)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-4)
    # 16, 20 and 40 rows
    assert compiled["backend_compile_duration", "jit(_update)"] == 3


def test_a_filled_batch_stays_on_its_device():
    device = jax.devices()[-1]
    x = jax.device_put(np.eye(3, dtype=np.float32), device)
    state = evaluation.update(evaluation.empty(), x, np.arange(3))
    assert state.nll.high.devices() == {device}


@pytest.mark.long
@pytest.mark.share(6)
@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 5)])
@pytest.mark.parametrize("names", [["where"], ["temperature"], ["where", "temperature"]], ids="+".join)
def test_a_filled_batch_has_any_shape(names, shape):
    x, y = digits()
    rows = np.prod(shape)
    x, y = x[:rows].reshape(*shape, 10), y[:rows].reshape(shape)
    where = np.broadcast_to(np.arange(shape[-1])[:, None] > 0, (*shape, 1))
    scale = np.linspace(1, 2, rows, dtype=np.float32).reshape(shape)
    given = {"where": where, "temperature": scale}
    if len(names) == 2:
        given = {"where": where[:1], "temperature": scale[..., None]}
    given = {name: given[name] for name in names}
    got, want = (to(evaluation.empty(10), x, y, **given) for to in (evaluation.update, update))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-5)


@pytest.mark.long
def test_a_state_and_its_file(tmp_path):
    x, y = (a[:40] for a in digits())
    state = evaluation.update(ALL, x, y, groups=groups_of(40), key=KEY)
    evaluation.save(tmp_path / "state", state)
    evaluation.load(tmp_path / "state")
    for kept in (state, evaluation.empty(top_k=1, bins=None)):
        file = io.BytesIO()
        evaluation.save(file, kept)
        file.seek(0)
        restored = evaluation.load(file)
        assert jax.tree.structure(restored) == jax.tree.structure(kept)
        for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(kept), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        evaluation.merge(restored, kept)


def test_a_file_that_is_no_state(tmp_path):
    path = tmp_path / "state.npz"
    evaluation.save(path, evaluation.empty(3))
    with np.load(path) as file:
        arrays = dict(file)
    for change, message in (
        ({"nll.high": np.zeros(2, np.float32)}, r"the array nll\.high is not float32\[\]"),
        ({"more": np.zeros(2)}, "differ in the array more"),
        ({"measures": np.array("{}")}, "does not say what it measures"),
        (
            {"measures": np.char.replace(arrays["measures"], "float32", "float64")},
            "the sums of the file are float64, which is not enabled; write jax",
        ),
        ({"measures": np.array('{"num_classes": 4}')}, "does not say what it measures"),
    ):
        np.savez(path, **(arrays | change))
        with pytest.raises(ValueError, match=rf"^jsoftmax\.evaluation\.load(?s:.*){message}"):
            evaluation.load(path)
    np.savez(path, np.zeros(3))
    with pytest.raises(ValueError, match="does not say what it measures"):
        evaluation.load(path)
    one_array = io.BytesIO()
    np.save(one_array, np.zeros(3))
    evaluation.save(path, evaluation.empty(3))
    whole = path.read_bytes()
    changed = whole.replace(whole[80:100], bytes(20), 1)
    for content in (b"loss 0.3", b"", one_array.getvalue(), whole[: len(whole) // 2], changed):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^jsoftmax\.evaluation\.load(?s:.*)not an \.npz file"):
            evaluation.load(path)
    with pytest.raises(FileNotFoundError):
        evaluation.load(tmp_path / "none.npz")


@pytest.mark.long
def test_metrics_are_read_by_people_and_by_programs():
    x, y = (a[:40] for a in digits())
    found = evaluation.compute(evaluation.update(ALL, x, y, groups=groups_of(40), key=KEY))
    lines = str(found).splitlines()
    assert lines[0].split() == ["rows,", "by", "weight", "40"]
    assert f"{found.accuracy:.4f}" in str(found)
    assert len({len(line) for line in lines}) == 1
    assert all(line.split()[-1] in found._repr_html_() for line in lines)
    held = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert held["accuracy"] == float(found.accuracy)
    assert held["groups"]["nll"] == np.float64(found.groups.nll).tolist()
    assert np.shape(held["confusion"]) == (10, 10)
    assert "bits_per_byte" not in held
    nothing = evaluation.compute(evaluation.empty()).as_dict()
    assert nothing["nll"] is None
    assert nothing["weight"] == 0
    assert evaluation.compute(evaluation.empty())._replace(nll=jnp.inf).as_dict()["nll"] == "inf"
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), found)
    assert str(stacked).startswith("Metrics(")
    assert stacked._repr_html_() is None
    assert str(jax.eval_shape(evaluation.compute, evaluation.empty())).startswith("Metrics(")
    for weight in (NAN, INF):
        assert str(found._replace(weight=weight)).splitlines()[0].split()[-1] == str(weight)


@pytest.mark.long
def test_the_temperature_of_batches():
    x, y = digits()
    w = np.random.default_rng(0).uniform(0, 2, len(y)).astype(np.float32)
    cut = list(range(0, len(y), 350))
    for scale in (np.float32(1), np.float32(2.0**-60)):
        logits = x * scale
        want = evaluation.fit_temperature(logits, y)
        pairs = [(logits[a : a + 350], y[a : a + 350]) for a in cut]
        np.testing.assert_allclose(evaluation.fit_temperature_in_batches(pairs), want, rtol=1e-6)
    want = evaluation.fit_temperature(x, y, weights=w, ignore_index=3, where=np.arange(10) != 8)
    triples = functools.partial(iter, [(x[a : a + 350], y[a : a + 350], w[a : a + 350]) for a in cut])
    found = evaluation.fit_temperature_in_batches(triples, ignore_index=3, where=np.arange(10) != 8)
    np.testing.assert_allclose(found, want, rtol=1e-6)
    limits = jnp.finfo(jnp.float32)
    for labels, end in ((x.argmax(1), limits.tiny), (x.argmin(1), limits.max)):
        assert (
            evaluation.fit_temperature_in_batches([(x[:700], labels[:700]), (x[700:], labels[700:])]) == end
        )
    assert (
        evaluation.fit_temperature_in_batches([]) == evaluation.fit_temperature_in_batches([(0 * x, y)]) == 1
    )
    assert np.isnan(evaluation.fit_temperature_in_batches([(x, y), (x, np.where(y == 3, -1, y))]))
    once = iter([(x[:700], y[:700])])
    for batches, kind, message in (
        (iter(pairs), TypeError, "can be read only once"),
        (lambda: once, ValueError, "gave no batch the second time"),
        ([x], TypeError, r"yield tuples \(logits, labels\)"),
        (5, TypeError, "batches gave 5; give a list"),
        (lambda: None, TypeError, "batches gave None; give a list"),
    ):
        with pytest.raises(kind, match=rf"^jsoftmax\.evaluation\.fit_temperature_in_batches(?s:.*){message}"):
            evaluation.fit_temperature_in_batches(batches)


X, Y = jnp.eye(3), jnp.arange(3)
ERRORS = {
    "confusion of no classes": (
        lambda: evaluation.empty(confusion=True),
        ValueError,
        r"empty\(.*confusion needs the number of classes; give num_classes= too",
    ),
    "a number as a choice": (
        lambda: evaluation.empty(selective=2),
        TypeError,
        r"empty\(.*selective is 2; write True or False",
    ),
    "probabilities as probabilities": (
        lambda: evaluation.update(evaluation.empty(), X, Y, probabilities=X),
        TypeError,
        r"update\(.*probabilities is .*; write True or False",
    ),
    "groups of a state without": (
        lambda: evaluation.update(evaluation.empty(), X, Y, groups=Y),
        ValueError,
        r"update\(.*the state has no groups; begin with evaluation\.empty\(num_groups=\.\.\.\)",
    ),
    "a state with groups, without": (
        lambda: evaluation.update(evaluation.empty(num_groups=2), X, Y),
        ValueError,
        r"update\(.*the state has groups; give groups=",
    ),
    "float groups": (
        lambda: evaluation.update(evaluation.empty(num_groups=2), X, Y, groups=X[0]),
        TypeError,
        r"groups have dtype float32; give each row the number of its group",
    ),
    "groups of another shape": (
        lambda: evaluation.update(evaluation.empty(num_groups=2), X, Y, groups=Y[:2]),
        ValueError,
        r"groups of shape \(2,\) for rows of shape \(3,\); give groups the shape \(3,\)",
    ),
    "replicates without a key": (
        lambda: evaluation.update(evaluation.empty(replicates=2), X, Y),
        ValueError,
        r"update\(.*the state has replicates; give key=",
    ),
    "a key without replicates": (
        lambda: evaluation.update(evaluation.empty(), X, Y, key=KEY),
        ValueError,
        r"update\(.*the state has no replicates; begin with evaluation\.empty\(replicates=\.\.\.\)",
    ),
    "a seed as a key": (
        lambda: evaluation.update(evaluation.empty(replicates=2), X, Y, key=3),
        TypeError,
        r"write key=jax\.random\.key\(0\)",
    ),
    "class bins of statistics": (
        lambda: evaluation.update_from_statistics(
            evaluation.empty(3, top_k=1, bins=None, class_bins=2), jsoftmax.row_statistics(X, Y), Y
        ),
        ValueError,
        r"no probabilities of all classes.*begin without class_bins",
    ),
    "risk of statistics": (
        lambda: evaluation.update_from_statistics(
            evaluation.empty(top_k=1, bins=None, selective=True), jsoftmax.row_statistics(X, Y), Y
        ),
        ValueError,
        r"no confidence, and the state measures risk.*give confidence=",
    ),
    "intervals of no replicates": (
        lambda: evaluation.confidence_intervals(evaluation.empty()),
        ValueError,
        r"confidence_intervals\(.*the state has no replicates; begin with evaluation\.empty\(replicates=",
    ),
    "a stack of states": (
        lambda: evaluation.compute(jax.tree.map(lambda a: jnp.stack([a, a]), evaluation.empty())),
        ValueError,
        r"compute\(.*state is a stack of states, of shape \(2,\); map the call with jax\.vmap",
    ),
    "a traced batch": (
        lambda: jax.jit(lambda x: evaluation.fit_temperature_in_batches([(x, Y)]))(X),
        TypeError,
        r"the values of a batch are not known; call it outside jax\.jit",
    ),
    "a level in percent": (
        lambda: evaluation.confidence_intervals(evaluation.empty(replicates=2), level=95),
        ValueError,
        r"level is 95; write a number between 0 and 1",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_call_is_refused_in_words(call, kind, message):
    with pytest.raises(kind, match=rf"^jsoftmax\.evaluation\.(?s:.*){message}"):
        call()
