"""On eight devices: the results of one device, and no array as long as the classes moves between them."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampling
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jsoftmax

ROWS, FEATURES, CLASSES = 16, 8, 24


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    hidden, weight = rng.normal(size=(ROWS, FEATURES)), rng.normal(size=(FEATURES, CLASSES))
    labels = rng.integers(0, CLASSES, ROWS)
    labels[3] = -1
    return jnp.float32(hidden), jnp.float32(weight), jnp.asarray(labels, jnp.int32)


def mesh(kind):
    return jax.make_mesh((2, 4), ("rows", "classes"), axis_types=(kind,) * 2)


def head(reduction):
    loss = functools.partial(
        jsoftmax.linear_cross_entropy,
        ignore_index=-1,
        label_smoothing=0.1,
        z_loss=0.01,
        reduction=reduction,
        block_size=8,
    )
    return lambda h, w, y: jnp.sum(loss(h, w, y))


def dense(h, x, y):
    """A function of the logits; it does not use h."""
    loss = jsoftmax.cross_entropy(x, y, ignore_index=-1, label_smoothing=0.1, reduction="mean")
    found = jsoftmax.row_statistics(x, jnp.maximum(y, 0))
    p = jsoftmax.softmax(x)
    return loss + jnp.sum(found.entropy) + jnp.sum(p * p) + jnp.sum(jsoftmax.logsumexp(x, -1))


def dense_of_rows(h, x, y):
    """With a temperature that all rows share."""
    return jnp.sum(jsoftmax.cross_entropy(x, jnp.maximum(y, 0), temperature=2 + 0 * h[0, 0]))


LOSSES = {"head, mean": head("mean"), "head, none": head("none"), "dense": dense}
LAYOUTS = {
    "rows": (P("rows"), P(), P("rows")),
    "classes": (P(), P(None, "classes"), P()),
    "both": (P("rows"), P(None, "classes"), P("rows")),
}


def agree(got, want):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)


def prepared(name):
    h, w, y = arrays()
    return (h, h @ w, y) if name == "dense" else (h, w, y)


@pytest.mark.share(3)
@pytest.mark.diagonal
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_under_jit(layout, name, kind, several_devices):
    """Gradients are sharded like their arguments, and only sums over shards are sent."""
    given = prepared(name)
    gradient = jax.jit(jax.value_and_grad(LOSSES[name], (0, 1)))
    want = gradient(*given)
    with jax.set_mesh(mesh(kind)):
        specs = LAYOUTS[layout]
        if name == "dense":  # the second array has rows too
            specs = (specs[0], P(*specs[0], *specs[1][1:]) if specs[0] else specs[1], specs[2])
        sharded = [jax.device_put(a, NamedSharding(mesh(kind), s)) for a, s in zip(given, specs, strict=True)]
        compiled = gradient.lower(*sharded).compile()
        got = compiled(*sharded)
        agree(got, want)
        for d, a in zip(got[1][name == "dense" :], sharded[name == "dense" : 2], strict=True):
            assert d.sharding.is_equivalent_to(a.sharding, 2)
        sent = set(re.findall(r" (all-\w+|collective-\w+|reduce-scatter)\(", compiled.as_text()))
        assert sent <= {"all-reduce"}


@pytest.mark.share(2)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_memory_of_targets_sharded_over_rows(kind, several_devices):
    """A device holds a few blocks of its rows, which they do not divide, and sends no array of that size."""

    def loss(h, w, t):
        return jnp.sum(jsoftmax.linear_cross_entropy(h, w, t, block_size=64))

    rows, classes = 1016, 4096
    with jax.set_mesh(mesh(kind)):
        h, w, t = (
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh(kind), spec))
            for shape, spec in (((rows, 8), P("rows")), ((8, classes), P()), ((rows, classes), P("rows")))
        )
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(h, w, t).compile()
    block = 64 * classes * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * block
    assert "all-gather" not in compiled.as_text()


@pytest.mark.share(2)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_weight_sharded_over_features_too(kind, several_devices):
    """Only the shard of the weight that a device multiplies by is gathered, and no array of all rows."""
    h, w, y = arrays()
    gradient = jax.jit(jax.value_and_grad(head("mean"), (0, 1)))
    want = gradient(h, w, y)
    with jax.set_mesh(mesh(kind)):
        specs = P("rows"), P("rows", "classes"), P("rows")
        sharded = [
            jax.device_put(a, NamedSharding(mesh(kind), s)) for a, s in zip((h, w, y), specs, strict=True)
        ]
        compiled = gradient.lower(*sharded).compile()
        agree(compiled(*sharded), want)
    gathered = re.findall(r"= \w+(\S+)\{[\d,]*\} all-gather\(", compiled.as_text())
    assert set(gathered) == {f"[{FEATURES},{CLASSES // 4}]"}
    assert not re.search(r" (all-to-all|collective-\w+)\(", compiled.as_text())


@pytest.mark.share(3)
@pytest.mark.parametrize("name", LOSSES)
def test_rows_within_shard_map(name):
    """Shared arguments get the sum of the gradients of all shards, from inside and from outside."""
    given = prepared(name)
    total = {"head, mean": head("sum")}.get(name, LOSSES[name])
    second = P("rows") if name == "dense" else P()
    specs = (P("rows"), second, P("rows"))
    if name == "dense":
        total = dense_of_rows
    want = jax.grad(total, (0, 1))(*given)

    def outside(h, w, y):
        inside = jax.shard_map(
            lambda h, w, y: jax.lax.psum(total(h, w, y), "rows"),
            mesh=mesh(AxisType.Auto),
            in_specs=specs,
            out_specs=P(),
        )
        return jax.grad(inside, (0, 1))(h, w, y)

    inside = jax.shard_map(
        jax.grad(total, (0, 1)), mesh=mesh(AxisType.Auto), in_specs=specs, out_specs=(P("rows"), second)
    )
    agree(jax.jit(outside)(*given), want)
    agree(jax.jit(inside)(*given), want)


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((2**15, 3), 1),
        pytest.param((2**13, 40), 1, marks=pytest.mark.full),
        ((16, 40_000), 1),
        pytest.param((4, 2**16), 0, marks=pytest.mark.full),
        ((40, 2**17 + 8), 0),
    ],
)
def test_many_rows_within_shard_map(shape, axis):
    """In the forms of large arrays on CPU, with loops and branches."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32) - np.float32(np.log(shape[axis]) + 0.5)
    ids = np.zeros(x.size // shape[axis], np.int32)
    rows = P("rows", None) if axis else P(None, "rows")

    def of_rows(x, ids):
        values = jsoftmax.logsumexp(x, axis), jsoftmax.cross_entropy(x, ids, axis=axis)
        gradient = jax.grad(lambda x: jnp.sum(jsoftmax.logsumexp(x, axis)))(x)
        maps = jsoftmax.softmax(x, axis), jsoftmax.log_softmax(x, axis), gradient
        return values, maps, jsoftmax.entropy(x, axis=axis)

    specs = (P("rows"),) * 2, (rows,) * 3, P("rows")
    within = jax.shard_map(of_rows, mesh=mesh(AxisType.Auto), in_specs=(rows, P("rows")), out_specs=specs)
    got, want = jax.jit(within)(x, ids), jax.jit(of_rows)(x, ids)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=3e-6, atol=1e-6), got, want)


