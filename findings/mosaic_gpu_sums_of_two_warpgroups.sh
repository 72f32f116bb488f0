#!/usr/bin/env bash
# jax 0.11.2 and 0.12.0.1, Pallas' Mosaic GPU: two warpgroups that each reduce an array to a scalar overwrite each
# other's numbers, and nothing reports it.
#
# A kernel has two threads (warpgroups); each sums its own 128 numbers with jnp.sum. Such a sum passes through shared
# memory: one number per warp. The address depends on the index of the warp in its warpgroup only, and the two
# barriers around it count 128 threads. So both warpgroups write and read the same 16 bytes at the same time. With
# LoweringSemantics.Lane, the same kernel raises NotImplementedError for this reason; LoweringSemantics.Warpgroup, the
# default, does not check. A sum along an axis that lies within a warp needs no shared memory, and is right.
#
# Nothing runs: the program is compiled for an H200, and its PTX is read. Downloads the CUDA compilers, 1.1 GB.
# Prints, for jax 0.12.0.1 or for the version given as an argument:
#   threads of a block 256, stores [%rd11] of 16 shared bytes, barriers 128 128
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
description=$(dirname "$(readlink -f "$0")")/../tests/data/h200.txtpb
cat > "$folder/compile.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def body(x, out):
    own = jax.lax.axis_index("warpgroup")
    out[own] = jnp.sum(plgpu.load(x.at[own], layout=plgpu.Layout.WG_STRIDED((128,), 1)))


sums = plgpu.kernel(
    body, out_type=jax.ShapeDtypeStruct((2,), jnp.float32), num_threads=2, thread_name="warpgroup"
)
options = {"platform": "cuda", "topology": "1x1x1", "target_config": open(sys.argv[1]).read()}
mesh = Mesh(topologies.get_topology_desc(**options).devices[:1], ("x",))
x = jax.ShapeDtypeStruct((2, 128), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
jax.jit(sums).lower(x).compile()
PYTHON
cat > "$folder/read.py" <<'PYTHON'
import re
import sys

ptx = sys.stdin.read()
(threads,) = re.findall(r"\.maxntid (\d+)", ptx)
(index,) = re.findall(r"(?:and\.b32|bfe\.u32) \s*(%r\d+), %r\d+, (?:3|5, 2);", ptx)  # of the warp in its warpgroup
(offset,) = re.findall(rf"mul\.wide\.u32 \s*(%rd\d+), {index}, 4;", ptx)
(address,) = re.findall(rf"add\.s64 \s*(%rd\d+), %rd\d+, {offset};", ptx)
stores = re.findall(r"st\.shared\.b32 \s*\[(.*?)\]", ptx)
assert stores == [address], "changed: the address depends on more than the warp's index"
assert re.search(r"ld\.shared\.v4\.b32 \s*\{.*?\}, \[__dynamic_shmem__0\]", ptx), "changed"
barriers = re.findall(r"bar\.sync %r\d+, (\d+)", ptx)
print(f"threads of a block {threads}, stores [{stores[0]}] of 16 shared bytes, barriers", *barriers)
PYTHON

version=${1:-0.12.0.1}
python3.12 -m venv "$folder/environment"
pip=("$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" "jax==$version" "jaxlib==$version"
"${pip[@]}" --no-deps "jax-cuda13-plugin==$version" "jax-cuda13-pjrt==$version"
"${pip[@]}" --no-deps "nvidia-cuda-nvcc>=13" "nvidia-nvvm>=13" "nvidia-cuda-crt>=13" "nvidia-cuda-runtime>=13"
echo "jax $version"
JAX_PLATFORMS=cpu MOSAIC_GPU_DUMP_PTX=1 "$folder/environment/bin/python" "$folder/compile.py" "$description" |
    "$folder/environment/bin/python" "$folder/read.py"
