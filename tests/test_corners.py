"""The corner cases of the contract, in value, gradient and second derivative.

Wherever the contract says finite, `jax_debug_nans` is on.
"""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampling
from cases import FUNCTIONS, curvature, named, to_second_order
from compiling import jit_in_full
from jax.experimental import checkify
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jsoftmax

INF, NAN = np.inf, np.nan
LOGITS_ONLY = {
    "softmax": jsoftmax.softmax,
    "log_softmax": jsoftmax.log_softmax,
    "logsumexp": partial(jsoftmax.logsumexp, axis=-1),
    "cross_entropy, ids": lambda x, **o: jsoftmax.cross_entropy(x, jnp.zeros(x.shape[:-1], jnp.int32), **o),
    "cross_entropy, targets": lambda x, **o: jsoftmax.cross_entropy(
        x, jnp.zeros_like(x).at[..., 0].set(0.75).at[..., 1].set(0.25), **o
    ),
    "cross_entropy, options": lambda x, **o: jsoftmax.cross_entropy(
        x,
        jnp.zeros(x.shape[:-1], jnp.int32),
        class_weights=jnp.full(x.shape[-1], 2.0),
        label_smoothing=0.1,
        soft_cap=20.0,
        **o,
    ),
    "log_prob": lambda x, **o: jsoftmax.log_prob(x, jnp.zeros(x.shape[:-1], jnp.int32), **o),
    "log_odds": lambda x, **o: jsoftmax.log_odds(x, jnp.zeros(x.shape[:-1], jnp.int32), **o),
    "focal_loss": lambda x, **o: jsoftmax.focal_loss(x, jnp.zeros(x.shape[:-1], jnp.int32), gamma=0.5, **o),
    "entropy": jsoftmax.entropy,
}
TAKES_TEMPERATURE = [name for name in LOGITS_ONLY if name != "logsumexp"]
SHIFTS = [name for name in LOGITS_ONLY if "options" not in name]  # a soft cap depends on an offset
each = pytest.mark.parametrize("name", LOGITS_ONLY)


def finite_sum(values):
    """The sum of the values that can be finite: the −inf of dead classes is a constant."""
    return jnp.sum(jnp.where(jnp.isfinite(values), values, 0))


def derivatives(function, *floats):
    """The gradient of every float argument, and a product with the Hessian in the first, under jit."""

    def total(*floats):
        return finite_sum(function(*floats))

    positions = tuple(range(len(floats)))
    x, *others = floats
    gradients = jax.jit(jax.grad(total, positions))(*floats)
    return gradients, jax.jit(lambda x: curvature(lambda x: total(x, *others), (x,)))(x)


def everything(function, x, along=None):
    """The value, the gradient, and a product with the Hessian."""

    out, (gradient,), (product,) = to_second_order(
        function, finite_sum, (x,), None if along is None else (along,)
    )
    return out, gradient, product


def assert_finite(tree):
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(leaf).all()


@pytest.mark.share(10)
@pytest.mark.diagonal
@each
@pytest.mark.parametrize("forward", [False, True], ids=["reverse", "forward"])
def test_a_row_with_no_live_class(name, forward):
    """Softmax 0, log-softmax and logsumexp −inf, the loss 0; every derivative 0, never NaN."""
    value = {"softmax": 0, "log_softmax": -INF, "logsumexp": -INF}.get(name, 0)
    dead, masked = jnp.full((2, 3), -INF), jnp.zeros((2, 3), bool)
    empties = [(dead, {}), (jnp.array([[NAN, INF, 1e38]] * 2), {"where": masked})]
    if name in TAKES_TEMPERATURE:
        empties += [(dead, {"temperature": 0.5})]
    mode = jsoftmax.forward_mode() if forward else nullcontext()
    with jax.debug_nans(True), mode:
        for x, options in empties:
            out, *slopes = jax.jit(partial(everything, partial(LOGITS_ONLY[name], **options)))(x)
            np.testing.assert_array_equal(out, jnp.full(out.shape, value))
            np.testing.assert_array_equal(LOGITS_ONLY[name](x, **options), out)
            for derivative in slopes:
                np.testing.assert_array_equal(derivative, np.zeros(derivative.shape))


@pytest.mark.share(5)
@pytest.mark.diagonal
@each
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_a_dead_class_changes_nothing(name, temperature):
    """A class that is masked, with any value, or −inf: the live classes behave as if it were removed."""
    options = {}
    if temperature is not None:
        if name not in TAKES_TEMPERATURE:
            pytest.skip("it takes no temperature")
        options["temperature"] = temperature

    @jax.jit
    def of(x, along, mask):
        masked = {} if mask is None else {"where": mask}
        return everything(partial(LOGITS_ONLY[name], **options, **masked), x, along)

    live = jnp.array([True, True, False, True])
    x = jnp.array([[0.5, -1.0, 0.25, 2.0], [1.0, 1.0, -0.5, 0.0]])
    along = jnp.cos(x)
    want, gradient, second = of(x[:, live], along[:, live], None)
    cases = [(x.at[:, 2].set(under), live[None]) for under in (NAN, INF, -INF, 1e38, 0.0)]
    cases.append((x.at[:, 2].set(-INF), None))
    with jax.debug_nans(True):
        for there, mask in cases:
            out, *derivatives = of(there, along, mask)
            if out.ndim == 2:
                np.testing.assert_array_equal(out[:, 2], np.full(2, 0 if name == "softmax" else -INF))
                out = out[:, live]
            np.testing.assert_allclose(out, want, rtol=1e-6)
            for ours, dropped in zip(derivatives, (gradient, second), strict=True):
                np.testing.assert_allclose(ours[:, live], dropped, rtol=1e-5, atol=1e-7)
                np.testing.assert_array_equal(ours[:, 2], jnp.zeros(2))


