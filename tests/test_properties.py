"""Laws of the softmax family for any rows: hypothesis draws them, with many ties and −inf."""

import functools
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jsoftmax

# The same examples everywhere. A test may use any number of them: each shape is compiled once.
laws = hypothesis.settings(max_examples=50, deadline=None, derandomize=True, database=None)

jit_laws = functools.partial(jax.jit, static_argnames="axis")

EPS = np.finfo(np.float32).eps
SHAPES = (((4, 3), 0), ((2, 33), -1))

INVARIANT = {  # under a shift of the row
    "softmax": lambda x, y, t, axis, **o: jsoftmax.softmax(x, axis, **o),
    "log_softmax": lambda x, y, t, axis, **o: jsoftmax.log_softmax(x, axis, **o),
    "cross_entropy, ids": lambda x, y, t, axis, **o: jsoftmax.cross_entropy(x, y, axis=axis, **o),
    "cross_entropy, targets": lambda x, y, t, axis, **o: jsoftmax.cross_entropy(x, t, axis=axis, **o),
    "log_prob": lambda x, y, t, axis, **o: jsoftmax.log_prob(x, y, axis=axis, **o),
    "entropy": lambda x, y, t, axis, **o: jsoftmax.entropy(x, axis=axis, **o),
}
FAMILY = {**INVARIANT, "logsumexp": lambda x, y, t, axis, **o: jsoftmax.logsumexp(x, axis, **o)}


class Rows(NamedTuple):
    """Logits, class ids, targets, and cotangents for the maps and for functions with one number per row."""

    x: np.ndarray
    y: np.ndarray
    t: np.ndarray
    g: np.ndarray
    h: np.ndarray
    axis: int

    @property
    def classes(self):
        return self.x.shape[self.axis]

    def take(self, classes):
        """The classes with these indices, which include the ids."""
        y = np.argmax(np.expand_dims(self.y, -1) == classes, -1).astype(np.int32)
        x, t, g = (np.take(a, classes, self.axis) for a in (self.x, self.t, self.g))
        return Rows(x, y, t, g, self.h, self.axis)

    def sum(self, values):
        """The sum over the classes, in float64."""
        return np.asarray(values, np.float64).sum(self.axis)


anything = st.floats(-40, 40, width=32) | st.sampled_from([0.0, 1.0, 15.0])
sixteenths = st.integers(-640, 640).map(lambda n: n / 16)  # their sums and halves are exact
seeds = st.integers(0, 2**32 - 1)


@st.composite
def rows(draw, logits=anything):
    """The class of the id is finite; others may be −inf, with targets of 0."""
    shape, axis = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(seeds))
    x = draw(hnp.arrays(np.float32, shape, elements=logits))
    y = rng.integers(0, shape[axis], np.delete(shape, axis)).astype(np.int32)
    dead = rng.random(shape) < draw(st.sampled_from([0.0, 0.3]))
    np.put_along_axis(dead, np.expand_dims(y, axis), False, axis)
    x[dead] = -np.inf
    t, g, h = rng.gamma(0.5, size=shape), rng.normal(size=shape), rng.normal(size=y.shape)
    t[dead] = 0
    return Rows(x, y, *(a.astype(np.float32) for a in (t, g, h)), axis)


@jit_laws
def _values_and_gradients(x, y, t, g, h, axis, where=None, temperature=None):
    options = {k: v for k, v in (("where", where), ("temperature", temperature)) if v is not None}
    results = {}
    for name, f in (FAMILY if temperature is None else INVARIANT).items():
        value, pull = jax.vjp(lambda x, f=f: f(x, y, t, axis, **options), x)
        cotangent = g if value.shape == x.shape else h
        results[name] = value, *pull(cotangent.astype(value.dtype))
    return results


def values_and_gradients(rows, **options):
    """For each function, its value and its gradient in the logits, as NumPy arrays."""
    return jax.tree.map(np.asarray, _values_and_gradients(**rows._asdict(), **options))


def assert_same(ours, others):
    jax.tree.map(np.testing.assert_array_equal, ours, others)


def assert_close(ours, others, scale=0, roundings=16):
    """Equal up to this many roundings of each number, and of `scale`."""
    close = functools.partial(np.testing.assert_allclose, rtol=roundings * EPS, atol=roundings * EPS * scale)
    jax.tree.map(close, ours, others)


def largest(x):
    return np.abs(x, where=np.isfinite(x), out=np.zeros_like(x)).max()


