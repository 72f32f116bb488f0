#!/usr/bin/env bash
# jax 0.10.2 and 0.12.0.1 on CPU: two sums over the first axis, the second of the result of the first, take 1.5 to 3
# times as long in one program as with a select between them that changes nothing.
#
# p * g - p * sum(p * g, 0), corrected by a second sum of the result, is the gradient of a softmax. XLA hands all of it to
# its library as one fusion, which takes 6 to 15 ms for two arrays of 2048 x 2048 float32 on two cores. A select of the
# sums, where(sum < inf, sum, nan), is an operation that the library does not have: XLA then runs each sum as a fusion
# of its own, in 4 to 6 ms together. Over the last axis the one fusion is the faster form.
#
# Prints, for jax 0.10.2 or for the version given as an argument, the times with one sum, with two, and with two and the
# select; it fails if the select saves less than a fifth of the time.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/sums.py" <<'PYTHON'
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

rng = np.random.default_rng(0)
p = jnp.asarray(rng.uniform(size=(2048, 2048)) / 2048, jnp.float32)
g = jnp.asarray(rng.normal(size=(2048, 2048)), jnp.float32)


def once(p, g):
    g = p * g
    return g - p * jnp.sum(g, 0)


def twice(p, g):
    g = p * g
    for _ in range(2):
        g = g - p * jnp.sum(g, 0)
    return g


def selected(p, g):
    g = p * g
    for _ in range(2):
        total = jnp.sum(g, 0)
        g = g - p * jnp.where(total < jnp.inf, total, jnp.nan)
    return g


functions = {f.__name__: jax.jit(f) for f in (once, twice, selected)}
np.testing.assert_allclose(functions["twice"](p, g), functions["selected"](p, g), rtol=1e-4, atol=1e-4)
times = {name: [] for name in functions}
for _ in range(41):
    for name, function in functions.items():
        begin = time.perf_counter()
        function(p, g).block_until_ready()
        times[name].append(time.perf_counter() - begin)
found = {name: 1000 * statistics.median(of_function) for name, of_function in times.items()}
print(", ".join(f"{name} {milliseconds:.1f} ms" for name, milliseconds in found.items()))
assert found["selected"] < 0.8 * found["twice"], "changed: the select saves less"
PYTHON

version=${1:-0.10.2}
python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
echo "jax $version"
JAX_PLATFORMS=cpu "$folder/environment/bin/python" "$folder/sums.py"
