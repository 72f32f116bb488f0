"""Distillation losses of two heads, and row weights."""

import contextlib
import functools

import definitions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampling
from compiling import jit_in_full
from scipy import special

import jsoftmax
from jsoftmax.transforms import _platforms

INF, NAN = np.inf, np.nan
MODES = {"reverse": contextlib.nullcontext, "forward": jsoftmax.forward_mode}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def agree(got, want, rtol=1e-10, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


ROWS, FEATURES, CLASSES = 6, 4, 7
KEPT = np.array([1.0, 1, 0, 1, 1, 0])  # the third row is masked, the last row is ignored
GIVEN = np.array([1.0, 0, NAN, 2, -0.5, 3])  # weights; the second row is hidden


def rows(seed=0):
    rng = np.random.default_rng(seed)
    x, q = (jnp.asarray(rng.normal(size=(ROWS, CLASSES))) for _ in "pq")
    where = jnp.ones((ROWS, CLASSES), bool).at[2].set(False)
    labels = jnp.asarray([0, 1, 2, 6, 5, -1])
    class_weights = jnp.asarray(rng.uniform(0.5, 2, CLASSES))
    hidden, weight = (jnp.asarray(rng.normal(size=s)) for s in ((ROWS, FEATURES), (FEATURES, CLASSES)))
    return x, q, where, labels, class_weights, hidden, weight


def functions_with_weights():
    """For each function: float arguments, the function, and its plain losses with their weights in a mean."""
    x, q, where, y, c, h, w = rows()
    of_labels = c[jnp.clip(y, 0)]

    def cross_entropies(x, c=None):
        losses = -jax.nn.log_softmax(x)[jnp.arange(ROWS), jnp.clip(y, 0)]
        return losses if c is None else losses * c[jnp.clip(y, 0)]

    def loss(x, **options):
        return jsoftmax.cross_entropy(x, y, where=where, ignore_index=-1, **options)

    def head(h, w, **options):
        of_kept = jnp.where(KEPT > 0, y, -1)
        return jsoftmax.linear_cross_entropy(h, w, of_kept, ignore_index=-1, block_size=4, **options)

    def over_rows(divergence):
        one = jnp.array([1.0, 1, 1, 1, 1, 0])
        return lambda x, q, **o: divergence(x, q, where=where & (one[:, None] > 0), **o)

    return {
        "cross_entropy": ((x,), loss, lambda x: (cross_entropies(x), 1)),
        "cross_entropy, class weights": (
            (x,),
            functools.partial(loss, class_weights=c),
            lambda x: (cross_entropies(x, c), of_labels),
        ),
        "linear_cross_entropy": (
            (h, w),
            functools.partial(head, class_weights=c),
            lambda h, w: (cross_entropies(h @ w, c), of_labels),
        ),
        "kl_divergence": (
            (x, q),
            over_rows(jsoftmax.kl_divergence),
            lambda x, q: (definitions.kl_divergence(x, q), 1),
        ),
        "js_divergence": (
            (x, q),
            over_rows(functools.partial(jsoftmax.js_divergence, beta=0.3)),
            lambda x, q: (definitions.js_divergence(x, q, beta=0.3), 1),
        ),
    }


@pytest.mark.share(8)
@modes
@pytest.mark.parametrize("name", ["cross_entropy", "linear_cross_entropy", "kl_divergence", "js_divergence"])
def test_weights_of_rows(name, mode, x64):
    """Sums and means of w·loss, with gradients in all arguments and in w; a row of weight 0 may be NaN."""
    floats, ours, plain = functions_with_weights()[name]
    given = jnp.asarray(GIVEN)
    bad = (floats[0].at[1].set(NAN), *floats[1:])

    @jax.jit
    def everything(floats, w, bad):
        found = {}
        for reduction in ("none", "sum", "mean"):

            def of(floats, w, reduction=reduction):
                return jnp.sum(jnp.sin(ours(*floats, weights=w, reduction=reduction)))

            def wanted(floats, w, reduction=reduction):
                losses, each = plain(*floats)
                w = jnp.where(KEPT > 0, w, 0)
                losses = jnp.where(KEPT > 0, w * losses, 0)
                total = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / (w * each).sum()}
                return jnp.sum(jnp.sin(total[reduction]))

            found[reduction] = [jax.value_and_grad(f, (0, 1))(floats, w) for f in (of, wanted)]
            found[reduction].append(jax.value_and_grad(of, (0, 1))(bad, w))
        return found

    with mode():
        for ours_, want, beside in everything(floats, given, bad).values():
            agree(ours_, want)
            (value, (gradients, of_weights)) = beside
            agree(value, want[0])
            assert all(np.isfinite(g).all() for g in (*gradients, of_weights))
            assert not np.any(gradients[0][1])
            agree(np.delete(gradients[0], 1, 0), np.delete(want[1][0][0], 1, 0))


