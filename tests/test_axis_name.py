"""Classes sharded within shard_map: the answers of one device, and only sums of the rows' size are sent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import jit_quickly
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jsoftmax
from jsoftmax import _sharding

ROWS, FEATURES, CLASSES = 8, 6, 24
MESH = jax.make_mesh((2, 4), ("rows", "classes"), axis_types=(AxisType.Auto,) * 2)


def arrays(seed=0):
    """Rows that are confident, tied across shards, without a live class, with NaN, with a bad label."""
    rng = np.random.default_rng(seed)
    x = 3 * rng.normal(size=(ROWS, CLASSES)).astype(np.float32)
    where = rng.random((ROWS, CLASSES)) < 0.8
    where[:, -2:] = False  # the last shard is shorter
    where[:, :2] = True
    x[:, -1] = np.nan
    y = np.array([0, 13, 1, 21, CLASSES, 1, 0, 1], np.int32)
    where[np.arange(ROWS), y % CLASSES] = True
    x[0, 0] = 60
    x[1, [8, 14]] = where[1, [8, 14]] = 12
    where[2] = False
    x[5, 7], where[5, 7] = np.nan, True
    x[6, 3], where[6, 3] = -np.inf, True
    targets = rng.gamma(0.5, size=x.shape)
    targets[:, 3] = 0
    return {
        "x": x,
        "other": rng.normal(size=x.shape),
        "y": y,
        "targets": np.where(where, targets, 0),
        "where": where,
        "class_weights": rng.uniform(0.5, 2, CLASSES),
        "temperature": rng.uniform(0.3, 3, ROWS),
        "soft_cap": np.array(30),
        "label_smoothing": rng.uniform(0.05, 0.3, ROWS),
        "z_loss": np.array(0.01),
        "hidden": rng.normal(size=(ROWS, FEATURES)),
        "weight": rng.normal(size=(FEATURES, CLASSES)),
        "bias": rng.normal(size=CLASSES),
    }


def layout(a, classes="classes", rows="rows"):
    """By its lengths."""
    return P(*({ROWS: rows, CLASSES: classes}.get(n) for n in a.shape))


def given(*names):
    found = arrays()
    return {n: jnp.asarray(found[n], jnp.float32 if found[n].dtype == np.float64 else None) for n in names}


def options(a, *names):
    return {name: a[name] for name in names}


LOSS = ("class_weights", "label_smoothing", "z_loss", "soft_cap", "temperature")
FUNCTIONS = {
    "softmax": (lambda a, **on: jsoftmax.softmax(a["x"], where=a["where"], **on), "x where"),
    "softmax, temperature": (
        lambda a, **on: jsoftmax.softmax(a["x"], where=a["where"], temperature=a["temperature"], **on),
        "x where temperature",
    ),
    "log_softmax": (
        lambda a, **on: jsoftmax.log_softmax(jnp.where(a["where"], a["x"], 0), **on),
        "x where",
    ),
    "log_softmax, temperature": (
        lambda a, **on: jsoftmax.log_softmax(a["x"], where=a["where"], temperature=a["temperature"], **on),
        "x where temperature",
    ),
    "logsumexp": (lambda a, **on: jsoftmax.logsumexp(a["x"], -1, where=a["where"], **on), "x where"),
    "logsumexp, weighted": (
        lambda a, **on: jsoftmax.logsumexp(a["x"], -1, a["targets"], where=a["where"], **on),
        "x where targets",
    ),
    "entropy": (
        lambda a, **on: jsoftmax.entropy(a["x"], where=a["where"], temperature=a["temperature"], **on),
        "x where temperature",
    ),
    "log_prob": (lambda a, **on: jsoftmax.log_prob(a["x"], a["y"], where=a["where"], **on), "x y where"),
    "kl_divergence": (
        lambda a, **on: jsoftmax.kl_divergence(
            a["x"], a["other"], where=a["where"], temperature=a["temperature"], **on
        ),
        "x other where temperature",
    ),
    "js_divergence": (
        lambda a, **on: jsoftmax.js_divergence(a["x"], a["other"], where=a["where"], **on),
        "x other where",
    ),
    "row_statistics": (
        lambda a, **on: jsoftmax.row_statistics(
            a["x"], a["y"], where=a["where"], **options(a, "soft_cap", "temperature"), **on
        ),
        "x y where soft_cap temperature",
    ),
    "cross_entropy, ids": (
        lambda a, **on: jsoftmax.cross_entropy(a["x"], a["y"], where=a["where"], **options(a, *LOSS), **on),
        f"x y where {' '.join(LOSS)}",
    ),
    "cross_entropy, targets": (
        lambda a, **on: jsoftmax.cross_entropy(
            a["x"], a["targets"], where=a["where"], **options(a, *LOSS), **on
        ),
        f"x targets where {' '.join(LOSS)}",
    ),
    "linear_row_statistics": (
        lambda a, **on: jsoftmax.linear_row_statistics(
            a["hidden"], a["weight"], a["y"], **options(a, "bias", "soft_cap", "temperature"), **on
        ),
        "hidden weight y bias soft_cap temperature",
    ),
    "linear_cross_entropy": (
        lambda a, **on: jsoftmax.linear_cross_entropy(
            a["hidden"], a["weight"], a["y"], block_size=2, **options(a, "bias", *LOSS), **on
        ),
        f"hidden weight y bias {' '.join(LOSS)}",
    ),
}


def floats(tree):
    return {n: a for n, a in tree.items() if jnp.issubdtype(a.dtype, jnp.floating)}


def values(found):
    """The float outputs, one after the other."""
    found = found if isinstance(found, tuple) else (found,)
    return tuple(a for a in found if jnp.issubdtype(a.dtype, jnp.floating))


def product(tree, other):
    """The inner product, over all shards."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return sum(_sharding.summed_back(jnp.sum(a * b), frozenset()) for a, b in pairs)


def everything(function, a, tangents, cotangents, **on):
    """Values, gradients and tangents, and the derivative of the gradients, in both modes."""

    def of_floats(f):
        return values(function({**a, **f}, **on))

    def gradients(f):
        return jax.vjp(of_floats, f)[1](cotangents)[0]

    f = floats(a)
    found = {
        "value": function(a, **on),
        "gradient": gradients(f),
        "reverse over reverse": jax.grad(lambda f: product(gradients(f), tangents))(f),
    }
    with jsoftmax.forward_mode():
        found["tangent"] = jax.jvp(of_floats, (f,), (tangents,))[1]
        found["forward over reverse"] = jax.jvp(gradients, (f,), (tangents,))[1]
    return found


def agree(got, want, message=""):
    def close(got, want):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=message)

    jax.tree.map(close, got, want)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_answers_of_one_device(name):
    function, needs = FUNCTIONS[name]
    a = given(*needs.split())
    rng = np.random.default_rng(1)
    tangents = {n: jnp.asarray(rng.normal(size=f.shape), jnp.float32) for n, f in floats(a).items()}
    found = jax.eval_shape(lambda: values(function(a)))
    cotangents = tuple(jnp.asarray(rng.normal(size=f.shape), jnp.float32) for f in found)
    arguments = (a, tangents, cotangents)
    want = jit_quickly(lambda *args: everything(function, *args))(*arguments)
    sharded = jax.shard_map(
        lambda *args: everything(function, *args, axis_name="classes"),
        mesh=MESH,
        in_specs=jax.tree.map(layout, arguments),
        out_specs=jax.tree.map(layout, want),
    )
    got = jit_quickly(sharded)(*arguments)
    for kind in want:
        agree(got[kind], want[kind], kind)
