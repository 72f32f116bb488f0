"""Draws a class of every row from the softmax of a linear head, without an array of all logits."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import zero_from_primal
from jax.typing import ArrayLike

from jsoftmax.border._backends import Backend
from jsoftmax.border._call import Call
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.linear import _arguments, _block, _merging, _numbers, _plan, _products
from jsoftmax.linear._arguments import BlockSize
from jsoftmax.linear._merging import Part
from jsoftmax.linear._products import Rows, Shared, Static
from jsoftmax.logits import _scaling
from jsoftmax.rows import _statistics
from jsoftmax.rows._statistics import Saved
from jsoftmax.sampling import _noise, _race
from jsoftmax.sampling._noise import Positions
from jsoftmax.sampling._race import Draw
from jsoftmax.transforms import _platforms
from jsoftmax.transforms._autodiff import with_rules
from jsoftmax.transforms._row_wise import row_wise

Found = dict[str, Array]  # "ids", −1 in rows without a draw, and their "nll", [B, 1] each


def linear_categorical(
    key: ArrayLike,
    hidden: ArrayLike,
    weight: ArrayLike,
    *,
    vocab_axis: int = -1,
    bias: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    block_size: BlockSize = None,
    backend: Backend = None,
    axis_name: MeshAxes = None,
) -> Draw:
    """A class drawn from the softmax of ``hidden @ weight + bias``, for every row, and its log-probability.

        linear_categorical(key, hidden, weight) = categorical(key, hidden @ weight)

    The noise is the same, so the draws are the same, up to the rounding of the logits. Memory holds one block
    of logits (`linear_plan` returns its size). A draw takes one matrix product. Corner cases are those of
    `categorical`, dtypes those of `linear_row_statistics`.

    Derivative: that of the log-probabilities at the ids, in hidden, weight, bias and the options; ids have
    none. The backward pass computes the logits again. Residuals: the arguments, a few numbers per row.

    Args:
      key: a random key, of `jax.random.key`.
      hidden: features, shape [..., D].
      weight: shape [D, V]; with ``vocab_axis=0`` an embedding table of shape [V, D].
      vocab_axis: this and the following as in `linear_cross_entropy`.
      bias: shape [V]; −inf for a class that is never drawn.
      soft_cap: cap, a number, or one per row.
      temperature: T, a number, or one per row; 0 is greedy.
      block_size: the number of rows in a block, or a pair: its rows and its classes.
      backend: "blocked", or "xla" for all logits at once.
      axis_name: within `jax.shard_map`, the mesh axis or axes over which the classes are sharded.

    Returns:
      `Draw`: ids as int32, and log-probabilities in at least float32, in the shape of the leading axes of
      hidden.

    Raises:
      TypeError, ValueError: for no key or several keys; otherwise as in `linear_cross_entropy`.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> key, hidden, table = jax.random.key(0), jnp.eye(3), 2 * jnp.eye(5, 3)
    >>> print(jsoftmax.sampling.linear_categorical(key, hidden, table, vocab_axis=0).ids)
    [1 0 2]
    >>> print(jsoftmax.sampling.categorical(key, hidden @ table.T).ids)
    [1 0 2]

    Source: as for `categorical`.
    """
    call = Call(
        "sampling.linear_categorical",
        key=key,
        hidden=hidden,
        weight=weight,
        vocab_axis=vocab_axis,
        bias=bias,
        soft_cap=soft_cap,
        temperature=temperature,
        block_size=block_size,
        backend=backend,
        axis_name=axis_name,
    )
    words = _noise.words(call)
    is_greedy = _race.greedy_rows(call)
    head = _arguments.of_call(call)
    is_greedy = jnp.asarray(True) if is_greedy is True else is_greedy
    is_greedy = head.column(_race.as_rows(is_greedy, head.logits, head.class_axis))
    numbers = head.column(_noise.row_numbers(words, head.hidden, head.class_axis, head.names))
    with _platforms.for_logits(head.logits.size):
        rows = head.rows(jnp.zeros((*head.row_shape, 1), jnp.int32))
        found, _ = _drawn(
            head.static(frozenset({"nll"})), _Parts(rows, numbers, is_greedy), (head.shared(), words)
        )
    ids, log_probs = found["ids"], -found["nll"]
    if is_greedy is not None:
        log_probs = jnp.where(is_greedy & (ids >= 0), 0, log_probs)
    log_probs = jnp.where((ids < 0) & ~jnp.isnan(log_probs), -jnp.inf, log_probs)
    return Draw(*(a.reshape(head.row_shape) for a in (ids, log_probs)))


class _Parts(NamedTuple):
    """The arguments with one entry per row; also their tangents and cotangents."""

    rows: Rows
    numbers: Any = None  # [B, 1]: the row numbers for the noise
    is_greedy: Any = None  # [B, 1]


class _Lead(NamedTuple):
    """The class with the largest score among some of the classes of every row, [B, 1] each."""

    part: Part  # with the nll of the leading class
    id: Array
    score: Array  # z + g of the leading class, minus the largest z of the part
    is_bad: Array  # whether a logit is NaN or +inf


_Kept = tuple[Rows, tuple[Shared, Array], Saved, Array]


@row_wise
def _find(static: Static, parts: _Parts, both: tuple[Shared, Array]) -> tuple[tuple[Found, Saved], None]:
    shared, words = both
    plan = static.plan(parts.rows, shared, gradient=False)

    def block(carry: None, parts: _Parts, counted: Array | None) -> tuple[None, Any]:
        rows = parts.rows.of_block(counted)
        race = partial(_race_of_block, static)
        return None, _block.tiled(static, plan, race, rows, shared, parts, words)

    return _plan.over_rows(plan, block, None, parts)[1], None


def _race_of_block(
    static: Static, size: int, rows: Rows, shared: Shared, parts: _Parts, words: Array
) -> tuple[Found, Saved]:
    """The draws of a block of rows, `size` classes at a time."""

    def add(so_far: _Lead | None, start: Array | int, length: int) -> _Lead:
        tile = static.part(shared, start, length)
        x = _products.logits(static, rows, tile)
        lead = _lead(static, x, rows, parts, words, start)
        return lead if so_far is None else _merged(so_far, lead, rows)

    classes = shared.weight.shape[static.vocab_axis]
    lead = _plan.over_classes(classes, size, add, None)
    state = lead.part.state
    ids = jnp.where((state.rest < 0) | lead.is_bad, -1, lead.id)
    found = {"nll": jnp.where(lead.is_bad, jnp.nan, lead.part.numbers["nll"])}
    return {**found, "ids": ids}, Saved(None, state, found, None, None)


def _lead(static: Static, x: Array, rows: Rows, parts: _Parts, words: Array, start: Array | int) -> _Lead:
    """The leading class of a tile of logits whose classes begin at `start`."""
    names = static.names
    shifted_rows = _race.shifted_rows(_race.Static(1, names), x, rows.scaling, parts.is_greedy)
    first = jnp.asarray(start).astype(jnp.uint32)
    at = Positions(parts.numbers, _noise.numbers(x, (1,), names) + first)
    scores = _race.scores(words, at, shifted_rows)
    id = _race.winner(scores, 1, names)
    score = jnp.max(scores, 1, keepdims=True)
    local = id - lax.axis_index(names) * x.shape[1] if names else id
    problem = _statistics.RowArguments(x, local, None, rows.scaling, rows.counted)
    found, saved = _statistics.save((1, names, static.wanted), problem)
    part = Part(saved.state, found, None, None, jnp.ones_like(shifted_rows.is_bad))
    return _Lead(part, id + jnp.asarray(start).astype(jnp.int32), score, shifted_rows.is_bad)


def _merged(a: _Lead, b: _Lead, rows: Rows) -> _Lead:
    """The class with the larger score; if the scores are equal, that of `a`, whose classes come first."""
    top = jnp.maximum(a.part.state.max, b.part.state.max)
    scaling = rows.scaling
    if scaling.temperature is not None:
        scaling = scaling._replace(temperature=jnp.abs(scaling.temperature))  # the maxima have its sign
    score_a, score_b = (_scaling.shifted(lead.part.state.max, scaling, top).u + lead.score for lead in (a, b))
    later = score_b > score_a

    def of_leader(part: Part, leads: Array) -> Part:
        nll = jnp.where(leads, part.numbers["nll"], 0)
        return part._replace(numbers={"nll": nll}, has_label=leads)

    part = _merging.merge(of_leader(a.part, ~later), of_leader(b.part, later), rows.scaling)
    return _Lead(part, jnp.where(later, b.id, a.id), jnp.where(later, score_b, score_a), a.is_bad | b.is_bad)


def _save(static: Static, parts: _Parts, both: tuple[Shared, Array]) -> tuple[Found, _Kept]:
    (found, saved), _ = _find(static, parts, both)
    classes = both[0].weight.shape[static.vocab_axis]
    labels = jnp.maximum(found["ids"], 0)
    if static.names:
        labels = labels - lax.axis_index(static.names) * classes
    return found, (parts.rows._replace(labels=labels), both, saved, found["ids"])


def _pull(static: Static, asked: Any, kept: _Kept, cotangents: Any) -> tuple[_Parts, tuple[Shared, None]]:
    rows, (shared, _), saved, _ = kept
    asked = asked[0].rows, asked[1][0]
    of_rows, of_shared = _numbers.pull(static, asked, (rows, shared, saved), {"nll": cotangents["nll"]})
    return _Parts(of_rows), (of_shared, None)


def _push(static: Static, kept: _Kept, tangents: tuple[_Parts, tuple[Shared, Any]]) -> Found:
    rows, (shared, _), saved, ids = kept
    out = _numbers.push(static, (rows, shared, saved), (tangents[0].rows, tangents[1][0]))
    return {**out, "ids": zero_from_primal(ids)}


_rules = with_rules(_save, _pull, _push, selective=True, sweeps=False)


@row_wise
def _drawn(static: Static, parts: _Parts, both: tuple[Shared, Array]) -> tuple[Found, None]:
    return _rules(static, parts, both), None