def test_a_weight_of_0_hides_invalid_options_and_labels():
    """The gradient in a weight of 0 is the loss of its row if that is finite, else 0."""
    x, y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32), jnp.array([1, 9, 2])
    w = jnp.array([1.0, 0, 0])
    options = {"temperature": jnp.array([1.0, NAN, 2]), "label_smoothing": jnp.array([0.1, 3, 0.1])}

    def loss(x, w, reduction="sum"):
        return jsoftmax.cross_entropy(x, y, weights=w, reduction=reduction, **options)

    def head(h, w):
        return jsoftmax.linear_cross_entropy(h, jnp.eye(5), y, weights=w, reduction="sum", **options)

    good = {name: a.at[1].set(a[0]) for name, a in options.items()}
    alone = jsoftmax.cross_entropy(x, y.at[1].set(0), **good)
    with jax.debug_nans(True):
        for f in (loss, head):
            value, (dx, dw) = jax.jit(jax.value_and_grad(f, (0, 1)))(x, w)
            np.testing.assert_allclose(value, alone[0], rtol=1e-6)
            np.testing.assert_allclose(dw, np.asarray(alone) * [1, 0, 1], rtol=1e-6)
            assert not dx[1:].any()
        assert jsoftmax.cross_entropy(x[1:], y[1:], weights=w[1:], reduction="mean") == 0
        assert jsoftmax.kl_divergence(x, x[::-1], weights=jnp.zeros(3), reduction="mean") == 0


def test_the_denominators_of_dapo_and_dr_grpo():
    """Row weights express both: DAPO divides by the number of tokens, Dr. GRPO by a constant."""
    x, y = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)), jnp.float32), jnp.ones((4, 3), int)
    advantage = jnp.array([1.0, -1, 0.5, 0])
    live = jnp.arange(3)[None] < jnp.array([3, 1, 2, 3])[:, None]
    w = jnp.where(live, advantage[:, None], 0)
    losses = jsoftmax.cross_entropy(x, y)
    total = jsoftmax.cross_entropy(x, y, weights=w, reduction="sum")
    np.testing.assert_allclose(total, np.sum(w * losses), rtol=1e-5)
    mean = jsoftmax.cross_entropy(x, y, weights=live.astype(jnp.float32), reduction="mean")
    np.testing.assert_allclose(mean, np.mean(np.asarray(losses)[np.asarray(live)]), rtol=1e-6)


BETAS = (1e-14, 1e-8, 1e-4, 0.1, 0.5, 0.9, 1 - 1e-3)


