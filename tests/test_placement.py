"""`linear_placement` counts the memory and the traffic of the compiled program on eight devices."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jsoftmax

ROWS, FEATURES, CLASSES, BLOCK = 4096, 128, 4096, 256
DTYPES = {"f32": "float32", "bf16": "bfloat16"}
PLACES = {"rows": ((8, 1), True), "classes": ((1, 8), False), "both": ((2, 4), False), "fsdp": ((2, 4), True)}


def lowered(mesh, fsdp, dtype):
    """A step of the head, sharded as in `linear_placement`."""

    def step(hidden, shard, labels):
        def loss(hidden, weight):
            if fsdp:
                weight = jax.lax.all_gather(weight, "rows", axis=0, tiled=True)
            on = {"axis_name": "classes", "row_axis_name": "rows"}
            return jsoftmax.linear_cross_entropy(
                hidden, weight, labels, reduction="mean", block_size=BLOCK, **on
            )

        return jax.value_and_grad(loss, (0, 1))(hidden, shard)

    specs = (P("rows"), P("rows" if fsdp else None, "classes"), P("rows"))
    mesh = jax.make_mesh(mesh, ("rows", "classes"), axis_types=(AxisType.Auto,) * 2)
    step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(P(), specs[:2])))
    shapes = ((ROWS, FEATURES), dtype), ((FEATURES, CLASSES), dtype), ((ROWS,), jnp.int32)
    return step.lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))


def members(groups):
    """The number of devices in a group: {{0,1},{2,3}}, or mesh['rows'=2,'classes'=4] {'rows'}."""
    if not groups.startswith("mesh"):
        return groups[2:].split("}")[0].count(",") + 1
    mesh, over = groups.split("] ")
    lengths = dict(re.findall(r"('\w+')=(\d+)", mesh))
    return math.prod(int(lengths[name]) for name in re.findall(r"'\w+'", over))


def exchanged(program):
    """The transfers of a compiled program, sorted: kind, devices, times and the bytes of one time."""
    found, times, inside = [], {}, None
    for line in program.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            inside = header[1]
        if loop := re.search(r' while\(.*body=%?([\w.-]+).*"known_trip_count":\{"n":"(\d+)"', line):
            times[loop[1]] = int(loop[2])
        pattern = r"= (.*?) (all-\w+|reduce-scatter|collective-\w+)\(.*replica_groups=(.*?), \w+="
        if transfer := re.search(pattern, line):
            devices = members(transfer[3])
            for kind, lengths in re.findall(r"(\w+)\[([\d,]*)\]", transfer[1]):
                size = math.prod(map(int, lengths.split(","))) * jnp.dtype(DTYPES[kind]).itemsize
                size *= devices if transfer[2] == "reduce-scatter" else 1
                found.append((inside, transfer[2], devices, size))
    assert found
    return sorted((k, n, times.get(inside, 1), size) for inside, k, n, size in found if n > 1)


@pytest.mark.share(2)
@pytest.mark.parametrize("place", PLACES)
def test_the_compiled_program(place):
    mesh, fsdp = PLACES[place]
    compiled = lowered(mesh, fsdp, jnp.float32).compile()
    found = jsoftmax.linear_placement(ROWS, FEATURES, CLASSES, mesh=mesh, fsdp=fsdp, block_size=BLOCK)
    counted = [(t.kind, t.devices, t.times, t.elements * t.itemsize) for t in found.transfers]
    assert exchanged(compiled.as_text()) == sorted(counted)
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes == found.argument_bytes
    assert 0 <= memory.output_size_in_bytes - found.gradient_bytes < 64  # the loss, and pointers
    # If gradients have the computing dtype, XLA may accumulate them in the results.
    assert 0.6 < memory.temp_size_in_bytes / found.temporary_bytes < 1.02


def test_sixteen_bits():
    """As sent, before XLA widens arrays on CPU: the weight in its dtype, sums in float32."""
    program = lowered((2, 4), True, jnp.bfloat16).as_text()
    found = jsoftmax.linear_placement(
        ROWS, FEATURES, CLASSES, mesh=(2, 4), fsdp=True, dtype=jnp.bfloat16, block_size=BLOCK
    )
    want = sorted((t.kind.replace("-", "_"), t.elements, t.itemsize) for t in found.transfers)
    pattern = r'"stablehlo\.(all_\w+|reduce_scatter)"(?s:.*?)\(tensor<([\dx]+)x(\w+)>\) -> tensor<([\dx]+)x'
    sent = [
        (kind, max(math.prod(map(int, shape.split("x"))) for shape in (before, after)), dtype)
        for kind, before, dtype, after in re.findall(pattern, program)
    ]
    assert sorted((kind, size, jnp.dtype(DTYPES[dtype]).itemsize) for kind, size, dtype in sent) == want


def test_bytes_around_a_ring():
    found = jsoftmax.linear_placement(64, 16, 256, mesh=(4, 2), fsdp=True)
    weight, hidden = 16 * 128 * 4, 16 * 16 * 4
    gathered, scattered, summed = 3 * weight // 4, 3 * weight // 4, 2 * hidden // 2
    rows = (1 + 4) * 16 * 4
    assert found.sent_bytes == 6 + gathered + scattered + summed + rows
    assert jsoftmax.linear_placement(64, 16, 256, mesh=(1, 1), fsdp=True).transfers == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mesh": (3, 1)}, "3 devices do not divide 64 rows; pad to 66"),
        ({"mesh": (1, 3)}, "3 devices do not divide 256 classes; pad to 258"),
        ({"mesh": (32, 1), "fsdp": True}, "32 devices do not divide 16 features; pad to 32"),
        ({"mesh": (8,)}, r"mesh is \(8,\); write two numbers of devices"),
        ({"mesh": (True, 8)}, r"mesh is \(True, 8\); write two numbers of devices"),
        ({"mesh": (1, 1), "dtype": "float33"}, "dtype is 'float33'; write a float type"),
        ({"mesh": (1, 1), "dtype": "complex64"}, "dtype is 'complex64'; write a float type"),
    ],
)
def test_a_wrong_call_is_refused_in_words(arguments, message):
    with pytest.raises(
        (TypeError, ValueError), match=rf"^jsoftmax\.linear_placement\(rows=64, .*: {message}"
    ):
        jsoftmax.linear_placement(64, 16, 256, **arguments)


def test_numpy_sizes_do_not_wrap():
    sizes = 2**20, 4096, 2**17
    want = jsoftmax.linear_placement(*sizes, mesh=(8, 1), dtype="bfloat16")
    found = jsoftmax.linear_placement(*map(np.int32, sizes), mesh=(np.int64(8), 1), dtype=jnp.bfloat16)
    assert (found, found.device_bytes, found.sent_bytes) == (want, want.device_bytes, want.sent_bytes)
