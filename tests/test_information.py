"""The divergences: accuracy compared with mpmath, laws, and corner cases of two rows."""

from contextlib import nullcontext
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ahead, to_second_order
from compiling import jit_in_full
from definitions import EXP, FINE, LOG, error
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special

import jsoftmax

INF, NAN = np.inf, np.nan
DIVERGENCES = {"kl": jsoftmax.kl_divergence, "js": jsoftmax.js_divergence}
each = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
modes = pytest.mark.parametrize("mode", [nullcontext, jsoftmax.forward_mode], ids=["reverse", "forward"])
laws = hypothesis.settings(max_examples=50, deadline=None, derandomize=True, database=None)


def normal(scale=1, offset=0):
    return lambda rng, shape: offset + scale * rng.normal(size=shape)


class Regime(NamedTuple):
    p: object
    q: object = None  # its own rows, or those of p
    apart: float = 0  # plus noise of this size
    shape: tuple[int, int] = (8, 100)
    temperature: float | None = None

    def logits(self, dtype):
        rng = np.random.default_rng(0)
        p = self.p(rng, self.shape)
        q = p if self.q is None else self.q(rng, self.shape)
        return p.astype(dtype), (q + self.apart * rng.normal(size=self.shape)).astype(dtype)


REGIMES = {
    "unit": Regime(normal(), normal()),
    "spread 30": Regime(normal(30), normal(30)),
    **{f"p ahead by {by}": Regime(ahead(by), normal()) for by in (15, 30, 80)},
    **{f"q ahead by {by}": Regime(normal(), ahead(by)) for by in (15, 30, 80)},
    **{f"both ahead by {by}": Regime(ahead(by), ahead(by + 0.5)) for by in (15, 30, 80)},
    **{f"{apart} apart": Regime(normal(), apart=apart) for apart in (0.1, 1e-3, 1e-6)},
    **{f"spread 30, {apart} apart": Regime(normal(30), apart=apart) for apart in (0.1, 1e-3)},
    "ahead by 15, 1e-3 apart": Regime(ahead(15), apart=1e-3),
    "offsets ±1e4": Regime(normal(1, 1e4), normal(1, -1e4)),
    "offset 1e4, 0.01 apart": Regime(normal(1, 1e4), apart=0.01),
    **{f"temperature {t}": Regime(normal(), normal(), temperature=t) for t in (0.01, 0.7, 100.0)},
    "temperature 0.7, 1e-3 apart": Regime(normal(), apart=1e-3, temperature=0.7),
    "two classes": Regime(normal(3), normal(3), shape=(100, 2)),
    "1000 classes": Regime(normal(), normal(), shape=(2, 1000)),
    "50257 classes": Regime(normal(), normal(3), shape=(1, 50257)),
}


def total(values):
    return np.asarray(values.sum(1, keepdims=True))


class Exact:
    """By MPFR: the divergences and gradients of every row, and the roundings that each may have."""

    def __init__(self, p_logits, q_logits, temperature):
        scale = 1 if temperature is None else FINE(p_logits.dtype.type(temperature))
        u_p, u_q = (FINE(x) / scale for x in (p_logits, q_logits))
        u_p, u_q = (u - np.asarray(u.max(1, keepdims=True)) for u in (u_p, u_q))
        e_p, e_q = EXP(u_p), EXP(u_q)
        s_p, s_q = total(e_p), total(e_q)
        p, q, d = e_p / s_p, e_q / s_q, (u_q - u_p) - LOG(s_q / s_p)
        m = (p + q) / 2
        # d is a difference of logits, rounded, minus the logarithm of a sum of differences to 4 ulp.
        # The error of d changes a sum by its derivative in d, which is a difference of p and q.
        of_d = abs(u_q - u_p) / 2 + abs(d) / 2 + 4 * total(abs(e_q - e_p)) / np.maximum(s_p, s_q)
        kl = total(-p * d)
        from_p, from_q = LOG(m / p), LOG(m / q)
        kl_p, kl_q = total(-p * from_p), total(-q * from_q)
        # The error of the logarithm is common to all d, and cancels in the sums. Every term has the error of
        # an exponential: half of |x − max|/T for the larger of p and q.
        of_sum = total(abs(q - p) * (abs(u_q - u_p) + abs(d)) / 2)
        of_terms = np.minimum(abs(u_p), abs(u_q)) / 2
        of_kl, *of_js = (
            total(of_terms * (other - one - one * log))
            for one, other, log in ((p, q, d), (p, m, from_p), (q, m, from_q))
        )
        self.values = {
            "kl": (kl, of_sum + of_kl),
            "js": ((kl_p + kl_q) / 2, of_sum / 4 + sum(of_js) / 2),
        }
        self.gradients = {
            # The larger of q and p is a probability, with an error of 4 + |x − max|/T ulp.
            "kl": (
                self.in_first(p, u_p, d, kl, of_d),
                (q - p, np.minimum(p, q) * of_d - abs(q - p) * np.where(q > p, u_q, u_p)),
            ),
            "js": (
                self.halved(self.in_first(p, u_p, from_p, kl_p, of_d * q / (p + q))),
                self.halved(self.in_first(q, u_q, from_q, kl_q, of_d * p / (p + q))),
            ),
        }

    @staticmethod
    def in_first(p, u, d, kl, of_d):
        """−p·(d + KL), and its roundings; for a leading class, those of the terms that it sums.

        The factor p is a probability, with an error of 4 + |x − max|/T ulp.
        """
        apart = of_d + 4 * abs(d)
        others = np.where(p > 0.5, 0, p)
        of_lead = apart * total(others) + total(others * apart)
        return -p * (d + kl), p * np.where(p > 0.5, of_lead, apart + 4 * kl - u * abs(d + kl))

    @staticmethod
    def halved(pair):
        return pair[0] / 2, pair[1] / 2


