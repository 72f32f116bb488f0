"""Draws have the law of their logits, for every dtype, mask, temperature and sharding.

Keys are fixed. A χ² test checks a law, and rejects a correct one with probability `RISK`. Each test makes at
most a hundred such comparisons, so it fails by chance with probability at most 1e-6.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import curvature
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from mpmath import mp, mpf
from scipy import stats

import jsoftmax
from jsoftmax import sampling
from jsoftmax.sampling import _noise

RISK = 1e-8
KEY = jax.random.key(26)
DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


def softmax(logits):
    """The softmax in float64, of the rounded logits."""
    z = np.asarray(logits, np.float64)
    p = np.exp(z - z.max(-1, keepdims=True, initial=-np.inf))
    return p / p.sum(-1, keepdims=True)


def has_law(ids, p):
    """Whether a χ² test accepts ids as draws from p; rare classes form groups, dead classes never occur."""
    counts = np.bincount(np.asarray(ids).ravel(), minlength=len(p))
    assert len(counts) == len(p)
    assert not counts[p == 0].any()
    order = np.argsort(p)
    order = order[p[order] > 0]
    groups = np.floor(np.cumsum(p[order]) * counts.sum() / 10)  # about ten draws in the smallest group
    groups = np.unique(np.minimum(groups, groups.max() - (groups.max() > 0)), return_inverse=True)[1]
    seen, expected = (np.bincount(groups, a[order]) for a in (counts, p * counts.sum()))
    return len(seen) == 1 or stats.chisquare(seen, expected * (seen.sum() / expected.sum())).pvalue > RISK


@pytest.mark.share(8)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("classes", "draws"), [(2, 2**16), (10, 2**16), (50257, 2**8)])
def test_a_draw_has_the_law_of_its_logits(dtype, classes, draws):
    """One of many classes leads; with 16-bit noise, every draw would be of this class."""
    z = np.random.default_rng(classes).normal(size=classes)
    if classes > 10:
        z[7] = 8.5
    z = jnp.asarray(z, dtype)
    draw = jax.jit(partial(sampling.categorical, shape=(draws,)))(KEY, z)
    assert draw.ids.dtype == jnp.int32
    assert draw.log_probs.dtype == jnp.float32
    assert has_law(draw.ids, softmax(z))


def test_has_law_rejects_16_bit_noise():
    """`jax.random.categorical` has 16-bit noise: half of its draws should be other classes, but none is."""
    z = np.zeros(50257)
    z[7] = 10.8
    ids = jax.jit(partial(jax.random.categorical, shape=(2**6,)))(KEY, jnp.asarray(z, jnp.bfloat16))
    assert not has_law(ids, softmax(jnp.asarray(z, jnp.bfloat16)))


def test_rows_have_their_masks_and_temperatures():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(3, 6, 4)).astype(np.float32)
    where, temperature = rng.random(z.shape) < 0.6, rng.uniform(0.3, 3, (3, 4)).astype(np.float32)
    where[:, 0], z[~where] = True, np.nan
    temperature[0, 0] = -0.5
    draw = partial(sampling.categorical, axis=1, where=where, temperature=temperature, shape=(2**15, 3, 4))
    ids = jax.jit(draw)(KEY, z).ids
    scaled = np.where(where, z / temperature[:, None], -np.inf)
    for i in range(3):
        for k in range(4):
            assert has_law(ids[:, i, k], softmax(scaled[i, :, k])), (i, k)


def test_rows_and_classes_are_independent():
    """The pairs of draws of two rows, of two keys, and of successive draws are independent."""
    z = jnp.zeros((2, 4))
    ids = np.stack([sampling.categorical(k, z, shape=(2**14, 2)).ids for k in jax.random.split(KEY)])
    for a, b in ((ids[0, :, 0], ids[0, :, 1]), (ids[0, :, 0], ids[1, :, 0]), (ids[0, 1:, 0], ids[0, :-1, 0])):
        assert has_law(4 * a + b, np.full(16, 1 / 16))


def test_threefry_is_that_of_jax_and_of_its_authors():
    words = (0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3)
    k0, k1, *counters = map(jnp.uint32, words)
    assert [int(w) for w in _noise.threefry(jnp.stack([k0, k1]), *counters)] == [0xC4923A9C, 0x483DF7A0]
    rng = np.random.default_rng(0)
    key, (x, y) = (jnp.asarray(rng.integers(0, 2**32, n, np.uint32)) for n in ((2,), (2, 50)))
    from jax.extend.random import threefry_2x32

    want = threefry_2x32(key, jnp.concatenate([x, y]))
    np.testing.assert_array_equal(jnp.concatenate(_noise.threefry(key, x, y)), want)


def test_the_noise_has_the_exponential_law_from_2_to_the_minus_63():
    """The number from two words, compared with the definition E = −log(1 − v), v of 63 bits plus a half."""
    rng = np.random.default_rng(0)
    v = np.concatenate(
        [2 ** rng.integers(0, 63, 300) + rng.integers(0, 2**62, 300) % 2 ** rng.integers(0, 63, 300)]
    )
    v = np.concatenate([[0, 1, 2, 2**31, 2**62, 2**63 - 1], v]).astype(np.uint64)
    for words in (2 * v, ~(2 * v)):  # of v or of 1 − v
        high, low = (jnp.asarray((words >> np.uint64(s)).astype(np.uint32)) for s in (32, 0))
        got = np.asarray(_noise.exponential(high, low), np.float64)
        exact = [-mp.log1p(-(mpf(int(w) // 2) + mpf(0.5)) / mpf(2) ** 63) for w in words]
        want = np.array(exact, np.float64)
        assert (np.abs(got - want) <= 4 * 2.0**-24 * want).all()
        assert (got > 0).all()
        assert np.isfinite(-np.log(got)).all()


def test_the_noise_has_the_law_of_its_tail():
    """The number of E < t among 2²³ is binomial, for every t down to an expected number of 1."""
    at = _noise.Positions(
        jnp.arange(2**11, dtype=jnp.uint32)[:, None], jnp.arange(2**12, dtype=jnp.uint32)[None]
    )
    noise = np.asarray(jax.jit(_noise.gumbel)(jax.random.bits(KEY, (2,)), at), np.float64)
    for exponent in range(-23, 3):
        t = 2.0**exponent
        count, p = (noise > -np.log(t)).sum(), -np.expm1(-t)
        assert stats.binomtest(int(count), noise.size, p).pvalue > RISK, exponent


def test_corners():
    inf, nan = jnp.inf, jnp.nan
    z = jnp.array([[0, 60, -inf], [-inf, -inf, -inf], [nan, 0, 0], [inf, 0, 0], [1e30, 1e30, -1e30]])
    live = jnp.ones(z.shape, bool).at[4, 1].set(False)
    for temperature in (None, 0, jnp.zeros(5), 0.5):
        draw = sampling.categorical(KEY, z, where=live, temperature=temperature)
        assert draw.ids.tolist() == [1, -1, -1, -1, 0]
        np.testing.assert_array_equal(draw.log_probs[1:], [-inf, nan, nan, 0])
    under_a_mask = sampling.categorical(KEY, z, where=jnp.isfinite(z) & (z < 1e20))
    np.testing.assert_array_equal(under_a_mask.ids[:4] >= 0, [True, False, True, True])
    assert sampling.categorical(KEY, jnp.zeros((0, 4))).ids.shape == (0,)


def test_temperature_0_takes_the_first_of_the_largest():
    z = jnp.asarray(np.random.default_rng(0).integers(0, 3, (40, 7)), jnp.bfloat16)
    for temperature in (0, 0.0, jnp.float32(0), np.zeros(40)):
        draw = sampling.categorical(KEY, z, temperature=temperature)
        np.testing.assert_array_equal(draw.ids, np.argmax(np.asarray(z, np.float32), 1))
        assert not draw.log_probs.any()
    half = jnp.arange(40) % 2
    mixed = sampling.categorical(KEY, z, temperature=half)
    np.testing.assert_array_equal(mixed.ids[half == 0], draw.ids[half == 0])
    np.testing.assert_array_equal(mixed.ids[half == 1], sampling.categorical(KEY, z).ids[half == 1])


@pytest.mark.long
def test_log_probs_are_those_of_log_prob_and_so_are_their_derivatives():
    rng = np.random.default_rng(0)
    z, t = jnp.asarray(3 * rng.normal(size=(5, 9)), jnp.float32), jnp.linspace(0.5, 2, 5)
    where = rng.random((5, 9)) < 0.8
    ids = sampling.categorical(KEY, z, where=where, temperature=t).ids

    def ours(z, t):
        return sampling.categorical(KEY, z, where=where, temperature=t).log_probs

    def theirs(z, t):
        return jsoftmax.log_prob(z, ids, where=where, temperature=t)

    def both(f):
        def total(z, t):
            return jnp.sum(jnp.sin(f(z, t)))

        return jax.jit(lambda z, t: (f(z, t), curvature(total, (z, t))))(z, t)

    def pushed(f):
        return jax.jit(lambda z, t: jax.jvp(f, (z, t), (jnp.cos(z), jnp.sin(t))))(z, t)

    def greedy(z):
        return sampling.categorical(KEY, z, temperature=0).log_probs.sum()

    (values, of_second), (want, want_second) = map(both, (ours, theirs))
    np.testing.assert_array_equal(values, want)
    # XLA fuses the two programs differently, which shows in the last digit.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), of_second, want_second)
    with jsoftmax.forward_mode():
        jax.tree.map(np.testing.assert_array_equal, *map(pushed, (ours, theirs)))
    assert not np.asarray(jax.grad(greedy)(z)).any()


def test_axes_and_shapes():
    """A tuple of axes acts as one flattened axis; the first of several draws is the draw without `shape`."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)), jnp.float32)
    flat = jnp.transpose(z, (1, 2, 0)).reshape(3, 20)
    both = [sampling.categorical(KEY, z, axis=(2, 0)), sampling.categorical(KEY, flat)]
    jax.tree.map(np.testing.assert_array_equal, *both)
    times_sign = sampling.categorical(KEY, flat.T, axis=0)
    jax.tree.map(np.testing.assert_array_equal, both[1], times_sign)
    assert sampling.categorical(KEY, z, axis=None).ids.shape == ()
    assert sampling.categorical(KEY, flat, shape=(2, 6, 3)).ids.shape == (2, 6, 3)
    one = sampling.categorical(KEY, flat, shape=(1, 3))
    np.testing.assert_array_equal(one.ids[0], both[1].ids)


