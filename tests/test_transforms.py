"""Every function gives the same results under every transformation of JAX.

The tests are a matrix. `REVERSE` and `FORWARD` call a function through a transformation; `Flat` holds the
exact results for each function of the table: the value, the Jacobian, and the Hessian of its definition.
"""

import functools
import re
from contextlib import nullcontext

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from cases import FUNCTIONS, WITH_AXES_OF_LOGITS, logits, named
from compiling import jit_in_full
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jsoftmax
from jsoftmax import rules

MODES = {"reverse": nullcontext, "forward": jsoftmax.forward_mode}


def agree(name, got, want):
    """Equal up to a few roundings of float64."""
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12, err_msg=name)


def on(function, axis=-1):
    """The function of its arrays only."""
    return functools.partial(function.ours, axis=axis)


def float32_arguments(function, shape=(4, 9), axis=-1, dtype=jnp.float32):
    return function.arguments(jnp.asarray(logits("unit", shape, axis, np.float32)).astype(dtype), axis)


def over_rows(f, *arguments):
    return lax.scan(lambda carry, row: (carry, f(*row)), None, arguments)[1]


def over_a_dict(f, *arguments):
    return jax.vmap(lambda row: f(*row.values()))({f"argument {i}": a for i, a in enumerate(arguments)})


def in_a_branch(f, *arguments):
    """Within a branch, whose predicate is known only at run time."""
    out = jax.eval_shape(f, *arguments)
    return lax.cond(
        jnp.isfinite(arguments[0][0, 0]), f, lambda *_: jnp.zeros(out.shape, out.dtype), *arguments
    )


def in_a_while_loop(f, *arguments):
    """Row by row, with the rows collected in the carry."""
    out = jax.eval_shape(f, *arguments)

    def body(carry):
        i, rows = carry
        return i + 1, rows.at[i].set(f(*(a[i] for a in arguments)))

    return lax.while_loop(lambda carry: carry[0] < len(out), body, (0, jnp.zeros(out.shape, out.dtype)))[1]


def through_a_file(f, *arguments):
    exported = jax.export.export(jax.jit(f))(*arguments)
    return jax.export.deserialize(exported.serialize(vjp_order=1)).call(*arguments)


# The function called through a transformation, on arguments whose rows are along the first axis.
WRAPPINGS = {
    "as it is": lambda f, *arguments: f(*arguments),
    "jit": lambda f, *arguments: jax.jit(f)(*arguments),
    "vmap": lambda f, *arguments: jax.vmap(f)(*arguments),
    "vmap over a dict": over_a_dict,
    "checkpoint": lambda f, *arguments: jax.checkpoint(f)(*arguments),
    "scan": over_rows,
    "cond": in_a_branch,
}
REVERSE = {**WRAPPINGS, "export": through_a_file}  # an exported program includes its reverse mode
FORWARD = {**WRAPPINGS, "while_loop": in_a_while_loop}  # a loop of unknown length has only forward mode


# A third of the transformations each; by default a test of a function uses one third.
in_parts = pytest.mark.parametrize("part", range(3), ids=["part 1", "part 2", "part 3"])


def part_of(table, part):
    """Every third entry."""
    return dict([*table.items()][part::3])


class Flat:
    """A function of the table as a function of a flat vector, with its exact results."""

    def __init__(self, function):
        self.function = function
        self.arguments = function.arguments(logits("unit", (2, 3)))
        self.which = function.floats(self.arguments)
        self.x, self.unravel = ravel_pytree([self.arguments[i] for i in self.which])
        plain = functools.partial(self, function.plain)
        rng = np.random.default_rng(3)
        self.v, self.g = (
            jnp.asarray(rng.normal(size=a.shape)) for a in (self.x, jax.eval_shape(plain, self.x))
        )
        self.definition = jax.jit(lambda x: (plain(x), jax.jacfwd(plain)(x)))
        self.hessian = jax.jit(jax.hessian(lambda x: plain(x) @ self.g))
        self.value, self.jacobian = map(np.asarray, self.definition(self.x))

    def at(self, regime):
        """The point with logits of this regime."""
        x = logits(regime, (2, 3)).ravel()
        return self.x.at[: x.size].set(x)

    def __call__(self, f, x, wrap=lambda f, *arguments: f(*arguments)):
        """`f` at x, called through a wrapping."""
        arguments = list(self.arguments)
        for i, value in zip(self.which, self.unravel(x), strict=True):
            arguments[i] = value
        return wrap(functools.partial(f, axis=-1), *arguments).ravel()

    def ours(self, wrap=lambda f, *arguments: f(*arguments)):
        return functools.partial(self, self.function.ours, wrap=wrap)


