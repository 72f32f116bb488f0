#!/usr/bin/env bash
# jax 0.10.2 and 0.12.0.1 on CPU: XLA computes and stores the last product of a gradient once for each of its uses.
#
# The gradient of the logits of a head with a bias, exp(x) * scale of shape [batch, length, classes], has three uses:
# two matrix products, for which XLA merges batch and length, and a sum over both. A product is cheap, so XLA fuses it
# with the merging, the transposition and the sum, and stores its result in three arrays beside the exponentials: 4
# arrays of the size of the logits. The form of the product does not matter: a select before it, or a division by a
# number per row, which XLA rewrites as a product, are computed three times too. If the last operation adds a further
# term to the product, such as the gradient at the label by a select, XLA stores it once, and the transposed copy
# reuses the memory of the exponentials: 2 arrays. With one axis of rows there is nothing to merge, and XLA writes the
# product over the exponentials: 1 array.
#
# Prints, for jax 0.10.2 or for the version given as an argument, how many arrays of 2 x 64 x 2048 float32 are stored:
#   product 4, quotient 4, selected product 4, product and term 2, product of one axis of rows 1
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/head.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

BATCH, LENGTH, FEATURES, CLASSES = 2, 64, 16, 2048
rng = np.random.default_rng(0)
x = rng.normal(size=(BATCH, LENGTH, CLASSES)).astype(np.float32)
scale = rng.uniform(1, 2, size=(BATCH, LENGTH, 1)).astype(np.float32)
is_label = np.arange(CLASSES) == rng.integers(CLASSES, size=(BATCH, LENGTH, 1))
hidden = rng.normal(size=(BATCH, LENGTH, FEATURES)).astype(np.float32)
weight = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)


def used(gradient, hidden, weight):
    rows = tuple(range(gradient.ndim - 1))
    of_weight = jnp.tensordot(gradient, hidden, (rows, rows))
    return gradient @ weight.T, of_weight, jnp.sum(gradient, rows)


def product(x, scale, is_label, hidden, weight):
    return used(jnp.exp(x) * scale, hidden, weight)


def quotient(x, scale, is_label, hidden, weight):
    return used(jnp.exp(x) / scale, hidden, weight)


def selected(x, scale, is_label, hidden, weight):
    return used(jnp.where(is_label, scale, jnp.exp(x)) * scale, hidden, weight)


def with_term(x, scale, is_label, hidden, weight):
    return used(jnp.exp(x) * scale + jnp.where(is_label, scale, 0), hidden, weight)


arguments = x, scale, is_label, hidden, weight
merged = *(a.reshape(-1, a.shape[-1]) for a in arguments[:4]), weight
cases = {
    "product": (product, arguments),
    "quotient": (quotient, arguments),
    "selected product": (selected, arguments),
    "product and term": (with_term, arguments),
    "product of one axis of rows": (product, merged),
}
stored = {}
for name, (function, given) in cases.items():
    program = jax.jit(function).lower(*given).compile()
    stored[name] = round(program.memory_analysis().temp_size_in_bytes / x.nbytes)
    assert program.as_text().count(" exponential(") == 1
print(", ".join(f"{name} {count}" for name, count in stored.items()))
assert list(stored.values()) == [4, 4, 4, 2, 1], "changed: other arrays are stored"
PYTHON

version=${1:-0.10.2}
python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
echo "jax $version"
JAX_PLATFORMS=cpu "$folder/environment/bin/python" "$folder/head.py"
