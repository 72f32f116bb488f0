"""The row kernels for a TPU, which read and write device memory once.

Whole rows lie in the memory of a core. There, a kernel goes over its rows several times: for the maximum, for
the sums, for the results.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends import _mosaic_tpu_blocks as blocks
from jsoftmax.backends import _mosaic_tpu_calls as calls
from jsoftmax.backends._kernel_rows import Row
from jsoftmax.backends._mosaic_tpu_blocks import Chunk, Group, Sum
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling

Map = Literal["softmax", "log_softmax"]
# The arrays of a kernel in the shape of the logits.
WIDE = {
    "state": 1,
    "softmax": 2,
    "log_softmax": 2,
    "softmax backward": 3,
    "log_softmax backward": 3,
    "loss and gradient": 2,
}
SMALL_REST = 2.0**-80  # exponentials that are 0 because they are below the normal numbers matter to less


class Numbers(NamedTuple):
    """The numbers of every row, [N, 1], in float32."""

    top: Array  # the largest live logit, in the order of z
    rest: Array
    label: Array | None  # the logit of the label, −inf if it is masked; 0 without a class of this id


def refuses(row: Row, name: str) -> str | None:
    """Why a kernel cannot take these rows, or None."""
    return calls.refuses(row, WIDE[name])


def state(row: Row, labels: Array | None, interpret: Any = None) -> Numbers:
    """The numbers of every row."""
    of_label = labels is not None
    top, rest, *label = calls.call(_state, "state", row, {"labels": labels}, 2 + of_label, 0, interpret)
    return Numbers(top, rest, label[0] if label else None)


def softmax(row: Row, interpret: Any = None) -> tuple[Array, Array, Array]:
    """The probabilities, and the maximum and the rest of every row."""
    top, rest, p = calls.call(partial(_map, "softmax"), "softmax", row, {}, 2, 1, interpret)
    return p, top, rest


def log_softmax(row: Row, interpret: Any = None) -> tuple[Array, Array, Array]:
    """The log-probabilities, and the maximum and the rest of every row."""
    top, rest, log_p = calls.call(partial(_map, "log_softmax"), "log_softmax", row, {}, 2, 1, interpret)
    return log_p, top, rest


def backward(rule: Map, row: Row, top: Array, rest: Array, g: Array, interpret: Any = None) -> Array:
    """The cotangent g of a map pulled back to the logits; `top` and `rest` are results of the map."""
    given = {"top": top, "rest": rest, "g": g}
    (dx,) = calls.call(partial(_backward, rule), f"{rule}_backward", row, given, 0, 1, interpret)
    return dx


def loss_and_gradient(
    row: Row, labels: Array, scale: Array, interpret: Any = None
) -> tuple[Array, Array, Array, Array]:
    """The numbers of every row, and ``scale·(p − e_y)/T``: NaN in a row whose label is no class."""
    given = {"labels": labels, "scale": scale}
    top, rest, label, dx = calls.call(_gradient, "loss_and_gradient", row, given, 3, 1, interpret)
    return top, rest, label, dx


def _state(group: Group, given: dict[str, Any], out: list[Any]) -> None:
    labels = group.labels(given["labels"])[0] if "labels" in given else None
    group.store_numbers(out, _numbers(group, labels))


def _map(which: Map, group: Group, _: dict[str, Any], out: list[Any]) -> None:
    found = _numbers(group, None)
    group.store_numbers(out, found)
    inverse, log_total = _inverse(found.rest), online.log_total(found.rest)

    def step(chunk: Chunk, _: None) -> None:
        z = chunk.shifted(found.top)
        values = _scaling.exponentials(z) * inverse if which == "softmax" else z.u - log_total
        group.store(out[-1], chunk, values)

    group.over_classes(step, None)


def _backward(rule: Map, group: Group, given: dict[str, Any], out: list[Any]) -> None:
    top, rest = group.number(given["top"]), group.number(given["rest"])
    inverse, product = _inverse(rest), rules.softmax_product if rule == "softmax" else rules.log_softmax_vjp

    def operands(chunk: Chunk) -> tuple[Array, Array, Array]:
        p = _scaling.exponentials(chunk.shifted(top)) * inverse
        return p, _scaling.masked(group.of_classes(given["g"], chunk), chunk.scaling.where), rules.leading(p)

    def add(chunk: Chunk, sums: tuple[Sum, Sum]) -> tuple[Sum, Sum]:
        p, g, leads = operands(chunk)
        terms = p * g if rule == "softmax" else g
        return blocks.added(sums[0], terms), blocks.added(sums[1], jnp.where(leads, 0, terms))

    g_all, g_others = map(blocks.whole, group.over_classes(add, (group.no_sum(), group.no_sum())))
    sums = rules.RowSums(jnp.maximum(rest, 0) * inverse, g_all, g_others)

    def step(chunk: Chunk, _: None) -> None:
        p, g, leads = operands(chunk)
        dz = jnp.where(rest < 0, 0, product(p, g, sums=sums, leads=leads))
        group.store(out[0], chunk, _in_x(dz, chunk.scaling))

    group.over_classes(step, None)


def _gradient(group: Group, given: dict[str, Any], out: list[Any]) -> None:
    labels, is_unused = group.labels(given["labels"])
    scale = group.number(given["scale"])
    found = _numbers(group, labels)
    group.store_numbers(out, found)
    inverse = _inverse(found.rest)
    scale = rules.nan_where(labels < 0, scale)
    has_none = (found.rest < 0) | is_unused
    label = Chunk(jnp.asarray(found.label), Scaling(None, group.temperature), 0, group.is_wide)
    nll = online.log_total(found.rest) - label.shifted(found.top).u
    at_label = rules.label_residual(jnp.zeros_like(nll), nll, jnp.ones(nll.shape, bool))

    def step(chunk: Chunk, _: None) -> None:
        z = chunk.shifted(found.top)
        residual = jnp.where(chunk.is_class(labels), at_label, _scaling.exponentials(z) * inverse)
        dz = jnp.where(has_none, 0, scale * residual)
        group.store(out[-1], chunk, _in_x(dz, chunk.scaling))

    group.over_classes(step, None)


def _in_x(dz: Array, scaling: Scaling) -> Array:
    """The cotangent of x from that of z = x/T; 0 where masked."""
    dz = _scaling.masked(dz, scaling.where)
    return dz if scaling.temperature is None else rules.temperature_vjp(dz, dz, scaling.temperature)[0]


def _inverse(rest: Array) -> Array:
    """``1/(1 + rest)``, one division for each row; 1 in an empty row."""
    return 1 / (1 + jnp.where(rest < 0, 0, rest))


def _numbers(group: Group, labels: Array | None) -> Numbers:
    """The numbers of the rows of a group: first the maximum and the label, then the sums."""

    def highest(chunk: Chunk, found: tuple[Array, ...]) -> tuple[Array, ...]:
        top = jnp.maximum(found[0], blocks.folded(chunk.ordered(), jnp.maximum))
        if labels is None:
            return (top,)
        live = _scaling.live(chunk.x, chunk.scaling)
        return top, found[1] + blocks.folded(jnp.where(chunk.is_class(labels), live, 0))

    none = (group.lanes(-jnp.inf),) if labels is None else (group.lanes(-jnp.inf), group.lanes(0))
    highest_of, *label_of = group.over_classes(highest, none)
    top = jnp.max(highest_of, axis=1, keepdims=True)
    label = jnp.sum(label_of[0], axis=1, keepdims=True) if label_of else None

    def add(chunk: Chunk, sums: tuple[Sum, Sum]) -> tuple[Sum, Sum]:
        z = chunk.shifted(top)
        e = jnp.exp(z.u)
        terms = _scaling.with_slip(e, z)
        return blocks.added(sums[0], terms), blocks.added(sums[1], terms - jnp.floor(e))

    def add_scaled(chunk: Chunk, scaled: Sum) -> Sum:
        z = chunk.shifted(top)
        return blocks.added(scaled, _scaling.with_slip(online.rest_terms(jnp.exp(z.u / 2)), z))

    total, rest = map(blocks.whole, group.over_classes(add, (group.no_sum(), group.no_sum())))
    leads = (total > 0) & (total < 1.9)
    scaled_rest = lax.cond(
        jnp.min(jnp.where(leads, rest, 1)) < SMALL_REST,
        lambda: blocks.whole(group.over_classes(add_scaled, group.no_sum())),
        lambda: rest * rules.SCALE,
    )
    return Numbers(*online.from_sums(top, total, scaled_rest), label)
