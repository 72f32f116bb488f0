"""Rows for the kernels of a platform, their exact results in float64, and the bounds of the contract.

A kernel module has the functions state, softmax, log_softmax, backward and loss_and_gradient. `results` calls
one of them, and `check` compares what it returned.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jsoftmax.backends._kernel_rows import Row, class_and_unused, with_unused

TINY = float(np.finfo(np.float32).tiny)
KERNELS = ("state", "softmax", "log_softmax", "softmax backward", "log_softmax backward", "loss and gradient")


def ahead(by):
    def row(rng, n):
        return np.where(np.arange(n) == n // 3, by + 4, rng.normal(size=n))

    return row


def with_some(value, every):
    def row(rng, n):
        return np.where(np.arange(n) % every == every // 2, value, rng.normal(size=n))

    return row


def tied(rng, n):
    return np.where(np.isin(np.arange(n), (0, n // 2, n - 1)), 5.0, rng.normal(size=n))


REGIMES = {
    "unit": lambda rng, n: rng.normal(size=n),
    "flat": lambda rng, n: np.full(n, 1.7),
    "N(0, 30²)": lambda rng, n: 30 * rng.normal(size=n),
    "ahead by 20": ahead(20),
    "ahead by 80": ahead(80),
    "ahead by 86": ahead(86),  # most exponentials are below the normal numbers, but the rest is not
    "all but one equal": lambda rng, n: np.where(np.arange(n) == n // 3, 0.3, 0.0),
    "tied": tied,
    "offset 1e4": lambda rng, n: 1e4 + rng.normal(size=n),
    "huge": lambda rng, n: rng.uniform(-3e38, 3e38, n),
    "dead classes": with_some(-np.inf, 3),
    "all dead": lambda rng, n: np.full(n, -np.inf),
    "a NaN": lambda rng, n: np.where(np.arange(n) == n // 2, np.nan, rng.normal(size=n)),
    "a +inf": lambda rng, n: np.where(np.arange(n) == n // 2, np.inf, rng.normal(size=n)),
    "label too large": lambda rng, n: rng.normal(size=n),
    "label negative": lambda rng, n: rng.normal(size=n),
    "label dead": with_some(-np.inf, 3),
    "unit, last": lambda rng, n: rng.normal(size=n),
}


class Case(NamedTuple):
    """The arguments of the kernels, as NumPy arrays."""

    x: np.ndarray
    where: np.ndarray | None
    temperature: np.ndarray | None
    labels: np.ndarray
    scale: np.ndarray
    g: np.ndarray
    names: tuple[str, ...]

    @property
    def row(self):
        return Row(*(None if a is None else jnp.asarray(a) for a in (self.x, self.where, self.temperature)))


@functools.cache
def case(dtype, classes, mask=None, temperature=False, rows=None):
    """All regimes, or the first `rows` of them, each as one row.

    `mask` is None, "one" for all rows, or "each"; NaN lies under it. T has both signs.
    """
    rng = np.random.default_rng(classes)
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    names = tuple(REGIMES)[:rows]
    with np.errstate(over="ignore"):
        x = np.stack([REGIMES[name](rng, classes) for name in names]).astype(np.float32).astype(dtype)
    shape = x.shape
    labels = rng.integers(0, classes, (shape[0], 1))
    for i, name in enumerate(names):
        of = {"label too large": classes, "label negative": -1, "label dead": 1, "ahead by 86": classes // 3}
        labels[i] = min(of.get(name, labels[i, 0]), classes)
    unused = np.array([[name == "a +inf"] for name in names])
    labels = np.asarray(with_unused(labels, unused))
    where = None
    if mask is not None:
        where = rng.random(shape if mask == "each" else (1, classes)) < 0.7
        where[0, 0] = True
        if mask == "each":
            where[-1] = False  # the last row is masked whole
        x = np.where(where | (rng.random(shape) < 0.5), x, np.asarray(np.nan, dtype))
        where = where.astype(np.int8)
    scale = rng.normal(size=(shape[0], 1)).astype(np.float32)
    of_rows = rng.uniform(0.3, 3, (shape[0], 1)) * rng.choice([-1, 1], (shape[0], 1))
    g = rng.normal(size=shape).astype(dtype)
    if where is not None:
        g = np.where(where != 0, g, np.asarray(np.nan, dtype))
    return Case(
        x,
        where,
        of_rows.astype(np.float32) if temperature else None,
        labels.astype(np.int32),
        scale,
        g,
        names,
    )


def results(module, kernel, given, interpret=None, jit=lambda f: f):
    """What a kernel of the module returns, by name, as NumPy arrays."""
    labels, scale, g, row = *map(jnp.asarray, (given.labels, given.scale, given.g)), given.row
    if kernel == "state":
        names = ("top", "rest", "label")
        found = jit(lambda row, y: tuple(module.state(row, y, interpret)))(row, labels)
    elif kernel in ("softmax", "log_softmax"):
        names = (kernel, "top", "rest")
        found = jit(lambda row: getattr(module, kernel)(row, interpret))(row)
    elif kernel == "loss and gradient":
        names = ("top", "rest", "label", kernel)
        found = jit(lambda *a: module.loss_and_gradient(*a, interpret))(row, labels, scale)
    else:
        rule, names, by = kernel.removesuffix(" backward"), (kernel,), exact(given)
        with np.errstate(over="ignore"):
            state = (jnp.asarray(by[name].value.astype(np.float32)) for name in ("top", "rest"))
        found = (jit(lambda *a: module.backward(rule, *a, interpret))(row, *state, g),)
    return dict(zip(names, map(np.asarray, found), strict=True))


class Exact(NamedTuple):
    """An exact result, and the bound of its error.

    The bound is so many float32 ulp of the result, or of the terms that it is the sum of, plus `lost`, what
    probabilities below the normal numbers add to it.
    """

    value: np.ndarray
    ulps: np.ndarray | float
    size: np.ndarray | float = 0
    lost: np.ndarray | float = 0


def _ignoring_floats(function):
    return np.errstate(all="ignore")(function)


@_ignoring_floats
def exact(given):
    """The exact results by name, in float64."""
    x = given.x.astype(np.float64)
    live = np.ones(x.shape, bool) if given.where is None else np.broadcast_to(given.where != 0, x.shape)
    t = np.ones((len(x), 1)) if given.temperature is None else given.temperature.astype(np.float64)
    z = np.where(np.isinf(x), x, x * np.sign(t))
    z = np.where(live, z, -np.inf)
    broken = (np.isnan(z) | (z == np.inf)).any(1, keepdims=True)
    top = z.max(1, keepdims=True)
    empty = top == -np.inf
    u = np.where(empty, -np.inf, (z - np.where(empty, 0, top)) / abs(t))
    terms = np.exp(u)
    first = np.arange(x.shape[1]) == z.argmax(1)[:, None]
    rest = np.where(empty, -1, np.where(first, 0, terms).sum(1, keepdims=True))
    rest = np.where(broken, np.nan, rest)
    total = np.where(empty, 1, 1 + rest)
    p = np.where(empty, 0, terms / total)
    log_p = np.where(empty, -np.inf, u - np.log1p(np.where(empty, 0, rest)))
    gap = np.where(np.isfinite(u), -u, 0)
    lead = np.where(first | np.isneginf(u), np.inf, gap).min(1, keepdims=True)
    lead = np.where(np.isfinite(lead), lead, 0)
    gap_or_lead = np.where(first, lead, gap)

    labels, unused = map(np.asarray, class_and_unused(given.labels))
    ids = np.arange(x.shape[1]) == labels
    is_class = ids.any(1, keepdims=True)
    others = np.where(first & ids, rest / total, 1 - p)  # 1 − p of the label
    scale = np.where(is_class, given.scale.astype(np.float64), np.nan)
    dz = np.where(empty | unused, 0, scale * np.where(ids, -others, p))
    label = np.where(ids, np.where(live, x, -np.inf), 0).sum(1, keepdims=True)

    found = {
        "top": Exact(top, 0.0),
        "rest": Exact(rest, 4 + lead),
        "label": Exact(label, 0.0),
        "softmax": Exact(p, 4 + gap),
        "log_softmax": Exact(log_p, 4 + np.where(first, lead, 0)),
        "loss and gradient": Exact(dz, 5 + gap_or_lead, lost=np.minimum(p, TINY) * abs(scale)),
    }
    g = np.where(live, given.g.astype(np.float64), 0)
    for name, weight in (("softmax", p), ("log_softmax", np.ones_like(p))):
        v = weight * g
        # g − p·Σg is the sum over all other classes j of g·p_j − p·g_j.
        of_others = np.where(first, rest / total, 1 - p)
        others_sum, others_size = (_of_others(a, first) for a in (v, abs(v)))
        of_g = p * abs(g)
        lost = np.where(np.minimum(p, of_g) < TINY, of_g, 0).sum(1, keepdims=True)
        found[f"{name} backward"] = Exact(
            v * of_others - p * others_sum,
            6 + gap_or_lead,
            abs(v) * of_others + p * others_size,
            np.minimum(p, TINY) * (abs(g) + of_g.sum(1, keepdims=True)) + lost,
        )
    for name in ("loss and gradient", "softmax backward", "log_softmax backward"):
        value, *bound, size, lost = found[name]
        found[name] = Exact(
            *(np.where(live & ~empty, a, 0) for a in (value / t, *bound, size / abs(t), lost / abs(t)))
        )
    return {
        name: e._replace(value=np.where(_broken(name, broken, live, unused), np.nan, e.value))
        for name, e in found.items()
    }


def _of_others(v, first):
    """For each class, the sum over the other classes of its row; without a difference at the first class."""
    return np.where(first, np.where(first, 0, v).sum(1, keepdims=True), v.sum(1, keepdims=True) - v)


def _broken(name, broken, live, unused):
    """Where a row with a NaN or +inf has NaN: a masked class has a gradient of 0 there too."""
    if name in ("top", "label"):
        return False
    if name == "loss and gradient":
        return broken & live & ~unused
    return broken if name in ("rest", "softmax", "log_softmax") else broken & live


@_ignoring_floats
def check(kernel, given, found):
    """Asserts that the results are within the bounds, NaN where they have to be, and nowhere else."""
    want = exact(given)
    broken = np.isnan(want["rest"].value)
    for name, ours in found.items():
        value, ulps, size, lost = want[name]
        wide = name in ("top", "rest", "label")
        assert ours.dtype == (np.float32 if wide else given.x.dtype)
        assert ours.shape == value.shape
        ours, dtype = ours.astype(np.float64), ours.dtype
        if name == "top":  # in a row with a NaN it may be NaN or the largest number
            ours = np.where(broken, value, ours)
        seen = np.isnan(value)
        assert (np.isnan(ours) == seen).all(), (kernel, name, _where(given, np.isnan(ours) != seen))
        value = value.astype(np.float32).astype(np.float64)  # −inf below the finite numbers
        of_float32 = ulps * np.spacing(np.maximum(np.maximum(abs(value), size), TINY).astype(np.float32))
        bound = of_float32.astype(np.float64) + lost + TINY
        if dtype.itemsize == 2:
            value = value.astype(np.float32).astype(dtype)
            bits = ml_dtypes.finfo(dtype).nmant
            ulp = np.exp2(np.floor(np.log2(np.maximum(abs(value.astype(np.float64)), TINY))) - bits)
            value, bound = value.astype(np.float64), bound + ulp
        if name in ("top", "label"):
            bound = np.zeros_like(value)
        bad = ~seen & (ours != value) & ~(abs(ours - value) <= bound)
        assert not bad.any(), (
            kernel,
            name,
            _where(given, bad),
            ours[bad][:3],
            value[bad][:3],
            bound[bad][:3],
        )


def _where(given, bad):
    """The regimes and the classes of the entries that are wrong."""
    return [(given.names[i], int(np.flatnonzero(bad[i])[0])) for i in np.flatnonzero(bad.any(1))]