def test_keys_of_every_kind():
    z = jnp.zeros((3, 1000))
    old, new = jax.random.PRNGKey(0), jax.random.key(0)
    same = [sampling.categorical(k, z).ids for k in (old, new)]
    np.testing.assert_array_equal(*same)
    other = sampling.categorical(jax.random.key(0, impl="rbg"), z).ids
    assert (other != same[0]).any()
    mapped = jax.vmap(sampling.categorical)(jax.random.split(new, 2), jnp.stack([z, z])).ids
    for key, ids in zip(jax.random.split(new, 2), mapped, strict=True):
        np.testing.assert_array_equal(sampling.categorical(key, z).ids, ids)


ROWS, CLASSES = 8, 24


def given():
    """Logits with a tie across shards, a row without a live class, a row with NaN, and greedy rows."""
    rng = np.random.default_rng(0)
    z = jnp.asarray(2 * rng.normal(size=(ROWS, CLASSES)), jnp.float32)
    z = z.at[1, jnp.array([3, 20])].set(30.0).at[2].set(-jnp.inf).at[3, 17].set(jnp.nan)
    where = jnp.asarray(rng.random((ROWS, CLASSES)) < 0.8).at[3, 17].set(True)
    return z, where, jnp.asarray([1, 0, 1, 1, 0.5, 2, 0, 1.0])


