"""Functions of rows and of shared arrays, for which `jax.vmap` turns its mapped axis into more rows.

JAX's own rule would batch the loop over blocks of rows, and hold one block for every mapped element at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive  # not within a trace: see `border._label_checks`
from jax.interpreters import ad, batching, mlir

from jsoftmax.transforms import _modes, _platforms

Function = Callable[[Any, Any, Any], tuple[Any, Any]]


def row_wise(function: Function, *, outputs: Any = None, mapped: Function | None = None) -> Function:
    """The function ``(of_rows, others) = function(static, rows, shared)`` on trees of arrays.

    `rows` and `of_rows` have one entry per row, and each row is computed on its own; `others` are sums over
    the rows. The rule for `jax.vmap`:

    - If the first array of `shared`, a weight, is mapped, JAX maps the function itself.
    - Else, if `mapped` is given, JAX maps that: it computes the same value from row-wise functions.
    - Else, if no shared array is mapped and `others` is empty, the mapped axis is merged into the rows. Row
      arrays that are not mapped must have the shape [rows, 1], and are repeated.
    - Else a loop computes one element after the other.

    `outputs`, a tree like the outputs, saves a trace of the function.
    """
    compiled = functools.cache(lambda: jax.jit(function, static_argnums=0))

    def call(static: Any, rows: Any, shared: Any) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten((rows, shared))
        is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        if _platforms.is_plain() or static.names or not is_traced:
            return function(static, rows, shared)
        found = outputs or compiled().eval_shape(static, rows, shared)
        counts = _Counts(*(len(jax.tree.leaves(part)) for part in (rows, *found)))
        of_leaves = _Call(function, static, tree, counts, mapped, _modes.in_forward_mode(), _modes.traced())
        of_rows, others = jax.tree.unflatten(
            jax.tree.structure(found), _row_wise().bind(*leaves, call=of_leaves)
        )
        return of_rows, others

    return call


class _Counts(NamedTuple):
    """The numbers of input leaves with an entry per row, of outputs with one, and of all other outputs."""

    rows: int
    of_rows: int
    others: int


class _Call(NamedTuple):
    """A call of a row-wise function, as a function of leaves. Every trace of it uses the caller's modes."""

    function: Function
    static: Hashable
    tree: Any  # the structure of (rows, shared)
    counts: _Counts
    mapped: Function | None
    forward_mode: bool
    modes: _modes.Traced

    def __call__(self, *leaves: Any) -> list[Any]:
        with _modes.in_mode(forward=self.forward_mode), self.modes.again():
            return jax.tree.leaves(self.function(self.static, *jax.tree.unflatten(self.tree, leaves)))


_run = jax.jit(lambda call, *leaves: call(*leaves), static_argnums=0)


def _compute(*leaves: Any, call: _Call) -> list[Any]:
    return _run(call, *leaves)


def _types_and_effects(*leaves: Any, call: _Call) -> tuple[list[Any], Any]:
    """The types of the results; and the effects, which only interpreted kernels have."""
    traced = _run.trace(call, *leaves)
    return [jax.typeof(a) for a in traced.out_info], traced.jaxpr.effects


def _map(leaves: Sequence[Any], axes: Sequence[int | None], *, call: _Call) -> tuple[list[Any], list[int]]:
    leaves = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(leaves, axes, strict=True)]
    is_mapped = [axis is not None for axis in axes]
    size = leaves[is_mapped.index(True)].shape[0]
    repeated = [
        a for a, is_mapped in zip(leaves[: call.counts.rows], is_mapped, strict=False) if not is_mapped
    ]

    def as_rows(a: Any, is_mapped: bool) -> Any:
        a = a if is_mapped else jnp.broadcast_to(a, (size, *a.shape))
        return a.reshape(size * a.shape[1], *a.shape[2:])

    def of_element(mapped: Sequence[Any]) -> list[Any]:
        left = [a for a, is_mapped in zip(leaves, is_mapped, strict=True) if not is_mapped]
        return _row_wise().bind(*_merged(is_mapped, mapped, left), call=call)

    mapped_by_jax = call.function if is_mapped[call.counts.rows] else call.mapped
    if mapped_by_jax is not None:
        of_one = call._replace(function=mapped_by_jax)
        positions = tuple(0 if is_mapped else None for is_mapped in is_mapped)
        found = jax.vmap(lambda *leaves: of_one(*leaves), positions)(*leaves)
    elif (
        not any(is_mapped[call.counts.rows :])
        and not call.counts.others
        and all(a.shape[1:] == (1,) for a in repeated)
    ):
        rows = map(as_rows, leaves[: call.counts.rows], is_mapped)
        found = _row_wise().bind(*rows, *leaves[call.counts.rows :], call=call)
        found = [a.reshape(size, leaves[0].shape[1], *a.shape[1:]) for a in found]
    else:
        found = lax.map(of_element, [a for a, is_mapped in zip(leaves, is_mapped, strict=True) if is_mapped])
    return found, [0] * len(found)


