"""Checks the arguments of a linear head, flattens its rows, and reshapes each option to a column."""

from __future__ import annotations

import math
import operator
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.border import _backends, _given, _mesh_axes
from jsoftmax.border._arrays import in_dtype
from jsoftmax.border._call import Axes, Call
from jsoftmax.border._label_checks import reported_ids, reported_targets
from jsoftmax.linear import _loss_kernel
from jsoftmax.linear._products import Rows, Sampling, Shared, Static
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling, one_if_unused
from jsoftmax.transforms._platforms import is_portable
from jsoftmax.transforms._sharding import sharded_like

BlockSize = int | tuple[int, int] | None
BACKENDS = ("blocked", "xla")
Gradient = Literal["exact", "sampled", "truncated"]


class Head(NamedTuple):
    """The checked arguments, in their promoted dtype."""

    hidden: Array  # [..., D]
    weight: Array
    bias: Array | None
    scaling: Scaling  # [..., 1], or broadcasting to it
    vocab_axis: int
    block_size: BlockSize
    names: tuple[str, ...]  # the mesh axes of the shards of the classes
    sampling: Sampling | None = None
    key: Array | None = None
    in_kernels: bool = False  # whether to use kernels, where a platform has one for the computation

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The leading axes of hidden."""
        return self.hidden.shape[:-1]

    @property
    def logits(self) -> jax.ShapeDtypeStruct:
        """The shape and dtype of the array of all logits, which is never computed as a whole."""
        shape = (*self.row_shape, self.weight.shape[self.vocab_axis])
        return jax.ShapeDtypeStruct(shape, self.hidden.dtype)

    @property
    def class_axis(self) -> Axes:
        """The class axis of the logits."""
        return (self.hidden.ndim - 1,)

    def rows(self, labels: Array, counted: Array | None = None, hidden: Array | None = None) -> Rows:
        """The arguments with one entry per row, flattened; `hidden` is True in rows of weight 0."""
        size = math.prod(self.row_shape)
        if jnp.issubdtype(labels.dtype, jnp.integer):
            labels = reported_ids(labels, self.logits.shape[-1], self.names)
        features = self.hidden.reshape(size, self.hidden.shape[-1])
        labels = labels.reshape(size, labels.shape[-1])
        if labels.shape[1] == 1:
            labels = sharded_like(labels, features)
        counted = self.column(counted)
        options = self.options(counted, self.column(hidden))
        return Rows(features, labels, counted, *options, where=self.masks()[0])

    def column(self, option: Array | None) -> Array | None:
        """An option, one number or one per row, as a column [B, 1] over the flattened rows."""
        if option is None:
            return None
        if option.ndim == self.hidden.ndim:
            option = jnp.squeeze(option, -1)
        column = jnp.broadcast_to(option, self.row_shape).reshape(-1, 1)
        return sharded_like(column, self.hidden) if self.hidden.ndim == 2 else column

    def options(self, counted: Array | None, hidden: Array | None) -> tuple[Array | None, Array | None]:
        """Temperature and cap as columns; 1 in rows that do not count, and for NaN in hidden rows."""
        temperature, cap = (one_if_unused(self.column(a), counted, hidden) for a in self.scaling[1:3])
        return temperature, cap

    def masks(self) -> tuple[Array | None, Array | None]:
        """The mask per row, [B, V], and the mask of all rows, [1, V]; at least one of them is None."""
        where, classes = self.scaling.where, self.logits.shape[-1]
        if where is None:
            return None, None
        if math.prod(where.shape[:-1]) == 1:
            of_all = jnp.broadcast_to(where.reshape(1, -1), (1, classes))
            return None, sharded_like(of_all[0], self.weight, self.vocab_axis)[None, :]
        return jnp.broadcast_to(where, self.logits.shape).reshape(-1, classes), None

    def reported(self, value: Array, rows: Rows) -> Array:
        """The value, unchanged; checkify reports bad targets of the rows."""
        if rows.has_class_ids:
            return value
        targets, weights = rows.labels, rows.terms.weights
        targets = targets if weights is None else jnp.where(weights == 0, 0.0, targets)
        return reported_targets(value, targets, 1, self.names)

    def shared(self, class_weights: Array | None = None) -> Shared:
        """The arguments that all rows share."""
        bias, weights = (
            None if a is None else sharded_like(a, self.weight, self.vocab_axis)[None, :]
            for a in (self.bias, class_weights)
        )
        return Shared(self.weight, bias, weights, self.masks()[1], self.key)

    def static(self, wanted: frozenset[str]) -> Static:
        """The facts that are known when a program is traced."""
        return Static(self.vocab_axis, self.block_size, self.names, wanted, sampling=self.sampling)


def of_call(call: Call, prefix: str = "", *, for_loss: bool = False) -> Head:
    """The head that the arguments of a public call specify; the names of the arguments have the prefix.

    Only `for_loss` there is the backend "mosaic".
    """
    hidden, weight = call.floats(f"{prefix}hidden"), call.floats(f"{prefix}weight")
    bias = None if call.arguments[f"{prefix}bias"] is None else call.floats(f"{prefix}bias")
    if weight.ndim != 2:
        problem = f"{prefix}weight of shape {weight.shape}"
        remedy = "give it two axes, [D, V], or [V, D] with vocab_axis=0; the labels come third"
        raise call.error(ValueError, problem, remedy)
    vocab_axis = _vocab_axis(call)
    classes, features = weight.shape[vocab_axis], weight.shape[1 - vocab_axis]
    if not hidden.ndim or hidden.shape[-1] != features:
        problem = f"{prefix}hidden of shape {hidden.shape} for a weight of {features} features"
        remedy = f"give {prefix}hidden {features} features along its last axis"
        if hidden.ndim and hidden.shape[-1] == classes:
            remedy += f", or write vocab_axis={-1 if vocab_axis == 0 else 0}"
        raise call.error(ValueError, problem, remedy)
    if not classes:
        problem = f"there are no classes: {prefix}weight has shape {weight.shape}"
        raise call.error(ValueError, problem, "give at least one class")
    if bias is not None and bias.shape != (classes,):
        problem = f"{prefix}bias of shape {bias.shape} for {classes} classes"
        raise call.error(ValueError, problem, f"give it the shape {(classes,)}")
    arrays = (hidden, weight) if bias is None else (hidden, weight, bias)
    dtype = jnp.result_type(*(a.dtype for a in arrays))
    head = Head(
        in_dtype(hidden, dtype),
        in_dtype(weight, dtype),
        None if bias is None else in_dtype(bias, dtype),
        Scaling(None),
        vocab_axis,
        block_size(call),
        _mesh_axes.of_classes(call, (f"{prefix}weight",)),
    )
    head = head._replace(scaling=_scaling.of_call(call, head.logits, head.class_axis))
    names = (*BACKENDS, "mosaic") if for_loss else BACKENDS
    backend = _backends.of_call(call, names, lambda: _no_kernel(call, head))
    if backend == "xla":
        head = head._replace(block_size=(2**62, classes))  # one block, also if `jax.vmap` adds rows
    return head._replace(in_kernels=backend == "mosaic")


def _no_kernel(call: Call, head: Head) -> str | None:
    """Why a kernel cannot compute the loss of this call; None if it can."""
    given = call.arguments
    for option in ("bias", "where", "soft_cap", "temperature", "axis_name"):
        if given[option] is not None:
            return f"its kernel has no {option}"
    if given["statistics"]:
        return "its kernel computes no statistics"
    if _given.known_number(given["label_smoothing"]) != 0:
        return "its kernel has no label_smoothing but a known 0"
    if not call.has_class_ids():
        return "its kernel is for class ids, not for target probabilities"
    if is_portable():
        return "a portable program has no kernels"
    return _loss_kernel.refuses(head.hidden, head.weight, head.vocab_axis)


def sampled(call: Call, head: Head, row_names: tuple[str, ...]) -> Head:
    """The head with the options of the call on which classes its gradients use."""
    kind = call.arguments["gradient"]
    if kind not in get_args(Gradient):
        choices = ", ".join(map(repr, get_args(Gradient)))
        raise call.error(ValueError, f"there is no gradient {kind!r}", f"write one of {choices}")
    threshold, keep = (_share(call, name) for name in ("threshold", "keep"))
    if kind == "exact":
        return head
    key = None
    if kind == "sampled":
        if call.arguments["key"] is None:
            remedy = "write key=jax.random.key(0), and another for every step"
            raise call.error(TypeError, "there is no key, and the gradient is random", remedy)
        key = call.key("key")
        for name in (*head.names, *row_names):
            key = jax.random.fold_in(key, lax.axis_index(name))
        key = jax.random.bits(key, (2,), jnp.uint32)
    sampling = Sampling(threshold, keep if kind == "sampled" else 0.0)
    return head._replace(sampling=sampling, key=key)


def _share(call: Call, name: str) -> float:
    number = _given.known_number(call.arguments[name])
    if number is None or not 0 <= number <= 1 or (name == "keep" and number == 0):
        remedy = f"write a number from 0 to 1, {'more than 0' if name == 'keep' else '0 for all classes'}"
        raise call.error(ValueError, f"{name} is {call.arguments[name]!r}", remedy)
    return float(number)


def _vocab_axis(call: Call) -> int:
    given = call.arguments["vocab_axis"]
    try:
        axis = -3 if isinstance(given, bool) else operator.index(given)
    except TypeError:
        axis = -3
    if not -2 <= axis < 2:
        raise call.error(ValueError, f"vocab_axis is {given!r}", "write -1 for [D, V], 0 for [V, D]")
    return axis % 2


def block_size(call: Call) -> BlockSize:
    """The block size of the call: rows, or (rows, classes); None if not given."""
    given = call.arguments["block_size"]
    if given is None:
        return None
    sizes = given if isinstance(given, tuple) else (given,)
    try:
        sizes = tuple(operator.index(n) for n in sizes)
    except TypeError:
        sizes = ()
    if not 1 <= len(sizes) <= 2 or min(sizes) < 1:
        problem = f"block_size is {given!r}"
        raise call.error(ValueError, problem, "write a number of rows, or (rows, classes), from 1 up")
    return (sizes[0], sizes[1]) if len(sizes) == 2 else sizes[0]
