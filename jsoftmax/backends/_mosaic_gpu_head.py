"""The loss of a linear head on a Hopper GPU: one kernel multiplies, and its logits stay in registers.

The kernel divides the product into tiles of 128 rows and 256 classes, and a row of tiles into runs. For every
row and run it stores a state, three numbers, which XLA then merges. The merge of a row within a cluster would
need all its tiles in at most 16 blocks, and would not pay: with N = 8192 rows, D = 4096 and V = 128256
classes, the states of 72 runs take 7 MB, and to write and read them 3 µs of about 11 ms. With runs, 66
clusters of two blocks get 245 tiles each where an exact division would give 242.9, and N from 1024 to 16384
is divided as well (`Sizes.plan`).

Counted for these sizes and one of the 132 multiprocessors of an H200, in clock cycles:

- The products of a tile take 65536, 128 for each 64 × 256 × 16.
- Shared memory delivers 10 KB for each of these, which takes 80 of the 128.
- The reduction of a tile takes about 1250 instructions of each warp, 10 for each element (13 in a tile with
  a label, of which few have one), and 1024 at least for the exponentials. The two warpgroups run two slabs
  apart, so that 1024 cycles of products of one hide the reduction of the other: 0.6 % remains of 4 %.
- A slab of 64 columns takes 1024, in which the block loads 32 KB: 7.4 TB/s in all, of the second-level cache.
  Without the cluster, whose two blocks share the slab of the weight, it would be 48 KB.
- The tiles at work have 16 MB of hidden states and about as much of the weight in the cache, and the latter
  changes with every tile: at most 0.9 TB/s of device memory.

So the products bound the kernel. It can reach 0.98 of their time, times what its loop reaches of the fastest
product. With D = 512, a tile has 8 slabs, and the reduction takes 5 % more.

The exponential of the hardware has a relative error of 2⁻²² and is squared, so the rest has at most a few ulp
more than from a float32 sum of exact terms. The rounding of the logits is larger.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.backends._accelerators import Part, classes, merged, one_pass
from jsoftmax.backends._mosaic_gpu_head_kernel import Product
from jsoftmax.backends._mosaic_gpu_head_tiles import Sizes, part
from jsoftmax.logits._scaling import Scaling

_GROUP = 8, 64  # rows and columns of an operand in memory; the copy engine takes them in whole groups


def refuses(hidden: Array, weight: Array, vocab_axis: int) -> str | None:
    """Why the kernel cannot run, or None."""
    axis, depth = vocab_axis % 2, hidden.shape[1]
    classes, group = weight.shape[axis], _GROUP[axis]
    if jax.__version_info__ < (0, 11):
        return f"the kernel needs jax 0.11 or later, and this is jax {jax.__version__}"
    if hidden.dtype != weight.dtype or hidden.dtype not in (jnp.bfloat16, jnp.float16):
        return (
            "hidden and weight must both be bfloat16 or both be float16, "
            f"and they are {hidden.dtype} and {weight.dtype}"
        )
    if depth == 0 or depth % Sizes().depth:
        return f"the length of a hidden state must be a multiple of {Sizes().depth}, and it is {depth}"
    if axis == 1 and classes % group:
        return (
            f"{classes} classes along the last axis of weight are no multiple of {group}; "
            "along its first axis, any number of classes is possible"
        )
    if classes < group or not hidden.size:
        return f"there must be rows, and at least {group} classes"
    return None


def head_state(
    hidden: Array, weight: Array, labels: Array, *, vocab_axis: int, interpret: Any = None
) -> tuple[Array, Array, Array]:
    """The largest logit, the rest and the logit of the label of every row, each [N, 1] in float32.

    ``logits = hidden @ weight``, summed in float32. The rest, ``Σ exp(z − max) − 1``, is that of `online`: it
    keeps its digits where one class leads. It is NaN in a row with NaN or +inf, −1 if all logits are −inf.
    The logit of the label is of the same sums: where the label leads, it is equal to the largest.

    Numbers of rows that are no multiple of 8 cost a copy of `hidden`. The last classes beyond a multiple of 8
    cost a small product outside of the kernel. `refuses` says what is not possible.

    Args:
        hidden: [N, D], in bfloat16 or float16.
        weight: [D, V] or [V, D], in the dtype of `hidden`.
        labels: [N, 1] in int32; outside of [0, V), the logit of the label is 0.
        vocab_axis: The axis of the classes in `weight`.
        interpret: The parameters of an interpreter, instead of the compiler.
    """
    sizes = Sizes() if len(hidden) > 2 * Sizes().rows else Sizes(cluster=1)
    return in_tiles(hidden, weight, labels, sizes, vocab_axis=vocab_axis, interpret=interpret)


def in_tiles(
    hidden: Array, weight: Array, labels: Array, sizes: Sizes, *, vocab_axis: int, interpret: Any = None
) -> tuple[Array, Array, Array]:
    """`head_state` for a kernel of given sizes."""
    rows, classes = len(hidden), weight.shape[vocab_axis]
    classes_first = vocab_axis % 2 == 0
    group = _GROUP[0]
    in_kernel = classes // group * group if classes_first else classes
    product = Product(sizes.plan(rows, in_kernel), sizes, hidden.shape[1], in_kernel, classes_first)
    ids = jnp.where(labels < in_kernel, jnp.maximum(labels, -1), -1)[:, 0]
    ids = jnp.pad(ids, (0, product.rows - rows), constant_values=-1)
    # Not in the kernel: a reduction across warps of both warpgroups is a race in Mosaic GPU (`findings`).
    tile_of_label = jnp.reshape(ids // sizes.classes, (-1, sizes.rows, 1))
    label_tiles = jnp.any(tile_of_label == jnp.arange(product.plan.tiles)[None, None], 1)
    runs = product.kernel(hidden.dtype, interpret)(
        jnp.pad(hidden, ((0, -rows % group), (0, 0))),
        weight[:in_kernel] if classes_first else weight,
        ids,
        label_tiles.astype(jnp.int32),
    )
    whole: Any = one_pass(part(*(a[:, :rows].T for a in runs)), (1,))
    if in_kernel < classes:
        whole = merged(whole, _last_classes(hidden, weight[in_kernel:], labels - in_kernel))
    return whole.top, whole.rest, whole.label_logit


def _last_classes(hidden: Array, weight: Array, labels: Array) -> Part:
    """The part of fewer than 8 classes, which XLA multiplies."""
    z = lax.dot_general(hidden, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    at_label = jnp.where(jnp.arange(len(weight))[None] == labels, z, 0.0)
    return one_pass(classes(z, Scaling(None), (), False, at_label), (1,))
