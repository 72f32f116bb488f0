"""The passes over the rows of an evaluation: a thread reads the next batch while the device computes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jsoftmax import evaluation
from jsoftmax._cli.evaluation_inputs import Batch, Inputs

LARGEST = 2**24  # logits in a batch; `evaluation.update` fills batches up to this size to a few sizes
LEAST_WIDTH = 64  # numbers that a row takes beside its logits, such as flags of bins
PER_REPLICATE = 4
SEED = 0
MOST_CONFUSED = 5000  # the most classes whose confusions are counted

Progress = Callable[[str], AbstractContextManager[Callable[[int], None]]]


class Measures(NamedTuple):
    """What to measure: arguments of `evaluation.empty`."""

    top_k: int
    bins: int
    class_bins: int | None
    replicates: int | None


def batch_size(classes: int, measures: Measures) -> int:
    """The number of rows of a batch: a power of two, which `evaluation.update` need not fill up."""
    width = max(classes, LEAST_WIDTH, PER_REPLICATE * (measures.replicates or 0))
    return 1 << max(LARGEST // width, 1).bit_length() - 1


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, each read while the one before it is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def measured(
    inputs: Inputs,
    measures: Measures,
    size: int,
    progress: Progress,
    what: str,
    temperature: float | None = None,
) -> evaluation.State:
    """The state of all rows, in one pass."""
    state = evaluation.empty(
        inputs.classes,
        top_k=min(measures.top_k, inputs.classes),
        bins=measures.bins,
        confusion=inputs.classes <= MOST_CONFUSED,
        class_bins=measures.class_bins,
        selective=True,
        num_groups=None if inputs.group_names is None else len(inputs.group_names),
        replicates=measures.replicates,
    )
    key, checked = jax.random.key(SEED), False
    with progress(what) as advance:
        for number, batch in enumerate(ahead(inputs.batches(size))):
            drawn: Array | None = None
            if measures.replicates is not None:  # a group may be in several batches, and is drawn as one
                drawn = key if inputs.groups is not None else jax.random.fold_in(key, number)
            state = evaluation.update(
                state,
                batch.logits,
                batch.labels,
                weights=batch.weights,
                groups=batch.groups,
                ignore_index=inputs.ignore_index,
                temperature=temperature,
                probabilities=inputs.probabilities,
                key=drawn,
            )
            # This waits for the batch, so that no more than two are in memory.
            if not checked and np.isnan(state.nll.high):
                inputs.check_values(size)
                checked = True
            advance(batch.rows)
    return state


def fitted_temperature(inputs: Inputs, size: int, progress: Progress) -> float:
    """The temperature with the smallest loss, in several passes over the rows."""
    passes = 0

    def batches() -> Iterator[Any]:
        nonlocal passes
        passes += 1
        with progress(f"fit, pass {passes}") as advance:
            for batch in ahead(inputs.batches(size)):
                x: Any = batch.logits
                if inputs.probabilities:
                    x = jnp.log(jnp.asarray(x, jnp.float32))
                yield x, batch.labels, batch.weights
                advance(batch.rows)

    return float(evaluation.fit_temperature_in_batches(batches, ignore_index=inputs.ignore_index))
