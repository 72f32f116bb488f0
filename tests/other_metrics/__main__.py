"""Compares the metrics with torchmetrics, netcal and scikit-learn, as .docs/pages/evaluation.md says.

    python -m tests.other_metrics [--environment DIR] [NAME==VERSION ...]

It creates a virtual environment with pinned versions. There it computes the metrics with every library, from
the same logits: equal where the definitions are (agreement.py), and as the table of the page says where they
are not (differences.py). The status is 1 if anything is not as the page says.
"""

import sys

from tests.pinned import environment, run

VERSIONS = {
    "jax": "0.10.2",
    "torchmetrics": "1.9.0",
    "netcal": "1.4.0",
    "scikit-learn": "1.9.1",
    "torch": "2.13.0",
    "numpy": "2.4.6",
    "scipy": "1.17.1",
}


def main():
    other = "scikit-learn==1.9.0"
    with environment("tests.other_metrics", __doc__, VERSIONS, other) as (python, versions):
        print(", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
        programs = ("tests.other_metrics.agreement", "tests.other_metrics.differences")
        wrong = [run(python, "-m", program).returncode for program in programs]
    sys.exit(any(wrong))


if __name__ == "__main__":
    main()
