#!/usr/bin/env bash
# jax 0.11.2 and 0.12.0.1 on CPU: a program may use the numbers 0, 1, … of another program, which are too few.
#
# XLA runs a sum or a maximum over rows, and the operations on the entries before it, as one kernel of a library. If
# these include an iota, such as jnp.arange(entries), and the process holds an equal program for shorter rows, the
# kernel uses the iota of that program. The result is then wrong, without an error message. In a fresh process the same
# program is right, and so it is with jax 0.10.2. A constant that starts at 0 is affected too, as XLA makes it an
# iota; one that starts at 1 is not.
#
# Prints, for the maxima of x + positions over rows of 7 and then of 10 entries, how many are wrong. It fails if this
# changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/maxima.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

ROWS = 1000


def maximum(first):
    """The program for rows of any length."""
    return jax.jit(lambda x: jnp.max(x + np.arange(first, first + x.shape[1], dtype=np.float32)[None, :], 1))


def wrong_rows(program, entries, first):
    x = np.random.default_rng(0).normal(size=(ROWS, entries)).astype(np.float32)
    return int(np.sum(~np.isclose(program(x), np.max(x + np.arange(first, first + entries), 1), rtol=1e-4)))


(first,) = map(int, sys.argv[1:])
program = maximum(first)
after_another = [wrong_rows(program, entries, first) for entries in (7, 10)]
print(f"jax {jax.__version__}, positions from {first}: of {ROWS} maxima, wrong of 7 and then of 10:", *after_another)
is_affected = first == 0 and jax.__version_info__ >= (0, 11, 2)
assert after_another[0] == 0
assert (after_another[1] > 0) == is_affected, "changed"
PYTHON

for version in 0.10.2 0.11.2 0.12.0.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
    for first in 0 1; do
        JAX_PLATFORMS=cpu "$folder/$version/bin/python" "$folder/maxima.py" "$first"
    done
done
