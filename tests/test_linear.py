"""The linear head equals the loss of ``hidden @ weight + bias``, without an array of all logits."""

import contextlib
import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampling
from cases import curvature
from compiling import jit_in_full
from jax import lax
from jax.experimental import checkify

import jsoftmax
from jsoftmax.linear import _block
from jsoftmax.transforms import _modes, _platforms

# One block; blocks of rows that do not divide them; blocks of classes, even and uneven.
BLOCKS = (None, 5, (4, 3), (13, 12))
MODES = {"reverse": contextlib.nullcontext, "forward": jsoftmax.forward_mode}


def head(rows=13, features=4, classes=15, dtype=np.float64, seed=0):
    """All arguments of a head: the float arguments, and the labels."""
    rng = np.random.default_rng(seed)
    floats = {
        "hidden": rng.normal(size=(rows, features)),
        "weight": rng.normal(size=(features, classes)),
        "bias": rng.normal(size=classes),
        "class_weights": rng.uniform(0.5, 2, classes),
        "label_smoothing": np.float64(0.1),
        "z_loss": rng.uniform(0.01, 0.1, rows),
        "soft_cap": np.float64(5),
        "temperature": rng.uniform(0.5, 2, rows),
    }
    labels = rng.integers(0, classes, rows)
    labels[rows // 2] = -1
    return {name: jnp.asarray(a, dtype) for name, a in floats.items()}, jnp.asarray(labels, jnp.int32)


def linear(floats, labels, **options):
    floats = dict(floats)
    arguments = [floats.pop(name) for name in ("hidden", "weight")]
    if options.get("vocab_axis", -1) == 0:
        arguments[1] = arguments[1].T
    return jsoftmax.linear_cross_entropy(*arguments, labels, **floats, **options)


def dense(floats, labels, **options):
    floats = dict(floats)
    logits = floats.pop("hidden") @ floats.pop("weight")
    bias = floats.pop("bias", None)
    return jsoftmax.cross_entropy(
        logits if bias is None else logits + bias[None, :], labels, **floats, **options
    )


def agree(got, want, rtol=1e-11):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), got, want)


def curved(f):
    """A scalar of the losses with different cotangents for different rows."""
    return lambda *arguments: jnp.sum(jnp.sin(f(*arguments)))


@pytest.mark.share(4)
@pytest.mark.diagonal
@pytest.mark.long
@pytest.mark.parametrize(
    ("targets", "vocab_axis", "reduction"),
    [(False, -1, "none"), (False, 0, "mean"), (True, 0, "none"), (True, -1, "sum")],
    ids=str,
)
@pytest.mark.parametrize("size", BLOCKS, ids=str)
def test_value_and_every_gradient(size, targets, vocab_axis, reduction, x64):
    floats, labels = head()
    if targets:
        floats["t"] = jnp.asarray(np.random.default_rng(1).gamma(0.5, size=(13, 15)))
    options = {"reduction": reduction} | ({} if targets else {"ignore_index": -1})

    def of(f, **options):
        def loss(floats):
            floats = dict(floats)
            return curved(f)(floats, floats.pop("t", labels))

        f = functools.partial(f, **options)
        return jax.value_and_grad(loss)

    @jax.jit
    def everything(floats):
        ours = of(linear, vocab_axis=vocab_axis, block_size=size, **options)(floats)
        return ours, of(dense, **options)(floats)

    agree(*everything(floats))


