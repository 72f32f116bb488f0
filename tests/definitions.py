"""The textbook definitions, without derivative rules and without optimisations.

The tests differentiate them with `jax.grad`, on JAX arrays in float64. On object arrays of mpmath numbers
they are exact, to 400 bits.
"""

from types import SimpleNamespace

import gmpy2
import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp, mpf

mp.prec = 400
gmpy2.get_context().precision = 400
# The same for MPFR's numbers and functions, which take a tenth of the time for many numbers.
FINE = np.frompyfunc(lambda a: gmpy2.mpfr(float(a)), 1, 1)
EXP, LOG, LOG1P, SQRT = (np.frompyfunc(f, 1, 1) for f in (gmpy2.exp, gmpy2.log, gmpy2.log1p, gmpy2.sqrt))

EXACT = SimpleNamespace(
    exp=np.frompyfunc(mp.exp, 1, 1),
    log=np.frompyfunc(mp.log, 1, 1),
    tanh=np.frompyfunc(mp.tanh, 1, 1),
    expm1=np.frompyfunc(mp.expm1, 1, 1),
    softplus=np.frompyfunc(lambda z: mp.log(1 + mp.exp(z)), 1, 1),
    zero=mpf(0),
    infinity=mp.inf,
    expand_dims=np.expand_dims,
    where=np.where,
    top=lambda x, axis: mpf(0),  # no shift: nothing overflows
)
FLOAT = SimpleNamespace(
    exp=jnp.exp,
    log=jnp.log,
    tanh=jnp.tanh,
    expm1=jnp.expm1,
    softplus=lambda z: jnp.logaddexp(z, 0),
    zero=0,
    infinity=jnp.inf,
    expand_dims=jnp.expand_dims,
    where=jnp.where,
    top=lambda x, axis: jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True)),
)


def exactly(values):
    """The numbers as mpmath's, exactly."""
    return np.asarray(np.frompyfunc(lambda v: mpf(float(v)), 1, 1)(np.asarray(values)), object)


def error(ours, exact):
    """``ours − exact``, and `exact`, as float64."""
    high = exact.astype(np.float64)
    low = (exact - high).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (np.asarray(ours, np.float64) - high) - low, high


def _namespace(x):
    return EXACT if x.dtype == object else FLOAT


def _scaled(x, where, temperature, soft_cap=None):
    xp = _namespace(x)
    z = x if soft_cap is None else soft_cap * xp.tanh(x / soft_cap)
    z = z if temperature is None else z / temperature
    return z if where is None else xp.where(where, z, -mp.inf if x.dtype == object else -jnp.inf)


def softmax(x, axis=-1, where=None, temperature=None, sink=None):
    xp = _namespace(x)
    if sink is not None:
        return xp.exp(log_softmax(x, axis, where, temperature, sink=sink))
    z = _scaled(x, where, temperature)
    e = xp.exp(z - xp.top(z, axis))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x, axis=-1, where=None, temperature=None, soft_cap=None, sink=None):
    z = _scaled(x, where, temperature, soft_cap)
    if sink is None:
        return z - logsumexp(z, axis, keepdims=True)
    join = np.concatenate if x.dtype == object else jnp.concatenate
    return z - logsumexp(join([z, _scaled(sink, None, temperature)], axis), axis, keepdims=True)


def logsumexp(a, axis=None, b=None, keepdims=False, where=None, temperature=None, soft_cap=None):
    xp = _namespace(a)
    a = _scaled(a, where, temperature, soft_cap)
    top = xp.top(a, axis)
    terms = xp.exp(a - top) if b is None else b * xp.exp(a - top)
    out = top + xp.log(abs(terms.sum(axis, keepdims=True)))
    return out if keepdims else out.squeeze(axis)


def entropy(x, axis=-1, where=None, temperature=None, soft_cap=None):
    log_p = log_softmax(x, axis, where, temperature, soft_cap)
    p = _namespace(x).exp(log_p)
    return -(p * _where_live(where, log_p)).sum(axis)


