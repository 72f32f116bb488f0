"""Functions of segments beside rows, a formula in float64, and jraph's.

`cases.FUNCTIONS` has them on segments of one length, so that every law of rows is tested on them. Here the
segments have different lengths.
"""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import curvature
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jsoftmax
from jsoftmax.rows import _segments

EPS = float(np.finfo(np.float32).eps)
INF, NAN = np.inf, np.nan
MAPS = jsoftmax.segment_softmax, jsoftmax.segment_log_softmax
COUNT = 9  # the last three segments are empty; the first has most of the entries


def entries(shape=(60, 2), regime="unit", seed=0, is_sorted=False):
    """Logits, ids from 0 to 5, and cotangents, in float64; some entries are in no segment."""
    rng = np.random.default_rng(seed)
    ids = (6 * rng.random(shape[0]) ** 3).astype(np.int32)
    ids[:2] = -1, COUNT
    x = {"unit": 1, "spread": 30}.get(regime, 0) * rng.normal(size=shape) + (1e4 if regime == "offset" else 0)
    if regime == "offset":
        x += np.round(rng.normal(size=shape), 2)
    ids = np.sort(ids) if is_sorted else ids
    return np.float32(x).astype(np.float64), ids, rng.normal(size=shape)


def plain(x, ids, count, temperature=1.0, where=True):
    """The log-sum-exp of each segment, log-probabilities and probabilities, as a dense array of segments."""
    inside = (ids[:, None] == jnp.arange(count, dtype=jnp.int32)[None]).reshape(
        len(ids), count, *(1,) * (x.ndim - 1)
    )
    z = x[:, None] / jnp.expand_dims(jnp.asarray(temperature), 0)
    z = jnp.where(inside & jnp.expand_dims(jnp.broadcast_to(where, x.shape), 1), z, -INF)
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(z, 0, keepdims=True), jnp.finfo(x.dtype).min))
    total = jnp.sum(jnp.exp(z - top), 0, keepdims=True)
    is_empty = total == 0
    lse = jnp.where(is_empty, -INF, top + jnp.log(jnp.where(is_empty, 1, total)))
    log_p = jnp.max(jnp.where(inside, z - jnp.where(is_empty, 0, lse), -INF), 1)
    return lse[0], log_p, jnp.exp(log_p)


def finite(a):
    return jnp.where(jnp.isfinite(a), a, 0)


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("is_sorted", [False, True], ids=["any order", "sorted"])
def test_values_and_derivatives_of_segments_of_different_lengths(is_sorted, x64):
    """Reverse, forward, and second derivatives; in the temperature of each segment too."""
    rng = np.random.default_rng(1)
    where = jnp.asarray(rng.random((60, 2)) < 0.8).at[:, 1].set(True)
    temperature, w = jnp.asarray(rng.uniform(0.5, 2, (COUNT, 1))), jnp.asarray(rng.normal(size=(COUNT, 2)))
    _, ids, g = map(jnp.asarray, entries(is_sorted=is_sorted))

    def of_plain(x, temperature):
        lse, log_p, p = plain(x, ids, COUNT, temperature, where)
        return jnp.sum(w * finite(lse)) + jnp.sum(g * (finite(log_p) + p))

    def ours(x, temperature):
        options = {"temperature": temperature, "where": where, "indices_are_sorted": is_sorted}
        lse = jsoftmax.segment_logsumexp(x, ids, COUNT, **options)
        p, log_p = (f(x, ids, COUNT, **options) for f in MAPS)
        return jnp.sum(w * finite(lse)) + jnp.sum(g * (finite(log_p) + p))

    def derivatives(f, x, temperature):
        pushed = jax.jvp(jax.grad(f), (x, temperature), (jnp.cos(x), temperature))[1]
        return jax.value_and_grad(f, (0, 1))(x, temperature), curvature(f, (x, temperature)), pushed

    of_each = [jax.jit(partial(derivatives, f)) for f in (of_plain, ours)]
    forward = jax.jit(jax.jacfwd(ours, 1))
    for regime in ("unit", "spread", "flat", "offset"):
        x = jnp.asarray(entries(regime=regime, is_sorted=is_sorted)[0])
        want, got = (f(x, temperature) for f in of_each)
        rtol = 1e-11 if regime != "offset" else 1e-9
        jax.tree.map(lambda a, b, r=rtol: np.testing.assert_allclose(a, b, r, r * abs(b).max()), got, want)
        with jsoftmax.forward_mode():
            np.testing.assert_allclose(forward(x, temperature), got[0][1][1], 1e-9, 1e-9)


