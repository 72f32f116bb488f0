"""Facts about the programs that compilers for a GPU and for TPUs make of this package; nothing runs.

No accelerator is needed, only its compiler: ``pip install -e ".[accelerators]"``, then
``JAX_PLATFORMS=cpu pytest -n 2 --dist=loadgroup -m accelerators``, or ``-m "accelerators and not full"`` for
a sample. A group of items compiles a program once. The logits are shapes in bfloat16, without values.
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
import sampling
from compiling import IN_FULL
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jsoftmax

ROWS = 8192
CLASSES = (8192, 131072)
TPUS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}
TEMPORARIES = {"h200": 0.01, "v5e": 0.002, "v6e": 0.002, "v7x": 0.002}  # the largest share of the logits


def backward(function):
    """The backward pass only, from its residuals."""

    def of(x):
        kept = jax.eval_shape(lambda x: jax.vjp(function, x)[1], x)
        return (lambda pull, g: pull(g)[0]), (kept, x)

    return of


def value_and_backward(function):
    """Forward and backward pass in one program, as in a training step."""

    def both(x, g):
        out, pull = jax.vjp(function, x)
        return out, pull(g)[0]

    return lambda x: (both, (x, x))


def masked(x, g, where):
    """The same for a softmax as attention calls it, with one mask for all rows or one per row."""
    out, pull = jax.vjp(lambda x: jsoftmax.softmax(x, where=where), x)
    return out, pull(g)[0]


def value_and_gradient(labels):
    loss = functools.partial(jsoftmax.cross_entropy, reduction="mean")
    return lambda x: (jax.value_and_grad(loss), (x, labels(x)))


def with_every_option(*traced, but=()):
    """All options that act on a row, on the classes, or on the sum; some are known only at run time."""
    numbers = {"label_smoothing": 0.1, "z_loss": 1e-4, "soft_cap": 30.0, "temperature": 0.7}
    numbers = {name: number for name, number in numbers.items() if name not in but}

    def of(x):
        def loss(x, y, where, weights, given):
            options = {**numbers, **given, "where": where, "class_weights": weights, "ignore_index": -1}
            return jsoftmax.cross_entropy(x, y, reduction="mean", **options)

        where, weights = (jax.ShapeDtypeStruct(x.shape[1:], dtype) for dtype in (bool, jnp.float32))
        given = dict.fromkeys(traced, jax.ShapeDtypeStruct((), jnp.float32))
        return jax.value_and_grad(loss), (x, class_ids(x), where, weights, given)

    return of


def class_ids(x):
    return jax.ShapeDtypeStruct(x.shape[:1], jnp.int32)


def targets(x):
    return x


class Case(NamedTuple):
    """A function and its arguments, given the logits; and the counts of its program.

    A pass reads or writes one array of the size of the logits. The kernels are those on the H200, including
    kernels for a single number of an option. Both counts are for 8192 and for 131072 classes.
    """

    of: object
    reads: tuple[int, int]
    writes: int
    kernels: tuple[int, int]


softmax, log_softmax = jsoftmax.softmax, jsoftmax.log_softmax
CASES = {
    "softmax": Case(lambda x: (softmax, (x,)), (1, 2), 1, (1, 4)),
    "softmax, backward": Case(backward(softmax), (2, 4), 1, (1, 9)),
    "softmax, value and backward": Case(value_and_backward(softmax), (3, 5), 2, (2, 10)),
    "softmax of x/T": Case(value_and_backward(lambda x: softmax(x, temperature=0.7)), (3, 5), 2, (2, 10)),
    "softmax, one mask": Case(
        lambda x: (masked, (x, x, jax.ShapeDtypeStruct(x.shape[1:], bool))), (3, 5), 2, (2, 10)
    ),
    "softmax, masks": Case(
        lambda x: (masked, (x, x, jax.ShapeDtypeStruct(x.shape, bool))), (5, 8), 2, (2, 10)
    ),
    "log_softmax": Case(lambda x: (log_softmax, (x,)), (1, 2), 1, (1, 4)),
    "log_softmax, backward": Case(backward(log_softmax), (2, 4), 1, (1, 10)),
    "log_softmax, value and backward": Case(value_and_backward(log_softmax), (3, 5), 2, (2, 11)),
    "logsumexp": Case(lambda x: (functools.partial(jsoftmax.logsumexp, axis=-1), (x,)), (1, 1), 0, (2, 3)),
    "class ids": Case(lambda x: (jsoftmax.cross_entropy, (x, class_ids(x))), (1, 1), 0, (3, 4)),
    "class ids, value and gradient": Case(value_and_gradient(class_ids), (2, 2), 1, (6, 7)),
    "every option, value and gradient": Case(with_every_option(), (2, 2), 1, (9, 11)),
    "every option, traced, value and gradient": Case(
        with_every_option("temperature", "label_smoothing"), (2, 2), 1, (10, 12)
    ),
    "targets": Case(lambda x: (jsoftmax.cross_entropy, (x, targets(x))), (2, 2), 0, (2, 3)),
    "targets, value and gradient": Case(value_and_gradient(targets), (6, 6), 1, (8, 12)),
}


@functools.cache
def device(platform):
    """A device that only the compiler knows; None if that compiler is not installed."""
    if platform == "h200":
        if importlib.util.find_spec("jax_cuda13_plugin") is None:
            return None
        description = (Path(__file__).parent / "data" / "h200.txtpb").read_text()
        options = {"platform": "cuda", "topology": "1x1x1", "target_config": description}
    else:
        if importlib.util.find_spec("libtpu") is None:
            return None
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # else it asks the network which TPU this machine has
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
        options = {"platform": "tpu", "topology_name": TPUS[platform]}
    return topologies.get_topology_desc(**options).devices[0]


class Program:
    """A compiled program as its kernels, each with the arrays that it reads and writes in device memory."""

    # These operations name arrays, or end an operation that another one began.
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
        """The dtypes of the arrays that are as large as the logits."""
        found = re.findall(r"\b([a-z]+[0-9]*)\[([\d,]*)\]", arrays)
        sizes = [(dtype, math.prod(int(n) for n in shape.split(",") if n)) for dtype, shape in found]
        return [dtype for dtype, size in sizes if size >= self.logits]

    def passes(self):
        reads = sum(len(self.large[taken]) for kernel in self.kernels.values() for taken in kernel)
        return reads, sum(len(self.large[name]) for name in self.kernels)


def compiled_for(platform, function, *arguments):
    if device(platform) is None:
        pytest.skip(f"no compiler for {platform} is installed: it is in the extra named accelerators")
    one = NamedSharding(Mesh(np.array([device(platform)]), ("x",)), PartitionSpec())
    arguments = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), arguments)
    return jax.jit(function).lower(*arguments).compile(IN_FULL)


@functools.cache
def of_case(platform, name, classes):
    function, arguments = CASES[name].of(jax.ShapeDtypeStruct((ROWS, classes), jnp.bfloat16))
    return Program(compiled_for(platform, function, *arguments), ROWS * classes)


@pytest.fixture
def program(platform, name, classes):
    return of_case(platform, name, classes)


def runs_by_default(index, platform, classes):
    """One number of classes for each case on a GPU, and every third case on one kind of TPU."""
    if platform == "h200":
        return (index % 2 == 0) == (classes == max(CLASSES))
    return platform == "v6e" and index % 3 == 0  # the TPU compiler is slow


def on(*platforms):
    """Marks a test for all cases on these platforms; the TPUs compile only the longer rows."""
    rows = [
        pytest.param(
            name,
            p,
            n,
            marks=[pytest.mark.xdist_group(p), *([] if runs_by_default(i, p, n) else [pytest.mark.full])],
        )
        for p in platforms
        for n in CLASSES
        if p == "h200" or n == max(CLASSES)
        for i, name in enumerate(CASES)
    ]

    def mark(test):
        return pytest.mark.accelerators(pytest.mark.parametrize(("name", "platform", "classes"), rows)(test))

    return mark


@on("h200", *TPUS)
def test_no_array_of_the_logits_size_is_made_but_the_results_in_bfloat16(program, name):
    """So there is no float32 copy, no one-hot labels, no mask."""
    given = {"pred"} if name == "softmax, masks" else set()
    assert {dtype for dtypes in program.large.values() for dtype in dtypes} - given == {"bf16"}
    assert program.passes()[1] == CASES[name].writes


@on("h200", *TPUS)
def test_temporaries_are_numbers_of_a_row(program, platform, name):
    assert program.temporaries <= TEMPORARIES[platform] * program.logits * jnp.bfloat16.dtype.itemsize


@on("h200", *TPUS)
def test_nothing_gathers_or_scatters(program):
    """Except for the weight of the label of each row."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* (?:gather|scatter)\(", program.text)
    assert all(math.prod(int(n) for n in shape.split(",")) <= ROWS for shape in shapes)
    assert len(shapes) == len(re.findall(r"\b(?:gather|scatter)\(", program.text))


