"""Confidence intervals of the metrics, from the replicates of a state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax import rules
from jsoftmax.border._call import Call
from jsoftmax.evaluation._compute import of_state
from jsoftmax.evaluation._metrics import Metrics
from jsoftmax.evaluation._state import Replicates, State, check_states


def confidence_intervals(state: State, *, level: float = 0.95) -> Metrics:
    """The interval of every metric that covers the share `level` of its values in the replicates.

    A replicate draws each row a Poisson distributed number of times with mean 1, as a bootstrap of a long
    stream does. The interval ends at the quantiles (1 − level)/2 and (1 + level)/2 of the metric over the
    replicates. With `groups`, all rows of a group are drawn together: the interval then allows for rows that
    depend on each other, such as the tokens of a document. It takes some tens of groups.

    Args:
      state: a state of ``empty(replicates=...)``; some hundreds of replicates for 95 %.
      level: between 0 and 1.

    Returns:
      `Metrics`, each array with a leading axis of length 2, the lower and the upper end: weight, nll,
      perplexity, bits per token, accuracies, and with `bins` the Brier score. All else is None. A calibration
      error has no interval: it is never below 0, so its bias grows with the noise, and a replicate is noisier
      than the rows are.

    Raises:
      TypeError, ValueError: if `state` is not a state or has no replicates, or `level` is out of range.

    >>> import jax, jax.numpy as jnp
    >>> from jsoftmax import evaluation
    >>> state, keys = evaluation.empty(replicates=400), jax.random.split(jax.random.key(0), 10)
    >>> for key in keys:  # 1000 rows, of which about 3/4 are right
    ...     right = jax.random.uniform(key, 100) < 0.75
    ...     state = evaluation.update(state, jnp.eye(2)[right.astype(int)], jnp.ones(100, int), key=key)
    >>> low, high = evaluation.confidence_intervals(state).accuracy
    >>> print(0.025 < (high - low) / 2 < 0.03)  # 1.96 √(0.75·0.25/1000) is 0.027
    True

    Source: Chamandy et al. (2012).
    """
    check_states("confidence_intervals", state=state)
    call = Call("evaluation.confidence_intervals", level=level)
    if state.replicates is None:
        problem = "the state has no replicates"
        raise call.error(ValueError, problem, "begin with evaluation.empty(replicates=400)")
    if not isinstance(level, (int, float, np.floating)) or not 0 < level < 1:
        raise call.error(ValueError, f"level is {level!r}", "write a number between 0 and 1, such as 0.95")
    found = jax.vmap(_of_replicate)(state.replicates)
    ends = jnp.array([(1 - level) / 2, (1 + level) / 2])
    # A replicate that has drawn no row has no metrics, and does not count.
    return jax.tree.map(lambda values: jnp.nanquantile(values, ends, axis=0, method="nearest"), found)


def _of_replicate(sums: Replicates) -> Metrics:
    found = of_state(State(sums.weight, sums.nll, sums.ranks, None, None), None)
    if sums.brier is None:
        return found
    weight = jnp.where(sums.weight.high == 0, 1, sums.weight.high)
    return found._replace(brier=rules.nan_where(jnp.isnan(found.nll), sums.brier.high / weight))
