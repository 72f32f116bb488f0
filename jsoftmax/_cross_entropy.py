"""The loss of a row of logits and its derivative rule, for a class id and for target probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import _rows, online, rules
from jsoftmax._autodiff import with_rules

Axes = tuple[int, ...]
Tangents = tuple[Array | None, Array | None, Array | None, Array | None]
# The arguments, the state of every row, and for class ids its loss.
_LabelSaved = tuple[Array, Array, Array | None, Array | None, online.State, Array]
_TargetSaved = tuple[Array, Array, Array | None, Array | None, online.State]


def _hits(labels: Array, axes: Axes, classes: int) -> Array:
    """Where a class is the label of its row: its index, compared. Nothing gathers or scatters."""
    shape = [1] * labels.ndim
    shape[axes[0]] = classes
    return lax.broadcasted_iota(jnp.int32, shape, axes[0]) == labels


def _label_logit(z: Array, labels: Array, axes: Axes) -> Array:
    """The logit of each row's label. A sum over the row's one hit, which any sharding of the row keeps.

    On CPU, where XLA would store the summed array, it is read where it lies, unless the classes are sharded.
    """

    def compare(z: Array, labels: Array) -> Array:
        return jnp.sum(jnp.where(_hits(labels, axes, z.shape[axes[0]]), z, 0), axes, keepdims=True)

    def read(z: Array, labels: Array) -> Array:
        return jnp.take_along_axis(z, labels, axes[0], mode="clip")

    if jax.typeof(z).sharding.spec[axes[0]] is not None:
        return compare(z, labels)
    return lax.platform_dependent(z, labels, cpu=read, default=compare)


def _label_loss_save(
    axes: Axes, z: Array, labels: Array, where: Array | None, temperature: Array | None
) -> tuple[Array, _LabelSaved]:
    _, state = _rows.reduce(z, where, temperature, axes)
    valid = (labels >= 0) & (labels < z.shape[axes[0]])
    labels = jnp.where(valid, labels, -1).astype(jnp.int32)
    live = z if where is None else jnp.where(where, z, -jnp.inf)
    logit = _label_logit(live, labels, axes)
    u, _ = _rows.shifted(logit, None, temperature, state.max)
    loss = jnp.where(valid, _rows.log_total(state.rest) - u, jnp.nan)
    loss = jnp.where(state.rest < 0, 0, loss)
    return loss, (z, labels, where, temperature, state, loss)


def _label_loss_residual(axes: Axes, saved: _LabelSaved) -> tuple[Array, Array]:
    """u, and the gradient in z/T; NaN where the loss is."""
    z, labels, where, temperature, state, loss = saved
    shifted = _rows.shifted(z, where, temperature, state.max)
    p = _rows.probabilities(shifted, state.rest)
    p = jnp.where(jnp.isnan(loss), jnp.nan, p)
    return shifted.u, rules.label_residual(p, loss, _hits(labels, axes, z.shape[axes[0]]))


def _label_loss_pull(axes: Axes, saved: _LabelSaved, g: Array) -> tuple[Array, None, None, Array | None]:
    z, _, where, temperature, *_ = saved
    u, residual = _label_loss_residual(axes, saved)
    dz, dt = _rows.pull_scaling(u, g * residual, where, temperature)
    return dz.astype(z.dtype), None, None, dt


def _label_loss_push(axes: Axes, saved: _LabelSaved, tangents: Tangents) -> Array:
    dz, _, _, dt = tangents
    _, _, where, temperature, *_ = saved
    u, residual = _label_loss_residual(axes, saved)
    dz = _rows.push_scaling(u, dz, dt, where, temperature)
    return jnp.sum(residual * dz, axes, keepdims=True)


label_loss = with_rules(_label_loss_save, _label_loss_pull, _label_loss_push)


def _surprisal(u: Array, t: Array, rest: Array) -> Array:
    """``−log p``, but 0 for a dead class of t = 0 (0·log 0 = 0) and in an empty row."""
    nothing = (rest < 0) | (u == -jnp.inf) & (t == 0)
    return jnp.where(nothing, 0, _rows.log_total(rest) - u)


def _target_loss_save(
    axes: Axes, z: Array, t: Array, where: Array | None, temperature: Array | None
) -> tuple[Array, _TargetSaved]:
    (u, _), state = _rows.reduce(z, where, temperature, axes)
    loss = jnp.sum(t.astype(u.dtype) * _surprisal(u, t, state.rest), axes, keepdims=True)
    return loss, (z, t, where, temperature, state)


def _target_loss_residuals(axes: Axes, saved: _TargetSaved) -> tuple[Array, Array, Array]:
    """u, and the gradients in z/T and in t."""
    z, t, where, temperature, state = saved
    shifted = _rows.shifted(z, where, temperature, state.max)
    u, p = shifted.u, _rows.probabilities(shifted, state.rest)
    others = _rows.complement(shifted, state.rest)
    in_z = rules.cross_entropy_residual(p, t.astype(p.dtype), axes, others=others)
    return u, jnp.where(state.rest < 0, 0, in_z), _surprisal(u, t, state.rest)


def _target_loss_pull(axes: Axes, saved: _TargetSaved, g: Array) -> tuple[Array, Array, None, Array | None]:
    z, t, where, temperature, _ = saved
    u, in_z, in_t = _target_loss_residuals(axes, saved)
    dz, d_temperature = _rows.pull_scaling(u, g * in_z, where, temperature)
    dt = _rows.masked(g * in_t, where)
    return dz.astype(z.dtype), dt.astype(t.dtype), None, d_temperature


def _target_loss_push(axes: Axes, saved: _TargetSaved, tangents: Tangents) -> Array:
    dz, dt, _, d_temperature = tangents
    _, _, where, temperature, _ = saved
    u, in_z, in_t = _target_loss_residuals(axes, saved)
    terms = in_z * _rows.push_scaling(u, dz, d_temperature, where, temperature)
    if dt is not None:
        terms = terms + in_t * _rows.masked(dt, where).astype(u.dtype)
    return jnp.sum(terms, axes, keepdims=True)


target_loss = with_rules(_target_loss_save, _target_loss_pull, _target_loss_push)
