"""Kernels for a Hopper GPU that read the logits once and write a result of their size once, by Mosaic GPU.

A row stays in shared memory between the passes over it, and its result replaces it there. See
`_mosaic_gpu_plan` for how rows are spread, `_mosaic_gpu_moves` for how they come and go, and
`_mosaic_gpu_passes` for the arithmetic, whose formulas are those of `online`, `rules` and `logits`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax.backends import _mosaic_gpu_moves as moves
from jsoftmax.backends._kernel_rows import Row
from jsoftmax.backends._mosaic_gpu_body import run
from jsoftmax.backends._mosaic_gpu_plan import SHARED_MEMORY, WARPS, Limits, block_bytes, plan

Rule = Literal["softmax", "log_softmax"]


class Numbers(NamedTuple):
    """The numbers of a row in the kernel, or their arrays outside, with an entry for every row."""

    temperature: Any = None
    scale: Any = None
    top: Any = None
    rest: Any = None


LIMITS = Limits()
NONE = Numbers()


def refuses(row: Row, name: str) -> str | None:
    """Why a kernel cannot take these rows, or None; a backward pass also holds the cotangent of every row."""
    if jax.__version_info__ < (0, 11):
        return f"the kernels need jax 0.11 or later, and this is jax {jax.__version__}"
    if row.x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"the kernels take bfloat16, float16 and float32, not {row.x.dtype}"
    if not row.x.size:
        return "there are no logits"
    size = _class_bytes(row, "backward" in name)
    rows, classes = row.x.shape
    shape = plan(rows, classes, size, LIMITS)
    if block_bytes(shape, size) > SHARED_MEMORY:
        most = (SHARED_MEMORY - block_bytes(shape, 0)) * 8 // size
        return f"a row of {classes} classes does not fit in the shared memory, about {most} do"
    return None


def state(row: Row, labels: Array | None, interpret: Any = None) -> tuple[Array, Array, Array | None]:
    """The maximum and the rest of every row, and the logit of its label, from one read."""
    _, top, rest, label = _run(row, "state", interpret, labels=labels)
    return top, rest, label


def softmax(row: Row, interpret: Any = None) -> tuple[Array, Array, Array]:
    """The probabilities, and the maximum and the rest of every row."""
    return _run(row, "softmax", interpret)[:3]


def log_softmax(row: Row, interpret: Any = None) -> tuple[Array, Array, Array]:
    """The log-probabilities, and the maximum and the rest of every row."""
    return _run(row, "log_softmax", interpret)[:3]


def loss_and_gradient(
    row: Row, labels: Array, scale: Array, interpret: Any = None
) -> tuple[Array, Array, Array, Array]:
    """The maximum, the rest and the label's logit of every row, and ``scale·(p − e_y)/T``."""
    dx, top, rest, label = _run(row, "loss", interpret, labels=labels, numbers=Numbers(scale=scale))
    return top, rest, label, dx


def backward(rule: Rule, row: Row, top: Array, rest: Array, g: Array, interpret: Any = None) -> Array:
    """The cotangent g of a map, pulled back to the logits."""
    return _run(row, f"{rule} backward", interpret, g=g, numbers=Numbers(top=top, rest=rest))[0]


def _class_bytes(row: Row, backward: bool) -> int:
    return row.x.dtype.itemsize * (2 if backward else 1) + (row.where is not None)


