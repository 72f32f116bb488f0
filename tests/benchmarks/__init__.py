"""Speed, memory and error beside the peers: ``python -m tests.benchmarks --quick``."""
