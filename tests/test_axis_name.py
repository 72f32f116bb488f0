"""Classes sharded within shard_map: the results of one device, and transfers of the rows' size only."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampling
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jsoftmax
from jsoftmax.transforms import _sharding

ROWS, FEATURES, CLASSES = 8, 6, 24
NOWHERE = _sharding.Place(frozenset(), None)  # outside jax.shard_map
MESH = jax.make_mesh((2, 4), ("rows", "classes"), axis_types=(AxisType.Auto,) * 2)


def arrays(seed=0):
    """Rows that are confident, tied between shards, without a live class, with NaN, or with a bad label."""
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
    x[5, :8], where[5, 7] = [20, 0, 0, 0, 0, 0, 0, np.nan], True
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
        "sink": np.sin(np.arange(ROWS) + 0.0),
        "soft_cap": np.array(30),
        "label_smoothing": rng.uniform(0.05, 0.3, ROWS),
        "z_loss": np.array(0.01),
        "hidden": rng.normal(size=(ROWS, FEATURES)),
        "weight": rng.normal(size=(FEATURES, CLASSES)),
        "bias": rng.normal(size=CLASSES),
    }


def layout(a, classes="classes", rows="rows"):
    """The placement of each array, from its lengths."""
    return P(*({ROWS: rows, CLASSES: classes}.get(n) for n in a.shape))


def given(*names):
    found = arrays()
    return {n: jnp.asarray(found[n], jnp.float32 if found[n].dtype == np.float64 else None) for n in names}


def options(a, *names):
    return {name: a[name] for name in names}


def in_segments(function, a, *labels, **options):
    """A function of entries: the classes of a row are the entries of two segments, on all shards."""
    ids = (a["class_weights"] > 1.2).astype(jnp.int32)
    return function(a["x"].T, *labels, ids, 2, where=a["where"].T, **options).T


LOSS = ("class_weights", "label_smoothing", "z_loss", "soft_cap", "temperature")
# Each with its arguments, and how many numbers a row the shards of the classes send, all told: the maximum,
# sums, whether a loss's mask leaves a class, a prediction or a label's weight; on the way back sums, the
# gradients of a temperature and of hidden. Of two segments they send two.
FUNCTIONS = {
    "softmax": (
        lambda a, **on: jsoftmax.softmax(a["x"], where=a["where"], **on),
        "x where",
        [1, 2, 3],
    ),
    "sparsemax": (
        lambda a, **on: jsoftmax.sparsemax(a["x"], where=a["where"], **on),
        "x where",
        [1, 1, 1, 1, 2, 2],
    ),
    "entmax": (
        lambda a, **on: jsoftmax.entmax(
            a["x"], 1 + a["label_smoothing"], where=a["where"], temperature=a["temperature"], **on
        ),
        "x where label_smoothing temperature",
        [1, 1, 1, 1, 1, 1, 1, 2],
    ),
    "entmax_loss": (
        lambda a, **on: jsoftmax.entmax_loss(a["x"], a["y"], where=a["where"], **on),
        "x y where",
        [1, 1, 2, 2, 5],
    ),
    "sparsemax_loss, targets": (
        lambda a, **on: jsoftmax.sparsemax_loss(
            a["x"], a["targets"], where=a["where"], temperature=a["temperature"], **on
        ),
        "x targets where temperature",
        [1, 1, 1, 1, 1, 1, 2, 2],
    ),
    "log_softmax, temperature": (
        lambda a, **on: jsoftmax.log_softmax(a["x"], where=a["where"], temperature=a["temperature"], **on),
        "x where temperature",
        [1, 1, 2, 3],
    ),
    "softmax, sink": (
        lambda a, **on: jsoftmax.softmax(a["x"], where=a["where"], sink=a["sink"], **on),
        "x where sink",
        [1, 2, 3],
    ),
    "log_softmax, sink, temperature": (
        lambda a, **on: jsoftmax.log_softmax(
            a["x"], where=a["where"], sink=a["sink"], temperature=a["temperature"], **on
        ),
        "x where sink temperature",
        [1, 1, 2, 3],
    ),
    "log_odds": (
        lambda a, **on: jsoftmax.log_odds(
            a["x"], a["y"], where=a["where"], temperature=a["temperature"], **on
        ),
        "x y where temperature",
        [1, 1, 1, 2, 2],
    ),
    "focal_loss": (
        lambda a, **on: jsoftmax.focal_loss(a["x"], a["y"], where=a["where"], gamma=a["temperature"], **on),
        "x y where temperature",
        [1, 1, 4],
    ),
    "logsumexp": (
        lambda a, **on: jsoftmax.logsumexp(a["x"], -1, where=a["where"], **on),
        "x where",
        [1, 2],
    ),
    "logsumexp, weighted": (
        lambda a, **on: jsoftmax.logsumexp(a["x"], -1, a["targets"], where=a["where"], **on),
        "x where targets",
        [1, 3],
    ),
    "entropy": (
        lambda a, **on: jsoftmax.entropy(a["x"], where=a["where"], temperature=a["temperature"], **on),
        "x where temperature",
        [1, 1, 3],
    ),
    "log_prob": (
        lambda a, **on: jsoftmax.log_prob(a["x"], a["y"], where=a["where"], **on),
        "x y where",
        [1, 4],
    ),
    "kl_divergence": (
        lambda a, **on: jsoftmax.kl_divergence(
            a["x"], a["other"], where=a["where"], temperature=a["temperature"], **on
        ),
        "x other where temperature",
        [1, 1, 1, 1, 1, 2, 2, 2],
    ),
    "row_statistics": (
        lambda a, **on: jsoftmax.row_statistics(
            a["x"], a["y"], where=a["where"], **options(a, "soft_cap", "temperature"), **on
        ),
        "x y where soft_cap temperature",
        [1, 1, 1, 5],
    ),
    "cross_entropy, ids": (
        lambda a, **on: jsoftmax.cross_entropy(a["x"], a["y"], where=a["where"], **options(a, *LOSS), **on),
        f"x y where {' '.join(LOSS)}",
        [1, 1, 1, 1, 7],
    ),
    "cross_entropy, targets": (
        lambda a, **on: jsoftmax.cross_entropy(
            a["x"], a["targets"], where=a["where"], **options(a, *LOSS[:2], "temperature"), **on
        ),
        f"x targets where temperature {' '.join(LOSS[:2])}",
        [1, 1, 1, 3, 7],
    ),
    "segment_softmax": (
        partial(in_segments, jsoftmax.segment_softmax),
        "x where class_weights",
        [2] * 4,
    ),
    "segment_log_softmax, temperature": (
        lambda a, **on: in_segments(
            jsoftmax.segment_log_softmax,
            a,
            temperature=jnp.outer(jnp.array([1.0, 2]), a["temperature"]),
            **on,
        ),
        "x where class_weights temperature",
        [2] * 6,
    ),
    "segment_logsumexp, temperature": (
        lambda a, **on: in_segments(jsoftmax.segment_logsumexp, a, temperature=a["temperature"], **on),
        "x where class_weights temperature",
        [2] * 4,
    ),
    "segment_cross_entropy, ids, weights": (  # each label is that of one segment, and bad for the other
        lambda a, **on: in_segments(
            jsoftmax.segment_cross_entropy, a, jnp.stack([a["y"]] * 2), weights=a["label_smoothing"], **on
        ),
        "x y where class_weights label_smoothing",
        [2] * 6,
    ),
    "segment_cross_entropy, targets": (
        lambda a, **on: in_segments(jsoftmax.segment_cross_entropy, a, a["targets"].T, **on),
        "x targets where class_weights",
        [2] * 7,
    ),
    "linear_row_statistics": (
        lambda a, **on: jsoftmax.linear_row_statistics(
            a["hidden"], a["weight"], a["y"], **options(a, "bias", "temperature"), **on
        ),
        "hidden weight y bias temperature",
        [1, 1, 1, 5, 6],
    ),
    "linear_cross_entropy": (
        lambda a, **on: jsoftmax.linear_cross_entropy(
            a["hidden"],
            a["weight"],
            a["y"],
            block_size=(2, 4 if on else CLASSES),
            **options(a, "bias", *LOSS[:2]),
            **on,
        ),
        f"hidden weight y bias {' '.join(LOSS[:2])}",
        [0.5, 1, 3.5, 6],  # blocks of half of the rows
    ),
}


def floats(tree):
    return {n: a for n, a in tree.items() if jnp.issubdtype(a.dtype, jnp.floating)}


def values(found):
    """All float outputs, concatenated."""
    found = found if isinstance(found, tuple) else (found,)
    return tuple(a for a in found if jnp.issubdtype(a.dtype, jnp.floating))


def product(tree, other):
    """The inner product over all shards."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return sum(_sharding.sharded_like_argument(jnp.sum(a * b), NOWHERE) for a, b in pairs)


