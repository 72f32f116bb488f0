"""Divergences of heads, sparse targets and largest log-probabilities: eight devices agree with one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jsoftmax
from jsoftmax import SparseTargets

ROWS, FEATURES, CLASSES, K = 8, 6, 24, 3


def mesh(kind):
    return jax.make_mesh((2, 4), ("rows", "classes"), axis_types=(kind,) * 2)


def arrays():
    rng = np.random.default_rng(0)
    sizes = {"h": (ROWS, FEATURES), "w": (FEATURES, CLASSES), "g": (ROWS, FEATURES), "v": (FEATURES, CLASSES)}
    floats = {name: jnp.asarray(rng.normal(size=size), jnp.float32) for name, size in sizes.items()}
    ids = jnp.asarray(np.stack([rng.permutation(CLASSES)[:K] for _ in range(ROWS)]), jnp.int32)
    others = {
        "ids": ids,
        "log_probs": jnp.log(jnp.asarray(rng.dirichlet(np.ones(K + 1), ROWS)[:, :K], jnp.float32)),
        "y": jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32),
        "weights": jnp.asarray(rng.uniform(0, 2, ROWS), jnp.float32),
        "where": jnp.asarray(rng.random(CLASSES) < 0.8).at[jnp.arange(0, CLASSES, 3)].set(True),
    }
    return floats | others


SPECS = {
    "h": P("rows"),
    "w": P(None, "classes"),
    "g": P("rows"),
    "v": P(None, "classes"),
    "ids": P("rows"),
    "log_probs": P("rows"),
    "y": P("rows"),
    "weights": P("rows"),
    "where": P("classes"),
}


def by_heads(a, **on):
    heads = [a[name] for name in ("h", "w", "g", "v")]
    options = {"weights": a["weights"], "where": a["where"], "block_size": 4}
    return (
        jsoftmax.linear_kl_divergence(*heads, **options, **on),
        jsoftmax.linear_js_divergence(*heads, beta=0.3, **options, **on),
    )


def by_few(a, **on):
    p, x = SparseTargets(a["ids"], a["log_probs"]), a["h"] @ a["w"]
    options = {"weights": a["weights"]}
    return (
        jsoftmax.sparse_kl_divergence(p, x, **options, **on),
        jsoftmax.cross_entropy(x, p, z_loss=0.1, **options, **on),
        jsoftmax.linear_sparse_kl_divergence(p, a["h"], a["w"], block_size=4, **options, **on),
        jsoftmax.linear_cross_entropy(a["h"], a["w"], p, **options, **on),
    )


def by_largest(a, **on):
    found = jsoftmax.linear_top_log_probs(a["h"], a["w"], 7, labels=a["y"], block_size=4, **on)
    top = jsoftmax.top_log_probs(a["h"] @ a["w"], 7, labels=a["y"], **on)
    ids = jnp.stack([found.ids - top.ids, found.label_rank[:, None] - top.label_rank[:, None] + 0 * top.ids])
    return (
        found.label_log_prob,
        found.log_normalizer,
        jnp.sum(found.log_probs, -1),
        jnp.sum(top.log_probs, -1),
        jnp.sum(ids, (0, 2)).astype(jnp.float32),
    )


FUNCTIONS = {"heads": by_heads, "few": by_few, "largest": by_largest}
FLOATS = ("h", "w", "g", "v", "log_probs", "weights")


def agree(got, want):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), got, want)


def value_and_gradients(function, a, **on):
    def total(f):
        found = function({**a, **f}, **on)
        return sum(jnp.sum(jnp.sin(out)) for out in found), found

    (_, found), gradients = jax.value_and_grad(total, has_aux=True)({n: a[n] for n in FLOATS})
    return found, gradients


@pytest.mark.long
@pytest.mark.share(3)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_and_classes_within_shard_map(name):
    """Values and gradients equal those of one device; the shards communicate by all-reduce only."""
    a, function = arrays(), FUNCTIONS[name]
    want = jax.jit(functools.partial(value_and_gradients, function))(a)

    def on_shards(a):
        return value_and_gradients(function, a, axis_name="classes")

    out = tuple(P("rows") for _ in want[0]), {n: SPECS[n] for n in FLOATS}
    within = jax.shard_map(on_shards, mesh=mesh(AxisType.Auto), in_specs=(SPECS,), out_specs=out)
    compiled = jax.jit(within).lower(a).compile()
    agree(compiled(a), want)
    sent = set(re.findall(r" (all-\w+|collective-\w+|reduce-scatter)\(", compiled.as_text()))
    assert sent == {"all-reduce"}


@pytest.mark.long
@pytest.mark.share(3)
@pytest.mark.diagonal
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("name", ["heads", "few"])
@pytest.mark.parametrize(
    ("rows", "classes"), [("rows", None), (None, "classes"), ("rows", "classes")], ids=str
)
def test_under_jit(rows, classes, name, kind, several_devices):
    a, on = arrays(), mesh(kind)
    f = jax.jit(functools.partial(value_and_gradients, FUNCTIONS[name]))
    want = f(a)
    with jax.set_mesh(on):
        names = {"rows": rows, "classes": classes}
        specs = {n: P(*(names.get(axis) for axis in spec)) for n, spec in SPECS.items()}
        sharded = {n: jax.device_put(a[n], NamedSharding(on, specs[n])) for n in a}
        agree(f(sharded), want)