def draw(z, where, temperature, **on):
    return sampling.categorical(KEY, z, where=where, temperature=temperature, **on)


@pytest.mark.share(5)
@pytest.mark.parametrize("sizes", [(1, 8), (2, 4), (8, 1)])
@pytest.mark.parametrize("how", ["shard_map", "auto", "explicit"])
def test_a_draw_is_the_same_on_any_number_of_devices(sizes, how):
    kind = AxisType.Explicit if how == "explicit" else AxisType.Auto
    mesh = jax.make_mesh(sizes, ("rows", "classes"), axis_types=(kind, kind))
    both, rows = P("rows", "classes"), P("rows")
    want = jax.jit(draw)(*given())
    if how == "shard_map":
        function = jax.jit(
            jax.shard_map(
                partial(draw, axis_name="classes"), mesh=mesh, in_specs=(both, both, rows), out_specs=rows
            )
        )
        got = function(*given())
    else:
        arguments = (
            jax.device_put(a, NamedSharding(mesh, spec))
            for a, spec in zip(given(), (both, both, rows), strict=True)
        )
        with jax.set_mesh(mesh):
            got = jax.jit(draw)(*arguments)
    np.testing.assert_array_equal(got.ids, want.ids)
    np.testing.assert_allclose(got.log_probs, want.log_probs, rtol=1e-6)


