#!/usr/bin/env bash
# jax 0.12.0.1 and 0.11.2: two warpgroups of a Mosaic GPU kernel reduce through the same shared memory, a data race.
#
# jnp.max or jnp.sum of a vector in a `plgpu.kernel` gives every warp's result to the other warps of its warpgroup through
# shared memory: each warp stores at 4 times its index in the warpgroup, the warpgroup meets at its own barrier, and all
# threads load the four numbers. With num_threads=2, both warpgroups use the same 16 bytes, and nothing orders them: where
# they reduce at the same time, one can take the number of the other. With LoweringSemantics.Lane, the same sum is refused
# ("No support for reduce_sum over all axes and multiple Pallas threads"). The interpreter, also with detect_races=True,
# finds nothing. Reductions along an axis that lies within each warp need no shared memory, as those along the columns of
# the layout of wgmma; a kernel with several warpgroups should have no other.
#
# Compiles such a kernel for an H200 (no GPU is needed; the compilers take about 1 GB) and prints what the reduction does
# with shared memory. The address of the store depends on the index of the warp in its warpgroup, (tid >> 5) & 3, only; that
# of the load is fixed.
set -euo pipefail

description=$(cd "$(dirname "$0")/.." && pwd)/tests/data/h200.txtpb
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/reduce.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def body(x, out):
    own = jax.lax.axis_index("warpgroup")
    out[own] = jnp.max(x[own])


result = jax.ShapeDtypeStruct((2,), jnp.float32)
kernel = plgpu.kernel(body, out_type=result, num_threads=2, thread_name="warpgroup")
gpu = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=open(sys.argv[1]).read())
sharding = NamedSharding(Mesh(np.array([gpu.devices[0]]), ("x",)), PartitionSpec())
jax.jit(kernel).lower(jax.ShapeDtypeStruct((2, 256), jnp.float32, sharding=sharding)).compile()
PYTHON

version=${1:-0.12.0.1}
"${PYTHON:-python3.12}" -m venv "$folder/environment"
pip=("$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" "jax==$version" "jaxlib==$version" "nvidia-cuda-nvcc>=13" "nvidia-nvvm>=13"
"${pip[@]}" --no-deps "jax-cuda13-plugin==$version" "jax-cuda13-pjrt==$version"
echo "jax $version"
JAX_PLATFORMS=cpu MOSAIC_GPU_DUMP_PTX=1 "$folder/environment/bin/python" "$folder/reduce.py" "$description" \
    > "$folder/ptx" 2>&1
grep -E -B 5 'st\.shared\.b32' "$folder/ptx"
grep -E 'ld\.shared' "$folder/ptx"
grep -q -E 'ld\.shared\.v4\.b32.*\[__dynamic_shmem__0(\+[0-9]+)?\]' "$folder/ptx" || { echo "changed"; exit 1; }