@functools.cache
def flat(name):
    with jax.enable_x64(True):
        return Flat(next(function for function in FUNCTIONS if function.name == name))


@pytest.mark.share(20)
@pytest.mark.diagonal
@in_parts
@pytest.mark.parametrize("function", **named())
def test_value_and_gradient_through_every_wrapping(function, part, x64):
    case = flat(function.name)

    @jax.jit
    def everything(x):
        pulled = {name: jax.vjp(case.ours(wrap), x) for name, wrap in part_of(REVERSE, part).items()}
        return {name: (value, *pull(case.g)) for name, (value, pull) in pulled.items()}

    for name, (value, gradient) in everything(case.x).items():
        agree(name, value, case.value)
        agree(name, gradient, case.g @ case.jacobian)


@pytest.mark.share(20)
@pytest.mark.diagonal
@in_parts
@pytest.mark.parametrize("function", **named())
def test_forward_mode_through_every_wrapping(function, part, x64):
    case = flat(function.name)

    @jax.jit
    def everything(x):
        return {
            name: jax.jvp(case.ours(wrap), (x,), (case.v,)) for name, wrap in part_of(FORWARD, part).items()
        }

    with jsoftmax.forward_mode():
        for name, (value, along) in everything(case.x).items():
            agree(name, value, case.value)
            agree(name, along, case.jacobian @ case.v)


@pytest.mark.share(20)
@pytest.mark.diagonal
@in_parts
@pytest.mark.parametrize("function", **named())
def test_transformations_of_derivatives(function, part, x64):
    case = flat(function.name)
    f = case.ours()
    gradient = jax.grad(lambda x: f(x) @ case.g)

    def pushed(x):
        return jax.jvp(f, (x,), (case.v,))[1] @ case.g

    def forward(derivative):
        def of(x):
            with jsoftmax.forward_mode():
                return derivative(x)

        return of

    transformations = {
        "jacrev": jax.jacrev(f),
        "hessian": forward(jax.hessian(lambda x: f(x) @ case.g)),
        "jacfwd of jvp": forward(jax.jacfwd(pushed)),
        "linear_transpose of jvp": forward(
            lambda x: jax.linear_transpose(lambda v: jax.jvp(f, (x,), (v,))[1], x)(case.g)[0]
        ),
        "jvp of grad": lambda x: jax.jvp(gradient, (x,), (case.v,))[1],
        "grad of grad": jax.grad(lambda x: gradient(x) @ case.v),
    }

    @jax.jit
    def everything(x):
        return {name: derivative(x) for name, derivative in part_of(transformations, part).items()}

    for regime in ("unit", "tied", "peaked by 15"):
        x = case.at(regime)
        found = everything(x)
        if "jacrev" in found:
            jacobian = np.asarray(case.definition(x)[1])
            want = {"jacrev": jacobian, "linear_transpose of jvp": case.g @ jacobian}
        else:
            hessian = np.asarray(case.hessian(x))
            want = dict.fromkeys(("jvp of grad", "grad of grad", "jacfwd of jvp"), hessian @ case.v)
            want["hessian"] = hessian
        for name, got in found.items():
            if regime == "unit":
                agree(name, got, want[name])
            tolerance = 1e-11 * (10 + np.abs(x).max()) * max(1, np.abs(want[name]).max())
            np.testing.assert_allclose(got, want[name], rtol=0, atol=tolerance, err_msg=f"{name}, {regime}")


@pytest.mark.share(20)
@pytest.mark.parametrize("function", **named())
def test_a_donated_buffer_is_written_over(function, x64):
    case = flat(function.name)
    x = jnp.copy(case.x)
    gradient = jax.jit(lambda x: jax.vjp(case.ours(), x)[1](case.g)[0], donate_argnums=0)(x)
    assert x.is_deleted()
    agree("gradient", gradient, case.g @ case.jacobian)