def test_shards_of_classes_send_a_few_numbers_per_row():
    """The maximum, a flag for NaN, the best score and its class; log-probabilities add one sum."""
    mesh = jax.make_mesh((8,), ("classes",), axis_types=(AxisType.Auto,))
    f = jax.jit(
        jax.shard_map(
            lambda z: sampling.categorical(KEY, z, axis_name="classes").ids,
            mesh=mesh,
            in_specs=P(None, "classes"),
            out_specs=P(),
        )
    )
    program = f.lower(jax.ShapeDtypeStruct((64, 8000), jnp.float32)).compile().as_text()
    sent = [line for line in program.splitlines() if "all-reduce(" in line or "all-gather(" in line]
    assert len(sent) <= 4
    assert all("[64" in line and "8000" not in line and "1000]" not in line for line in sent)


def test_the_form_for_cpu_draws_the_same():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(16, 2048)), jnp.float32)
    ids = jax.jit(lambda z: sampling.categorical(KEY, z).ids)(z)
    with jsoftmax.portable():
        plain = jax.jit(lambda z: sampling.categorical(KEY, z).ids)(z)
    np.testing.assert_array_equal(ids, plain)


Z = jnp.zeros((4, 3))
ERRORS = {
    "no key": (
        lambda: sampling.categorical(0, Z),
        TypeError,
        r"sampling\.categorical\(key=0.*jax\.random\.key",
    ),
    "several keys": (
        lambda: sampling.categorical(jax.random.split(KEY), Z),
        TypeError,
        r"key has shape \(2,\); give one key, or map",
    ),
    "a shape of other rows": (
        lambda: sampling.categorical(KEY, Z, shape=(4, 2)),
        ValueError,
        r"shape \(4, 2\) does not end in that of the rows, \(4,\); write \(2, 4\)",
    ),
    "a shape of floats": (lambda: sampling.categorical(KEY, Z, shape=(1.5, 4)), TypeError, "tuple of ints"),
    "a top-k of 0": (lambda: sampling.keep_mask(Z, top_k=0), ValueError, "top_k is 0; .*or leave it out"),
    "a top-k of floats": (
        lambda: sampling.keep_mask(Z, top_k=2.0),
        TypeError,
        "top_k is 2.0, not of an integer type",
    ),
    "a top-p above 1": (lambda: sampling.keep_mask(Z, top_p=1.5), ValueError, "top_p is 1.5; .* 0 to 1"),
    "a min-p below 0": (lambda: sampling.keep_mask(Z, min_p=-0.1), ValueError, "min_p is -0.1"),
    "a top-p of other rows": (
        lambda: sampling.keep_mask(Z, top_p=jnp.ones(3)),
        ValueError,
        r"top_p of shape \(3,\) is neither one number nor one per row",
    ),
    "a temperature": (
        lambda: sampling.categorical(KEY, Z, temperature=jnp.inf),
        ValueError,
        "temperature is inf",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()


def kept_by_sorting(x, k, p, m):
    """`keep_mask` of one row in float64, by a stable sort: among equal logits, lower ids come first."""
    x = np.asarray(x, np.float64)
    order = np.argsort(-x, kind="stable")
    order = order[x[order] > -np.inf][:k]
    q = softmax(x[order])
    order = order[: 1 + (np.cumsum(q) < p).sum()] if p < 1 else order
    order = order[q[: len(order)] >= m * q.max(initial=0)]
    kept = np.zeros(x.size, bool)
    kept[order] = True
    return kept


ROWS_TO_KEEP = {
    "normal": lambda rng, n: rng.normal(size=n),
    "ties": lambda rng, n: rng.integers(0, 3, n) / 2,
    "all tied": lambda rng, n: np.zeros(n),
    "signed zeros": lambda rng, n: np.where(rng.random(n) < 0.5, -0.0, 0.0),
    "one live": lambda rng, n: np.where(np.arange(n) == n // 2, 1.0, -np.inf),
    "half dead": lambda rng, n: np.where(rng.random(n) < 0.5, -np.inf, rng.normal(size=n)),
    "peaked": lambda rng, n: 30 * rng.normal(size=n),
    "huge": lambda rng, n: rng.choice([-1e38, -1.0, 0, 2e38, 1e-30], n) * rng.random(n),
    "offset": lambda rng, n: 1e4 + rng.normal(size=n),
}
# top-k, top-p, min-p; no sum of equal probabilities is close to p.
OPTIONS = (
    (1, 1, 0),
    (3, 1, 0),
    (400, 1, 0),
    (400, 0, 0),
    (400, 0.307, 0),
    (400, 0.907, 0.01),
    (5, 0.613, 0),
    (7, 0.987, 0.29),
)


@pytest.mark.share(3)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [1, 7, 333])
def test_what_is_kept_is_what_a_sort_keeps(classes, dtype):
    rng = np.random.default_rng(classes)
    rows = [make(rng, classes) for make in ROWS_TO_KEEP.values() for _ in OPTIONS]
    x = jnp.asarray(np.stack(rows), jnp.float32).astype(dtype)
    k, p, m = (np.array(list(option) * len(ROWS_TO_KEEP)) for option in zip(*OPTIONS, strict=True))
    kept = np.asarray(jax.jit(sampling.keep_mask)(x, top_k=k, top_p=np.float32(p), min_p=np.float32(m)))
    for i, row in enumerate(np.asarray(x, np.float32)):
        np.testing.assert_array_equal(kept[i], kept_by_sorting(row, k[i], p[i], m[i]), err_msg=f"{i}")


def by_transformers(x, t, k, p, m):
    """transformers 4.57.1, `generation/logits_process.py`, in the order of `generation/utils.py`."""
    z = x / t
    z = np.where(z < np.sort(z)[-k], -np.inf, z)
    order = np.argsort(z)
    removed = np.cumsum(softmax(z[order])) <= 1 - p
    removed[-1] = False
    z[order[removed]] = -np.inf
    q = softmax(z)
    return (q > 0) & (q >= m * q.max())


def by_vllm(x, t, k, p, m):
    """vllm at 01fa3fe, `v1/sample`: first min-p, a logits processor, then top-k and top-p."""
    z = x / t
    q = softmax(z)
    z = np.where(q < m * q.max(), -np.inf, z)
    order = np.argsort(z)
    in_order = z[order]
    in_order[in_order < in_order[len(z) - k]] = -np.inf
    removed = np.cumsum(softmax(in_order)) <= 1 - p
    removed[-1] = False
    in_order[removed] = -np.inf
    return in_order[np.argsort(order)] > -np.inf


def test_the_order_of_the_options_in_other_libraries():
    """The order is that of transformers; vllm applies min-p first, for which `where` gets a mask."""
    rng = np.random.default_rng(0)
    x = (3 * rng.normal(size=(60, 50))).astype(np.float32)
    t = rng.uniform(0.3, 3, 60)
    k, p, m = rng.integers(1, 50, 60), rng.uniform(0.05, 0.99, 60), rng.uniform(0, 0.2, 60)
    with jax.enable_x64(True):
        kept = sampling.keep_mask(x, top_k=k, top_p=p, min_p=m, temperature=t)
        at_first = sampling.keep_mask(x, min_p=m, temperature=t)
        as_vllm = sampling.keep_mask(x, top_k=k, top_p=p, temperature=t, where=at_first)
    for i, options in enumerate(zip(x.astype(np.float64), t, k, p, m, strict=True)):
        np.testing.assert_array_equal(kept[i], by_transformers(*options), err_msg=f"{i}")
        np.testing.assert_array_equal(as_vllm[i], by_vllm(*options), err_msg=f"{i}")
    assert (kept != as_vllm).any()


def test_a_mass_that_is_met_exactly():
    """The class whose mass crosses p is kept; if the sum is exactly p, the next class is not kept."""
    x = jnp.log(jnp.array([0.125, 0.5, 0.125, 0.25]))
    x = jnp.round(x / np.log(np.float32(2))) * np.log(np.float32(2))
    for p, kept in (
        (0.5, [1]),
        (0.51, [1, 3]),
        (0.75, [1, 3]),
        (0.76, [0, 1, 3]),
        (0, [1]),
        (1, [0, 1, 2, 3]),
    ):
        assert np.flatnonzero(sampling.keep_mask(x, top_p=p)).tolist() == kept, p
    ties = jnp.zeros((1, 8))
    for p, kept in ((0.5, 4), (0.501, 5), (1, 8), (0, 1), (0.125, 1)):
        assert np.flatnonzero(sampling.keep_mask(ties, top_p=p)[0]).tolist() == list(range(kept)), p
    rare = jnp.array([0.0, -200.0, -jnp.inf])
    assert sampling.keep_mask(rare, top_p=1.0).tolist() == [True, True, False]


def test_corners_of_what_is_kept():
    inf, nan = jnp.inf, jnp.nan
    x = jnp.array([[0, nan, 2, -inf], [-inf, -inf, -inf, -inf], [inf, 1, 2, -inf], [5, 5, 1, 0]])
    kept = sampling.keep_mask(x, top_k=1, top_p=0.5, min_p=0.5)
    assert kept.astype(int).tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert sampling.keep_mask(x[3], temperature=0).tolist() == [True, False, False, False]
    assert sampling.keep_mask(x[3], temperature=-1.0, top_k=1).tolist() == [False, False, False, True]
    assert sampling.keep_mask(x[3], where=jnp.arange(4) > 0, top_k=1).tolist() == [False, True, False, False]
    out_of_range = sampling.keep_mask(jnp.zeros((4, 3)), top_p=jnp.array([0.5, 1.5, -1, nan]))
    assert out_of_range.sum(1).tolist() == [2, 0, 0, 0]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)), jnp.float32)
    flat = sampling.keep_mask(jnp.transpose(x, (1, 2, 0)).reshape(4, 15), top_k=7)
    whole = sampling.keep_mask(x, top_k=jnp.full(4, 7), axis=(2, 0))
    np.testing.assert_array_equal(jnp.transpose(whole, (1, 2, 0)).reshape(4, 15), flat)


