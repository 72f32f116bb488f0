"""The backend "mosaic": its kernels behind the public functions, in the interpreters for a GPU and a TPU."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_accelerators import Program, compiled_for

import jsoftmax
from jsoftmax.transforms import _modes

PLATFORMS = ("gpu", "tpu")
needs_kernels = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11")


@contextlib.contextmanager
def interpreted(platform):
    """Trace the forms of a platform, and run its kernels in Pallas' interpreter; a CPU has none."""
    if platform == "cpu":
        interpreter = contextlib.nullcontext()
    elif platform == "gpu":
        from jax.experimental.pallas import mosaic_gpu

        interpreter = mosaic_gpu.force_gpu_interpret_mode(mosaic_gpu.InterpretGPUParams())
    else:
        from jax.experimental.pallas import tpu

        interpreter = tpu.force_tpu_interpret_mode(tpu.InterpretParams())
    with _modes.in_form(platform), interpreter:
        yield


def of_maps(function, **options):
    return lambda x, y, w, backend: function(x, backend=backend, **options)


MASK = np.array([True, True, False, True, True, True, True, False, True])
FUNCTIONS = {
    "softmax": of_maps(jsoftmax.softmax),
    "softmax, options": of_maps(jsoftmax.softmax, where=MASK, temperature=-0.7),
    "log_softmax": of_maps(jsoftmax.log_softmax),
    "log_softmax, options": of_maps(jsoftmax.log_softmax, where=MASK, temperature=0.7),
    "loss": lambda x, y, w, backend: jsoftmax.cross_entropy(x, y, where=MASK, z_loss=0.01, backend=backend),
    "mean loss": lambda x, y, w, backend: jsoftmax.cross_entropy(
        x, y, weights=w, ignore_index=3, class_weights=jnp.arange(9.0) % 5, reduction="mean", backend=backend
    ),
    "sum of losses": lambda x, y, w, backend: jsoftmax.cross_entropy(
        x, y, weights=w, where=MASK, temperature=0.7, reduction="sum", backend=backend
    ),
}


def rows(dtype):
    """With ties, dead classes, an empty row, overflows, a NaN, and a leading class."""
    x = 3 * np.random.default_rng(0).normal(size=(2, 5, 9))
    x[0, 0, 3:5] = x[0, 0].max() + 1
    x[0, 1, 1] = x[0, 2, :] = -np.inf
    x[0, 3, 4], x[0, 4, 5] = np.inf, np.nan
    x[1, 0, 0] += 40
    labels = jnp.array([[3, 1, 0, 4, 5], [0, 3, 8, -1, 2]])
    weights = jnp.array([[1.0, 2.0, 0.5, 0.0, 0.0], [3.0, 0.0, 1.0, 0.0, 1.0]])
    return jnp.asarray(x, dtype), labels, weights


def value_gradients_and_curvature(function, backend, x, y, w):
    def scalar(x, w):
        out = function(x, y, w, backend)
        live = jnp.where(jnp.isfinite(out), out, 0).astype(jnp.float32)
        return jnp.sum(live * (1 + jnp.arange(out.size, dtype=jnp.float32) % 7).reshape(out.shape)), out

    gradients, out = jax.grad(scalar, (0, 1), has_aux=True)(x, w)
    along = jnp.cos(x).astype(x.dtype)
    along = jnp.where(jnp.isfinite(along), along, 1)
    return out, gradients, jax.jvp(lambda x: jax.grad(lambda x: scalar(x, w)[0])(x), (x,), (along,))[1]