def _run(
    row: Row,
    task: str,
    interpret: Any,
    *,
    labels: Array | None = None,
    g: Array | None = None,
    numbers: Numbers = NONE,
) -> tuple[Any, ...]:
    """The result in the shape of the logits, the maximum, the rest and the label's logit of every row."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    rows, classes = row.x.shape
    large = {name: a for name, a in (("x", row.x), ("where", row.where), ("g", g)) if a is not None}
    if classes < 128 and not all(moves.by_engine(classes, a.dtype.itemsize) for a in large.values()):
        return _run_wider(row, task, interpret, labels=labels, g=g, numbers=numbers)
    shape = plan(rows, classes, _class_bytes(row, g is not None), LIMITS)
    per_row = numbers._replace(temperature=row.temperature)._asdict() | {"labels": labels}
    count = -(-rows // WARPS) * WARPS
    # Each array is padded to whole groups of rows: a warpgroup reads and writes the numbers of four rows.
    given = large | {n: _padded(a.reshape(rows), count) for n, a in per_row.items() if a is not None}
    out: dict[str, Any] = {}
    if task != "state":
        out["out"] = jax.ShapeDtypeStruct((rows, classes), row.x.dtype)
    if g is None:
        out |= {name: jax.ShapeDtypeStruct((count,), jnp.float32) for name in ("top", "rest")}
    if labels is not None:
        out["label"] = jax.ShapeDtypeStruct((count,), jnp.float32)
    exchanges = shape.parts > 1
    shared = WARPS * shape.warpgroups
    if interpret is not None and exchanges and shape.cluster > 1:
        out["stand_in"] = jax.ShapeDtypeStruct((shape.grid, shape.cluster, 2, shared), jnp.float32)
    names = [*given, *out]

    def body(*refs: Any, **scratch: Any) -> None:
        run(task, plgpu, shape, dict(zip(names, refs, strict=True)) | scratch)

    scratch: dict[str, Any] = {
        f"{name}_parts": plgpu.SMEM((shape.stages, shape.warpgroups, WARPS, shape.width), a.dtype)
        for name, a in large.items()
    }
    moved = [a for a in large.values() if moves.by_engine(classes, a.dtype.itemsize)]
    if moved:
        scratch["loaded"] = plgpu.Barrier(
            num_arrivals=WARPS * len(moved), num_barriers=shape.stages * shape.warpgroups
        )
    if exchanges:
        scratch |= {f"slot{i}": plgpu.SMEM((shared,), jnp.float32) for i in range(2)}
    if shape.cluster > 1:
        scratch["met"] = plgpu.ClusterBarrier(collective_axes=("block",), num_arrivals=shape.warpgroups)
    elif shape.warpgroups > 1:
        scratch["met"] = plgpu.Barrier(num_arrivals=shape.warpgroups)
    if labels is not None and shape.short:
        scratch |= {name: plgpu.SMEM((WARPS,), jnp.float32) for name in ("label_logits", "ordered_logits")}
    found = plgpu.kernel(
        body,
        out_type=list(out.values()),
        scratch_types=scratch,
        # A thread reads from shared memory what it wrote there itself. What others wrote is behind
        # `commit_smem` in every case.
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        grid=(shape.grid,),
        grid_names=("cluster",),
        cluster=(shape.cluster,),
        cluster_names=("block",),
        num_threads=shape.warpgroups,
        thread_name="warpgroup",
        interpret=interpret,
        kernel_name=f"jsoftmax_{task.replace(' ', '_')}",
    )(*given.values())
    results = dict(zip(out, found, strict=True))
    of_rows = (results[name][:rows, None] if name in results else None for name in ("top", "rest", "label"))
    return results.get("out"), *of_rows


def _run_wider(row: Row, task: str, interpret: Any, **options: Any) -> tuple[Any, ...]:
    """As `_run`, with dead classes added to short rows until the copy engine can address all of them."""
    classes = row.x.shape[1]
    wider = [(0, 0), (0, -classes % 16)]
    x = jnp.pad(row.x, wider, constant_values=-jnp.inf)
    where = None if row.where is None else jnp.pad(row.where, wider)
    g, labels = options.pop("g"), options.pop("labels")
    g = None if g is None else jnp.pad(g, wider)
    labels = None if labels is None else jnp.where(labels < classes, labels, -1)
    out, *numbers = _run(Row(x, where, row.temperature), task, interpret, g=g, labels=labels, **options)
    return None if out is None else out[:, :classes], *numbers


def _padded(numbers: Array, count: int) -> Array:
    return jnp.pad(numbers, (0, count - numbers.size), constant_values=1)