def test_the_generalised_divergence_is_exact():
    """Values, and gradients in both logits and β, in multi-precision; p and q are close, or far apart."""
    rng = np.random.default_rng(0)
    p = np.float32(np.stack([rng.normal(size=6) * s for s in (1, 1, 1, 8, 0.01)]))
    q = p + np.float32(np.stack([rng.normal(size=6) * s for s in (1e-6, 1e-2, 1, 8, 1)]))
    q = q.astype(np.float32)

    @jit_in_full
    def ours(p, q, beta):
        return jax.vmap(jax.vmap(jax.value_and_grad(jsoftmax_js, (0, 1, 2)), (0, 0, None)), (None, None, 0))(
            p, q, beta
        )

    def jsoftmax_js(p, q, beta):
        return jsoftmax.js_divergence(p, q, beta=beta)

    beta = np.float32(BETAS)
    value, (dp, dq, dbeta) = ours(p, q, beta)
    e_p, e_q = (definitions.FINE(a) for a in (p, q))
    e_p, e_q = (definitions.EXP(a) for a in (e_p, e_q))
    e_p, e_q = (e / e.sum(1, keepdims=True) for e in (e_p, e_q))
    for i, b in enumerate(definitions.FINE(beta)):
        m = b * e_p + (1 - b) * e_q
        from_p, from_q = definitions.LOG(e_p / m), definitions.LOG(e_q / m)
        kl_p, kl_q = ((e * f).sum(1, keepdims=True) for e, f in ((e_p, from_p), (e_q, from_q)))
        want = (b * kl_p + (1 - b) * kl_q)[:, 0].astype(float)
        np.testing.assert_allclose(value[i], want, rtol=4e-6)
        for got, exact in (
            (dp[i], b * e_p * (from_p - kl_p)),
            (dq[i], (1 - b) * e_q * (from_q - kl_q)),
        ):
            exact = exact.astype(float)
            np.testing.assert_allclose(got, exact, atol=1e-5 * np.abs(exact).max(), rtol=1e-3)
        np.testing.assert_allclose(dbeta[i], (kl_p - kl_q)[:, 0].astype(float), rtol=1e-3, atol=1e-12)


@pytest.mark.long
def test_the_limits_of_the_generalised_divergence(x64):
    p, q = (jnp.asarray(np.random.default_rng(i).normal(size=(4, 6))) for i in range(2))
    for beta, want in ((1e-9, jsoftmax.kl_divergence(p, q)), (1 - 1e-9, jsoftmax.kl_divergence(q, p))):
        got = jsoftmax.js_divergence(p, q, beta=beta) / min(beta, 1 - beta)
        np.testing.assert_allclose(got, want, rtol=1e-6)
    for beta, held in ((1 - 1e-9, "1.0"), (1e-46, "0.0")):
        for given in (beta, np.float64(beta)):
            with pytest.raises(ValueError, match=f"and {held} in float32; write a number between 0 and 1"):
                jsoftmax.js_divergence(np.float32(p), np.float32(q), beta=given)
    halves = jnp.full(4, 0.5)
    agree(jsoftmax.js_divergence(p, q, beta=halves), jsoftmax.js_divergence(p, q))
    dead = jnp.where(jnp.arange(6) == 1, -INF, q)
    step = jax.jit(jax.value_and_grad(lambda p, q, b: jsoftmax.js_divergence(p, q, beta=b).sum(), (0, 1, 2)))
    for pair in ((p, dead), (dead, p)):
        value, gradients = step(*pair, halves / 2)
        assert all(np.isfinite(a).all() for a in (value, *gradients))
    assert not np.any(jsoftmax.js_divergence(p, p, beta=0.2))


def by_trl(p, q, beta):
    """`generalized_jsd_loss` of TRL, restated; beta belongs to the teacher p."""
    log_m = np.logaddexp(np.log1p(-beta) + q, np.log(beta) + p)
    of_teacher, of_student = (np.sum(np.exp(a) * (a - log_m), -1) for a in (p, q))
    return beta * of_teacher + (1 - beta) * of_student


def by_liger(p, q, beta):
    """`_jsd_kernel` of Liger-Kernel at 01ed383, restated: three sums that cancel where p and q are close."""
    p_mass, q_mass = beta * np.exp(p), (1 - beta) * np.exp(q)
    m = p_mass + q_mass
    return np.sum(p_mass * p + q_mass * q - m * np.log(m), -1)


def by_torch(p, q):
    """`torch.nn.functional.kl_div(q, p, reduction="none", log_target=True)`, restated and summed."""
    return np.sum(np.exp(p) * (p - q), -1)


