#!/usr/bin/env bash
# jax 0.10.2, 0.11.2 and 0.12.0.1: a Pallas kernel for a TPU with jnp.sign cannot be lowered where there is no TPU.
#
# jax.export with platforms=["tpu"], and ahead-of-time compilation for a TPU topology, run on any machine: kernels with
# other operations, such as the select that does the same, are lowered on CPU. The lowering rule of lax.sign alone asks for
# the generation of the TPU of this process, to compute in bfloat16 where it can, and raises "Unsupported TPU device
# kind: cpu", also for float32. jax.sharding.use_abstract_mesh with the kind of a TPU avoids it; so does the select.
#
# Prints, for jax 0.10.2 or for the version given as an argument:
#   select: exported
#   sign: ValueError: Unsupported TPU device kind: cpu
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/export.py" <<'PYTHON'
import jax
import jax.numpy as jnp
from jax import export
from jax.experimental import pallas as pl


def select(x):
    return jnp.where(x > 0, 1.0, jnp.where(x < 0, -1.0, x))


def exported(function):
    def kernel(x_ref, out_ref):
        out_ref[...] = function(x_ref[...])

    def call(x):
        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    try:
        export.export(jax.jit(call), platforms=["tpu"])(jax.ShapeDtypeStruct((8, 128), jnp.float32))
    except ValueError as error:
        return f"ValueError: {str(error).split('.')[0]}"
    return "exported"


found = {"select": exported(select), "sign": exported(jnp.sign)}
for name, result in found.items():
    print(f"{name}: {result}")
assert found["select"] == "exported"
assert "Unsupported TPU device kind" in found["sign"], "changed: the sign is lowered"
PYTHON

version=${1:-0.10.2}
python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
echo "jax $version"
JAX_PLATFORMS=cpu "$folder/environment/bin/python" "$folder/export.py"
