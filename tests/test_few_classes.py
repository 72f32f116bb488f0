"""Sparse targets and largest log-probabilities agree with the same computation on arrays of all classes."""

import contextlib

import definitions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampling
from compiling import jit_in_full
from jax.experimental import checkify
from mpmath import mp
from scipy import special

import jsoftmax
from jsoftmax import SparseTargets
from jsoftmax.transforms import _platforms

INF, NAN = np.inf, np.nan
MODES = {"reverse": contextlib.nullcontext, "forward": jsoftmax.forward_mode}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
ROWS, FEATURES, CLASSES, K = 5, 3, 9, 4


def agree(got, want, rtol=1e-9, atol=1e-11):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def given(seed=0):
    """A head, and sparse targets with a repeated id, a padded row, and rows that sum to less than 1."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(CLASSES)[:K] for _ in range(ROWS)])
    ids[1, 3], ids[2, 2:] = ids[1, 0], -1
    log_probs = np.log(rng.dirichlet(np.ones(K + 1), ROWS)[:, :K])
    log_probs[2, 2:] = -INF
    floats = {
        "hidden": rng.normal(size=(ROWS, FEATURES)),
        "weight": rng.normal(size=(FEATURES, CLASSES)),
        "bias": rng.normal(size=CLASSES),
        "log_probs": log_probs,
        "class_weights": rng.uniform(0.5, 2, CLASSES),
        "weights": rng.uniform(0.5, 2, ROWS),
        "temperature": rng.uniform(0.5, 2, ROWS),
        "z_loss": np.float64(0.1),
    }
    where = rng.random((ROWS, CLASSES)) < 0.8
    np.put_along_axis(where, np.where(ids < 0, ids[:, :1], ids), True, 1)
    return {n: jnp.asarray(a) for n, a in floats.items()}, jnp.asarray(ids), jnp.asarray(where)


def logits(f):
    return f["hidden"] @ f["weight"] + f["bias"][None]


def dense_targets(log_probs, ids):
    """The targets as an array [B, V]; probabilities of repeated ids are added."""
    hit = ids[..., None] == jnp.arange(CLASSES)[None, None]
    return jnp.sum(jnp.where(hit, jnp.exp(log_probs)[..., None], 0), 1)


def plain_kl(f, ids, where, tail):
    """The divergence over K + 1 events, from the log-softmax of all classes."""
    log_q = definitions.log_softmax(logits(f), where=where, temperature=f["temperature"][:, None])
    t = dense_targets(f["log_probs"], ids)
    among = t > 0
    safe = jnp.where(among, t, 1)
    out = jnp.sum(jnp.where(among, t * (jnp.log(safe) - jnp.where(among, log_q, 0)), 0), -1)
    if tail:
        rest, of_q = 1 - t.sum(-1), jnp.sum(jnp.where(among, 0, jnp.exp(log_q)), -1)
        out = out + rest * jnp.log(rest / of_q)
    return f["weights"] * out


def plain_loss(f, ids):
    options = {n: f[n] for n in ("class_weights", "weights", "temperature", "z_loss")}
    return jsoftmax.cross_entropy(logits(f), dense_targets(f["log_probs"], ids), **options)


def ours_of(name, f, ids, where, **options):
    p = SparseTargets(ids, f["log_probs"])
    options |= {n: f[n] for n in ("weights", "temperature")}
    if "loss" in name:
        options |= {n: f[n] for n in ("class_weights", "z_loss")}
        if "head" in name:
            return jsoftmax.linear_cross_entropy(
                f["hidden"], f["weight"], p, bias=f["bias"], block_size=2, **options
            )
        return jsoftmax.cross_entropy(logits(f), p, **options)
    options |= {"tail": "tail" in name, "where": where}
    if "head" in name:
        h, w = f["hidden"], f["weight"].T
        return jsoftmax.linear_sparse_kl_divergence(
            p, h, w, q_bias=f["bias"], vocab_axis=0, block_size=2, **options
        )
    return jsoftmax.sparse_kl_divergence(p, logits(f), **options)


@pytest.mark.share(6)
@pytest.mark.long
@modes
@pytest.mark.parametrize("what", ["loss", "KL", "KL, tail"])
@pytest.mark.parametrize("head", sampling.sample(["", "head, "], "head, "), ids=["logits", "head"])
@pytest.mark.parametrize("reduction", sampling.sample(["none", "sum"], "none"))
def test_values_and_gradients_are_those_of_all_classes(reduction, head, what, mode, x64, monkeypatch):
    """Logits and heads, with first and second derivatives, in the form that large heads take."""
    monkeypatch.setattr(_platforms, "MOST_PLAIN", 0)
    f, ids, where = given()
    along = jax.tree.map(jnp.cos, f)
    along["log_probs"] = jnp.where(jnp.isfinite(f["log_probs"]), along["log_probs"], 0)

    def plain(f):
        return plain_loss(f, ids) if what == "loss" else plain_kl(f, ids, where, "tail" in what)

    @jax.jit
    def everything(f):
        def of(h):
            def total(f):
                out = h(f)
                return jnp.sum(jnp.sin(out)), out

            def along_it(f):
                gradient, out = jax.grad(total, has_aux=True)(f)
                pairs = zip(*map(jax.tree.leaves, (gradient, along)), strict=True)
                return sum(jnp.vdot(a, b) for a, b in pairs), (out, gradient)

            return jax.grad(along_it, has_aux=True)(f)

        def ours(f):
            return ours_of(head + what, f, ids, where, reduction=reduction)

        if reduction == "none":
            return of(plain), of(ours)
        return [jax.value_and_grad(total)(f) for total in (lambda f: plain(f).sum(), ours)]

    with mode():
        want, got = jax.tree.map(np.nan_to_num, everything(f))
    agree(got, want)


@pytest.mark.long
def test_tiny_and_empty_tails():
    """In multi-precision: tiny tails of targets and of logits, and K = V, where rounding leaves a tail."""

    @jit_in_full
    @jax.vmap
    def ours(x, log_probs):
        p = SparseTargets(jnp.where(log_probs > -INF, jnp.arange(2), -1), log_probs)
        return jax.value_and_grad(lambda x: jsoftmax.sparse_kl_divergence(p, x))(x)

    logits = np.float32([[lead + 1, lead, 0.5, -0.5, 0.1] for lead in (0.0, 15.0, 27.0, 60.0)])
    targets = np.float32([[0.6, 0.3], [0.5, 0.5 - 1e-7], [1 - 2.0**-20, 0], [0.9, 0.1 - 1e-8]])
    with np.errstate(divide="ignore"):
        given = np.repeat(logits, 4, 0), np.tile(np.log(targets), (4, 1))
    for x, log_probs, value, dx in zip(*given, *ours(*given), strict=True):
        log_probs = log_probs[np.isfinite(log_probs)]
        ids = np.arange(len(log_probs))
        z, log_t = (definitions.exactly(a) for a in (x, log_probs))
        e = definitions.EXACT.exp(z)
        q, t = e / e.sum(), definitions.EXACT.exp(log_t)
        rest, of_q = 1 - t.sum(), q[len(ids) :].sum()
        exact = (t * (log_t - definitions.EXACT.log(q[: len(ids)]))).sum()
        gradient = q * (1 if rest <= 0 else 1 - rest / of_q)
        gradient[: len(ids)] = q[: len(ids)] - t
        if rest > 0:
            exact = exact + rest * mp.log(rest / of_q)
        # The rounding of float32 log-probabilities is an error of their sum, and so of the tail.
        unsure = 4e-7 * (1 + abs(float(mp.log(of_q))))
        assert abs(float(value) - float(exact)) <= unsure + 2e-6 * abs(float(exact))
        np.testing.assert_allclose(dx[: len(ids)], gradient[: len(ids)].astype(float), atol=4e-7)
    x = jnp.asarray([0.3, -1.0, 2.0])
    p = jax.nn.log_softmax(jnp.asarray([1.0, 0.5, -0.3]))
    whole = jsoftmax.sparse_kl_divergence(SparseTargets(jnp.arange(3), p), x)
    np.testing.assert_allclose(whole, jsoftmax.kl_divergence(p, x), rtol=1e-6)
    # Without a tail, targets with a sum of 0.9 are those divided by 0.9.
    found = jax.value_and_grad(lambda t: jsoftmax.sparse_kl_divergence(SparseTargets(jnp.arange(3), t), x))(
        p + jnp.log(0.9)
    )
    want = jax.value_and_grad(jsoftmax.kl_divergence)(p, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, want)


@pytest.mark.long
def test_statistics_beside_a_loss_of_sparse_targets(x64):
    """Those of `linear_row_statistics` with these targets of all classes; the gradient is as without them."""
    f, ids, where = given()
    where = where.at[3].set(False)  # a row that does not count

    @jax.jit
    def everything(f):
        t, options = dense_targets(f["log_probs"], ids), {"bias": f["bias"], "where": where}
        arguments = f["hidden"], f["weight"]

        def ours(f, statistics):
            return jsoftmax.linear_cross_entropy(
                f["hidden"],
                f["weight"],
                SparseTargets(ids, f["log_probs"]),
                class_weights=f["class_weights"],
                z_loss=f["z_loss"],
                reduction="mean",
                statistics=statistics,
                block_size=2,
                **options,
            )

        alone = jax.value_and_grad(lambda f: ours(f, False))(f)
        both, gradient = jax.value_and_grad(lambda f: ours(f, True), has_aux=True)(f)
        return alone, ((both[0], gradient), both[1]), jsoftmax.linear_row_statistics(*arguments, t, **options)

    alone, (with_statistics, statistics), want = everything(f)
    agree(with_statistics, alone)
    agree(tuple(statistics), tuple(want))


@pytest.mark.long
def test_equal_distributions_do_not_diverge():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 50)), jnp.float32)

    def of(x):
        top = jax.lax.stop_gradient(jsoftmax.top_log_probs(x, 7))
        return jnp.sum(jsoftmax.sparse_kl_divergence(SparseTargets(top.ids, top.log_probs), x))

    value, gradient = jax.jit(jax.value_and_grad(of))(x)
    assert 0 <= value < 1e-12
    assert np.abs(gradient).max() < 1e-6


def test_a_student_outside_the_ids_pays():
    """MaxText and tunix renormalise both distributions over the K ids: their loss is 0 here."""
    p = SparseTargets(jnp.array([[0, 1]]), jnp.log(jnp.array([[0.6, 0.3]])))
    x = jnp.concatenate([p.log_probs, jnp.full((1, 30), 8.0)], 1)
    ours, gradient = jax.jit(jax.value_and_grad(lambda x: jsoftmax.sparse_kl_divergence(p, x)[0]))(x)
    a, b = (special.log_softmax(np.asarray(v), -1) for v in (p.log_probs, x[:, :2]))
    assert abs(np.sum(np.exp(a) * (a - b))) < 1e-6
    assert ours > 8
    assert np.all(gradient[0, :2] < -0.29)


@pytest.mark.long
def test_corners():
    """Bad ids, dead and masked classes, NaN, rows of weight 0, fully masked rows."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
    x = x.at[1, 2].set(-INF).at[2, 4].set(NAN).at[3].set(NAN).at[5].set(NAN)
    ids = jnp.array([[0, 1], [2, 0], [0, 1], [0, 1], [0, 7], [0, 1]])
    p = SparseTargets(ids, jnp.log(jnp.full((6, 2), 0.25)))
    weights, where = jnp.array([1.0, 1, 1, 0, 1, 1]), jnp.ones((6, 5), bool).at[5].set(False)

    @jax.jit
    def everything(x):
        def of(f):
            return jax.vjp(lambda x: f(x), x)

        options = {"weights": weights, "where": where}
        dense = [
            of(lambda x: jsoftmax.sparse_kl_divergence(p, x, **options)),
            of(lambda x: jsoftmax.cross_entropy(x, p, **options)),
        ]
        head = [
            of(lambda x: jsoftmax.linear_sparse_kl_divergence(p, x, jnp.eye(5), block_size=4, **options)),
        ]
        return [(out, pull(jnp.ones(6))[0]) for out, pull in dense], head[0][0]

    found, of_head = everything(x)
    for value, gradient in found:
        np.testing.assert_array_equal(np.isnan(value), [False, False, True, False, True, False])
        assert value[1] == INF
        assert value[3] == value[5] == 0
        bad = np.isnan(gradient).any(1)
        np.testing.assert_array_equal(bad, [False, False, True, False, True, False])
        assert not gradient[3].any()
        assert not gradient[5].any()
    assert np.isfinite(of_head[0])
    with pytest.raises(checkify.JaxRuntimeError, match=r"class id 7 of row 4 is outside \[0, 5\)"):
        checkify.check_error(checkify.checkify(jsoftmax.sparse_kl_divergence, checkify.user_checks)(p, x)[0])


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("of", ["logits", "head"])
def test_the_largest_log_probabilities(of, x64):
    """Logits and heads: values, ids, ranks and derivatives equal those from a stable argsort and jax.nn."""
    f, _, where = given()
    x = logits(f).at[0, 2].set(logits(f)[0, 5])
    labels = jnp.array([3, 8, 0, 5, 5])
    options = {"temperature": f["temperature"], "labels": labels}

    def ours(x):
        return jsoftmax.top_log_probs(x, K, **options)

    def head(h, w):
        return jsoftmax.linear_top_log_probs(h, w, K, bias=f["bias"], block_size=2, **options)

    def plain(x):
        log_p = jax.nn.log_softmax(x / f["temperature"][:, None])
        ids = jnp.argsort(-x, -1, stable=True)[:, :K]
        normalizer = jax.nn.logsumexp(x / f["temperature"][:, None], -1)
        rank = 1 + jnp.sum(x > jnp.take_along_axis(x, labels[:, None], 1), -1)
        return jnp.take_along_axis(log_p, ids, 1), ids, normalizer, log_p[jnp.arange(ROWS), labels], rank

    def floats(found):
        return found[0], found[2], found[3]

    @jax.jit
    def everything(x, h, w):
        def total(f):
            return lambda *a: sum(jnp.sum(jnp.sin(out)) for out in floats(f(*a)))

        def of_head(h, w):
            return plain(h @ w + f["bias"][None])

        if of == "logits":
            return [(tuple(g(x)), jax.grad(total(g))(x)) for g in (ours, plain)]
        return [(tuple(g(h, w)), jax.grad(total(g), (0, 1))(h, w)) for g in (head, of_head)]

    agree(*everything(x, f["hidden"], f["weight"]))
    if of == "head":
        return
    with jsoftmax.forward_mode():
        agree(
            *(
                jax.jit(lambda x, g=g: jax.jvp(lambda x: floats(g(x)), (x,), (jnp.cos(x),))[1])(x)
                for g in (ours, plain)
            )
        )
    masked = jsoftmax.top_log_probs(x, CLASSES, where=where)
    np.testing.assert_array_equal(np.isfinite(masked.log_probs).sum(1), where.sum(1))
    bad = jsoftmax.top_log_probs(x, 1, labels=labels.at[0].set(CLASSES))
    assert np.isnan(bad.label_log_prob[0])
    assert bad.label_rank[0] == 0