@laws
@given(rows(sixteenths), st.integers(-(10**4), 10**4))
def test_a_shift_changes_nothing_but_the_logsumexp(rows, shift):
    shift = np.float32(shift / 16)
    here, there = values_and_gradients(rows), values_and_gradients(rows._replace(x=rows.x + shift))
    (a, da), (b, db) = here.pop("logsumexp"), there.pop("logsumexp")
    assert_same(here, there)
    assert_same(da, db)
    assert_close(a + shift, b, largest(rows.x) + abs(shift), roundings=2)


def assert_equal_but_for_the_order_of_sums(rows, ours, others):
    """Values to their own rounding, gradients to the rounding of the terms they sum."""
    terms = np.abs(rows.g).sum() + np.abs(rows.h).sum() * (1 + rows.t.sum())
    for name in FAMILY:
        largest_term = largest(rows.x) if name == "logsumexp" else 0
        assert_close(ours[name][0], others[name][0], largest_term, rows.classes + 8)
        assert_close(ours[name][1], others[name][1], terms)


@laws
@given(rows(), seeds)
def test_permuted_classes_give_permuted_results(rows, seed):
    order = np.random.default_rng(seed).permutation(rows.classes)
    here, there = values_and_gradients(rows), values_and_gradients(rows.take(order))
    permuted = jax.tree.map(lambda a: np.take(a, order, rows.axis) if a.ndim == 2 else a, here)
    assert_equal_but_for_the_order_of_sums(rows, there, permuted)


@laws
@given(rows())
def test_probabilities_sum_to_one(rows):
    (p, _) = values_and_gradients(rows)["softmax"]
    assert np.all((p >= 0) & (p <= 1))
    assert np.all(np.abs(rows.sum(p) - 1) <= (rows.classes / 2 + 2) * EPS)


@laws
@given(rows())
def test_gradients_of_shift_invariant_functions_sum_to_zero(rows):
    """To the rounding of their terms: p·g, or g and p·Σg."""
    results = values_and_gradients(rows)
    p = results["softmax"][0]
    terms = {
        "softmax": 2 * rows.sum(p * np.abs(rows.g)),
        "log_softmax": 2 * rows.sum(np.abs(rows.g)),
        "cross_entropy, ids": 2 * np.abs(rows.h),
        "cross_entropy, targets": 2 * np.abs(rows.h) * rows.sum(rows.t),
        "log_prob": 2 * np.abs(rows.h),
        "entropy": 2 * np.abs(rows.h) * np.log(max(rows.classes, 3)),
    }
    for name in INVARIANT:
        assert np.all(np.abs(rows.sum(results[name][1])) <= (rows.classes + 8) * EPS * terms[name]), name


@laws
@given(rows(), st.floats(0, 10, width=32), seeds)
def test_a_larger_logit_has_a_larger_probability(rows, rise, seed):
    """Compared with another class of its row, and with itself before it grew."""
    p = values_and_gradients(rows)["softmax"][0]
    order = np.argsort(rows.x, rows.axis)
    ascending = np.take_along_axis(p, order, rows.axis)
    assert np.all(np.diff(ascending, axis=rows.axis) >= -4 * EPS * np.delete(ascending, 0, rows.axis))
    one = np.expand_dims(np.random.default_rng(seed).integers(0, rows.classes, rows.y.shape), rows.axis)
    raised = rows.x.copy()
    np.put_along_axis(raised, one, np.take_along_axis(raised, one, rows.axis) + np.float32(rise), rows.axis)
    higher = values_and_gradients(rows._replace(x=raised))["softmax"][0]
    before, after = (np.take_along_axis(a, one, rows.axis) for a in (p, higher))
    assert np.all(after >= before * (1 - 8 * EPS))


@laws
@given(rows())
def test_the_softmax_is_the_exponential_of_the_log_softmax(rows):
    results = values_and_gradients(rows)
    p, log_p = results["softmax"][0], results["log_softmax"][0].astype(np.float64)
    roundings = 8 - np.maximum(log_p, -100)
    assert np.all(np.abs(np.exp(log_p) - p) <= roundings * EPS * p)


@jit_laws
def _pushed_and_pulled(x, y, t, g, h, v, axis):
    results = {}
    for name, f in FAMILY.items():
        of_x = functools.partial(f, y=y, t=t, axis=axis)
        with jsoftmax.forward_mode():
            value, pushed = jax.jvp(of_x, (x,), (v,))
        cotangent = g if value.shape == x.shape else h
        results[name] = cotangent, pushed, *jax.vjp(of_x, x)[1](cotangent)
    return results


