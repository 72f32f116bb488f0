#!/usr/bin/env bash
# XLA on CPU runs a lax.fori_loop over blocks of a large array on one core, if the body has only elementwise operations
# and slices. Since jax 0.12.0 a conditional in the body does not help any more.
#
# The loop applies tanh eight times to each of 16 blocks of 256 x 1000 numbers. On two cores it takes 2 times as long as
# the same operations on the whole array. jax 0.11.2 fuses the operations with the write of the block, and runs that
# fusion on one core; within a lax.cond, whose predicate is always True, they are not fused and run on all cores. jax
# 0.12.0.1 compiles either loop as one call with the attribute xla_cpu_small_call, although it reads and writes 16 MB,
# and runs it on one core. A sum of exponentials or a matrix product in the body prevents that.
#
# Prints, for both versions, whether each program has such a call, and its time. It fails if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/loop.py" <<'PYTHON'
import os
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from jax import lax

ROWS, STEP = 4096, 256
x = jnp.linspace(-1, 1, ROWS * 1000).reshape(ROWS, 1000)


def whole(x):
    for _ in range(8):
        x = jnp.tanh(x)
    return x


def in_loop(of_block, x):
    def step(i, out):
        block = of_block(i, lax.dynamic_slice_in_dim(x, i * STEP, STEP))
        return lax.dynamic_update_slice_in_dim(out, block, i * STEP, 0)

    return lax.fori_loop(0, ROWS // STEP, step, jnp.zeros_like(x))


def loop(x):
    return in_loop(lambda i, block: whole(block), x)


def conditional(x):
    return in_loop(lambda i, block: lax.cond(i >= 0, whole, jnp.zeros_like, block), x)


programs = {f.__name__: jax.jit(f).lower(x).compile() for f in (whole, loop, conditional)}
times = {name: [] for name in programs}
for _ in range(21):
    for name, program in programs.items():
        begin = time.perf_counter()
        program(x).block_until_ready()
        times[name].append(time.perf_counter() - begin)
print(f"jax {jax.__version__}")
slow, calls = {}, {}
for name, of_program in times.items():
    calls[name] = "xla_cpu_small_call" in programs[name].as_text()
    time_over_whole = statistics.median(of_program) / statistics.median(times["whole"])
    slow[name] = time_over_whole > 1.5
    print(f"  {name}: one call {calls[name]}, {time_over_whole:.2f} of the time of whole")
new = sys.argv[1] == "new"
assert calls == {"whole": False, "loop": new, "conditional": new}, "changed: the calls"
if len(os.sched_getaffinity(0)) > 1:
    assert slow == {"whole": False, "loop": True, "conditional": new}, "changed: the times"
PYTHON

for pair in 0.11.2:old 0.12.0.1:new; do
    version=${pair%:*}
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
    JAX_PLATFORMS=cpu "$folder/$version/bin/python" "$folder/loop.py" "${pair#*:}"
done
