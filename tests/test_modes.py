"""The modes of tracing: plain programs, and how a mode is set."""

import concurrent.futures
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sampling

import jsoftmax

# The operations that some converter does not support.
NOT_PLAIN = {
    "bitcast_convert_type",
    "cond",
    "custom_vmap_call",
    "optimization_barrier",
    "platform_index",
    "reduce",
    "row_wise",
    "scan",
    "top_k",
    "while",
}


def primitives(jaxpr):
    """The primitives of a program and of its inner programs; the check in a `reported` does not count."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        if equation.primitive.name == "reported":
            continue
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def shapes(rows, classes):
    x = jax.ShapeDtypeStruct((rows, classes), jnp.float32)
    ids = jax.ShapeDtypeStruct((rows,), jnp.int32)
    hidden, weight = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, 16), (16, classes)))
    mask = jax.ShapeDtypeStruct((rows, classes), bool)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    return {"x": x, "ids": ids, "hidden": hidden, "weight": weight, "mask": mask, "number": number}


# A function and the names of its arguments.
FUNCTIONS = {
    "softmax": (jsoftmax.softmax, "x"),
    "softmax, mask and T": (lambda x, m, t: jsoftmax.softmax(x, where=m, temperature=t), "x mask number"),
    "log_softmax": (jsoftmax.log_softmax, "x"),
    "logsumexp": (functools.partial(jsoftmax.logsumexp, axis=-1), "x"),
    "logsumexp, weighted": (lambda x, b: jsoftmax.logsumexp(x, -1, b), "x x"),
    "cross_entropy": (jsoftmax.cross_entropy, "x ids"),
    "cross_entropy, targets": (jsoftmax.cross_entropy, "x x"),
    "cross_entropy, options": (
        lambda x, y, m, t: jsoftmax.cross_entropy(
            x, y, where=m, label_smoothing=0.1, z_loss=t, soft_cap=30.0, temperature=t, ignore_index=0
        ),
        "x ids mask number",
    ),
    "softmax_cross_entropy": (jsoftmax.softmax_cross_entropy, "x x"),
    "with integer labels": (jsoftmax.softmax_cross_entropy_with_integer_labels, "x ids"),
    "entropy": (jsoftmax.entropy, "x"),
    "log_prob": (jsoftmax.log_prob, "x ids"),
    "softmax, sink": (lambda x, s: jsoftmax.softmax(x, sink=s), "x number"),
    "log_odds": (jsoftmax.log_odds, "x ids"),
    "focal_loss": (jsoftmax.focal_loss, "x ids"),
    "binary_cross_entropy": (jsoftmax.binary_cross_entropy, "x x"),
    "kl_divergence": (jsoftmax.kl_divergence, "x x"),
    "js_divergence": (jsoftmax.js_divergence, "x x"),
    "row_statistics": (jsoftmax.row_statistics, "x ids"),
    "sparsemax": (jsoftmax.sparsemax, "x"),
    "entmax_loss": (jsoftmax.entmax_loss, "x ids"),
    "linear_cross_entropy": (jsoftmax.linear_cross_entropy, "hidden weight ids"),
    "linear_cross_entropy, mean": (
        functools.partial(jsoftmax.linear_cross_entropy, reduction="mean"),
        "hidden weight ids",
    ),
    "linear_row_statistics": (jsoftmax.linear_row_statistics, "hidden weight ids"),
}


def total(function):
    """The sum of all outputs of the function, for its gradient."""
    return lambda *arguments: sum(jnp.sum(a.astype(float)) for a in jax.tree.leaves(function(*arguments)))


def programs(name, rows, classes):
    function, names = FUNCTIONS[name]
    given = shapes(rows, classes)
    arguments = [given[n] for n in names.split()]
    for f in (function, jax.grad(total(function))):
        yield jax.make_jaxpr(f)(*arguments), jax.jit(f).lower(*arguments).as_text()


def not_plain(name, rows, classes):
    found = set()
    for jaxpr, text in programs(name, rows, classes):
        found |= set(primitives(jaxpr.jaxpr)) & (NOT_PLAIN | {"reported"})
        found |= {"float64"} if "f64" in text else set()
    return found


@pytest.mark.share(4)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_small_program_is_plain(name):
    loops = {"while"} if name in ("sparsemax", "entmax_loss") else set()
    assert not_plain(name, 16, 10) <= {"reported"} | loops


@pytest.mark.share(4)
@pytest.mark.diagonal
@pytest.mark.parametrize("size", [(512, 1000), (64, 50257)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_portable_program_is_plain_at_every_size(name, size):
    with jsoftmax.portable():
        assert not not_plain(name, *size)


def test_a_large_program_is_not():
    """Otherwise the tests above would pass in any mode."""
    assert not_plain("cross_entropy", 512, 1000) >= {"platform_index", "reported"}
    assert not_plain("linear_cross_entropy, mean", 4096, 50257) >= {"reported", "row_wise"}


# The functions with their own forms on CPU, and one of each other kind.
OF_EACH_KIND = (
    "softmax",
    "log_softmax",
    "logsumexp",
    "cross_entropy, options",
    "entropy",
    "linear_cross_entropy, mean",
)


@pytest.mark.share(3)
@pytest.mark.parametrize("name", sampling.sample(FUNCTIONS, *OF_EACH_KIND))
def test_portable_values_and_gradients(name):
    """Equal to those of the platform's own programs, up to a few roundings."""
    rng = np.random.default_rng(0)
    made = {
        "x": rng.gamma(0.5, size=(40, 700)),
        "ids": rng.integers(1, 700, 40),
        "hidden": rng.normal(size=(40, 16)),
        "weight": rng.normal(size=(16, 700)),
        "mask": np.arange(700) % 3 > 0,
        "number": 0.7,
    }
    function, names = FUNCTIONS[name]
    arguments = [jnp.asarray(made[n], shapes(40, 700)[n].dtype) for n in names.split()]
    if names == "x x":
        arguments = [arguments[0], arguments[0][:, ::-1] / 400]
    both = jax.jit(lambda *a: (function(*a), jax.grad(total(function))(*a)))
    want = both(*arguments)
    with jsoftmax.portable():
        got = both(*arguments)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_a_rule_keeps_the_mode_of_its_call():
    """JAX traces it later, in another mode."""
    x = jax.ShapeDtypeStruct((512, 1000), jnp.float32)

    @jsoftmax.portable()
    def loss(x):
        return jnp.sum(jsoftmax.log_softmax(x) ** 2)

    for derivative in (jax.grad(loss), jax.grad(jax.jit(loss)), jax.vmap(jax.grad(lambda r: loss(r[None])))):
        assert not set(primitives(jax.make_jaxpr(derivative)(x).jaxpr)) & NOT_PLAIN