def divergences_and_gradients(p, q, temperature):
    options = {} if temperature is None else {"temperature": temperature}

    def of(divergence):
        value, pull = jax.vjp(lambda p, q: divergence(p, q, **options), p, q)
        return value, pull(jnp.full_like(value, 1 if temperature is None else temperature))

    return {name: of(divergence) for name, divergence in DIVERGENCES.items()}


# Compiled once for all regimes of one shape and temperature.
compiled = jit_in_full(divergences_and_gradients, static_argnums=2)


def worst(ours, exact, roundings, slack):
    """The largest error relative to 4 ulp plus the roundings, over the entries that are normal numbers."""
    ours, dtype = np.asarray(ours).reshape(exact.shape), ours.dtype
    off, exact = error(ours, exact)
    size = abs(exact).astype(dtype)
    tiny = np.finfo(dtype).tiny
    ulp = np.spacing(np.maximum(size, tiny)).astype(float)
    # A subnormal term may be lost.
    bound = 4 * ulp + float(np.finfo(dtype).eps) * roundings.astype(float) + slack * float(tiny)
    normal = size >= tiny
    assert normal.any()
    return tuple(np.where(normal, abs(off) / scale, 0).max() for scale in (bound, ulp))


def grid():
    """All regimes in float32, and in float64 without many classes; the default sample compiles less."""
    new_programs = ("1000 classes", "50257 classes", "temperature 0.01", "temperature 100.0")
    for dtype in (np.float32, np.float64):
        for name, regime in REGIMES.items():
            if dtype == np.float32 or regime.shape[1] <= 2000:
                of_one = regime.shape == (8, 100) and regime.temperature is None
                runs = name not in new_programs if dtype == np.float32 else of_one
                marks = () if runs else pytest.mark.full
                yield pytest.param(name, dtype, marks=marks, id=f"{name}-{np.dtype(dtype).name}")


@pytest.mark.share(9)
@pytest.mark.parametrize(("regime", "dtype"), [*grid()])
def test_accuracy(regime, dtype):
    """4 ulp and the roundings of d. `pytest -rP -k accuracy` prints the table."""
    p, q = REGIMES[regime].logits(dtype)
    temperature = REGIMES[regime].temperature
    exact = Exact(p, q, temperature)
    with jax.enable_x64(dtype == np.float64):
        ours = compiled(p, q, temperature)
    failures = []
    for name, (value, gradients) in ours.items():
        table = {name: (value, *exact.values[name])}
        for of, gradient, want in zip("pq", gradients, exact.gradients[name], strict=True):
            table[f"{name} in {of}"] = (gradient, *want)
        for row, entry in table.items():
            ratio, ulps = worst(*entry, slack=p.shape[1])
            print(f"{regime:28}{np.dtype(dtype).name:9}{row:9}{ulps:10.3g} ulp{ratio:8.2f} of the bound")
            if ratio > 1:
                failures.append(f"{row}: {ratio:.2f} of the bound")
    assert not failures, failures


