"""The closed forms of all derivatives of the softmax family, each written once.

These are plain functions of values, for people, notebooks, kernels, and the rules that `jsoftmax` attaches to
its own functions. `p` is a probability distribution along `axis` (an int or a tuple of ints): it sums to 1.
If the classes are sharded within `jax.shard_map`, `axis` also names the mesh axes of the shards, as in
``(-1, "classes")``. Sums are computed in at least float32; results have the promoted dtype of the arguments.

`1 − p` loses all digits if p is near 1. A formula with such a difference is a projection: its result sums to
0 over a row (or has the mean 0). Applied a second time, it replaces the lost digits by the sum over the other
classes, which is small and accurate.
"""

from jsoftmax.rules._divergences import (
    binary_entropy,
    difference,
    divergence_terms,
    kl_gradient_in_p,
    kl_gradient_in_q,
    kl_terms_of_others,
    log_to_mean,
    log_to_mixture,
)
from jsoftmax.rules._elementary import expm1, log1p

# `x as x` marks a name that the package uses but that is not public.
from jsoftmax.rules._rows import SCALE as SCALE
from jsoftmax.rules._rows import across as across
from jsoftmax.rules._rows import below_infinity as below_infinity
from jsoftmax.rules._rows import compensated as compensated
from jsoftmax.rules._rows import computing_dtype as computing_dtype
from jsoftmax.rules._rows import nan_where as nan_where
from jsoftmax.rules._rows import rounded as rounded
from jsoftmax.rules._rows import row_sums as row_sums
from jsoftmax.rules._rows import scaled as scaled
from jsoftmax.rules._rows import split_axes as split_axes
from jsoftmax.rules._scaling import soft_cap_jvp, soft_cap_vjp, temperature_jvp, temperature_vjp
from jsoftmax.rules._softmax import (
    RowSums,
    cross_entropy_hvp,
    cross_entropy_residual,
    entropy_residual,
    label_residual,
    log_softmax_jvp,
    log_softmax_vjp,
    positives_residual,
    softmax_jacobian,
    softmax_product,
    weighted_residual,
)
from jsoftmax.rules._softmax import leading as leading

__all__ = [
    "RowSums",
    "binary_entropy",
    "cross_entropy_hvp",
    "cross_entropy_residual",
    "difference",
    "divergence_terms",
    "entropy_residual",
    "expm1",
    "kl_gradient_in_p",
    "kl_gradient_in_q",
    "kl_terms_of_others",
    "label_residual",
    "log1p",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "log_to_mean",
    "log_to_mixture",
    "positives_residual",
    "soft_cap_jvp",
    "soft_cap_vjp",
    "softmax_jacobian",
    "softmax_product",
    "temperature_jvp",
    "temperature_vjp",
    "weighted_residual",
]