def test_a_mode_within_itself():
    x = jnp.arange(3.0)
    mode = jsoftmax.forward_mode()
    with mode, mode:
        jax.jvp(jsoftmax.softmax, (x,), (x,))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(jsoftmax.softmax, (x,), (x,))


def test_a_mode_is_a_decorator():
    @jsoftmax.forward_mode()
    def tangent(x):
        return jax.jvp(jsoftmax.softmax, (x,), (jnp.ones_like(x),))[1]

    for _ in range(2):
        np.testing.assert_allclose(tangent(jnp.arange(3.0)), np.zeros(3), atol=1e-7)
    assert not jsoftmax.config.forward_mode


X, V = jnp.arange(3.0), jnp.array([2.0, 1.0, 0.0])


def softmax(x):
    """A function of its own, with no trace from another test."""
    return jsoftmax.softmax(x)


def tangent(function):
    return jax.jvp(function, (X,), (V,))[1]


def expected_tangent():
    return tangent(jax.nn.softmax)


# What is made of a function in one mode, and differentiated in another. JAX traces it where it is called.
TRACED_LATER = {
    "jit": lambda f: jax.jit(lambda x: f(x)),
    "checkpoint": lambda f: jax.checkpoint(lambda x: f(x)),
    "scan": lambda f: lambda x, body=lambda c, _: (f(c), None): jax.lax.scan(body, x, None, length=1)[0],
    "cond": lambda f: lambda x, branch=lambda x: f(x): jax.lax.cond(True, branch, branch, x),
}


@pytest.mark.share(2)
@pytest.mark.parametrize("name", TRACED_LATER)
def test_forward_mode_is_of_the_place_of_the_call(name):
    """Wherever a function was defined, and in whichever mode it was traced before."""
    make = TRACED_LATER[name]

    def outside(function):
        with pytest.raises(TypeError, match="to a custom_vjp function"):
            tangent(function)
        np.testing.assert_allclose(jax.jacrev(function)(X) @ V, expected_tangent(), rtol=1e-6)

    def inside(function):
        with jsoftmax.forward_mode():
            np.testing.assert_allclose(tangent(function), expected_tangent(), rtol=1e-6)

    with jsoftmax.forward_mode():
        made_inside = make(softmax)
    outside(made_inside)
    inside(made_inside)
    outside(made_inside)

    made_outside = make(softmax)
    inside(made_outside)
    outside(made_outside)
    inside(made_outside)


