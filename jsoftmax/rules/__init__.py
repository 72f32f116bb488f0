"""The closed forms of all derivatives of the softmax family, each written once.

These are plain functions of values, for people, notebooks, kernels, and the rules that `jsoftmax` attaches to
its own functions. `p` is a probability distribution along `axis` (an int or a tuple of ints): it sums to 1.
If the classes are sharded within `jax.shard_map`, `axis` also names the mesh axes of the shards, as in
``(-1, "classes")``. For rows that are no axes, such as segments, the forms of the softmax take a function as
`axis`: of some arrays, it returns the sums over the rows, in a shape that broadcasts against the arrays. Sums
are computed in at least float32; results have the promoted dtype of the arguments.

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
from jsoftmax.rules._elementary import expm1, log1mexp, log1p, sigmoid, softplus

# `x as x` marks a name that the package uses but that is not public.
from jsoftmax.rules._entmax import Alpha as Alpha
from jsoftmax.rules._entmax import entmax_alpha_terms, entmax_loss_terms, entmax_product, entmax_slopes
from jsoftmax.rules._entmax import entmax_centered as entmax_centered
from jsoftmax.rules._entmax import entmax_label_term as entmax_label_term
from jsoftmax.rules._entmax import entmax_loss_outside as entmax_loss_outside
from jsoftmax.rules._entmax import entmax_target_slopes as entmax_target_slopes
from jsoftmax.rules._entmax import entropy_alpha_terms as entropy_alpha_terms
from jsoftmax.rules._entmax import log_of_label as log_of_label
from jsoftmax.rules._entmax import log_power as log_power
from jsoftmax.rules._focal import focal, focal_slope
from jsoftmax.rules._labels import binary_residual, label_residual, positives_residual
from jsoftmax.rules._labels import residual_at_label as residual_at_label
from jsoftmax.rules._labels import smoothed as smoothed
from jsoftmax.rules._rows import SCALE as SCALE
from jsoftmax.rules._rows import Rows as Rows
from jsoftmax.rules._rows import across as across
from jsoftmax.rules._rows import below_infinity as below_infinity
from jsoftmax.rules._rows import compensated as compensated
from jsoftmax.rules._rows import computing_dtype as computing_dtype
from jsoftmax.rules._rows import nan_where as nan_where
from jsoftmax.rules._rows import per_row as per_row
from jsoftmax.rules._rows import rounded as rounded
from jsoftmax.rules._rows import row_sums as row_sums
from jsoftmax.rules._rows import scaled as scaled
from jsoftmax.rules._rows import split_axes as split_axes
from jsoftmax.rules._scaling import divided as divided
from jsoftmax.rules._scaling import signed as signed
from jsoftmax.rules._scaling import soft_cap_jvp, soft_cap_vjp, temperature_jvp, temperature_vjp
from jsoftmax.rules._softmax import (
    RowSums,
    Sink,
    cross_entropy_hvp,
    cross_entropy_residual,
    entropy_residual,
    log_softmax_jvp,
    log_softmax_vjp,
    sink_vjp,
    softmax_jacobian,
    softmax_product,
    weighted_residual,
)
from jsoftmax.rules._softmax import leading as leading

__all__ = [
    "RowSums",
    "Sink",
    "binary_entropy",
    "binary_residual",
    "cross_entropy_hvp",
    "cross_entropy_residual",
    "difference",
    "divergence_terms",
    "entmax_alpha_terms",
    "entmax_loss_terms",
    "entmax_product",
    "entmax_slopes",
    "entropy_residual",
    "expm1",
    "focal",
    "focal_slope",
    "kl_gradient_in_p",
    "kl_gradient_in_q",
    "kl_terms_of_others",
    "label_residual",
    "log1mexp",
    "log1p",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "log_to_mean",
    "log_to_mixture",
    "positives_residual",
    "sigmoid",
    "sink_vjp",
    "soft_cap_jvp",
    "soft_cap_vjp",
    "softmax_jacobian",
    "softmax_product",
    "softplus",
    "temperature_jvp",
    "temperature_vjp",
    "weighted_residual",
]
