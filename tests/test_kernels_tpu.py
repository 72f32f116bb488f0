"""The row kernels for a TPU, run by an interpreter on CPU, and compiled for TPUs that are not there.

The interpreter fills memory with NaN before it is written, also the padding after the last class and the last
row, and detects reads and writes that race.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh, PartitionSpec
from kernel_cases import KERNELS, case, check, results
from test_accelerators import ROWS, TPUS, Program, compiled_for

from jsoftmax.backends import _mosaic_tpu, _mosaic_tpu_blocks, _mosaic_tpu_calls
from jsoftmax.backends._kernel_rows import Row

pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="the kernels for a TPU need jax 0.11 or later"
)
# The arguments of `case`: dtype, classes, mask, temperature, rows. Every other case has small chunks, so that
# rows have several, and small blocks, of one group of rows.
CASES = (
    ("float32", 1000),
    ("float32", 4097, "each", True),
    ("bfloat16", 1000, "one", True),
    ("bfloat16", 129, "each"),
    ("float32", 17, "one", False, 9),
    ("float32", 2, None, True),
    ("bfloat16", 1, None, False, 3),
    ("float32", 129, None, True, 1),
)


def interpreter():
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise")


def half_by_default():
    """Every kernel and every case, but half of their pairs."""
    for i, options in enumerate(CASES):
        for j, kernel in enumerate(KERNELS):
            marks = pytest.mark.full if (i + j) % 2 else ()
            yield pytest.param(kernel, options, marks=marks, id=f"{kernel}, {options}")


@pytest.mark.parametrize(("kernel", "options"), list(half_by_default()))
def test_kernels_agree_with_float64(kernel, options, monkeypatch):
    if CASES.index(options) % 2:
        monkeypatch.setattr(_mosaic_tpu_calls, "WANTED", 1)
        monkeypatch.setattr(_mosaic_tpu_calls, "MASK_ROWS", 8)
        monkeypatch.setattr(_mosaic_tpu_blocks, "REGISTERS", 8)
    given = case(*options)
    check(kernel, given, results(_mosaic_tpu, kernel, given, interpreter(), jax.jit))


def test_a_sum_of_many_equal_terms_keeps_its_digits():
    """A plain sum rounds each time in the same direction."""
    term, none = jnp.full((8, 1024), 0.7, jnp.float32), jnp.zeros((8, 128), jnp.float32)
    total, _ = jax.lax.fori_loop(0, 1024, lambda _, s: _mosaic_tpu_blocks.added(s, term), (none, none))
    np.testing.assert_allclose(total, 8 * 1024 * float(term[0, 0]), rtol=1.2e-7)


def shapes(name, rows, classes, dtype, mask=None, temperature=False):
    """A kernel, and its arguments as shapes."""
    x, number = jax.ShapeDtypeStruct((rows, classes), dtype), jax.ShapeDtypeStruct((rows, 1), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows, 1), jnp.int32)
    of_mask = None if mask is None else (rows if mask == "each" else 1, classes)
    where = None if mask is None else jax.ShapeDtypeStruct(of_mask, jnp.int8)
    row = Row(x, where, number if temperature else None)
    return {
        "state": (_mosaic_tpu.state, (row, labels)),
        "softmax": (_mosaic_tpu.softmax, (row,)),
        "log_softmax": (_mosaic_tpu.log_softmax, (row,)),
        "loss and gradient": (_mosaic_tpu.loss_and_gradient, (row, labels, number)),
        "softmax backward": (
            lambda *a: _mosaic_tpu.backward("softmax", *a),
            (row, number, number, x),
        ),
        "log_softmax backward": (
            lambda *a: _mosaic_tpu.backward("log_softmax", *a),
            (row, number, number, x),
        ),
    }[name]


PASSES = {"state": (1, 0), "softmax": (1, 1), "log_softmax": (1, 1), "loss and gradient": (1, 1)}


@pytest.mark.accelerators
@pytest.mark.diagonal
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("platform", [pytest.param(p, marks=pytest.mark.xdist_group(p)) for p in TPUS])
@pytest.mark.parametrize("name", KERNELS)
def test_one_kernel_reads_and_writes_the_logits_once(name, platform, dtype):
    function, arguments = shapes(name, ROWS, 131072, dtype)
    program = Program(compiled_for(platform, function, *arguments), ROWS * 131072)
    assert program.passes() == PASSES.get(name, (2, 1))
    assert program.text.count('custom_call_target="tpu_custom_call"') == 1
    others = [kernel for kernel in program.kernels if not kernel.startswith("jsoftmax")]
    assert all(
        kernel.startswith("copy") for kernel in others
    )  # of one number of every row, to another layout
    assert program.temporaries < 0.01 * program.logits


# The arguments of `shapes`. Rows of 262144 classes need most of the memory of a core.
COMPILED = (
    (8192, 1024, "bfloat16"),
    (8192, 1024, "float32", "each", True),
    (1024, 32768, "bfloat16", "each", True),
    (1024, 32768, "float32"),
    (1024, 4096, "float32", "each"),
    (64, 262144, "bfloat16", "each", True),
    (64, 262144, "float32", "each", True),
    (1, 262144, "float32"),
    (37, 4097, "bfloat16", "one", True),
    (9, 17, "float32", "one"),
)


@pytest.mark.accelerators
@pytest.mark.diagonal
@pytest.mark.parametrize("options", COMPILED, ids=str)
@pytest.mark.parametrize("platform", [pytest.param(p, marks=pytest.mark.xdist_group(p)) for p in TPUS])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile(name, platform, options):
    function, arguments = shapes(name, *options)
    assert _mosaic_tpu.refuses(arguments[0], name) is None
    compiled_for(platform, function, *arguments)


def test_kernels_for_a_tpu_are_exported_without_one():
    function, arguments = shapes("softmax", 16, 1000, "float32", "each", True)
    exported = export.export(jax.jit(function), platforms=["tpu"])(*arguments)
    assert exported.mlir_module().count("tpu_custom_call") == 1


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_in_shard_map_take_and_return_shards(name):
    """Its checks of what varies over the mesh see the kernel; here all arguments but the mask do."""
    function, arguments = shapes(name, 16, 1000, "bfloat16", "one", True)
    mesh = Mesh(np.array(jax.devices()[:2]), ("rows",))
    of_rows, of_all = PartitionSpec("rows"), PartitionSpec()
    specs = tuple(Row(of_rows, of_all, of_rows) if isinstance(a, Row) else of_rows for a in arguments)
    sharded = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=of_rows)
    text = export.export(jax.jit(sharded), platforms=["tpu"])(*arguments).mlir_module()
    assert text.count("tpu_custom_call") == 1
    assert not re.search("all_gather|all_reduce|collective_permute", text)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((8, 10), "float16", "take bfloat16 and float32, not float16"),
        ((8, 2**20), "float32", "rows of 1048576 classes in float32 do not fit the memory"),
        ((0, 10), "float32", "at least one row and one class"),
        ((8, 262144), "float32", None),
        ((8, 262144), "bfloat16", None),
    ],
)
def test_what_kernels_refuse(shape, dtype, reason):
    *_, (row, *_) = shapes("softmax backward", *shape, dtype, "each", True)
    found = _mosaic_tpu.refuses(row, "softmax backward")
    assert (found is None) if reason is None else reason in found