def test_peers_define_the_same_divergences(x64):
    """TRL, Liger and torch. In float32, theirs have no right digit if p and q are close."""
    p, q = (np.random.default_rng(i).normal(size=(4, 6)) for i in range(2))
    teacher, student = (special.log_softmax(x, -1) for x in (p, q))
    np.testing.assert_allclose(jsoftmax.kl_divergence(p, q), by_torch(teacher, student), rtol=1e-12)
    for beta in (0.1, 0.5, 0.7):
        ours = jsoftmax.js_divergence(p, q, beta=beta)
        for peer in (by_trl, by_liger):
            np.testing.assert_allclose(ours, peer(teacher, student, beta), rtol=1e-12)

    p, q = np.float32(p), np.float32(p + 1e-5 * q)
    exact, single = ([special.log_softmax(x.astype(t), -1) for x in (p, q)] for t in (np.float64, np.float32))
    for ours, peer, options in (
        (jsoftmax.kl_divergence, by_torch, ()),
        (jsoftmax.js_divergence, by_trl, (0.5,)),
        (jsoftmax.js_divergence, by_liger, (0.5,)),
    ):
        want = peer(*exact, *options)
        np.testing.assert_allclose(ours(p, q), want, rtol=2e-4)
        assert np.any(np.abs(peer(*single, *map(np.float32, options)) - want) > want)


def pair_of_heads():
    rng = np.random.default_rng(0)
    sizes = {"p_hidden": (7, 4), "p_weight": (4, 9), "p_bias": (9,)}
    sizes |= {"q_hidden": (7, 3), "q_weight": (3, 9), "q_bias": (9,), "temperature": (7,), "beta": (7,)}
    floats = {name: jnp.asarray(rng.normal(size=size)) for name, size in sizes.items()}
    floats["temperature"] = 0.3 + jnp.abs(floats["temperature"])
    floats["beta"] = jax.nn.sigmoid(floats["beta"])
    return floats, jnp.ones((7, 9), bool).at[2].set(False).at[3, 4].set(False)


def of_heads(kind, floats, where, **options):
    f = dict(floats)
    heads = [f.pop(name) for name in ("p_hidden", "p_weight", "q_hidden", "q_weight")]
    if kind == "kl":
        del f["beta"]
    divergence = jsoftmax.linear_kl_divergence if kind == "kl" else jsoftmax.linear_js_divergence
    return divergence(*heads, where=where, soft_cap=5.0, block_size=3, **f, **options)


def of_logits(kind, f, where, **options):
    def capped(x):
        return 5 * jnp.tanh(x / 5)

    pair = [capped(f[f"{n}_hidden"] @ f[f"{n}_weight"] + f[f"{n}_bias"][None]) for n in "pq"]
    options |= {"where": where, "temperature": f["temperature"]}
    if kind == "kl":
        return jsoftmax.kl_divergence(*pair, **options)
    return jsoftmax.js_divergence(*pair, beta=f["beta"], **options)


@pytest.mark.long
@pytest.mark.parametrize("mode", sampling.sample(MODES.values(), MODES["reverse"]), ids=MODES)
@pytest.mark.parametrize("kind", sampling.sample(["kl", "js"], "js"))
@pytest.mark.parametrize("reduction", sampling.sample(["none", "mean"], "none"))
def test_divergences_of_heads(reduction, kind, mode, x64, monkeypatch):
    """Values, tangents and gradients, with a partial last block, under vmap, in the form of large heads."""
    monkeypatch.setattr(_platforms, "MOST_PLAIN", 0)
    floats, where = pair_of_heads()

    @jax.jit
    def everything(floats):
        found = []
        for f in (of_heads, of_logits):

            def total(floats, f=f):
                return jnp.sum(jnp.sin(f(kind, floats, where, reduction=reduction)))

            found.append([jax.value_and_grad(total)(floats)])
            if mode is jsoftmax.forward_mode:
                found[-1].append(jax.jvp(total, (floats,), (jax.tree.map(jnp.cos, floats),)))
            elif reduction == "mean":
                several = jax.tree.map(lambda a: jnp.stack([a, 2 * a]) / 2, floats)
                fixed = {name: floats[name] for name in ("p_weight", "q_weight", "beta", "temperature")}
                axes = {name: None if name in fixed else 0 for name in floats}
                mapped = jax.vmap(jax.value_and_grad(total), (axes,))
                found[-1].append(mapped({**several, **fixed}))
        return found

    with mode():
        agree(*everything(floats))


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_sharded_rows_have_one_gradient_of_a_temperature(reduction, x64):
    """Within `jax.shard_map` the shards share T: its gradient is their sum, not one such sum from each."""
    rng = np.random.default_rng(0)
    shapes = (8, FEATURES), (FEATURES, CLASSES)
    given = *(jnp.asarray(rng.normal(size=shape)) for shape in 2 * shapes), jnp.asarray(0.7)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.P("rows"), jax.P()
    specs = rows, whole, rows, whole, whole

    def loss(*heads_and_t):
        *heads, t = heads_and_t
        return jnp.sum(jsoftmax.linear_kl_divergence(*heads, temperature=t, reduction=reduction))

    def of_shards(*given):
        return jax.grad(lambda *given: jax.lax.psum(loss(*given), "rows"), range(5))(*given)

    sharded = jax.shard_map(of_shards, mesh=mesh, in_specs=specs, out_specs=specs)
    agree(jax.jit(sharded)(*given), jax.jit(jax.grad(loss, range(5)))(*given))