def cross_entropy(
    x,
    t,
    axis=-1,
    where=None,
    temperature=None,
    soft_cap=None,
    weights=None,
    label_smoothing=None,
    z_loss=None,
):
    along = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    if t.dtype != object and np.issubdtype(t.dtype, np.integer):
        t = _one_hot(x, t, axis)
    w = 1 if weights is None else weights.reshape(along)
    log_p = _where_live(where, log_softmax(x, axis, where, temperature, soft_cap))
    live = x.shape[axis] if where is None else where.sum(axis).astype(x.dtype)
    loss = -(t * w * log_p).sum(axis)
    if label_smoothing is not None:
        loss = (1 - label_smoothing) * loss - label_smoothing / live * (w * log_p).sum(axis)
    if z_loss is not None:
        loss = loss + z_loss * logsumexp(x, axis, None, False, where, temperature, soft_cap) ** 2
    return loss


def _one_hot(x, ids, axis):
    along, rows = (
        [n if (i == axis % x.ndim) == kept else 1 for i, n in enumerate(x.shape)] for kept in (True, False)
    )
    hit = np.arange(x.shape[axis], dtype=ids.dtype).reshape(along) == ids.reshape(rows)
    return _namespace(x).where(hit, 1.0, 0.0)


def _where_live(where, values):
    if where is None:
        return values
    return _namespace(values).where(where, values, mpf(0) if values.dtype == object else 0)


def kl_divergence(x, y, axis=-1, where=None, temperature=None):
    log_p, log_q = (_where_live(where, log_softmax(z, axis, where, temperature)) for z in (x, y))
    return (_namespace(x).exp(log_p) * (log_p - log_q)).sum(axis)


def js_divergence(x, y, axis=-1, where=None, temperature=None, beta=None):
    xp = _namespace(x)
    log_p, log_q = (_where_live(where, log_softmax(z, axis, where, temperature)) for z in (x, y))
    beta = mpf(1) / 2 if beta is None and x.dtype == object else 0.5 if beta is None else beta
    of_rows = beta if not np.ndim(beta) else (np if x.dtype == object else jnp).expand_dims(beta, axis)
    log_m = xp.log(of_rows * xp.exp(log_p) + (1 - of_rows) * xp.exp(log_q))
    of_p, of_q = ((xp.exp(z) * (z - log_m)).sum(axis) for z in (log_p, log_q))
    return beta * of_p + (1 - beta) * of_q


def sparse_kl_divergence(x, t, few, axis=-1):
    """Over the first `few` classes, whose targets are t, and one event of all others; without others t/Σt."""
    xp = _namespace(x)
    move = np.moveaxis if x.dtype == object else jnp.moveaxis
    log_q, t = move(log_softmax(x, axis), axis, -1), move(t, axis, -1)
    if t.shape[-1] <= few:
        t = t / t.sum(-1, keepdims=True)
        return (t * (xp.log(t) - log_q)).sum(-1)
    rest, of_q = 1 - t[..., :few].sum(-1), xp.exp(log_q[..., few:]).sum(-1)
    t, log_q = t[..., :few], log_q[..., :few]
    return (t * (xp.log(t) - log_q)).sum(-1) + rest * xp.log(rest / of_q)


def _pairs(a, b, temperature, axis):
    """The logits of a batch of pairs (a[i], b[i]) of arrays of features, with the pairs on two more axes."""
    stack = np.stack if temperature.dtype == object else jnp.stack
    return stack([stack([(u * v).sum(axis) for v in b], -1) for u in a], -2) / temperature[..., None, None]


def contrastive_loss(a, b, temperature, axis=-1):
    """Of a batch of pairs, in both directions."""
    z = _pairs(a, b, temperature, axis)
    of_pairs = [log_softmax(z, along)[..., i, i] for along in (-1, -2) for i in range(len(a))]
    return -sum(of_pairs) / len(of_pairs)


def sigmoid_contrastive_loss(a, b, temperature, bias, axis=-1):
    """Of a batch of pairs: each on its own, as positive or not."""
    z = _pairs(a, b, temperature, axis) + bias[..., None, None]
    either, places = [log_sigmoid(z), log_sigmoid(-z)], range(len(a))
    return -sum(either[i != j][..., i, j] for i in places for j in places) / len(a)


