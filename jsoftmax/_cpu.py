"""The state of a row on CPU, in the forms that XLA's library of reductions takes there.

That library takes chains of sums, products, exponentials and floors under one sum, and reads a row once for
them; a comparison, a selection or a second sum of the same terms costs more than the exponentials. So the
heavy pass is one bare sum of ``exp(u)``, and the rest is worked out from it, or repaired. Where a gradient
follows, XLA stores these exponentials in its place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import _across, _reading, _row_blocks, rules
from jsoftmax._autodiff import with_tangent
from jsoftmax._sharding import is_whole

LONGEST_COLUMNS = 32  # at short rows the library is slow, and in most of them a class leads
SHORTEST_IN_BLOCKS = 4096  # of shorter rows, the block that is read again costs more than a second pass
LONGEST_WHOLE_ROW = 32768  # sums over longer ones are several times slower, and what they share is stored
LEAST_SIZE = 2**13  # logits: fewer take a few microseconds in any form; the plain one is compiled fastest
LONGEST_BESIDE_LABEL = 512  # in longer rows no class may lead, and a bare sum does
LEAST_REST = 2.0**-80  # what its terms lose below the normal numbers is less than an ulp of it
_LED = 0.99  # the maximum's term, nearly: 1, if XLA does not fuse the shift with a product, unrounded


class Form(NamedTuple):
    """How the rest of a row is found: "columns", "across", "whole" or "blocks", these of `size` classes."""

    name: str
    size: int = 0
    followed: bool = False  # by something that is made of it for every class, as a gradient is


class Label(NamedTuple):
    """Of every row, with length 1 along it: the class id, and its logit."""

    id: Array
    logit: Array


def choose(x: Array, axis: int, alone: bool = False) -> Form | None:
    """The form for these logits; None where the sums had better be written plainly.

    `alone` says that no gradient follows, nor anything else that is made of it for every class.
    """
    classes = x.shape[axis]
    if x.size < LEAST_SIZE:
        return None
    if classes <= LONGEST_COLUMNS:
        return Form("columns", followed=not alone)
    if _across.crosses(x, axis):
        return Form("across")
    if size := size_of_blocks(classes):
        return Form("blocks", size, followed=not alone)
    # One pass, and a second one where a class leads by a probability above 1/2.
    return Form("whole") if classes <= LONGEST_WHOLE_ROW else None


def size_of_blocks(classes: int) -> int | None:
    """The size of blocks of a row, if it is long enough, and has equal ones."""
    return _row_blocks.size_for(classes) if classes >= SHORTEST_IN_BLOCKS else None


def rest(form: Form, x: Array, top: Array, axis: int, label: Label | None = None) -> Array:
    """``Σ exp(x − top) − 1`` over a row, without the maximal element's 1; −1 in an empty row.

    For a label it may be good for its −log p alone: all digits where it leads, those of the sum elsewhere.
    """
    return _rest((form, axis), x, top, label)


def _value(static: tuple[Form, int], x: Array, top: Array, label: Label | None) -> Array:
    form, axis = static
    if form.name == "columns":
        return _of_columns(x, top, label, axis, form.followed)
    top, finite_top = tops(x, top)
    if form.name == "across":
        others = _across.sum_of_others(x, top, finite_top, axis, None if label is None else label.id)
        return _without_a_1(others, top, finite_top, label)
    if label is not None and x.shape[axis] <= LONGEST_BESIDE_LABEL:
        return _beside_label(x, finite_top, label, axis)
    if form.name == "whole":
        return _of_whole_rows(x, finite_top, axis)
    return _of_blocks(form, x, finite_top, axis)


def _tangent(static: tuple[Form, int], arguments: tuple[Any, ...], dx: Array) -> Array:
    x, top, _ = arguments
    top = jnp.where(top == -jnp.inf, 0, top).astype(rules.computing_dtype(x.dtype))
    return jnp.sum(jnp.exp(x.astype(top.dtype) - top) * dx.astype(top.dtype), static[1], keepdims=True)


_rest = with_tangent(_value, _tangent)


def _of_columns(x: Array, top: Array, label: Label | None, axis: int, followed: bool) -> Array:
    """Class by class over all rows at once; the first of the largest is left out, or the label.

    Of an odd number of rows, XLA would compute one at a time; and where several things are made of the rest,
    it would store every exponential by itself, but not of what is put together. So the last rows wait.
    """
    rows = next((i for i, n in enumerate(x.shape) if i != axis and n > 2 and is_whole(x, i)), axis)
    count = x.shape[rows]
    if rows == axis or not (followed or count % 2):
        return _columns(x, top, label, axis=axis)
    cut = (count - 1) // 2 * 2

    def part(start: int, end: int) -> Array:
        of_rows = jax.tree.map(lambda a: lax.slice_in_dim(a, start, end, axis=rows), (x, top, label))
        return _columns(*of_rows, axis=axis)

    return jnp.concatenate([part(0, cut), part(cut, count)], rows)


def _columns(x: Array, top: Array, label: Label | None, *, axis: int) -> Array:
    top, finite_top = tops(x, top)
    terms, led = [], jnp.zeros(top.shape, bool)
    for i in range(x.shape[axis]):
        column = _reading.part(x, i, i + 1, axis).astype(top.dtype)
        leaves = (column == top) & (top < jnp.inf) & ~led if label is None else label.id == i
        led = led | leaves
        terms.append(jnp.where(leaves, 0, rules.scaled(_half(column, finite_top))))
    while len(terms) > 1:
        terms = [sum(terms[i : i + 2]) for i in range(0, len(terms), 2)]  # type: ignore[misc]
    return _without_a_1(terms[0] / rules.SCALE, top, finite_top, label)


def _without_a_1(others: Array, top: Array, finite_top: Array, label: Label | None) -> Array:
    """The rest, from the sum over the others, NaN where +inf is the maximum."""
    if label is not None:
        return others + _beyond_1(label, finite_top)
    # XLA's library finds −inf for the maximum of a row of NaNs; the sum tells it from an empty row.
    return jnp.where((top == -jnp.inf) & (others == 0), -1, others)


def _beside_label(x: Array, top: Array, label: Label, axis: int) -> Array:
    """One bare sum without the label's term; once more where it leads by so much that terms vanish."""

    def repaired(x: Array, top: Array, others: Array) -> Array:
        return sum_of_others(rules.scaled(_half(x, top)), label.id, axis) / rules.SCALE

    def bare(x: Array, top: Array, others: Array) -> Array:
        return others

    others = sum_of_others(exponentials(x, top), label.id, axis)
    return lax.cond(jnp.any(others < LEAST_REST), repaired, bare, x, top, others) + _beyond_1(label, top)


