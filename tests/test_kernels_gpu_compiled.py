"""What the compiler for an H200 makes of the row kernels; nothing runs. See `test_accelerators`."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from test_accelerators import Program, compiled_for

from jsoftmax.backends import _mosaic_gpu
from jsoftmax.backends._kernel_rows import Row

pytestmark = [
    pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11"),
    pytest.mark.accelerators,
    pytest.mark.xdist_group("h200"),
]
ROWS = 4096
PTX = []  # of the last program, if it is printed
READS = {
    "state": 1,
    "softmax": 1,
    "log_softmax": 1,
    "loss": 1,
    "softmax backward": 2,
    "log_softmax backward": 2,
}


def kernel(task, row):
    """A function of the package for the task, and its arguments."""
    rows = row.x.shape[0]
    labels, number = (jax.ShapeDtypeStruct((rows, 1), dtype) for dtype in (jnp.int32, jnp.float32))
    if task == "state":
        return _mosaic_gpu.state, (row, labels)
    if task == "loss":
        return _mosaic_gpu.loss_and_gradient, (row, labels, number)
    if task.endswith("backward"):
        return functools.partial(_mosaic_gpu.backward, task.split()[0]), (row, number, number, row.x)
    return getattr(_mosaic_gpu, task), (row,)


def compiled(task, row, capfd, monkeypatch):
    """The program, the registers of a thread, and the bytes that it spills."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    function, arguments = kernel(task, row)
    # The compiler keeps what it compiled before, and then prints nothing.
    program = compiled_for("h200", lambda *arguments: function(*arguments), *arguments)
    report = "".join(capfd.readouterr())
    PTX[:] = [report]
    spills = [int(n) for n in re.findall(r"(\d+) bytes (?:spill|stack)", report)]
    (registers,) = re.findall(r"Used (\d+) registers", report)
    return Program(program, row.x.size), int(registers), sum(spills)


def logits(classes, dtype, rows=ROWS):
    return jax.ShapeDtypeStruct((rows, classes), dtype)


@pytest.mark.diagonal
@pytest.mark.parametrize("classes", [1024, 16384, 32768, 131072, 262144])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("task", READS)
def test_one_kernel_reads_and_writes_once_and_spills_nothing(task, dtype, classes, capfd, monkeypatch):
    """A map and a loss with its gradient: 2 passes; a state: 1; a backward pass: 3."""
    row = Row(logits(classes, dtype))
    if _mosaic_gpu.refuses(row, task):
        assert (task.split()[-1], dtype, classes) == ("backward", jnp.float32, 262144)
        classes = 196608
        row = Row(logits(classes, dtype))
    program, registers, spilled = compiled(task, row, capfd, monkeypatch)
    assert program.passes() == (READS[task], int(task != "state"))
    assert len(program.kernels) == 1
    assert "mosaic_gpu" in program.text
    assert spilled == 0
    # 512 threads of two blocks, or 1024 of one, have 64 registers each; those of 7 blocks for short rows 73.
    assert registers <= (73 if classes <= 1024 else 64)
    assert program.temporaries < 1024


def test_the_blocks_of_a_cluster_read_each_others_slots(capfd, monkeypatch):
    """Two numbers of each of four blocks, after one meeting; and a second one before a block ends."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTX", "1")
    compiled("softmax", Row(logits(131072, jnp.bfloat16, ROWS + 1)), capfd, monkeypatch)
    text = PTX.pop()
    assert len(re.findall(r"ld\.shared::cluster", text)) == 2 * 4
    assert len(re.findall(r"mbarrier\.arrive\.shared::cluster", text)) == 2


@pytest.mark.diagonal
@pytest.mark.parametrize("task", READS)
@pytest.mark.parametrize("mask", [None, 1, ROWS])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("classes", "dtype"), [(50257, "bfloat16"), (32000, "float32"), (1000, "float16"), (17, "float32")]
)
def test_every_option_compiles_and_spills_nothing(task, mask, scaled, classes, dtype, capfd, monkeypatch):
    row = Row(
        logits(classes, jnp.dtype(dtype)),
        None if mask is None else jax.ShapeDtypeStruct((mask, classes), jnp.int8),
        jax.ShapeDtypeStruct((ROWS, 1), jnp.float32) if scaled else None,
    )
    _, registers, spilled = compiled(task, row, capfd, monkeypatch)
    assert spilled == 0
    assert registers <= 128  # 512 threads of one block
