"""Masked logits stored once on CPU, so that the sums over them contain no select.

XLA's library on CPU runs a sum of exponentials, but no select. A masked logit is −inf, which every function
treats as a dead class, like a masked one. A conditional, which XLA fuses with nothing, stores the array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax import Array

from jsoftmax import rules
from jsoftmax.backends._blocks import not_fused
from jsoftmax.backends._choice import choose
from jsoftmax.backends._request import Request
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.transforms._autodiff import with_tangent
from jsoftmax.transforms._platforms import by_platform

Axes = tuple[int | str, ...]


def are_bare(x: Array, scaling: Scaling, axes: Axes) -> bool:
    """Whether sums over these logits have no select, temperature or soft cap on CPU."""
    bare = scaling._replace(sink=None) == Scaling(None)
    return bare or choose(_request(x, scaling, axes)).cpu is not None


def stored_first(function: Callable[..., Any], axes: Axes, x: Array, scaling: Scaling, *others: Any) -> Any:
    """``function(x, scaling, *others)``, on CPU possibly of the stored masked logits without the mask."""

    def without_mask(x: Array, scaling: Scaling, *others: Any) -> Any:
        return function(_stored((), x, scaling.where), scaling._replace(where=None), *others)

    if scaling.where is None:
        return function(x, scaling, *others)
    forms = choose(_request(x, scaling, axes)).functions({"stored mask": without_mask})
    return by_platform("the mask", x, scaling, *others, plain=function, **forms)


def _request(x: Array, scaling: Scaling, axes: Axes) -> Request:
    own, names = rules.split_axes(axes)
    bare = scaling._replace(where=None, sink=None) == Scaling(None)
    return Request("masked logits", x, own, bool(names), bare)


def _value(static: tuple[()], x: Array, where: Array) -> Array:
    def masked(x: Array, where: Array) -> Array:
        return _scaling.live(x, Scaling(where))

    found: Array = not_fused(masked, x, where)
    return found


def _tangent(static: tuple[()], arguments: tuple[Array, Array], dx: Array) -> Array:
    return _scaling.masked(dx, arguments[1])


_stored = with_tangent(_value, _tangent)
