#!/usr/bin/env bash
# jax 0.10.2 to 0.11.0 on CPU: a sum over an axis takes five to twelve times as long if its entries lie more than
# 2^14 elements apart.
#
# The sum over the first axis of [256, 16384] float32 reads 16 MiB in 1 to 2 ms on two cores. Over that of [255, 16385],
# as large, it takes 10 to 20 ms; of 100 x 41943 entries, 40 ms. A softmax, a log-softmax or a
# mean over the channels of images in the layout [N, C, H, W] meets this from 129 x 129 pixels. In slices of at most
# 2^14 columns the sum is fast again. From jax 0.11.2 on, no such limit is seen.
#
# Prints, for jax 0.10.2 or for the version given as an argument, the times of both sums and their ratio; it fails if
# the ratio is not above 3, or, from jax 0.11.2 on, not below 3.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/sums.py" <<'PYTHON'
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

shapes = (256, 16384), (255, 16385)
arrays = [jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32) for shape in shapes]
total = jax.jit(lambda x: jnp.sum(x, 0))
times = {shape: [] for shape in shapes}
for repetition in range(41):
    for x in arrays:
        begin = time.perf_counter()
        total(x).block_until_ready()
        if repetition:
            times[x.shape].append(time.perf_counter() - begin)
near, far = (1000 * statistics.median(of_shape) for of_shape in times.values())
print(f"sum over the first axis of {shapes[0]}: {near:.2f} ms, of {shapes[1]}: {far:.2f} ms, ratio {far / near:.1f}")
is_slow = jax.__version_info__ < (0, 11, 2)
assert (far > 3 * near) == is_slow, "changed: the ratio"
PYTHON

version=${1:-0.10.2}
python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
echo "jax $version"
JAX_PLATFORMS=cpu "$folder/environment/bin/python" "$folder/sums.py"
