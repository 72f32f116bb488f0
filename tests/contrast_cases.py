"""Batches of features with their positives and weights, for the tests of contrastive losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jsoftmax

ROWS, OTHERS, FEATURES = 13, 8, 3


def arrays(seed=0, others=ROWS):
    rng = np.random.default_rng(seed)
    a, b = (jnp.asarray(rng.normal(size=(n, FEATURES))) for n in (ROWS, others))
    return a, b, jnp.asarray(0.7)


LABELS = np.array([0, 3, 3, 7, 1, 0, 6, 6, 6, 2, 0, 1, 3])  # none has the positive 4 or 5
CLASSES = np.array([0, 1, 2, 0, 1, 2, 0, 5, 5, 0, 4, 2, 2])  # the last but two is alone
WEIGHTS = np.array([1.0, 0, 2, 0.5, 1, 1, 0, 3, 1, -0.5, 1, 0, 1])
EYE = np.eye(ROWS, dtype=bool)
OF_LABELS = LABELS[:, None] == np.arange(OTHERS)
VIEWS = (np.arange(ROWS) + 5) % ROWS
BOTH = (WEIGHTS[:, None] != 0) & (WEIGHTS != 0)

# What `b` is, the options, and the arguments of the definition.
CASES = {
    "pairs": ("paired", {}, {"hits": EYE}),
    "pairs, weights": (
        "paired",
        {"weights": WEIGHTS},
        {"hits": EYE, "live": BOTH, "weights": WEIGHTS, "column_weights": WEIGHTS},
    ),
    "InfoNCE, weights": (
        "paired",
        {"symmetric": False, "weights": WEIGHTS},
        {"hits": EYE, "live": BOTH, "weights": WEIGHTS, "symmetric": False},
    ),
    "labels": ("others", {"labels": LABELS}, {"hits": OF_LABELS}),
    "labels, weights": (
        "others",
        {"labels": LABELS, "weights": WEIGHTS},
        {"hits": OF_LABELS, "live": (WEIGHTS != 0)[:, None], "weights": WEIGHTS},
    ),
    "labels, one direction": (
        "others",
        {"labels": LABELS, "symmetric": False},
        {"hits": OF_LABELS, "symmetric": False},
    ),
    "ids, weights": (
        "paired",
        {"positives": CLASSES, "weights": WEIGHTS},
        {
            "hits": CLASSES[:, None] == CLASSES,
            "live": BOTH,
            "weights": WEIGHTS,
            "column_weights": WEIGHTS,
        },
    ),
    "two ids": (
        "others",
        {"positives": (CLASSES, np.array([2, 0, 0, 1, 9, 5, 5, 2]))},
        {"hits": CLASSES[:, None] == np.array([2, 0, 0, 1, 9, 5, 5, 2])},
    ),
    "a mask, one direction": (
        "others",
        {"positives": OF_LABELS ^ (np.arange(OTHERS) == 2), "symmetric": False},
        {"hits": OF_LABELS ^ (np.arange(OTHERS) == 2), "symmetric": False},
    ),
    "itself, labels": (
        "itself",
        {"labels": VIEWS},
        {"hits": VIEWS[:, None] == np.arange(ROWS), "live": ~EYE},
    ),
    "itself, ids, weights": (
        "itself",
        {"positives": CLASSES, "weights": WEIGHTS},
        {
            "hits": CLASSES[:, None] == CLASSES,
            "live": BOTH & ~EYE,
            "weights": WEIGHTS,
            "column_weights": WEIGHTS,
        },
    ),
}


def of_sixteen(name):
    """The features, T and the options of a case with 16 rows: the further ones have their own positives."""
    kind, options, _ = CASES[name]
    a, b, t = arrays(others=OTHERS if kind == "others" else ROWS)
    a, b = (jnp.concatenate([x, arrays(seed=5)[0][: 16 - len(x)]]) for x in (a, b))
    options = dict(options)
    for key, more in (("weights", [1.0, 0, 2]), ("labels", [15, 2, 9]), ("positives", [0, 7, 7])):
        if key in options and np.ndim(options[key]) == 1:
            options[key] = jnp.concatenate([options[key], jnp.asarray(more, options[key].dtype)])
    if name.startswith("a mask"):
        options["positives"] = np.arange(16)[:, None] % 3 == np.arange(16) % 4
        b = arrays(seed=6)[1][:8].repeat(2, 0)
    return a, b, t, options


def agree(got, want, rtol=1e-10, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def whole(rng, rows, high=3):
    """Features whose products float32 holds exactly."""
    return rng.integers(-high, high + 1, (rows, 4)).astype(np.float32)


def lowered(function, rows=8192, features=512, numbers=1):
    """A step of a loss of two batches and of some numbers, lowered."""
    given = [jax.ShapeDtypeStruct((rows, features), jnp.float32)] * 2
    given += [jax.ShapeDtypeStruct((), jnp.float32)] * numbers
    return jax.jit(jax.value_and_grad(function, tuple(range(2 + numbers)))).lower(*given)


def agree_in_sixteen_bits(loss):
    """The loss is in float32, as of the widened features; gradients are rounded once, after dz is."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(40, 16)), jnp.bfloat16) for _ in "ab")
    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    (value, gradients), (want, wide) = step(a, b), step(*(x.astype(jnp.float32) for x in (a, b)))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, want, rtol=1e-6)
    for got, exact in zip(gradients, wide, strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            got.astype(jnp.float32), exact, rtol=2**-7, atol=2**-8 * jnp.max(abs(exact))
        )