@needs_kernels
@pytest.mark.diagonal
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cpu", *PLATFORMS])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_derivatives_are_those_without_kernels(name, platform, dtype):
    arrays = rows(dtype)
    found = functools.partial(value_gradients_and_curvature, FUNCTIONS[name])
    with _modes.in_form(platform):
        want = jax.jit(functools.partial(found, None))(*arrays)
    with interpreted(platform):
        got = jax.jit(functools.partial(found, "mosaic"))(*arrays)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert ours.dtype == theirs.dtype
        rounding = 2**-7 if ours.dtype == jnp.bfloat16 else 2e-6
        scale = np.nanmax(abs(np.where(np.isfinite(theirs), theirs, 0).astype(np.float64)), initial=0)
        np.testing.assert_allclose(
            np.asarray(ours, np.float64), np.asarray(theirs, np.float64), rtol=rounding, atol=rounding * scale
        )


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="JAX 0.12 interprets tensor cores")
def test_a_head_has_its_losses_from_the_kernel_and_its_gradients_from_products():
    rng = np.random.default_rng(0)
    hidden, weight = (jnp.asarray(rng.normal(size=size), jnp.bfloat16) for size in ((20, 64), (136, 64)))
    labels = jnp.asarray(rng.integers(0, 136, 20), jnp.int32).at[3].set(-1)
    options = {"vocab_axis": 0, "ignore_index": -1, "z_loss": 0.01}

    def found(backend, hidden, weight, labels):
        loss = functools.partial(jsoftmax.linear_cross_entropy, backend=backend, **options)
        each = loss(hidden, weight, labels)
        mean = loss(hidden, weight, labels, reduction="mean")
        mapped = jax.vmap(lambda h, y: loss(h, weight, y))(hidden.reshape(4, 5, 64), labels.reshape(4, 5))
        gradients = jax.grad(lambda *a: jnp.sum(loss(*a, labels)), (0, 1))(hidden, weight)
        return each, mean, mapped, gradients

    want = jax.jit(functools.partial(found, None))(hidden, weight, labels)
    with interpreted("gpu"):
        got = jax.jit(functools.partial(found, "mosaic"))(hidden, weight, labels)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        rounding = 2**-7 if ours.dtype == jnp.bfloat16 else 1e-5
        ours, theirs = (np.asarray(a, np.float64) for a in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=rounding, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("platform", PLATFORMS)
def test_vmap_turns_its_axis_into_more_rows(platform):
    x, labels, _ = rows("float32")
    masks = jnp.stack([MASK, ~MASK])

    def of_one(backend):
        def found(x, y, mask, g):
            p, pull = jax.vjp(lambda x: jsoftmax.softmax(x, where=mask, backend=backend), x)
            return p, pull(g), jsoftmax.log_softmax(x, backend=backend)

        return jax.jit(jax.vmap(found, (0, 0, 0, None)))

    arguments = x, labels, masks, jnp.cos(jnp.arange(45.0)).reshape(5, 9)
    want = of_one(None)(*arguments)
    with interpreted(platform):
        program = of_one("mosaic")
        got = program(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), got, want)


