#!/usr/bin/env bash
# jax 0.10.2 to 0.11.2: the gradient of a vmapped jax.custom_vjp is wrong if it has two outputs, and only one depends on
# the mapped argument. jax 0.12.0.1 raises a ValueError instead.
#
# f(x, y) = (x * x, x * y) has correct rules. vmap maps y = 1, 2, 3 and shares x = 2, so vmap gives the first output to
# every element. The sum of all outputs is 3 * x**2 + 6 * x, with the derivative 18. jax.grad through the rules returns
# 42: it counts the cotangent of the first output, 3, for each of three elements. If f is plain JAX, it returns 18. If
# both outputs depend on y, as in select_n(y == y, x * x, x * x), the rules give 18 too, in every version.
#
# Prints the three derivatives, for three versions. It fails if one changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/derivative.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax import lax


def plain(x, y):
    return x * x, x * y


def dependent(x, y):
    return lax.select_n(y == y, x * x, x * x), x * y


def with_rules(function):
    f = jax.custom_vjp(function)
    f.defvjp(
        lambda x, y: (function(x, y), (x, y)),
        lambda saved, g: (2 * saved[0] * g[0] + saved[1] * g[1], saved[0] * g[1]),
    )
    return f


def derivative(f):
    def total(x):
        first, second = jax.vmap(f, (None, 0))(x, jnp.arange(1.0, 4.0))
        return jnp.sum(first) + jnp.sum(second)

    try:
        return float(jax.grad(total)(jnp.float32(2)))
    except ValueError:
        return "ValueError"


found = [derivative(f) for f in (plain, with_rules(plain), with_rules(dependent))]
print(f"jax {jax.__version__}: plain {found[0]}, with rules {found[1]}, both outputs mapped {found[2]}")
assert found == [18.0, 42.0 if sys.argv[1] == "wrong" else "ValueError", 18.0], "changed"
PYTHON

for pair in 0.10.2:wrong 0.11.2:wrong 0.12.0.1:refused; do
    version=${pair%:*}
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
    JAX_PLATFORMS=cpu "$folder/$version/bin/python" "$folder/derivative.py" "${pair#*:}"
done