def agree_without_hidden_rows(steps, *numbers):
    """``steps(a, b, weights, *numbers, ids)``, losses with their gradients, are those of the other rows."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(6, 4)), jnp.float32) for _ in "ab")
    weights = jnp.asarray([1.0, 0, 2, 1, 0, 1])
    kept = np.flatnonzero(weights)
    bad = [x.at[jnp.asarray([1, 4])].set(value) for x, value in ((a, np.nan), (b, jnp.inf))]
    ids = jnp.asarray([0, 1, 0, 1, 1, 1])
    with jax.debug_nans(True):
        found = steps(*bad, weights, *numbers, ids)
    want = steps(*(x[kept] for x in (a, b, weights)), *numbers, ids[kept])
    for (got, gradients), (value, of_kept) in zip(found, want, strict=True):
        agree((got, *gradients[3:]), (value, *of_kept[3:]), rtol=1e-5)
        for g, of_few in zip(gradients[:3], of_kept[:3], strict=True):
            agree(g[kept], of_few, rtol=1e-4, atol=1e-6)
            assert not np.any(np.delete(g, kept, 0))


def agree_when_sharded(loss, given, options):
    """``loss(a, b, *numbers, options, axis_name=…)`` and its gradients, on 2 × 4 devices and on one."""
    axes, wanted = ("x", "y"), range(len(given))
    mesh = jax.make_mesh((2, 4), axes, axis_types=(AxisType.Auto,) * 2)
    rows = P(axes)
    of_given = rows, rows, *(P() for _ in given[2:])
    specs = *of_given, dict.fromkeys(options, rows)

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=specs, out_specs=(P(), of_given))
    def sharded(*given):
        return jax.value_and_grad(functools.partial(loss, axis_name=axes), wanted)(*given)

    agree(sharded(*given, options), jax.jit(jax.value_and_grad(loss, wanted))(*given, options))


def agree_tangents_when_sharded(loss, given, along):
    """The tangent of ``loss(a, b, *numbers, axis_name=…)``, on 4 devices and on one."""
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    rows = P("rows"), P("rows"), *(P() for _ in given[2:])

    def tangent(given, along, **on):
        with jsoftmax.forward_mode():
            return jax.jvp(functools.partial(loss, **on), given, along)

    sharded = jax.shard_map(
        functools.partial(tangent, axis_name="rows"), mesh=mesh, in_specs=(rows, rows), out_specs=(P(), P())
    )
    agree(jax.jit(sharded)(given, along), jax.jit(tangent)(given, along))


def agree_under_jit(losses, kind, *numbers):
    """``losses(a, b, *numbers, ids)`` and its gradients, with rows on 8 devices and on one."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(16, 4)), jnp.float32) for _ in "ab")
    ids = jnp.arange(16) // 3
    step = jax.jit(jax.value_and_grad(losses, range(2 + len(numbers))))
    want = step(a, b, *numbers, ids)
    with jax.set_mesh(mesh):
        a, b, ids = (jax.device_put(x, NamedSharding(mesh, P("rows"))) for x in (a, b, ids))
        got = step(a, b, *numbers, ids)
    agree(jax.device_get(got), jax.device_get(want), rtol=1e-5, atol=1e-6)


A, B = jnp.ones((4, 3)), jnp.ones((5, 3))
WRONG = {
    "one axis": ((A[0], B), {}, "a has the shape .*; give it two axes"),
    "features": ((A, B[:, :2]), {}, "a has 3 features, and b 2"),
    "rows": ((A, B), {}, "a has 4 rows, and b 5; give both the same number, or labels"),
    "no rows": ((A, B[:0]), {"labels": jnp.zeros(4, int)}, "b has no rows"),
    "both": ((A, B), {"labels": jnp.zeros(4, int), "positives": jnp.zeros(4, int)}, "give one of them"),
    "itself": ((A, None), {}, "no row is its own positive; give labels"),
    "labels": ((A, B), {"labels": jnp.zeros(5, int)}, r"class ids of shape \(5,\) for rows of shape \(4,\)"),
    "float labels": ((A, B), {"labels": jnp.zeros(4)}, "labels have dtype float32"),
    "ids": ((A, B), {"positives": jnp.zeros(4, int)}, r"two arrays of ids, of shapes \(4,\) and \(5,\)"),
    "float ids": ((A, A), {"positives": jnp.zeros(4)}, "positives has dtype float32"),
    "wide ids": ((A, A), {"positives": np.full(4, 2**40)}, "more than 32 bits"),
    "a pair": (
        (A, B),
        {"positives": (jnp.zeros(4, int), jnp.zeros(4, int))},
        r"positives\[1\] has the shape",
    ),
    "a mask": ((A, B), {"positives": jnp.ones((5, 4), bool)}, r"give a mask of shape \(4, 5\)"),
    "weights": ((A, A), {"weights": jnp.ones(3)}, r"weights of shape \(3,\)"),
    "no temperature": ((A, A), {"temperature": None}, "there is no temperature"),
    "temperature": ((A, A), {"temperature": 0.0}, "temperature is 0.0; write a finite number, not 0"),
    "temperatures": ((A, A), {"temperature": jnp.ones(4)}, r"temperature of shape \(4,\); give one number"),
    "block": ((A, A), {"block_size": 0}, "block_size is 0"),
    "axis": ((A, A), {"axis_name": "rows"}, "axis_name 'rows' is not a mesh axis here"),
}