@pytest.mark.share(2)
@pytest.mark.parametrize("is_sorted", [False, True], ids=["any order", "sorted"])
def test_segments_are_rows(is_sorted):
    """Each segment alone is a row, whatever else the arrays contain, to the last few digits."""
    x, ids, _ = entries((300,), "spread", is_sorted=is_sorted)
    x = np.float32(x)
    options = {"indices_are_sorted": is_sorted}
    lse, log_p, p = (np.asarray(f(x, ids, **options)) for f in (jsoftmax.segment_logsumexp, *reversed(MAPS)))
    for s in range(6):
        row = x[ids == s]
        np.testing.assert_allclose(lse[s], jsoftmax.logsumexp(row), rtol=4 * EPS)
        np.testing.assert_allclose(log_p[ids == s], jsoftmax.log_softmax(row), rtol=40 * EPS)
        np.testing.assert_allclose(p[ids == s], jsoftmax.softmax(row), rtol=8 * EPS)
    np.testing.assert_array_equal(p[ids < 0], 0)
    np.testing.assert_array_equal(log_p[ids < 0], -INF)


def of_jraph(x, ids, count):
    terms = jnp.exp(x - jax.ops.segment_max(x, ids, count)[ids])
    return terms / jax.ops.segment_sum(terms, ids, count)[ids]


@pytest.mark.share(2)
@pytest.mark.parametrize("is_sorted", [False, True], ids=["any order", "sorted"])
def test_many_entries_lose_no_digits(is_sorted):
    """Sums of 100 000 terms to 4 ulp, where a plain sum loses more, also in the gradient."""
    rng = np.random.default_rng(0)
    n = 100_000
    x = np.float32(rng.normal(size=n))
    ids = np.where(np.arange(n) % 10 < 9, 0, rng.integers(0, 1000, n)).astype(np.int32)
    ids = np.sort(ids) if is_sorted else ids
    v = np.float32(rng.random(n))
    u = np.float64(x)
    e = np.exp(u)
    of_segment = {"p": e, "pv": e * v}
    sums = {name: np.bincount(ids, a)[ids] for name, a in of_segment.items()}
    p = e / sums["p"]
    mean = sums["pv"] / sums["p"]

    @jax.jit
    def ours(x):
        def f(x):
            return jsoftmax.segment_softmax(x, ids, 1000, indices_are_sorted=is_sorted)

        out, pull = jax.vjp(f, x)
        return out, pull(v)[0]

    got, gradient = map(np.float64, ours(x))
    lost = np.abs(np.bincount(ids, got) - 1)[np.unique(ids)] / EPS
    assert lost.max() < 4
    assert np.abs(np.bincount(ids, np.float64(of_jraph(x, ids, 1000))) - 1).max() / EPS > 12
    want = p * (v - mean)
    assert np.all(np.abs(gradient - want) <= EPS * (12 + np.abs(u)) * p * (v + mean))


def test_equal_entries_in_16_bits_sum_to_one():
    """jraph adds them in bfloat16, in which 256 + 1 is 256."""
    x, ids = jnp.zeros(100_000, jnp.bfloat16), jnp.zeros(100_000, jnp.int32)
    p = jsoftmax.segment_softmax(x, ids, 1)
    assert p.dtype == jnp.bfloat16
    assert abs(np.float64(p).sum() - 1) < 2.0**-8
    assert np.float64(of_jraph(x, ids, 1)).sum() > 300
    assert np.float64(jsoftmax.segment_logsumexp(x, ids, 1))[0] == np.float64(jnp.bfloat16(np.log(1e5)))


