"""The state of every row, and further sums over it: all functions of the family start with this."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends import _accelerators, _cpu, _kernels, _reading
from jsoftmax.backends._by_class import Label
from jsoftmax.backends._choice import choose, kernels
from jsoftmax.backends._cpu_loops import sums
from jsoftmax.backends._request import Request, UsedFor
from jsoftmax.logits._moments import MOMENT_SCALE, Moment
from jsoftmax.logits._scaling import Scaling, Shifted, exponentials, is_dead, live, shift, shifted, with_slip
from jsoftmax.rows import _bare_sums, _masks
from jsoftmax.rows._peaks import peak
from jsoftmax.transforms import _modes
from jsoftmax.transforms._platforms import by_platform, recomputed

Axes = tuple[int | str, ...]


class Sums(NamedTuple):
    """Further sums over a row: Σ exp(u)·u, the sums of every moment, and sums of numbers of its shards."""

    entropy: Array | None
    moments: tuple[tuple[Array, ...], ...]
    shares: tuple[Array, ...]


Shares = Callable[[Array, Any], tuple[Array, ...]]


def _no_shares(top: Array, label_logit: Any) -> tuple[Array, ...]:
    return ()


def reduce(
    x: Array,
    scaling: Scaling,
    axes: Axes,
    moments: tuple[Moment, ...] = (),
    *,
    entropy: bool = False,
    at_top: bool = False,
    labels: Array | None = None,
    shares: Shares = _no_shares,
    for_label: bool = False,
    result_used_for: UsedFor = "exponentials",
    bounded: bool = False,
    mask_is_computed: bool = False,
) -> tuple[online.State, Sums]:
    """The state of every row, (maximum of x, rest of Σ exp(u)), and further sums over it.

    ``shares(maximum, logit of the label)`` returns the numbers of a shard, which are summed over the shards.
    With `for_label`, only −log p of the label has to be accurate. `result_used_for` is as in
    `_request.Request`, `at_top` as in `shifted`, `bounded` as in `peak`: then the rest of a row with +inf is
    +inf. `mask_is_computed` says that the mask is the result of operations, not an array in memory.
    """
    kinds = tuple(moment._replace(factors=()) for moment in moments)
    static = _Static(axes, kinds, entropy, at_top, for_label, result_used_for, bounded)
    arrays = x, scaling, tuple(moment.factors for moment in moments), labels
    own, names = rules.split_axes(axes)
    two_passes: Callable[..., Any] = partial(_in_two_passes, static, shares)
    if not (entropy or kinds or mask_is_computed):
        two_passes = partial(_masks.stored_first, two_passes, axes)

    def in_one_pass(reader: int | _kernels.Platform, *arrays: Any) -> tuple[online.State, Sums]:
        state, sums, label_logit = _in_one_pass(static._replace(reader=reader), *arrays)
        return state, sums._replace(shares=shares(state.max, label_logit))

    only_state = not (kinds or entropy or at_top or bounded) and scaling.soft_cap is None
    kernel = _kernels.Wanted("state", scaling.where) if only_state else None
    own_forms = choose(Request("state", x, own, bool(names), kernel=kernel)).functions(
        {"one pass": in_one_pass, **kernels(in_one_pass)}
    )
    return by_platform("the sums of every row", *arrays, plain=two_passes, **own_forms)


class _Static(NamedTuple):
    axes: Axes
    kinds: tuple[Moment, ...]  # the moments without their factors
    entropy: bool
    at_top: bool
    for_label: bool
    result_used_for: UsedFor
    bounded: bool
    # What reads a row in one pass: XLA, in a number of pieces; or the kernel of a platform.
    reader: int | _kernels.Platform = 1

    def moments(self, factors: tuple[Any, ...]) -> tuple[Moment, ...]:
        pairs = zip(self.kinds, factors, strict=True)
        return tuple(kind._replace(factors=of_kind) for kind, of_kind in pairs)

    def terms(
        self, z: Shifted, half_u: Array, quarter_u: Array | None, dead: Array | None, factors: tuple[Any, ...]
    ) -> tuple[Array, ...]:
        """The terms of Σ exp(u), SCALE·(Σ exp(u) − 1), SCALE·Σ exp(u)·u if `entropy`, and the moments.

        Only the entropy needs u/4 (by default from u: 8/T may overflow), and only moments need `dead`.
        """
        half = jnp.exp(half_u)
        # XLA:CPU fuses a floor and a maximum with sums, which is slow for the many operations of a slip. It
        # stores the result of a comparison or a select.
        stored = z.slip is not None and _modes.in_cache()
        ones = (half == 1).astype(half.dtype) if stored else jnp.floor(half)
        scaled_rest = with_slip(half * (half * rules.SCALE), z) - rules.SCALE * ones
        e = exponentials(z)
        slip = 0 if z.slip is None else z.slip
        of_entropy: tuple[Array, ...] = ()
        if self.entropy:
            quarter_u = 0.25 * z.u if quarter_u is None else quarter_u
            u, least = 4 * quarter_u + slip, jnp.finfo(quarter_u.dtype).min
            u = jnp.where(u < least, 0, u) if stored else jnp.maximum(u, least)  # 0·∞ = 0
            of_entropy = (with_slip(rules.scaled(jnp.exp(2 * quarter_u)), z) * u,)
        if dead is None:
            return e, scaled_rest, *of_entropy
        u = half_u * (2 * MOMENT_SCALE) + slip * MOMENT_SCALE
        of_moments = (t for moment in self.moments(factors) for t in moment.terms(u, dead))
        return e, scaled_rest, *of_entropy, *of_moments

    def further(self, sums: Iterable[Array]) -> tuple[Array | None, tuple[tuple[Array, ...], ...]]:
        """The sum of the entropy, and the sums of every moment, from the sums of their terms in order."""
        each = iter(sums)
        of_entropy = next(each) / rules.SCALE if self.entropy else None
        return of_entropy, tuple(tuple(islice(each, 2 - kind.only_total)) for kind in self.kinds)


def _in_two_passes(
    static: _Static,
    shares: Shares,
    x: Array,
    scaling: Scaling,
    factors: tuple[Any, ...],
    labels: Array | None,
) -> tuple[online.State, Sums]:
    """The state and the sums: first the maximum, then all sums.

    u, u/2 and u/4 are separate differences, because XLA on CPU stores what two sums share.
    """
    axes, kinds, entropy, at_top, for_label, result_used_for, bounded, _ = static
    own, names = rules.split_axes(axes)
    top = peak(x, scaling, axes, bounded=bounded)
    label_logit = None if labels is None else logit_of_label(live(x, scaling), labels, own[0])
    bare = _bare_sums.suffice(kinds, factors) and scaling == Scaling(None)
    with_sums = entropy or bool(kinds)
    request = Request("rest", x, own, bool(names), bare, result_used_for, for_label, with_sums=with_sums)
    form = choose(request).cpu

    def all_terms(part: tuple[Array, Array | None, Any]) -> tuple[Array, ...]:
        x, where, factors = part
        here = scaling._replace(where=where)
        z = shifted(x, here, top, at_top)
        half_u = shift(x, here, top, 0.5)
        dead = is_dead(x, here) if kinds else None
        quarter_u = shift(x, here, top, 0.25) if entropy and scaling.temperature is None else None
        return static.terms(z, half_u, quarter_u, dead, factors)

    if form is not None:

        def plain(x: Array, top: Array) -> tuple[Array, list[Array]]:
            total, scaled_rest, *further = rules.row_sums(axes, *all_terms((x, None, factors)))
            return online.from_sums(top, total, scaled_rest).rest, further

        def on_cpu(x: Array, top: Array) -> tuple[Array, list[Array]]:
            rest = _cpu.rest(form, x, top, own[0], label)
            return rest, _bare_sums.further(kinds, own, x, top, entropy=entropy)

        label = None
        if for_label and labels is not None and label_logit is not None:
            label = Label(labels, label_logit)
        found = by_platform("the sum of every row", x, top, plain=plain, cpu=(on_cpu, form.reason))
        return online.State(top, found[0]), Sums(*static.further(found[1]), shares(top, label_logit))
    # Several results of unrolled sums, such as entropy and nll, would make XLA store the terms of each class.
    used_again = result_used_for != "nothing" or (entropy and (labels is not None or bool(kinds)))
    own_sums = sums(all_terms, (x, scaling.where, factors), own, used_again=used_again)
    found = rules.across(axes, *own_sums, *shares(top, label_logit))
    total, scaled_rest, *further = found[: len(own_sums)]
    sums_found = Sums(*static.further(further), tuple(found[len(own_sums) :]))
    return online.from_sums(top, total, scaled_rest), sums_found


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _in_one_pass(
    static: _Static, x: Array, scaling: Scaling, factors: tuple[Any, ...], labels: Array | None
) -> tuple[online.State, Sums, Array | None]:
    """As `_in_two_passes`, but it returns the logit of the label instead of the shares."""
    own, _ = rules.split_axes(static.axes)
    axis = own[0]
    if not isinstance(static.reader, int):
        of_row = _kernels.arrays_of(x, scaling, labels=labels)
        top, rest, label_logit = _kernels.called("state", static.reader, of_row)
        label_logit = None if label_logit is None else label_logit.astype(x.dtype)
        return online.State(top.astype(x.dtype), rest), Sums(None, (), ()), label_logit
    picked = (
        None
        if labels is None
        else jnp.where(_reading.is_label(labels, axis, x.shape[axis]), live(x, scaling), 0.0)
    )
    moments = static.moments(factors)
    parts = _accelerators.classes(x, scaling, moments, static.entropy, picked, static.bounded)
    row = _accelerators.one_pass(parts, own, static.reader)
    state = online.State(row.top.astype(x.dtype), row.rest)
    label_logit = None if row.label_logit is None else row.label_logit.astype(x.dtype)
    return state, Sums(row.entropy, row.moments, ()), label_logit


@_in_one_pass.defjvp
def _in_one_pass_jvp(static: _Static, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """JAX cannot differentiate a `lax.reduce` of this kind: the derivative is that of plain sums."""
    state, sums, label_logit = _in_one_pass(static, *primals)
    own, _ = rules.split_axes(static.axes)

    def of_sums(x: Array, scaling: Scaling, factors: tuple[Any, ...], labels: Array | None) -> Any:
        # Two barriers: XLA merges equal ones, and the gradient has one already.
        again = recomputed(recomputed(scaling))
        z = shifted(x, again, lax.stop_gradient(state.max), static.at_top)
        half_u, dead = z.u * 0.5, is_dead(x, again) if static.kinds else None
        terms = static.terms(z, half_u, None, dead, factors)
        total, _, *further = (jnp.sum(t, own, keepdims=True) for t in terms)
        its_logit = None if labels is None else logit_of_label(live(x, scaling), labels, own[0])
        return online.State(state.max, total), Sums(*static.further(further), ()), its_logit

    _, slope = jax.jvp(of_sums, primals, tangents)
    return (state, sums, label_logit), slope


def logit_of_label(x: Array, labels: Array, axis: int) -> Array:
    """The logit of the label of each row: a masked sum, which works on any sharding of the row.

    On CPU, XLA would store the masked array, so there the logit is read directly, if the row lies on one
    device.
    """

    def compare(x: Array, labels: Array) -> Array:
        return jnp.sum(jnp.where(_reading.is_label(labels, axis, x.shape[axis]), x, 0.0), axis, keepdims=True)

    def read(x: Array, labels: Array) -> Array:
        return _reading.picked(x, labels, axis)

    own_forms = choose(Request("label", x, (axis,))).functions({"read": read})
    return by_platform("the logit of the label", x, labels, plain=compare, **own_forms)
