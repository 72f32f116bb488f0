"""The loss of a linear head on a Hopper GPU, for which one kernel reads the logits from registers only.

docs
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

_GROUP = (
    8  # the copy engine needs whole groups of rows of an operand, of the shape that the tensor cores read
)


def refuses(hidden: Array, weight: Array, vocab_axis: int) -> str | None:
    """Why the kernel cannot run, or None."""
    classes, depth = weight.shape[vocab_axis], hidden.shape[1]
    if jax.__version_info__ < (0, 11):
        return f"the kernel needs jax 0.11 or later, and this is jax {jax.__version__}"
    if hidden.dtype != weight.dtype or hidden.dtype not in (jnp.bfloat16, jnp.float16):
        return (
            "hidden and weight must both be bfloat16 or both be float16, "
            f"and they are {hidden.dtype} and {weight.dtype}"
        )
    if depth == 0 or depth % Sizes().depth:
        return f"the length of a hidden state must be a multiple of {Sizes().depth}, and it is {depth}"
    if vocab_axis % 2 and classes % _GROUP:
        return (
            f"{classes} classes along the last axis of weight are no multiple of {_GROUP}; "
            "along its first axis, any number of classes is possible"
        )
    if classes < _GROUP or not hidden.size:
        return f"there must be rows, and at least {_GROUP} classes"
    return None


def head_state(
    hidden: Array, weight: Array, labels: Array, *, vocab_axis: int, interpret: Any = None
) -> tuple[Array, Array, Array]:
    """The largest logit, the rest and the logit of the label of every row, each [N, 1] in float32.

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
    in_kernel = classes // _GROUP * _GROUP
    first = vocab_axis % 2 == 0
    product = Product(sizes.plan(rows, in_kernel), sizes, hidden.shape[1], in_kernel, first)
    ids = jnp.where(labels < in_kernel, jnp.maximum(labels, -1), -1)[:, 0]
    ids = jnp.pad(ids, (0, product.rows - rows), constant_values=-1)
    tile_of_label = jnp.reshape(ids // sizes.classes, (-1, sizes.rows, 1))
    label_tiles = jnp.any(tile_of_label == jnp.arange(product.plan.tiles)[None, None], 1)
    runs = product.kernel(hidden.dtype, interpret)(
        jnp.pad(hidden, ((0, -rows % _GROUP), (0, 0))),
        weight[:in_kernel] if first else weight,
        ids,
        label_tiles.astype(jnp.int32),
    )
    whole: Any = one_pass(part(*(jnp.transpose(a[:, :rows]) for a in runs)), (1,))
    if in_kernel < classes:
        whole = merged(whole, _last_classes(hidden, weight[in_kernel:], labels - in_kernel))
    return whole.top, whole.rest, whole.label_logit


def _last_classes(hidden: Array, weight: Array, labels: Array) -> Part:
    """The part of fewer than 8 classes, which XLA multiplies."""
    z = lax.dot_general(hidden, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    at_label = jnp.where(jnp.arange(len(weight))[None] == labels, z, 0.0)
    return one_pass(classes(z, Scaling(None), (), False, at_label), (1,))
