"""The maps from logits to probabilities: softmax and log-softmax."""

from __future__ import annotations

from jax import Array
from jax.typing import ArrayLike

from jsoftmax.backends import _kernels
from jsoftmax.border import _mesh_axes
from jsoftmax.border._backends import Backend
from jsoftmax.border._call import Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.logits import _scaling
from jsoftmax.rows import _maps


@compiled("axis", "axis_name", "backend")
def softmax(
    x: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    axis_name: MeshAxes = None,
    backend: Backend = None,
) -> Array:
    """Probabilities proportional to exp(x/T).

        pᵢ = exp(xᵢ/T) / Σⱼ exp(xⱼ/T)            with a sink s: pᵢ = exp(xᵢ/T) / (exp(s/T) + Σⱼ exp(xⱼ/T))

    A drop-in for ``jax.nn.softmax``, except that ``jax.jvp`` and ``jacfwd`` need `forward_mode`. It computes
    ``exp((xᵢ − max)/T)/(1 + rest)`` in at least float32, where `rest` is the sum of all exponentials except
    the largest, and returns the dtype of `x` (integers become floats; 8-bit `x` is computed in float32). A
    masked class and a logit of −inf have probability 0, also in a row without a live class. +inf or NaN in a
    live class makes that row NaN, and no other row.

    A sink is one more class per row, without an output: it takes a share of the probabilities, which then add
    up to less than 1. Its logit is in the units of `x`, so a temperature divides it too; it has no mask. It
    is a class only in a row with a live class. A sink of −inf is none, and 0 is "softmax off by one". No
    logits are copied for it. A sink of +inf or NaN makes its row NaN. In a row without a live class it does
    so too in the plain form of `softmax` without a temperature (`explain` prints the form); elsewhere, and
    always in `log_softmax`, it is no class there.

    Derivative: the Jacobian product ``p·(v − ⟨p, v⟩)/T`` (`rules.softmax_product`), 0 for a masked class;
    ``−p_s·⟨p, g⟩/T`` in a sink of probability p_s (`rules.sink_vjp`). Residual: the output, and one number
    per row for a sink; for 16-bit `x`, a temperature, or sharded classes `x` and two numbers per row.

    Args:
      x: logits, any shape.
      axis: the class axis, of any sign, a tuple of axes, or None for all.
      where: True for the classes that count; broadcasts to the shape of `x`.
      temperature: T, a number, or one per row: an array in the shape of `x` without `axis`, or with length 1
        there. A negative T reverses the order. The number 0 raises; a 0 in an array makes its row NaN.
      sink: s, a number, or an array that broadcasts to one per row, of shapes as T: of attention with heads
        on axis 1, ``sink[:, None, None]``.
      axis_name: within `jax.shard_map`, the mesh axis or axes over which the classes are sharded. `x` and
        `where` hold the classes of the shard, the same number on each: pad the last, and mask the padding.
      backend: "xla", or "mosaic" for kernels on a Hopper GPU and on a TPU, which read each row once, forward
        and backward. On a CPU, and where a mesh shards the classes, or the rows in a way unknown at trace
        time, XLA's program runs. A sequence means the first that can compute the call. None for "xla".

    Returns:
      Probabilities in the shape of `x`.

    Raises:
      TypeError, ValueError: for complex `x`, or an axis, mask, or temperature that does not fit; for an
        `axis_name` that is not a mesh axis here, or over which `x` does not vary; for a backend that there is
        not, or "mosaic" alone for a call that its kernels cannot compute, such as one with a sink.

    >>> import jax.numpy as jnp, jsoftmax
    >>> print(jnp.round(100 * jsoftmax.softmax(jnp.array([1.0, 2.0, 3.0]))))
    [ 9. 24. 67.]
    >>> print(jnp.round(100 * jsoftmax.softmax(jnp.array([1.0, 2.0, 3.0]), sink=3.0)))
    [ 5. 15. 40.]

    Source: Blanchard, Higham & Higham, *Accurately computing the log-sum-exp and softmax functions*,
    IMA J. Numer. Anal. 41 (2021). The sink is that of gpt-oss (OpenAI, 2025).
    """
    call = Call(
        "softmax",
        x=x,
        axis=axis,
        where=where,
        temperature=temperature,
        sink=sink,
        axis_name=axis_name,
        backend=backend,
    )
    x, narrow = call.floats("x"), call.narrow_type("x")
    axes = call.axes(x.shape, may_be_empty=True)
    names = _mesh_axes.of_classes(call, ("x",))
    scaling = _scaling.of_call(call, x, axes)
    with _kernels.asked_by(call, "softmax", x, axes, scaling.where):
        out = x if 0 in x.shape else _maps.softmax((*axes, *names), x, scaling)
    return out if narrow is None else out.astype(narrow)


@compiled("axis", "axis_name", "backend")
def log_softmax(
    x: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    axis_name: MeshAxes = None,
    backend: Backend = None,
) -> Array:
    """The logarithm of the softmax of x/T, accurate even where the softmax rounds to 0 or to 1.

        log pᵢ = (xᵢ − max)/T − log1p(rest)           with a sink, max and rest include it

    A drop-in for ``jax.nn.log_softmax``, except that ``jax.jvp`` and ``jacfwd`` need `forward_mode`. It is
    computed in at least float32 and returned in the dtype of `x`. `rest` is the sum of all exponentials
    except the largest, so a confident class keeps its digits, even at −1e-20.
    A masked class and a logit of −inf give −inf, also in a row without a live class. +inf or NaN in a live
    class makes that row NaN, and no other row.

    Derivative: ``(g − p·Σg)/T`` (`rules.log_softmax_vjp`); 0 for a masked class, whose cotangent does not
    count, and in a row without a live class; ``−p_s·Σg/T`` in a sink. Residuals: two numbers per row, and the
    probabilities, or `x` if it has 16 bits, or with a temperature or sharded classes.

    Args, Returns, Raises: as in `softmax`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> print(jnp.round(100 * jsoftmax.log_softmax(jnp.array([1.0, 2.0, 3.0]))))
    [-241. -141.  -41.]
    >>> print(f"{jsoftmax.log_softmax(jnp.array([50.0, 0.0]))[0]:.5e}")
    -1.92875e-22

    Source: as for `softmax`.
    """
    call = Call(
        "log_softmax",
        x=x,
        axis=axis,
        where=where,
        temperature=temperature,
        sink=sink,
        axis_name=axis_name,
        backend=backend,
    )
    x, narrow = call.floats("x"), call.narrow_type("x")
    axes = call.axes(x.shape, may_be_empty=True)
    names = _mesh_axes.of_classes(call, ("x",))
    scaling = _scaling.of_call(call, x, axes)
    with _kernels.asked_by(call, "log_softmax", x, axes, scaling.where):
        out = x if 0 in x.shape else _maps.log_softmax((*axes, *names), x, scaling)
    return out if narrow is None else out.astype(narrow)
