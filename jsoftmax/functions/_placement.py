"""The memory that each device of a mesh needs for a linear head, and the bytes that it sends."""

from __future__ import annotations

import operator
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from jsoftmax import rules
from jsoftmax.border._call import Call
from jsoftmax.linear import _arguments, _plan
from jsoftmax.linear._arguments import BlockSize
from jsoftmax.linear._plan import BlockPlan

NUMBERS = 4  # per row of a plain loss, which the shards of the classes add up


class Transfer(NamedTuple):
    """A collective within groups of devices, run once or once per block."""

    kind: str  # "all-reduce", "all-gather" or "reduce-scatter"
    of: str  # the array
    axis: str  # the mesh axis: "rows" or "classes"
    devices: int  # in a group
    times: int
    elements: int  # the size of the whole array: after a gather, before a scatter
    itemsize: int

    @property
    def bytes(self) -> int:
        """The bytes of the whole arrays of all times."""
        return self.times * self.elements * self.itemsize

    @property
    def sent(self) -> int:
        """The bytes that a device sends in a ring: (n − 1)/n of the array, twice that in an all-reduce."""
        parts = (self.devices - 1) * (2 if self.kind == "all-reduce" else 1)
        return -(-parts * self.bytes // self.devices)

    def __str__(self) -> str:
        times = f" {self.times} times" if self.times > 1 else ""
        return f"{self.kind} of {self.of} over {self.devices} devices{times}: {_size(self.bytes)}"


class Placement(NamedTuple):
    """A linear head on a mesh: the memory of each device, and what it sends, for a loss and its gradients.

    >>> import jsoftmax
    >>> placement = jsoftmax.linear_placement(65536, 4096, 131072, mesh=(2, 4), fsdp=True, dtype="bfloat16")
    >>> print(placement)
    2 × 4 devices: 2.5 GiB held by each, 1.0 GiB sent
    >>> print(placement.plan)
    16 blocks of 2048 rows × 32768 classes, 256.0 MiB of logits each
    >>> for transfer in placement.transfers[1:3]:
    ...     print(transfer)
    all-gather of the weight over 2 devices: 256.0 MiB
    reduce-scatter of the gradient of the weight over 2 devices: 256.0 MiB
    """

    plan: BlockPlan  # the blocks of each device
    features: int
    mesh: tuple[int, int]  # devices along the rows, along the classes
    fsdp: bool
    itemsize: int  # bytes per element of hidden and the weight
    wide: int  # bytes per element in the computation

    @property
    def _hidden(self) -> int:
        return self.plan.rows * self.features

    @property
    def _weight(self) -> int:
        return self.features * self.plan.classes

    @property
    def gradient_bytes(self) -> int:
        """The bytes of the gradients of hidden and of the weight."""
        return self.itemsize * (self._hidden + self._weight // (self.mesh[0] if self.fsdp else 1))

    @property
    def argument_bytes(self) -> int:
        """The bytes of hidden, the weight and the labels."""
        return self.gradient_bytes + 4 * self.plan.rows

    @property
    def temporary_bytes(self) -> int:
        """A bound: a block of logits, its gradient, wide gradients, padded hidden, the gathered weight."""
        padded = self._hidden if self.plan.row_blocks * self.plan.block_rows > self.plan.rows else 0
        gathered = self._weight if self.fsdp and self.mesh[0] > 1 else 0
        wide = self.wide * (self._hidden + self._weight)
        return 2 * self.plan.block_bytes + wide + self.itemsize * (padded + gathered)

    @property
    def device_bytes(self) -> int:
        """The bytes that a device needs at once, without the state of an optimizer."""
        return self.argument_bytes + self.gradient_bytes + self.temporary_bytes

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """The collectives, along each mesh axis with more than one device."""
        blocks, rows, weight = self.plan.row_blocks, self.plan.block_rows, self._weight
        over_classes = (
            ("all-reduce", "the maxima of a block", blocks, rows, self.wide),
            ("all-reduce", "the sums of a block", blocks, NUMBERS * rows, self.wide),
            ("all-reduce", "the gradient of hidden", 1, self._hidden, self.wide),
        )
        over_rows: tuple[tuple[str, str, int, int, int], ...] = (
            ("all-reduce", "the loss", 1, 1, self.wide),
            ("all-reduce", "the gradient of the weight", 1, weight, self.wide),
        )
        if self.fsdp:
            over_rows = (
                over_rows[0],
                ("all-gather", "the weight", 1, weight, self.itemsize),
                ("reduce-scatter", "the gradient of the weight", 1, weight, self.itemsize),
            )
        axes = zip(("rows", "classes"), self.mesh, (over_rows, over_classes), strict=True)
        return tuple(
            Transfer(kind, of, axis, devices, *numbers)
            for axis, devices, transfers in axes
            if devices > 1
            for kind, of, *numbers in transfers
        )

    @property
    def sent_bytes(self) -> int:
        """The bytes that a device sends in all transfers."""
        return sum(transfer.sent for transfer in self.transfers)

    def __str__(self) -> str:
        devices = f"{self.mesh[0]} × {self.mesh[1]} devices"
        return f"{devices}: {_size(self.device_bytes)} held by each, {_size(self.sent_bytes)} sent"


def _size(count: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count} bytes"


def linear_placement(
    rows: int,
    features: int,
    classes: int,
    *,
    mesh: tuple[int, int],
    fsdp: bool = False,
    dtype: DTypeLike = jnp.float32,
    block_size: BlockSize = None,
) -> Placement:
    """The memory of each device of a mesh for `linear_cross_entropy` with gradients, and the bytes it sends.

    Within `jax.shard_map`, rows are sharded over one mesh axis, `row_axis_name`, and classes over the other,
    `axis_name`; the loss is a plain "mean" with class ids. A device computes the logits of its own rows and
    classes, in the blocks of `linear_plan`. With R × C devices, each holds (B/R)·D numbers of hidden, D·V/C
    of the weight, the same numbers of their gradients, and two blocks of logits. Devices with the same rows
    sum the gradient of hidden and, for each block, five numbers per row; devices with the same classes sum
    the gradient of the weight. The bytes are computed from the sizes: temporaries as a bound, all else exact.

    Args:
      rows: B, the number of rows on all devices.
      features: D.
      classes: V.
      mesh: the numbers of devices (R, C) along the rows and along the classes.
      fsdp: whether the features of the weight are sharded over the rows' axis. It is then gathered there, and
        its gradient scattered.
      dtype: the dtype of hidden and the weight.
      block_size: as in `linear_cross_entropy`.

    Returns:
      A `Placement`; print it for a summary.

    Raises:
      TypeError, ValueError: for sizes that are not integers or that the mesh does not divide, and for a dtype
        that is not a float type.

    >>> import jsoftmax
    >>> for mesh in (8, 1), (1, 8):
    ...     print(jsoftmax.linear_placement(65536, 4096, 131072, mesh=mesh, dtype="bfloat16"))
    8 × 1 devices: 6.3 GiB held by each, 3.5 GiB sent
    1 × 8 devices: 2.8 GiB held by each, 1.8 GiB sent
    """
    call = Call(
        "linear_placement",
        rows=rows,
        features=features,
        classes=classes,
        mesh=mesh,
        fsdp=fsdp,
        dtype=dtype,
        block_size=block_size,
    )
    sizes = {name: call.size(name) for name in ("rows", "features", "classes")}
    rows, features, classes = sizes.values()
    if not classes:
        raise call.error(ValueError, "there are no classes", "give at least one")
    over_rows, over_classes = _devices(call)
    parts = {"rows": over_rows, "classes": over_classes, "features": over_rows if fsdp else 1}
    for name, devices in parts.items():
        if sizes[name] % devices:
            problem = f"{devices} devices do not divide {sizes[name]} {name}"
            raise call.error(ValueError, problem, f"pad to {-(-sizes[name] // devices) * devices}")
    narrow = call.float_dtype("dtype")
    wide = rules.computing_dtype(narrow).itemsize
    plan = _plan.plan(
        rows // over_rows,
        features,
        classes // over_classes,
        itemsize=wide,
        block_size=_arguments.block_size(call),
    )
    if over_classes > 1:
        plan = plan._replace(block_classes=plan.classes)
    return Placement(plan, features, (over_rows, over_classes), fsdp, narrow.itemsize, wide)


def _devices(call: Call) -> tuple[int, int]:
    """The numbers of devices along the rows and along the classes."""
    mesh = call.arguments["mesh"]
    try:
        numbers = [operator.index(n) for n in mesh] if isinstance(mesh, tuple) else []
    except TypeError:
        numbers = []
    if len(numbers) != 2 or min(numbers) < 1 or bool in map(type, mesh):
        raise call.error(ValueError, f"mesh is {mesh!r}", "write two numbers of devices, from 1 up")
    return numbers[0], numbers[1]
