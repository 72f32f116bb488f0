"""The tests of other projects: their sources, their requirements, and the differences of this package."""

import re
from typing import NamedTuple

JAX = "0.10.2"

# The packages of every environment besides JAX and this package. The tests are those of these versions.
VERSIONS = {
    "absl-py": "2.5.1",
    "chex": "0.1.92",
    "distrax": "0.1.9",
    "dm-env": "1.6",
    "dm-haiku": "0.0.17",
    "flax": "0.12.8",
    "jaxopt": "0.8.5",
    "mock": "5.2.0",
    "numpy": "2.4.6",
    "optax": "0.2.8",
    "pytest": "9.2.0",
    "rlax": "0.1.9",
    "scikit-learn": "1.9.1",
    "scipy": "1.17.1",
    "tfp-nightly": "0.26.0.dev20261027",
}


class Suite(NamedTuple):
    """Some of the tests of a project.

    The files are in the installed package ("wheel"), in its source distribution ("sdist"), or, for projects
    that publish no tests, in a clone of the repository, at the tag of the version ("clone").
    """

    project: str
    place: str
    files: tuple[str, ...]
    select: str = ""  # as pytest's -k
    tag: str = ""  # with {} for the version
    repository: str = ""


SUITES = {
    "jax-nn": Suite(
        "jax",
        "clone",
        ("tests/nn_test.py",),
        "Softmax or LogMeanExp",
        "jax-v{}",
        "https://github.com/jax-ml/jax",
    ),
    "jax-scipy": Suite(
        "jax",
        "clone",
        ("tests/lax_scipy_test.py",),
        "LogSumExp",
        "jax-v{}",
        "https://github.com/jax-ml/jax",
    ),
    "jaxopt": Suite(
        "jaxopt",
        "clone",
        ("tests/loss_test.py",),
        "",
        "jaxopt-v{}",
        "https://github.com/google/jaxopt",
    ),
    "optax": Suite("optax", "wheel", ("optax/losses/_classification_test.py",)),
    "flax": Suite(
        "flax",
        "sdist",
        (
            "tests/linen/linen_attention_test.py",
            "tests/nnx/nn/attention_test.py",
            "tests/core/design/core_attention_test.py",
        ),
    ),
    "distrax": Suite(
        "distrax",
        "wheel",
        (
            "distrax/_src/distributions/categorical_test.py",
            "distrax/_src/distributions/categorical_uniform_test.py",
            "distrax/_src/distributions/softmax_test.py",
            "distrax/_src/utils/math_test.py",
        ),
    ),
    "rlax": Suite(
        "rlax",
        "wheel",
        tuple(
            f"rlax/_src/{name}_test.py"
            for name in ("distributions", "mpo_ops", "policy_gradients", "policy_targets", "value_learning")
        ),
    ),
}


class Difference(NamedTuple):
    """Tests that pass with their functions and not with ours, and the reason why this is intended."""

    suite: str
    test: str  # a regular expression, like the next
    error: str
    reason: str
    modes: tuple[str, ...] = ("ours", "ours, forward mode")

    def explains(self, suite, mode, test, error):
        same_place = suite == self.suite and mode in self.modes
        return same_place and re.search(self.test, test) and re.search(self.error, error)


# Each has its line in the table "Remaining differences" of .docs/pages/migrating.md.
EXPECTED = (
    Difference(
        "jax-nn",
        r"testSoftmaxGrad$",
        "forward-mode",
        "forward mode is asked for: it passes within jsoftmax.forward_mode()",
        ("ours",),
    ),
    Difference(
        "jax-nn",
        r"testSoftmaxGradFlag$",
        "",
        "jax.softmax_custom_jvp chooses between two rules of JAX: here there is one, which keeps one array",
    ),
    Difference("jax-scipy", r"testLogSumExp", "is complex", "complex numbers are a TypeError"),
    Difference("flax", r"test_dtype_infer$", "is complex", "complex numbers are a TypeError"),
)