@pytest.mark.share(4)
@pytest.mark.diagonal
@pytest.mark.parametrize("name", [name for name in SHIFTS if name in TAKES_TEMPERATURE])
@pytest.mark.parametrize("under", [-1e20, -3e38], ids=str)
def test_a_class_padded_with_a_large_number_is_as_dead(name, under):
    """Its logit is finite, but the square of its logit is not."""
    live, x = jnp.array([0, 1, 3]), jnp.array([[0.5, -1.0, 0.25, 2.0], [1.0, 1.0, -0.5, 0.0]])

    @jax.jit
    def of(x):
        def total(x, temperature):
            out = LOGITS_ONLY[name](x, temperature=temperature)
            return jnp.sum(jnp.cos(out[:, live] if out.ndim == 2 else out))

        return to_second_order(total, jnp.sum, (x, jnp.float32(0.7)))

    want, got = (of(x.at[:, 2].set(there)) for there in (-INF, under))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("kind", ["masked", "-inf"])
@pytest.mark.parametrize("soft", [False, True], ids=["ids", "targets"])
def test_a_label_on_a_dead_class_costs_infinity(kind, soft):
    """The gradient in the live classes is p, which is finite."""
    x = jnp.array([[1.0, 2.0, -INF if kind == "-inf" else 7.0]])
    where = jnp.array([[True, True, False]]) if kind == "masked" else None
    labels = jnp.array([[0.0, 0.0, 1.0]]) if soft else jnp.array([2])
    loss, gradient = jax.value_and_grad(
        lambda x: jsoftmax.cross_entropy(x, labels, where=where, reduction="sum")
    )(x)
    assert loss == INF
    np.testing.assert_allclose(gradient[0, :2], jax.nn.softmax(x[0, :2]), rtol=1e-6)
    if kind == "masked":
        assert gradient[0, 2] == 0


@pytest.mark.parametrize("kind", ["masked", "-inf"])
@pytest.mark.parametrize("soft", [False, True], ids=["ids", "targets"])
def test_an_infinite_loss_that_is_not_used_has_no_gradient(kind, soft):
    """Not even in the arguments whose gradient is a multiple of the loss; a used one has an infinite one."""
    x = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, -INF if kind == "-inf" else 7.0]])
    where = jnp.array([[True] * 3, [True, True, False]]) if kind == "masked" else None
    targets = jnp.array([[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]])
    floats = {"x": x, "class_weights": jnp.array([1.0, 2.0, 0.5]), "weights": jnp.array([2.0, 3.0])}
    floats |= {"label_smoothing": jnp.float32(0.1), "z_loss": jnp.float32(0.01)}
    if soft:
        floats["labels"] = targets

    def total(floats, is_used):
        given = {"where": where, "labels": jnp.array([2, 2])} | floats
        losses = jsoftmax.cross_entropy(given.pop("x"), given.pop("labels"), **given)
        return jnp.sum(jnp.where(is_used, losses, 0))

    def first(floats):
        rows = {"x", "weights", "labels"}
        short = {name: a[:1] if name in rows else a for name, a in floats.items()}
        given = {"where": None if where is None else where[:1], "labels": jnp.array([2])} | short
        return jnp.sum(jsoftmax.cross_entropy(given.pop("x"), given.pop("labels"), **given))

    with jax.debug_nans(True):
        got = jax.jit(jax.value_and_grad(total))(floats, jnp.array([True, False]))
    want = jax.jit(jax.value_and_grad(first))(floats)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, want)
    used = jax.jit(jax.grad(total))(floats, jnp.array([True, True]))
    assert used["weights"][1] == INF
    if not soft:
        assert used["class_weights"][2] == INF
        assert used["label_smoothing"] == -INF


@pytest.mark.share(3)
@pytest.mark.diagonal
@each
@pytest.mark.parametrize("bad", [INF, NAN])
def test_an_overflow_stays_in_its_row_and_stays_visible(name, bad):
    x = jnp.array([[1.0, 2.0, 3.0], [1.0, bad, 3.0], [0.0, 0.0, 0.0]])
    out, pull = jax.vjp(LOGITS_ONLY[name], x)
    (gradient,) = pull(jnp.ones_like(out))
    for values in (out, gradient):
        rows = np.isnan(values).reshape(3, -1)
        assert rows[1].all() or name == "logsumexp"  # the logsumexp of +inf is +inf
        assert not rows[[0, 2]].any()
    assert np.isnan(gradient[1]).any()


