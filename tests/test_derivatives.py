"""Every rule is the derivative of its definition. `test_transforms` tests the second order."""

from functools import partial
from operator import add, sub

import definitions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampling
from cases import REGIMES, logits, named

import jsoftmax
from jsoftmax import rules


def scalar(function, arguments, which, axis=-1, cotangent=True):
    """The function as a scalar of its float arguments, and its definition in the same form."""

    def dot(f, *floats):
        full = list(arguments)
        for position, value in zip(which, floats, strict=True):
            full[position] = value
        out = f(*full, axis=axis)
        weights = np.random.default_rng(2).normal(size=out.shape) if cotangent else np.ones(out.shape)
        return jnp.sum(out * jnp.asarray(weights, out.dtype))

    return partial(dot, function.ours), partial(dot, function.plain)


def assert_close(ours, plain, rtol=1e-11):
    """Compare leaf by leaf, relative to the largest entry of the leaf."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1, np.abs(b).max(initial=0)))


def in_float64(function):
    """Both functions, compiled once for all regimes, and the positions of their float arguments."""
    arguments = function.arguments(logits("unit", (3, 6)))
    which = function.floats(arguments)
    return *scalar(function, arguments, which), tuple(range(len(which)))


def inputs(function, regimes):
    """Their float arguments in every regime, with a tolerance for the plain definition."""
    for regime in regimes:
        arguments = function.arguments(logits(regime, (3, 6)))
        floats = tuple(arguments[i] for i in function.floats(arguments))
        yield floats, 1e-12 * (10 + float(np.abs(arguments[0]).max()))


@pytest.mark.share(18)
@pytest.mark.parametrize("function", **named())
def test_gradient_is_that_of_the_definition(function, x64):
    """In reverse and forward mode; and difference quotients of the value, which use no rule."""
    ours, plain, positions = in_float64(function)
    want, got = (jax.jit(jax.value_and_grad(f, positions)) for f in (plain, ours))
    forward, reverse = (jax.jit(d(ours, positions)) for d in (jax.jacfwd, jax.jacrev))
    rng = np.random.default_rng(3)
    for floats, rtol in inputs(function, REGIMES):
        value, gradient = got(*floats)
        assert_close((value, gradient), want(*floats), rtol)
        with jsoftmax.forward_mode():
            assert_close(forward(*floats), gradient, rtol)
            assert_close(reverse(*floats), gradient, rtol)
        step = [1e-5 * rng.normal(size=a.shape) for a in floats]
        above, below = (got(*jax.tree.map(shift, floats, tuple(step)))[0] for shift in (add, sub))
        slope = sum(np.vdot(g, d) for g, d in zip(gradient, step, strict=True))
        np.testing.assert_allclose((above - below) / 2, slope, rtol=1e-6, atol=1e-10 + 1e-15 * abs(value))


@pytest.mark.share(14)
@pytest.mark.parametrize("function", **named())
def test_gradients_have_the_dtypes_and_shapes_of_their_arguments(function):
    for dtype in (jnp.float32, jnp.bfloat16):
        arguments = function.arguments(jnp.asarray(logits("unit", (3, 6))).astype(dtype))
        which = function.floats(arguments)
        ours, _ = scalar(function, arguments, which)
        floats = [arguments[i] for i in which]
        for a, gradient in zip(
            floats, jax.eval_shape(jax.grad(ours, range(len(which))), *floats), strict=True
        ):
            assert gradient.dtype == dtype
            assert gradient.shape == a.shape


def attention(softmax, cross_entropy, inputs, weights, labels):
    """A causal block of self-attention with a head, and its loss."""
    q, k, v = (inputs @ w for w in weights[:3])
    causal = jnp.tril(jnp.ones((len(inputs), len(inputs)), bool))
    mixed = softmax(q @ k.T / 2, -1, causal) @ v
    return jnp.mean(cross_entropy((inputs + mixed) @ weights[3], labels))


def perceptron(softmax, cross_entropy, inputs, weights, labels):
    hidden = jnp.tanh(inputs @ weights[0])
    gate = softmax(hidden @ weights[1])
    return jnp.mean(cross_entropy((hidden * gate) @ weights[3], labels))


@pytest.mark.long
@pytest.mark.parametrize("model", sampling.sample([attention, perceptron], perceptron))
def test_models_push_forward_in_float64(model, x64):
    """jvp, jacfwd, hessian and linearize of whole models in forward mode, with nested jits."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(5, 4)))
    weights = jnp.asarray(rng.normal(size=(4, 4, 4)))
    direction = jnp.asarray(rng.normal(size=weights.shape))
    labels = jnp.asarray(rng.integers(0, 4, 5))
    plain = jax.jit(partial(model, definitions.softmax, definitions.cross_entropy))
    ours = jax.jit(partial(model, jsoftmax.softmax, jax.jit(jsoftmax.cross_entropy)))

    @partial(jax.jit, static_argnums=0)
    def derivatives(loss, weights):
        def at(weights):
            return loss(inputs, weights, labels)

        _, push = jax.linearize(at, weights)
        return {
            "jvp": jax.jvp(at, (weights,), (direction,)),
            "jacfwd": jax.jacfwd(at)(weights),
            "jacfwd of jacfwd": jax.jacfwd(jax.jacfwd(at))(weights),
            "hessian": jax.hessian(at)(weights),
            "grad": jax.grad(at)(weights),
            "linearize": push(direction),
        }

    want = derivatives(plain, weights)
    with jsoftmax.forward_mode():
        assert_close(derivatives(ours, weights), want, 1e-12)
    assert_close(jax.grad(lambda w: ours(inputs, w, labels))(weights), want["grad"], 1e-12)