def log_odds(x, y, axis=-1, where=None, temperature=None):
    """z − logsumexp of the other live classes; 0 if there are none."""
    xp, z = _namespace(x), _scaled(x, where, temperature)
    classes = np.arange(x.shape[axis], dtype=y.dtype).reshape(
        [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    )
    hit = classes == xp.expand_dims(y, axis)
    others = xp.where(hit, -xp.infinity, z)
    alone = (others == -xp.infinity).all(axis)
    others = xp.where(xp.expand_dims(alone, axis), xp.zero, others)
    return xp.where(alone, xp.zero, xp.where(hit, z, xp.zero).sum(axis) - logsumexp(others, axis))


def focal_loss(x, y, gamma, axis=-1, **options):
    """The absolute value of 1 − p: a sum of one class rounds."""
    nll = cross_entropy(x, y, axis, **options)
    return abs(_namespace(x).expm1(-nll)) ** gamma * nll


def poly_loss(x, y, epsilon, axis=-1, **options):
    nll = cross_entropy(x, y, axis, **options)
    return nll - epsilon * _namespace(x).expm1(-nll)


def log_sigmoid(z):
    return -_namespace(z).softplus(-z)


def binary_cross_entropy(z, t, pos_weight=1, weights=1, label_smoothing=None):
    t = t if z.dtype == object else t.astype(z.dtype)
    softplus, other = _namespace(z).softplus, 1 - t
    if label_smoothing is not None:
        t, other = ((1 - label_smoothing) * share + label_smoothing / 2 for share in (t, other))
    return weights * (pos_weight * t * softplus(-z) + other * softplus(z))


def entmax(x, alpha, axis=-1, where=None, temperature=None):
    """By 60 bisections for the threshold, and Newton's steps, which autodiff differentiates up to order 7."""
    xp = _namespace(x)
    alpha, axis = alpha if np.ndim(alpha) == 0 else _of_rows(alpha, axis), axis % x.ndim
    beta = alpha - 1
    z = _scaled(x, where, temperature)
    z = z - z.max(axis, keepdims=True) if x.dtype == object else z - xp.top(z, axis)
    live = _true(z > -mp.inf if x.dtype == object else z > -jnp.inf)
    u = beta * xp.where(live, z, 0)

    def powers(h, u, beta):
        inside = _true(live & _true(h + u > 0))
        base = xp.where(inside, h + u, 1)
        return tuple(xp.where(inside, base**e, 0) for e in (1 / beta, 1 / beta - 1))

    def halved(_, state):
        low, high, *fixed = state
        at = (low + high) / 2
        few = _true(powers(at, *fixed)[0].sum(axis, keepdims=True) < 1)
        return xp.where(few, at, low), xp.where(few, high, at), *fixed

    zero = 0 * u.sum(axis, keepdims=True)
    state = (zero, zero + 1, u, beta)
    if x.dtype == object:
        for i in range(60):
            state = halved(i, state)
    else:
        state = jax.lax.fori_loop(0, 60, halved, jax.lax.stop_gradient(state))
    h = state[1]
    for _ in range(4 if x.dtype == object else 3):
        p, slopes = powers(h, u, beta)
        h = h - beta * (p.sum(axis, keepdims=True) - 1) / slopes.sum(axis, keepdims=True)
    return powers(h, u, beta)[0]


def entmax_loss(x, t, alpha, axis=-1, where=None, temperature=None):
    """The Fenchel-Young loss of t/n, times n, for targets that sum to n."""
    xp, axis = _namespace(x), axis % x.ndim
    if t.dtype != object and np.issubdtype(t.dtype, np.integer):
        t = _one_hot(x, t, axis)
    n = t.sum(axis, keepdims=True)
    a, p = t / xp.where(_true(n == 0), 1, n), entmax(x, alpha, axis, where, temperature)
    alpha = alpha if np.ndim(alpha) == 0 else _of_rows(alpha, axis)
    z = _where_live(where, _scaled(x, where, temperature))
    z = z - z.max(axis, keepdims=True) if x.dtype == object else z - xp.top(z, axis)

    def powers(a):
        inside = _true(a > 0)
        return xp.where(inside, xp.where(inside, a, 1) ** alpha, 0)

    terms = (p - a) * z + (powers(a) - powers(p)) / (alpha * (alpha - 1))
    return (n * terms).sum(axis)


def _true(condition):
    return condition.astype(bool)


def _of_rows(numbers, axis):
    return (np if numbers.dtype == object else jnp).expand_dims(numbers, axis)