def test_a_confident_label_keeps_its_digits():
    top = jsoftmax.top_log_probs(jnp.array([40.0, 0.0, 0.0]), 2, labels=0)
    np.testing.assert_allclose(top.label_log_prob, -2 * np.exp(-40.0), rtol=1e-6)
    gradient = jax.grad(lambda x: jsoftmax.top_log_probs(x, 2).log_probs[0])(jnp.array([40.0, 0.0, 0.0]))
    np.testing.assert_allclose(gradient, np.array([2, -1, -1]) * np.exp(-40.0), rtol=1e-5)


def test_errors():
    x = jnp.zeros((2, 3))
    p = SparseTargets(jnp.zeros((2, 1), int), jnp.zeros((2, 1)))
    for call, kind, message in (
        (lambda: jsoftmax.sparse_kl_divergence(x, x), TypeError, "not SparseTargets; write"),
        (
            lambda: jsoftmax.sparse_kl_divergence(p._replace(ids=x[:, :1]), x),
            TypeError,
            "class ids as integers",
        ),
        (
            lambda: jsoftmax.cross_entropy(x[:1], p),
            ValueError,
            r"for rows of shape \(1,\); give both the shape",
        ),
        (lambda: jsoftmax.cross_entropy(x, p, ignore_index=0), ValueError, "ignore_index is for class ids"),
        (lambda: jsoftmax.top_log_probs(x, 4), ValueError, "k is 4, and there are 3 classes"),
        (lambda: jsoftmax.linear_top_log_probs(x, x.T, 3), ValueError, "k is 3, and there are 2 classes"),
        (lambda: jsoftmax.top_log_probs(x, 0), ValueError, "write an integer of at least 1"),
        (
            lambda: jsoftmax.linear_kl_divergence(x, jnp.zeros((3, 4)), x, jnp.zeros((3, 5))),
            ValueError,
            r"\(2, 4\), and those of q \(2, 5\); give both heads the same numbers",
        ),
        (lambda: jsoftmax.js_divergence(x, x, beta=1), ValueError, "between 0 and 1"),
        (
            lambda: jsoftmax.kl_divergence(x, x, weights=jnp.ones(3)),
            ValueError,
            "neither one number nor one per row",
        ),
    ):
        with pytest.raises(kind, match=rf"^jsoftmax\.(?s:.*){message}"):
            call()


@pytest.mark.long
def test_sparse_targets_under_vmap():
    """Values and gradients equal those of one call for all rows, mapped over either row axis."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    ids, log_probs = jnp.asarray(rng.integers(0, 4, (2, 3, 2))), jnp.log(jnp.asarray([0.6, 0.3], jnp.float32))
    log_probs = jnp.broadcast_to(log_probs, ids.shape)

    def loss(x, ids, log_probs):
        return jsoftmax.cross_entropy(x, jsoftmax.SparseTargets(ids, log_probs))

    @jax.jit
    def everything():
        found = []
        for f in (loss, jax.vmap(loss), jax.vmap(loss, 1, 1)):
            out, pull = jax.vjp(lambda x, f=f: f(x, ids, log_probs), x)
            found.append((out, *pull(jnp.cos(out))))
        return found

    whole, *others = everything()
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), other, whole)