def derivatives(function, a, tangents, cotangents, **on):
    """The derivative of the gradients, and the tangents and gradients of forward mode."""

    def of_floats(f):
        return values(function({**a, **f}, **on))

    def gradients(f):
        return jax.vjp(of_floats, f)[1](cotangents)[0]

    f = floats(a)
    found = {"second derivative": jax.grad(lambda f: product(gradients(f), tangents))(f)}
    with jsoftmax.forward_mode():
        found["tangent"] = jax.jvp(of_floats, (f,), (tangents,))[1]
        found["gradient, forward mode"] = gradients(f)
    return found


def value_and_gradients(function, a, cotangents):
    """Value and gradients of the function, sharded or not."""

    def of_floats(f):
        found = function({**a, **f})
        return values(found), found

    _, back, found = jax.vjp(of_floats, floats(a), has_aux=True)
    return found, back(cotangents)[0]


def agree(got, want, message=""):
    def close(got, want):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=message)

    jax.tree.map(close, got, want)


def sent(compiled, over):
    """The transfers within groups of this many devices: kinds, and the sorted sizes of their arrays."""
    kinds, sizes = set(), []
    pattern = r"= (.*?) (all-\w+(?:-\w+)?|reduce-scatter|collective-\w+)\(.*replica_groups=(.*?), \w+="
    for arrays, kind, groups in re.findall(pattern, compiled.as_text()):
        if groups.startswith("mesh"):
            members = math.prod(MESH.shape[name] for name in re.findall(r"'(\w+)'", groups.split("{")[1]))
        else:
            members = groups[2:].index("}") // 2 + 1  # {{0,1,2,3},{4,5,6,7}}
        if members == over:
            kinds.add(kind)
            shapes = re.findall(r"\w+\[([\d,]*)\]", arrays)
            sizes += [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]
    return kinds, sorted(sizes)