@pytest.mark.parametrize(
    "decorated",
    [
        jsoftmax.forward_mode()(softmax),
        jax.jit(jsoftmax.forward_mode()(softmax)),
        jsoftmax.forward_mode()(jax.jit(lambda x: softmax(x))),
    ],
    ids=["decorated", "jit of decorated", "decorated jit"],
)
def test_a_decorated_function_takes_its_mode_along(decorated):
    for _ in range(2):
        np.testing.assert_allclose(tangent(decorated), expected_tangent(), rtol=1e-6)
    with jsoftmax.forward_mode():
        tangent(decorated)


def test_a_decorator_of_a_generator_ends_before_its_body():
    @jsoftmax.forward_mode()
    def decorated():
        yield tangent(softmax)

    with pytest.raises(TypeError, match="to a custom_vjp function"):
        next(decorated())


def test_what_was_traced_inside_works_outside():
    with jsoftmax.forward_mode():
        program = jax.jit(lambda x: tangent(softmax) + 0 * x).lower(X).compile()
        _, push = jax.linearize(softmax, X)
        _, pull = jax.vjp(softmax, X)
        _, pull_of_jit = jax.vjp(jax.jit(lambda x: softmax(x)), X)
        closed, constants = jax.closure_convert(softmax, X)
    found = {
        "compiled": program(X),
        "linearize": push(V),
        "its transpose": jax.linear_transpose(push, X)(V)[0],
        "vjp": pull(V)[0],
        "jvp of a pull-back": jax.jvp(lambda g: pull(g)[0], (X,), (V,))[1],
        "vjp of jit": pull_of_jit(V)[0],
        "closure_convert": tangent(lambda x: closed(x, *constants)),
    }
    for name, got in found.items():  # the Jacobian is symmetric
        np.testing.assert_allclose(got, expected_tangent(), rtol=1e-6, err_msg=name)
    with jsoftmax.forward_mode():
        _, push_of_pull = jax.linearize(lambda x: jax.grad(lambda x: softmax(x)[0])(x), X)
    want = jax.jvp(jax.grad(lambda x: jax.nn.softmax(x)[0]), (X,), (V,))[1]
    np.testing.assert_allclose(push_of_pull(V), want, rtol=1e-5)


def test_a_pull_back_from_outside_works_inside():
    _, pull = jax.vjp(softmax, X)
    _, push = jax.linearize(softmax, X)
    with jsoftmax.forward_mode():
        np.testing.assert_allclose(pull(V)[0], expected_tangent(), rtol=1e-6)
        with pytest.raises(TypeError, match="to a custom_vjp function"):  # linearized outside
            push(V)


def test_a_rule_that_uses_forward_mode():
    """JAX traces the rule of a `custom_jvp` with its call, and a pull-back where the gradient is computed."""
    jvp, vjp = jax.custom_jvp(softmax), jax.custom_vjp(softmax)
    jvp.defjvp(lambda primals, tangents: jax.jvp(softmax, primals, tangents))
    vjp.defvjp(lambda x: (softmax(x), x), lambda x, g: jax.jvp(softmax, (x,), (g,))[1:])

    def gradient(function):
        return jax.vjp(jax.jit(jsoftmax.forward_mode()(function)), X)[1](V)[0]

    np.testing.assert_allclose(gradient(jvp), expected_tangent(), rtol=1e-6)
    with pytest.raises(TypeError, match="to a custom_vjp function"):
        gradient(vjp)
    with jsoftmax.forward_mode():
        np.testing.assert_allclose(gradient(vjp), expected_tangent(), rtol=1e-6)


def in_a_thread(function):
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


@pytest.mark.usefixtures("as_it_was")
def test_a_with_is_for_its_thread_and_config_for_all():
    with jsoftmax.forward_mode(), pytest.raises(TypeError, match="to a custom_vjp function"):
        in_a_thread(lambda: tangent(softmax))
    jsoftmax.config.update("forward_mode", True)
    np.testing.assert_allclose(in_a_thread(lambda: tangent(softmax)), expected_tangent(), rtol=1e-6)