def test_scipy_agrees_in_float64(x64):
    for name in ("unit", "0.1 apart", "p ahead by 15"):
        x, y = REGIMES[name].logits(np.float64)
        p, q = special.softmax(x, -1), special.softmax(y, -1)
        m = (p + q) / 2
        kl = special.rel_entr(p, q).sum(-1)
        js = (special.rel_entr(p, m) + special.rel_entr(q, m)).sum(-1) / 2
        np.testing.assert_allclose(jsoftmax.kl_divergence(x, y), kl, rtol=1e-11)
        np.testing.assert_allclose(jsoftmax.js_divergence(x, y), js, rtol=1e-11)


@pytest.mark.share(4)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("temperature", [None, 0.7])
def test_equal_distributions_do_not_diverge(temperature, dtype):
    """Exactly 0, with gradients of exactly 0; a shift without roundings changes nothing."""
    x = jnp.asarray(np.random.default_rng(0).integers(-64, 64, (5, 40)) / 8, dtype)
    for q in (x, x + 16):
        for leaf in jax.tree.leaves(compiled(x, q, temperature)):
            np.testing.assert_array_equal(leaf, jnp.zeros(leaf.shape, leaf.dtype))


@st.composite
def pairs(draw):
    shape = draw(st.sampled_from([(3, 1), (2, 33)]))
    elements = st.floats(-40, 40, width=32) | st.sampled_from([0.0, 1.0, 15.0, -INF])
    p, q = (draw(hnp.arrays(np.float32, shape, elements=elements)) for _ in "pq")
    near = draw(st.sampled_from([0, 1e-6, 1e-3, None]))
    if near is not None:
        q = p + np.float32(near) * np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape)
    return p, q.astype(np.float32)


@jax.jit
def _both_ways(p, q):
    return divergences_and_gradients(p, q, None), divergences_and_gradients(q, p, None)


@laws
@given(pairs())
def test_laws(pair):
    """Never negative; JS at most log 2, symmetric, and below both KL/2; gradients sum to 0."""
    here, there = jax.tree.map(np.asarray, _both_ways(*pair))
    (kl, kl_gradients), (js, js_gradients) = here["kl"], here["js"]
    back = there["kl"][0]
    eps = np.finfo(np.float32).eps
    assert np.all(kl >= 0)
    assert np.all(js >= 0)
    assert np.all(js <= np.float32(np.log(2)))
    np.testing.assert_array_equal(js, there["js"][0])
    jax.tree.map(np.testing.assert_array_equal, js_gradients, there["js"][1][::-1])
    # JS ≤ (KL(p‖q) + KL(q‖p))/4.
    assert np.all(js <= (kl + back) / 4 * (1 + 32 * eps) + np.finfo(np.float32).tiny)
    for gradients, divergence in ((kl_gradients, kl), (js_gradients, js)):
        for gradient in gradients:
            assert np.all(np.isfinite(gradient))
            off = np.abs(gradient.astype(np.float64).sum(-1))
            terms = np.abs(gradient).sum(-1) + 1
            finite = np.isfinite(divergence)
            assert np.all(off[finite] <= 64 * eps * ((1 + divergence) * terms)[finite])


@jax.jit
def _first_and_second(p, q, where, temperature):
    def of(divergence):
        def rows(p, q, temperature=None):
            return divergence(p, q, where=where, temperature=temperature)

        floats = (p, q) if temperature is None else (p, q, temperature)
        return to_second_order(rows, jnp.sum, floats)

    return {name: of(divergence) for name, divergence in DIVERGENCES.items()}


def first_and_second(p, q, where=None, temperature=None, forward=False):
    """For each divergence: values, gradients in both logits and T, and a product with the Hessian."""
    temperature = None if temperature is None else jnp.float32(temperature)
    with jsoftmax.forward_mode() if forward else nullcontext():
        return jax.tree.map(np.asarray, _first_and_second(p, q, where, temperature))


corners = pytest.mark.parametrize(
    ("temperature", "forward"),
    # By default the tests share one program.
    [
        (None, False),
        pytest.param(None, True, marks=pytest.mark.full),
        pytest.param(0.5, False, marks=pytest.mark.full),
    ],
    ids=str,
)


def assert_derivatives_are(predicate, results):
    for _, *derivatives in results.values():
        assert all(predicate(leaf).all() for leaf in jax.tree.leaves(derivatives))


