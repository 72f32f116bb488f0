"""What the compilers for a GPU and for TPUs make of this package: facts of compiled programs, nothing is run.

No accelerator is needed, only its compiler: ``pip install -e ".[accelerators]"``, then
``JAX_PLATFORMS=cpu pytest -n 0 -m accelerators``. The logits are bfloat16, in shapes alone.
"""

import functools
import importlib.util
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jsoftmax

ROWS = 8192
CLASSES = (8192, 131072)
TPUS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}
# The most that temporaries may take, over what the logits do; and where every option has its partial sums.
TEMPORARIES = {"h200": 0.016, "v5e": 0.002, "v6e": 0.002, "v7x": 0.002}
WITH_EVERY_OPTION = 0.034


def backward(function):
    """The backward alone, from what is kept for it."""

    def of(x):
        kept = jax.eval_shape(lambda x: jax.vjp(function, x)[1], x)
        return (lambda pull, g: pull(g)[0]), (kept, x)

    return of


def value_and_backward(function):
    """Both in one program, as in a step of training."""

    def both(x, g):
        out, pull = jax.vjp(function, x)
        return out, pull(g)[0]

    return lambda x: (both, (x, x))


def value_and_gradient(labels):
    loss = functools.partial(jsoftmax.cross_entropy, reduction="mean")
    return lambda x: (jax.value_and_grad(loss), (x, labels(x)))


def with_every_option(x):
    """All that acts on a row, on the classes, or on the sum over the rows."""

    def loss(x, y, where, weights, smoothing, temperature):
        options = {"ignore_index": -1, "z_loss": 1e-4, "soft_cap": 30.0}
        return jsoftmax.cross_entropy(
            x,
            y,
            where=where,
            class_weights=weights,
            label_smoothing=smoothing,
            temperature=temperature,
            reduction="mean",
            **options,
        )

    def of_classes(dtype):
        return jax.ShapeDtypeStruct(x.shape[1:], dtype)

    number = jax.ShapeDtypeStruct((), jnp.float32)
    arguments = x, class_ids(x), of_classes(bool), of_classes(jnp.float32), number, number
    return jax.value_and_grad(loss), arguments


def class_ids(x):
    return jax.ShapeDtypeStruct(x.shape[:1], jnp.int32)


def targets(x):
    return x


class Case(NamedTuple):
    """A function and its arguments, given the logits; what is counted in its program.

    A pass reads or writes one array of the logits' size; kernels are those on the H200. Both for 8192 classes
    and for 131072.
    """

    of: object
    reads: tuple[int, int]
    writes: int
    kernels: tuple[int, int]


softmax, log_softmax = jsoftmax.softmax, jsoftmax.log_softmax
CASES = {
    "softmax": Case(lambda x: (softmax, (x,)), (1, 2), 1, (1, 4)),
    "softmax, backward": Case(backward(softmax), (4, 4), 1, (5, 8)),
    "softmax, value and backward": Case(value_and_backward(softmax), (6, 5), 2, (9, 10)),
    "log_softmax": Case(lambda x: (log_softmax, (x,)), (1, 2), 1, (1, 4)),
    "log_softmax, backward": Case(backward(log_softmax), (4, 4), 1, (6, 9)),
    "log_softmax, value and backward": Case(value_and_backward(log_softmax), (5, 5), 2, (9, 11)),
    "logsumexp": Case(lambda x: (functools.partial(jsoftmax.logsumexp, axis=-1), (x,)), (1, 1), 0, (2, 3)),
    "class ids": Case(lambda x: (jsoftmax.cross_entropy, (x, class_ids(x))), (1, 1), 0, (3, 4)),
    "class ids, value and gradient": Case(value_and_gradient(class_ids), (2, 2), 1, (6, 7)),
    "every option, value and gradient": Case(with_every_option, (2, 2), 1, (11, 12)),
    "targets": Case(lambda x: (jsoftmax.cross_entropy, (x, targets(x))), (2, 2), 0, (2, 3)),
    "targets, value and gradient": Case(value_and_gradient(targets), (6, 6), 1, (8, 12)),
}


