#!/usr/bin/env bash
# jax 0.10.2 and 0.12.0.1 on CPU: a select among the terms of a row sum makes XLA store an array as large as the input.
#
# XLA:CPU gives sums of additions, products, exponentials, floors, minima and maxima over the last axis to a library,
# which reads the input once and stores nothing. A select (jnp.where) is not among them: XLA then computes all terms in
# an array of their own and sums that. So the usual guard of an entropy against 0 * inf, jnp.where(u == -inf, 0,
# exp(u) * u), costs 1 array of the size of the logits, and exp(u) * max(u, lowest float), which has the same value at
# every u <= 0, costs none. Two such sums of one array of exponentials, if more than additions and products follow,
# store two arrays: each sum should compute its terms from x by an expression of its own.
#
# Prints, for jax 0.10.2 or for the version given as an argument, how many arrays of 4096 x 1000 float32 are stored:
#   select 1, maximum 0, two sums of the same terms 2, two sums of terms of their own 0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/sums.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

LOWEST = jnp.finfo(jnp.float32).min


def by_select(x):
    u = x - jnp.max(x, -1, keepdims=True)
    return jnp.sum(jnp.where(u == -jnp.inf, 0, jnp.exp(u) * u), -1)


def by_maximum(x):
    u = x - jnp.max(x, -1, keepdims=True)
    return jnp.sum(jnp.exp(u) * jnp.maximum(u, LOWEST), -1)


def entropy(total, weighted):
    return jnp.where(total > 1, jnp.log(total) - weighted / total, 0)


def of_same_terms(x):
    u = x - jnp.max(x, -1, keepdims=True)
    return entropy(jnp.sum(jnp.exp(u), -1), jnp.sum(jnp.exp(u) * jnp.maximum(u, LOWEST), -1))


def of_own_terms(x):
    top = jnp.max(x, -1, keepdims=True)
    half = x * 0.5 - top * 0.5  # the same number as u/2
    weighted = jnp.sum(jnp.square(jnp.exp(half)) * jnp.maximum(2 * half, LOWEST), -1)
    return entropy(jnp.sum(jnp.exp(x - top), -1), weighted)


x = np.random.default_rng(0).normal(size=(4096, 1000)).astype(np.float32)
x[:, 7] = -np.inf
functions = {
    "select": by_select,
    "maximum": by_maximum,
    "two sums of the same terms": of_same_terms,
    "two sums of terms of their own": of_own_terms,
}
programs = {name: jax.jit(f).lower(x).compile() for name, f in functions.items()}
stored = {name: round(p.memory_analysis().temp_size_in_bytes / x.nbytes) for name, p in programs.items()}
print(", ".join(f"{name} {count}" for name, count in stored.items()))
values = [np.asarray(p(x)) for p in programs.values()]
np.testing.assert_allclose(values[0], values[1], rtol=1e-5)
np.testing.assert_allclose(values[2], values[3], rtol=1e-5)
assert list(stored.values()) == [1, 0, 2, 0], "changed: other arrays are stored"
PYTHON

version=${1:-0.10.2}
python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
echo "jax $version"
JAX_PLATFORMS=cpu "$folder/environment/bin/python" "$folder/sums.py"