@pytest.mark.share(4)
@pytest.mark.parametrize("shape", [(8, 4), (2**13, 3), (64, 1000), (8, 8192)], ids=str)
def test_the_logsumexp_of_infinity_is_infinity(shape):
    """With a NaN it is NaN; also together with −inf, in every form on CPU, with weights, and in blocks."""
    x = np.zeros(shape, np.float32)
    x[1, 1] = x[2, :2] = x[3] = x[4, 0] = x[5, 0] = INF
    x[4, 1], x[5, 1:] = NAN, -INF
    want = np.full(len(x), np.log(shape[1]))
    want[[1, 2, 3, 5]], want[4] = INF, NAN

    @jax.jit
    def of(x):
        whole = jsoftmax.logsumexp(x, -1), jsoftmax.logsumexp(x.T, 0), jax.vmap(jsoftmax.logsumexp)(x)
        weighted = jsoftmax.logsumexp(x, -1, jnp.ones_like(x))
        masked = jsoftmax.logsumexp(x, -1, where=jnp.ones_like(x, bool))
        state = jsoftmax.online.absorb(jsoftmax.online.empty(x.shape[:1]), x[:, :1])
        parts = jsoftmax.online.finish(jsoftmax.online.absorb(state, x[:, 1:]))
        beside_its_gradient = jax.vjp(lambda x: jsoftmax.logsumexp(x, -1), x)[0]
        return *whole, weighted, masked, parts, beside_its_gradient

    for got in (*of(x), jsoftmax.logsumexp(x.astype(jnp.bfloat16), -1).astype(np.float32)):
        np.testing.assert_allclose(got, want, rtol=4e-3 if got is not want else 0)
    assert jsoftmax.logsumexp(x[1], b=-np.ones_like(x[1]), return_sign=True) == (INF, -1)


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 0), -1), ((0,), 0), ((0, 3), 0), ((2, 0, 4), (0, 1))], ids=str
)
def test_no_classes(shape, axis):
    """Maps are empty, and the logsumexp is −inf; a loss raises."""
    x = jnp.zeros(shape, jnp.bfloat16)
    for function in (jsoftmax.softmax, jsoftmax.log_softmax, jax.nn.softmax):
        out, pull = jax.vjp(lambda x, f=function: f(x, axis), x)
        assert out.shape == pull(out)[0].shape == shape
        assert out.dtype == x.dtype
    want = jax.nn.logsumexp(x, axis)
    for b in (None, jnp.ones_like(x)):
        out, sign = jsoftmax.logsumexp(x, axis, b, return_sign=True)
        assert out.dtype == want.dtype
        np.testing.assert_array_equal(out, want)
        np.testing.assert_array_equal(sign, np.zeros(want.shape))
    with pytest.raises(ValueError, match="no classes"):
        jsoftmax.entropy(jnp.zeros((3, 0)))


@pytest.mark.share(8)
@pytest.mark.parametrize("name", TAKES_TEMPERATURE)
def test_a_dead_class_stays_dead_below_a_temperature_of_0(name):
    x, live = jnp.array([[0.5, 2.0, -INF, 1.0]]), jnp.array([0, 1, 3])

    @jax.jit
    def of(x, temperature):
        out = LOGITS_ONLY[name](x, temperature=temperature)
        gradient = jax.grad(lambda *a: finite_sum(LOGITS_ONLY[name](a[0], temperature=a[1])), (0, 1))
        return out, gradient(x, temperature)

    for dtype in (jnp.float32, jnp.bfloat16):
        (out, (dx, dt)), (want, (in_x, in_t)) = (
            of(a.astype(dtype), jnp.float32(-0.7)) for a in (x, x[:, live])
        )
        if out.ndim == 2:
            assert out[0, 2] == (0 if name == "softmax" else -INF)
            out = out[:, live]
        assert dx[0, 2] == 0
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-2 if dtype == jnp.bfloat16 else 1e-5, atol=1e-6),
            jax.tree.map(lambda a: a.astype(jnp.float32), (out, dx[:, live], dt)),
            jax.tree.map(lambda a: a.astype(jnp.float32), (want, in_x, in_t)),
        )


@pytest.mark.share(4)
@each
def test_a_nan_under_the_mask_stops_nothing_outside_jit(name):
    x, mask = jnp.array([[1.0, NAN, 2.0], [0.0, 1.0, 2.0]]), jnp.array([[True, False, True], [True] * 3])
    with jax.debug_nans(True):
        value, gradient = jax.value_and_grad(lambda x: finite_sum(LOGITS_ONLY[name](x, where=mask)))(x)
        assert_finite((value, gradient))
        if name == "logsumexp":
            assert_finite(jax.grad(lambda x: jnp.sum(jsoftmax.logsumexp(x, -1, jnp.ones(3), where=mask)))(x))
        if name == "cross_entropy, ids":  # nor in a row that does not count
            y = jnp.array([-1, 1])
            assert_finite(jax.grad(lambda x: jsoftmax.cross_entropy(x, y, ignore_index=-1).sum())(x))
            of_head = partial(jsoftmax.linear_cross_entropy, weight=jnp.eye(3), labels=y, ignore_index=-1)
            assert_finite(jax.grad(lambda x: jnp.sum(of_head(x)))(x))


def evaluated(x):
    labels = jnp.array([0, 1])
    state = jsoftmax.evaluation.update(jsoftmax.evaluation.empty(2), x, labels, weights=jnp.ones(2))
    ranks = {"rank": jnp.zeros(2), "confidence": jnp.ones(2), "brier": jnp.ones(2)}
    found = jsoftmax.row_statistics(x, labels)
    state = jsoftmax.evaluation.update_from_statistics(state, found, labels, **ranks)
    return jsoftmax.evaluation.compute(state, num_bytes=3)


WITHOUT_JIT = {
    **{
        name: lambda x, f=f: jax.value_and_grad(lambda x: finite_sum(f(x)))(x)
        for name, f in (*LOGITS_ONLY.items(), ("weighted", partial(jsoftmax.logsumexp, b=jnp.ones(2))))
    },
    "linear_cross_entropy": lambda x: jsoftmax.linear_cross_entropy(x, jnp.eye(2), jnp.array([0, 1])),
    "options": lambda x: jsoftmax.cross_entropy(
        x,
        jnp.array([0, 1]),
        **dict.fromkeys(("temperature", "soft_cap", "z_loss", "label_smoothing"), jnp.full(2, 0.5)),
    ),
    "evaluation": evaluated,
    "fit_temperature": lambda x: jsoftmax.evaluation.fit_temperature(x, jnp.array([0, 1])),
}
OF_EACH_KIND = ("softmax", "cross_entropy, ids", "weighted", "linear_cross_entropy", "options")