@pytest.mark.long
def test_equal_heads_do_not_diverge():
    """Values and gradients are exactly 0, also in 16 bits; unused gradients cost no matrix product."""
    rng = np.random.default_rng(0)
    for dtype in (jnp.float32, jnp.bfloat16):
        h, w = (jnp.asarray(rng.normal(size=size), dtype) for size in ((6, 4), (4, 40)))
        for divergence in (jsoftmax.linear_kl_divergence, jsoftmax.linear_js_divergence):
            f = functools.partial(divergence, reduction="sum", block_size=4)
            value, gradients = jax.jit(jax.value_and_grad(f, (0, 1, 2, 3)))(h, w, h, w)
            assert value == 0
            assert value.dtype == jnp.float32
            assert [g.dtype for g in gradients] == [dtype] * 4
            assert not any(np.any(np.asarray(g, np.float32)) for g in gradients)

    def products(of, wanted):
        f = functools.partial(jsoftmax.linear_kl_divergence, block_size=2)

        def total(*a):
            return jnp.sum(f(*a, reduction=of))

        program = jax.jit(jax.value_and_grad(total, wanted) if wanted else total)
        return (
            program.lower(jnp.ones((8, 4)), jnp.ones((4, 6)), jnp.ones((8, 3)), jnp.ones((3, 6)))
            .as_text()
            .count("stablehlo.dot_general")
        )

    assert products("mean", ()) == 2
    assert products("mean", (2, 3)) == 4
    assert products("mean", (3,)) == 3
    assert products("mean", (0, 1, 2, 3)) == 6
    assert products("none", (2, 3)) == 6


def test_memory_of_two_heads():
    """At most an eighth of the memory of the same loss in jax.numpy."""

    def dense(h, w, g, v):
        p, q = jax.nn.log_softmax(h @ w), jax.nn.log_softmax(g @ v)
        return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1))

    def ours(*heads):
        return jsoftmax.linear_kl_divergence(*heads, reduction="mean")

    shapes = (4096, 512), (512, 50257), (4096, 512), (512, 50257)
    heads = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    of_ours, of_dense = (
        jit_in_full(jax.value_and_grad(f, (2, 3)))
        .lower(*heads)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for f in (ours, dense)
    )
    assert of_ours <= of_dense / 8


def test_statistics_of_rows_to_ignore():
    """Ignored rows give 0 even if they are NaN, from logits and heads; other rows are unaffected."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    bad, y, kept = x.at[2].set(NAN), jnp.array([0, 3, -1, 1, 2]), np.array([0, 1, 3, 4])

    @jax.jit
    def everything(x, bad):
        def of(x):
            head = jsoftmax.linear_row_statistics(x, jnp.eye(4), y, ignore_index=-1, block_size=(2, 3))
            return jsoftmax.row_statistics(x, y, ignore_index=-1), head

        def total(x):
            return sum(jnp.sum(a) for found in of(x) for a in found[:3])

        return of(bad), jsoftmax.row_statistics(x, jnp.abs(y)), jax.grad(total)(bad)

    found, want, gradient = everything(x, bad)
    for one in found:
        for got, all_rows in zip(one, want, strict=True):
            np.testing.assert_allclose(got[kept], all_rows[kept], rtol=1e-6)
            assert got[2] == 0
    assert np.isfinite(gradient).all()
    assert not gradient[2].any()
