#!/usr/bin/env bash
# jax 0.10.2, 0.11.0 and 0.11.2 on CPU, but not 0.12.0.1: under jax.jit, (x + c) - c with a constant c is x.
#
# Adding and subtracting a large constant rounds a float to a multiple of a power of 2: with c = 98304 = 1.5 * 2^16, a
# float32 near 0 to a multiple of 2^-7. NumPy does it, and JAX outside jit, and under jit if c is an argument. With c as
# a constant in the program, XLA's algebraic simplifier adds up both constants to 0 and leaves a copy of x. So a splitting
# of a number into two words, or a rounding, works while it is tried outside jit, and does nothing within. Neither
# --xla_allow_excess_precision=false nor --xla_cpu_enable_fast_math=false changes it; jax.lax.optimization_barrier around
# the sum does.
#
# Prints, for jax 0.10.2 or for the version given as an argument:
#   x 0.692647, NumPy 0.6953125, outside jit 0.6953125, argument 0.6953125, barrier 0.6953125, constant 0.692647
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/round.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

c = 98304.0


def rounded(x, c=c):
    return (x + c) - c


def with_barrier(x):
    return jax.lax.optimization_barrier(x + c) - c


x = np.float32(0.692647)
want = rounded(x, np.float32(c))
found = {
    "outside jit": rounded(jnp.asarray(x)),
    "argument": jax.jit(rounded)(x, c),
    "barrier": jax.jit(with_barrier)(x),
    "constant": jax.jit(rounded)(x),
}
print(", ".join(f"{name} {float(value):.7g}" for name, value in {"x": x, "NumPy": want, **found}.items()))
constant = found.pop("constant")
assert all(value == want for value in found.values()), "NumPy's result"
assert constant == x, "changed: the constants are no longer folded"
PYTHON

version=${1:-0.10.2}
python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
echo "jax $version"
JAX_PLATFORMS=cpu "$folder/environment/bin/python" "$folder/round.py"