@pytest.mark.share(4)
@pytest.mark.parametrize("name", sampling.sample(WITHOUT_JIT, *OF_EACH_KIND))
def test_good_values_stop_nothing_without_jit(name):
    """The NaN of other rows is computed where it is needed: a constant would trigger `jax_debug_nans`."""
    x = jnp.array([[1.0, 2.0], [0.5, 0.0]])
    with jax.debug_nans(True), jax.disable_jit():
        assert_finite(WITHOUT_JIT[name](x))


def test_differences_that_overflow():
    """The difference of two logits may exceed the largest number although the loss does not."""
    x, apart = jnp.array([1.8e38, -1.8e38]), 3.6e38

    loss, gradient = jax.value_and_grad(lambda x: jsoftmax.cross_entropy(x, 0, label_smoothing=0.1))(x)
    np.testing.assert_allclose(loss, apart * 0.05, rtol=1e-6)
    np.testing.assert_allclose(gradient, [0.05, -0.05], rtol=1e-6)
    # The mean of −log p overflows, but a tenth of it does not.
    ten = jnp.full(10, -3e38).at[0].set(3e38)
    np.testing.assert_allclose(jsoftmax.cross_entropy(ten, 0, label_smoothing=0.1), 0.09 * 6e38, rtol=1e-6)
    np.testing.assert_allclose(jsoftmax.cross_entropy(x, jnp.array([0.75, 0.25])), apart / 4, rtol=1e-6)
    np.testing.assert_allclose(jsoftmax.cross_entropy(x, 1, temperature=10.0), apart / 10, rtol=1e-6)
    np.testing.assert_allclose(
        jsoftmax.softmax(x, temperature=1e37)[1], np.exp(-float(x[0]) * 2 / 1e37), rtol=1e-4
    )
    assert jsoftmax.entropy(x) == 0


def test_a_log_ratio_that_overflows():
    """The divergence is a sum of p·(log p − log q), which may be a number although its logarithms are not."""
    far = 3e38
    p = jnp.array([[0.0, 0.0, 0.0], [far, 0.0, 1.0], [far, -far, 1.0], [9e37, -9e37, -far]])
    q = jnp.array([[far, -far, far], [0.0, far, -far], [2.9e38, far, -far], [-9e37, 9e37, -far]])
    kl = np.array([0.6 / 3, 0.3, 0.01, 0.18]) * 1e39
    in_p = np.zeros((4, 3))
    in_p[0] = kl[0] / 3 * np.array([-1, 2, -1])  # −p·(d + KL) with d = 0 or −6e38
    in_q = np.array([[1 / 6, -1 / 3, 1 / 6], [-1, 1, 0], [-1, 1, 0], [-1, 1, 0]])
    gradients = jax.jit(
        jax.vmap(jax.value_and_grad(lambda p, q, t: jsoftmax.kl_divergence(p, q, temperature=t), (0, 1, 2)))
    )
    for sign in (1.0, -1.0):
        loss, (dp, dq, dt) = gradients(sign * p, sign * q, jnp.full(4, sign))
        np.testing.assert_allclose(loss, kl, rtol=2e-6)
        np.testing.assert_allclose(dp, sign * in_p, rtol=2e-6, atol=1)
        np.testing.assert_allclose(dq, sign * in_q, atol=1e-6)
        np.testing.assert_allclose(dt, -sign * kl, rtol=2e-6)  # KL(p/T, q/T) is KL/T here
    # The logarithms themselves are beyond float32: the divergence is +inf, and the gradient in q still q − p.
    loss, (dp, dq, _) = gradients(p[1:2], jnp.array([[-far, far, 0.0]]), jnp.ones(1))
    assert loss == jnp.inf
    assert not np.any(dp)
    np.testing.assert_array_equal(dq, [[-1, 1, 0]])


def test_a_large_temperature_or_cap():
    """1/T would be subnormal."""
    x = jnp.array([1e38, 0.0])
    p = 1 / (1 + np.exp(-1.0))
    for temperature in (1e38, -1e38):
        want = [p, 1 - p] if temperature > 0 else [1 - p, p]
        np.testing.assert_allclose(jsoftmax.softmax(x, temperature=temperature), want, rtol=1e-6)
        loss = jsoftmax.cross_entropy(x, 1, temperature=jnp.float32(temperature))
        np.testing.assert_allclose(loss, -np.log(want[1]), rtol=1e-6)
    head = jsoftmax.linear_cross_entropy(jnp.ones((1, 1)), x[None], jnp.array([1]), temperature=1e38)
    np.testing.assert_allclose(head, [-np.log(1 - p)], rtol=1e-6)
    for cap in (1e30, 8e37, 1e38, 3e38):
        loss, gradient = jax.value_and_grad(lambda x, c=cap: jsoftmax.cross_entropy(x, 0, soft_cap=c))(
            jnp.array([1.0, 2.0])
        )
        np.testing.assert_allclose(loss, -np.log(1 - p), rtol=1e-6)
        np.testing.assert_allclose(gradient, [-p, p], rtol=1e-6)


