"""The maps from logits to probabilities: softmax and log-softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.backends import _accelerators
from jsoftmax.backends._choice import Request, choose
from jsoftmax.border import _mesh_axes
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling
from jsoftmax.rows import _probabilities
from jsoftmax.transforms._autodiff import with_rules
from jsoftmax.transforms._platforms import by_platform, hidden

Axes = tuple[int | str, ...]
Tangents = tuple[Array | None, Scaling]


@compiled("axis", "axis_name")
def softmax(
    x: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> Array:
    """Probabilities proportional to exp(x/T).

        pᵢ = exp(xᵢ/T) / Σⱼ exp(xⱼ/T)

    A drop-in for ``jax.nn.softmax``. It computes ``exp((xᵢ − max)/T)/(1 + rest)`` in at least float32, where
    `rest` is the sum of all exponentials except the largest, and returns the dtype of `x` (integers become
    floats; 8-bit `x` is computed in float32). A masked class and a logit of −inf have probability 0, also in
    a row without a live class. +inf or NaN in a live class makes that row NaN, and no other row.

    Derivative: the Jacobian product ``p·(v − ⟨p, v⟩)/T`` (`rules.softmax_product`), 0 for a masked class.
    Residual: the output; for 16-bit `x`, a temperature, or sharded classes `x` and two numbers per row.

    Args:
      x: logits, any shape.
      axis: the class axis, of any sign, a tuple of axes, or None for all.
      where: True for the classes that count; broadcasts to the shape of `x`.
      temperature: T, a number, or one per row: an array in the shape of `x` without `axis`, or with length 1
        there. A negative T reverses the order. The number 0 raises; a 0 in an array makes its row NaN.
      axis_name: within `jax.shard_map`, the mesh axis or axes over which the classes are sharded. `x` and
        `where` hold the classes of the shard, the same number on each: pad the last, and mask the padding.

    Returns:
      Probabilities in the shape of `x`.

    Raises:
      TypeError, ValueError: for complex `x`, or an axis, mask, or temperature that does not fit; for an
        `axis_name` that is not a mesh axis here, or over which `x` does not vary.

    >>> import jax.numpy as jnp, jsoftmax
    >>> print(jnp.round(100 * jsoftmax.softmax(jnp.array([1.0, 2.0, 3.0]))))
    [ 9. 24. 67.]

    Source: Blanchard, Higham & Higham, *Accurately computing the log-sum-exp and softmax functions*,
    IMA J. Numer. Anal. 41 (2021).
    """
    call = Call("softmax", x=x, axis=axis, where=where, temperature=temperature, axis_name=axis_name)
    x, narrow = call.floats("x"), call.narrow_type("x")
    axes = call.axes(x.shape, may_be_empty=True)
    names = _mesh_axes.of_classes(call, ("x",))
    scaling = _scaling.of_call(call, x, axes)
    out = x if 0 in x.shape else _softmax((*axes, *names), x, scaling)
    return out if narrow is None else out.astype(narrow)


@compiled("axis", "axis_name")
def log_softmax(
    x: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> Array:
    """The logarithm of the softmax of x/T, accurate even where the softmax rounds to 0 or to 1.

        log pᵢ = (xᵢ − max)/T − log1p(rest)

    A drop-in for ``jax.nn.log_softmax``, computed in at least float32, returned in the dtype of `x`. `rest`
    is the sum of all exponentials except the largest, so a confident class keeps its digits, even at −1e-20.
    A masked class and a logit of −inf give −inf, also in a row without a live class. +inf or NaN in a live
    class makes that row NaN, and no other row.

    Derivative: ``(g − p·Σg)/T`` (`rules.log_softmax_vjp`); 0 for a masked class, whose cotangent does not
    count, and in a row without a live class. Residuals: two numbers per row, and the probabilities, or `x`
    if it has 16 bits, or with a temperature or sharded classes.

    Args, Returns, Raises: as in `softmax`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> print(jnp.round(100 * jsoftmax.log_softmax(jnp.array([1.0, 2.0, 3.0]))))
    [-241. -141.  -41.]
    >>> print(f"{jsoftmax.log_softmax(jnp.array([50.0, 0.0]))[0]:.5e}")
    -1.92875e-22

    Source: as for `softmax`.
    """
    call = Call("log_softmax", x=x, axis=axis, where=where, temperature=temperature, axis_name=axis_name)
    x, narrow = call.floats("x"), call.narrow_type("x")
    axes = call.axes(x.shape, may_be_empty=True)
    names = _mesh_axes.of_classes(call, ("x",))
    scaling = _scaling.of_call(call, x, axes)
    out = x if 0 in x.shape else _log_softmax((*axes, *names), x, scaling)
    return out if narrow is None else out.astype(narrow)


class _Saved(NamedTuple):
    """The residuals of a map: one array in the shape of its output, and possibly the state of every row.

    `kept` are the logits for 16 bits, which would round p too far; with a temperature, whose derivative needs
    the logits; and for sharded classes, where the state saves a sum over shards. Else they are p.
    """

    kept: Array
    scaling: Scaling
    state: Any  # an `online.State`; None for a softmax that keeps its probabilities

    def is_p(self, names: tuple[str, ...]) -> bool:
        """Whether `kept` are the probabilities."""
        return _keeps_p(self.kept.dtype, self.scaling, names)

    # Without a barrier at each use of the logits, XLA on GPU stores the exponentials that the value shares.

    def restore(self, names: tuple[str, ...]) -> tuple[Array, Array]:
        """The probabilities, and the shifted logits u if a temperature needs them."""
        if self.is_p(names):
            return self.kept, self.kept
        shifted = _scaling.shifted(hidden(self.kept), self.scaling, self.state.max)
        return _probabilities.of_shifted(shifted, self.state.rest), shifted.u

    def live(self, u: Array, g: Array) -> Array:
        """The cotangent g of the output, set to 0 where masked."""
        return _scaling.masked(g, self.scaling.where).astype(u.dtype)

    def pull(self, u: Array, dz: Array) -> tuple[Array, Scaling]:
        """The cotangents of x and of the scaling, from the cotangent of z."""
        return _scaling.pull(self.kept, u, dz, self.scaling)

    def push(self, u: Array, tangents: Tangents) -> Array:
        """The tangent of z."""
        dx, of_scaling = tangents
        return _scaling.push(self.kept, u, dx, of_scaling, self.scaling)


def _keeps_p(dtype: jnp.dtype, scaling: Scaling, names: tuple[str, ...]) -> bool:
    return rules.computing_dtype(dtype) == dtype and scaling.temperature is None and not names


def _applied(
    axes: Axes,
    saved: _Saved,
    given: Any,
    rule: Callable[..., Array],
    *,
    forward: bool = False,
    weighted: bool = False,
    marks_empty: bool = False,
) -> tuple[Array, Array]:
    """u, and the rule applied to `given`: a cotangent of the output, or tangents if `forward`."""
    own, names = rules.split_axes(axes)
    in_z = _Saved.push if forward else _Saved.live

    def after_two_sums(saved: _Saved, given: Any) -> tuple[Array, Array]:
        p, u = saved.restore(names)
        out = rule(p, in_z(saved, u, given), axes)
        return u, out * _probabilities.is_live(saved.state.rest) if marks_empty else out

    def after_one_pass(saved: _Saved, given: Any) -> tuple[Array, Array]:
        p, u = saved.restore(names)
        v = in_z(saved, u, given)
        sums, leads = None, rules.leading(p)
        if not saved.is_p(names):
            row = saved.kept, saved.scaling, saved.state._replace(max=hidden(saved.state.max))
            sums = _probabilities.lead_sums(*row, v, axes, weighted=weighted)
        out = rule(p, v, axes, sums=sums, leads=leads)
        return u, jnp.where(saved.state.rest < 0, 0, out) if marks_empty else out

    def in_one_kernel(saved: _Saved, given: Any) -> tuple[Array, Array]:
        row = _accelerators.fused_row(hidden(saved.kept), saved.scaling, own)
        out = rule(row.p, in_z(saved, row.u, given), axes, leads=row.leads)
        return row.u, jnp.where(row.empty, 0, out) if marks_empty else out

    if names:
        # JAX cannot split one sum over shards into a part linear in a tangent and a part that is not.
        return (after_two_sums if forward else after_one_pass)(saved, given)
    forms = {"sums in one pass": after_one_pass, "one kernel": in_one_kernel}
    own_forms = choose(Request("derivative of a map", saved.kept, own)).functions(forms)
    return by_platform("the derivative of a map", saved, given, plain=after_two_sums, **own_forms)


def _softmax_save(axes: Axes, x: Array, scaling: Scaling) -> tuple[Array, _Saved]:
    keeps_p = _keeps_p(x.dtype, scaling, rules.split_axes(axes)[1])
    p, state = _probabilities.all_probabilities(x, scaling, axes, with_state=not keeps_p)
    return p.astype(x.dtype), _Saved(p if keeps_p else x, scaling, state)


def _softmax_pull(axes: Axes, saved: _Saved, g: Array) -> tuple[Array, Scaling]:
    return saved.pull(*_applied(axes, saved, g, rules.softmax_product, weighted=True))


def _softmax_push(axes: Axes, saved: _Saved, tangents: Tangents) -> Array:
    _, out = _applied(axes, saved, tangents, rules.softmax_product, forward=True, weighted=True)
    return out.astype(saved.kept.dtype)


_softmax = with_rules(_softmax_save, _softmax_pull, _softmax_push)


def _log_softmax_save(axes: Axes, x: Array, scaling: Scaling) -> tuple[Array, _Saved]:
    out, state = _probabilities.all_log_probabilities(x, scaling, axes)
    kept = x
    if _keeps_p(x.dtype, scaling, rules.split_axes(axes)[1]):
        kept = _probabilities.of_shifted(_scaling.shifted(x, scaling, state.max), state.rest)
    return out.astype(x.dtype), _Saved(kept, scaling, state)


def _log_softmax_pull(axes: Axes, saved: _Saved, g: Array) -> tuple[Array, Scaling]:
    return saved.pull(*_applied(axes, saved, g, rules.log_softmax_vjp, marks_empty=True))


def _log_softmax_push(axes: Axes, saved: _Saved, tangents: Tangents) -> Array:
    rule = rules.log_softmax_jvp
    _, out = _applied(axes, saved, tangents, rule, forward=True, weighted=True, marks_empty=True)
    return _scaling.masked(out, saved.scaling.where).astype(saved.kept.dtype)


_log_softmax = with_rules(_log_softmax_save, _log_softmax_pull, _log_softmax_push)
