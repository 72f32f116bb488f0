#!/usr/bin/env bash
# jax 0.10.2 and 0.12.0.1: jax.random.categorical adds bfloat16 noise to bfloat16 logits, and draws with wrong
# probabilities.
#
# One of 32000 classes has probability 0.085, the others share the rest. From float32 logits, it is drawn with this
# probability; from the same logits in bfloat16, which represents them exactly, nearly always. The noise has the dtype
# of the logits: the largest of a million Gumbel numbers in bfloat16 is 4.84 instead of about 13.8.
# jsoftmax.sampling.categorical uses float32 noise for logits of any dtype.
#
# Prints, for jax 0.10.2 or for the version given as an argument:
#   expected 0.085, float32 0.079, bfloat16 0.991, largest noise of bfloat16 4.84
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/draw.py" <<'PYTHON'
import jax
import jax.numpy as jnp

key, draws = jax.random.key(0), 1000
logits = jnp.zeros(32000, jnp.float32).at[0].set(8.0)
expected = float(jax.nn.softmax(logits)[0])


def often(logits):
    ids = jax.lax.map(lambda key: jax.random.categorical(key, logits), jax.random.split(key, draws))
    return float(jnp.mean(ids == 0))


wide, narrow = often(logits), often(logits.astype(jnp.bfloat16))
largest = float(jnp.max(jax.random.gumbel(key, (2**20,), jnp.bfloat16)))
print(f"expected {expected:.3f}, float32 {wide:.3f}, bfloat16 {narrow:.3f}, largest noise of bfloat16 {largest:.2f}")
assert abs(wide - expected) < 0.04
assert narrow > 0.9, "changed: bfloat16 logits are drawn from with their own probabilities"
PYTHON

version=${1:-0.10.2}
python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
echo "jax $version"
JAX_PLATFORMS=cpu "$folder/environment/bin/python" "$folder/draw.py"