def test_the_log_probability_of_a_draw_from_the_kept_classes():
    """It is the log-probability within the kept classes; its derivative is 0 at all others."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 40)), jnp.bfloat16)
    kept = sampling.keep_mask(x, top_p=0.6, temperature=0.7)
    drawn = sampling.categorical(KEY, x, where=kept, temperature=0.7)
    log_p = jsoftmax.log_prob(x, drawn.ids, where=kept, temperature=0.7)
    np.testing.assert_array_equal(drawn.log_probs, log_p)
    p = softmax(np.where(kept, np.asarray(x, np.float64) / 0.7, -np.inf))
    np.testing.assert_allclose(log_p, np.log(p[np.arange(6), drawn.ids]), rtol=1e-5)
    gradient = jax.grad(lambda x: jsoftmax.log_prob(x, drawn.ids, where=kept, temperature=0.7).sum())(x)
    assert not np.asarray(gradient)[~np.asarray(kept)].any()


def test_blocks_of_rows_keep_the_same_classes():
    """On CPU many rows are processed in blocks; the mask equals that of the plain form."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2**15)), jnp.bfloat16)
    options = {"top_k": jnp.arange(1, 21) ** 3, "top_p": 0.9}
    kept = jax.jit(partial(sampling.keep_mask, **options))(x)
    with jsoftmax.portable():
        np.testing.assert_array_equal(jax.jit(partial(sampling.keep_mask, **options))(x), kept)


