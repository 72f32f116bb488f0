"""The Fenchel-Young loss of entmax, ``Ω*(z) + Ω(t) − ⟨z, t⟩``, as a sum of terms of which none is below 0.

For targets t that sum to 1, with r = h + β·u, p^β = [r]₊ and Ω = −(Tsallis entropy) = (Σp^α − 1)/(α·β):

    loss = Σ (β·p^α + t^α − α·t·p^β)/(α·β) + Σ t·[−r]₊/β

Targets that sum to n count as n rows with the targets t/n. The gradient in z is n·p − t.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.backends import _reading
from jsoftmax.backends._row_blocks import both_in_row_blocks
from jsoftmax.border._label_checks import reported_ids, reported_targets
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _entmax
from jsoftmax.rows._entmax import Axes, Row
from jsoftmax.rows._loss_terms import Loss
from jsoftmax.rows._row_numbers import on_one_axis
from jsoftmax.rows._statistics import are_ids, zero_unless_counted
from jsoftmax.transforms._autodiff import with_rules
from jsoftmax.transforms._sharding import sharded_like

Static = tuple[int, tuple[str, ...], float | None]  # the class axis, its mesh axes, and α if it has own forms


class _Arguments(NamedTuple):
    x: Array
    labels: Array  # class ids [B, 1], relative to this shard, or targets [B, V]
    scaling: Scaling
    alpha: Array | None
    hidden: Array | None  # [B, 1], True in a row of weight 0


class _Saved(NamedTuple):
    given: _Arguments
    row: Row
    loss: Array
    others: Array | None  # Σ p without the label
    alive: Array  # False in rows without a loss, whose derivatives are 0


def losses(
    kind: float | None,
    axes: tuple[int, ...],
    names: tuple[str, ...],
    x: Array,
    loss: Loss,
    scaling: Scaling,
    alpha: Array | None,
) -> Array:
    """The loss of every row, without the class axes."""
    labels, counted, hidden = loss.labels, loss.counted, loss.hidden
    if len(axes) != 1:
        x, scaling, labels, alpha, counted, hidden = on_one_axis(
            axes, x, scaling, labels, alpha, counted, hidden
        )
        axes = (x.ndim - 1,)
    labels = sharded_like(labels, x)
    if are_ids(labels):
        labels = reported_ids(labels, x.shape[axes[0]], names)
    *options, alpha = _scaling.of_used_rows((*scaling[1:], alpha), counted, hidden)
    scaling, _ = _scaling.mask_rows(Scaling(scaling.where, *options), counted)
    out = _loss((axes[0], names, kind), _Arguments(x, labels, scaling, alpha, hidden))
    if not are_ids(labels):
        seen = zero_unless_counted(labels, counted)
        out = reported_targets(out, seen if hidden is None else jnp.where(hidden, 0, seen), axes[0], names)
    return jnp.squeeze(out, axes)


class _Targets(NamedTuple):
    """Targets of the computing dtype, their sum n, and t/n."""

    n: Array
    shares: Array

    @classmethod
    def of(cls, labels: Array, axes: Axes, dtype: jnp.dtype) -> _Targets:
        t = labels.astype(dtype)
        (n,) = rules.row_sums(axes, t)
        return cls(n, t / jnp.where(n == 0, 1, n))


def _save(static: Static, given: _Arguments) -> tuple[Array, _Saved]:
    axis, names, kind = static
    axes: Axes = (axis, *names)
    x, labels, scaling, alpha, hidden = given
    row = _entmax.solved((axes, kind), x, scaling, alpha)
    of = _entmax.classes((axes, kind), row, x, scaling, alpha)
    power = _entmax.alpha_of((axes, kind), alpha)
    others = None
    if are_ids(labels):
        hit = _hit(given, axis)
        # Not zeros_like: a converter to ONNX makes float64 of a constant array.
        terms = rules.entmax_loss_terms(of.p, 0.0 * of.p, power)
        outside = rules.entmax_loss_outside(hit.astype(of.p.dtype), of.r, power - 1)
        ones = jnp.where(hit, jnp.ones_like(of.p), 0)
        of_hit = jnp.where(hit, of.p, 0), jnp.where(hit, 0, of.p), jnp.where(hit, 0, terms), outside, ones
        p, others, rest, below, found = rules.row_sums(axes, *of_hit)
        loss = rules.nan_where(found == 0, rules.entmax_label_term(p, others, power) + rest + below)
    else:
        n, shares = _Targets.of(labels, axes, of.p.dtype)
        terms = rules.entmax_loss_terms(of.p, shares, power)
        loss = rules.row_sums(axes, terms + rules.entmax_loss_outside(shares, of.r, power - 1))[0]
        loss = jnp.where(n == 0, 0, n) * jnp.where((n == 0) & jnp.isinf(loss), 0, loss)
    alive = row.top > -jnp.inf if hidden is None else (row.top > -jnp.inf) & (jnp.isfinite(loss) | ~hidden)
    alive = alive | jnp.isnan(row.top) if hidden is None else alive
    loss = jnp.where(alive, loss, 0)
    return loss, _Saved(given, row, loss, others, alive)


def _hit(given: _Arguments, axis: int) -> Array:
    """Where a class is the label."""
    hit = _reading.is_label(given.labels.astype(jnp.int32), axis, given.x.shape[axis])
    return sharded_like(hit, given.x)


class _Slopes(NamedTuple):
    """The derivatives of the loss in every z, in α as terms of a sum over the row, and in every target."""

    u: Array
    in_z: Array
    in_alpha: Array | None
    in_targets: Array | None


def _slopes(static: Static, saved: _Saved) -> tuple[Scaling, _Slopes]:
    axis, names, kind = static
    axes: Axes = (axis, *names)
    x, labels, scaling, alpha, _ = saved.given
    of = _entmax.classes((axes, kind), saved.row, x, scaling, alpha)
    in_alpha = in_targets = None
    if saved.others is not None:
        hit = _hit(saved.given, axis)
        in_z = jnp.where(hit, -saved.others, of.p)
        if alpha is not None:
            log_p = jnp.where(hit, rules.log_of_label(of.p, saved.others), of.log_p)
            in_alpha = rules.entropy_alpha_terms(of.p, log_p, alpha)
    else:
        n, shares = _Targets.of(labels, axes, of.p.dtype)
        in_z = n * (of.p - shares)
        c = rules.entmax_target_slopes(shares, of.r, _entmax.alpha_of((axes, kind), alpha))
        loss = jnp.where(jnp.isinf(saved.loss), 0, saved.loss) / jnp.where(n == 0, 1, n)
        in_targets = loss + c - rules.row_sums(axes, shares * c)[0]
        in_targets = _scaling.masked(in_targets, scaling.where)
        if alpha is not None:
            log_t = jnp.log(jnp.where(shares > 0, shares, 1))
            in_alpha = n * (
                rules.entropy_alpha_terms(of.p, of.log_p, alpha)
                - rules.entropy_alpha_terms(shares, log_t, alpha)
            )
    bad = jnp.isnan(saved.loss)
    in_z, in_alpha, in_targets = jax.tree.map(
        lambda a: jnp.where(bad, saved.loss, a), (in_z, in_alpha, in_targets)
    )
    of_row = of.u, in_z, in_alpha, in_targets
    of_row = jax.tree.map(lambda a: zero_unless_counted(a, saved.alive), of_row)
    return _scaling.mask_rows(scaling, saved.alive)[0], _Slopes(*of_row)


def _pull(static: Static, saved: _Saved, g: Array) -> tuple[_Arguments]:
    x, labels, _, alpha, _ = saved.given
    scaling, of = _slopes(static, saved)
    dx, dscaling = _scaling.pull(x, of.u, g * of.in_z, scaling)
    dalpha = None if alpha is None or of.in_alpha is None else _scaling.sum_to_shape(g * of.in_alpha, alpha)
    dlabels = None if of.in_targets is None else (g * of.in_targets).astype(labels.dtype)
    return (_Arguments(dx, dlabels, dscaling, dalpha, None),)  # type: ignore[arg-type]


def _push(static: Static, saved: _Saved, tangents: tuple[_Arguments]) -> Array:
    axis, names, _ = static
    scaling, of = _slopes(static, saved)
    dx, dlabels, dscaling, dalpha, _ = tangents[0]
    terms = of.in_z * _scaling.push(saved.given.x, of.u, dx, dscaling, scaling)
    if dalpha is not None and of.in_alpha is not None:
        terms = terms + of.in_alpha * dalpha
    if dlabels is not None and of.in_targets is not None:
        terms = terms + of.in_targets * dlabels.astype(terms.dtype)
    return rules.row_sums((axis, *names), terms)[0]


def _has_sums(asked: tuple[_Arguments], saved: _Saved) -> bool:
    """Whether the gradient has sums: with targets, or that of an argument with one entry per row."""
    has_targets = saved.others is None
    return has_targets or any(jax.tree.leaves((asked[0].scaling, asked[0].alpha)))


_both = both_in_row_blocks(_save, _pull, has_sums=_has_sums, axes_of=lambda static: (static[0], *static[1]))
_loss = with_rules(*_both, _push, selective=True)
