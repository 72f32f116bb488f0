"""The textbook definitions, each written once for any array namespace `xp`.

`check` evaluates them with NumPy, in float64 and (for gradients by a complex step) complex128;
`train` differentiates them with jax.grad. This module contains no derivative rule, on purpose.
All functions reduce the last axis; `where` is True for the entries that count.
"""

from types import ModuleType
from typing import Any


def _about_top(xp: ModuleType, x: Any, where: Any) -> tuple[Any, Any, Any]:
    """Return x_top, x - x_top and the sum of exp(x_j - x_top) over all j except the top.

    The top, the largest entry, contributes exactly exp(0) = 1. Without that 1, the sum of a confident
    row keeps its digits, and with log1p so does its logarithm, also far below 1e-16.
    """
    top = xp.argmax(xp.where(where, xp.real(x), -xp.inf), axis=-1, keepdims=True)
    x_top = xp.take_along_axis(x, top, axis=-1)
    below = xp.where(where, x - x_top, 0)
    others = (xp.arange(x.shape[-1]) != top) & where
    rest = xp.sum(xp.where(others, xp.exp(below), 0), axis=-1, keepdims=True)
    return x_top, below, rest


def softmax(xp: ModuleType, x: Any, where: Any = True) -> Any:
    """exp(x_i) / sum_j exp(x_j); 0 where masked."""
    _, below, rest = _about_top(xp, x, where)
    return xp.where(where, xp.exp(below) / (1 + rest), 0)


def log_softmax(xp: ModuleType, x: Any, where: Any = True) -> Any:
    """x_i - log sum_j exp(x_j); -inf where masked."""
    _, below, rest = _about_top(xp, x, where)
    return xp.where(where, below - xp.log1p(rest), -xp.inf)


def logsumexp(xp: ModuleType, x: Any, where: Any = True) -> Any:
    """log sum_j exp(x_j)."""
    x_top, _, rest = _about_top(xp, x, where)
    return (x_top + xp.log1p(rest))[..., 0]


def cross_entropy(xp: ModuleType, x: Any, targets: Any, where: Any = True) -> Any:
    """-sum_i t_i log p_i, for target probabilities t."""
    log_p = xp.where(where, log_softmax(xp, x, where), 0)
    return -xp.sum(targets * log_p, axis=-1)


def cross_entropy_with_integer_labels(xp: ModuleType, x: Any, labels: Any, where: Any = True) -> Any:
    """-log p_label."""
    log_p = log_softmax(xp, x, where)
    return -xp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


def entropy(xp: ModuleType, x: Any, where: Any = True) -> Any:
    """-sum_i p_i log p_i."""
    log_p = xp.where(where, log_softmax(xp, x, where), 0)
    return -xp.sum(softmax(xp, x, where) * log_p, axis=-1)


def kl_divergence(xp: ModuleType, x: Any, y: Any, where: Any = True) -> Any:
    """sum_i p_i (log p_i - log q_i)."""
    log_p, log_q = (xp.where(where, log_softmax(xp, z, where), 0) for z in (x, y))
    return xp.sum(softmax(xp, x, where) * (log_p - log_q), axis=-1)


def js_divergence(xp: ModuleType, x: Any, y: Any, where: Any = True) -> Any:
    """The mean of the divergences of p and q from m = (p + q) / 2."""
    p, q = softmax(xp, x, where), softmax(xp, y, where)
    log_m = xp.log(xp.where(where, (p + q) / 2, 1))
    log_p, log_q = (xp.where(where, log_softmax(xp, z, where), 0) for z in (x, y))
    return xp.sum(p * (log_p - log_m) + q * (log_q - log_m), axis=-1) / 2


def log_odds(xp: ModuleType, x: Any, labels: Any, where: Any = True) -> Any:
    """log(p / (1 - p)) of the label: x_label - logsumexp of the other entries."""
    others = where & (xp.arange(x.shape[-1]) != labels[..., None])
    return xp.take_along_axis(x, labels[..., None], axis=-1)[..., 0] - logsumexp(xp, x, others)


def focal_loss(xp: ModuleType, x: Any, labels: Any, gamma: float, where: Any = True) -> Any:
    """(1 - p)^gamma (-log p) of the label."""
    nll = cross_entropy_with_integer_labels(xp, x, labels, where)
    return (-xp.expm1(-nll)) ** gamma * nll