@pytest.mark.share(20)
@pytest.mark.parametrize("function", **named(WITH_AXES_OF_LOGITS))
def test_vmap_over_any_axis_of_rows(function):
    """Values and gradients are those of the whole array, for any position of the mapped axis."""
    arguments = float32_arguments(function, (2, 3, 4), axis=1)

    def value_and_gradient(f):
        out, pull = jax.vjp(f, arguments[0])
        return out, *pull(jnp.cos(out))

    def mapped(over):
        # An array with one entry per row has no axis 1: later axes move up.
        positions = [over - (over == 2 and a.ndim == 2) for a in arguments]
        inside = jax.vmap(
            on(function, axis=int(over == 2)), positions, over - (over == 2 and function.reduces)
        )
        return lambda x: inside(x, *arguments[1:])

    @jax.jit
    def everything():
        return [
            value_and_gradient(f)
            for f in (lambda x: on(function, 1)(x, *arguments[1:]), mapped(0), mapped(2))
        ]

    whole, *others = everything()
    for other in others:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), other, whole)


def on_shards(call, axes, count):
    """The call on a mesh of `count` devices, which share the arguments without an axis, like `jax.vmap`."""
    mesh = jax.make_mesh((count,), ("elements",), axis_types=(AxisType.Auto,))
    specs = tuple(P() if axis is None else P("elements") for axis in axes)

    def of_shard(*arguments):
        own = (a if axis is None else a[0] for a, axis in zip(arguments, axes, strict=True))
        return call(*own)[None]

    return jax.shard_map(of_shard, mesh=mesh, in_specs=specs, out_specs=P("elements"))


