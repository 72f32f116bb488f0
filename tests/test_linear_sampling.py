"""Draws from a linear head equal those from its logits, with their derivatives, in less memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_sampling import KEY, has_law, softmax

import jsoftmax
from jsoftmax import sampling

B, D, V = 24, 8, 5003


def head(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    arrays = (rng.normal(size=s) for s in ((B, D), (D, V), (V,)))
    hidden, weight, bias = (jnp.asarray(a, dtype) for a in arrays)
    return hidden, weight, bias.at[:7].set(-jnp.inf)


def dense(hidden, weight, bias=None, soft_cap=None, **options):
    """A draw from the array of all logits, computed as in the head."""
    x = jnp.matmul(hidden, weight, preferred_element_type=jnp.float32)
    x = x if bias is None else x + bias.astype(jnp.float32)[None]
    x = x if soft_cap is None else jnp.where(jnp.isinf(x), x, soft_cap * jnp.tanh(x / soft_cap))
    return sampling.categorical(KEY, x, **options)


OPTIONS = {
    "plain": {},
    "rows and classes in blocks": {"block_size": (7, 1024)},
    "all at once": {"backend": "xla"},
    "cap and temperature": {"soft_cap": 3.0, "temperature": np.linspace(0.3, 2, B, dtype=np.float32)},
    "some are greedy": {"temperature": np.arange(B, dtype=np.float32) % 3 / 2, "block_size": (7, 1024)},
    "all are": {"temperature": 0},
    "in the other order": {"temperature": -0.7},
}


@pytest.mark.long
@pytest.mark.share(8)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_draws_are_those_from_the_logits(name):
    """The two best of 5003 scores are closer than the rounding of the logits about once in 10⁴ rows."""
    arrays, options = head(), OPTIONS[name]
    drawn = jax.jit(lambda h, w, b: sampling.linear_categorical(KEY, h, w, bias=b, **options))(*arrays)
    others = {k: v for k, v in options.items() if k not in ("block_size", "backend")}
    wanted = jax.jit(lambda *a: dense(*a, **others))(*arrays)
    np.testing.assert_array_equal(drawn.ids, wanted.ids)
    assert (drawn.ids >= 7).all()
    np.testing.assert_allclose(drawn.log_probs, wanted.log_probs, rtol=2e-5, atol=1e-6)


def test_a_head_scores_draws_within_the_kept_classes():
    """Its mask gives the log-probability in the kept set, so the ratio of an unchanged policy is 1."""
    hidden, weight, _ = head()
    kept = sampling.keep_mask(hidden @ weight, top_k=100, top_p=0.9, temperature=0.7)
    draw = sampling.categorical(KEY, hidden @ weight, where=kept, temperature=0.7)

    @jax.jit
    def score(hidden, weight):
        options = {"where": kept, "temperature": 0.7, "block_size": (7, 1024)}
        return -jsoftmax.linear_cross_entropy(hidden, weight, draw.ids, **options)

    np.testing.assert_allclose(score(hidden, weight), draw.log_probs, rtol=1e-5, atol=1e-6)
    assert (kept.sum(-1) < 101).all()


@pytest.mark.share(2)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_of_a_table_in_16_bits(dtype):
    hidden, weight, _ = head(dtype=dtype)
    drawn = jax.jit(lambda h, w: sampling.linear_categorical(KEY, h, w, vocab_axis=0))(hidden, weight.T)
    wanted = jax.jit(dense)(hidden, weight)
    np.testing.assert_array_equal(drawn.ids, wanted.ids)
    assert drawn.log_probs.dtype == jnp.float32
    np.testing.assert_allclose(drawn.log_probs, wanted.log_probs, rtol=2e-5)


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("size", [(7, 1024), None], ids=str)
def test_corners_of_a_head(size):
    hidden, weight, bias = head()
    hidden = hidden.at[3].set(jnp.nan).at[20, 1].set(jnp.inf)
    draw = jax.jit(partial(sampling.linear_categorical, block_size=size))
    drawn = draw(KEY, hidden, weight)
    np.testing.assert_array_equal(np.flatnonzero(drawn.ids < 0), [3, 20])
    np.testing.assert_array_equal(np.isnan(drawn.log_probs), drawn.ids < 0)
    nothing = draw(KEY, hidden[:2], weight, bias=jnp.full_like(bias, -jnp.inf))
    assert nothing.ids.tolist() == [-1, -1]
    assert nothing.log_probs.tolist() == [-np.inf, -np.inf]


@pytest.mark.long
@pytest.mark.share(2)
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_derivatives_of_a_head(mode):
    """They equal those of the logits' log-probability at the ids, in every argument and both modes."""
    hidden, weight, bias = (a[..., :600] if a.shape[-1] == V else a for a in head())
    t = jnp.linspace(0.5, 2, B)
    ids = sampling.linear_categorical(KEY, hidden, weight, bias=bias, temperature=t).ids
    v = jnp.asarray(np.random.default_rng(1).normal(size=B), jnp.float32)

    def ours(h, w, b, t):
        options = {"bias": b, "temperature": t, "block_size": (7, 128)}
        return sampling.linear_categorical(KEY, h, w, **options).log_probs

    def theirs(h, w, b, t):
        return jsoftmax.log_prob(h @ w + b[None], ids, temperature=t)

    def gradients(f):
        return jax.jit(jax.grad(lambda *a: f(*a) @ v, (0, 1, 2, 3)))(hidden, weight, bias, t)

    def pushed(f):
        arguments = (hidden, weight, bias, t)
        along = tuple(jnp.cos(jnp.where(jnp.isinf(a), 0, a)) for a in arguments)
        return jax.jit(lambda *a: jax.jvp(f, a, along)[1])(*arguments)

    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    if mode == "reverse":
        jax.tree.map(close, *map(gradients, (ours, theirs)))
    else:
        with jsoftmax.forward_mode():
            close(*map(pushed, (ours, theirs)))


