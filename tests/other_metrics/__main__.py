"""Compares the metrics with torchmetrics, netcal and scikit-learn, as .docs/pages/evaluation.md says.

    python -m tests.other_metrics [--environment DIR] [NAME==VERSION ...]

It creates a virtual environment with pinned versions. There it computes the metrics with every library, from
the same logits: equal where the definitions are (agreement.py), and as the table of the page says where they
are not (differences.py). The status is 1 if anything is not as the page says.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.pinned import install, run

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
    parser = argparse.ArgumentParser(
        prog="python -m tests.other_metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    other = "instead of the pinned version, such as scikit-learn==1.9.0"
    parser.add_argument("pins", nargs="*", metavar="NAME==VERSION", help=other)
    kept = "make the virtual environment there, or use the one there is"
    parser.add_argument("--environment", type=Path, metavar="DIR", help=kept)
    options = parser.parse_args()
    versions = VERSIONS | dict(pin.split("==") for pin in options.pins)
    with tempfile.TemporaryDirectory() as folder:
        environment = (options.environment or Path(folder) / "environment").absolute()
        python = install(environment, versions)
        print(", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
        programs = ("tests.other_metrics.agreement", "tests.other_metrics.differences")
        wrong = [run(python, "-m", program).returncode for program in programs]
    sys.exit(any(wrong))


if __name__ == "__main__":
    main()