def test_the_refusal_names_the_remedy():
    """Where JAX refuses during the call; with a `jax.jit` around it, the refusal is JAX's own alone."""
    labels, weight = jnp.array([0, 1]), jnp.eye(3)
    for function in (
        jsoftmax.softmax,
        lambda x: jax.vmap(jsoftmax.log_softmax)(x[None]),
        lambda x: jsoftmax.linear_cross_entropy(jnp.stack([x, x]), weight, labels, reduction="mean"),
        lambda x: jsoftmax.linear_cross_entropy(jnp.stack([x, x]), weight, labels),
    ):
        with pytest.raises(TypeError, match="to a custom_vjp function") as refusal:
            tangent(function)
        assert sum("with jsoftmax.forward_mode():" in note for note in refusal.value.__notes__) == 1
    with pytest.raises(NotImplementedError, match="'custom_lin' not implemented") as refusal:
        jax.grad(lambda x: jax.jvp(softmax, (x,), (V,))[1][0])(X)
    assert "with jsoftmax.forward_mode():" in refusal.value.__notes__[0]


@pytest.fixture
def as_it_was():
    yield
    for name in ("forward_mode", "portable"):
        jsoftmax.config.update(name, False)


@pytest.mark.usefixtures("as_it_was")
def test_a_mode_of_the_process():
    x = jnp.zeros((512, 1000))
    loss = jax.jit(lambda x: jsoftmax.logsumexp(x, -1))
    before = loss.lower(x).as_text()
    jsoftmax.config.update("portable", True)
    assert jsoftmax.config.portable
    assert loss.lower(x).as_text() != before
    jsoftmax.config.update("forward_mode", True)
    jax.jvp(jsoftmax.softmax, (x,), (x,))
    jsoftmax.config.update("portable", False)
    jsoftmax.config.update("forward_mode", False)
    assert loss.lower(x).as_text() == before


def test_a_mode_that_is_none():
    with pytest.raises(AttributeError, match=r"config.update.'portabel', True.: there is no 'portabel'"):
        jsoftmax.config.update("portabel", True)
    with pytest.raises(TypeError, match="True or False"):
        jsoftmax.config.update("portable", 1)


def mean_of(function):
    return lambda *arguments: jnp.mean(function(*arguments))


# Ours, a peer's, the arguments; the most operations, and equations, of a plain program and of its gradient.
SIZES = {
    "softmax": (jsoftmax.softmax, jax.nn.softmax, "x", (23, 19), (44, 32)),
    "log_softmax": (jsoftmax.log_softmax, jax.nn.log_softmax, "x", (96, 67), (139, 83)),
    "logsumexp": (
        functools.partial(jsoftmax.logsumexp, axis=-1),
        functools.partial(jax.nn.logsumexp, axis=-1),
        "x",
        (97, 61),
        (126, 78),
    ),
    "cross_entropy": (
        jsoftmax.cross_entropy,
        optax.softmax_cross_entropy_with_integer_labels,
        "x ids",
        (137, 94),
        (246, 184),
    ),
    "linear_cross_entropy": (
        jsoftmax.linear_cross_entropy,
        lambda h, w, ids: optax.softmax_cross_entropy_with_integer_labels(h @ w, ids),
        "hidden weight ids",
        (138, 95),
        (249, 187),
    ),
}


def operations_and_equations(function, names):
    """The operations of its StableHLO, and the equations of its jaxpr and of those within."""
    given = shapes(16, 10)
    traced = jax.jit(function).trace(*(given[n] for n in names.split()))
    operations = len(re.findall(r"= \"?stablehlo\.", traced.lower().as_text()))
    return operations, len(list(primitives(traced.jaxpr.jaxpr)))


@pytest.mark.parametrize("name", SIZES)
def test_how_many_operations_a_plain_program_has(name):
    """Of the trace, and of the input of the compiler."""
    ours, peer, names, *most = SIZES[name]
    both = [(ours, peer), tuple(jax.value_and_grad(mean_of(f)) for f in (ours, peer))]
    for (a, b), bounds in zip(both, most, strict=True):
        counts, of_peer = (operations_and_equations(f, names) for f in (a, b))
        print(f"{name:22}", *(f"{n:5}{m:5}{n / m:6.1f}" for n, m in zip(counts, of_peer, strict=True)))
        assert all(count <= bound for count, bound in zip(counts, bounds, strict=True)), counts


def test_a_constant_tangent_keeps_the_nan_of_an_overflow():
    """XLA makes a select of a product with a converted comparison: 0 for a row that is NaN would hide it."""
    x = jnp.zeros((3, 5)).at[0, 1].set(jnp.inf).at[1, 2].set(jnp.nan)

    def along_ones(x):
        with jsoftmax.forward_mode():
            return jax.jvp(jsoftmax.log_softmax, (x,), (jnp.ones_like(x),))[1]

    is_nan = jnp.isnan(jax.jit(along_ones)(x))
    assert is_nan.all(1).tolist() == is_nan.any(1).tolist() == [True, True, False]