@needs_kernels
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto, AxisType.Manual], ids=str)
def test_sharded_rows_stay_on_their_devices(kind):
    """With automatic axes XLA's program runs, because XLA would gather the operand of a kernel."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 9)), jnp.float32)
    labels = jnp.arange(16) % 9
    manual = kind == AxisType.Manual
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto if manual else kind,))

    def step(backend):
        def found(x, y):
            names = {"row_axis_name": "rows"} if manual else {}
            loss = functools.partial(jsoftmax.cross_entropy, reduction="mean", backend=backend, **names)
            p, pull = jax.vjp(lambda x: jsoftmax.softmax(x, backend=backend), x)
            return *jax.value_and_grad(loss)(x, y), pull(x * p)[0]

        if not manual:
            return jax.jit(found)
        return jax.jit(
            jax.shard_map(found, mesh=mesh, in_specs=(P("rows"),) * 2, out_specs=(P(), P("rows"), P("rows")))
        )

    with jax.set_mesh(mesh):
        arguments = [jax.device_put(a, NamedSharding(mesh, P("rows"))) for a in (x, labels)]
        want = step(None)(*arguments)
        with interpreted("tpu"):
            traced = step("mosaic").trace(*arguments)
            got = traced.lower().compile()(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), got, want)
    assert ("pallas_call" in str(traced.jaxpr)) == (kind != AxisType.Auto)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)


@needs_kernels
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Manual], ids=str)
@pytest.mark.parametrize(("platform", "kernel"), [("cuda", "mosaic_gpu"), ("tpu", "tpu_custom_call")])
def test_a_program_for_a_device_has_the_kernels_and_gathers_nothing(platform, kernel, kind):
    manual = kind == AxisType.Manual
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto if manual else kind,))

    def step(x, y):
        names = {"row_axis_name": "rows"} if manual else {}
        loss = functools.partial(jsoftmax.cross_entropy, reduction="mean", backend="mosaic", **names)
        p, pull = jax.vjp(lambda x: jsoftmax.softmax(x, backend="mosaic"), x)
        return jax.grad(loss)(x, y) + pull(x * p)[0]

    rows = P("rows")
    if manual:
        step = jax.shard_map(step, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
    with jax.set_mesh(mesh):
        placed = NamedSharding(mesh, rows)
        x = jax.ShapeDtypeStruct((64, 2048), jnp.bfloat16, sharding=placed)
        y = jax.ShapeDtypeStruct((64,), jnp.int32, sharding=placed)
        text = export.export(jax.jit(step), platforms=[platform])(x, y).mlir_module()
    assert kernel in text
    assert "all_gather" not in text


@needs_kernels
@pytest.mark.accelerators
@pytest.mark.parametrize(
    "platform", [pytest.param(p, marks=pytest.mark.xdist_group(p)) for p in ("h200", "v6e")]
)
def test_a_mean_and_its_gradient_take_one_read_and_one_write(platform):
    """The product of the gradient with a cotangent of 1 takes no pass."""
    rows, classes = 8192, 131072
    mean = functools.partial(jsoftmax.cross_entropy, reduction="mean", backend="mosaic")
    x, y = jax.ShapeDtypeStruct((rows, classes), jnp.bfloat16), jax.ShapeDtypeStruct((rows,), jnp.int32)
    program = Program(compiled_for(platform, jax.value_and_grad(mean), x, y), rows * classes)
    assert program.passes() == (1, 1)
    assert program.temporaries < 0.01 * program.logits


@needs_kernels
@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize(("platform", "kernel"), [("cuda", "mosaic_gpu"), ("tpu", "tpu_custom_call")])
def test_a_mapped_axis_may_be_sharded(platform, kernel, sharded):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        placed = NamedSharding(mesh, P("rows" if sharded else None))
        x = jax.ShapeDtypeStruct((8, 4, 2048), jnp.float32, sharding=placed)
        mapped = jax.jit(jax.vmap(functools.partial(jsoftmax.softmax, backend="mosaic")))
        text = export.export(mapped, platforms=[platform])(x).mlir_module()
    assert kernel in text
    assert "all_gather" not in text


@needs_kernels
def test_gpus_of_another_maker_run_the_program_without_kernels():
    x = jax.ShapeDtypeStruct((8, 2048), jnp.float32)
    program = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(jsoftmax.softmax(x, backend="mosaic")))))
    assert "mosaic" not in export.export(program, platforms=["rocm"])(x).mlir_module()


@needs_kernels
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_kernels_of_32_bits_where_float64_is_enabled(platform):
    def loss(x, y):
        return jsoftmax.cross_entropy(x, y, temperature=0.5, reduction="mean", backend="mosaic")

    with jax.enable_x64(True):
        x, y = jax.ShapeDtypeStruct((8, 2048), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int64)
        export.export(jax.jit(jax.grad(loss)), platforms=[platform])(x, y)
        hidden, weight = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((8, 64), (64, 128)))
        head = jax.jit(functools.partial(jsoftmax.linear_cross_entropy, backend="mosaic"))
        export.export(head, platforms=[platform])(hidden, weight, y)


@needs_kernels
def test_a_small_gradient_survives_the_scaling_of_a_loss_in_float16():
    """So no kernel rounds it before the scale is known."""
    x = jax.random.normal(jax.random.key(0), (512, 1000)).astype(jnp.float16)

    def gradient(backend):
        def scaled(x):
            return 2.0**15 * jsoftmax.cross_entropy(x, jnp.arange(512), reduction="mean", backend=backend)

        return jax.jit(jax.grad(scaled))(x)

    np.testing.assert_array_equal(gradient("mosaic"), gradient(None))


@needs_kernels
def test_no_rows_are_mapped():
    softmax = functools.partial(jsoftmax.softmax, backend="mosaic")
    with interpreted("tpu"):
        assert jax.vmap(softmax)(jnp.zeros((0, 3, 4))).shape == (0, 3, 4)


@needs_kernels
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_explain_names_the_kernels_of_a_platform(platform):
    x, y = jax.ShapeDtypeStruct((64, 4096), jnp.bfloat16), jax.ShapeDtypeStruct((64,), jnp.int32)

    def mean(x, y, backend):
        return jsoftmax.cross_entropy(x, y, reduction="mean", backend=backend)

    plain, kernels = (
        jsoftmax.explain(functools.partial(mean, backend=backend), x, y, platform=platform)
        for backend in (None, "mosaic")
    )
    assert "Mosaic" not in str(plain)
    assert ("Mosaic" in str(kernels)) == (platform != "cpu")
    if platform == "cpu":
        assert kernels.value == plain.value


X = jnp.zeros((3, 4))
IDS = jnp.zeros(3, jnp.int32)
FEW = jsoftmax.SparseTargets(jnp.zeros((3, 1), jnp.int32), jnp.zeros((3, 1)))
HEAD = jnp.zeros((3, 64), jnp.bfloat16), jnp.zeros((64, 16), jnp.bfloat16), IDS


def in_float64(function, backend):
    with jax.enable_x64(True):
        return function(np.zeros((3, 4)), backend=backend)


REFUSED = {
    "the classes are not along the last axis": lambda b: jsoftmax.softmax(X, 0, backend=b),
    "its kernels have no sink": lambda b: jsoftmax.log_softmax(X, sink=0.0, backend=b),
    "there are no logits": lambda b: jsoftmax.softmax(X[:0], backend=b),
    "the dtype is float64": lambda b: in_float64(jsoftmax.softmax, b),
    "class ids, not for target probabilities": lambda b: jsoftmax.cross_entropy(X, X, backend=b),
    "class ids, not for target": lambda b: jsoftmax.cross_entropy(X, FEW, backend=b),
    "its kernels have no soft_cap": lambda b: jsoftmax.cross_entropy(X, IDS, soft_cap=5.0, backend=b),
    "no label_smoothing": lambda b: jsoftmax.cross_entropy(X, IDS, label_smoothing=0.1, backend=b),
    "its kernel has no temperature": lambda b: jsoftmax.linear_cross_entropy(
        *HEAD, temperature=2.0, backend=b
    ),
    "its kernel computes no statistics": lambda b: jsoftmax.linear_cross_entropy(
        *HEAD, statistics=True, backend=b
    ),
    "a portable program has no kernels": lambda b: jsoftmax.portable()(jsoftmax.softmax)(X, backend=b),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_kernels_cannot_compute_is_refused_with_the_reason(reason):
    call = REFUSED[reason]
    with pytest.raises(ValueError, match="backend 'mosaic' cannot compute this call") as raised:
        call("mosaic")
    if jax.__version_info__ >= (0, 11):
        assert reason in str(raised.value)
    jax.tree.map(np.testing.assert_array_equal, call(("mosaic", "xla")), call(None))


def test_there_are_only_the_backends_that_the_error_lists():
    with pytest.raises(ValueError, match="there is no backend 'triton'; write one of 'xla', 'mosaic'"):
        jsoftmax.softmax(X, backend="triton")
    with pytest.raises(ValueError, match="backend is an empty sequence; write 'xla'"):
        jsoftmax.softmax(X, backend=())
    with pytest.raises(ValueError, match="there is no backend 'mosaic'; write one of 'blocked', 'xla'"):
        jsoftmax.linear_row_statistics(*HEAD, backend="mosaic")
