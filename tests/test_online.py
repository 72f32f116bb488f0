"""The monoid: a neutral element, any order, any grouping; any blocks give the result of the whole row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import REGIMES, logits
from definitions import exactly, mp
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from jsoftmax import online

INF, NAN = np.inf, np.nan
EPS = np.finfo(np.float32).eps
laws = settings(max_examples=60, deadline=None, derandomize=True, database=None)
LOGITS = st.one_of(st.floats(-100, 100, width=32), st.sampled_from([-INF, 0.0, 1e4, -1e4, 50.0]))
BLOCKS = st.lists(st.lists(LOGITS, max_size=5), min_size=1, max_size=6)


@jax.jit
def absorbed(block):
    return online.absorb(online.empty(()), block)


def state_of(block):
    """The state of a list of numbers, padded to one shape with entries that change nothing."""
    return absorbed(jnp.asarray([*block, *[-INF] * (8 - len(block))], jnp.float32))


def exact(numbers):
    """The log-sum-exp of finite numbers and −inf, and the ulp of it or of the maximum, the larger one."""
    numbers = [n for n in numbers if n > -INF]
    if not numbers:
        return -INF, 0
    value = mp.log(sum(mp.exp(n) for n in exactly(np.float32(numbers))))
    return value, float(np.spacing(np.float32(max(abs(float(value)), abs(max(numbers))))))


def assert_exact(state, numbers, ulps=4):
    value, ulp = exact(numbers)
    got = float(online.finish(state))
    # A device may round subnormal numbers to zero.
    assert got == value or abs(got - value) <= ulps * ulp + np.finfo(np.float32).tiny


@pytest.mark.long
@laws
@given(BLOCKS)
def test_any_blocks_give_the_whole_row(blocks):
    state = online.empty(())
    for block in blocks:
        state = jax.jit(online.merge)(state, state_of(block))
    assert_exact(state, [n for block in blocks for n in block])


@laws
@given(st.lists(LOGITS, max_size=5), st.lists(LOGITS, max_size=5), st.lists(LOGITS, max_size=5))
def test_merge_is_a_commutative_monoid(x, y, z):
    a, b, c = map(state_of, (x, y, z))
    merge = jax.jit(online.merge)
    for one, other in zip(merge(a, b), merge(b, a), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(merge(a, online.empty(())), a, strict=True):
        np.testing.assert_array_equal(one, other)
    left, right = merge(merge(a, b), c), merge(a, merge(b, c))
    assert left.max == right.max
    np.testing.assert_allclose(left.rest, right.rest, rtol=8 * EPS, atol=1e-37)


@jax.jit
def scanned(blocks):
    start = online.empty((5,), blocks.dtype)
    return jax.lax.scan(lambda s, block: (online.absorb(s, block), None), start, blocks)[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("regime", REGIMES)
def test_a_scan_over_blocks_is_as_accurate_as_the_row(regime, dtype):
    with jax.enable_x64(dtype == np.float64):
        x = logits(regime, (5, 60), dtype=dtype)
        blocks = jnp.asarray(x.reshape(5, 6, 10).swapaxes(0, 1))

        state = scanned(blocks)
        assert state.rest.dtype == dtype
    for row, top, rest in zip(x, *map(np.asarray, state), strict=True):
        total = sum(mp.exp(n - mp.mpf(float(row.max()))) for n in exactly(row)) - 1
        assert top == row.max()
        # Each block may round x − max once more.
        bound = (8 + np.ptp(row)) * float(np.finfo(dtype).eps)
        assert abs(rest - total) <= bound * total


def test_a_tiny_rest_is_kept():
    """For a row that leads by 80, in any block."""
    for blocks in ([80.0], [0.0, 0.0]), ([0.0, 80.0], [0.0]), ([0.0], [80.0, 0.0]):
        state = online.empty(())
        for block in blocks:
            state = online.absorb(state, jnp.array(block))
        np.testing.assert_allclose(state.rest, 2 * np.exp(-80.0), rtol=1e-5)


def test_short_blocks_keep_a_float32_state():
    x = jnp.asarray(logits("unit", (3, 400), dtype=np.float32)).astype(jnp.bfloat16)
    state = online.empty((3,), x.dtype)
    for block in jnp.split(x, 8, axis=1):
        state = online.absorb(state, block)
    assert {a.dtype for a in state} == {jnp.dtype(jnp.float32)}
    want = jax.nn.logsumexp(x.astype(jnp.float32), -1)
    np.testing.assert_allclose(online.finish(state), want, rtol=4 * EPS)


def test_blocks_of_nothing_change_nothing():
    state = online.absorb(online.empty((2,)), jnp.ones((2, 3)))
    for block in (jnp.zeros((2, 0)), jnp.full((2, 4), -INF)):
        for one, other in zip(online.absorb(state, block), state, strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(online.finish(online.empty((2,))), [-INF, -INF])


def test_an_overflow_stays_in_its_row():
    state = online.absorb(online.empty((3,)), jnp.array([[1.0, 2.0], [INF, 2.0], [1.0, NAN]]))
    state = online.merge(state, online.absorb(online.empty((3,)), jnp.ones((3, 2))))
    np.testing.assert_array_equal(np.isfinite(online.finish(state)), [True, False, False])
    np.testing.assert_array_equal(online.finish(state)[1:], [INF, NAN])


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("axis", [0, -1])
def test_the_derivative_is_the_softmax(axis):
    x = jnp.asarray(logits("unit", (4, 6), dtype=np.float32))

    def total(x):
        first, second = jnp.split(x, 2, axis)
        rows = x.shape[:axis] + x.shape[1:] if axis == 0 else x.shape[:-1]
        a, b = (online.absorb(online.empty(rows), part, axis) for part in (first, second))
        return online.finish(online.merge(a, b)).sum()

    with jax.debug_nans(True):
        gradient = jax.jit(jax.grad(total))
        np.testing.assert_allclose(gradient(x), jax.nn.softmax(x, axis), atol=4 * EPS)
        dead = x.at[:, 0].set(-INF).at[0].set(-INF)
        assert np.isfinite(gradient(dead)).all()


@pytest.mark.share(2)
@pytest.mark.parametrize("check", [True, False])
def test_shards_merge_as_blocks_do(check):
    """With sums of the size of the rows only."""
    mesh = jax.make_mesh((8,), ("v",), axis_types=(AxisType.Auto,))
    x = jnp.asarray(logits("peaked by 30", (6, 64), dtype=np.float32)).at[2].set(-INF).at[3].set(1.0)

    nothing = online.empty((6,))

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=PartitionSpec(None, "v"), out_specs=PartitionSpec(), check_vma=check)
    def across(x):
        return online.merge_across(online.absorb(nothing, x), "v")

    got = across(x)
    want = online.absorb(nothing, x)
    np.testing.assert_array_equal(got.max, want.max)
    np.testing.assert_allclose(got.rest, want.rest, rtol=8 * EPS)
    text = across.lower(x).compile().as_text()
    assert "all-gather" not in text
    assert text.count("all-reduce(") == 2


@pytest.mark.parametrize("classes", [4, 0])
def test_a_state_of_other_rows_is_refused(classes):
    with pytest.raises(ValueError, match=r"^jsoftmax\.online\.absorb\(.*begin with online.empty\(\(2,\)\)"):
        online.absorb(online.empty((3,)), jnp.ones((2, classes)))
    with pytest.raises(TypeError, match=r"^jsoftmax\.online\.empty\(.*write a float type"):
        online.empty((3,), int)
