#!/usr/bin/env bash
# jax 0.10.2 and 0.12.0.1 on CPU: a float32 array divided by a number above 2^126 is 0.
#
# 1e38 / 1e38 is 1 in NumPy, and in JAX where both sides have the same shape. Where the divisor is a scalar, or is
# broadcast along the rows, XLA multiplies by its reciprocal. 1 / 1e38 is below the smallest normal number, which
# XLA:CPU takes for 0, and so is every quotient. Seen outside jit, under jit, with the divisor as an argument and as
# a constant; 8e37, whose reciprocal is a normal number, divides as it should.
#
# Prints, for jax 0.10.2 or for the version given as an argument:
#   same shape [1. 2. 3.] scalar [0. 0. 0.] column [0. 0. 0.] below [1.25 2.5 3.75]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/divide.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

divide = jax.jit(lambda x, by: x / by)
x = jnp.array([1e38, 2e38, 3e38], jnp.float32)
large, below = np.float32(1e38), np.float32(8e37)
found = {
    "same shape": divide(x, jnp.full(3, large)),
    "scalar": divide(x, large),
    "column": divide(x[None], jnp.full((1, 1), large))[0],
    "below": divide(x, below),
}
print(*(f"{name} [{' '.join(f'{v:.3g}' if v % 1 else f'{v:.0f}.' for v in out.tolist())}]" for name, out in found.items()))
assert np.allclose(found["same shape"], np.asarray(x) / large), "NumPy's quotients"
assert not np.any(found["scalar"]) and not np.any(found["column"]), "changed: the quotients are no longer 0"
assert not np.any(x / large), "changed: outside jit the quotients are no longer 0"
assert np.allclose(found["below"], np.asarray(x) / below)
PYTHON

version=${1:-0.10.2}
python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
echo "jax $version"
JAX_PLATFORMS=cpu "$folder/environment/bin/python" "$folder/divide.py"
