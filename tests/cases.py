"""The one table: every public function beside its definition, and the inputs they are compared on."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import definitions
import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax

# For programs that run once in float64: half of their time would go into optimising them.
jit_quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Function(NamedTuple):
    """A public function with some of its options, and the textbook definition of the same."""

    name: str
    ours: Callable[..., Any]  # of the logits, the further arrays, and axis=
    plain: Callable[..., Any]
    arrays: Callable[..., tuple[np.ndarray, ...]]  # the further arrays, of (generator, shape, axis)
    reduces: bool = True  # whether the class axis is gone from the output

    def arguments(self, x, axis=-1, seed=1):
        """The logits and the further arrays, floats in the dtype of the logits."""
        others = self.arrays(np.random.default_rng(seed), x.shape, axis)
        return tuple(jnp.asarray(a, x.dtype if a.dtype == np.float64 else a.dtype) for a in (x, *others))

    def exact(self, arguments, axis=-1):
        """The definition of these very numbers, in mpmath."""
        exact = [definitions.exactly(a) if _is_float(a) else np.asarray(a) for a in arguments]
        return np.asarray(self.plain(*exact, axis=axis))

    def floats(self, arguments):
        """The positions of the arguments it is differentiable in."""
        return tuple(i for i, a in enumerate(arguments) if _is_float(a))


def _is_float(array):
    return jnp.issubdtype(array.dtype, jnp.floating)


def nothing(rng, shape, axis):
    return ()


def mask(rng, shape, axis):
    """About a third masked, one class of every row live."""
    live = rng.random(shape) < 0.7
    live[tuple(slice(0, 1) if i == axis % len(shape) else slice(None) for i in range(len(shape)))] = True
    return (live,)


def temperature(rng, shape, axis):
    """One a row."""
    return (rng.uniform(0.3, 3.0, np.delete(shape, axis)),)


def weights(rng, shape, axis):
    """Some of them 0."""
    b = rng.uniform(0.1, 2.0, shape)
    b[rng.random(shape) < 0.2] = 0
    b[tuple(slice(0, 1) if i == axis % len(shape) else slice(None) for i in range(len(shape)))] = 1
    return (b,)


def ids(rng, shape, axis):
    return (rng.integers(0, shape[axis], np.delete(shape, axis)).astype(np.int32),)


def live_ids(rng, shape, axis):
    """Class ids, and a mask that leaves them live."""
    (y,) = ids(rng, shape, axis)
    (live,) = mask(rng, shape, axis)
    np.put_along_axis(live, np.expand_dims(y, axis), True, axis)
    return y, live


def targets(rng, shape, axis):
    """Sums other than 1, and a 0."""
    t = rng.gamma(0.5, size=shape)
    t[tuple(slice(0, 1) if i == axis % len(shape) else slice(None) for i in range(len(shape)))] = 0
    return (t,)


def live_targets(rng, shape, axis):
    """Targets and a mask."""
    return *targets(rng, shape, axis), *mask(rng, shape, axis)


def with_temperature(arrays):
    return lambda rng, shape, axis: (*arrays(rng, shape, axis), *temperature(rng, shape, axis))


def _expanded(per_row, axis):
    return np.expand_dims(per_row, axis) if per_row.dtype == object else jnp.expand_dims(per_row, axis)


def _live(where, values):
    return (np if values.dtype == object else jnp).where(where, values, 0)


FUNCTIONS = (
    Function("softmax", jsoftmax.softmax, definitions.softmax, nothing, reduces=False),
    Function(
        "softmax, masked",
        lambda x, m, axis: jsoftmax.softmax(x, axis, m),
        lambda x, m, axis: definitions.softmax(x, axis, m),
        mask,
        reduces=False,
    ),
    Function(
        "softmax, temperature",
        lambda x, t, axis: jsoftmax.softmax(x, axis, temperature=t),
        lambda x, t, axis: definitions.softmax(x, axis, temperature=_expanded(t, axis)),
        temperature,
        reduces=False,
    ),
    Function("log_softmax", jsoftmax.log_softmax, definitions.log_softmax, nothing, reduces=False),
    Function(
        "log_softmax, masked",
        lambda x, m, axis: jnp.where(m, jsoftmax.log_softmax(x, axis, m), 0),
        lambda x, m, axis: _live(m, definitions.log_softmax(x, axis, m)),
        mask,
        reduces=False,
    ),
    Function(
        "log_softmax, temperature",
        lambda x, t, axis: jsoftmax.log_softmax(x, axis, temperature=t),
        lambda x, t, axis: definitions.log_softmax(x, axis, temperature=_expanded(t, axis)),
        temperature,
        reduces=False,
    ),
    Function("logsumexp", jsoftmax.logsumexp, definitions.logsumexp, nothing),
    Function(
        "logsumexp, masked",
        lambda x, m, axis: jsoftmax.logsumexp(x, axis, where=m),
        lambda x, m, axis: definitions.logsumexp(x, axis, where=m),
        mask,
    ),
    Function(
        "logsumexp, weighted",
        lambda x, b, axis: jsoftmax.logsumexp(x, axis, b),
        lambda x, b, axis: definitions.logsumexp(x, axis, b),
        weights,
    ),
    Function("cross_entropy, ids", jsoftmax.cross_entropy, definitions.cross_entropy, ids),
    Function(
        "cross_entropy, ids, masked",
        lambda x, y, m, axis: jsoftmax.cross_entropy(x, y, axis=axis, where=m),
        lambda x, y, m, axis: definitions.cross_entropy(x, y, axis, m),
        live_ids,
    ),
    Function(
        "cross_entropy, ids, temperature",
        lambda x, y, t, axis: jsoftmax.cross_entropy(x, y, axis=axis, temperature=t),
        lambda x, y, t, axis: definitions.cross_entropy(x, y, axis, temperature=_expanded(t, axis)),
        with_temperature(ids),
    ),
    Function("cross_entropy, targets", jsoftmax.cross_entropy, definitions.cross_entropy, targets),
    Function(
        "cross_entropy, targets, masked",
        lambda x, t, m, axis: jsoftmax.cross_entropy(x, _live(m, t), axis=axis, where=m),
        lambda x, t, m, axis: definitions.cross_entropy(x, t, axis, m),
        live_targets,
    ),
    Function(
        "cross_entropy, targets, temperature",
        lambda x, t, s, axis: jsoftmax.cross_entropy(x, t, axis=axis, temperature=s),
        lambda x, t, s, axis: definitions.cross_entropy(x, t, axis, temperature=_expanded(s, axis)),
        with_temperature(targets),
    ),
    Function("softmax_cross_entropy", jsoftmax.softmax_cross_entropy, definitions.cross_entropy, targets),
    Function(
        "softmax_cross_entropy_with_integer_labels",
        jsoftmax.softmax_cross_entropy_with_integer_labels,
        definitions.cross_entropy,
        ids,
    ),
)


def _led(by):
    def rows(rng, shape, axis):
        x = rng.normal(size=shape)
        top = np.expand_dims(rng.integers(0, shape[axis], np.delete(shape, axis)), axis)
        np.put_along_axis(x, top, x.max(axis, keepdims=True) + by, axis)
        return x

    return rows


def _tied(rng, shape, axis):
    x = rng.normal(size=shape)
    top = x.max(axis, keepdims=True)
    np.put_along_axis(x, np.zeros_like(top, int), top, axis)
    np.put_along_axis(x, np.full_like(top, shape[axis] - 1, int), top, axis)
    return x


REGIMES = {
    "flat": lambda rng, shape, axis: np.full(shape, 1.5),
    "unit": lambda rng, shape, axis: rng.normal(size=shape),
    "spread": lambda rng, shape, axis: 30 * rng.normal(size=shape),
    "peaked by 15": _led(15),
    "peaked by 30": _led(30),
    "tied": _tied,
    "offset 1e4": lambda rng, shape, axis: 1e4 + rng.normal(size=shape),
}

# Shapes and class axes: one class, two, odd sizes, every position of the axis, and no rows at all.
SHAPES = (
    ((7,), 0),
    ((3, 1), -1),
    ((5, 2), 1),
    ((10, 6), 0),
    ((3, 4, 5), 1),
    ((2, 3, 33), -1),
    ((0, 4), -1),
)


def logits(regime, shape=(4, 9), axis=-1, dtype=np.float64, seed=0):
    """Rows of the regime, the same values whatever the dtype: those that float32 holds."""
    return REGIMES[regime](np.random.default_rng(seed), shape, axis).astype(np.float32).astype(dtype)


def named(functions=FUNCTIONS):
    """Pytest's parametrize arguments for the functions."""
    return {"argvalues": functions, "ids": [f.name for f in functions]}
