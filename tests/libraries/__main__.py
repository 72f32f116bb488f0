"""Tests whether forward mode works in other libraries as .docs/pages/libraries.md says.

    python -m tests.libraries [--environment DIR] [NAME==VERSION ...]

It creates a virtual environment with pinned versions. There it runs the examples of the page, which print
what their comments say, and which JAX refuses where `jsoftmax.forward_mode` does nothing; and the calls of
claims.py, the table of the page. The status is 1 if anything is not as the page says.
"""

import sys

from tests.libraries import REFUSALS
from tests.pinned import environment, examples, problem, run

VERSIONS = {
    "jax": "0.10.2",
    "optimistix": "0.1.0",
    "lineax": "0.1.1",
    "numpyro": "0.22.0",
    "jaxopt": "0.8.5",
    "flax": "0.12.8",
    "equinox": "0.13.8",
    "numpy": "2.4.6",
    "optax": "0.2.8",
}
# In front of an example: the mode does nothing.
WITHOUT = """
import contextlib, jsoftmax

class NoMode(contextlib.ContextDecorator, contextlib.nullcontext):
    pass

jsoftmax.forward_mode = NoMode
"""


def main():
    wrong, other = 0, "jax==0.12.0.1 flax==0.12.12"
    with environment("tests.libraries", __doc__, VERSIONS, other) as (python, _):
        for heading, code in examples("libraries.md").items():
            said, without = problem(python, code), run(python, "-c", WITHOUT + code, capture_output=True)
            refused = any(refusal in without.stderr for refusal in REFUSALS)
            wrong += said is not None or not refused
            told = "refused" if refused else "NOT REFUSED"
            print(f"{heading}: {said or 'as it says'}; {told} without the mode", flush=True)
        wrong += run(python, "-m", "tests.libraries.claims").returncode
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
