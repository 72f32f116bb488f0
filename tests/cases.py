"""The table of all public functions with their definitions, and the inputs on which tests compare them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import definitions
import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax


def curvature(scalar, arguments, along=None):
    """The Hessian of a scalar in some arrays times a random vector, which shows every wrong or NaN entry."""
    return to_second_order(scalar, jnp.sum, arguments, along)[2]


def to_second_order(f, total, arguments, along=None):
    """``f``, the gradient of ``total(f)``, and its Hessian times a vector, from one forward pass."""
    if along is None:
        rng = np.random.default_rng(4)
        along = tuple(jnp.asarray(rng.normal(size=a.shape), a.dtype) for a in arguments)

    def with_values(*arguments):
        values = f(*arguments)
        return total(values), values

    gradient = jax.grad(with_values, tuple(range(len(arguments))), has_aux=True)
    found, pull, values = jax.vjp(gradient, *arguments, has_aux=True)
    return values, found, pull(along)


class Function(NamedTuple):
    """A public function with some of its options, and the textbook definition of the same function."""

    name: str
    ours: Callable[..., Any]  # takes the logits, the further arrays, and axis=
    plain: Callable[..., Any]
    arrays: Callable[..., tuple[np.ndarray, ...]]  # the further arrays, from (generator, shape, axis)
    reduces: bool = True  # whether the output has no class axis
    slope: float = 0  # the change of an output that is 0, relative to that of the logits: roundings of these

    def arguments(self, x, axis=-1, seed=1):
        """The logits and the further arrays; floats are in the dtype of the logits."""
        others = self.arrays(np.random.default_rng(seed), x.shape, axis)
        return tuple(jnp.asarray(a, x.dtype if a.dtype == np.float64 else a.dtype) for a in (x, *others))

    def exact(self, arguments, axis=-1):
        """The definition on the same numbers, in mpmath."""
        exact = [definitions.exactly(a) if _is_float(a) else np.asarray(a) for a in arguments]
        return np.asarray(self.plain(*exact, axis=axis))

    def floats(self, arguments):
        """The positions of the arguments in which it is differentiable."""
        return tuple(i for i, a in enumerate(arguments) if _is_float(a))


def _is_float(array):
    return jnp.issubdtype(array.dtype, jnp.floating)


def nothing(rng, shape, axis):
    return ()


def mask(rng, shape, axis):
    """A mask of about a third of the classes, with one live class in every row."""
    live = rng.random(shape) < 0.7
    live[tuple(slice(0, 1) if i == axis % len(shape) else slice(None) for i in range(len(shape)))] = True
    return (live,)


def temperature(rng, shape, axis):
    """One temperature per row."""
    return (rng.uniform(0.3, 3.0, np.delete(shape, axis)),)


def weights(rng, shape, axis):
    """Weights, some of them 0."""
    b = rng.uniform(0.1, 2.0, shape)
    b[rng.random(shape) < 0.2] = 0
    b[tuple(slice(0, 1) if i == axis % len(shape) else slice(None) for i in range(len(shape)))] = 1
    return (b,)


def ids(rng, shape, axis):
    return (rng.integers(0, shape[axis], np.delete(shape, axis)).astype(np.int32),)


def live_ids(rng, shape, axis):
    """Class ids, and a mask under which their classes are live."""
    (y,) = ids(rng, shape, axis)
    (live,) = mask(rng, shape, axis)
    np.put_along_axis(live, np.expand_dims(y, axis), True, axis)
    return y, live


def targets(rng, shape, axis):
    """Targets whose sums are not 1, with a 0 among them."""
    t = rng.gamma(0.5, size=shape)
    t[tuple(slice(0, 1) if i == axis % len(shape) else slice(None) for i in range(len(shape)))] = 0
    return (t,)


def positive_targets(rng, shape, axis):
    """Targets whose sums are not 1, none of them near 0, where t^α has no second derivative."""
    return (0.1 + rng.gamma(0.5, size=shape),)


def live_targets(rng, shape, axis):
    """Targets and a mask."""
    return *targets(rng, shape, axis), *mask(rng, shape, axis)


def other(rng, shape, axis):
    """The logits of a second distribution."""
    return (rng.normal(size=shape),)


def together(*kinds):
    """A function that returns the arrays of several kinds in order."""
    return lambda rng, shape, axis: tuple(a for kind in kinds for a in kind(rng, shape, axis))


def options(rng, shape, axis):
    """A label smoothing, a z-loss, a soft cap, a temperature and a weight for each row."""
    rows, ranges = np.delete(shape, axis), ((0.05, 0.3), (0.01, 0.1), (5, 50), (0.3, 3), (0.5, 2))
    return tuple(rng.uniform(low, high, rows) for low, high in ranges)


def focus(rng, shape, axis):
    """A focus γ, a soft cap, a temperature and a weight for each row."""
    rows, ranges = np.delete(shape, axis), ((0.5, 3), (5, 50), (0.3, 3), (0.5, 2))
    return tuple(rng.uniform(low, high, rows) for low, high in ranges)


def shares(rng, shape, axis):
    """One for each logit, between 0 and 1, with both ends."""
    return (rng.integers(0, 5, shape) / 4,)


def sinks(rng, shape, axis):
    """A logit for each row, of the size of the others."""
    return (2 * rng.normal(size=np.delete(shape, axis)),)


def bits(rng, shape, axis):
    """0 or 1 for each logit."""
    return (rng.integers(0, 2, shape).astype(np.int32),)


def share(rng, shape, axis):
    """One a row, between 0 and 1."""
    return (rng.uniform(0.1, 0.9, np.delete(shape, axis)),)


def power(rng, shape, axis):
    """The α of entmax, one a row."""
    return (rng.uniform(1.2, 1.9, np.delete(shape, axis)),)


def few_log_probs(rng, shape, axis):
    """Log-probabilities of 4 classes a row, the axis moved last; the ids are those of `_few_ids`."""
    rows = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    return (np.log(0.9 * rng.dirichlet(np.ones(4), rows)),)


def _few_ids(log_probs, classes):
    """One after the other from 0, so that with few classes some repeat."""
    ids = np.arange(4) % classes
    return np.broadcast_to(ids, log_probs.shape)


def _dense_of_few(log_probs, x, axis):
    """The targets as an array like x."""
    xp = np if x.dtype == object else jnp
    t = definitions.EXACT.exp(log_probs) if x.dtype == object else jnp.exp(log_probs)
    columns = [sum(t[..., k] for k in range(4) if k % x.shape[axis] == j) for j in range(x.shape[axis])]
    zero = 0 * t[..., 0]
    return xp.stack([zero + column for column in columns], axis)


def _expanded(per_row, axis):
    return np.expand_dims(per_row, axis) if per_row.dtype == object else jnp.expand_dims(per_row, axis)


def _expand_each(axis, **per_row):
    return {name: _expanded(values, axis) for name, values in per_row.items()}


def _one(x):
    """1, in the numbers of x."""
    return definitions.mpf(1) if x.dtype == object else 1


def _live(where, values):
    return (np if values.dtype == object else jnp).where(where, values, 0)


def _weighted(remainders):
    """Class weights from the class ids modulo 7, the same in every dtype."""
    return 0.5 + 0.25 * remainders


def _ours_with_options(x, t, m, alpha, z, cap, temperature, w, axis):
    return jsoftmax.cross_entropy(
        x,
        t if jnp.issubdtype(t.dtype, jnp.integer) else _live(m, t),
        axis=axis,
        where=m,
        weights=w,
        class_weights=_weighted((jnp.arange(x.shape[axis]) % 7).astype(x.dtype)),
        label_smoothing=alpha,
        z_loss=z,
        soft_cap=cap,
        temperature=temperature,
    )


def _class_weights(x, axis):
    """The weights of the classes, in the numbers of x."""
    weights = _weighted(np.arange(x.shape[axis]) % 7)
    return definitions.exactly(weights) if x.dtype == object else jnp.asarray(weights, x.dtype)


def _plain_with_options(x, t, m, alpha, z, cap, temperature, w, axis):
    return w * definitions.cross_entropy(
        x,
        t,
        axis,
        m,
        _expanded(temperature, axis),
        _expanded(cap, axis),
        _class_weights(x, axis),
        alpha,
        z,
    )


def _ours_of_statistics(x, y, m, temperature, axis):
    found = jsoftmax.row_statistics(x, y, axis=axis, where=m, temperature=temperature, soft_cap=20.0)
    return 2 * found.log_normalizer + 3 * found.nll + 5 * found.entropy


def _plain_of_statistics(x, y, m, temperature, axis):
    options = {"where": m, "temperature": _expanded(temperature, axis), "soft_cap": 20}
    return (
        2 * definitions.logsumexp(x, axis, **options)
        + 3 * definitions.cross_entropy(x, y, axis, **options)
        + 5 * definitions.entropy(x, axis, **options)
    )


def _ours_with_focus(loss, name):
    return lambda x, y, m, option, cap, temperature, w, axis: loss(
        x, y, axis=axis, where=m, weights=w, soft_cap=cap, temperature=temperature, **{name: option}
    )


def _plain_with_focus(loss):
    def plain(x, y, m, option, cap, temperature, w, axis):
        options = {"temperature": _expanded(temperature, axis), "soft_cap": _expanded(cap, axis)}
        return w * loss(x, y, option, axis, where=m, **options)

    return plain


def _ours_log_odds(x, y, m, temperature, axis):
    """0 where it is +inf, if the label is the only live class."""
    odds = jsoftmax.log_odds(x, y, axis=axis, where=m, temperature=temperature)
    return jnp.where(m.sum(axis) == 1, 0, odds)


def _in_segments(function, x, axis, *others, reduces=False, **of_rows):
    """A function of segments on the rows of x, as segments whose entries take turns.

    `others` have one number per class, and `of_rows` are options with one per row.
    """
    x, *others = (None if a is None else jnp.moveaxis(a, axis, 0) for a in (x, *others))
    classes, *rows = x.shape
    count = math.prod(rows)
    ids = jnp.tile(jnp.arange(count, dtype=jnp.int32), classes)
    flat = (None if a is None else a.reshape(-1) for a in (x, *others))
    out = function(*flat, ids, count, **{name: a.reshape(-1) for name, a in of_rows.items()})
    return out.reshape(rows) if reduces else jnp.moveaxis(out.reshape(x.shape), 0, axis)


def _segment_map(function):
    return lambda x, where, ids, count, **options: function(x, ids, count, where=where, **options)


def _segment_loss(x, where, *targets_ids_count, labels=None, **options):
    *targets, ids, count = targets_ids_count
    if labels is not None:  # class y of row i is at y·rows + i
        targets = (labels * count + jnp.arange(count, dtype=labels.dtype),)
    return jsoftmax.segment_cross_entropy(x, *targets, ids, count, where=where, **options)


def _head(x, axis):
    """Features and a weight whose product are the logits x, exactly, with the classes last."""
    hidden = jnp.moveaxis(x, axis, -1)
    return hidden, jnp.eye(hidden.shape[-1], dtype=x.dtype)


def _ours_largest(x, y, t, axis):
    """Of all classes, each with its own weight, so that the order of ties has no effect; and the label."""
    hidden, weight = _head(x, axis)
    found = jsoftmax.linear_top_log_probs(hidden, weight, x.shape[axis], labels=y, temperature=t)
    weights = _weighted((found.ids % 7).astype(found.log_probs.dtype))
    return jnp.sum(weights * found.log_probs, -1) + 3 * found.label_log_prob


def _plain_largest(x, y, t, axis):
    options = {"axis": axis, "temperature": _expanded(t, axis)}
    of_all = definitions.cross_entropy(x, 1 + 0 * x, weights=_class_weights(x, axis), **options)
    return -of_all - 3 * definitions.cross_entropy(x, y, **options)


def _contrast(loss):
    """For each row the loss of a batch of two pairs of features: x with a, and y with b."""

    def of_rows(x, y, a, b, *numbers, axis):
        def of_batch(x, y, a, b, *numbers):
            # y has the dtype of x in a batch, also where a test gives it another
            return loss(jnp.stack([x, y.astype(x.dtype)]), jnp.stack([a, b]), *numbers)

        features = (jnp.moveaxis(v, axis, -1) for v in (x, y, a, b))
        signature = ",".join(["(n)"] * 4 + ["()"] * len(numbers)) + "->()"
        return jnp.vectorize(of_batch, signature=signature)(*features, *numbers)

    return of_rows


FUNCTIONS = (
    Function("softmax", jsoftmax.softmax, definitions.softmax, nothing, reduces=False),
    Function(
        "softmax, masked, temperature",
        lambda x, m, t, axis: jsoftmax.softmax(x, axis, m, temperature=t),
        lambda x, m, t, axis: definitions.softmax(x, axis, m, _expanded(t, axis)),
        together(mask, temperature),
        reduces=False,
    ),
    Function("log_softmax", jsoftmax.log_softmax, definitions.log_softmax, nothing, reduces=False),
    Function(
        "log_softmax, masked, temperature",
        lambda x, m, t, axis: jnp.where(m, jsoftmax.log_softmax(x, axis, m, temperature=t), 0),
        lambda x, m, t, axis: _live(m, definitions.log_softmax(x, axis, m, _expanded(t, axis))),
        together(mask, temperature),
        reduces=False,
    ),
    Function(
        "softmax, sink",
        lambda x, s, axis: jsoftmax.softmax(x, axis, sink=s),
        lambda x, s, axis: definitions.softmax(x, axis, sink=_expanded(s, axis)),
        sinks,
        reduces=False,
    ),
    Function(
        "log_softmax, sink, temperature",
        lambda x, s, t, axis: jsoftmax.log_softmax(x, axis, sink=s, temperature=t),
        lambda x, s, t, axis: definitions.log_softmax(
            x, axis, temperature=_expanded(t, axis), sink=_expanded(s, axis)
        ),
        together(sinks, temperature),
        reduces=False,
    ),
    Function(
        "sparsemax",
        jsoftmax.sparsemax,
        lambda x, axis: definitions.entmax(x, 2, axis),
        nothing,
        reduces=False,
        slope=1,
    ),
    Function(
        "entmax15, masked, temperature",
        lambda x, m, t, axis: jsoftmax.entmax15(x, axis, m, temperature=t),
        lambda x, m, t, axis: definitions.entmax(x, 1.5 * _one(x), axis, m, _expanded(t, axis)),
        together(mask, temperature),
        reduces=False,
        slope=1,
    ),
    Function(
        "entmax, masked",
        lambda x, a, m, axis: jsoftmax.entmax(x, a, axis, m),
        lambda x, a, m, axis: definitions.entmax(x, a, axis, m),
        together(power, mask),
        reduces=False,
        slope=1,
    ),
    Function(
        "sparsemax_loss, ids",
        jsoftmax.sparsemax_loss,
        lambda x, y, axis: definitions.entmax_loss(x, y, 2, axis),
        ids,
        slope=1,
    ),
    Function(
        "entmax_loss, targets, masked, temperature",
        lambda x, t, a, m, s, axis: jsoftmax.entmax_loss(
            x, _live(m, t), a, axis=axis, where=m, temperature=s
        ),
        lambda x, t, a, m, s, axis: definitions.entmax_loss(x, _live(m, t), a, axis, m, _expanded(s, axis)),
        together(positive_targets, power, mask, temperature),
        slope=1,
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
        "cross_entropy, ids, masked, options",
        _ours_with_options,
        _plain_with_options,
        together(live_ids, options),
    ),
    Function("cross_entropy, targets", jsoftmax.cross_entropy, definitions.cross_entropy, targets),
    Function(
        "cross_entropy, targets, masked, options",
        _ours_with_options,
        _plain_with_options,
        together(live_targets, options),
    ),
    Function("softmax_cross_entropy", jsoftmax.softmax_cross_entropy, definitions.cross_entropy, targets),
    Function(
        "softmax_cross_entropy_with_integer_labels",
        jsoftmax.softmax_cross_entropy_with_integer_labels,
        definitions.cross_entropy,
        ids,
    ),
    Function(
        "log_prob",
        jsoftmax.log_prob,
        lambda x, y, axis: -definitions.cross_entropy(x, y, axis),
        ids,
    ),
    Function(
        "log_odds, masked, temperature",
        _ours_log_odds,
        lambda x, y, m, t, axis: definitions.log_odds(x, y, axis, m, _expanded(t, axis)),
        together(live_ids, temperature),
    ),
    Function(
        "focal_loss, masked, options",
        _ours_with_focus(jsoftmax.focal_loss, "gamma"),
        _plain_with_focus(definitions.focal_loss),
        together(live_ids, focus),
    ),
    Function(
        "poly_loss, masked, options",
        _ours_with_focus(jsoftmax.poly_loss, "epsilon"),
        _plain_with_focus(definitions.poly_loss),
        together(live_ids, focus),
    ),
    Function(
        "log_sigmoid",
        lambda x, axis: jsoftmax.log_sigmoid(x),
        lambda x, axis: definitions.log_sigmoid(x),
        nothing,
        reduces=False,
    ),
    Function(
        "binary_cross_entropy, ids",
        lambda x, t, axis: jsoftmax.binary_cross_entropy(x, t),
        lambda x, t, axis: definitions.binary_cross_entropy(x, t),
        bits,
        reduces=False,
    ),
    Function(
        "binary_cross_entropy, targets, options",
        lambda x, t, c, w, alpha, axis: jsoftmax.binary_cross_entropy(
            x, t, **_expand_each(axis, pos_weight=c, weights=w, label_smoothing=alpha)
        ),
        lambda x, t, c, w, alpha, axis: definitions.binary_cross_entropy(
            x, t, **_expand_each(axis, pos_weight=c, weights=w, label_smoothing=alpha)
        ),
        together(shares, temperature, temperature, share),
        reduces=False,
    ),
    Function("entropy", jsoftmax.entropy, definitions.entropy, nothing),
    Function(
        "row_statistics, masked, temperature",
        _ours_of_statistics,
        _plain_of_statistics,
        together(live_ids, temperature),
    ),
    Function("kl_divergence", jsoftmax.kl_divergence, definitions.kl_divergence, other),
    Function(
        "kl_divergence, masked, temperature",
        lambda x, q, m, t, axis: jsoftmax.kl_divergence(x, q, axis=axis, where=m, temperature=t),
        lambda x, q, m, t, axis: definitions.kl_divergence(x, q, axis, m, _expanded(t, axis)),
        together(other, mask, temperature),
    ),
    Function(
        "js_divergence, masked, temperature",
        lambda x, q, m, t, axis: jsoftmax.js_divergence(x, q, axis=axis, where=m, temperature=t),
        lambda x, q, m, t, axis: definitions.js_divergence(x, q, axis, m, _expanded(t, axis)),
        together(other, mask, temperature),
    ),
    Function(
        "cross_entropy, sparse targets",
        lambda x, t, axis: jsoftmax.cross_entropy(
            x, jsoftmax.SparseTargets(jnp.asarray(_few_ids(t, x.shape[axis])), t), axis=axis
        ),
        lambda x, t, axis: definitions.cross_entropy(x, _dense_of_few(t, x, axis), axis),
        few_log_probs,
    ),
    Function(
        "js_divergence, masked, beta",
        lambda x, q, m, b, axis: jsoftmax.js_divergence(x, q, beta=b, axis=axis, where=m),
        lambda x, q, m, b, axis: definitions.js_divergence(x, q, axis, m, beta=b),
        together(other, mask, share),
    ),
    Function(
        "linear_kl_divergence, temperature",
        lambda x, q, t, axis: jsoftmax.linear_kl_divergence(
            *_head(x, axis), *_head(q, axis), temperature=t, block_size=2
        ),
        lambda x, q, t, axis: definitions.kl_divergence(x, q, axis, None, _expanded(t, axis)),
        together(other, temperature),
    ),
    Function(
        "linear_js_divergence, masked, beta",
        lambda x, q, m, b, axis: jsoftmax.linear_js_divergence(
            *_head(x, axis), *_head(q, axis), where=jnp.moveaxis(m, axis, -1), beta=b
        ),
        lambda x, q, m, b, axis: definitions.js_divergence(x, q, axis, m, beta=b),
        together(other, mask, share),
    ),
    Function(
        "linear_sparse_kl_divergence",
        lambda x, t, axis: jsoftmax.linear_sparse_kl_divergence(
            jsoftmax.SparseTargets(jnp.asarray(_few_ids(t, x.shape[axis])), t), *_head(x, axis)
        ),
        lambda x, t, axis: definitions.sparse_kl_divergence(x, _dense_of_few(t, x, axis), 4, axis),
        few_log_probs,
        slope=1,
    ),
    Function("linear_top_log_probs, temperature", _ours_largest, _plain_largest, together(ids, temperature)),
    Function(
        "contrastive_loss",
        _contrast(lambda a, b, t: jsoftmax.contrastive_loss(a, b, temperature=t)),
        lambda x, y, a, b, t, axis: definitions.contrastive_loss((x, y), (a, b), t, axis),
        together(other, other, other, temperature),
        slope=1,
    ),
    Function(
        "sigmoid_contrastive_loss",
        _contrast(lambda a, b, t, c: jsoftmax.sigmoid_contrastive_loss(a, b, temperature=t, bias=c)),
        lambda x, y, a, b, t, c, axis: definitions.sigmoid_contrastive_loss((x, y), (a, b), t, c, axis),
        together(other, other, other, temperature, share),
        slope=1,
    ),
    Function(
        "segment_softmax, masked, temperature",
        lambda x, m, t, axis: _in_segments(_segment_map(jsoftmax.segment_softmax), x, axis, m, temperature=t),
        lambda x, m, t, axis: definitions.softmax(x, axis, m, _expanded(t, axis)),
        together(mask, temperature),
        reduces=False,
    ),
    Function(
        "segment_log_softmax",
        lambda x, axis: _in_segments(_segment_map(jsoftmax.segment_log_softmax), x, axis, None),
        definitions.log_softmax,
        nothing,
        reduces=False,
    ),
    Function(
        "segment_logsumexp, masked, temperature",
        lambda x, m, t, axis: _in_segments(
            _segment_map(jsoftmax.segment_logsumexp), x, axis, m, reduces=True, temperature=t
        ),
        lambda x, m, t, axis: definitions.logsumexp(x, axis, where=m, temperature=_expanded(t, axis)),
        together(mask, temperature),
    ),
    Function(
        "segment_cross_entropy, ids, masked, temperature",
        lambda x, y, m, t, axis: _in_segments(
            _segment_loss, x, axis, m, reduces=True, labels=y, temperature=t
        ),
        lambda x, y, m, t, axis: definitions.cross_entropy(x, y, axis, m, _expanded(t, axis)),
        together(live_ids, temperature),
    ),
    Function(
        "segment_cross_entropy, targets, weights",
        lambda x, t, w, axis: _in_segments(_segment_loss, x, axis, None, t, reduces=True, weights=w),
        lambda x, t, w, axis: w * definitions.cross_entropy(x, t, axis),
        together(targets, temperature),
    ),
)


# The functions whose arguments have the axes of the logits, or those of the rows. Sparse targets have K
# classes on a further axis, the last; test_few_classes.py maps them. Segments have ids, and a number that is
# known; test_segments.py has their sizes. Heads have a weight, and a contrastive loss has a batch;
# test_distillation.py, test_few_classes.py and test_contrastive.py map them, and measure their memory.
_WITH_OTHER_AXES = ("sparse", "segment", "linear", "contrastive")
WITH_AXES_OF_LOGITS = tuple(f for f in FUNCTIONS if not any(kind in f.name for kind in _WITH_OTHER_AXES))


def ahead(by):
    """Rows of normal logits in which the middle class leads the others by `by`."""

    def rows(rng, shape):
        x = rng.normal(size=shape)
        x[:, shape[1] // 2] = x.max(1) + by
        return x

    return rows


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

# Shapes and class axes: one class, two, odd sizes, every position of the axis, and no rows.
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
    """Rows of the regime, with the same values in every dtype: float32 holds them."""
    return REGIMES[regime](np.random.default_rng(seed), shape, axis).astype(np.float32).astype(dtype)


def named(functions=FUNCTIONS):
    """The arguments of pytest's parametrize for the functions."""
    return {"argvalues": functions, "ids": [f.name for f in functions]}
