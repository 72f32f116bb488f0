"""Checks the labels and options of a call: a public function raises every user error before it computes."""

from __future__ import annotations

import math
import operator
from contextlib import suppress

import jax
import jax.numpy as jnp
from jax import Array

from jsoftmax import rules
from jsoftmax.border import _given
from jsoftmax.border._arrays import Arrays, Axes, Axis, broadcasts, describe, rows_of, widened, with_rank

__all__ = ["Axes", "Axis", "Call", "Logits"]

Logits = Array | jax.ShapeDtypeStruct  # this module reads only the shape and the dtype


class Call(Arrays):
    """One call of a public function, with checks of its labels and options too."""

    def per_row(self, name: str, x: Logits, axes: Axes, dtype: jnp.dtype) -> Array | None:
        """An option, one number or one per row, in `dtype`, of length 1 on the class axes; None if not given.

        A number out of range raises if its value is known; in an array, or traced, it becomes NaN.
        """
        given = self.arguments.get(name)
        if given is None:
            return None
        known = _given.known_number(given)
        if known is not None and not _given.within(name, known, dtype):
            raise self._out_of_range(name, known, dtype)
        number = self._one_per_row(name, x, axes, dtype)
        return number if known is not None else _nan_outside(name, number)

    def _one_per_row(self, name: str, x: Logits, axes: Axes, dtype: jnp.dtype) -> Array:
        number = self.floats(name)
        rows = rows_of(x.shape, axes)
        if number.shape == rows:
            number = jnp.expand_dims(number, sorted(axes))
        per_row = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        if not broadcasts(number.shape, per_row):
            problem = f"{name} of shape {number.shape} is neither one number nor one per {self._unit(axes)}"
            shapes = f"{rows} or {per_row}" if rows != per_row else f"{rows}, or one that broadcasts to it"
            raise self.error(ValueError, problem, f"give it the shape {shapes}")
        return with_rank(number, x.ndim).astype(dtype)

    def _unit(self, axes: Axes) -> str:
        """What has one number in an array of numbers per row: a function without class axes has no rows."""
        return "segment" if "segment_ids" in self.arguments else "row" if axes else "entry"

    def sink(self, x: Logits, axes: Axes, dtype: jnp.dtype) -> Array | None:
        """The logit of a sink, one number or one per row, any number; None if not given."""
        return None if self.arguments.get("sink") is None else self._one_per_row("sink", x, axes, dtype)

    def share(self, x: Logits, axes: Axes) -> Array | None:
        """The share β of the first of two distributions in their mixture; None if it is a half."""
        if self.arguments.get("beta") is None or _given.known_number(self.arguments["beta"]) == 0.5:
            return None
        return self.per_row("beta", x, axes, rules.computing_dtype(x.dtype))

    def row_weights(self, x: Logits, axes: Axes, dtype: jnp.dtype) -> Array | None:
        """The row weights, one or one per row, with length 1 on the class axes; None if not given."""
        return None if self.arguments.get("weights") is None else self._one_per_row("weights", x, axes, dtype)

    def _out_of_range(self, name: str, number: float, dtype: jnp.dtype) -> Exception:
        problem, remedy = f"{name} is {number}", _given.RANGES[name]
        tiny = float(jnp.finfo(dtype).tiny)
        if float(jnp.finfo(dtype).max) < abs(number) < math.inf:
            remedy = f"write a number up to {float(jnp.finfo(dtype).max):.3g} in absolute value"
        elif 0 < abs(number) < tiny and name in ("temperature", "soft_cap"):
            problem += f", nearer to 0 than the normal numbers of {dtype}"
            remedy = f"write one of at least {tiny:.3g} in absolute value"
        elif _given.in_range(name, number, dtype):
            problem += f", and {_given.as_held(number, dtype)} in {dtype}"
        return self.error(ValueError, problem, remedy)

    def coefficient(
        self, name: str, x: Logits, axes: Axes, dtype: jnp.dtype, counted: Array | None
    ) -> Array | None:
        """As `per_row`, for an option that may be 0: 0 in rows that do not count; None if 0 or not given."""
        known = _given.known_number(self.arguments.get(name, 0.0))
        if known is not None and 0 <= known < float(jnp.finfo(dtype).tiny):
            return None
        number = self.per_row(name, x, axes, dtype)
        if number is None or known is not None:
            return number
        # The loss is linear in the coefficient. The product with NaN makes its derivative NaN as well.
        number = number if counted is None else jnp.where(counted, number, 0)
        return number * jnp.where(jnp.isnan(number), number, 1)

    def class_weights(self, shape: tuple[int, ...], axes: Axes, dtype: jnp.dtype) -> Array | None:
        """The class weights as one vector of all classes; None if not given."""
        if self.arguments.get("class_weights") is None:
            return None
        weights = self.floats("class_weights")
        classes = tuple(shape[i] for i in axes)
        if weights.shape != classes:
            problem = f"class_weights of shape {weights.shape} for classes of shape {classes}"
            raise self.error(ValueError, problem, f"give one weight for each class, shape {classes}")
        return weights.reshape(-1).astype(dtype)

    def ignore_index(self, labels: Array) -> Array | None:
        """The class id to ignore; None if the type of the labels cannot hold it."""
        if self.arguments["ignore_index"] is None:
            return None
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            of_segments = "segment_ids" in self.arguments
            ids, rows = ("positions", "segments") if of_segments else ("class ids", "rows")
            problem = f"ignore_index is for {ids}, but these labels are target probabilities"
            raise self.error(ValueError, problem, f"leave it out, and set the targets of ignored {rows} to 0")
        index = self._index()
        if not isinstance(index, int):
            return index
        held = jnp.iinfo(labels.dtype)
        if held.min <= index <= held.max:
            return jnp.asarray(index, labels.dtype)
        return None if _given.too_wide(self.arguments["labels"]) is None else jnp.asarray(_given.IGNORED)

    def _index(self) -> int | Array | None:
        """`ignore_index`, as a Python integer if its value is known."""
        given = self.arguments.get("ignore_index")
        if given is None:
            return None
        if not isinstance(given, (bool, Array)):
            with suppress(TypeError):
                return operator.index(given)
        index = self.array("ignore_index")
        if not jnp.issubdtype(index.dtype, jnp.integer) or index.ndim:
            raise self.error(TypeError, f"ignore_index is {describe(given)}", "write one integer")
        return index

    def labels_given(self) -> Array:
        """The labels as an array; class ids that need more than 32 bits are narrowed to 32."""
        wide = _given.too_wide(self.arguments["labels"])
        return self.array("labels") if wide is None else jnp.asarray(_given.narrowed(wide, self._index()))

    def has_class_ids(self) -> bool:
        """Whether the labels are class ids, not target probabilities of all or of some classes."""
        labels = self.arguments["labels"]
        return not isinstance(labels, tuple) and bool(jnp.issubdtype(jnp.result_type(labels), jnp.integer))

    def class_ids(self, shape: tuple[int, ...], axes: Axes) -> Array:
        """The labels as integer class ids, one per row, with length 1 on the class axes."""
        return self._ids(self.labels_given(), shape, axes, or_targets=False)

    def _ids(self, labels: Array, shape: tuple[int, ...], axes: Axes, *, or_targets: bool) -> Array:
        rows, is_integer = rows_of(shape, axes), jnp.issubdtype(labels.dtype, jnp.integer)
        if is_integer and labels.shape == rows:
            return jnp.expand_dims(labels, sorted(axes))
        problem = f"labels have dtype {labels.dtype}"
        remedy = f"give class ids as integers, one for each row, shape {rows}"
        if is_integer:
            problem = f"class ids of shape {labels.shape} for rows of shape {rows}"
            remedy = f"give one id for each row, shape {rows}"
        if labels.shape == rows:
            remedy = "give class ids as integers: labels.astype(int)"
        elif labels.shape == shape:
            if len(axes) == 1:
                remedy += f", of one-hot labels labels.argmax({axes[0]})"
            takes_targets = "or" if or_targets else "or call jsoftmax.cross_entropy with"
            as_floats = ": labels.astype(float)" if is_integer else ""
            remedy += f", {takes_targets} target probabilities as floats{as_floats}"
        elif along := self._other_axes(labels.shape, shape):
            remedy = f"write axis={' or '.join(map(str, along))} if the classes lie there, or " + remedy
        elif [n for n in labels.shape if n != 1] == [n for n in rows if n != 1]:
            remedy += f": labels.reshape({rows})"
        raise self.error(ValueError if is_integer else TypeError, problem, remedy)

    def _other_axes(self, rows: tuple[int, ...], shape: tuple[int, ...]) -> list[int]:
        """The axes that, as class axis, would leave rows of this shape; none if the call has no `axis`."""
        return [i for i in range(len(shape)) if "axis" in self.arguments and rows_of(shape, (i,)) == rows]

    def targets(self, shape: tuple[int, ...]) -> Array:
        """The labels as target probabilities, broadcast to `shape`."""
        labels = self.array("labels")
        is_float = jnp.issubdtype(labels.dtype, jnp.floating)
        labels = _stored(labels) if is_float else self.floats("labels")
        if not broadcasts(labels.shape, shape):
            problem = f"target probabilities of shape {labels.shape} for logits of shape {shape}"
            raise self.error(
                ValueError, problem, f"give them the shape {shape}, or class ids to cross_entropy"
            )
        return jnp.broadcast_to(labels, shape)

    def labels(self, shape: tuple[int, ...], axes: Axes) -> Array:
        """Integer labels as class ids, float labels as target probabilities."""
        labels = self.labels_given()
        if jnp.issubdtype(labels.dtype, jnp.integer):
            return self._ids(labels, shape, axes, or_targets=True)
        if not jnp.issubdtype(labels.dtype, jnp.floating):
            problem = f"labels have dtype {labels.dtype}"
            remedy = "give integer class ids or floating probabilities"
            raise self.error(
                TypeError, problem, remedy + (": labels.astype(float)" * (labels.shape == shape))
            )
        if labels.shape != shape:
            problem = f"target probabilities of shape {labels.shape} for logits of shape {shape}"
            remedy = f"give them the shape {shape}"
            if labels.shape == rows_of(shape, axes):
                remedy += ", or class ids as integers: labels.astype(int)"
            raise self.error(ValueError, problem, remedy)
        return _stored(labels)

    def binary_targets(self, shape: tuple[int, ...]) -> Array:
        """The targets of two classes, broadcast to `shape`: floats, bools, or integers."""
        wide = _given.too_wide(self.arguments["targets"])
        targets = self.array("targets") if wide is None else jnp.asarray(_given.narrowed(wide, None))
        if not broadcasts(targets.shape, shape):
            problem = f"targets of shape {targets.shape} for logits of shape {shape}"
            raise self.error(ValueError, problem, f"give one for each logit, shape {shape}")
        is_float = jnp.issubdtype(targets.dtype, jnp.floating)
        return jnp.broadcast_to(_stored(targets) if is_float else targets, shape)


def _stored(targets: Array) -> Array:
    """Targets as stored. 8-bit targets stay 8-bit, as 16-bit targets do: each use widens what it reads."""
    return targets if jnp.finfo(targets.dtype).bits >= 8 else widened(targets)


@jax.jit(static_argnums=0)
def _nan_outside(name: str, numbers: Array) -> Array:
    """The numbers, NaN where out of range. The NaN is added, so that a cotangent of 0 stays 0."""
    is_bad = ~_given.within(name, numbers, numbers.dtype)
    return numbers + rules.nan_where(is_bad, jnp.zeros_like(numbers))
