#!/usr/bin/env bash
# jax 0.10.2 to 0.12.0.1: the derivative of a vmapped jax.custom_jvp within jax.jit is wrong, without an error, if the
# output does not depend on the mapped argument, but the rule's tangent does.
#
# f(x, y) = x * x, and its rule passes the tangent of x only where y > 0, as a straight-through estimator with a mask
# does. vmap maps y = 1, 2, 3 and shares x = 2, so the derivative of the sum of the outputs in x is 3 * 2 * x = 12.
# Without jit, JAX returns 12. With a jit around f it returns 36: it sums the tangents of the elements, and gives the sum
# to each element. If the output depends on y too, as in select_n(y == y, x * x, x * x), it returns 12.
#
# Prints the derivatives, for three versions. It fails if one changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/derivative.py" <<'PYTHON'
import jax
import jax.numpy as jnp
from jax import lax


def with_rule(function):
    f = jax.custom_jvp(function)

    @f.defjvp
    def rule(primals, tangents):
        (x, y), (dx, _) = primals, tangents
        return f(x, y), jnp.where(y > 0, 2 * x * dx, 0)

    return f


def derivatives(f):
    def total(x):
        return jnp.sum(jax.vmap(f, (None, 0))(x, jnp.arange(1.0, 4.0)))

    x = jnp.float32(2)
    return float(jax.jvp(total, (x,), (jnp.float32(1),))[1]), float(jax.grad(total)(x))


square = with_rule(lambda x, y: x * x)
mapped = with_rule(lambda x, y: lax.select_n(y == y, x * x, x * x))
found = {
    "without jit": derivatives(square),
    "with jit": derivatives(jax.jit(square)),
    "with jit, output mapped": derivatives(jax.jit(mapped)),
}
print(f"jax {jax.__version__}, by jvp and by grad:", *(f"{name} {pair};" for name, pair in found.items()))
assert list(found.values()) == [(12.0, 12.0), (36.0, 36.0), (12.0, 12.0)], "changed"
PYTHON

for version in 0.10.2 0.11.2 0.12.0.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
    JAX_PLATFORMS=cpu "$folder/$version/bin/python" "$folder/derivative.py"
done
