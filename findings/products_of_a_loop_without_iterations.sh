#!/usr/bin/env bash
# jax 0.10.2 and 0.12.0.1 on CPU: a lax.fori_loop without iterations computes the matrix products of its body.
#
# A loop with 0 or 1 iterations is a branch that need not copy what it adds to. If the operands of a product in its body
# do not change in the loop, XLA computes the product before the loop, without knowing whether the loop has iterations.
# So the loop takes the same time with 0 iterations as with 1. An optimization_barrier over an operand and the index of
# the iteration prevents that: then 0 iterations take no time.
#
# Prints the time of loops over a product of two 1024 x 1024 matrices with 0 and with 1 iterations, plain and with the
# barrier. It fails if this changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/loop.py" <<'PYTHON'
import statistics
import time

import jax
import jax.numpy as jnp
from jax import lax

SIZE = 1024
a = jnp.linspace(-1, 1, SIZE * SIZE).reshape(SIZE, SIZE)
b = a + 1


def added(operand):
    @jax.jit
    def program(iterations, a, b):
        return lax.fori_loop(0, iterations, lambda i, total: total + operand(i, a) @ b, jnp.zeros_like(a))

    return program


def milliseconds(program, iterations):
    times = []
    for _ in range(21):
        begin = time.perf_counter()
        program(iterations, a, b).block_until_ready()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


print(f"jax {jax.__version__}")
operands = {"plain": lambda i, a: a, "with a barrier": lambda i, a: lax.optimization_barrier((a, i))[0]}
costs = {}
for name, operand in operands.items():
    program = added(operand)
    assert not program(0, a, b).any()
    none, one = (milliseconds(program, iterations) for iterations in (0, 1))
    costs[name] = none > one / 2
    print(f"  {name}: {none:.2f} ms without iterations, {one:.2f} ms with one")
assert costs == {"plain": True, "with a barrier": False}, "changed"
PYTHON

for version in 0.10.2 0.12.0.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
    JAX_PLATFORMS=cpu "$folder/$version/bin/python" "$folder/loop.py"
done