def on_shards_of_two(call, axes, count):
    """The call on devices with two elements each, by `jax.vmap`."""

    def both(*arguments):
        pairs = (
            a if axis is None else a.reshape(-1, 2, *a.shape[1:])
            for a, axis in zip(arguments, axes, strict=True)
        )
        out = on_shards(jax.vmap(call, axes), axes, count // 2)(*pairs)
        return out.reshape(-1, *out.shape[2:])

    return both


OVER_ELEMENTS = {
    "vmap": lambda call, axes, count: jax.vmap(call, axes),
    "shards": on_shards,
    "vmap within shards": on_shards_of_two,
}


@pytest.mark.share(40)
@pytest.mark.parametrize("over", OVER_ELEMENTS)
@pytest.mark.parametrize("function", **named())
def test_gradients_in_what_elements_share(function, over, x64):
    """With one argument per element, the gradient in each other one is the sum of those of the elements."""
    f, arguments = on(function), function.arguments(logits("unit", (2, 3)))

    def of(call, i, a, g):
        """The gradients of a call with a in place of argument i, in the other arguments."""
        others = {j: arguments[j] for j in function.floats(arguments) if j != i}
        given = dict(enumerate(arguments))
        _, pull = jax.vjp(lambda others: call(*(given | {i: a} | others).values()), others)
        return pull(g)[0]

    @jax.jit
    def everything():
        found = []
        for i, argument in enumerate(arguments):
            elements = jnp.stack([argument, jnp.roll(argument, 1, 0) if argument.ndim else argument])
            axes = [0 if j == i else None for j in range(len(arguments))]
            out = jax.eval_shape(f, *arguments)
            g = jnp.cos(jnp.arange(2.0 * out.size)).reshape(2, *out.shape)
            alone = [of(f, i, a, of_element) for a, of_element in zip(elements, g, strict=True)]
            together = OVER_ELEMENTS[over](f, axes, 2)
            found.append((of(together, i, elements, g), jax.tree.map(jnp.add, *alone)))
        return found

    for got, want in everything():
        jax.tree.map(functools.partial(agree, function.name), got, want)


HEAD = np.cos(np.arange(35.0)).reshape(5, 7)
PARTLY_MAPPED = {
    "labels, z-loss": lambda x, i: jsoftmax.cross_entropy(x, (jnp.arange(3) + i) % 7, z_loss=0.1),
    "class weights, smoothing": lambda x, i: jsoftmax.cross_entropy(
        x,
        jnp.arange(3),
        class_weights=1.5 + jnp.cos(jnp.arange(7.0) + jnp.asarray(i, x.dtype)),
        label_smoothing=0.1,
    ),
    "labels, statistics": lambda x, i: sum(jsoftmax.row_statistics(x, (jnp.arange(3) + i) % 7)[:3]),
    "labels, statistics of a head": lambda x, i: sum(
        jsoftmax.linear_row_statistics(x[:, :5], HEAD, (jnp.arange(3) + i) % 7)[:3]
    ),
    "weights, z-loss of a head": lambda x, i: jsoftmax.linear_cross_entropy(
        x[:, :5],
        HEAD,
        jnp.arange(3),
        z_loss=0.1,
        weights=1.5 + jnp.cos(jnp.arange(3.0) + jnp.asarray(i, x.dtype)),
        reduction="mean",
    ),
    "z-loss of a head": lambda x, i: jsoftmax.linear_cross_entropy(
        x[:, :5], HEAD, jnp.arange(3), z_loss=0.1 + 0.1 * jnp.asarray(i, x.dtype), reduction="sum"
    ),
    "temperature of two heads": lambda x, i: jsoftmax.linear_kl_divergence(
        x[:, :5], HEAD, x[:, 2:], HEAD, temperature=1.5 + jnp.cos(jnp.asarray(i, x.dtype)), reduction="sum"
    ),
    "key": lambda x, i: jsoftmax.linear_cross_entropy(
        x[:, :5], HEAD, jnp.arange(3), gradient="sampled", key=jax.random.key(i), threshold=0.5, keep=0.5
    ),
    "key, mean": lambda x, i: jsoftmax.linear_cross_entropy(
        x[:, :5], HEAD, jnp.arange(3), gradient="sampled", key=jax.random.key(i), keep=0.5, reduction="mean"
    ),
}


@pytest.mark.diagonal
@pytest.mark.parametrize("over", OVER_ELEMENTS)
@pytest.mark.parametrize("name", PARTLY_MAPPED)
def test_some_numbers_of_a_row_do_not_depend_on_the_argument_of_an_element(name, over, x64):
    call, elements = PARTLY_MAPPED[name], jnp.arange(4)

    def total(x, over):
        losses = over(jax.jit(call), (None, 0), 4)(x, elements)
        return jnp.sum(losses * jnp.cos(jnp.arange(4.0)).reshape(4, *[1] * (losses.ndim - 1)))

    def one_by_one(call, axes, count):
        return lambda x, elements: jnp.stack([call(x, i) for i in elements])

    @functools.partial(jax.jit, static_argnums=1)
    def derivatives(x, over):
        def gradient(x):
            return jax.grad(total)(x, over)

        found = gradient(x), jax.grad(lambda x: jnp.vdot(gradient(x), jnp.cos(x)))(x)
        with jsoftmax.forward_mode():
            return *found, gradient(x), jax.jvp(lambda x: total(x, over), (x,), (jnp.cos(x),))

    x = jnp.sin(jnp.arange(21.0)).reshape(3, 7)
    both = (derivatives(x, over) for over in (OVER_ELEMENTS[over], one_by_one))
    jax.tree.map(functools.partial(agree, name), *both)


@pytest.mark.share(20)
@pytest.mark.parametrize("function", **named())
def test_the_promotion_mode_does_not_change_the_program(function):
    """Value and gradient are the same program, with the same bits; the strict mode raises nothing."""

    def program(mode, *arguments):
        with jax.numpy_dtype_promotion(mode):
            text = jax.jit(lambda *a: jax.vjp(on(function), *a)).lower(*arguments).as_text()
        # The number behind the name of a function depends on what was traced before.
        return re.sub(r"(@\w+?)_\d+\b", r"\1", text)

    short, full = (float32_arguments(function, dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    mixed = (short[0], *full[1:])
    # Exponents and weights of two dtypes have a common one only in the standard mode, as in jax.nn.
    for arguments in (short, full) if function.name == "logsumexp, weighted" else (short, full, mixed):
        assert program("strict", *arguments) == program("standard", *arguments)


@pytest.mark.share(8)
@pytest.mark.diagonal
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("function", **named(WITH_AXES_OF_LOGITS))
def test_shapes_are_known_before_anything_is_computed(function, mode):
    """10**12 logits and their gradient, on any machine."""
    many = {4: 10**6, 9: 10**6}
    arguments = [
        jax.ShapeDtypeStruct([many[n] for n in a.shape], a.dtype) for a in float32_arguments(function)
    ]

    def value_and_gradient(x, *others):
        out, pull = jax.vjp(lambda x: on(function)(x, *others), x)
        return out, *pull(out)

    with MODES[mode]():
        out, gradient = jax.eval_shape(value_and_gradient, *arguments)
    assert out.shape == arguments[0].shape[: 1 if function.reduces else 2]
    assert gradient == arguments[0]


@pytest.mark.share(20)
@pytest.mark.diagonal
@pytest.mark.parametrize(
    ("shape", "axis", "symbols"),
    [((4, 40), -1, "rows"), ((9, 4), 0, "rows"), ((4, 40), -1, "rows, classes")],
    ids=str,
)
@pytest.mark.parametrize("function", **named(WITH_AXES_OF_LOGITS))
def test_a_program_for_any_number(function, shape, axis, symbols):
    """Of rows, or of rows and classes: exported once, with its gradient, and called with several sizes."""
    arguments = float32_arguments(function, shape, axis)
    any_number = dict(zip((4, shape[axis]), jax.export.symbolic_shape(symbols), strict=False))
    of_any = [jax.ShapeDtypeStruct([any_number.get(n, n) for n in a.shape], a.dtype) for a in arguments]

    @jax.jit
    def value_and_gradient(x, *others):
        out, pull = jax.vjp(lambda x: on(function, axis)(x, *others), x)
        # Not a function of `out`: both programs may round it differently.
        return out, *pull(jnp.cos(jax.lax.broadcasted_iota(out.dtype, out.shape, 0)))

    exported = jax.export.export(value_and_gradient)(*of_any)
    got, want = exported.call(*arguments), value_and_gradient(*arguments)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("function", [jsoftmax.softmax, jsoftmax.logsumexp, jsoftmax.entropy])
@pytest.mark.parametrize(("shape", "axis"), [("b, 128, 100", -1), ("2, 150, 128, b", 1), ("b, 150, 8, 9", 1)])
def test_a_program_for_any_number_along_one_of_several_axes(function, shape, axis):
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(function(x, axis=axis) ** 2))
    assert jax.export.export(jax.jit(gradient))(x).out_avals[0].shape == x.shape


def test_a_program_for_any_number_of_temperatures():
    rows, classes = jax.export.symbolic_shape("rows, classes")
    x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, classes), (rows,)))
    gradient = jax.grad(lambda x, t: jnp.sum(jsoftmax.log_softmax(x, temperature=t) ** 2), (0, 1))
    exported = jax.export.export(jax.jit(gradient))(x, t)
    given = 3 * jax.random.normal(jax.random.key(0), (5, 7)), jnp.arange(1.0, 6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        exported.call(*given),
        gradient(*given),
    )


