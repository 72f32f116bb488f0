"""The gradient of a linear head from a sample of the classes is unbiased, and exact where documented."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampling
from jax.sharding import PartitionSpec as P

import jsoftmax
from jsoftmax.linear import _sampling

ROWS, FEATURES, CLASSES, KEEP = 24, 6, 500, 0.25
DRAWS = 300


def head(regime="unit", seed=0):
    """hidden, weight and bias, and labels; for "trained", the bias contains log-frequencies of classes."""
    rng = np.random.default_rng(seed)
    scale = {"flat": 0.0, "unit": FEATURES**-0.5, "peaked": 3.0, "trained": 1.0}[regime]
    h, w = rng.normal(size=(ROWS, FEATURES)) * scale, rng.normal(size=(FEATURES, CLASSES))
    bias = -np.log(np.arange(CLASSES) + 1.0) if regime == "trained" else np.zeros(CLASSES)
    labels = rng.choice(CLASSES, ROWS, p=np.exp(bias) / np.exp(bias).sum())
    floats = {"hidden": h, "weight": w, "bias": bias}
    return {name: jnp.asarray(a) for name, a in floats.items()}, jnp.asarray(labels, jnp.int32)


def loss(floats, labels, gradient="sampled", block_size=8, **options):
    floats = dict(floats)
    arguments = [floats.pop(name) for name in ("hidden", "weight")]
    if options.get("vocab_axis", -1) == 0:
        arguments[1] = arguments[1].T
    options = {"gradient": gradient, "block_size": block_size, "threshold": 0.01, "keep": KEEP} | options
    return jsoftmax.linear_cross_entropy(*arguments, labels, **floats, **options)


def gradient_of(labels, **options):
    """The gradient of an unequally weighted sum of the losses, as ``gradient(floats, key)``."""

    def total(floats, key):
        losses = loss(floats, labels, key=key, **options)
        return jnp.sum(losses * (1 + jnp.arange(losses.size) / ROWS).reshape(losses.shape))

    return jax.value_and_grad(total)


OPTIONS = {
    "flat": {},
    "unit": {"vocab_axis": 0},
    "peaked": {"reduction": "sum"},
    "trained": {"reduction": "mean"},
    "every option": {
        "ignore_index": 3,
        "class_weights": np.linspace(0.5, 2, CLASSES),
        "label_smoothing": 0.1,
        "z_loss": np.full(ROWS, 0.01),
        "soft_cap": 5.0,
        "temperature": np.full(ROWS, 0.7),
        "reduction": "mean",
    },
}
DIFFERENTIATED = ("class_weights", "label_smoothing", "z_loss", "soft_cap", "temperature")


@pytest.mark.long
@pytest.mark.parametrize("name", sampling.sample(OPTIONS, "trained"))
def test_the_mean_of_many_gradients_is_the_exact_one(name, x64):
    """Each error is within five standard errors, and their mean square is as expected by chance."""
    floats, labels = head("trained" if name == "every option" else name)
    options = dict(OPTIONS[name])
    floats |= {name: jnp.asarray(options.pop(name)) for name in DIFFERENTIATED if name in options}
    keys = jax.random.split(jax.random.key(7), DRAWS)

    @jax.jit
    def moments(floats):
        value, found = jax.lax.map(lambda key: gradient_of(labels, **options)(floats, key), keys)
        exact = gradient_of(labels, gradient="exact", **options)(floats, None)
        return value, jax.tree.map(lambda a: (jnp.mean(a, 0), jnp.std(a, 0)), found), exact

    values, found, (value, exact) = moments(floats)
    np.testing.assert_array_equal(values, np.full(DRAWS, value))
    squares = []
    for argument, (mean, deviation) in found.items():
        error, scale = np.abs(mean - exact[argument]), np.abs(exact[argument]).max() + 1e-12
        least = deviation.max() / 8 + 1e-10 * scale  # rare draws underestimate the deviation
        standard = np.maximum(deviation, least) / DRAWS**0.5
        assert np.all(error <= 5 * standard), argument
        squares.append(np.ravel((error / standard) ** 2))
    assert any(np.any(deviation > 0) for _, deviation in found.values())
    assert np.mean(np.concatenate(squares)) <= 1.5


def test_the_variance_is_what_the_docstring_says(x64):
    """In hidden (1/keep − 1)·Σ (dz·w)² over the inactive classes; in the weight, 0 for active classes."""
    floats, labels = head("unit")
    keys = jax.random.split(jax.random.key(1), DRAWS)
    gradient = gradient_of(labels, block_size=ROWS)
    found = jax.jit(lambda: jax.lax.map(lambda key: gradient(floats, key)[1], keys))()
    p = np.asarray(jax.nn.softmax(floats["hidden"] @ floats["weight"]))
    active = np.any(p >= 0.01, 0)
    active[np.asarray(labels)] = True
    dz = np.where(active, 0, p) * (1 + np.arange(ROWS) / ROWS)[:, None]
    want = (1 / KEEP - 1) * (dz**2 @ floats["weight"].T ** 2)
    ratio = np.var(found["hidden"], 0) / want
    assert abs(ratio.mean() - 1) < 0.05
    varies = np.std(found["weight"], 0).max(0) > 1e-12
    np.testing.assert_array_equal(varies, ~active)


@pytest.mark.share(2)
@pytest.mark.parametrize("vocab_axis", [0, 1])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_where_too_many_classes_matter_the_gradient_is_exact_to_the_bit(reduction, vocab_axis):
    floats, labels = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), head("unit")[0]), head("unit")[1]

    @jax.jit
    def both(floats):
        options = {"vocab_axis": vocab_axis, "reduction": reduction, "threshold": 1e-4}
        sampled = gradient_of(labels, **options)(floats, jax.random.key(0))
        return sampled, gradient_of(labels, gradient="exact", **options)(floats, None)

    jax.tree.map(np.testing.assert_array_equal, *both(floats))


@pytest.mark.long
def test_a_key_says_which_gradient(x64):
    floats, labels = head("unit")
    gradient = jax.jit(gradient_of(labels, reduction="mean"))
    first, again, other = (gradient(floats, jax.random.key(i)) for i in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first[0] == other[0]
    assert np.any(first[1]["weight"] != other[1]["weight"])
    as_integers = gradient(floats, jax.random.PRNGKey(0))
    jax.tree.map(np.testing.assert_array_equal, first, as_integers)
    without = jax.jit(gradient_of(labels, gradient="truncated", reduction="mean"))(floats, None)
    assert without[0] == first[0]


@pytest.mark.long
def test_truncated_leaves_out_less_than_its_bound(x64):
    floats, labels = head("trained")
    exact, found = (
        jax.jit(gradient_of(labels, gradient=name))(floats, None)[1] for name in ("exact", "truncated")
    )
    p = jax.nn.softmax(floats["hidden"] @ floats["weight"] + floats["bias"][None, :])
    longest = np.linalg.norm(floats["weight"], axis=0).max()
    off = np.linalg.norm(exact["hidden"] - found["hidden"], axis=1)
    dropped = np.sum(np.where(p < 0.01, p, 0), 1) * (1 + np.arange(ROWS) / ROWS)
    assert 0 < off.max() <= (dropped * longest).max()
    assert np.all(off <= dropped * longest + 1e-12)


@pytest.mark.long
@pytest.mark.share(3)
@pytest.mark.parametrize("mask", [None, "one for all rows", "one per row"])
def test_a_small_head_and_a_large_one_take_the_same_classes(mask, x64, monkeypatch):
    """A small head runs as a plain program, which multiplies the gradient of each class by its factor 1/π."""
    floats, labels = head("trained")
    where = None
    if mask is not None:
        where = jax.random.bernoulli(jax.random.key(1), 0.5, (ROWS, CLASSES))
        where = where[0] if mask == "one for all rows" else where
        where = where.at[..., labels].set(True)

    def found():
        return jax.jit(gradient_of(labels, reduction="mean", where=where))(floats, jax.random.key(3))

    gathered = found()
    with jsoftmax.portable():
        plain = found()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), gathered, plain)


@pytest.mark.share(2)
@pytest.mark.parametrize("what", ["second derivatives", "transforms"])
def test_transforms_and_second_derivatives(what, x64):
    """Second derivatives are exact; scan, vmap and checkpoint do not change a gradient."""
    floats, labels = head("trained")
    key = jax.random.key(0)
    along = jax.tree.map(jnp.cos, floats)

    def total(floats, key=key, **options):
        return jnp.sum(loss(floats, labels, key=key, reduction="sum", **options))

    @jax.jit
    def everything(floats):
        def twice(**options):
            gradient = jax.grad(functools.partial(total, **options))
            return jax.jvp(gradient, (floats,), (along,))[1], jax.vjp(gradient, floats)[1](along)[0]

        def step(carry, key):
            found = jax.grad(total)(floats, key)
            return jax.tree.map(jnp.add, carry, found), found

        if what == "second derivatives":
            return twice(gradient="exact"), [twice()]
        keys = jax.random.split(key, 3)
        scanned = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, floats), keys)[1]
        mapped = jax.vmap(lambda key: jax.grad(total)(floats, key))(keys)
        one_by_one = [jax.grad(jax.checkpoint(total))(floats, key) for key in keys]
        return jax.tree.map(lambda *a: jnp.stack(a), *one_by_one), [scanned, mapped]

    want, several = everything(floats)
    for got in several:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), got, want)


@pytest.mark.share(3)
@pytest.mark.parametrize("kind", ["explicit", "manual", "automatic"])
def test_shards(kind, x64):
    """With sharded rows, and in "manual" also classes, the mean of many gradients is the exact one."""
    axis_types = (jax.sharding.AxisType.Explicit if kind == "explicit" else jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("rows", "classes"), axis_types=axis_types)
    floats, labels = head("trained")
    specs = {"hidden": P("rows"), "weight": P(None, "classes"), "bias": P("classes")}
    if kind != "manual":
        specs = {"hidden": P("rows"), "weight": P(), "bias": P()}
    keys = jax.random.split(jax.random.key(7), DRAWS)
    on = {"axis_name": "classes", "row_axis_name": "rows"} if kind == "manual" else {}

    def gradient(floats, labels, key):
        return jax.grad(lambda floats: loss(floats, labels, key=key, reduction="sum", **on))(floats)

    if kind == "manual":
        gradient = jax.shard_map(gradient, mesh=mesh, in_specs=(specs, P("rows"), P()), out_specs=specs)
    exact = jax.grad(lambda floats: loss(floats, labels, gradient="exact", reduction="sum"))(floats)
    with jax.set_mesh(mesh):
        place = functools.partial(jax.sharding.NamedSharding, mesh)
        floats = jax.tree.map(lambda a, spec: jax.device_put(a, place(spec)), floats, specs)
        labels = jax.device_put(labels, place(P("rows")))

        @jax.jit
        def moments(floats, labels):
            found = jax.lax.map(lambda key: gradient(floats, labels, key), keys)
            return jax.tree.map(lambda a: (jnp.mean(a, 0), jnp.std(a, 0)), found)

        found = moments(floats, labels)
    for argument, (mean, deviation) in found.items():
        error = np.abs(np.asarray(mean) - exact[argument])
        standard = np.maximum(deviation, np.max(deviation) / 8) / DRAWS**0.5
        assert np.all(error <= 5 * standard + 1e-9), argument


def test_nan_is_where_the_exact_gradient_has_it(x64):
    """Rows with NaN or a bad label have NaN in the same places as in the exact gradient."""
    floats, labels = head("unit")
    floats["hidden"] = floats["hidden"].at[5].set(jnp.nan)
    labels = labels.at[20].set(CLASSES)

    def found(name):
        return jax.jit(gradient_of(labels, gradient=name))(floats, jax.random.key(0))[1]

    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(jnp.isnan(a), jnp.isnan(b)),
        found("sampled"),
        found("exact"),
    )


@pytest.mark.long
@pytest.mark.parametrize("vocab_axis", [0, 1])
def test_memory_and_products(vocab_axis):
    """At most 16 MiB more than the exact gradient, with products with 1/32 of the classes."""
    weight = (32768, 64) if vocab_axis == 0 else (64, 32768)
    shapes = [(2048, 64), weight, (2048,)]
    h, w, y = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in zip(shapes, (jnp.float32, jnp.float32, jnp.int32), strict=True)
    )

    def lowered(name):
        def mean(h, w, y):
            options = {"vocab_axis": vocab_axis, "reduction": "mean"}
            options |= {"gradient": name, "key": jax.random.key(0)}
            return jsoftmax.linear_cross_entropy(h, w, y, **options)

        return jax.jit(jax.value_and_grad(mean, (0, 1))).lower(h, w, y)

    exact, sampled = (lowered(name).compile().memory_analysis() for name in ("exact", "sampled"))
    extra = sampled.temp_size_in_bytes - exact.temp_size_in_bytes
    assert extra <= 16 * 2**20
    taken = 32768 // _sampling.GROUPS
    shape = f"{taken}x64xf32" if vocab_axis == 0 else f"64x{taken}xf32"
    assert shape in lowered("sampled").as_text()