def _push(primals: Sequence[Any], tangents: Sequence[Any], *, call: _Call) -> tuple[list[Any], list[Any]]:
    moves = [not isinstance(t, ad.Zero) for t in tangents]
    at_rest = [a for a, moves in zip(primals, moves, strict=True) if not moves]
    moving, along = ([a for a, moves in zip(of, moves, strict=True) if moves] for of in (primals, tangents))
    out, dout = jax.jvp(lambda *moving: call(*_merged(moves, moving, at_rest)), moving, along)

    def tangent(da: Any, a: Any) -> Any:
        return ad.Zero(jax.typeof(a).to_tangent_aval()) if da.dtype == jax.dtypes.float0 else da

    return out, list(map(tangent, dout, out))


def _pull(cotangents: Sequence[Any], *leaves: Any, call: _Call) -> list[Any]:
    """The transpose of a function that is linear in some of its leaves. It is a row-wise function too."""
    is_linear = [ad.is_undefined_primal(a) for a in leaves]
    types = [a.aval for a in leaves if ad.is_undefined_primal(a)]
    of_rows = sum(is_linear[: call.counts.rows])

    def transposed(_: Any, rows: Any, shared: Any) -> tuple[Any, Any]:
        known, cotangents = ([*a, *b] for a, b in zip(rows, shared, strict=True))

        def type_of(i: int, aval: Any) -> Any:
            length = len(rows[0][0])
            if i >= of_rows or length == aval.shape[0]:
                return aval
            return jax.ShapeDtypeStruct((length, *aval.shape[1:]), aval.dtype)

        pull = jax.linear_transpose(
            lambda *linear: call(*_merged(is_linear, linear, known)), *map(type_of, range(len(types)), types)
        )
        found = pull(cotangents)
        return found[:of_rows], found[of_rows:]

    known = [a for a, is_linear in zip(leaves, is_linear, strict=True) if not is_linear]
    ours = call.counts.rows - of_rows
    cotangents = list(map(ad.instantiate_zeros, cotangents))
    found = row_wise(transposed)(
        call.static,
        (known[:ours], cotangents[: call.counts.of_rows]),
        (known[ours:], cotangents[call.counts.of_rows :]),
    )
    return _merged(is_linear, [*found[0], *found[1]], [None] * len(known))


def _merged(which: Iterable[bool], chosen: Iterable[Any], others: Iterable[Any]) -> list[Any]:
    """One list of both: the next of `chosen` where `which` is True, else the next of `others`."""
    chosen, others = iter(chosen), iter(others)
    return [next(chosen if is_chosen else others) for is_chosen in which]


@functools.cache
def _row_wise() -> Any:
    """The primitive, created on first use."""
    row_wise: Any = Primitive("row_wise")
    row_wise.multiple_results = True
    row_wise.def_impl(_compute)
    row_wise.def_effectful_abstract_eval(_types_and_effects)
    mlir.register_lowering(row_wise, mlir.lower_fun(_compute, multiple_results=True))
    batching.primitive_batchers[row_wise] = _map
    ad.primitive_jvps[row_wise] = _push
    ad.primitive_transposes[row_wise] = _pull
    return row_wise
