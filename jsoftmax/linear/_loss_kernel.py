"""The losses of a linear head from a kernel, which multiplies and sums without storing a block of logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online
from jsoftmax.backends import _kernels
from jsoftmax.linear._products import Rows, Shared, Static
from jsoftmax.rows._statistics import Numbers, Saved, nan_if_bad, zero_unless_counted
from jsoftmax.transforms import _modes
from jsoftmax.transforms._platforms import by_platform
from jsoftmax.transforms._sharding import on_one_device, partition_spec, spec, varying

WANTED = frozenset({"nll", "log_normalizer"})
REASON = "a Mosaic kernel, which multiplies and sums without storing logits"
Found = tuple[Numbers, Saved]


def refuses(hidden: Array, weight: Array, vocab_axis: int) -> str | None:
    """Why the kernel cannot compute the losses of a head without options; None if it can."""
    known = on_one_device(hidden, *range(hidden.ndim)) and on_one_device(weight, 0, 1)
    if not known or partition_spec(hidden, *spec(hidden)) is not None:
        return "the arrays may be sharded: call it within jax.shard_map"
    rows: Any = jax.ShapeDtypeStruct((math.prod(hidden.shape[:-1]), hidden.shape[-1]), hidden.dtype)
    reason: str | None = _kernels.module("gpu_head").refuses(rows, weight, vocab_axis)
    return reason


def or_blocks(static: Static, blocks: Callable[[Rows, Shared], Found], rows: Rows, shared: Shared) -> Found:
    """The numbers of all rows and their residuals: from the kernel where a GPU has it, else ``blocks(…)``."""
    if not _modes.kernels() or not static.wanted <= WANTED:
        return blocks(rows, shared)
    kernel = _kernels.with_plain_tangent(partial(_of_kernel, static), blocks)
    return by_platform("the numbers of every row", rows, shared, plain=blocks, gpu=(kernel, REASON))


def _of_kernel(static: Static, rows: Rows, shared: Shared) -> Found:
    rows = rows.of_block(None)
    given = rows.hidden, shared.weight, rows.labels
    top, rest, logit = (varying(a, given) for a in _state(static.vocab_axis)(*given))
    is_id = (rows.labels >= 0) & (rows.labels < shared.weight.shape[static.vocab_axis])
    empty, log_total = rest < 0, online.log_total(rest)
    found = {
        "nll": nan_if_bad(log_total - (logit - top), ~is_id, empty),
        "log_normalizer": jnp.where(empty, -jnp.inf, top + log_total),
    }
    found = {name: zero_unless_counted(found[name], rows.counted) for name in static.wanted}
    state = jax.tree.map(lambda a: zero_unless_counted(a, rows.counted), online.State(top, rest))
    weights = rows.terms.weights
    saved = Saved(None, state, found, None, None).without(None if weights is None else weights == 0)
    return saved.numbers, saved


def _state(vocab_axis: int) -> Callable[..., Any]:
    """The kernel; `jax.vmap` with one weight for all turns its mapped axis into more rows."""

    def kernel(*arrays: Array) -> Any:
        with jax.enable_x64(False):  # a number of Python would have 64 bits in the kernel
            return _kernels.module("gpu_head").head_state(*arrays, vocab_axis=vocab_axis)

    function = jax.custom_batching.custom_vmap(kernel)

    @function.def_vmap
    def more_rows(size: int, is_mapped: Any, hidden: Array, weight: Array, labels: Array) -> Any:
        def spread(a: Array, mapped: bool) -> Array:
            return a if mapped else jnp.broadcast_to(a, (size, *a.shape))

        hidden, labels = spread(hidden, is_mapped[0]), spread(labels, is_mapped[2])
        if is_mapped[1]:
            found = lax.map(lambda arrays: function(*arrays), (hidden, weight, labels))
        else:
            found = function(hidden.reshape(-1, hidden.shape[-1]), weight, labels.reshape(-1, 1))
            found = jax.tree.map(lambda a: a.reshape(size, -1, 1), found)
        return found, jax.tree.map(lambda _: True, found)

    return function
