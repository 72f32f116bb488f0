"""Two classes, the odds of one class, and losses of sure rows: corners, and where the peers are wrong."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import jsoftmax

INF, NAN = np.inf, np.nan


def every_order(loss, z):
    """The values, and the first and second derivatives of every entry."""
    first = jax.grad(lambda z: loss(z).sum())
    return loss(z), first(z), jax.grad(lambda z: first(z).sum())(z)


@jax.debug_nans(True)
def test_logits_of_infinity_are_limits():
    """optax has NaN where the target is right."""
    z, t = jnp.array([INF, -INF, INF, -INF, INF]), jnp.array([1.0, 0.0, 0.0, 1.0, 0.5])
    want = [0, 0, INF, INF, INF], [0, 0, 1, -1, 0.5], [0] * 5
    for targets in (t, t[:4].astype(int), t[:4] > 0):
        loss = partial(jsoftmax.binary_cross_entropy, targets=targets)
        for got, exact in zip(jax.jit(partial(every_order, loss))(z[: len(targets)]), want, strict=True):
            np.testing.assert_array_equal(got, exact[: len(targets)])
    found = every_order(jsoftmax.log_sigmoid, z[:2])
    for got, exact in zip(found, ([0, -INF], [0, 1], [0, 0]), strict=True):
        np.testing.assert_array_equal(got, exact)
    in_targets = jax.grad(lambda t: jsoftmax.binary_cross_entropy(z[:2], t).sum())(t[:2])
    np.testing.assert_array_equal(in_targets, [0, 0])
    with jax.debug_nans(False):
        peer = optax.sigmoid_binary_cross_entropy(z[:2], t[:2])
    assert np.isnan(peer).all()


@jax.debug_nans(True)
def test_the_smoothing_of_an_infinite_loss():
    """Both weights of the classes change with the smoothing, one of them has an infinite cost."""
    z, t = jnp.array([INF, INF, INF, -INF, -INF, -INF, 1.0]), jnp.array([0, 1, 0.5, 0, 1, 0.5, 0.5])

    @jax.jit
    @jax.vmap
    def slopes(z, t, alpha):
        loss = partial(jsoftmax.binary_cross_entropy, z)
        return jax.value_and_grad(lambda t, alpha: loss(t, label_smoothing=alpha), (0, 1))(t, alpha)

    loss, (in_targets, in_smoothing) = slopes(z, t, jnp.full(7, 0.1))
    np.testing.assert_array_equal(loss[:6], [INF] * 6)
    np.testing.assert_array_equal(in_targets[:6], [-INF] * 3 + [INF] * 3)
    np.testing.assert_array_equal(in_smoothing, [-INF, INF, 0, INF, -INF, 0, 0])
    np.testing.assert_array_equal(slopes(z, t, jnp.ones(7))[1][0][:6], [0] * 6)  # targets have no effect


def test_it_is_the_cross_entropy_of_the_logits_z_and_0():
    z = jnp.asarray(4 * np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    both, first = jnp.stack([z, jnp.zeros_like(z)], -1), jax.nn.sigmoid(z[::-1])
    targets = jnp.stack([first, 1 - first], -1)
    for ours, theirs in (
        (jsoftmax.log_sigmoid(z), jsoftmax.log_softmax(both)[..., 0]),
        (jsoftmax.binary_cross_entropy(z, first), jsoftmax.cross_entropy(both, targets)),
        (jsoftmax.binary_cross_entropy(z, z > 1), jsoftmax.cross_entropy(both, (z <= 1).astype(int))),
        (
            jsoftmax.binary_cross_entropy(z, first, label_smoothing=0.2, pos_weight=3.0, reduction="sum"),
            jsoftmax.cross_entropy(
                both, 0.8 * targets + 0.1, class_weights=jnp.array([3.0, 1.0]), reduction="sum"
            ),
        ),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6)


def test_reductions_weights_and_bad_targets():
    z, w = jnp.array([1.0, NAN, -2.0, INF]), jnp.array([2.0, 0.0, 1.0, 0.0])
    t = jnp.array([1, 0, 0, 1])

    def mean(z, w):
        return jsoftmax.binary_cross_entropy(z, t, weights=w, reduction="mean")

    value, (dz, dw) = jax.jit(jax.value_and_grad(mean, (0, 1)))(z, w)
    losses = jsoftmax.binary_cross_entropy(z[::2], t[::2])
    np.testing.assert_allclose(value, (2 * losses[0] + losses[1]) / 3, rtol=1e-6)
    np.testing.assert_array_equal(dz[1::2], [0, 0])
    assert np.isfinite(dw).all()
    assert jsoftmax.binary_cross_entropy(z[:0], t[:0], reduction="mean") == 0
    found, slope = jax.value_and_grad(lambda z: jsoftmax.binary_cross_entropy(z, jnp.array([1, 2]))[1])(
        z[::2]
    )
    assert np.isnan(found)
    np.testing.assert_array_equal(np.isnan(slope), [False, True])
    error, _ = checkify.checkify(jsoftmax.binary_cross_entropy)(z, t.at[2].set(-1))
    assert "class id -1 of row 2 is outside [0, 2)" in error.get()
    with pytest.raises(ValueError, match=r"targets of shape \(3,\) for logits of shape \(4,\)"):
        jsoftmax.binary_cross_entropy(z, t[:3])
    with pytest.raises(ValueError, match=r"pos_weight is -1\.0; write a finite number from 0 up"):
        jsoftmax.binary_cross_entropy(z, t, pos_weight=-1.0)


def test_odds_of_the_only_class_and_of_none():
    x = jnp.array([[1.0, -INF, -INF], [1.0, -INF, 2.0], [-INF, -INF, -INF], [1.0, 2.0, 3.0]])
    value = jax.jit(lambda x, y: jsoftmax.log_odds(x, y))
    gradient = jax.jit(jax.grad(lambda x, y: jnp.sum(jsoftmax.log_odds(x, y))))
    y = jnp.array([0, 1, 0, 0])
    with jax.debug_nans(True):
        np.testing.assert_array_equal(value(x, y)[:3], [INF, -INF, 0])
        np.testing.assert_array_equal(gradient(x, y)[::2], np.zeros((2, 3)))
        np.testing.assert_allclose(gradient(x, y)[1, ::2], -jax.nn.softmax(x[1, ::2]), rtol=1e-6)
    for bad in (-1, 3, 2**31 - 1):
        labels = y.at[3].set(bad)
        np.testing.assert_array_equal(np.isnan(value(x, labels)), [False, False, False, True])
        assert np.isnan(gradient(x, labels)[3]).all()
        assert not np.isnan(gradient(x, labels)[:3]).any()
    for upper in (x.at[3, 1].set(INF), x.at[3, 0].set(INF), x.at[3, 2].set(NAN)):
        np.testing.assert_array_equal(np.isnan(value(upper, y)), [False, False, False, True])


def test_odds_beyond_the_probabilities():
    """log p − log(1 − p) is +inf from a lead of 17 on."""
    x = jnp.array([[1000.0, 0.0, 1.0], [1e30, -1e30, 0.0], [-1000.0, 0.0, 0.0]])
    want = 1000 - np.log1p(np.exp(1)), 1e30, -1000 - np.log(2)
    np.testing.assert_allclose(jsoftmax.log_odds(x, jnp.zeros(3, int)), np.float32(want), rtol=1e-6)
    p = jax.nn.softmax(x[0])[0]
    assert jnp.log(p) - jnp.log1p(-p) == INF


@pytest.mark.share(3)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_sure_row_has_every_derivative(gamma):
    """Leads of 20, 100, and of the only live class; and a dead label."""
    x = jnp.array([[20.0, 0.0], [100.0, 0.0], [0.0, -INF], [-INF, 0.0]])
    y = jnp.zeros(4, int)

    def loss(x):
        return jsoftmax.focal_loss(x, y, gamma=gamma)

    with jax.debug_nans(True):
        value = jax.jit(loss)(x)
        first = jax.grad(lambda x: jnp.sum(loss(x)[:3]))
        gradient, second = jax.jit(
            lambda x: (first(x), jax.vjp(first, x)[1](jnp.cos(jnp.arange(8.0).reshape(4, 2)))[0])
        )(x)
        in_gamma = jax.grad(lambda g: jnp.sum(jsoftmax.focal_loss(x, y, gamma=g)[:3]))(gamma)
    n = np.log1p(np.exp(-20.0))
    np.testing.assert_allclose(value[0], n ** (1 + gamma), rtol=2e-6)
    np.testing.assert_allclose(gradient[0, 1], (1 + gamma) * n ** (1 + gamma), rtol=3e-6)
    np.testing.assert_array_equal(value[1:], [value[1], 0, INF])
    assert all(np.isfinite(a).all() for a in (gradient, second, in_gamma))
    np.testing.assert_allclose(jax.grad(lambda x: loss(x)[3])(x)[3, 1], 1, rtol=1e-6)


def test_a_gamma_of_0_is_the_cross_entropy():
    x = jnp.asarray(9 * np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
    y, options = jnp.array([0, 1, 2, 3, 4, -100]), {"ignore_index": -100, "class_weights": jnp.arange(1.0, 6)}
    for reduction in ("none", "mean"):
        pair = (partial(jsoftmax.focal_loss, gamma=0.0), jsoftmax.cross_entropy)
        found = [jax.vjp(lambda x, f=f, r=reduction: f(x, y, reduction=r, **options), x) for f in pair]
        np.testing.assert_array_equal(found[0][0], found[1][0])
        np.testing.assert_array_equal(*(pull(jnp.ones_like(value))[0] for value, pull in found))


def test_focal_and_poly_keep_what_optax_loses():
    x, y = jnp.array([[40.0, 0.0, 0.0]]), jnp.array([0])
    n = np.log1p(2 * np.exp(-40.0))
    np.testing.assert_allclose(jsoftmax.poly_loss(x, y, epsilon=2.0)[0], 3 * n, rtol=1e-6)
    assert optax.losses.poly_loss_cross_entropy(x, jax.nn.one_hot(y, 3), epsilon=2.0)[0] == 0
    # The focal loss of optax is that of two classes, with logits (z, 0).
    z = jnp.array([-3.0, 0.5, 8.0])
    theirs = optax.losses.sigmoid_focal_loss(z, jnp.ones(3), gamma=2.0)
    both = jnp.stack([z, jnp.zeros(3)], -1)
    np.testing.assert_allclose(jsoftmax.focal_loss(both, jnp.zeros(3, int)), theirs, rtol=1e-4)
    per_row = jsoftmax.focal_loss(both, jnp.zeros(3, int), gamma=jnp.array([0.0, 2.0, NAN]))
    np.testing.assert_array_equal(np.isnan(per_row), [False, False, True])
    with pytest.raises(ValueError, match=r"gamma is 1000.*; write a number up to 3\.4e\+38"):
        jsoftmax.focal_loss(jnp.zeros(3), 0, gamma=10**400)
    with pytest.raises(ValueError, match=r"gamma is -1\.0; write a finite number from 0 up"):
        jsoftmax.focal_loss(both, jnp.zeros(3, int), gamma=-1.0)
    with pytest.raises(TypeError, match="give class ids as integers"):
        jsoftmax.focal_loss(both, jnp.zeros(3))


def test_an_infinite_loss_that_is_not_used_changes_no_gradient():
    """Its cotangent is 0: in every option, and forwards with a tangent of 0 in the targets."""
    z, t = jnp.array([2.0, np.inf]), jnp.array([1.0, 0.0])
    given = {"label_smoothing": jnp.float32(0.1), "pos_weight": jnp.float32(2), "weights": jnp.ones(2)}

    def first(z, t, given):
        return jsoftmax.binary_cross_entropy(z, t, **given)[0]

    def alone(z, t, given):
        given = given | {"weights": given["weights"][:1]}
        return jsoftmax.binary_cross_entropy(z[:1], t[:1], **given)[0]

    found, want = jax.jit(lambda *a: [jax.grad(f, (0, 1, 2))(*a) for f in (first, alone)])(z, t, given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, want)
    with jsoftmax.forward_mode():
        along = jax.jvp(lambda z: jsoftmax.binary_cross_entropy(z, t), (z,), (jnp.ones(2),))[1]
    np.testing.assert_allclose(along, [jax.nn.sigmoid(2.0) - 1, 1.0], rtol=1e-6)