@pytest.mark.long
@pytest.mark.share(4)
@pytest.mark.parametrize("size", BLOCKS)
def test_where_float64_is_enabled_a_head_in_float32_stays_one(size):
    floats, labels = head(dtype=np.float32)

    def everything(floats):
        loss = functools.partial(linear, block_size=size, ignore_index=-1)
        statistics = jsoftmax.linear_row_statistics(
            floats["hidden"], floats["weight"], jnp.maximum(labels, 0), block_size=size
        )
        return jax.value_and_grad(curved(loss))(floats, labels), statistics

    want = jax.jit(everything)(floats)
    with jax.enable_x64(True):
        found = jax.jit(everything)(floats)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, want)
    chex.assert_trees_all_close(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(
    ("reduction", "size"),
    [
        ("mean", 5),
        pytest.param("none", 5, marks=pytest.mark.full),
        pytest.param("sum", None, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_tiles_of_a_block(reduction, size, x64, monkeypatch):
    """On CPU a block has tiles of classes; the other tests are too small for that. With all options."""
    floats, labels = head()
    monkeypatch.setattr(_block, "TILE", 6)
    jax.clear_caches()

    @jax.jit
    def everything(floats):
        def of(f, **options):
            f = functools.partial(f, labels=labels, ignore_index=-1, reduction=reduction, **options)
            return jax.value_and_grad(curved(f))(floats)

        return of(linear, block_size=size), of(dense)

    with _modes.in_form("cpu"):
        program = everything.lower(floats)
        text = program.as_text()
        assert f"{size or 13}x6x" in text, "no tiles"
        agree(*program.compile()(floats))
    jax.clear_caches()


@pytest.mark.full
@pytest.mark.parametrize(("size", "reduction"), [(5, "mean"), ((4, 6), "none")], ids=str)
def test_both_modes_to_second_order(size, reduction, x64):
    floats, labels = head(rows=7, features=3, classes=8)
    options = {"ignore_index": -1, "reduction": reduction}
    along = jax.tree.map(jnp.cos, floats)

    def pushed(f):
        return jax.jvp(f, (floats,), (along,))

    @jax.jit
    def everything():
        ours = functools.partial(linear, labels=labels, block_size=size, **options)
        plain = functools.partial(dense, labels=labels, **options)
        with jsoftmax.forward_mode():
            want = pushed(plain), pushed(jax.grad(curved(plain)))[1]
            forward = pushed(ours), pushed(jax.grad(curved(ours)))[1]
        gradient = jax.grad(curved(ours))
        return want, forward, pushed(gradient)[1], curvature(curved(ours), (floats,), (along,))[0]

    want, forward, forward_over_reverse, twice_reverse = everything()
    agree(forward, want, rtol=1e-9)
    agree(forward_over_reverse, want[1], rtol=1e-9)
    agree(twice_reverse, want[1], rtol=1e-9)


@pytest.mark.long
@pytest.mark.diagonal
@pytest.mark.share(4)
@pytest.mark.parametrize(
    ("mode", "temperature"), [("reverse", None), ("reverse", -2.0), ("forward", 0.7)], ids=str
)
@pytest.mark.parametrize("size", BLOCKS, ids=str)
def test_row_statistics(size, mode, temperature, x64):
    floats, labels = head()
    arguments = [floats[name] for name in ("hidden", "weight", "bias")]
    arguments[2] = arguments[2].at[3].set(-jnp.inf if temperature is None else 2)
    labels = jnp.maximum(labels, 0).at[2].set(3)
    options = {"temperature": temperature, "soft_cap": 5.0}

    def ours(h, w, b):
        found = jsoftmax.linear_row_statistics(h, w, labels, bias=b, block_size=size, **options)
        return found[:3], found.prediction

    def want(h, w, b):
        found = jsoftmax.row_statistics(h @ w + b[None, :], labels, **options)
        return found[:3], found.prediction

    def everything(f):
        out, pull, prediction = jax.vjp(f, *arguments, has_aux=True)
        cotangent = jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), jnp.cos(a), 0), out)
        if mode == "reverse":
            return out, prediction, pull(cotangent)
        steps = [jnp.cos(a) for a in arguments[:2]] + [jnp.ones(15)]
        return out, prediction, jax.jvp(lambda *a: f(*a)[0], tuple(arguments), tuple(steps))[1]

    with MODES[mode]():
        agree(*jax.jit(lambda: (everything(ours), everything(want)))())


@pytest.mark.long
def test_through_every_wrapping(x64):
    """Values and gradients, with leading axes, and with each argument mapped."""
    floats, labels = head(rows=6)
    h, w, b = (floats[name] for name in ("hidden", "weight", "bias"))

    def loss(h, w, b, labels=labels):
        return jsoftmax.linear_cross_entropy(h, w, labels, bias=b, block_size=4, ignore_index=-1)

    def scan(h, w, b):
        rows = (h.reshape(3, 2, -1), labels.reshape(3, 2))
        return lax.scan(lambda c, row: (c, loss(row[0], w, b, row[1])), None, rows)[1].ravel()

    def mapped(h, w, b):
        heads = jax.vmap(loss, in_axes=(None, 0, 0))(h, jnp.stack([w, w]), jnp.stack([b, b]))
        return (heads[0] + heads[1]) / 2

    def exported(h, w, b):
        program = jax.export.export(jax.jit(loss))(h, w, b).serialize(vjp_order=1)
        return jax.export.deserialize(program).call(h, w, b)

    def exported_for_any_number(h, w, b):
        sizes = dict(zip((6, w.shape[1]), jax.export.symbolic_shape("rows, classes"), strict=True))
        shapes = [
            jax.ShapeDtypeStruct([sizes.get(n, n) for n in a.shape], a.dtype) for a in (h, w, b, labels)
        ]
        program = jax.export.export(jax.jit(loss))(*shapes).serialize(vjp_order=1)
        return jax.export.deserialize(program).call(h, w, b, labels)

    wrappings = {
        "leading axes": lambda h, w, b: loss(h.reshape(2, 3, -1), w, b, labels.reshape(2, 3)).ravel(),
        "one row": lambda h, w, b: jnp.stack([loss(h[i], w, b, labels[i]) for i in range(6)]),
        "vmap over rows": lambda h, w, b: jax.vmap(loss, (0, None, None, 0))(h, w, b, labels),
        "vmap over heads": mapped,
        "checkpoint in scan": jax.checkpoint(scan),
        "export": exported,
        "export for any number": exported_for_any_number,
    }

    @jax.jit
    def everything():
        want, pull = jax.vjp(
            lambda h, w, b: dense({"hidden": h, "weight": w, "bias": b}, labels, ignore_index=-1), h, w, b
        )
        pulled = {name: jax.vjp(f, h, w, b) for name, f in wrappings.items()}
        return (want, pull(want)), {
            name: (out, pull(jnp.cos(0 * out) * want)) for name, (out, pull) in pulled.items()
        }

    want, found = everything()
    for got in found.values():
        agree(got, want)


def products(f, *arguments):
    """The matrix products in the compiled program, each with the number of loop steps that run it."""
    text = jax.jit(f).lower(*arguments).as_text()
    return len(re.findall(r"stablehlo\.dot_general", text))


def test_no_product_that_is_not_asked_for():
    """One for a loss; one more for each gradient in the forward pass, else one more for the logits too."""
    h, w = jnp.ones((8, 4)), jnp.ones((4, 6))
    labels = jnp.zeros(8, jnp.int32)

    def loss(reduction, size=None):
        return lambda h, w: jsoftmax.linear_cross_entropy(
            h, w, labels, reduction=reduction, block_size=size
        ).sum()

    for size, reduction in itertools.product((None, 2), ("mean", "none")):
        f = loss(reduction, size)
        again = reduction == "none"
        assert products(f, h, w) == 1
        assert products(jax.grad(f, 0), h, w) == products(jax.grad(f, 1), h, w) == 2 + again
        assert products(jax.value_and_grad(f, (0, 1)), h, w) == 3 + again
    weighted = functools.partial(jsoftmax.linear_cross_entropy, labels=labels, reduction="sum")
    f = jax.value_and_grad(lambda h, w, r: weighted(h, w, weights=r), (0, 1, 2))
    assert products(f, h, w, jnp.ones(8)) == 3


def normal(features, classes, rows=24, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    h, w = (rng.normal(size=shape) for shape in ((rows, features), (features, classes)))
    return h * scale, w, rng.integers(0, classes, rows)


HEADS = {
    "flat": lambda classes: normal(8, classes, scale=0.0),
    "unit": lambda classes: normal(8, classes, scale=8**-0.5),
    "peaked": lambda classes: normal(8, classes, scale=8.0),
}


def reference(h, w, y):
    """The losses, and the gradients of their mean, in float64."""
    x = h @ w
    top = x.max(1, keepdims=True)
    e = np.exp(x - top)
    p = e / e.sum(1, keepdims=True)
    others = e.copy()
    others[np.arange(len(y)), y] = 0
    label = x[np.arange(len(y)), y][:, None]
    loss = np.log1p(others.sum(1, keepdims=True) / np.exp(label - top)) if np.all(top - label < 700) else None
    dx = p.copy()
    dx[np.arange(len(y)), y] -= 1
    return loss[:, 0], dx @ w.T / len(y), h.T @ dx / len(y)


@pytest.mark.share(4)
@pytest.mark.parametrize(
    "classes", sampling.sample([1, 2, 3, 2047, 2048, 2049, 4097, 50257, 128256], 1, 3, 2049, 50257)
)
def test_any_number_of_classes(classes):
    """Losses within the contract for logits rounded to float32, and gradients."""

    @jit_in_full
    def ours(h, w, y):
        losses = jsoftmax.linear_cross_entropy(h, w, y, block_size=(10, 2048))
        mean = functools.partial(jsoftmax.linear_cross_entropy, reduction="mean", block_size=10)
        return losses, *jax.value_and_grad(mean, (0, 1))(h, w, y)

    for build in HEADS.values():
        h, w, y = build(classes)
        h, w = h.astype(np.float32), w.astype(np.float32)
        losses, mean, (dh, dw) = ours(h, w, y)
        want, want_h, want_w = reference(h.astype(np.float64), w.astype(np.float64), y)
        rounding = 2 * np.max(np.abs(h @ w - h.astype(np.float64) @ w))  # of the logits
        assert np.all(np.abs(losses - want) <= 2 * rounding * np.minimum(1, want) + 4 * np.spacing(losses))
        np.testing.assert_allclose(mean, want.mean(), rtol=1e-5)
        np.testing.assert_allclose(dh, want_h, atol=1e-5 * np.abs(want_h).max())
        np.testing.assert_allclose(dw, want_w, atol=1e-5 * np.abs(want_w).max())


@pytest.mark.long
@pytest.mark.parametrize(
    "sizes",
    sampling.sample([(1024, 512, 2048), (1024, 512, 2049), (4096, 1024, 4096)], (1024, 512, 2049)),
    ids=str,
)
@pytest.mark.parametrize("reduction", sampling.sample(["mean", "sum"], "mean"))
def test_products_of_normal_numbers(sizes, reduction):
    """Hidden and weight from N(0, 1): logits of dozens, and losses of a few hundred."""
    rows, features, classes = sizes
    h, w, y = normal(features, classes, rows)
    h, w = h.astype(np.float32), w.astype(np.float32)
    want, want_h, want_w = reference(h.astype(np.float64), w.astype(np.float64), y)
    count = 1 if reduction == "mean" else rows
    loss = functools.partial(jsoftmax.linear_cross_entropy, reduction=reduction)
    value, gradients = jit_in_full(jax.value_and_grad(loss, (0, 1)))(h, w, y)
    np.testing.assert_allclose(value, want.mean() * count, rtol=1e-5)
    for got, exact in zip(gradients, (want_h, want_w), strict=True):
        np.testing.assert_allclose(got, exact * count, atol=1e-5 * np.abs(exact).max() * count)


@pytest.mark.share(2)
@pytest.mark.diagonal
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_low_precision(reduction, dtype):
    """Errors at most twice those of float32 logits with JAX's derivatives, from the same inputs."""
    h, w, y = normal(32, 1000, rows=64, scale=32**-0.5)
    h, w = jnp.asarray(h, dtype), jnp.asarray(w, dtype)

    def ours(h, w):
        return jsoftmax.linear_cross_entropy(h, w, y, reduction=reduction, block_size=20).mean()

    def plain(h, w):
        return dense({"hidden": h.astype(jnp.float32), "weight": w.astype(jnp.float32)}, y).mean()

    loss, want_h, want_w = reference(*(np.asarray(a, np.float64) for a in (h, w)), y)
    found = [jit_in_full(jax.value_and_grad(f, (0, 1)))(h, w) for f in (ours, plain)]
    assert found[0][0].dtype == jnp.float32
    assert abs(found[0][0] - loss.mean()) <= 2 * abs(found[1][0] - loss.mean()) + 4 * np.spacing(found[0][0])
    for exact, got, other in zip((want_h, want_w), found[0][1], found[1][1], strict=True):
        assert got.dtype == dtype
        errors = [np.max(np.abs(np.asarray(a, np.float64) - exact)) for a in (got, other)]
        assert errors[0] <= 2 * errors[1]


def temporaries(f, *shapes, labels=jnp.int32, jit=jit_in_full):
    """The bytes of temporaries for arguments of these shapes; the third are labels."""
    arguments = [
        jax.ShapeDtypeStruct(shape, labels if i == 2 else jnp.float32) for i, shape in enumerate(shapes)
    ]
    return jit(f).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize(("rows", "classes", "megabytes"), [(2048, 32768, 128), (8192, 128256, 801)], ids=str)
def test_memory(rows, classes, megabytes):
    """A quarter of optax's with all logits, a tenth for more classes; a loss only takes a block."""
    shapes = (rows, 512), (512, classes), (rows,)
    mean = functools.partial(jsoftmax.linear_cross_entropy, reduction="mean")
    assert temporaries(jax.value_and_grad(mean, (0, 1)), *shapes) <= megabytes * 2**20
    block = jsoftmax.linear_plan(rows, 512, classes, gradient=False).block_bytes
    assert temporaries(mean, *shapes) < block + 64 * 2**20


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("reduction", "size", "vocab_axis", "bias"),
    [
        ("mean", None, -1, False),
        pytest.param("sum", 16, 0, True, marks=pytest.mark.full),
        pytest.param("none", None, 0, True, marks=pytest.mark.full),
        ("none", 16, -1, False),
    ],
    ids=str,
)
def test_memory_of_a_mapped_head(reduction, size, vocab_axis, bias):
    """The same memory as for the same rows without a mapped axis."""

    def loss(h, w, y, b):
        options = {"vocab_axis": vocab_axis, "reduction": reduction, "block_size": size}
        return jsoftmax.linear_cross_entropy(h, w, y, bias=b if bias else None, **options)

    def gradient(f):
        return jax.value_and_grad(lambda *arguments: jnp.sum(f(*arguments)), (0, 1))

    shapes = (32, 128, 64), ((64, 32000) if vocab_axis else (32000, 64)), (32, 128), (32000,)
    mapped = jax.vmap(loss, (0, None, 0, None))
    of_hidden = jax.vmap(jax.grad(lambda *arguments: jnp.sum(loss(*arguments))), (0, None, 0, None))
    flat, *others = (
        temporaries(f, *shapes, jit=jax.jit) for f in (gradient(loss), gradient(mapped), of_hidden)
    )
    assert max(others) <= 1.2 * flat


@pytest.mark.share(3)
@pytest.mark.parametrize("way", ["in groups", "recomputed", "within the step"])
def test_memory_of_a_head_in_a_loop(way):
    """With "mean": in groups that vmap takes, recomputed, or differentiated within the step."""
    loss = functools.partial(jsoftmax.linear_cross_entropy, reduction="mean")

    def in_parts(of_sequence, h, w, y, size=None):
        return jnp.mean(lax.map(lambda row: of_sequence(row[0], w, row[1]), (h, y), batch_size=size))

    def step_by_step(h, w, y):
        def step(carry, row):
            found = jax.value_and_grad(loss, 1)(row[0], w, row[1])
            return jax.tree.map(jnp.add, carry, found), None

        return lax.scan(step, (jnp.float32(0), jnp.zeros_like(w)), (h, y))[0]

    shapes = (32, 128, 64), (64, 32000), (32, 128)
    ways = {
        "in groups": jax.value_and_grad(functools.partial(in_parts, loss, size=8), (0, 1)),
        "recomputed": jax.value_and_grad(functools.partial(in_parts, jax.checkpoint(loss)), (0, 1)),
        "within the step": step_by_step,
    }
    flat, of_loop = (
        temporaries(f, *shapes, jit=jax.jit) for f in (jax.value_and_grad(loss, (0, 1)), ways[way])
    )
    assert of_loop <= 1.2 * flat


@pytest.mark.share(3)
@pytest.mark.parametrize(
    ("reduction", "dtype"), [("mean", jnp.float32), ("mean", jnp.bfloat16), ("none", jnp.bfloat16)], ids=str
)
def test_memory_of_targets(reduction, dtype):
    """Blocks that do not divide the rows, in any dtype: a few blocks, no array as large as all targets."""

    def loss(h, w, t):
        options = {"reduction": reduction, "block_size": 64}
        return jnp.sum(jsoftmax.linear_cross_entropy(h, w, t, **options))

    shapes = (1023, 16), (16, 8192), (1023, 8192)
    block = 64 * 8192 * 4
    assert temporaries(jax.value_and_grad(loss, (0, 1, 2)), *shapes, labels=dtype) <= 6 * block


# Which arguments are mapped: hidden, weight, bias, labels, temperature, z-loss.
MAPPED = {
    "rows": (0, None, None, 0, 0, None),
    "hidden": (1, None, None, None, None, None),
    "temperature": (None, None, None, None, 0, None),
    "bias": (0, None, 0, 0, None, None),
    "weight": (0, 0, None, 0, None, None),
    "nested": (0, None, None, 0, 0, None),
}


EVERY_MAPPED = [*((mapped, "reverse") for mapped in MAPPED), ("rows", "forward")]


@pytest.mark.share(4)
@pytest.mark.long
@pytest.mark.parametrize("kind", ["ids", "targets"])
@pytest.mark.parametrize(
    "how",
    sampling.sample(EVERY_MAPPED, ("weight", "reverse"), ("rows", "forward")),
    ids=str,
)
def test_a_mapped_head(how, kind, x64):
    """Gradients under vmap, of vmap, and of gradients; ids with "mean" and ignored rows, and targets."""
    mapped, mode = how
    rng = np.random.default_rng(0)
    axes = MAPPED[mapped]
    h, w, b, temperature, z_loss = (
        jnp.asarray(rng.uniform(0.5, 2, shape)) for shape in ((5, 3), (3, 7), (7,), (5,), ())
    )
    ids = jnp.asarray(rng.integers(0, 7, 5), jnp.int32).at[1].set(-1)
    targets = jnp.asarray(rng.gamma(0.5, size=(5, 7)))

    def elements(a, axis):
        if axis is None:
            return a
        several = jnp.stack([jnp.roll(a, i, 0) if a is ids else a + i / 4 for i in range(3)], axis)
        return jnp.stack([several, several[::-1]]) if mapped == "nested" else several

    def of(f, labels, **options):
        arguments = [
            elements(a, axis) for a, axis in zip((h, w, b, labels, temperature, z_loss), axes, strict=True)
        ]

        def loss(h, w, b, y, temperature, z_loss):
            floats = {"hidden": h, "weight": w, "bias": b, "temperature": temperature, "z_loss": z_loss}
            return jnp.sum(jnp.sin(f(floats, y, **options)))

        def over(f):
            return jax.vmap(jax.vmap(f, axes), axes) if mapped == "nested" else jax.vmap(f, axes)

        which = (0, 1, 2) if labels is ids else (0, 1, 2, 3)
        gradient = jax.grad(lambda *arguments: jnp.sum(jnp.sin(over(loss)(*arguments))), which)
        along = jnp.cos(arguments[0])
        return (
            over(jax.value_and_grad(loss, which))(*arguments),
            gradient(*arguments),
            jax.jvp(lambda h: gradient(h, *arguments[1:]), (arguments[0],), (along,))[1],
        )

    @jax.jit
    def everything():
        given = {
            "ids": {"labels": ids, "reduction": "mean", "ignore_index": -1},
            "targets": {"labels": targets, "reduction": "none", "label_smoothing": 0.1},
        }[kind]
        return of(functools.partial(linear, block_size=2, vocab_axis=0), **given), of(dense, **given)

    with MODES[mode]():
        agree(*everything(), rtol=1e-9)


@pytest.mark.share(3)
@pytest.mark.parametrize("size", [None, 3, (2, 2)], ids=str)
def test_corners(size):
    """Ignored rows, bad labels, classes with a bias of −inf, and no rows."""
    h, w = jnp.ones((5, 2)).at[1].set(jnp.nan), jnp.ones((2, 3)).at[0, 2].set(2)
    labels, bias = jnp.asarray([0, -1, 2, 1, 7], jnp.int32), jnp.asarray([0, -jnp.inf, 0])

    @jax.jit
    def losses(h, w, bias):
        f = functools.partial(jsoftmax.linear_cross_entropy, block_size=size)
        kept = functools.partial(f, labels=labels[:4], ignore_index=-1)
        out, pull = jax.vjp(lambda h, w, b: kept(h[:4], w, bias=b), h, w, bias)
        return f(h, w, labels, bias=bias), out, pull(jnp.asarray([1.0, 1, 1, 0]))

    bad, out, (dh, dw, db) = losses(h, w, bias)
    np.testing.assert_array_equal(jnp.isnan(bad), [False, True, False, False, True])
    np.testing.assert_allclose(out, [np.log1p(np.e), 0, np.log1p(1 / np.e), np.inf], rtol=1e-6)
    assert all(jnp.isfinite(d).all() for d in (dh, dw, db))
    assert not dh[1].any()
    assert db[1] == 0

    def of_nothing(w, reduction="none"):
        return jsoftmax.linear_cross_entropy(h[:0], w, labels[:0], reduction=reduction)

    assert of_nothing(w).shape == (0,)
    value, dw = jax.value_and_grad(functools.partial(of_nothing, reduction="mean"))(w)
    assert value == 0
    assert not dw.any()
    with pytest.raises(checkify.JaxRuntimeError, match=r"class id 7 of row 4 is outside \[0, 3\)"):
        checkify.check_error(
            checkify.checkify(jsoftmax.linear_cross_entropy, checkify.user_checks)(h, w, abs(labels))[0]
        )


def test_the_plan():
    plan = jsoftmax.linear_plan(8192, 512, 128256)
    assert (plan.row_blocks, plan.class_blocks, plan.block_bytes) == (16, 1, 512 * 128256 * 4)
    assert str(jsoftmax.linear_plan(10, 512, 100)) == "1 block of 10 rows × 100 classes, 0.0 MiB of logits"
    assert jsoftmax.linear_plan(8192, 4096, 128256).block_rows == 2048
    assert jsoftmax.linear_plan(8192, 4096, 128256, gradient=False).block_rows == 512
    vast = jsoftmax.linear_plan(8192, 512, 10**7)
    assert vast.class_blocks > 1
    assert vast.block_bytes <= 2**30
    for rows, classes, size in itertools.product((1, 7, 64, 1000), (1, 5, 10**6), (None, 1, 3, (3, 2), 5000)):
        plan = jsoftmax.linear_plan(rows, 8, classes, block_size=size)
        assert 0 <= plan.row_blocks * plan.block_rows - rows < plan.row_blocks
        assert 0 <= plan.class_blocks * plan.block_classes - classes < plan.class_blocks


@pytest.mark.long
@pytest.mark.share(4)
@pytest.mark.diagonal
@pytest.mark.parametrize("of_rows", [True, False], ids=["[B, V]", "[V]"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("size", BLOCKS, ids=str)
def test_classes_that_count(size, reduction, of_rows, x64):
    """Masks of all rows and of each, in blocks, tiles of classes, and one with a row that is none."""
    floats, labels = head()
    where = np.random.default_rng(2).random((13, 15)) < 0.7
    where = where if of_rows else where[:1]
    where[np.arange(len(where)), 1], labels = True, jnp.where(labels < 0, labels, 1)
    if of_rows:
        where[3] = False
    where = jnp.asarray(where) if of_rows else jnp.asarray(where[0])

    @jax.jit
    def everything(floats):
        def of(f, mask, **options):
            f = functools.partial(
                f, labels=labels, where=mask, ignore_index=-1, reduction=reduction, **options
            )
            return jax.value_and_grad(curved(f))(floats)

        mask = where if of_rows else where[None]
        arguments = (floats[name] for name in ("hidden", "weight"))
        statistics = jsoftmax.linear_row_statistics(
            *arguments, jnp.maximum(labels, 1), where=where, block_size=5
        )
        logits = floats["hidden"] @ floats["weight"]
        wanted = jsoftmax.row_statistics(logits, jnp.maximum(labels, 1), where=mask)
        return of(linear, where, block_size=size), of(dense, mask), statistics, wanted

    ours, want, *statistics = everything(floats)
    agree(ours, want)
    agree(*map(tuple, statistics))


@pytest.mark.long
@pytest.mark.share(6)
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("size", [None, 5, "mapped"])
def test_statistics_beside_a_loss(size, reduction, x64, monkeypatch):
    """Those of their own function, and the gradients of the loss alone, at three products; mapped too."""
    monkeypatch.setattr(_platforms, "MOST_PLAIN", 0)
    floats, labels = head()
    arguments = {"reduction": reduction, "ignore_index": -1}

    @jax.jit
    def everything(floats):
        ours = functools.partial(linear, labels=labels, **arguments)
        of_heads = {name: floats[name] for name in ("bias", "soft_cap", "temperature")}
        want = jsoftmax.linear_row_statistics(
            floats["hidden"], floats["weight"], labels, ignore_index=-1, **of_heads
        )

        def curved_pair(floats, **options):
            loss, statistics = ours(floats, statistics=True, **options)
            return jnp.sum(jnp.sin(loss)), statistics

        if size == "mapped":
            several = {name: jnp.stack([a, a]) if name == "hidden" else a for name, a in floats.items()}
            axes = {name: 0 if name == "hidden" else None for name in floats}
            mapped = jax.vmap(jax.value_and_grad(curved_pair, has_aux=True), (axes,))(several)
            pair = jax.tree.map(lambda a: a[1], mapped)
        else:
            pair = jax.value_and_grad(functools.partial(curved_pair, block_size=size), has_aux=True)(floats)
        return pair, jax.value_and_grad(curved(ours))(floats), want

    ((got, statistics), of_pair), (value, gradients), want = everything(floats)
    agree((got, of_pair), (value, gradients))
    agree(tuple(statistics), tuple(want))

    def total(h, w):
        return linear({"hidden": h, "weight": w}, labels, statistics=True, **arguments)[0].sum()

    h, w = floats["hidden"], floats["weight"]
    assert products(jax.value_and_grad(total, (0, 1)), h, w) == (4 if reduction == "none" else 3)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("soft", [False, True], ids=["ids", "targets"])
def test_statistics_know_no_class_weights_and_no_masked_rows(soft, reduction):
    """A loss weights targets, and does not count a row that is masked whole; its statistics do neither."""
    rng = np.random.default_rng(0)
    hidden, weight = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, 3), (3, 4)))
    where = jnp.ones((5, 4), bool).at[1:3].set(False).at[0, 2].set(False)
    labels, ignore = jnp.array([0, 1, -1, 2, -1]), {"ignore_index": -1}
    if soft:
        labels, ignore = jsoftmax.softmax(jnp.cos(jnp.arange(20.0).reshape(5, 4)), where=where), {}
    want = jsoftmax.linear_row_statistics(hidden, weight, labels, where=where, **ignore)
    assert want.log_normalizer[1] == -np.inf
    assert want.log_normalizer[2] == (-np.inf if soft else 0)  # ignored, and so 0

    @functools.partial(jax.jit, static_argnums=2)
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def both(hidden, class_weights, statistics):
        given = {"reduction": reduction, "where": where, "label_smoothing": 0.1} | ignore
        given |= {"class_weights": class_weights, "statistics": statistics}
        found = jsoftmax.linear_cross_entropy(hidden, weight, labels, **given)
        loss, beside = found if statistics else (found, None)
        return jnp.sum(loss), beside

    class_weights = jnp.array([1.0, 2.0, 3.0, 0.5])
    (loss, got), gradients = both(hidden, class_weights, True)
    (alone, _), of_alone = both(hidden, class_weights, False)
    agree(tuple(got), tuple(want), 1e-6)
    agree((loss, gradients), (alone, of_alone), 1e-6)
