#!/usr/bin/env bash
# jax 0.10.2 and 0.11.0 on CPU: a loop that writes parts of a bfloat16 array converts the whole array in every step.
#
# XLA:CPU has no bfloat16 instruction for `lax.dynamic_update_slice`, and wraps it into conversions to float32 and back.
# In a loop these are of all rows, although a step writes a few of them: the time grows with the square of the number of
# steps. For 4096 x 1000 numbers in 512 steps it is tens of times that of float32, and two more arrays are stored. If
# the loop reads and writes the bits, as uint16, it is as fast as for float32. float16 has its own instructions. Since
# jax 0.11.2 bfloat16 is fast, too.
#
# Prints, for jax 0.10.2 or for the version given as an argument, the time of each loop over that of float32:
#   bfloat16 (about 50 to 100, from 0.11.2 on about 1 to 2), bits of bfloat16 (about 1 to 3)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/loop.py" <<'PYTHON'
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ROWS, STEP = 4096, 8


def doubled(x, *, bits):
    def stored(a):
        return lax.bitcast_convert_type(a, jnp.uint16) if bits else a

    def number(a):
        return lax.bitcast_convert_type(a, x.dtype) if bits else a

    def step(i, out):
        block = number(lax.dynamic_slice_in_dim(stored(x), i * STEP, STEP))
        return lax.dynamic_update_slice_in_dim(out, stored(2 * block), i * STEP, 0)

    return number(lax.fori_loop(0, ROWS // STEP, step, stored(jnp.zeros_like(x))))


def seconds(dtype, bits):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, 1000)), dtype)
    program = jax.jit(lambda x: doubled(x, bits=bits))
    np.testing.assert_array_equal(program(x), 2 * x)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        program(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


usual = seconds(jnp.float32, False)
direct, of_bits = seconds(jnp.bfloat16, False) / usual, seconds(jnp.bfloat16, True) / usual
print(f"bfloat16 {direct:.1f}, bits of bfloat16 {of_bits:.1f}")
is_slow = jax.__version_info__ < (0, 11, 2)
assert (direct > 15) == is_slow, "changed: the loop over a bfloat16 array is fast or slow now"
assert of_bits < 10
PYTHON

version=${1:-0.10.2}
python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
echo "jax $version"
JAX_PLATFORMS=cpu "$folder/environment/bin/python" "$folder/loop.py"
