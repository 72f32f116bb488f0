#!/usr/bin/env bash
# Since jax 0.11.2, XLA on CPU stores the transpose of an array twice if a loop reads it.
#
# A lax.fori_loop adds up slices of rows of x.T. XLA stores x.T before the loop. jax 0.11.0 needs the memory of one such
# array and of a slice. jax 0.11.2 and 0.12.0.1 need two: one is a copy of x with the other layout, the second is the
# transpose of that copy. Outside a loop, x.T takes no temporary memory in any of these versions.
#
# Prints the temporary memory of both programs, in units of the array, for both versions. It fails if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/transpose.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax import lax

FEATURES, CLASSES, STEP = 64, 4096, 1024
x = jax.ShapeDtypeStruct((FEATURES, CLASSES), jnp.float32)


def sums(x):
    table = x.T

    def step(i, total):
        return total + lax.dynamic_slice_in_dim(table, i * STEP, STEP).sum(0)

    return lax.fori_loop(0, CLASSES // STEP, step, jnp.zeros(FEATURES))


def temporaries(function):
    program = jax.jit(function).lower(x).compile()
    return program.memory_analysis().temp_size_in_bytes / (4 * FEATURES * CLASSES)


found = temporaries(sums), temporaries(jnp.transpose)
print(f"jax {jax.__version__}: {found[0]:.2f} arrays for a loop over x.T, {found[1]:.2f} for x.T")
assert abs(found[0] - float(sys.argv[1])) < 0.1, "changed: in a loop"
assert found[1] < 0.01, "changed: outside a loop"
PYTHON

for pair in 0.11.0:1.25 0.11.2:2 0.12.0.1:2; do
    version=${pair%:*}
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
    JAX_PLATFORMS=cpu "$folder/$version/bin/python" "$folder/transpose.py" "${pair#*:}"
done