def test_outside_forward_mode_pushing_forward_is_refused():
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(jsoftmax.softmax, (jnp.zeros(3),), (jnp.ones(3),))


def test_one_jitted_function_traced_in_both_modes_gives_both_programs():
    step = jax.jit(lambda x: jsoftmax.log_softmax(x).sum())
    x = jnp.arange(3.0)
    assert "custom_vjp" in str(jax.make_jaxpr(step)(x))
    jax.grad(step)(x)
    with jsoftmax.forward_mode():
        assert "custom_jvp" in str(jax.make_jaxpr(step)(x))
        np.testing.assert_allclose(jax.jacfwd(step)(x), jax.grad(step)(x), atol=1e-6)
    assert "custom_vjp" in str(jax.make_jaxpr(step)(x))


@pytest.mark.long
def test_optax_spellings_push_forward_as_optax_does():
    x = jnp.array([2.0, 1.0, 0.1])
    t = jnp.array([1.0, 0.0, 0.0])
    for loss, labels in (
        (jsoftmax.softmax_cross_entropy, t),
        (jsoftmax.softmax_cross_entropy_with_integer_labels, jnp.int32(0)),
    ):
        both = jax.jit(lambda x, y, f=loss: (jax.jacfwd(f)(x, y), jax.grad(f)(x, y)))
        np.testing.assert_allclose(*both(x, labels), rtol=1e-6)


def test_the_gradient_of_the_loss_is_p_minus_t():
    z, t = jnp.array([2.0, 1.0, 0.1]), jnp.array([1.0, 0.0, 0.0])
    p = jsoftmax.softmax(z)
    gradient = jax.grad(jsoftmax.cross_entropy)(z, t)
    np.testing.assert_allclose(gradient, p - t, rtol=1e-6)
    np.testing.assert_allclose(gradient, rules.cross_entropy_residual(p, t), rtol=1e-6)
    np.testing.assert_allclose(gradient, jax.grad(jsoftmax.cross_entropy)(z, jnp.int32(0)), rtol=1e-6)