@pytest.mark.share(20)
@pytest.mark.parametrize("function", **named())
def test_new_values_of_the_same_shape_are_not_traced_again(function):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def f(*arguments):
        return function.ours(*arguments, axis=-1)

    for regime in ("unit", "tied", "spread"):
        f(*function.arguments(logits(regime, dtype=np.float32)))


def variants(functions):
    class Variants(chex.TestCase):
        """The value under chex's variants: compiled or not, from the device or from the host."""

        @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
        @parameterized.named_parameters(*((function.name, function) for function in functions))
        def test_value(self, function):
            arguments = float32_arguments(function)
            want = function.exact(arguments).astype(np.float64)
            np.testing.assert_allclose(self.variant(on(function))(*arguments), want, rtol=1e-5, atol=1e-6)

    return Variants


ChexVariants = variants(FUNCTIONS[::10])
ChexVariantsOfAll = pytest.mark.full(variants(FUNCTIONS))


@pytest.mark.parametrize("axis", [-1, 0, (0, 1)], ids=str)
def test_the_closed_forms_are_each_other_transposed(axis, x64):
    rng = np.random.default_rng(0)
    v, g, u, steps = (jnp.asarray(rng.normal(size=(3, 4))) for _ in range(4))
    p = jsoftmax.softmax(u, axis)
    t = jnp.exp(jnp.sum(steps, axis, keepdims=True))

    def transposed(f, *like):
        return jax.linear_transpose(f, *like)(g)

    @jax.jit
    def everything():
        dx, dt = rules.temperature_vjp(u, g, t)
        return {
            "log_softmax": (
                transposed(lambda v: rules.log_softmax_jvp(p, v, axis), v),
                (rules.log_softmax_vjp(p, g, axis),),
            ),
            "softmax": (
                transposed(lambda v: rules.softmax_product(p, v, axis), v),
                (rules.softmax_product(p, g, axis),),
            ),
            "temperature": (
                transposed(lambda dx, dt: rules.temperature_jvp(u, dx, dt, t), v, t),
                (dx, jnp.sum(dt, axis, keepdims=True)),
            ),
        }

    for name, pairs in everything().items():
        for got, want in zip(*pairs, strict=True):
            agree(name, got, want)


