"""Speed, memory and error compared with the peers: ``python -m tests.benchmarks --quick``."""