ONE = {
    "label_smoothing": 0.1,
    "z_loss": 0.01,
    "ignore_index": 0,
    "class_weights": np.ones(CLASSES, np.float32),
}


def by_rows(x, h, y, w):
    """Functions of every kind, of rows."""
    return {
        **a_map_and_a_loss_by_rows(x, h, y, w),
        "log_softmax": jsoftmax.log_softmax(x),
        "logsumexp": jsoftmax.logsumexp(x, -1),
        "weighted": jsoftmax.logsumexp(x, -1, jnp.ones(CLASSES)),
        "options": jsoftmax.cross_entropy(x, y, **ONE),
        "targets": jsoftmax.cross_entropy(x, jax.nn.softmax(-x)),
        "kl": jsoftmax.kl_divergence(x, 2 * x),
        "js": jsoftmax.js_divergence(x, 2 * x),
        "statistics": jsoftmax.row_statistics(x, y),
        "head": jsoftmax.linear_cross_entropy(h, w, y, **ONE, block_size=4),
        "statistics of a head": jsoftmax.linear_row_statistics(h, w, y),
        "sums of a head": jsoftmax.linear_cross_entropy(h, w, y, reduction="sum")[None],
    }


def a_map_and_a_loss_by_rows(x, h, y, w):
    return {"softmax": jsoftmax.softmax(x, temperature=0.5), "loss": jsoftmax.cross_entropy(x, y)}


def by_classes(x, h, y, w):
    on = {"axis_name": "rows"}
    return {
        **a_map_and_a_loss_by_classes(x, h, y, w),
        "entropy": jsoftmax.entropy(x, **on),
        "head": jsoftmax.linear_cross_entropy(h, w, y, **on),
    }