@functools.cache
def device(platform):
    """A device that the compiler alone knows; None where that compiler is not installed."""
    if platform == "h200":
        if importlib.util.find_spec("jax_cuda13_plugin") is None:
            return None
        description = (Path(__file__).parent / "data" / "h200.txtpb").read_text()
        options = {"platform": "cuda", "topology": "1x1x1", "target_config": description}
    else:
        if importlib.util.find_spec("libtpu") is None:
            return None
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # or it asks the network which TPU this machine has
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
        options = {"platform": "tpu", "topology_name": TPUS[platform]}
    return topologies.get_topology_desc(**options).devices[0]


class Program:
    """A compiled program as its kernels, each with the arrays it takes and makes in the device's memory."""

    # These name arrays, or end what another began.
    NAMES = frozenset({"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "copy-done"})

    def __init__(self, compiled, logits):
        self.text, self.logits = compiled.as_text(), logits
        self.temporaries = compiled.memory_analysis().temp_size_in_bytes
        entry = re.search(r"^ENTRY .*?\{\n(.*?)^\}", self.text, re.DOTALL | re.MULTILINE)[1]
        entry = re.sub(r"/\*.*?\*/", "", entry)
        steps = re.findall(r"^  (?:ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\((.*?)\)(?:,|$)", entry, re.MULTILINE)
        assert len(steps) == len(entry.splitlines())
        self.large = {name: self.of_the_logits_size(made) for name, made, _, _ in steps}
        self.kernels = {
            name: re.findall(r"%([\w.-]+)", taken)
            for name, _, operation, taken in steps
            if operation not in self.NAMES
        }

    def of_the_logits_size(self, arrays):
        """The dtypes of the arrays that are as large."""
        found = re.findall(r"\b([a-z]+[0-9]*)\[([\d,]*)\]", arrays)
        sizes = [(dtype, math.prod(int(n) for n in shape.split(",") if n)) for dtype, shape in found]
        return [dtype for dtype, size in sizes if size >= self.logits]

    def passes(self):
        reads = sum(len(self.large[taken]) for kernel in self.kernels.values() for taken in kernel)
        return reads, sum(len(self.large[name]) for name in self.kernels)


@functools.cache
def compiled(platform, name, classes):
    one = NamedSharding(Mesh(np.array([device(platform)]), ("x",)), PartitionSpec())
    function, arguments = CASES[name].of(jax.ShapeDtypeStruct((ROWS, classes), jnp.bfloat16))
    arguments = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), arguments)
    return Program(jax.jit(function).lower(*arguments).compile(), ROWS * classes)


@pytest.fixture
def program(platform, name, classes):
    if device(platform) is None:
        pytest.skip(f"no compiler for {platform} is installed: it is in the extra named accelerators")
    return compiled(platform, name, classes)


def on(*platforms):
    def mark(test):
        # A TPU's compiler takes its time; for it, the longer rows are enough.
        rows = [(p, n) for p in platforms for n in CLASSES if p == "h200" or n == max(CLASSES)]
        test = pytest.mark.parametrize(("platform", "classes"), rows)(test)
        return pytest.mark.accelerators(pytest.mark.parametrize("name", CASES)(test))

    return mark


@on("h200", *TPUS)
def test_no_array_of_the_logits_size_is_made_but_the_results_in_bfloat16(program, name):
    """So no float32 copy, no one-hot labels, no mask."""
    assert {dtype for dtypes in program.large.values() for dtype in dtypes} == {"bf16"}
    assert program.passes()[1] == CASES[name].writes


@on("h200", *TPUS)
def test_temporaries_are_numbers_of_a_row(program, platform, name):
    most = WITH_EVERY_OPTION if "option" in name else TEMPORARIES[platform]
    assert program.temporaries <= most * program.logits * jnp.bfloat16.dtype.itemsize


@on("h200", *TPUS)
def test_nothing_gathers_or_scatters(program):
    """But the weight of each row's label."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* (?:gather|scatter)\(", program.text)
    assert all(math.prod(int(n) for n in shape.split(",")) <= ROWS for shape in shapes)
    assert len(shapes) == len(re.findall(r"\b(?:gather|scatter)\(", program.text))


@on("h200", *TPUS)
def test_how_often_the_logits_are_read(program, name, classes):
    """Labels and cotangents of their size included."""
    assert program.passes()[0] == CASES[name].reads[CLASSES.index(classes)]


@on("h200")
def test_how_many_kernels_are_launched(program, name, classes):
    assert len(program.kernels) == CASES[name].kernels[CLASSES.index(classes)]
