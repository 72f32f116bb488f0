"""Metrics over batches, shards and processes of any size, from a small state that can be merged.

`empty` creates a state and says what to measure, `update` adds a batch of logits and labels, `merge` combines
two states, `merge_across` the states of all shards, and `compute` returns the metrics. A state holds sums
over the rows, each in two words: a mean over 10⁸ rows keeps its float32 digits, and the count of rows is
exact up to 2⁴⁸, in any order. A state is a tree of small arrays: it works with `jit`, `scan` and `vmap`, and
can be sent between processes and saved in files.

>>> import jax, jax.numpy as jnp, numpy as np
>>> from jsoftmax import evaluation
>>> rng = np.random.default_rng(0)
>>> batches = ((rng.normal(size=(100, 4)), rng.integers(0, 4, 100)) for _ in range(20))  # as from a file
>>> state = evaluation.empty(num_classes=4)
>>> for logits, labels in batches:
...     state = evaluation.update(state, logits.astype(np.float32), labels)
>>> metrics = evaluation.compute(state)
>>> print(f"{metrics.nll:.2f} {metrics.accuracy:.2f} {metrics.weight:.0f}")
1.73 0.24 2000
"""

from jsoftmax.evaluation._compute import compute
from jsoftmax.evaluation._files import load, save
from jsoftmax.evaluation._intervals import confidence_intervals
from jsoftmax.evaluation._merging import merge, merge_across
from jsoftmax.evaluation._metrics import GroupMetrics, Metrics, Reliability, RiskCoverage
from jsoftmax.evaluation._state import State, empty
from jsoftmax.evaluation._statistics import update_from_statistics
from jsoftmax.evaluation._temperature import fit_temperature
from jsoftmax.evaluation._temperature_in_batches import fit_temperature_in_batches
from jsoftmax.evaluation._update import update

__all__ = [
    "GroupMetrics",
    "Metrics",
    "Reliability",
    "RiskCoverage",
    "State",
    "compute",
    "confidence_intervals",
    "empty",
    "fit_temperature",
    "fit_temperature_in_batches",
    "load",
    "merge",
    "merge_across",
    "save",
    "update",
    "update_from_statistics",
]