@laws
@given(rows(), seeds)
def test_pushing_forward_and_pulling_back_are_transposes(rows, seed):
    """⟨g, J v⟩ = ⟨Jᵀ g, v⟩."""
    v = np.random.default_rng(seed).normal(size=rows.x.shape).astype(np.float32)
    for g, pushed, pulled in _pushed_and_pulled(v=v, **rows._asdict()).values():
        g, pushed, pulled = (np.asarray(a, np.float64) for a in (g, pushed, pulled))
        scale = (1 + rows.t.sum()) * np.abs(g).sum() * np.abs(v).max()
        assert_close(np.sum(g * pushed), np.sum(pulled * v), scale)


@jit_laws
def _reduced(x, labels, axis):
    def loss(x, reduction):
        return jnp.sum(jsoftmax.cross_entropy(x, labels, axis=axis, reduction=reduction))

    return [jax.value_and_grad(loss)(x, reduction) for reduction in ("mean", "sum", "none")]


@laws
@given(rows())
def test_the_mean_is_the_sum_over_the_count(rows):
    for labels in (rows.y, rows.t):
        mean, total, each = _reduced(rows.x, labels, axis=rows.axis)
        assert_close([a * np.float32(rows.y.size) for a in mean], [*total])
        assert_close(total, each)


@pytest.mark.long
@laws
@given(rows(), seeds)
def test_masked_is_removed(rows, seed):
    """In value and gradient; a masked class has probability and gradient 0."""
    kept = np.random.default_rng(seed).permutation(rows.classes)[: rows.classes // 2 + 1]
    rows = rows._replace(y=kept[rows.y % len(kept)].astype(np.int32))
    where = np.broadcast_to(
        np.expand_dims(np.isin(np.arange(rows.classes), kept), 1 + rows.axis), rows.x.shape
    )
    rows = rows._replace(t=np.where(where, rows.t, 0))
    masked, removed = values_and_gradients(rows, where=where), values_and_gradients(rows.take(kept))
    for value in (a for a in jax.tree.leaves(masked) if a.ndim == 2):
        assert np.isin(np.delete(value, kept, rows.axis), (0, -np.inf)).all()
    left = jax.tree.map(lambda a: np.take(a, kept, rows.axis) if a.ndim == 2 else a, masked)
    assert_equal_but_for_the_order_of_sums(rows, left, removed)


@laws
@given(rows(), seeds, st.sampled_from([np.nan, 1e38, -1e38, np.inf, -np.inf]))
def test_what_lies_under_the_mask_does_not_matter(rows, seed, junk):
    """In the logits and in the cotangents, bit for bit."""
    where = np.random.default_rng(seed).random(rows.x.shape) < 0.6
    np.put_along_axis(where, np.expand_dims(rows.y, rows.axis), True, rows.axis)
    rows = rows._replace(t=np.where(where, rows.t, 0))
    filled = rows._replace(
        x=np.where(where, rows.x, np.float32(junk)), g=np.where(where, rows.g, np.float32(junk))
    )
    assert_same(values_and_gradients(filled, where=where), values_and_gradients(rows, where=where))


@laws
@given(rows(sixteenths), st.sampled_from([0.25, 0.5, 1, 2, 16]))
def test_a_temperature_divides_the_logits(rows, temperature):
    """Bit for bit for a power of two; but the gradient of a map sums the same terms in another order.

    So does a softmax without options on CPU: its two forms round the sum and the quotient differently.
    """
    temperature = np.float32(temperature)
    heated = values_and_gradients(rows, temperature=temperature)
    divided = values_and_gradients(rows._replace(x=rows.x / temperature))
    for name in INVARIANT:
        value, gradient = divided[name]
        np.testing.assert_allclose(heated[name][0], value, rtol=4 * EPS if name == "softmax" else 0)
        wanted = gradient / temperature
        if "softmax" not in name:
            np.testing.assert_array_equal(heated[name][1], wanted)
        np.testing.assert_allclose(heated[name][1], wanted, rtol=1e-6, atol=4 * EPS * np.abs(wanted).max())


@pytest.mark.share(2)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@laws
@given(rows=rows())
def test_short_logits_are_computed_with_as_float32(rows, dtype):
    """Only the results are rounded, and losses are not."""
    short = rows._replace(x=rows.x.astype(dtype))
    ours = values_and_gradients(short)
    full = values_and_gradients(rows._replace(x=short.x.astype(np.float32)))
    for name in FAMILY:
        value, gradient = ours[name]
        assert value.dtype == (dtype if name in ("softmax", "log_softmax", "logsumexp") else np.float32)
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(value, full[name][0].astype(value.dtype))