def _beyond_1(label: Label, top: Array) -> Array:
    """What the label's term adds to the rest, beside the sum of the others."""
    return exponentials(label.logit, top) - 1


def _of_whole_rows(x: Array, top: Array, axis: int) -> Array:
    """One bare sum; where it is below 2, one class leads, and the sum is made once more without its 1."""
    total = jnp.sum(exponentials(x, top), axis, keepdims=True)

    def repaired(x: Array, top: Array, total: Array) -> Array:
        half = _half(x, top)
        rest = apart(jnp.sum(rules.scaled(half - jnp.floor(half)), axis, keepdims=True)) / rules.SCALE
        return jnp.where(_leads(total), rest, total - 1)

    def plain(x: Array, top: Array, total: Array) -> Array:
        return total - 1

    # A NaN anywhere is no reason to leave the other rows as they are.
    return lax.cond(jnp.min(total) >= 2, plain, repaired, x, top, total)


def _of_blocks(form: Form, x: Array, top: Array, axis: int) -> Array:
    """Bare sums; once more, scaled, where one class leads by so much that terms vanish."""

    def repaired(x: Array, top: Array, rest: Array) -> Array:
        return rest_of_blocks(form.size, x, top, axis, scale=rules.SCALE)

    def bare(x: Array, top: Array, rest: Array) -> Array:
        return rest

    rest = rest_of_blocks(form.size, x, top, axis, stored=form.followed)
    vanishes = (rest >= 0) & (rest < LEAST_REST)
    return lax.cond(jnp.any(vanishes), repaired, bare, x, top, rest)


def rest_of_blocks(
    size: int, x: Array, top: Array, axis: int, *, stored: bool = False, scale: float = 1.0
) -> Array:
    """Of the sum over every block; that of the block which holds the maximum is made again without it.

    Two blocks may hold a 1 only where the total reaches 2, and nothing need be left out.
    """

    def terms(x: Array, top: Array) -> Array:
        return exponentials(x, top) if scale == 1 else rules.scaled(_half(x, top))

    count = x.shape[axis] // size
    sums = _row_blocks.sums(terms, size, x, top, axis, stored)
    holds = sums >= _LED * scale
    index = lax.broadcasted_iota(sums.dtype, sums.shape, axis)
    stacked = jnp.stack([sums, jnp.where(holds, 0, sums), jnp.where(holds, index, 0)], axis)
    total, others, index = jnp.split(jnp.sum(stacked, axis + 1), 3, axis)
    index = jnp.clip(index, 0, count - 1).astype(jnp.int32)
    holder = _row_blocks.block(size, x, index, axis).astype(top.dtype)
    leads = holder == lax.optimization_barrier(top)  # without it XLA stores the maximum, repeated
    of_holder = jnp.sum(terms(jnp.where(leads, -jnp.inf, holder), top), axis, keepdims=True)
    rest, one_holds = (others + of_holder) / scale, others < total
    total = total / scale
    plain = jnp.where(total == 0, -1, jnp.where(total < 1, 0, total - 1))
    return jnp.where(_leads(total) & one_holds, rest, plain)


def apart(sums: Array) -> Array:
    """The sums, NaN for +inf too, by a selection: without it XLA fuses them with what is made of them.

    With a logarithm or another sum, they would take several times as long.
    """
    return jnp.where(sums < jnp.inf, sums, jnp.nan)


def sum_of_others(terms: Array, ids: Array, axis: int) -> Array:
    """The sum over a row but for the class with this id, told by arithmetic: see the head of this file."""
    shape = [1] * terms.ndim
    shape[axis] = terms.shape[axis]
    away = jnp.arange(terms.shape[axis], dtype=terms.dtype).reshape(shape) - ids.astype(terms.dtype)
    return apart(jnp.sum(terms * jnp.minimum(away * away, 1), axis, keepdims=True))


def tops(x: Array, top: Array) -> tuple[Array, Array]:
    """The maximum to compute with, and the same but finite in an empty row, where it is −inf."""
    top = top.astype(rules.computing_dtype(x.dtype))
    return top, jnp.maximum(top, jnp.finfo(top.dtype).min)


def exponentials(x: Array, center: Array) -> Array:
    return jnp.exp(x.astype(center.dtype) - center)


def _half(x: Array, top: Array) -> Array:
    return jnp.exp((x.astype(top.dtype) - top) * 0.5)


def _leads(total: Array) -> Array:
    return (total > 0) & (total < 2 * _LED)