@pytest.mark.long
@pytest.mark.share(4)
@pytest.mark.parametrize("stride", [1, 16, 987, 1597])
def test_buckets_are_small_whatever_the_order(stride):
    """Entries of a segment at every distance, Fibonacci's numbers too, which the golden ratio knows."""
    n = 50_000
    ids = jnp.arange(n, dtype=jnp.int32) % stride
    for kind, given in ((_segments.Kind(stride, False), ids), (_segments.Kind(stride, True), jnp.sort(ids))):
        segments = jax.jit(_segments.grouped, static_argnums=2)(given, jnp.ones(n, bool), kind)
        used = [np.bincount(parent).max() for parent in segments.parents]
        assert max(used) <= (_segments.BUCKET + 4 if kind.is_sorted else 8 * _segments.BUCKET)
        np.testing.assert_array_equal(segments.sum(kind, jnp.ones(n)), np.bincount(given))
        of_all = jax.vjp(segments.spread, jnp.arange(stride, dtype=jnp.float32))
        np.testing.assert_array_equal(of_all[0], given)
        np.testing.assert_array_equal(of_all[1](jnp.ones(n))[0], np.bincount(given))


def test_corners():
    """Dead segments, dead entries, what a mask hides, and overflows, which stay in their segment."""
    x = jnp.array([1.0, -INF, -INF, -INF, NAN, 2.0, INF, 0.0, 3.0, NAN])
    ids = jnp.array([0, 0, 1, 1, 2, 2, 3, 3, 5, 7])
    where = jnp.ones(10, bool)

    def of(x, where):
        found = [f(x, ids, 6, where=where) for f in (*MAPS, jsoftmax.segment_logsumexp)]
        total = lambda f: lambda x: jnp.sum(finite(f(x, ids, 6, where=where)))  # noqa: E731
        return found, [jax.grad(total(f))(x) for f in (*MAPS, jsoftmax.segment_logsumexp)]

    (p, log_p, lse), gradients = jax.jit(of)(x, where)
    np.testing.assert_array_equal(p, [1, 0, 0, 0, NAN, NAN, NAN, NAN, 1, 0])
    np.testing.assert_array_equal(log_p, [0, -INF, -INF, -INF, NAN, NAN, NAN, NAN, 0, -INF])
    np.testing.assert_array_equal(lse, [1, -INF, NAN, INF, -INF, 3])
    for gradient in gradients:
        live = np.asarray(gradient)[[0, 2, 3, 8, 9]]
        assert np.isfinite(live).all()
        np.testing.assert_array_equal(live[[1, 2, 4]], 0)
    with jax.debug_nans(True):
        (p, log_p, lse), gradients = jax.jit(of)(x, where.at[jnp.array([4, 6])].set(False))
    np.testing.assert_array_equal(p, [1, 0, 0, 0, 0, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(lse, [1, -INF, 2, 0, -INF, 3])
    for gradient in gradients:
        np.testing.assert_array_equal(np.asarray(gradient)[[2, 3, 4, 6, 9]], 0)


def test_a_confident_entry_keeps_its_digits():
    x, ids = jnp.array([100.0, 12.0, 5.0, 5.0, 85.0]), jnp.array([0, 0, 1, 1, 0])
    loss = lambda x: jsoftmax.segment_cross_entropy(x, jnp.array([0, 2]), ids, 2)[0]  # noqa: E731
    log_p, (loss, gradient) = jax.jit(
        lambda x: (jsoftmax.segment_log_softmax(x, ids, 2), jax.value_and_grad(loss)(x))
    )(x)
    want = np.log1p(np.exp(-15.0) + np.exp(-88.0))
    np.testing.assert_allclose([-log_p[0], loss], want, rtol=1e-6)
    np.testing.assert_allclose(gradient[0], np.expm1(-want), rtol=1e-6)
    np.testing.assert_allclose(log_p[2:4], -np.log(2), rtol=1e-6)
    deep = jnp.zeros(2000).at[1:].set(-90.0)  # each exponential is below the normal numbers, their sum is not
    for labels in (jnp.array([0]), jnp.zeros(2000).at[0].set(1)):
        loss = jsoftmax.segment_cross_entropy(deep, labels, jnp.zeros(2000, int))
        np.testing.assert_allclose(loss[0], 1999 * np.exp(-90.0), rtol=1e-5)


@pytest.mark.long
def test_losses_of_lists():
    """As `cross_entropy` of each list; positions, ignored ones, bad ones, and target probabilities."""
    x = jnp.array([2.0, 1.0, 0.1, 30.0, 0.0, 4.0, 5.0])
    ids = jnp.array([0, 1, 0, 1, 2, 0, -1])
    lists = [jnp.array(i) for i in ([0, 2, 5], [1, 3], [4])]
    rows = [x[i] for i in lists]

    @partial(jax.jit, static_argnames=("reduction", "ignore_index"))
    def loss(x, labels, **options):
        return jsoftmax.segment_cross_entropy(x, labels, ids, 4, **options)

    alone = [jsoftmax.cross_entropy(row, y) for row, y in zip(rows, (1, 0, 0), strict=True)]
    good = jnp.array([2, 1, 4, 0])
    np.testing.assert_allclose(loss(x, good), [*alone, 0], rtol=1e-6)
    np.testing.assert_allclose(loss(x, good, reduction="mean"), sum(alone) / 3, rtol=1e-6)
    ignored, gradient = jax.value_and_grad(loss)(x, good.at[1].set(-7), ignore_index=-7, reduction="mean")
    np.testing.assert_allclose(ignored, (alone[0] + alone[2]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(gradient[jnp.array([1, 3, 6])], 0)
    # In another list, out of range, without a list; a list without entries has no label to be bad.
    all_bad = jnp.tile(good, (4, 1))
    all_bad = all_bad.at[:, 1].set(jnp.array([0, -1, 7, 6])).at[:, 3].set(jnp.array([0, -1, 7, 6]))
    of_bad = jax.vmap(lambda y: (loss(x, y), jax.grad(lambda x: jnp.sum(loss(x, y)))(x)))
    losses, gradients = jax.jit(of_bad)(all_bad)
    np.testing.assert_array_equal(np.isnan(losses), [[False, True, False, False]] * 4)
    np.testing.assert_array_equal(np.isnan(gradients), np.tile(ids == 1, (4, 1)))
    t = jnp.array([0.5, 0.25, 0.5, 0.75, 1.0, 0.0, 9.0])
    losses, pull = jax.vjp(loss, x, t)
    of_rows = [jax.vjp(jsoftmax.cross_entropy, x[i], t[i]) for i in lists]
    np.testing.assert_allclose(losses, [*(value for value, _ in of_rows), 0], rtol=1e-6)
    for kind, got in enumerate(pull(jnp.ones(4))):
        for i, (_, of_row) in zip(lists, of_rows, strict=True):
            np.testing.assert_allclose(got[i], of_row(jnp.float32(1))[kind], rtol=1e-6, atol=1e-7)
        assert got[6] == 0
    # A dead target costs +inf; the gradient of the others is p. A list that is masked whole does not count.
    masked, gradient = jax.value_and_grad(lambda x: loss(x, good, where=jnp.arange(7) != 2)[0])(x)
    assert masked == INF
    p = jax.nn.softmax(x[jnp.array([0, 5])])
    np.testing.assert_allclose(gradient[lists[0]], [p[0], 0, p[1]], rtol=1e-6)
    whole = loss(x, good, where=ids != 1, reduction="mean")
    np.testing.assert_allclose(whole, (alone[0] + alone[2]) / 2, rtol=1e-6)
    error, _ = checkify.checkify(loss)(x, good.at[1].set(7))
    assert "id 7 of row 1" in error.get()


@pytest.mark.long
def test_weights_of_segments_are_weights_of_rows():
    """Values and gradients of `cross_entropy`; a weight of 0 hides NaN, bad labels and bad temperatures."""
    rng = np.random.default_rng(0)
    rows, classes = 6, 4
    x, t = (jnp.asarray(rng.normal(size=(rows, classes)), jnp.float32) for _ in range(2))
    x, t = x.at[3, 1].set(NAN).at[4, 2].set(-INF), jax.nn.softmax(t).at[3, 0].set(NAN)
    y, ignored = jnp.asarray([1, 0, 2, classes, -1, 3]), 2
    w = jnp.asarray([2.0, 0, 0.5, 0, 0, -1])
    temperature = jnp.asarray([1, 2, 1, NAN, 1, 0.5])
    ids, flat = jnp.tile(jnp.arange(rows), classes), lambda a: a.T.ravel()
    of_row = jnp.where((y >= 0) & (y < classes), y * rows + jnp.arange(rows), y * 100)

    def of_segments(x, t, w, temperature):
        given = {"weights": w, "temperature": temperature}
        loss = partial(jsoftmax.segment_cross_entropy, flat(x), segment_ids=ids, num_segments=rows, **given)
        mean = loss(labels=of_row, ignore_index=ignored * (rows + 1), reduction="mean")
        return mean, loss(labels=flat(t))

    def of_rows(x, t, w, temperature):
        loss = partial(jsoftmax.cross_entropy, x, weights=w, temperature=temperature)
        mean = loss(labels=y, ignore_index=ignored).sum() / jnp.where(y == ignored, 0, w).sum()
        return mean, loss(labels=t)

    @jax.jit
    def both(*given):
        def total(loss, *given):
            return sum(jnp.sum(jnp.sin(found)) for found in jax.tree.leaves(loss(*given)))

        return [jax.value_and_grad(partial(total, loss), range(4))(*given) for loss in (of_segments, of_rows)]

    (value, gradients), want = both(x, t, w, temperature)
    np.testing.assert_allclose(value, want[0], rtol=1e-6)
    for got, wanted in zip(gradients, want[1], strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.share(3)
@pytest.mark.parametrize("function", [*MAPS, jsoftmax.segment_logsumexp], ids=lambda f: f.__name__)
def test_transformations(function):
    """jit, vmap over each argument, the largest id, export, and zero sizes."""
    x, ids, _ = entries((40, 3))
    x, ids = jnp.asarray(x, jnp.float32), jnp.asarray(ids)
    want = function(x, ids, COUNT)
    close = partial(np.testing.assert_allclose, rtol=4 * EPS)
    close(jax.jit(function, static_argnums=2)(x, ids, COUNT), want)
    close(jax.jit(jax.vmap(lambda x: function(x, ids, COUNT), 1, 1))(x), want)
    of_both = jax.jit(jax.vmap(lambda x, ids: function(x, ids, COUNT)))
    both = of_both(jnp.stack([x, x]), jnp.stack([ids, ids]))
    close(both[1], want)
    wide = np.asarray(ids, np.int64)
    close(function(x, np.where(wide < 0, 2**40, wide), COUNT), want)
    of_known = function(x, np.where(wide < 6, wide, -1))
    close(of_known, want[: len(of_known)])
    n = jax.export.symbolic_shape("n")
    any_number = [jax.ShapeDtypeStruct((*n, *a.shape[1:]), a.dtype) for a in (x, ids)]
    exported = jax.export.export(jax.jit(lambda x, ids: function(x, ids, COUNT)))(*any_number)
    close(exported.call(x, ids), want)
    for shape, count in (((0, 3), 2), ((5, 3), 0), ((5, 0), 2)):
        nothing = function(jnp.zeros(shape), jnp.zeros(shape[0], int), count)
        assert nothing.shape == ((count, *shape[1:]) if function == jsoftmax.segment_logsumexp else shape)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_kept_for_the_derivative(dtype):
    """One array of the size of the logits, the ids and the ways to their segments, and a few numbers."""
    x, ids = jnp.zeros((500, 4), dtype), jnp.zeros(500, jnp.int32)

    def loss(x, ids, count):
        return jsoftmax.segment_cross_entropy(x, jnp.zeros((count, 4), int), ids, count)

    for function in (*MAPS, jsoftmax.segment_logsumexp, loss):
        pull = jax.eval_shape(lambda x, ids, f=function: jax.vjp(lambda x: f(x, ids, 7), x)[1], x, ids)
        kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.size > 500]
        assert [leaf.dtype for leaf in kept if leaf.dtype != bool] == [dtype]


@jax.jit
def maps_and_losses(x, ids, t, labels, temperature):
    """Each function, and the gradients of a scalar of all."""

    def f(x, t, temperature):
        loss = partial(jsoftmax.segment_cross_entropy, temperature=temperature)
        losses = loss(x, labels, ids, COUNT), loss(x, t, ids, COUNT, reduction="mean")
        return [f(x, ids, COUNT) for f in (*MAPS, jsoftmax.segment_logsumexp)], losses

    found, pull = jax.vjp(f, x, t, temperature)
    return found, pull(jax.tree.map(lambda a: jnp.cos(finite(a)), found))


@functools.cache
def on_one_device():
    x, ids, g = entries((64, 4))
    labels = jnp.stack([jnp.argmax(ids == s) for s in range(COUNT)])[:, None] * jnp.ones((1, 4), int)
    given = jnp.float32(x), jnp.asarray(ids), jax.nn.softmax(jnp.float32(g)), labels, jnp.full(4, 2.0)
    return given, maps_and_losses(*given)


@pytest.mark.share(2)
@pytest.mark.diagonal
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("spec", [P(None, "d"), P("d")], ids=["heads", "entries"])
def test_sharded(spec, kind):
    """Entries on several devices, or the heads of an attention: outputs and gradients are sharded alike."""
    mesh = jax.make_mesh((4, 2), ("d", "e"), axis_types=(kind, kind))
    given, want = on_one_device()
    specs = spec, P(*spec[:1]), spec, P(None, *spec[1:]), P(*spec[1:])
    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(given, specs, strict=True)]
        found, gradients = maps_and_losses(*placed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), (found, gradients), want
    )
    for a in (*found[0][:2], *gradients[:2]):
        assert a.sharding.is_equivalent_to(placed[0].sharding, 2)
    for a in (found[0][2], found[1][0]):
        assert a.sharding.is_equivalent_to(placed[3].sharding, 2)
    assert gradients[2].sharding.is_equivalent_to(placed[4].sharding, 1)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda x, i: jsoftmax.segment_softmax(x[0], i), ValueError, "x has no axis of entries"),
        (
            lambda x, i: jsoftmax.segment_softmax(x, i.astype(float)),
            TypeError,
            "give segment ids as integers",
        ),
        (lambda x, i: jsoftmax.segment_softmax(x, i[:2]), ValueError, r"one id for each entry, shape \(3,\)"),
        (lambda x, i: jsoftmax.segment_softmax(x, i, -1), ValueError, "an integer of at least 0"),
        (
            jax.jit(jsoftmax.segment_softmax),
            ValueError,
            "write num_segments=, a number that is known outside",
        ),
        (
            lambda x, i: jsoftmax.segment_softmax(x, i, axis_name="d"),
            ValueError,
            "'d' is not a mesh axis here",
        ),
        (lambda x, i: jsoftmax.segment_softmax(x, i, temperature=0), ValueError, "temperature is 0"),
        (
            lambda x, i: jsoftmax.segment_softmax(x, i, temperature=jnp.ones(5)),
            ValueError,
            r"temperature of shape \(5,\) is neither one number nor one per segment",
        ),
        (
            lambda x, i: jsoftmax.segment_softmax(x, i, where=jnp.ones(2, bool)),
            ValueError,
            "does not broadcast",
        ),
        (
            lambda x, i: jsoftmax.segment_cross_entropy(x, jnp.zeros(5, int), i),
            ValueError,
            r"one position for each segment, shape \(2,\)",
        ),
        (lambda x, i: jsoftmax.segment_cross_entropy(x, x > 0, i), TypeError, "integer positions of entries"),
        (
            lambda x, i: jsoftmax.segment_cross_entropy(x, x, i, weights=jnp.ones(3)),
            ValueError,
            r"weights of shape \(3,\) is neither one number nor one per segment; give it the shape \(2,\)",
        ),
        (
            lambda x, i: jsoftmax.segment_cross_entropy(x, x, i, ignore_index=1),
            ValueError,
            "ignore_index is for positions.* set the targets of ignored segments to 0",
        ),
        (
            lambda x, i: jsoftmax.segment_cross_entropy(x, x, i, reduction="avg"),
            ValueError,
            "there is no reduction 'avg'",
        ),
        (lambda x, i: jsoftmax.segment_softmax(x.astype(jnp.complex64), i), TypeError, "write x.real"),
    ],
)
def test_errors_say_what_to_write(call, kind, text):
    with pytest.raises(kind, match=text):
        call(jnp.array([1.0, 2.0, 3.0]), jnp.array([0, 1, 1]))


@pytest.mark.parametrize("function", MAPS)
def test_many_masked_entries_of_several_numbers(function):
    """On CPU the mask is applied in a conditional; NaN under the mask does not matter."""
    x = jax.random.normal(jax.random.key(0), (2000, 5))
    ids, where = jnp.arange(2000) * 7 % 31, jnp.arange(2000)[:, None] % 3 > 0
    hidden = jnp.where(where, x, NAN)
    call = partial(function, segment_ids=ids, num_segments=31)
    assert "in a conditional" in str(jsoftmax.explain(partial(call, where=where), x))
    with jsoftmax.portable():
        want, want_of_all = call(x, where=where), call(x)
    np.testing.assert_allclose(call(hidden, where=where), want, rtol=1e-6)
    np.testing.assert_allclose(call(x), want_of_all, rtol=1e-6)