def test_each_draw_without_replacement_is_from_the_classes_left():
    """Ordered triples of four classes have the Plackett-Luce distribution, and log_probs match it."""
    z = jnp.asarray([0.5, -1, 1, 0], jnp.bfloat16)
    p = softmax(z)
    rows = jnp.tile(z[None], (2**15, 1))
    draw = jax.jit(lambda z: sampling.sample_without_replacement(KEY, z, 3))(rows)
    a, b, c = np.asarray(draw.ids).T
    assert ((a != b) & (b != c) & (a != c)).all()
    law = np.zeros(64)
    for i, j, k in itertools.permutations(range(4), 3):
        law[16 * i + 4 * j + k] = p[i] * p[j] / (1 - p[i]) * p[k] / (1 - p[i] - p[j])
    assert has_law(16 * a + 4 * b + c, law)
    np.testing.assert_allclose(draw.log_probs.sum(1), np.log(law[16 * a + 4 * b + c]), rtol=1e-5)
    one = sampling.categorical(KEY, rows)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g[:, 0], w, rtol=1e-6), draw, one)


def test_without_replacement_no_dead_class_is_drawn():
    inf, nan = jnp.inf, jnp.nan
    z = jnp.array([[0, 60, -inf, -9], [-inf] * 4, [nan, 0, 0, 0], [3, 3, 3, 3]])
    where = jnp.ones((4, 4), bool).at[3, 1:3].set(False)
    draw = jax.jit(lambda z: sampling.sample_without_replacement(KEY, z, 4, where=where))(z)
    assert draw.ids[0].tolist() == [1, 0, 3, -1]
    assert draw.log_probs[0, 2:].tolist() == [0, -inf]
    np.testing.assert_allclose(
        draw.log_probs[0, :2], [-np.exp(-60) - np.exp(-69), -np.log1p(np.exp(-9))], rtol=4e-6
    )
    assert draw.ids[1:3].tolist() == [[-1] * 4] * 2
    assert sorted(draw.ids[3].tolist()) == [-1, -1, 0, 3]
    np.testing.assert_array_equal(draw.log_probs[1:3], [[-inf] * 4, [nan] * 4])
    greedy = jax.jit(lambda z: sampling.sample_without_replacement(KEY, z, 3, temperature=0))(z[:1])
    assert greedy.ids.tolist() == [[1, 0, 3]]
    assert not greedy.log_probs.any()
    total = lambda z: sampling.sample_without_replacement(KEY, z, 3, where=where).log_probs[::3].sum()  # noqa: E731
    gradient = np.asarray(jax.jit(jax.grad(lambda z: jnp.where(jnp.isinf(total(z)), 0, total(z))))(z))
    assert np.isfinite(gradient[[0, 1, 3]]).all()