def by_scipy(p_logits, q_logits):
    p, q = (special.softmax(np.asarray(x, np.float64), -1) for x in (p_logits, q_logits))
    m = (p + q) / 2
    js = (special.rel_entr(p, m) + special.rel_entr(q, m)).sum(-1) / 2
    return p, q, special.rel_entr(p, q).sum(-1), js


@pytest.mark.long
@corners
def test_a_class_dead_in_p_counts_nothing_times_log_nothing(temperature, forward):
    """In both rows, or only in p: finite to the second order, and a dead logit has gradient 0."""
    p, q = jnp.array([[-INF, -1.0, -INF, 2.0]]), jnp.array([[1.0, 0.0, -INF, -0.5]])
    with jax.debug_nans(True):
        results = first_and_second(p, q, temperature=temperature, forward=forward)
    *_, kl, js = by_scipy(p / (temperature or 1), q / (temperature or 1))
    np.testing.assert_allclose(results["kl"][0], kl, rtol=1e-6)
    np.testing.assert_allclose(results["js"][0], js, rtol=1e-6)
    assert_derivatives_are(np.isfinite, results)
    for _, (in_p, in_q, *_), _ in results.values():
        np.testing.assert_array_equal(in_p[0, [0, 2]], np.zeros(2))
        assert in_q[0, 2] == 0
        assert in_q[0, 0] != 0


@corners
@pytest.mark.parametrize("logit", [0.5, -200.0], ids=["normal", "underflowing"])
def test_what_q_rules_out_and_p_does_not_costs_infinity(logit, temperature, forward):
    """Its gradient in q is q − p, 0 at the dead class, and 0 in p; JS is finite."""
    p, q = jnp.array([[logit, -1.0, 2.0, 0.5]]), jnp.array([[-INF, 0.0, -0.5, 1.0]])
    with jax.debug_nans(True):
        results = first_and_second(p, q, temperature=temperature, forward=forward)
    p, q, _, js = by_scipy(p / (temperature or 1), q / (temperature or 1))
    kl, (in_p, in_q, *_), _ = results["kl"]
    assert kl == INF
    np.testing.assert_array_equal(in_p, np.zeros((1, 4)))
    assert in_q[0, 0] == 0
    np.testing.assert_allclose(in_q[:, 1:], (q - p)[:, 1:] / (temperature or 1), rtol=1e-5)
    np.testing.assert_allclose(results["js"][0], js, rtol=1e-6)
    assert results["js"][1][1][0, 0] == 0
    assert_derivatives_are(np.isfinite, results)


@pytest.mark.long
@pytest.mark.share(2)
@corners
@pytest.mark.parametrize("huge", [1e20, 1e36])
def test_logits_whose_square_is_no_number(huge, temperature, forward):
    """In one of the rows, or in both: finite to the second order."""
    usual = jnp.array([[0.3, -0.2, 0.1, 1.0]])
    for row in [0, -huge, 1, 2], [0, -huge, -huge / 2, 1], [huge, -huge, 1, 0]:
        x = jnp.array([row], jnp.float32)
        for p, q in ((x, usual), (usual, x), (x / 2, x), (x, x[:, ::-1] / 2)):
            results = first_and_second(p, q, temperature=temperature, forward=forward)
            assert_derivatives_are(np.isfinite, results)


@pytest.mark.long
@corners
def test_a_row_that_is_empty_in_either(temperature, forward):
    live, dead = jnp.array([[1.0, 0.0, -2.0, -1.0]]), jnp.array([[-INF] * 4])
    for p, q in ((dead, live), (live, dead), (dead, dead)):
        with jax.debug_nans(True):
            results = first_and_second(p, q, temperature=temperature, forward=forward)
        assert results["kl"][0] == results["js"][0] == 0
        assert_derivatives_are(lambda a: a == 0, results)