@pytest.mark.long
@pytest.mark.share(2)
def test_a_head_under_vmap():
    """With one key, every element has the noise of a separate call; mapped keys give different noise."""
    hidden, weight, _ = head()
    pairs = hidden.reshape(2, B // 2, D)
    of_rows = jax.jit(jax.vmap(lambda h: sampling.linear_categorical(KEY, h, weight)))(pairs)
    keys = jax.random.split(KEY, 2)
    of_keys = jax.jit(jax.vmap(lambda k, h: sampling.linear_categorical(k, h, weight)))(keys, pairs)
    for i in range(2):
        np.testing.assert_array_equal(of_rows.ids[i], sampling.linear_categorical(KEY, pairs[i], weight).ids)
        np.testing.assert_array_equal(
            of_keys.ids[i], sampling.linear_categorical(keys[i], pairs[i], weight).ids
        )


@pytest.mark.share(4)
@pytest.mark.parametrize("how", ["shard_map", "auto", "explicit"])
def test_a_head_on_eight_devices(how):
    kind = AxisType.Explicit if how == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((2, 4), ("rows", "classes"), axis_types=(kind, kind))
    hidden, weight, _ = head()
    arguments, specs = (hidden, weight[:, :5000]), (P("rows"), P(None, "classes"))
    want = jax.jit(partial(sampling.linear_categorical, KEY))(*arguments)
    if how == "shard_map":
        f = partial(sampling.linear_categorical, KEY, axis_name="classes")
        got = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P("rows")))(*arguments)
    else:
        arguments = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arguments, specs, strict=True)]
        with jax.set_mesh(mesh):
            got = jax.jit(partial(sampling.linear_categorical, KEY))(*arguments)
    np.testing.assert_array_equal(got.ids, want.ids)
    np.testing.assert_allclose(got.log_probs, want.log_probs, rtol=1e-5)


def test_a_head_has_the_law_of_its_logits():
    _, weight, _ = head()
    hidden = jnp.tile(jnp.asarray([[0.5, -1, 2, 0, 0, 1, 0, 0]], jnp.bfloat16), (2**14, 1))
    weight = weight[:, :40].astype(jnp.bfloat16)
    ids = jax.jit(partial(sampling.linear_categorical, KEY))(hidden, weight).ids
    assert has_law(ids, softmax(np.asarray(hidden[0], np.float64) @ np.asarray(weight, np.float64)))


def test_a_head_holds_one_block():
    shapes = (4096, 64), (64, 32768)
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    f = partial(sampling.linear_categorical, KEY, block_size=(512, 8192))
    held = jax.jit(f).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    assert held < 512 * 8192 * 4
