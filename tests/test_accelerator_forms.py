"""The forms for accelerators, run on CPU: compared with float64, and with the forms for CPU."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FUNCTIONS, Function, ahead, mask, named
from compiling import jit_in_full
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jsoftmax
from jsoftmax.backends import _accelerators
from jsoftmax.backends._choice import choose
from jsoftmax.backends._request import Request
from jsoftmax.logits._scaling import Scaling
from jsoftmax.transforms import _modes

REGIMES = {
    "flat": lambda rng, shape: np.full(shape, 1.7),
    "N(0, 1)": lambda rng, shape: rng.normal(size=shape),
    "N(0, 3²)": lambda rng, shape: 3 * rng.normal(size=shape),
    "N(0, 30²)": lambda rng, shape: 30 * rng.normal(size=shape),
    "ahead by 15": ahead(15),
    "ahead by 30": ahead(30),
    "offset 1e4": lambda rng, shape: 1e4 + 100 * rng.normal(size=shape),
    "rising": lambda rng, shape: np.sort(3 * rng.normal(size=shape), 1),
}


@pytest.fixture
def accelerator_forms():
    with _modes.in_form("gpu"):
        yield


@jit_in_full
def by_a_device(x):
    """The rest of every row in the order of a GPU: 256 threads sum a chain each, and a tree adds these."""
    parts = _accelerators.classes(x, Scaling(None), (), False, None)
    chains = jax.tree.map(lambda a: a.reshape(a.shape[0], -1, 256), parts)
    parts = jax.tree.map(lambda a: jnp.squeeze(a, 1), _accelerators.one_pass(chains, (1,)))
    while parts.top.shape[1] > 1:
        parts = _accelerators.merged(*(jax.tree.map(lambda a, i=i: a[:, i::2], parts) for i in (0, 1)))
    return parts.rest[:, 0]


@pytest.mark.share(2)
@pytest.mark.parametrize("classes", [512, 32768])
def test_one_pass_rounds_by_at_most_3_ulp(classes):
    for name, rows in REGIMES.items():
        x = jnp.asarray(rows(np.random.default_rng(0), (8, classes)), jnp.bfloat16)
        exact = np.asarray(x, np.float64)
        terms = np.exp(exact - exact.max(1, keepdims=True))
        terms[np.arange(len(x)), exact.argmax(1)] = 0
        exact = terms.sum(1)
        off = abs(np.asarray(by_a_device(x), np.float64) - exact) / np.spacing(exact.astype(np.float32))
        assert off.max() <= 3, (name, off.max())


@functools.cache
def fused(form):
    return jit_in_full(lambda x: form(x, Scaling(None), (1,)))


@pytest.mark.share(3)
@pytest.mark.parametrize("regime", REGIMES)
def test_fused_maps_are_within_1_ulp_of_16_bits(regime):
    x = jnp.asarray(REGIMES[regime](np.random.default_rng(0), (16, 257)), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    log_p = exact - exact.max(1, keepdims=True)
    log_p -= np.log1p(np.exp(log_p).sum(1, keepdims=True) - 1)
    leads = log_p == log_p.max(1, keepdims=True)
    others = np.where(leads, 0, np.exp(log_p)).sum(1, keepdims=True)
    log_p = np.where(leads & (leads.sum(1, keepdims=True) == 1), np.log1p(-others), log_p)
    pairs = (
        (lambda *row: _accelerators.fused_row(*row).p, np.exp(log_p)),
        (_accelerators.fused_log_softmax, log_p),
    )
    for form, want in pairs:
        got = np.asarray(fused(form)(x).astype(x.dtype))
        want = want.astype(got.dtype)
        ulp = np.exp2(np.floor(np.log2(abs(want.astype(np.float64)) + 1e-300)) - 7)
        off = abs(got.astype(np.float64) - want.astype(np.float64)) / np.maximum(
            ulp, np.finfo(np.float32).tiny
        )
        assert off.max() <= 1


@pytest.mark.share(3)
@pytest.mark.parametrize("regime", REGIMES)
def test_fused_derivatives_round_once_to_16_bits(regime, accelerator_forms):
    """Besides, a few float32 roundings of the terms that they sum; a leading class uses the others."""
    rng = np.random.default_rng(0)
    x, g = (
        jnp.asarray(a, jnp.bfloat16) for a in (REGIMES[regime](rng, (16, 257)), rng.normal(size=(16, 257)))
    )
    exact_x, exact_g = (np.asarray(a, np.float64) for a in (x, g))
    p = np.exp(exact_x - exact_x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    leads = p > 0.5
    rest = np.where(leads, np.where(leads, 0, p).sum(1, keepdims=True), 1)  # 1 − p where that is small

    def sums(v):
        """The sum over a row; at a leading class, over the others."""
        others = np.where(leads, 0, v).sum(1, keepdims=True)
        return np.where(leads, others, v.sum(1, keepdims=True))

    def of_softmax(v):
        """Both terms of ``p·(v − ⟨p, v⟩)``, cotangent and tangent; a leading class uses the other classes."""
        return p * v * rest, p * sums(p * v)

    def of_log_softmax(v):
        """The terms of ``v − p·Σv``."""
        return v * rest, p * sums(v)

    def along(v):
        """The terms of ``v − ⟨p, v⟩``, the tangent of the log-softmax."""
        return v * rest, sums(p * v)

    def pulled(f, x, g):
        return jax.vjp(f, x)[1](g)[0]

    def pushed(f, x, g):
        with jsoftmax.forward_mode():
            return jax.jvp(f, (x,), (g,))[1]

    softmax, log_softmax = jsoftmax.softmax, jsoftmax.log_softmax
    for function, derivative, terms in (
        (softmax, pulled, of_softmax),
        (softmax, pushed, of_softmax),
        (log_softmax, pulled, of_log_softmax),
        (log_softmax, pushed, along),
    ):
        found = jax.jit(functools.partial(derivative, function))(x, g)
        assert found.dtype == jnp.bfloat16
        want, size = np.subtract(*terms(exact_g)), np.add(*terms(abs(exact_g)))
        off = abs(np.asarray(found, np.float64) - want)
        assert np.all(off <= 2.0**-8 * abs(want) + 2.0**-21 * size + 4 * np.finfo(np.float32).tiny)


def values_and_gradients(function, *arguments):
    out, pull = jax.vjp(lambda *a: function.ours(*a, axis=-1), *arguments)
    # No two are equal within a row: their difference would be 0, or the roundings of either form.
    cotangents = jax.tree.map(lambda a: (jnp.arange(a.size) % 11 + 1).reshape(a.shape).astype(a.dtype), out)
    return out, pull(cotangents)


MASKED = [
    Function(name, lambda x, m, axis, f=f: f(x, axis, m), None, mask, reduces=False)
    for name, f in (("softmax, masked", jsoftmax.softmax), ("log_softmax, masked", jsoftmax.log_softmax))
]


@pytest.mark.share(24)
@pytest.mark.parametrize("function", **named([*FUNCTIONS, *MASKED]))
def test_what_they_compute_is_what_the_cpu_does(function):
    """With ties, dead classes, an empty row, overflows, and NaN: equal to at most a rounding of bfloat16."""
    x = np.random.default_rng(0).normal(size=(8, 7)) * 3
    x[0, 2:4] = x[0].max() + 1
    x[1, 1] = x[2, :] = -np.inf
    x[3, 4], x[4, 5] = np.inf, np.nan
    x[5, 0] += 40
    arguments = tuple(
        a.astype(jnp.bfloat16) if a.dtype == jnp.float32 and a.shape == x.shape else a
        for a in function.arguments(x.astype(np.float32))
    )
    with _modes.in_form("gpu"):
        got = jax.jit(lambda *a: values_and_gradients(function, *a))(*arguments)
    with _modes.in_form("cpu"):
        want = jax.jit(lambda *a: values_and_gradients(function, *a))(*arguments)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if ours.dtype != jax.dtypes.float0:
            tolerance = 2**-7 if ours.dtype == jnp.bfloat16 else 1e-5
            np.testing.assert_allclose(
                np.asarray(ours, np.float64), np.asarray(theirs, np.float64), rtol=tolerance, atol=1e-37
            )


@pytest.mark.share(2)
@pytest.mark.parametrize("classes", [20000, 13 * 1291, 16411], ids=["5 pieces", "13 pieces", "a prime"])
def test_long_rows_are_cut_into_pieces(classes):
    """With a dead piece, the maximum in the last, and an empty row. On CPU a piece is a chain of sums."""
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(4, classes))
    x[0, : classes // 4] = -np.inf
    x[1, -1] = x[1].max() + 20
    x[2] = -np.inf
    x = jnp.asarray(x, jnp.bfloat16)
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "soft_cap": 30.0, "temperature": 0.7}
    labels = jnp.array([classes - 1, 3, 5, 7])
    pieces = choose(Request("state", x, (1,))).gpu.size
    assert pieces == {20000: 5, 13 * 1291: 13, 16411: 1}[classes]

    def found():
        def total(x):
            losses = jsoftmax.cross_entropy(x, labels, **options)
            return jnp.sum(losses), (losses, jsoftmax.row_statistics(x, labels)[:3])

        return jax.jit(jax.value_and_grad(total, has_aux=True))(x)

    with _modes.in_form("gpu"):
        got = found()
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(found()), strict=True):
        tolerance = 2**-7 if ours.dtype == jnp.bfloat16 else 5e-5
        np.testing.assert_allclose(
            np.asarray(ours, np.float64), np.asarray(theirs, np.float64), rtol=tolerance, atol=1e-30
        )


@pytest.mark.full
def test_second_derivatives_are_those_of_two_passes(accelerator_forms):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.bfloat16)
    v = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)), jnp.bfloat16)
    labels = jnp.array([0, 4, 2])

    def loss(x):
        options = {"label_smoothing": 0.1, "temperature": 0.7, "soft_cap": 5.0, "z_loss": 0.01}
        return jnp.sum(jsoftmax.cross_entropy(x, labels, **options) + jsoftmax.entropy(x))

    def product(x, v):
        return jax.vjp(jax.grad(loss), x)[1](v)[0]

    exact = jax.jit(product)(x.astype(jnp.float32), v.astype(jnp.float32))
    found = jax.jit(product)(x, v)
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, rtol=0.05, atol=0.01)
    with jsoftmax.forward_mode():
        twice = jax.jit(lambda x, v: jax.jvp(jax.grad(loss), (x,), (v,))[1])(x, v)
    np.testing.assert_allclose(np.asarray(twice, np.float32), exact, rtol=0.05, atol=0.01)


@pytest.mark.share(2)
@pytest.mark.diagonal
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("over", [("rows", None), (None, "classes"), ("rows", "classes")], ids=str)
def test_sharded_logits_are_not_gathered(over, kind, accelerator_forms):
    """If the sharding of rows is unknown, only numbers per row and shard are gathered, not the logits."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 64)), jnp.bfloat16)
    labels = jnp.arange(16)

    @jax.jit
    def losses(x, labels):
        of_labels = jsoftmax.cross_entropy(x, labels, label_smoothing=0.1, temperature=0.7)
        return jnp.sum(of_labels) + jnp.sum(jsoftmax.log_softmax(x).astype(jnp.float32))

    want = losses(x, labels)
    mesh = jax.make_mesh((2, 4), ("rows", "classes"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        arguments = (
            jax.device_put(x, NamedSharding(mesh, P(*over))),
            jax.device_put(labels, NamedSharding(mesh, P(over[0]))),
        )
        program = losses.lower(*arguments).compile()
    np.testing.assert_allclose(program(*arguments), want, rtol=1e-5)
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", program.as_text())
    if kind == AxisType.Explicit or over[1] is None:
        assert not gathered
    assert all(int(shape.split(",")[-1]) <= 4 for shape in gathered)
