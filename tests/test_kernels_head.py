"""The kernel for the loss of a linear head on Hopper GPUs, interpreted on CPU, and compiled without a GPU.

The logits are exact in float32, so that only the reduction rounds.
"""

import functools
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_accelerators import compiled_for

from jsoftmax import online
from jsoftmax.backends import _mosaic_gpu_head as head
from jsoftmax.backends import _mosaic_gpu_head_tiles as tiles

interpreted = pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="JAX interprets products on tensor cores from 0.12 on"
)
# The interpreter multiplies with NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
EPS = np.finfo(np.float32).eps
FLAT, TIED, PEAKED, NAN, DEAD, INFINITE = range(6)  # rows; all others have logits near 0
CASES = {  # rows, depth, classes, dtype, whether the classes are the first axis of the weight, sizes
    "last rows and classes": (37, 128, 91, "bfloat16", True, tiles.Sizes(8, 16, 64, 2, 2, 1, 3)),
    "one slab, in a cluster": (37, 64, 80, "float16", True, tiles.Sizes(8, 16, 64, 3, 2, 2, 4)),
    "classes along the last axis": (24, 192, 320, "bfloat16", False, tiles.Sizes(8, 128, 64, 2, 2, 2, 4)),
}


def problem(rows, depth, classes, dtype, classes_first, sizes):
    """The arguments, and the logits in float64. A tile of classes is dead in every row."""
    random = np.random.default_rng(0)
    hidden, weight = (random.integers(-8, 9, (n, depth)) / 8 for n in (rows, classes))
    weight[classes - 3] = weight[7]
    labels = random.integers(0, classes, (rows, 1))
    labels[-4:, 0] = -1, classes, classes + 3, classes - 1
    labels[TIED], labels[PEAKED] = 7, classes - 2
    scale = 2 if depth <= 128 else 1
    hidden[FLAT], hidden[TIED], hidden[PEAKED] = 0, scale * weight[7], scale * weight[classes - 2]
    hidden[:, 0], weight[:, 0], weight[sizes.classes : 2 * sizes.classes, 0] = 1, 0, -np.inf
    hidden[:, 1], weight[:, 1] = 0, -1
    hidden[NAN, 2], hidden[DEAD, 1], hidden[INFINITE, 1] = np.nan, np.inf, -np.inf
    arrays = (jnp.asarray(a, dtype) for a in (hidden, weight if classes_first else weight.T))
    return *arrays, jnp.asarray(labels, jnp.int32), np.einsum("nd,vd->nv", hidden, weight)


def exact(z, labels):
    top = z.max(1, keepdims=True)
    u = z - np.where(top == -np.inf, 0, top)
    rest = np.where(u == 0, 0, np.exp(u)).sum(1, keepdims=True) + ((u == 0).sum(1, keepdims=True) - 1)
    known = (labels >= 0) & (labels < z.shape[1])
    label = np.where(known, np.take_along_axis(z, np.where(known, labels, 0), 1), 0)
    return {"top": top, "rest": rest, "label": label, "z": z}