@pytest.mark.long
def test_a_gumbel_softmax_is_the_softmax_with_noise():
    """Its largest class is the draw of `categorical`; its derivatives are those of this softmax."""
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(6, 9)) + 1e4, jnp.float32)
    where = rng.random((6, 9)) < 0.8
    t = jnp.linspace(0.3, 3, 6)
    words = jax.random.bits(KEY, (2,))
    noise = _noise.gumbel(words, _noise.positions(words, z, (1,)))

    def ours(z, t, hard=False):
        return sampling.gumbel_softmax(KEY, z, where=where, temperature=t, hard=hard)

    def theirs(z, t):
        return jsoftmax.softmax(z - 1e4 + noise, where=where, temperature=t)

    v = jnp.asarray(rng.normal(size=(6, 9)), jnp.float32)
    close = partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6)
    for hard in (False, True):
        pulled = [
            jax.jit(lambda z, t, f=f: jax.vjp(f, z, t)[1](v))(z, t)
            for f in (partial(ours, hard=hard), theirs)
        ]
        jax.tree.map(close, *pulled)
    close(ours(z, t), theirs(z, t))
    ids = sampling.categorical(KEY, z, where=where).ids
    np.testing.assert_array_equal(ours(z, t, hard=True), np.eye(9)[ids])
    with jsoftmax.forward_mode():
        close(*(jax.jit(lambda z, f=f: jax.jvp(f, (z, t), (v, t))[1])(z) for f in (ours, theirs)))