def test_the_entropy_at_the_smallest_temperature():
    """8/T would overflow."""
    x = jnp.array([[0.0, 0.0, 0.0], [3.0, 1.0, 0.0], [1.0, 1.0, -jnp.inf]])
    for temperature in (1.2e-38, -1.2e-38):
        function = jax.jit(partial(jsoftmax.entropy, temperature=temperature))
        want = np.log([3, 1, 2])
        np.testing.assert_allclose(function(x), want, rtol=1e-6)


def test_the_square_of_the_z_loss_does_not_overflow():
    for normalizer, coefficient in ((2e19, 1e-4), (1e-21, 1e30), (1e30, 1e-37)):
        of = jax.value_and_grad(lambda z, c=coefficient: jsoftmax.cross_entropy(z, 0, z_loss=c))
        loss, gradient = of(jnp.array([normalizer, -INF]))
        np.testing.assert_allclose(loss, coefficient * normalizer * normalizer, rtol=1e-6)
        np.testing.assert_allclose(gradient[0], 2 * coefficient * normalizer, rtol=1e-6)


def test_an_infinite_weight_of_a_class_without_a_target_counts_for_nothing():
    x, weights = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([1.0, INF, 1.0])
    targets = jnp.array([[0.5, 0.0, 0.5]])
    with jax.debug_nans(True):
        for labels in (targets, jnp.array([2])):
            got, want = (
                jax.value_and_grad(
                    lambda x, w, y=labels: jnp.sum(jsoftmax.cross_entropy(x, y, class_weights=w))
                )(x, w)
                for w in (weights, jnp.ones(3))
            )
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, want)


def test_the_hessian_is_symmetric_beside_a_dead_target():
    """A target on a dead class is a constant: its gradient is 0, and no other gradient depends on it."""
    x, mask = jnp.array([1.0, 2.0, 3.0]), jnp.array([True, True, False])
    for logits, where in ((x, mask), (x.at[2].set(-INF), None)):
        for options in ({}, {"class_weights": jnp.array([0.5, 2.0, 1.0])}):

            def loss(x, t, where=where, options=options):
                return jsoftmax.cross_entropy(x, t, where=where, **options)

            hessian = jax.jit(jax.jacrev(jax.grad(loss, (0, 1)), (0, 1)))(logits, jnp.array([0.4, 0.6, 0.0]))
            for i, j in ((0, 0), (0, 1), (1, 1)):
                np.testing.assert_allclose(hessian[i][j], hessian[j][i].T, rtol=1e-5, atol=1e-7)


@pytest.mark.share(4)
@pytest.mark.parametrize("name", SHIFTS)
def test_huge_logits_and_offsets(name):
    """The shift comes first: an offset that float32 adds exactly changes no digit."""
    x = jnp.array([[0.0, -1.0, -2.5, -8.0]])
    function = LOGITS_ONLY[name]
    for offset in (1024.0, 2.0**20, -(2.0**20)):
        shift = offset if name == "logsumexp" else 0
        np.testing.assert_allclose(
            function(x + offset) - shift, function(x), rtol=1e-6, atol=abs(shift) * 6e-8
        )
    with jax.debug_nans(True):
        for huge in (1e30, 3e38):
            x = jnp.array([[-huge, 0.0, huge, huge]])
            if name == "softmax":
                np.testing.assert_array_equal(function(x), [[0.0, 0.0, 0.5, 0.5]])
            if name == "logsumexp":
                np.testing.assert_allclose(function(x), [huge], rtol=1e-6)
            assert_finite(derivatives(function, x))


def test_the_z_loss_of_a_row_with_no_live_class_is_0():
    loss = partial(jsoftmax.cross_entropy, labels=jnp.array([0, 0]), z_loss=0.1, reduction="sum")
    with jax.debug_nans(True):
        x = jnp.array([[-INF, -INF], [0.0, 0.0]])
        value, gradient = jax.value_and_grad(loss)(x)
    np.testing.assert_allclose(value, np.log(2) + 0.1 * np.log(2) ** 2, rtol=1e-6)
    np.testing.assert_array_equal(gradient[0], [0, 0])


def test_float16_rows_longer_than_its_range():
    x = jnp.full((2, 100_000), 3.0, jnp.float16)
    np.testing.assert_array_equal(jsoftmax.softmax(x), jnp.full(x.shape, 1e-5, jnp.float16))
    np.testing.assert_array_equal(jsoftmax.logsumexp(x, -1), jnp.full(2, 3 + np.log(1e5), jnp.float16))
    losses = jsoftmax.cross_entropy(x, jnp.zeros(2, jnp.int32))
    np.testing.assert_allclose(losses, np.log(1e5), rtol=2e-7)