def poly_loss(xp: ModuleType, x: Any, labels: Any, epsilon: float, where: Any = True) -> Any:
    """-log p + epsilon (1 - p) of the label."""
    nll = cross_entropy_with_integer_labels(xp, x, labels, where)
    return nll - epsilon * xp.expm1(-nll)


def softplus(xp: ModuleType, x: Any) -> Any:
    """log(1 + exp(x))."""
    is_positive = xp.real(x) > 0
    return xp.where(is_positive, x, 0) + xp.log1p(xp.exp(xp.where(is_positive, -x, x)))


def binary_cross_entropy(xp: ModuleType, x: Any, targets: Any) -> Any:
    """-t log sigmoid(x) - (1 - t) log sigmoid(-x)."""
    return targets * softplus(xp, -x) + (1 - targets) * softplus(xp, x)


def entmax(xp: ModuleType, x: Any, alpha: float, where: Any = True) -> Any:
    """(b (x_i - tau))^(1/b) where positive, else 0; b = alpha - 1 up to 1, and with tau the sum is 1."""
    return _power(xp, _entmax_base(xp, x, alpha, where), 1 / (alpha - 1))


def _entmax_base(xp: ModuleType, x: Any, alpha: float, where: Any) -> Any:
    """b (x_i - tau)."""
    power = 1 / (alpha - 1)
    x = xp.where(where, x, xp.min(xp.real(x)) - 2 * power)  # too low for the support
    u = (x - xp.max(xp.real(x), axis=-1, keepdims=True)) / power
    h = 1  # Newton's method from above: the sum is convex and increasing in h
    for step in range(16):
        base = h + (u if step > 13 else xp.real(u))  # the last steps differentiate too
        total, slope = (xp.sum(_power(xp, base, k), axis=-1, keepdims=True) for k in (power, power - 1))
        h = h - (total - 1) / (power * slope)
    return h + u


def _power(xp: ModuleType, base: Any, exponent: float) -> Any:
    """The power of a positive base, else 0."""
    inside = xp.real(base) > 0
    return xp.where(inside, xp.where(inside, base, 1) ** exponent, 0)


def sparsemax_loss(xp: ModuleType, x: Any, labels: Any, where: Any = True) -> Any:
    """((1 - p)^2 + sum_j p_j^2) / 2 + [tau - x_label]_+, j all other entries; 1 - p is the sum of p_j."""
    base, others = _of_label(xp, x, labels, 2, where)
    outside = xp.where(xp.real(base) < 0, -base, 0)
    rest = xp.sum(others, axis=-1)
    return (rest**2 + xp.sum(others**2, axis=-1)) / 2 + outside


def entmax15_loss(xp: ModuleType, x: Any, labels: Any, where: Any = True) -> Any:
    """The integral of (1 - t) / sqrt(t) from p to 1, + sum_j p_j^1.5 / 1.5 + [2 tau - x_label]_+.

    With s = sqrt(p) and 1 - s = (1 - p) / (1 + s), the integral is (1 - s)^2 (4 + 2 s) / 3.
    """
    base, others = _of_label(xp, x, labels, 1.5, where)
    outside, root = xp.where(xp.real(base) < 0, -2 * base, 0), _power(xp, base, 1)
    rest = xp.sum(others, axis=-1) / (1 + root)
    return rest**2 * (4 + 2 * root) / 3 + xp.sum(_power(xp, others, 1.5), axis=-1) / 1.5 + outside


def _of_label(xp: ModuleType, x: Any, labels: Any, alpha: float, where: Any) -> tuple[Any, Any]:
    """b (x - tau) of the label, and p of the other entries."""
    base, is_label = _entmax_base(xp, x, alpha, where), xp.arange(x.shape[-1]) == labels[..., None]
    others = xp.where(is_label, 0, _power(xp, base, 1 / (alpha - 1)))
    return xp.take_along_axis(base, labels[..., None], axis=-1)[..., 0], others


def top_log_probs(xp: ModuleType, x: Any, k: int, where: Any = True) -> Any:
    """The k largest log p_i, in order."""
    log_p = log_softmax(xp, x, where)
    return xp.take_along_axis(log_p, top_ids(xp, x, k, where), axis=-1)


def top_ids(xp: ModuleType, x: Any, k: int, where: Any = True) -> Any:
    """The positions of the k largest entries, in order; of equal ones the first comes first."""
    return xp.argsort(xp.where(where, -xp.real(x), xp.inf), axis=-1, stable=True)[..., :k]