@pytest.mark.share(3)
@pytest.mark.parametrize("spread", [1e-6, 1e-3, 1.0])
def test_the_gradient_of_the_entropy_near_the_uniform_distribution(spread):
    """−p·(u − ⟨p, u⟩): in −p·(log p + H), both terms are log V, and their difference has no digits."""
    x = np.float32(1 + spread * np.random.default_rng(0).normal(size=(4, 9)))
    p = np.float64(x) - x.max(1, keepdims=True)
    u, p = p, np.exp(p) / np.exp(p).sum(1, keepdims=True)
    want = -p * (u - (p * u).sum(1, keepdims=True))
    hidden, weight = jnp.eye(4), jnp.asarray(x)
    labels = jnp.zeros(4, jnp.int32)

    def linear(block_size):
        def total(weight):
            found = jsoftmax.linear_row_statistics(hidden, weight, labels, block_size=block_size)
            return jnp.sum(found.entropy)

        return jax.grad(total)(weight)

    dense = jax.grad(lambda x: jnp.sum(jsoftmax.entropy(x)))(weight)
    for got in (dense, linear(None), linear((4, 4))):
        np.testing.assert_allclose(got, want, atol=1e-6 * abs(want).max())


@pytest.mark.share(4)
@pytest.mark.diagonal
@pytest.mark.parametrize("option", ["z_loss", "label_smoothing", "class_weights", "soft_cap"])
@pytest.mark.parametrize("kind", ["ids", "targets", "linear", "linear, mean"])
def test_mixed_second_derivatives_pushed_forward(option, kind):
    """First in an option, then forward in the logits, without a derivative in an argument of the rule."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    labels = jnp.array([0, 4, 2]) if kind != "targets" else jsoftmax.softmax(x[::-1])
    value = {"class_weights": jnp.arange(1.0, 6.0), "soft_cap": jnp.float32(3)}.get(option, jnp.float32(0.2))

    def loss(x, value):
        options = {"reduction": "mean" if "mean" in kind else "none", option: value}
        if "linear" in kind:
            return jnp.sum(jsoftmax.linear_cross_entropy(x, jnp.eye(5), labels, **options))
        return jnp.sum(jsoftmax.cross_entropy(x, labels, **options))

    in_option = jax.grad(loss, 1)
    forward, reverse = (jax.jit(mode(in_option))(x, value) for mode in (jax.jacfwd, jax.jacrev))
    np.testing.assert_allclose(forward, reverse, rtol=1e-5, atol=1e-6)
    if (option, kind) == ("z_loss", "ids"):
        want = 2 * jsoftmax.logsumexp(x, -1, keepdims=True) * jsoftmax.softmax(x)
        np.testing.assert_allclose(forward, want, rtol=1e-5)


def test_rows_of_the_jacobian_are_gradients_of_the_outputs():
    rng = np.random.default_rng(0)
    for i in rng.integers(0, 12, 10):
        z = jnp.asarray(3 * rng.normal(size=12), jnp.float32)
        gradient = jax.grad(lambda z, i=i: jsoftmax.softmax(z)[i])(z)
        row = rules.softmax_jacobian(jsoftmax.softmax(z))[i]
        np.testing.assert_allclose(row, gradient, rtol=1e-5, atol=1e-9)


def test_a_padding_row_of_targets_pulls_nothing():
    """The rule is (Σt)·p − t: with p − t, a row of zero targets would change the logits along p."""
    z, t = jnp.asarray(logits("unit", (2, 5), dtype=np.float32)), jnp.zeros((2, 5)).at[0, 1].set(1)
    gradient = jax.grad(jsoftmax.cross_entropy)(z, t, reduction="sum")
    np.testing.assert_array_equal(gradient[1], jnp.zeros(5))


RULES = {
    "softmax_product": lambda p, v: p * (v - np.sum(p * v, -1, keepdims=True)),
    "cross_entropy_hvp": lambda p, v: p * (v - np.sum(p * v, -1, keepdims=True)),
    "log_softmax_jvp": lambda p, v: v - np.sum(p * v, -1, keepdims=True),
    "log_softmax_vjp": lambda p, g: g - p * np.sum(g, -1, keepdims=True),
    "cross_entropy_residual": lambda p, t: np.sum(t, -1, keepdims=True) * p - t,
}


@pytest.mark.parametrize("axis", [-1, 0, (0, 1)], ids=str)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", RULES)
def test_closed_forms(name, regime, axis, x64):
    x = logits(regime, (6, 5), axis if isinstance(axis, int) else -1)
    p = np.asarray(jsoftmax.softmax(x, axis))
    v = np.random.default_rng(1).normal(size=p.shape)
    if axis == (0, 1):
        want = RULES[name](p.reshape(-1), v.reshape(-1)).reshape(p.shape)
    else:
        want = np.moveaxis(RULES[name](np.moveaxis(p, axis, -1), np.moveaxis(v, axis, -1)), -1, axis)
    ours = getattr(rules, name)(p, v, axis)
    np.testing.assert_allclose(ours, want, rtol=1e-12, atol=1e-13)


@pytest.mark.share(2)
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_the_jacobian_is_diag_p_minus_p_p(axis, x64):
    p = np.asarray(jsoftmax.softmax(logits("unit", (2, 3, 4)), axis))
    rows = np.moveaxis(p, axis, -1)
    want = np.einsum("...i,ij->...ij", rows, np.eye(rows.shape[-1])) - rows[..., None] * rows[..., None, :]
    np.testing.assert_allclose(rules.softmax_jacobian(p, axis), want, rtol=1e-12, atol=1e-15)


def test_closed_forms_keep_their_digits_where_p_is_near_one():
    """1 − p is 1e-9 here, and rounds to 0 in float32."""
    p = jnp.array([1.0, 1e-9], jnp.float32)
    one = jnp.array([1.0, 0.0])
    want = jnp.array([1e-9, -1e-9])
    for value in (
        rules.softmax_jacobian(p)[0],
        rules.softmax_product(p, one),
        rules.log_softmax_vjp(p, one),
        -rules.cross_entropy_residual(p, one),
    ):
        np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(rules.log_softmax_jvp(p, one), [1e-9, -1.0], rtol=1e-6)


OF_ROW = {
    "softmax": lambda x: jsoftmax.softmax(x)[1],
    "log_softmax": lambda x: jsoftmax.log_softmax(x)[0],
    "logsumexp": jsoftmax.logsumexp,
    "entropy": jsoftmax.entropy,
    "loss of the leading class": lambda x: jsoftmax.cross_entropy(x, 1, temperature=0.9),
    "loss of another class": lambda x: jsoftmax.cross_entropy(x, 0, label_smoothing=0.1, z_loss=1e-4),
    "loss of targets": lambda x: jsoftmax.cross_entropy(x, jnp.eye(5, dtype=x.dtype)[1]),
    "square of a loss": lambda x: jsoftmax.cross_entropy(x, 1) ** 2,
    "focal_loss": lambda x: jsoftmax.focal_loss(x, 1),
    "log_odds": lambda x: jsoftmax.log_odds(x, 1),
    "divergence from it": lambda x: jsoftmax.kl_divergence(jnp.sin(jnp.arange(5, dtype=x.dtype)), x),
    "its divergence": lambda x: jsoftmax.kl_divergence(x, jnp.sin(jnp.arange(5, dtype=x.dtype))),
    "linear_cross_entropy": lambda x: jsoftmax.linear_cross_entropy(x, jnp.eye(5, dtype=x.dtype), 1),
}


@pytest.mark.parametrize("lead", [5.0, 20.0, 40.0])
@pytest.mark.parametrize("name", OF_ROW)
def test_second_derivatives_keep_their_digits_beside_a_leading_class(name, lead, x64):
    """Each entry on its own: 1 − p of the leading class is far below the rounding of p."""
    f = OF_ROW[name]
    x = jnp.asarray([0.3, lead, 1.0, 0.0, 0.5])
    want = jax.jit(jax.jacrev(jax.grad(f)))(x)
    for outer in (jax.jacfwd, jax.jacrev):
        got = jax.jit(outer(jax.grad(f)))(x.astype(jnp.float32))
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-36)