def test_bfloat16_losses_keep_float32s_digits():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 128256)), jnp.bfloat16)
    want = jsoftmax.cross_entropy(x.astype(jnp.float32), jnp.array([5]))
    loss = jsoftmax.cross_entropy(x, jnp.array([5]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, want, rtol=2e-7)


def test_confidence_down_to_the_smallest_normal_number():
    for lead in (1.0, 20.0, 50.0, 87.0):
        x = jnp.array([lead, 0.0])
        loss, gradient = jax.value_and_grad(lambda x: jsoftmax.cross_entropy(x, jnp.int32(0)))(x)
        exact = np.log1p(np.exp(-lead))
        np.testing.assert_allclose(loss, exact, rtol=1e-5)
        np.testing.assert_allclose(gradient, [np.expm1(-exact), -np.expm1(-exact)], rtol=1e-5)


def test_nothing_times_log_nothing_is_nothing():
    """For targets of 0 on dead classes, in the value and in every derivative."""
    x, t = jnp.array([[0.0, -INF, 1.0]]), jnp.array([[1.0, 0.0, 0.0]])
    with jax.debug_nans(True):
        np.testing.assert_allclose(jsoftmax.cross_entropy(x, t), [np.log1p(np.e)], rtol=1e-6)
        (dx, dt), _ = derivatives(jsoftmax.cross_entropy, x, t)
    p = jax.nn.softmax(x)
    np.testing.assert_allclose(dx, p - t, rtol=1e-6)
    np.testing.assert_allclose(dt[0, ::2], -jnp.log(p[0, ::2]), rtol=1e-6)
    assert dt[0, 1] == 0


@pytest.mark.share(4)
@pytest.mark.parametrize("name", TAKES_TEMPERATURE)
def test_any_temperature(name):
    """Near T = 0 one class has all probability; for a large T the row is flat; below 0 the order reverses."""
    x = jnp.array([[3.0, 1.0, 2.0], [1e30, -1e30, 0.0]])
    function = LOGITS_ONLY[name]
    value = jit_in_full(lambda x, t: function(x, temperature=t))
    gradients = jit_in_full(jax.grad(lambda x, t: finite_sum(function(x, temperature=t)), (0, 1)))
    for temperature in (1e-30, 0.01, 100.0, 1e30, -0.7):
        with jax.debug_nans(True):
            out = value(x, temperature)
            assert not np.isnan(out).any(), temperature
            if name == "softmax":
                want = jax.nn.softmax(np.asarray([3.0, 1.0, 2.0]) / temperature)
                np.testing.assert_allclose(out[0], want, rtol=1e-5, atol=1e-30)
            for gradient in gradients(x[:1], jnp.float32(temperature)):
                assert not np.isnan(gradient).any(), temperature


def test_temperatures_one_a_row():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    t = jnp.array([[0.5, 1.0, 2.0], [3.0, 0.25, 1.5]])
    for function in (jsoftmax.softmax, jsoftmax.log_softmax):
        want = function(x / t[..., None])
        for shape in ((2, 3), (2, 3, 1)):
            np.testing.assert_allclose(function(x, temperature=t.reshape(shape)), want, rtol=1e-5)
    np.testing.assert_allclose(
        jsoftmax.softmax(x, temperature=t[:1, :, None]), jsoftmax.softmax(x / t[:1, :, None]), rtol=1e-5
    )
    zero = jsoftmax.softmax(x[0], temperature=jnp.array([1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(np.isnan(zero).all(-1), [False, True, False])


@pytest.mark.share(10)
@pytest.mark.parametrize("function", **named([f for f in FUNCTIONS if "masked" not in f.name]))
def test_no_rows_give_no_rows(function):
    arguments = function.arguments(np.zeros((0, 4), np.float32))
    out, pull = jax.vjp(lambda *a: function.ours(*a, axis=-1), *arguments)
    assert out.shape[0] == 0
    assert all(g.shape == a.shape for g, a in zip(pull(out), arguments, strict=True))


UNUSED = {
    "ignored": lambda x, t: jsoftmax.cross_entropy(x, jnp.array([1, -1]), ignore_index=-1, temperature=t),
    "of weight 0": lambda x, t: jsoftmax.cross_entropy(
        x, jnp.array([1, 0]), weights=jnp.array([1.0, 0.0]), label_smoothing=0.1, z_loss=0.1, temperature=t
    ),
    "targets of weight 0": lambda x, t: jsoftmax.cross_entropy(
        x, jnp.full((2, 3), 0.3), weights=jnp.array([1.0, 0.0]), temperature=t
    ),
    "divergence of weight 0": lambda x, t: jsoftmax.kl_divergence(
        x, jnp.broadcast_to(jnp.sin(x[0]), x.shape), weights=jnp.array([1.0, 0.0]), temperature=t
    ),
    "symmetric divergence of weight 0": lambda x, t: jsoftmax.js_divergence(
        jnp.broadcast_to(jnp.cos(x[0]), x.shape), x, weights=jnp.array([1.0, 0.0]), temperature=t
    ),
}


@pytest.mark.parametrize("name", UNUSED)
def test_an_unused_row_of_nan_leaves_second_derivatives_in_a_shared_temperature(name):
    x, t = jnp.array([[1.0, 2.0, 3.0], [NAN, NAN, NAN]]), jnp.float32(0.7)

    def total(x, t):
        return jnp.sum(UNUSED[name](x, t))

    want = jax.jit(jax.hessian(total, (0, 1)))(x.at[1].set(0), t)
    for outer in (jax.jacfwd, jax.jacrev):
        got = jax.jit(outer(jax.grad(total, (0, 1)), (0, 1)))(x, t)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)


def test_weights_that_cancel_make_a_mean_infinite_or_nan():
    x, w, y = jnp.arange(12.0).reshape(3, 4), jnp.array([1.0, -1.0, 0.0]), jnp.array([0, 1, 2])
    head = jnp.eye(3), x.T, y
    for found in (
        jsoftmax.cross_entropy(x, y, weights=w, reduction="mean"),
        jsoftmax.focal_loss(x, y, weights=w, reduction="mean"),
        jsoftmax.linear_cross_entropy(*head, vocab_axis=0, weights=w, reduction="mean"),
        jsoftmax.kl_divergence(x, jnp.sin(x), weights=w, reduction="mean"),
        jsoftmax.contrastive_loss(jnp.eye(3), x[:, :3], temperature=1.0, weights=w),
    ):
        assert not jnp.isfinite(found)
    assert jsoftmax.cross_entropy(x, y, weights=0 * w, reduction="mean") == 0
    same = jnp.tile(x[:1], (3, 1))
    assert jnp.isnan(jsoftmax.cross_entropy(same, 0 * y, weights=w, reduction="mean"))  # 0/0


@pytest.mark.parametrize("options", [{"z_loss": 0.1}, {"label_smoothing": 0.1}])
def test_a_mean_over_labels_of_class_weight_0_divides_by_1(options):
    x, y, c = jnp.arange(12.0).reshape(3, 4), jnp.array([0, 1, 2]), jnp.array([0.0, 0.0, 0.0, 1.0])

    def loss(x, reduction):
        return jsoftmax.cross_entropy(x, y, class_weights=c, reduction=reduction, **options)

    got, want = (jax.value_and_grad(loss)(x, reduction) for reduction in ("mean", "sum"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, want)
    assert got[0] > 0
    head = jsoftmax.linear_cross_entropy(jnp.eye(3), x, y, class_weights=c, reduction="mean", **options)
    np.testing.assert_allclose(head, want[0], rtol=1e-6)


def test_a_bad_label_is_nan_in_a_row_without_a_live_class_too():
    """Only a mask makes a row padding, whose label may be anything."""
    x, labels, bad = jnp.full((3, 4), -jnp.inf), jnp.array([4, 0, -1]), [True, False, True]
    losses, gradient = jax.jit(jax.value_and_grad(lambda x: jsoftmax.cross_entropy(x, labels).sum()))(x)
    assert jnp.isnan(losses)
    assert jnp.isnan(gradient).all(1).tolist() == jnp.isnan(gradient).any(1).tolist() == bad
    assert jnp.isnan(jsoftmax.row_statistics(x, labels).nll).tolist() == bad
    for block_size in ((3, 4), (1, 2)):
        found = jsoftmax.linear_cross_entropy(jnp.ones((3, 1)), x[:1], labels, block_size=block_size)
        assert jnp.isnan(found).tolist() == bad


def test_a_masked_row_may_have_any_label():
    x, labels, where = jnp.zeros((2, 4)), jnp.array([4, 4]), jnp.array([[True], [False]])
    head = jnp.ones((2, 1)), x[:1], labels
    found = [
        jsoftmax.cross_entropy(x, labels, where=where),
        jsoftmax.log_prob(x, labels, where=where),
        jsoftmax.row_statistics(x, labels, where=where).nll,
        jsoftmax.log_odds(x, labels, where=where),
        jsoftmax.top_log_probs(x, 2, labels=labels, where=where).label_log_prob,
        jsoftmax.linear_top_log_probs(*head[:2], 2, labels=labels, where=where).label_log_prob,
        *(jsoftmax.linear_row_statistics(*head, where=where, block_size=n).nll for n in ((2, 4), (1, 2))),
    ]
    for of_rows in found:
        assert jnp.isnan(of_rows).tolist() == [True, False]


def test_checkify_names_a_bad_label_and_its_row():
    x, labels = jnp.zeros((3, 4)), jnp.array([1, -100, 7])

    def total(x, labels):
        return jsoftmax.cross_entropy(x, labels, reduction="sum")

    def row_by_row(x, labels):
        return jax.lax.scan(lambda _, row: (None, jsoftmax.cross_entropy(*row)), None, (x, labels))[1]

    at_once = (jsoftmax.cross_entropy, jax.jit(total), jax.grad(total), jax.jit(jax.value_and_grad(total)))
    for call in (*at_once, jax.grad(jax.checkpoint(total))):
        error, _ = jax.jit(checkify.checkify(call))(x, labels)
        assert "class id -100 of row 1 is outside [0, 4)" in error.get()
        assert checkify.checkify(call)(x, labels % 4)[0].get() is None
    for call in (jax.vmap(jsoftmax.cross_entropy), row_by_row):
        error, _ = jax.jit(checkify.checkify(call))(x, labels.at[2].set(0))
        assert "class id -100 of row 0 is outside [0, 4)" in error.get()
        assert checkify.checkify(call)(x, labels % 4)[0].get() is None


def test_without_checkify_the_check_is_not_in_the_program():
    """It is not an effect either, which would make every call of the program slow."""
    x, labels = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
    step = jax.jit(jax.value_and_grad(lambda x, y: jsoftmax.cross_entropy(x, y, reduction="mean")))
    traced = step.trace(x, labels)
    assert not traced.jaxpr.effects
    assert "check" in str(traced.jaxpr)
    text = traced.lower().as_text()
    assert "check" not in text
    assert "applies stablehlo.minimum" not in text  # a minimum over the bad rows


ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
IDS, TARGETS = jnp.array([0, 3, 2]), jax.nn.softmax(-ROWS)
BAD = {
    "temperature": (0.0, INF, NAN, 1e-39),
    "soft_cap": (0.0, -30.0, INF, NAN),
    "label_smoothing": (-0.1, 1.5, NAN),
    "z_loss": (-1.0, INF, NAN),
}
LOSS_OPTIONS = tuple(BAD)
WITH_OPTIONS = {
    "softmax": (jsoftmax.softmax, ("temperature",)),
    "log_softmax": (jsoftmax.log_softmax, ("temperature",)),
    "entropy": (jsoftmax.entropy, ("temperature",)),
    "log_prob": (lambda x, **o: jsoftmax.log_prob(x, IDS, **o), ("temperature",)),
    "kl_divergence": (lambda x, **o: jsoftmax.kl_divergence(x, ROWS[::-1], **o), ("temperature",)),
    "js_divergence": (lambda x, **o: jsoftmax.js_divergence(x, ROWS[::-1], **o), ("temperature",)),
    "row_statistics": (
        lambda x, **o: sum(jsoftmax.row_statistics(x, IDS, **o)[:3]),
        ("temperature", "soft_cap"),
    ),
    "linear_row_statistics": (
        lambda x, **o: sum(jsoftmax.linear_row_statistics(x, jnp.eye(4), IDS, **o)[:3]),
        ("temperature", "soft_cap"),
    ),
    "cross_entropy, ids": (lambda x, **o: jsoftmax.cross_entropy(x, IDS, **o), LOSS_OPTIONS),
    "cross_entropy, targets": (lambda x, **o: jsoftmax.cross_entropy(x, TARGETS, **o), LOSS_OPTIONS),
    "linear_cross_entropy": (
        lambda x, **o: jsoftmax.linear_cross_entropy(x, jnp.eye(4), IDS, **o),
        LOSS_OPTIONS,
    ),
}


def good_options(names):
    good = {"temperature": 0.7, "soft_cap": 5.0, "label_smoothing": 0.1, "z_loss": 0.01}
    return {name: jnp.full(3, good[name]) for name in names}


@pytest.mark.share(9)
@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_an_option_that_is_none_makes_its_row_nan(name):
    """In value and in every gradient: a call does not read the values of an array."""
    function, names = WITH_OPTIONS[name]

    @jax.jit
    def of(options):
        def total(x, options):
            out = function(x, **options)
            return out.sum(), out

        (_, out), (dx, doptions) = jax.value_and_grad(total, (0, 1), has_aux=True)(ROWS, options)
        return out, dx, doptions

    good = good_options(names)
    want = of(good)
    assert_finite(want)
    for option in names:
        for bad in BAD[option]:
            out, dx, doptions = of({**good, option: good[option].at[1].set(bad)})
            for found, right in ((out, want[0]), (dx, want[1]), (doptions[option], want[2][option])):
                assert np.isnan(found[1]).all(), (option, bad)
                np.testing.assert_allclose(found[::2], right[::2], rtol=1e-6)
            alone = jax.jit(lambda x, bad, option=option: function(x, **{option: bad}))
            assert bad != BAD[option][0] or np.isnan(alone(ROWS, jnp.float32(bad))).all(), option


@pytest.mark.share(4)
@pytest.mark.parametrize("loss", ["logits", "a head"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_an_option_of_an_ignored_row_may_be_anything(loss, reduction):
    labels = IDS.at[1].set(-100)

    @jax.jit
    def of(x, options):
        given = {"labels": labels, "ignore_index": -100, "reduction": reduction, **options}
        if loss == "logits":
            return jsoftmax.cross_entropy(x, **given).sum()
        return jsoftmax.linear_cross_entropy(x, jnp.eye(4), **given).sum()

    good = good_options(LOSS_OPTIONS)
    bad = {option: values.at[1].set(BAD[option][0]) for option, values in good.items()}
    step = jax.jit(jax.value_and_grad(of, (0, 1)))
    with jax.debug_nans(True):
        jax.tree.map(np.testing.assert_array_equal, step(ROWS, bad), step(ROWS, good))


@pytest.mark.long
def test_checkify_names_targets_that_are_no_probabilities():
    t = jax.nn.softmax(ROWS)
    below, above = t.at[1, 2].set(-0.25), jnp.full((3, 4), 0.25).at[2, 0].set(1)

    def linear(t, **options):
        return jsoftmax.linear_cross_entropy(ROWS, jnp.eye(4), t, **options)

    def total(x, t):
        return jsoftmax.cross_entropy(x, t, reduction="sum")

    calls = (
        lambda t: jsoftmax.softmax_cross_entropy(ROWS, t),
        lambda t: jax.grad(jax.checkpoint(total), 1)(ROWS, t),
        lambda t: jsoftmax.row_statistics(ROWS, t).nll,
        linear,
        partial(linear, reduction="mean"),
        lambda t: jsoftmax.linear_row_statistics(ROWS, jnp.eye(4), t).nll,
    )
    for call in calls:
        check = jax.jit(checkify.checkify(call))
        assert "target -0.25 of row 1 is below 0" in check(below)[0].get()
        assert "targets of row 2 add up to 1.75, more than 1" in check(above)[0].get()
        assert check(t)[0].get() is None
    mesh = jax.make_mesh((2,), ("classes",), axis_types=(AxisType.Auto,))
    by_class = P(None, "classes")

    @jax.shard_map(mesh=mesh, in_specs=(by_class, by_class), out_specs=P())
    def sharded(x, t):
        return jsoftmax.cross_entropy(x, t, axis_name="classes")

    error, _ = jax.jit(checkify.checkify(sharded))(ROWS, above)
    assert "targets of row 2 add up to 1.75" in error.get()
    assert jax.jit(checkify.checkify(sharded))(ROWS, t)[0].get() is None
    for over, x in ((0, ROWS), (None, ROWS[0])):
        error, _ = checkify.checkify(jax.vmap(total, (over, 0)))(x, below)
        assert "target -0.25 of row 0 is below 0" in error.get()


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.bfloat16, jnp.float16, jnp.float32])
def test_what_roundings_add_to_targets_is_not_reported(dtype):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 1000)), jnp.float32)
    for logits in (x, 8 * x, 0 * x):
        targets = jax.nn.softmax(logits).astype(dtype)
        assert checkify.checkify(jsoftmax.cross_entropy)(x, targets)[0].get() is None