@on("h200", *TPUS)
def test_how_often_the_logits_are_read(program, name, classes):
    """Reads of labels and cotangents of the size of the logits count too."""
    assert program.passes()[0] == CASES[name].reads[CLASSES.index(classes)]


@pytest.mark.accelerators
@pytest.mark.xdist_group("v6e")
@pytest.mark.parametrize(
    "name",
    sampling.sample(
        [name for name in CASES if "softmax" in name and "masks" not in name],
        "softmax",
        "log_softmax, value and backward",
    ),
)
def test_a_tpu_reads_short_rows_as_it_reads_long_ones(name):
    """A GPU has a kernel that keeps a row. Moving a mask to a nearer memory is not a pass here."""
    program = of_case("v6e", name, min(CLASSES))
    assert program.passes() == (CASES[name].reads[1], CASES[name].writes)


@on("h200")
def test_how_many_kernels_are_launched(program, name, classes):
    assert len(program.kernels) == CASES[name].kernels[CLASSES.index(classes)]


@pytest.mark.share(2)
@pytest.mark.accelerators
@pytest.mark.parametrize(
    ("platform", "asked", "products", "megabytes"),
    [
        pytest.param("h200", (), 1, 300, marks=pytest.mark.full),
        ("h200", (0, 1), 3, 2800),
        pytest.param("v6e", (), 1, 300, marks=pytest.mark.full),
        ("v6e", (0, 1), 3, 3300),
    ],
    ids=str,
)
def test_a_head_of_128256_classes(platform, asked, products, megabytes):
    """Temporaries: a block of logits, and with gradients that of the weight in float32, 2101 MB."""
    features, classes = 4096, 128256
    loss = functools.partial(jsoftmax.linear_cross_entropy, reduction="mean")
    function = jax.value_and_grad(loss, asked) if asked else loss
    hidden, weight = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((ROWS, features), (features, classes))
    )
    program = compiled_for(platform, function, hidden, weight, class_ids(hidden))
    text = program.as_text()
    memory = program.memory_analysis()
    # The TPU compiler counts twice, in its temporaries, the arrays that it places once.
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert memory.peak_memory_in_bytes - kept <= megabytes * 1e6
    assert len(re.findall(r" (?:dot|convolution)\(", text)) == products
    assert not re.findall(r" (?:gather|scatter)\(", text)
    shapes = {tuple(map(int, shape.split(","))) for shape in re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", text)}
    assert max(math.prod(shape) for shape in shapes) <= features * classes


def divergence(name, *asked):
    function = getattr(jsoftmax, name)
    of_both = jax.value_and_grad(lambda *pair: jnp.sum(function(*pair)), asked) if asked else function
    return lambda x: (of_both, (x, x))


def tangent(function):
    def push(x, v):
        with jsoftmax.forward_mode():
            return jax.jvp(function, (x,), (v,))

    return lambda x: (push, (x, x))


def a_number(x):
    return jax.ShapeDtypeStruct((), jnp.float32)


def map_and_temperature(function):
    def both(x, g, temperature):
        out, pull = jax.vjp(lambda x, t: function(x, temperature=t), x, temperature)
        return out, pull(g)

    return lambda x: (both, (x, x, a_number(x)))


def masked_at_temperature(function):
    def both(x, g, where, temperature):
        out, pull = jax.vjp(lambda x: function(x, where=where, temperature=temperature), x)
        return out, pull(g)

    return lambda x: (both, (x, x, jax.ShapeDtypeStruct(x.shape[1:], bool), a_number(x)))


def loss_and_temperature(x):
    def loss(x, temperature, y):
        return jsoftmax.cross_entropy(x, y, temperature=temperature, reduction="mean")

    return jax.value_and_grad(loss, (0, 1)), (x, a_number(x), class_ids(x))


def loss_and_every_gradient(x):
    def loss(x, numbers, weights, y):
        return jsoftmax.cross_entropy(x, y, class_weights=weights, reduction="mean", **numbers)

    numbers = dict.fromkeys(("temperature", "label_smoothing", "z_loss", "soft_cap"), a_number(x))
    weights = jax.ShapeDtypeStruct(x.shape[1:], jnp.float32)
    return jax.value_and_grad(loss, (0, 1, 2)), (x, numbers, weights, class_ids(x))


def curvature(gradient_of):
    """A Hessian-vector product of the value, and of its gradient in x only."""

    def of(x):
        value_and_gradient, arguments = gradient_of(x)

        def product(v, x, *others):
            return jax.jvp(lambda x: value_and_gradient(x, *others)[1], (x,), (v,))[1]

        return product, (x, *arguments)

    return of


ON_GPU = {
    "kl_divergence": Case(divergence("kl_divergence"), (6, 6), 0, (8, 12)),
    "kl_divergence, gradient in q": Case(divergence("kl_divergence", 1), (6, 6), 1, (11, 15)),
    "kl_divergence, both gradients": Case(divergence("kl_divergence", 0, 1), (8, 8), 2, (15, 21)),
    "js_divergence": Case(divergence("js_divergence"), (6, 6), 0, (11, 16)),
    "js_divergence, both gradients": Case(divergence("js_divergence", 0, 1), (10, 10), 2, (22, 31)),
    "softmax, tangent": Case(tangent(softmax), (3, 5), 2, (2, 10)),
    "log_softmax, tangent": Case(tangent(log_softmax), (3, 5), 2, (2, 10)),
    "softmax, mask and T": Case(masked_at_temperature(softmax), (3, 5), 2, (2, 12)),
    "log_softmax, mask and T": Case(masked_at_temperature(log_softmax), (3, 5), 2, (2, 13)),
    "softmax, gradient in T": Case(map_and_temperature(softmax), (5, 7), 2, (5, 23)),
    "log_softmax, gradient in T": Case(map_and_temperature(log_softmax), (5, 7), 2, (5, 25)),
    "class ids, gradient in T": Case(loss_and_temperature, (3, 3), 1, (14, 16)),
    "class ids, every gradient": Case(loss_and_every_gradient, (3, 3), 1, (42, 45)),
    "class ids, curvature": Case(curvature(value_and_gradient(class_ids)), (5, 5), 1, (8, 12)),
    "most options, curvature": Case(
        curvature(with_every_option(but=("soft_cap", "temperature"))), (5, 5), 1, (12, 18)
    ),
}


@pytest.mark.accelerators
@pytest.mark.diagonal
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", ON_GPU)
def test_sums_and_arrays_of_the_same_exponentials_share_none_on_a_gpu(name, classes):
    """XLA would store these, in float32 and in the shape of the logits."""
    of, reads, writes, kernels = ON_GPU[name]
    function, arguments = of(jax.ShapeDtypeStruct((ROWS, classes), jnp.bfloat16))
    program = Program(compiled_for("h200", function, *arguments), ROWS * classes)
    assert {dtype for dtypes in program.large.values() for dtype in dtypes} == {"bf16"}
    assert program.passes() == (reads[CLASSES.index(classes)], writes)
    assert len(program.kernels) == kernels[CLASSES.index(classes)]
    assert program.temporaries < 0.02 * program.logits * jnp.bfloat16.dtype.itemsize
