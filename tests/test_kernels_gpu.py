"""The row kernels for Hopper GPUs, run by Mosaic GPU's interpreter, and compared with float64.

The interpreter fills memory with NaN, and raises at a race and at a read out of bounds. It knows no reads of
another block's shared memory; there, blocks exchange numbers through device memory. `LIMITS` are scaled down,
so that short rows are spread over clusters.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax.backends import _mosaic_gpu
from jsoftmax.backends._kernel_rows import Row, class_and_unused, with_unused
from jsoftmax.backends._mosaic_gpu_plan import SHARED_MEMORY, Limits, block_bytes, plan

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11")
TASKS = ("state", "softmax", "log_softmax", "loss", "softmax backward", "log_softmax backward")


class Form(NamedTuple):
    """Rows of so many classes, by a form of the kernel."""

    classes: int
    dtype: str
    limits: Limits = Limits()
    mask: str | None = None  # "one" for all rows, or "each"
    scaled: bool = False  # with temperatures of both signs
    regimes: tuple[int, ...] = tuple(range(9))  # the rows, by their index in `inputs`


def clusters_of(cluster, warpgroups, classes, itemsize):
    """The limits for which a row is spread over so many blocks of so many warpgroups."""
    block = -(-classes * itemsize // cluster)
    return Limits(0, -(-block // warpgroups), block)


FORMS = {
    "1": Form(1, "float32"),
    "2, scaled": Form(2, "bfloat16", scaled=True),
    "17, masks": Form(17, "float16", mask="each"),
    "129": Form(129, "float32"),
    "1000, two stages": Form(1000, "bfloat16", Limits(blocks=1, multiprocessors=1)),
    "1000, mask, scaled": Form(1000, "float32", mask="one", scaled=True),
    "1000 by 2": Form(1000, "float32", clusters_of(2, 1, 1000, 4), regimes=(2, 3, 4, 5, 6, 8)),
    "4096 by 4": Form(4096, "bfloat16", clusters_of(4, 1, 4096, 2), regimes=(1, 5, 6, 7)),
    "4097 by 8": Form(4097, "bfloat16", clusters_of(8, 1, 4097, 2), regimes=(2, 5)),
    "4097 by 1 of 2, masks": Form(4097, "float32", clusters_of(1, 2, 4097, 5), "each", regimes=(1, 3, 6, 8)),
    "2304 by 2 of 2, scaled": Form(
        2304, "float16", clusters_of(2, 2, 2304, 2), scaled=True, regimes=(3, 4, 7)
    ),
}
# Every task runs by default on two forms, and every form with some task.
DEFAULT = {
    "state": ("1", "4097 by 8"),
    "softmax": ("17, masks", "1000 by 2"),
    "log_softmax": ("129", "4096 by 4"),
    "loss": ("1000, two stages", "1000, mask, scaled", "4097 by 1 of 2, masks"),
    "softmax backward": ("2, scaled", "2304 by 2 of 2, scaled"),
    "log_softmax backward": ("1000, mask, scaled", "1000 by 2"),
}


class Inputs(NamedTuple):
    row: Row
    labels: np.ndarray
    scale: np.ndarray
    g: np.ndarray


def inputs(form):
    """Rows of all regimes: flat, unit, peaked, tied, an offset, dead classes, none live, NaN, +inf."""
    random, n = np.random.default_rng(form.classes), form.classes
    x = random.normal(size=(9, n)).astype(np.float32)
    x[0] = 0
    x[2] *= 30
    x[3] = np.round(x[3])
    x[4] += 1e4 if form.dtype != "bfloat16" else 100
    x[5, random.random(n) < 0.5] = -np.inf
    x[6] = -np.inf
    x[7, n // 2] = np.nan
    x[8, -1] = np.inf
    labels = random.integers(0, n, (9, 1), np.int32)
    labels[0], labels[1], labels[2] = n, -1, np.argmax(x[2])
    labels[8] = with_unused(labels[8], True)
    where = temperature = None
    if form.mask is not None:
        where = random.random((9 if form.mask == "each" else 1, n)) < 0.7
        where[0, 0] = True
        x[np.broadcast_to(~where, x.shape) & (random.random(x.shape) < 0.3)] = np.nan
    if form.scaled:
        temperature = random.choice([-2.5, 0.7, 1.3], (9, 1)).astype(np.float32)
    scale, g = random.normal(size=(9, 1)), random.normal(size=(9, n))
    kept = list(form.regimes)
    x, labels, scale, g = (a[kept] for a in (x, labels, scale, g))
    where = where[kept] if form.mask == "each" else where
    temperature = None if temperature is None else temperature[kept]
    row = Row(
        jnp.asarray(x, form.dtype),
        None if where is None else jnp.asarray(where, jnp.int8),
        None if temperature is None else jnp.asarray(temperature),
    )
    return Inputs(row, jnp.asarray(labels), jnp.asarray(scale, jnp.float32), jnp.asarray(g, form.dtype))


class Exact(NamedTuple):
    """In float64; NaN in rows with an overflow or a NaN. `sizes` are those of the terms that may cancel."""

    top: np.ndarray
    rest: np.ndarray
    label: np.ndarray
    gap: np.ndarray
    results: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]


@functools.cache
def exact(name):
    form, (row, labels, scale, g) = FORMS[name], inputs(FORMS[name])
    x, labels, scale, g = (np.asarray(a).astype(np.float64) for a in (row.x, labels, scale, g))
    where = (
        np.full(x.shape, True) if row.where is None else np.broadcast_to(np.asarray(row.where) != 0, x.shape)
    )
    t = np.ones((len(x), 1)) if row.temperature is None else np.asarray(row.temperature).astype(np.float64)
    with np.errstate(all="ignore"):
        bad = (where & (np.isnan(x) | (x == np.inf))).any(1, keepdims=True)
        live = where & (x > -np.inf)
        z = np.where(live, x * np.sign(t), -np.inf)
        top = np.where(bad, 0, z.max(1, keepdims=True, initial=-np.inf))
        empty = top == -np.inf
        u = np.where(live & ~bad, (z - np.where(empty, 0, top)) / abs(t), -np.inf)
        terms = np.exp(u)
        first = np.arange(form.classes) == u.argmax(1)[:, None]
        rest = np.where(empty, -1, np.where(first, 0, terms).sum(1, keepdims=True))
        total = np.where(empty, 1, 1 + rest)
        p, log_p = terms / total, u - np.log1p(np.where(empty, 0, rest))
        labels, unused = map(np.asarray, class_and_unused(labels))
        hit = np.arange(form.classes) == labels
        at_label = -np.where(hit, 0, p).sum(1, keepdims=True)
        loss = scale / t * np.where(hit, at_label, p)
        is_class = (labels >= 0) & (labels < form.classes)
        loss = np.where(is_class, loss, np.nan)
        loss = np.where(empty | ~where | unused, 0, loss)
        masked_g = np.where(where, g, 0)
        results, sizes = {"softmax": p, "log_softmax": log_p, "loss": loss}, {}
        for rule, weighted in (("softmax", p * masked_g), ("log_softmax", masked_g)):
            dz = np.where(empty | ~where, 0, weighted - p * weighted.sum(1, keepdims=True))
            results[f"{rule} backward"] = dz / t
            sizes[f"{rule} backward"] = (abs(weighted) + p * abs(weighted).sum(1, keepdims=True)) / abs(t)
        for task, result in results.items():
            seen = where | (task in ("softmax", "log_softmax"))
            result[bad & seen & (~unused if task == "loss" else True)] = np.nan
        at = np.where(is_class, labels, 0).astype(int)
        label = np.where(is_class, np.take_along_axis(np.where(where, x, -np.inf), at, 1), 0)
    return Exact(np.where(bad, np.nan, top), np.where(bad, np.nan, rest), label, -u, results, sizes)


def run(task, form, given):
    row, labels, scale, g = given
    interpret = interpreter()
    if task == "state":
        return None, *_mosaic_gpu.state(row, labels, interpret)
    if task == "loss":
        top, rest, label, dx = _mosaic_gpu.loss_and_gradient(row, labels, scale, interpret)
        return dx, top, rest, label
    if task.endswith("backward"):
        of_state = exact(form)
        numbers = (jnp.asarray(a, jnp.float32) for a in (of_state.top, of_state.rest))
        return _mosaic_gpu.backward(task.split()[0], row, *numbers, g, interpret), None, None, None
    return *getattr(_mosaic_gpu, task)(row, interpret), None


def interpreter():
    from jax.experimental.pallas import mosaic_gpu

    return mosaic_gpu.InterpretGPUParams(detect_races=True)


def ulps(ours, exact, size=None):
    """The error in ulp of the exact value, or of a given size.

    A CPU, unlike a GPU, sets subnormal numbers to 0: up to four of them, as factors and terms, count as none.
    """
    info = jnp.finfo(ours.dtype)
    ours, size = np.asarray(ours).astype(np.float64), abs(exact if size is None else size)
    with np.errstate(all="ignore"):
        exponent = np.floor(np.log2(np.clip(size, float(info.tiny), float(info.max))))
        same = (ours == exact) | (np.isnan(ours) & np.isnan(exact))
        same |= abs(ours - exact) < 4 * float(np.finfo(np.float32).tiny)
        return np.where(same, 0, abs(ours - exact) / np.exp2(exponent - info.nmant))


ITEMS = [
    pytest.param(task, name, marks=() if name in DEFAULT[task] else pytest.mark.full)
    for task in TASKS
    for name in FORMS
]


@pytest.mark.parametrize(("task", "name"), ITEMS)
def test_results_within_the_contract(task, name, monkeypatch):
    form = FORMS[name]
    monkeypatch.setattr(_mosaic_gpu, "LIMITS", form.limits)
    given, want = inputs(form), exact(name)
    assert _mosaic_gpu.refuses(given.row, task) is None
    out, top, rest, label = run(task, name, given)
    if top is not None:
        finite = ~np.isnan(want.top)
        np.testing.assert_array_equal(np.asarray(top)[finite], want.top[finite])
        # A rest of terms with gaps loses digits as the probabilities do; they count by their size.
        terms = np.where(want.gap == 0, 0, np.exp(-want.gap))
        gap = (terms * np.where(np.isinf(want.gap), 0, want.gap)).sum(1, keepdims=True) / np.maximum(
            want.rest, 1e-30
        )
        assert (ulps(rest, want.rest) <= np.where(np.isnan(want.rest), 4, 4 + gap)).all()
    if label is not None:
        np.testing.assert_array_equal(np.asarray(label), want.label.astype(np.float32))
    if out is None:
        return
    assert out.dtype == given.row.x.dtype
    assert out.shape == given.row.x.shape
    exact_result = want.results[task]
    size = want.sizes.get(task)
    if out.dtype == jnp.float32:
        bound = 4 if task == "log_softmax" else 4 + np.where(np.isinf(want.gap), 0, want.gap)
    else:
        bound = 1 if size is None else 1.5
        exact_result = np.asarray(jnp.asarray(exact_result, out.dtype)).astype(np.float64)
    off = ulps(out, exact_result, size)
    assert not np.isnan(off).any()
    assert (off <= bound).all(), (off.max(), np.argwhere(off > bound)[:5])


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("arrays", [1, 2])
def test_plans_hold_every_class_once(itemsize, arrays):
    sizes = {*range(1, 2000, 37), 4096, 4097, 8192, 16384, 32000, 50257, 128256, 131072, 151936, 262144}
    for classes in sizes:
        found = plan(1000, classes, itemsize * arrays, Limits())
        assert found.parts * found.width >= classes
        assert found.cluster in (1, 2, 4, 8)
        assert found.warpgroups in (1, 2, 4, 8)
        assert not 0 < found.tail < 128 or found.short
        if classes * itemsize * arrays <= 2**20:
            assert block_bytes(found, itemsize * arrays) <= SHARED_MEMORY


def test_refusals():
    def row(classes, dtype=jnp.float32):
        return Row(jax.ShapeDtypeStruct((8, classes), dtype))

    assert _mosaic_gpu.refuses(row(262144), "softmax") is None
    assert "does not fit in the shared memory" in _mosaic_gpu.refuses(row(262144), "softmax backward")
    assert _mosaic_gpu.refuses(row(262144, jnp.bfloat16), "softmax backward") is None
    assert "not float64" in _mosaic_gpu.refuses(row(8, np.dtype("float64")), "state")
    assert "no logits" in _mosaic_gpu.refuses(row(0), "state")