def a_map_and_a_loss_by_classes(x, h, y, w):
    on = {"axis_name": "rows"}
    return {
        "softmax": jsoftmax.softmax(x, **on),
        "loss": jsoftmax.cross_entropy(x, y, label_smoothing=0.1, **on),
    }


BY_ROWS = by_rows, a_map_and_a_loss_by_rows
BY_CLASSES = by_classes, a_map_and_a_loss_by_classes


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("functions", sampling.sample(BY_ROWS + BY_CLASSES, BY_ROWS[1], BY_CLASSES[1]))
def test_within_shard_map_outside_jit(functions):
    """Where JAX does not trace the call, on two devices: values and gradients as under jit."""
    h, w, y = arrays()
    given = h @ w, h, jnp.maximum(y, 0), w
    rows = functions in BY_ROWS
    two = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    of_rows, of_classes = P("rows"), P(None, "rows")
    specs = (of_rows, of_rows, of_rows, P()) if rows else (of_classes, P(), P(), of_classes)

    def gradients(*given):
        def total(*given):
            floats = (a for a in jax.tree.leaves(functions(*given)) if jnp.issubdtype(a.dtype, jnp.floating))
            return sum(jnp.sum(jnp.sin(a)) for a in floats)

        return jax.grad(total, (0, 1))(*given)

    if rows:
        out = jax.tree.map(lambda _: of_rows, jax.eval_shape(functions, *given))
    else:
        out = {"softmax": of_classes, "loss": P()}
        out |= {"entropy": P(), "head": P()} if functions is by_classes else {}
    for function, out_specs in ((functions, out), (gradients, specs[:2])):
        within = jax.shard_map(function, mesh=two, in_specs=specs, out_specs=out_specs)
        got, want = (jax.tree.leaves(f(*given)) for f in (within, jax.jit(within)))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


OF_LOGITS = P("rows"), P(None, "classes"), P("rows", "classes")
OF_WEIGHTS = P(), P("classes"), P("rows")
PAIRS = [*zip(OF_LOGITS, OF_WEIGHTS, strict=True)]


@pytest.mark.long
@pytest.mark.parametrize(
    "layouts",
    [PAIRS[2:], pytest.param([*itertools.product(OF_LOGITS, OF_WEIGHTS)], marks=pytest.mark.full)],
    ids=len,
)
def test_options_beside_explicitly_sharded_logits(layouts, several_devices):
    """For any sharding of the options: values and gradients of one device, sharded like the options."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(ROWS, CLASSES)), rng.gamma(0.5, size=(ROWS, CLASSES))
    weights, temperature = rng.uniform(0.5, 2, CLASSES), rng.uniform(0.5, 2, ROWS)
    where, y = jnp.asarray(rng.random((1, CLASSES)) < 0.8).at[0, 0].set(True), jnp.zeros(ROWS, jnp.int32)
    floats = [jnp.float32(a) for a in (x, np.where(where, t, 0), weights, temperature)]

    @jax.jit
    def of(x, t, weights, temperature, where, y, hidden, weight):
        def total(x, weights, temperature):
            given = {"class_weights": weights, "temperature": temperature, "where": where}
            by_ids = jsoftmax.cross_entropy(x, y, **given, label_smoothing=0.1, reduction="mean")
            by_targets = jsoftmax.cross_entropy(x, t, **given, reduction="mean")
            given.pop("where")
            return by_ids + by_targets + jnp.sum(jsoftmax.linear_cross_entropy(hidden, weight, y, **given))

        return jax.value_and_grad(total, (0, 1, 2))(x, weights, temperature)

    head = arrays()[:2]
    want = of(*floats, where, y, *head)
    on = mesh(AxisType.Explicit)
    with jax.set_mesh(on):
        for of_x, of_weights in layouts:
            by_row = P() if of_weights == P("classes") else P("rows")
            specs = of_x, of_x, of_weights, by_row, P(None, *of_weights), by_row
            specs += P(*of_x[:1]), P(None, *of_x[1:])
            pairs = zip((*floats, where, y, *head), specs, strict=True)
            sharded = [jax.device_put(a, NamedSharding(on, spec)) for a, spec in pairs]
            got = of(*sharded)
            agree(got, want)
            for d, a in zip(got[1], (sharded[0], *sharded[2:4]), strict=True):
                assert d.sharding.is_equivalent_to(a.sharding, a.ndim)