def drawn(name):
    """A function and its arguments; the shapes of its outputs; tangents and cotangents."""
    function, needs, _ = FUNCTIONS[name]
    a = given(*needs.split())
    rng = np.random.default_rng(1)
    tangents = {n: jnp.asarray(rng.normal(size=f.shape), jnp.float32) for n, f in floats(a).items()}
    outputs = jax.eval_shape(lambda: function(a))
    cotangents = tuple(jnp.asarray(rng.normal(size=f.shape), jnp.float32) for f in values(outputs))
    return function, outputs, a, tangents, cotangents


@pytest.mark.share(6)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_answers_of_one_device(name):
    function, outputs, a, _, cotangents = drawn(name)
    want = jax.jit(partial(value_and_gradients, function))(a, cotangents)
    sharded = jax.shard_map(
        lambda a: function(a, axis_name="classes"),
        mesh=MESH,
        in_specs=(jax.tree.map(layout, a),),
        out_specs=jax.tree.map(layout, outputs),
    )
    whole = jax.jit(partial(value_and_gradients, sharded)).lower(a, cotangents).compile()
    agree(whole(a, cotangents), want)
    kinds, sizes = sent(whole, over=4)
    assert kinds == {"all-reduce"}
    assert [n / (ROWS // 2) for n in sizes] == FUNCTIONS[name][2]


# The functions whose rules the other functions share.
RULES = (
    "softmax",
    "log_softmax, temperature",
    "logsumexp",
    "entropy",
    "cross_entropy, ids",
    "linear_cross_entropy",
)


@pytest.mark.share(4)
@pytest.mark.parametrize("name", sampling.sample(FUNCTIONS, *RULES))
def test_derivatives_are_those_of_one_device(name):
    """The derivative of the gradients, and the tangents and gradients of forward mode."""
    function, _, *arguments = drawn(name)
    want = jax.jit(partial(derivatives, function))(*arguments)
    within = jax.shard_map(
        lambda *arguments: derivatives(function, *arguments, axis_name="classes"),
        mesh=MESH,
        in_specs=jax.tree.map(layout, tuple(arguments)),
        out_specs=jax.tree.map(layout, want),
    )
    agree(jax.jit(within)(*arguments), want)


def run(function, specs, out, *arguments):
    return jax.jit(jax.shard_map(function, mesh=MESH, in_specs=specs, out_specs=out))(*arguments)


def test_several_axes_hold_the_classes_in_the_order_of_their_names():
    a = given("x", "y", "class_weights")
    a["y"] = a["y"].astype(jnp.int8)

    def found(a, **on):
        losses = jsoftmax.cross_entropy(a["x"], a["y"], class_weights=a["class_weights"], **on)
        return losses, jsoftmax.row_statistics(a["x"], a["y"], **on)

    want = jax.jit(found)(a)
    for names in (("rows", "classes"), ("classes", "rows")):
        specs = {"x": P(None, names), "y": P(), "class_weights": P(names)}
        agree(run(lambda a, names=names: found(a, axis_name=names), (specs,), P(), a), want)


def test_a_confident_row_keeps_its_digits():
    """On whichever shard its class is, compared in ulp: 4, and the gap more for gradients and tiny losses."""
    gap = 60
    y = jnp.arange(ROWS) * 3
    x = arrays()["other"].astype(np.float32)
    x[np.arange(ROWS), y] = gap

    def found(x, y, **on):
        losses = jsoftmax.cross_entropy(x, y, **on), jsoftmax.entropy(x, **on)
        in_x = jax.grad(lambda x: jsoftmax.cross_entropy(x, y, reduction="sum", **on))(x)
        return *losses, in_x, jsoftmax.log_softmax(x, **on)

    want = jax.jit(found)(x, y)
    assert np.all((want[0] > 0) & (want[0] < 1e-20))
    got = run(
        lambda *a: found(*a, axis_name="classes"), (layout(x), layout(y)), jax.tree.map(layout, want), x, y
    )
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_max_ulp(np.asarray(g), np.asarray(w), 4 + gap)


@pytest.mark.long
@pytest.mark.share(2)
def test_a_mean_over_the_mesh_counts_each_row_once():
    """Ignored rows count on no shard, though one shard has more of them; an option counts once per row."""
    a = given("hidden", "weight", "class_weights", "y", "z_loss", "soft_cap")
    a["y"] = jnp.array([0, -1, -1, -1, 7, 5, -1, 9])
    a |= {"label_smoothing": jnp.float32(0.1), "temperature": jnp.float32(0.7)}

    def loss(a, **on):
        h, w, y = a["hidden"], a["weight"], a["y"]
        more = {"ignore_index": -1, **options(a, *LOSS), **on}
        return (
            jsoftmax.linear_cross_entropy(h, w, y, reduction="mean", **more)
            + jsoftmax.cross_entropy(h @ w, y, ignore_index=-1, reduction="mean", **on)
            + jsoftmax.cross_entropy(h @ w, y, reduction="sum", **more)
            + jsoftmax.linear_cross_entropy(h, w, jnp.maximum(y, 0), reduction="mean", **on)
        )

    def gradients(a, **on):
        return jax.value_and_grad(lambda f: loss({**a, **f}, **on))(floats(a))

    specs = jax.tree.map(layout, a)
    on = {"axis_name": "classes", "row_axis_name": "rows"}
    out = P(), {n: specs[n] for n in floats(a)}
    agree(run(lambda a: gradients(a, **on), (specs,), out, a), jax.jit(gradients)(a))


@pytest.mark.long
@pytest.mark.share(3)
@pytest.mark.parametrize("mask", ["both", "rows", "classes"])
def test_a_mean_counts_no_row_that_is_masked_on_every_shard(mask):
    """With a mask of rows and classes, of rows only, and of classes only."""
    a = given("x", "y", "targets", "class_weights")
    a["y"] = jnp.where(jnp.arange(ROWS) == 3, -7, a["y"] % CLASSES)
    shard = jnp.arange(CLASSES)[None] // (CLASSES // 4)
    rows = jnp.arange(ROWS)[:, None]
    where = {
        "both": (shard != rows % 4) & (rows % 5 != 3),
        "rows": rows % 5 != 3,
        "classes": shard != 3,
    }[mask]
    a["y"], a["x"] = jnp.where(a["y"] // 6 == rows[:, 0] % 4, 0, a["y"]), jnp.nan_to_num(a["x"])

    def mean(a, where, **on):
        def of(x):
            live = jnp.where(where, a["targets"], 0)
            return (
                jsoftmax.cross_entropy(x, a["y"], where=where, reduction="mean", **on)
                + jsoftmax.cross_entropy(
                    x, a["y"], where=where, reduction="mean", class_weights=a["class_weights"], **on
                )
                + jsoftmax.cross_entropy(x, live, where=where, reduction="mean", **on)
            )

        return jax.value_and_grad(of)(a["x"])

    kept = np.array([0, 1, 2, 4, 5, 6, 7])
    few = {n: v if n == "class_weights" else v[kept] for n, v in a.items()}
    want = jax.jit(mean)(few, where[kept] if len(where) > 1 else where)
    on = {"axis_name": "classes", "row_axis_name": "rows"}
    specs = jax.tree.map(layout, (a, where))
    value, gradient = run(lambda a, w: mean(a, w, **on), specs, (P(), layout(a["x"])), a, where)
    if mask == "classes":
        assert np.isnan(value)  # the bad label, in a row that counts
    else:
        agree((value, gradient[kept]), want)
        assert not gradient[3].any()


def test_a_head_of_which_the_last_shard_is_shorter():
    """The padding has a bias of −inf."""
    a = given("hidden", "weight", "bias", "y", "label_smoothing")
    a["y"] = jnp.minimum(a["y"], CLASSES - 4)
    live = jnp.arange(CLASSES) < CLASSES - 3
    padded = {**a, "bias": jnp.where(live, a["bias"], -jnp.inf), "weight": jnp.where(live, a["weight"], 0)}
    a = {**a, "bias": a["bias"][:-3], "weight": a["weight"][:, :-3]}

    def loss(h, w, b, y, alpha, **on):
        return jsoftmax.linear_cross_entropy(h, w, y, bias=b, label_smoothing=alpha, reduction="sum", **on)

    order = ("hidden", "weight", "bias", "y", "label_smoothing")
    want = jax.jit(jax.grad(loss, (0, 1, 4)))(*(a[n] for n in order))
    specs = tuple(layout(padded[n]) for n in order)
    got = run(
        lambda *a: jax.grad(loss, (0, 1, 4))(*a, axis_name="classes", row_axis_name="rows"),
        specs,
        tuple(specs[i] for i in (0, 1, 4)),
        *(padded[n] for n in order),
    )
    agree((got[0], got[1][:, :-3], got[2]), want)
    assert not got[1][:, -3:].any()


def test_a_sampled_gradient_of_sharded_classes():
    """The shards have different keys, and the loss is the same on all shards of the classes."""
    a = given("hidden", "weight")
    y = jnp.arange(ROWS) % CLASSES

    def losses(h, w, y, **on):
        return jsoftmax.linear_cross_entropy(h, w, y, **on)

    def sampled(h, w, y):
        on = {"axis_name": "classes", "gradient": "sampled", "key": jax.random.key(0), "keep": 1.0}
        mean = losses(h, w, y, reduction="mean", row_axis_name="rows", **on)
        return losses(h, w, y, **on), mean

    def total(function):
        def total(h, w):
            each, mean = function(h, w, y)
            return jnp.sum(jnp.sin(each)) + mean, each

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(a["hidden"], a["weight"])

    specs = P("rows"), P(None, "classes"), P("rows")
    within = jax.shard_map(sampled, mesh=MESH, in_specs=specs, out_specs=(P("rows"), P()))
    agree(total(within), total(lambda h, w, y: (losses(h, w, y), losses(h, w, y, reduction="mean"))))


def test_rows_gathered_from_the_shards_of_the_classes():
    """Sequence parallel: hidden varies over the axis but is equal on it; its gradient is scattered."""
    a = given("hidden", "weight", "y")
    y = jnp.minimum(a["y"], CLASSES - 1)

    def loss(h, w, **on):
        return jsoftmax.linear_cross_entropy(h, w, y, reduction="mean", **on)

    def of_part(h, w):
        return loss(jax.lax.all_gather(h, "classes", axis=0, tiled=True), w, axis_name="classes")

    specs = P("classes"), P(None, "classes")
    got = run(jax.grad(of_part, (0, 1)), specs, specs, a["hidden"], a["weight"])
    agree(got, jax.jit(jax.grad(loss, (0, 1)))(a["hidden"], a["weight"]))


@pytest.mark.long
@pytest.mark.share(2)
def test_shards_within_vmap():
    a = given("x", "other", "y")

    def found(x, other, y, **on):
        def of_row(x, other, y):
            return jsoftmax.cross_entropy(x, y, z_loss=0.1, **on), jsoftmax.js_divergence(x, other, **on)

        def total(x, other):
            return jnp.nansum(jnp.stack(jax.vmap(of_row)(x, other, y)))

        return jax.vmap(of_row)(x, other, y), jax.grad(total, (0, 1))(x, other)

    x, rows = layout(a["x"]), layout(a["y"])
    got = run(lambda *a: found(*a, axis_name="classes"), (x, x, rows), ((rows, rows), (x, x)), *a.values())
    agree(got, jax.jit(found)(*a.values()))


def head_step(hidden, shard, labels):
    """A step with the weight's features sharded along the rows (FSDP), its classes over the other axis."""

    def loss(hidden, shard):
        weight = jax.lax.all_gather(shard, "rows", axis=0, tiled=True)
        return jsoftmax.linear_cross_entropy(
            hidden,
            weight,
            labels,
            ignore_index=-1,
            reduction="mean",
            axis_name="classes",
            row_axis_name="rows",
        )

    return jax.value_and_grad(loss, (0, 1))(hidden, shard)


def test_a_head_sharded_over_rows_features_and_classes():
    """Per device: its shard of the weight, one block of logits, and numbers of rows."""
    specs = (P("rows"), P("rows", "classes"), P("rows"))
    step = jax.jit(jax.shard_map(head_step, mesh=MESH, in_specs=specs, out_specs=(P(), specs[:2])))
    a = given("hidden", "weight", "y")
    y = jnp.minimum(a["y"].at[0].set(-1), CLASSES - 1)

    def whole(h, w):
        return jsoftmax.linear_cross_entropy(h, w, y, ignore_index=-1, reduction="mean")

    want = jax.jit(jax.value_and_grad(whole, (0, 1)))(a["hidden"], a["weight"])
    agree(step(a["hidden"], a["weight"], y), want)

    rows, features, classes = 2**14, 128, 2**16
    shapes = ((rows, features), jnp.bfloat16), ((features, classes), jnp.bfloat16), ((rows,), jnp.int32)
    compiled = step.lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)).compile()
    rows, classes = rows // 2, classes // 4  # per device
    plan = jsoftmax.linear_plan(rows, features, classes)
    block = plan.block_rows
    assert sent(compiled, 4) == ({"all-reduce"}, [block, 4 * block, rows * features])
    kinds, sizes = sent(compiled, 2)  # the sum and the count; the gathered weight, and its scattered gradient
    assert kinds == {"all-reduce", "all-gather", "reduce-scatter"}
    assert sizes == [2, features // 2 * classes, features * classes]
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes == 2 * (rows + classes // 2) * features + 4 * rows
    print(
        memory.temp_size_in_bytes / 2**20, plan, features * classes * 4 / 2**20, rows * features * 4 / 2**20
    )
    assert plan.row_blocks == 8
    assert memory.temp_size_in_bytes < 2.5 * plan.block_bytes + 4 * features * (2 * classes + 2 * rows)


WRONG = {
    "no shards": (
        lambda a: jsoftmax.softmax(a["weight"], axis_name="classes"),
        r"softmax\(.*axis_name='classes'\): x does not vary over axis_name 'classes'; shard it over",
    ),
    "a weight on every shard": (
        lambda a: jsoftmax.linear_row_statistics(a["hidden"], a["weight"], a["y"], axis_name="classes"),
        "weight does not vary over axis_name 'classes'",
    ),
    "labels of a shard": (
        lambda a: jsoftmax.cross_entropy(a["x"], jnp.argmax(a["x"], -1), axis_name="classes"),
        r"labels varies over 'classes'; .*write lax.pmax\(labels, axis_name\)",
    ),
    "another mesh": (
        lambda a: jsoftmax.logsumexp(a["x"], -1, axis_name=("classes", "model")),
        "axis_name 'model' is not a mesh axis here; call it within a jax.shard_map",
    ),
    "rows of no sum": (
        lambda a: jsoftmax.cross_entropy(a["x"], a["y"], axis_name="classes", row_axis_name="rows"),
        'the reduction is "none"; write reduction="mean"',
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_call_is_refused_in_words(call, message):
    a = given("x", "y", "hidden", "weight")
    specs = {**jax.tree.map(layout, a), "weight": P()}
    with pytest.raises(ValueError, match=rf"^jsoftmax\.(?s:.*){message}"):
        jax.eval_shape(jax.shard_map(call, mesh=MESH, in_specs=(specs,), out_specs=P()), a)
