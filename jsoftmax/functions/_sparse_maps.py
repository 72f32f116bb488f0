"""The sparse maps from logits to probabilities: sparsemax and entmax."""

from __future__ import annotations

from jax import Array
from jax.typing import ArrayLike

from jsoftmax import rules
from jsoftmax.border import _given, _mesh_axes
from jsoftmax.border._call import Axes, Axis, Call
from jsoftmax.border._eager import compiled
from jsoftmax.border._mesh_axes import MeshAxes
from jsoftmax.logits import _scaling
from jsoftmax.rows import _entmax
from jsoftmax.transforms._sharding import sharded_like


@compiled("axis", "axis_name")
def sparsemax(
    x: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> Array:
    """The probabilities closest to x/T: its Euclidean projection onto the simplex. Many are exactly 0.

        pᵢ = max(xᵢ/T − τ, 0),   with τ such that Σp = 1

    It is `entmax` with α = 2. Newton's method finds the largest probability, max x/T − τ, without a sort, in
    3 to 7 passes over the logits usually, and in log₂ V + 12 at most. A last step in closed form makes the
    sum 1 within rounding. Equal logits have equal probabilities.

    Computed in at least float32; the dtype of the result, masks, dead classes, +inf and NaN are as in
    `softmax`. The error is at most 4 ulp of p and 1 ulp of x − max, as for `softmax`.

    Derivative: ``s·(v − ⟨s, v⟩/Σs)/T`` (`rules.entmax_product`), where s is 1 if p > 0, else 0. At the border
    of the support p has a kink, and the derivative is that of a class outside. Residuals: `x` and three
    numbers per row.

    Args, Returns, Raises: as in `softmax`. With `axis_name`, the number of passes is log₂ V + 13, each with
    one all-reduce of two numbers per row.

    >>> import jax.numpy as jnp, jsoftmax
    >>> jsoftmax.sparsemax(jnp.array([0.25, 1.0, 1.5, -1.0]))
    Array([0.  , 0.25, 0.75, 0.  ], dtype=float32)

    Source: Martins & Astudillo, *From softmax to sparsemax*, arXiv 1602.02068; Michelot, *A finite algorithm
    for finding the projection of a point onto the canonical simplex* (1986), which takes the same steps.
    """
    call = Call("sparsemax", x=x, axis=axis, where=where, temperature=temperature, axis_name=axis_name)
    return _mapped(call, 2.0)


@compiled("axis", "axis_name")
def entmax15(
    x: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> Array:
    """Sparse probabilities between `softmax` and `sparsemax`, with squares instead of exponentials.

        pᵢ = max(xᵢ/(2·T) − τ, 0)²,   with τ such that Σp = 1

    It is `entmax` with α = 1.5. Its numerical contract and its cost are those of `sparsemax`.

    Derivative: ``s·(v − ⟨s, v⟩/Σs)/T`` (`rules.entmax_product`), where s is the square root of p. Residuals:
    `x` and three numbers per row.

    Args, Returns, Raises: as in `sparsemax`.

    >>> import jax.numpy as jnp, jsoftmax
    >>> print(jnp.round(1000 * jsoftmax.entmax15(jnp.array([1.0, 2.0, 0.0, -3.0]))))
    [169. 831.   0.   0.]

    Source: Peters, Niculae & Martins, *Sparse sequence-to-sequence models*, arXiv 1905.05702.
    """
    call = Call("entmax15", x=x, axis=axis, where=where, temperature=temperature, axis_name=axis_name)
    return _mapped(call, 1.5)


@compiled("axis", "axis_name")
def entmax(
    x: ArrayLike,
    alpha: ArrayLike = 1.5,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike | None = None,
    axis_name: MeshAxes = None,
) -> Array:
    """The family of sparse maps with a parameter α > 1: the smaller α is, the fewer probabilities are 0.

        pᵢ = max((α − 1)·xᵢ/T − τ, 0)^(1/(α − 1)),   with τ such that Σp = 1

    α = 2 is `sparsemax`, and α = 1.5 `entmax15`, whose forms it uses if α is a Python number. For α → 1, p
    and its derivatives tend to those of `softmax`, without a loss of digits: α may be the next number after
    1. At 1 itself, call `softmax`.

    The numerical contract is that of `sparsemax`. A pass takes a logarithm and two exponentials per class.
    For α > 2, where the slopes at the border of the support are infinite, it may take twice as many passes,
    and there a rounding δ of the logits changes p by up to ``δ^(1/(α − 1))``.

    Derivative: ``s·(v − ⟨s, v⟩/Σs)/T`` in `x` with ``s = p^(2 − α)`` on the support (`rules.entmax_product`),
    and ``−(k − s·Σk/Σs)`` in α, which has no singularity for α → 1 (`rules.entmax_alpha_terms`). Residuals:
    `x` and four numbers per row.

    Args:
      x: logits, any shape.
      alpha: α, a number above 1, or one per row, as `temperature`. 1 raises; in an array, or traced, it makes
        its row NaN.
      axis: as in `sparsemax`, and so are all the others.
      where: True for the classes that count.
      temperature: T, a number, or one per row.
      axis_name: the mesh axes of the shards of the classes.

    Returns:
      Probabilities in the shape of `x`.

    Raises:
      TypeError, ValueError: as in `softmax`; for an α that is not above 1.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> x = jnp.array([1.0, 2.0, 0.0, -3.0])
    >>> print(jnp.round(1000 * jsoftmax.entmax(x, 1.2)))
    [221. 733.  46.   0.]
    >>> print(f"{jax.grad(lambda alpha: jsoftmax.entmax(x, alpha)[1])(1.2):.3f}")
    0.356

    Source: as for `entmax15`; Correia, Niculae & Martins, *Adaptively sparse transformers*, arXiv 1909.00015,
    for the derivative in α.
    """
    call = Call(
        "entmax", x=x, alpha=alpha, axis=axis, where=where, temperature=temperature, axis_name=axis_name
    )
    return _mapped(call, None)


def alpha_of_call(call: Call, x: Array, axes: Axes) -> tuple[float | None, Array | None]:
    """α as a float, if it is one with its own form, or as an array."""
    known = _given.known_number(call.arguments["alpha"])
    if known in (1.5, 2):
        return float(known), None
    alpha = call.per_row("alpha", x, axes, rules.computing_dtype(x.dtype))
    return None, None if alpha is None else sharded_like(alpha, x)


def _mapped(call: Call, kind: float | None) -> Array:
    x, narrow = call.floats("x"), call.narrow_type("x")
    axes = call.axes(x.shape, may_be_empty=True)
    names = _mesh_axes.of_classes(call, ("x",))
    scaling = _scaling.of_call(call, x, axes)
    kind, alpha = (kind, None) if kind else alpha_of_call(call, x, axes)
    out = x if 0 in x.shape else _entmax.entmax(((*axes, *names), kind), x, scaling, alpha)
    return out if narrow is None else out.astype(narrow)