@pytest.mark.parametrize("option", ["temperature", "where", None])
def test_the_gradient_in_q_alone_is_that_in_both(option):
    """Also its own derivatives, in both; with rows that are close, far apart, empty, and without a class."""
    noise = jax.random.normal(jax.random.key(0), (2, 9, 40))
    p, q = noise[0], noise.at[1, 0].set(noise[0, 0] * (1 + 1e-6)).at[1, 1, 7].add(30)[1]
    p, q = p.at[2, 3].set(-INF).at[3, 4].set(-INF).at[4].set(-INF), q.at[2, 5].set(-INF).at[3, 4].set(-INF)
    options = {None: {}, "temperature": {"temperature": 0.7}, "where": {"where": noise[0] > -1}}

    def total(p, q):
        values = jsoftmax.kl_divergence(p, q, **options[option])
        return jnp.sum(jnp.where(jnp.isfinite(values), values, 0) * jnp.arange(1.0, 10.0))

    def alone(p, q):
        return jax.grad(total, 1)(p, q)

    def of_both(p, q):
        return jax.grad(total, (0, 1))(p, q)[1]

    np.testing.assert_array_max_ulp(alone(p, q), of_both(p, q), 2)
    v = jnp.sin(jnp.arange(q.size, dtype=q.dtype)).reshape(q.shape)
    second = (jax.grad(lambda p, q, f=f: jnp.vdot(f(p, q), v), (0, 1))(p, q) for f in (alone, of_both))
    for got, want in zip(*second, strict=True):
        assert np.any(got)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.long
@pytest.mark.share(4)
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("side", [0, 1], ids="pq")
def test_an_overflow_of_either_is_seen_in_its_row_alone(side, bad):
    """Also with dead classes in that row, and next to a row without a live class."""
    pair = [jnp.array([[0.0, 1.0, 2.0], [3.0, -INF, 1.0], [-INF] * 3]), jnp.array([[0.5, -INF, 1.0]] * 3)]
    good = first_and_second(*pair)
    for row in range(3):
        ill = list(pair)
        ill[side] = pair[side].at[row, 0].set(bad)
        results = first_and_second(*ill)
        for name in DIVERGENCES:
            for ours, want in zip(results[name][:2], good[name][:2], strict=True):
                for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(want), strict=True):
                    np.testing.assert_array_equal(np.delete(a, row, 0), np.delete(b, row, 0))
            value, gradients, _ = results[name]
            # Without a live class in one of the two rows, the divergence is 0.
            assert np.isnan(value[row])
            assert all(np.isnan(gradient[row, [0, 2]]).all() for gradient in gradients)


@pytest.mark.long
def test_what_lies_under_the_mask_does_not_matter():
    rng = np.random.default_rng(0)
    p, q = (rng.normal(size=(3, 6)).astype(np.float32) for _ in "pq")
    where = np.arange(6) != rng.integers(0, 6, (3, 1))
    want = first_and_second(p, q, where)
    with jax.debug_nans(True):
        for junk in ((NAN, NAN), (INF, 1e38), (-INF, NAN), (0, -INF)):
            filled = (np.where(where, a, np.float32(b)) for a, b in zip((p, q), junk, strict=True))
            jax.tree.map(np.testing.assert_array_equal, first_and_second(*filled, where), want)


@pytest.mark.full
@modes
def test_near_itself_it_is_a_quadratic_form_of_the_jacobian(mode, x64):
    """At p = q the Hessian in either is that of the softmax, diag(p) − p pᵀ; a quarter of it for JS."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=7))
    jacobian = jsoftmax.rules.softmax_jacobian(jsoftmax.softmax(x))
    for divergence, share in ((jsoftmax.kl_divergence, 1), (jsoftmax.js_divergence, 0.25)):
        with mode():
            gradient = jax.grad(divergence, (0, 1))
            (pp, pq), (qp, qq) = jax.jit(jax.jacrev(gradient, (0, 1)))(x, x)
        for hessian, sign in ((pp, 1), (qq, 1), (pq, -1), (qp, -1)):
            np.testing.assert_allclose(hessian, sign * share * jacobian, rtol=1e-12, atol=1e-15)


@pytest.mark.share(2)
@each
def test_short_logits_beside_full_ones_stay_short(divergence):
    """As residuals and in their gradient; the values are those of the same numbers in float32."""
    rng = np.random.default_rng(0)
    p, q = (
        jnp.asarray(rng.normal(size=(4, 9)), jnp.bfloat16),
        jnp.asarray(rng.normal(size=(4, 9)), jnp.float32),
    )
    value, pull = jax.vjp(divergence, p, q)
    np.testing.assert_allclose(value, divergence(p.astype(jnp.float32), q), rtol=5e-7)  # 4 ulp
    assert [gradient.dtype for gradient in pull(value)] == [jnp.bfloat16, jnp.float32]
    kept = [leaf.dtype for leaf in jax.tree.leaves(pull) if leaf.size == p.size]
    assert sorted(kept, key=str) == [jnp.bfloat16, jnp.float32]