def test_corners_of_a_gumbel_softmax():
    inf, nan = jnp.inf, jnp.nan
    z = jnp.array([[0, 60, -inf], [-inf, -inf, -inf], [nan, 0, 0], [inf, 0, 0]])
    for hard in (False, True):
        y = sampling.gumbel_softmax(KEY, z, hard=hard)
        np.testing.assert_allclose(y[:2], [[0, 1, 0], [0, 0, 0]], atol=1e-20)
        assert np.isnan(y[2:]).any(1).all()
        assert sampling.gumbel_softmax(KEY, z.astype(jnp.bfloat16), hard=hard).dtype == jnp.bfloat16
        both = sampling.gumbel_softmax(KEY, jnp.zeros((4, 3, 5)), axis=(0, 2), hard=hard)
        np.testing.assert_allclose(both.sum((0, 2)), 1, rtol=1e-6)


def speculate(key, target_logits, draft_logits, drafted):
    """The example in the pages: one step, which accepts a drafted token or draws another."""
    uniform, residual = jax.random.split(key)
    log_p = jsoftmax.log_prob(target_logits, drafted)
    log_q = jsoftmax.log_prob(draft_logits, drafted)
    u = jax.random.uniform(uniform, drafted.shape)
    accepted = jnp.log1p(-u) <= log_p - log_q
    excess = jsoftmax.softmax(target_logits) - jsoftmax.softmax(draft_logits)
    others = sampling.categorical(residual, jnp.log(jnp.maximum(excess, 0.0))).ids
    return jnp.where(accepted, drafted, others), accepted


def test_speculative_decoding_has_the_law_of_the_target():
    rng = np.random.default_rng(5)
    target, draft = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(2, 12)))
    rows = 2**16

    @jax.jit
    def step(key):
        keys = jax.random.split(key)
        drafted = sampling.categorical(keys[0], draft, shape=(rows,)).ids
        both = (jnp.broadcast_to(z[None], (rows, 12)) for z in (target, draft))
        return speculate(keys[1], *both, drafted)

    ids, accepted = step(KEY)
    p, q = softmax(target), softmax(draft)
    assert has_law(ids, p)
    assert stats.binomtest(int(accepted.sum()), rows, np.minimum(p, q).sum()).pvalue > RISK