# If the table says which outputs or targets count, there are additional residuals.
BARE = {
    "log_softmax, masked, temperature": lambda x, m, t: jsoftmax.log_softmax(x, where=m, temperature=t),
    "entmax_loss, targets, masked, temperature": lambda x, t, a, m, s: jsoftmax.entmax_loss(
        x, t, a, where=m, temperature=s
    ),
    "cross_entropy, targets, masked, options": lambda x, t, m, alpha, z, cap, s, w: jsoftmax.cross_entropy(
        x, t, where=m, label_smoothing=alpha, z_loss=z, soft_cap=cap, temperature=s, weights=w
    ),
}


@pytest.mark.share(20)
@pytest.mark.diagonal
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("function", **named())
def test_where_float64_is_enabled_shorter_floats_stay_what_they_are(function, dtype):
    arguments = float32_arguments(function, dtype=dtype)

    def everything(*arguments):
        out, pull = jax.vjp(on(function), *arguments)
        return out, pull(jnp.ones_like(out))

    want = jax.jit(everything)(*arguments)
    with jax.enable_x64(True):
        found = jax.jit(everything)(*arguments)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, want)
    for a, b in zip(*map(jax.tree.leaves, (found, want)), strict=True):
        if a.dtype != jax.dtypes.float0:
            rtol = 4 * float(jnp.finfo(a.dtype).eps)
            np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=rtol, atol=1e-6)


@pytest.mark.diagonal
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("function", **named(WITH_AXES_OF_LOGITS))
def test_what_is_kept_for_the_derivative(function, dtype, mode):
    """At most the size of the arguments, with the output instead of the logits, and per-row numbers."""
    arguments = float32_arguments(function, dtype=dtype)
    f = BARE.get(function.name, on(function))
    with MODES[mode]():
        pull = jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], *arguments)
    leaves = jax.tree.leaves(pull)
    size, (rows, classes) = arguments[0].size, arguments[0].shape
    assert {leaf.size for leaf in leaves} <= {size, rows, classes, 1}

    def taken(arrays):
        return sum(a.size * a.dtype.itemsize for a in arrays if a.size == size)

    assert taken(leaves) <= taken(arguments)
    if function.name in ("softmax", "log_softmax") and dtype == jnp.float32:
        assert [leaf.size for leaf in leaves if leaf.size > rows] == [size]


@pytest.mark.parametrize("mode", MODES)
def test_a_step_of_the_loss_needs_no_second_array_of_logits(mode):
    logits = jax.ShapeDtypeStruct((256, 4096), jnp.float32)
    labels = jax.ShapeDtypeStruct((256,), jnp.int32)
    loss = functools.partial(jsoftmax.cross_entropy, reduction="mean")
    with MODES[mode]():
        compiled = jit_in_full(jax.value_and_grad(loss)).lower(logits, labels).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < logits.size * logits.dtype.itemsize / 8