@functools.cache
def run(name):
    """The numbers of the kernel, and the exact ones."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    *shape, classes_first, sizes = CASES[name]
    *arguments, z = problem(*shape, classes_first, sizes)
    axis = 0 if classes_first else -1
    races = plgpu.InterpretGPUParams(detect_races=True)  # memory is filled with NaN too
    found = head.in_tiles(*arguments, sizes, vocab_axis=axis, interpret=races)
    assert all(a.shape == (len(z), 1) and a.dtype == jnp.float32 for a in found)
    found = dict(zip(("top", "rest", "label"), map(np.asarray, found), strict=True))
    with np.errstate(invalid="ignore"):
        return SimpleNamespace(**found), SimpleNamespace(**exact(z, np.asarray(arguments[-1])))


each_case = pytest.mark.parametrize("name", CASES)


@interpreted
@each_case
def test_the_largest_logit_and_that_of_the_label(name):
    found, want = run(name)
    known = ~np.isnan(want.rest)
    assert list(np.flatnonzero(~known)) == [NAN, INFINITE]
    np.testing.assert_array_equal(found.top[known], want.top[known])
    np.testing.assert_array_equal(found.label, want.label)


@interpreted
@each_case
def test_the_rest_keeps_its_digits(name):
    """Up to the rounding of a sum and that of the argument of every exponential."""
    found, want = run(name)
    good = [i for i in range(len(want.z)) if i not in (NAN, DEAD, INFINITE)]
    z, top, rest = want.z[good], want.top[good], want.rest[good]
    distances = np.where(z > -np.inf, top - z, 0)
    mean = (distances * np.exp(z - top)).sum(1, keepdims=True) / rest
    assert (np.abs(found.rest[good] - rest) <= (4 + mean) * EPS * rest).all()
    assert np.isnan(found.rest[[NAN, INFINITE]]).all()
    assert found.rest[DEAD] == -1


@interpreted
@each_case
def test_the_rows_are_what_they_are_called(name):
    _, want = run(name)
    live = (want.z[FLAT] > -np.inf).sum()
    assert want.rest[FLAT] == live - 1 < want.z.shape[1] - 1
    assert 1 <= want.rest[TIED] < 1 + 1e-9
    assert 0 < want.rest[PEAKED] < 1e-9
    assert np.isnan(want.z[NAN]).sum() == want.z.shape[1]


@interpreted
def test_both_layouts_of_the_weight_give_the_same_numbers():
    from jax.experimental.pallas import mosaic_gpu as plgpu

    *shape, _, sizes = CASES["classes along the last axis"]
    hidden, weight, labels, _ = problem(*shape, False, sizes)
    first = head.in_tiles(hidden, weight.T, labels, sizes, vocab_axis=0, interpret=plgpu.InterpretGPUParams())
    found, _ = run("classes along the last axis")
    np.testing.assert_array_equal(np.asarray(first), np.asarray((found.top, found.rest, found.label)))


def test_the_terms_of_the_rest_are_those_of_online():
    half = jnp.exp(-(jnp.linspace(0, 44, 1000, dtype=jnp.float32) ** 2) / 44)
    assert (half == 1).any()
    np.testing.assert_allclose(tiles.rest_terms(half), online.rest_terms(half), rtol=2 * EPS)


@pytest.mark.parametrize("classes", [8, 32000, 128256, 262144])
@pytest.mark.parametrize("rows", [1, 1024, 8192, 16384, 12345])
def test_every_tile_has_one_place(rows, classes):
    sizes = tiles.Sizes()
    plan = sizes.plan(rows, classes)
    runs, row_blocks = map(np.asarray, plan.place(jnp.arange(plan.row_blocks * plan.runs)))
    assert sorted(zip(runs, row_blocks, strict=True)) == list(np.ndindex(plan.runs, plan.row_blocks))
    assert plan.row_blocks * 2 * sizes.rows * sizes.cluster >= rows
    assert plan.tiles * sizes.classes >= classes
    assert plan.runs == math.ceil(plan.tiles / plan.length)


@pytest.mark.parametrize("classes", [32000, 128256, 262144])
@pytest.mark.parametrize("rows", [1024, 8192, 16384, 12345])
def test_all_processors_are_busy_to_the_end(rows, classes):
    """The busiest cluster takes few tiles more than its share."""
    sizes = tiles.Sizes()
    plan = sizes.plan(rows, classes)
    busiest = math.ceil(plan.row_blocks * plan.runs / plan.clusters) * plan.length
    assert busiest <= 1.06 * plan.row_blocks * plan.tiles / (sizes.processors / sizes.cluster)


def test_what_the_kernel_refuses():
    def reason(rows=16, depth=64, classes=16, dtype=jnp.bfloat16, weight=jnp.bfloat16, axis=0):
        shape = (classes, depth) if axis == 0 else (depth, classes)
        return head.refuses(
            jax.ShapeDtypeStruct((rows, depth), dtype), jax.ShapeDtypeStruct(shape, weight), axis
        )

    if jax.__version_info__ < (0, 11):
        assert reason() == f"the kernel needs jax 0.11 or later, and this is jax {jax.__version__}"
        return
    assert reason() is reason(classes=17) is None
    assert reason(classes=64, axis=-1) is reason(classes=128, axis=1) is None
    assert reason(dtype=jnp.float16, weight=jnp.float16) is None
    assert "float32 and bfloat16" in reason(dtype=jnp.float32)
    assert "float32 and float32" in reason(dtype=jnp.float32, weight=jnp.float32)
    assert "float16 and bfloat16" in reason(dtype=jnp.float16)
    assert "multiple of 64, and it is 96" in reason(depth=96)
    assert "72 classes along the last axis" in reason(classes=72, axis=-1)
    assert "at least 64 classes" in reason(classes=0, axis=-1)
    assert "at least 8 classes" in reason(classes=7)
    assert "at least 8 classes" in reason(rows=0)


@pytest.mark.accelerators
@pytest.mark.parametrize(("classes", "axis"), [(128256, 0), (128256, -1), (50257, 0)])
def test_compiled_for_an_h200(classes, axis, monkeypatch, capfd):
    """The logits are in registers only, and these suffice; the products are on the tensor cores."""
    if jax.__version_info__ < (0, 11):
        pytest.skip("the kernel needs jax 0.11")
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTX", "1")
    rows, depth = 8192, 4096
    shapes = (rows, depth), ((classes, depth) if axis == 0 else (depth, classes)), (rows, 1)
    dtypes = jnp.bfloat16, jnp.bfloat16, jnp.int32
    compiled = compiled_for(
        "h200",
        functools.partial(head.head_state, vocab_axis=axis),
        *map(jax.ShapeDtypeStruct, shapes, dtypes),
    )
    log = "".join(capfd.readouterr())
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in log
    assert int(re.search(r"Used (\d+) registers", log)[1]) <= 168  # of 65536, for each of 384 threads
    assert "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16" in log
    assert "multicast::cluster" in log
    assert "local" not in set(re.findall(r"\b(?:ld|st)\.(\w+)", log))
    arrays = re.findall(r"\b[a-z]+[0-9]+\[([\d,]+)\]", compiled.as_text())
    largest = max(math.prod(map(int, shape.split(","))) for shape in arrays)
    assert largest == depth * classes  # the weight
    assert compiled.memory_analysis().temp_size_in_bytes <= 0.01 * rows * classes * 4
