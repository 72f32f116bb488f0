"""The metrics as values: what they are, and how they read in a terminal, in a notebook and in JSON."""

from __future__ import annotations

import html
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array


class Reliability(NamedTuple):
    """A reliability diagram: the weight, mean confidence and accuracy of the rows in each confidence bin."""

    weight: Array
    confidence: Array
    accuracy: Array


class RiskCoverage(NamedTuple):
    """The error of the most confident rows: `risk[i]` of those that make up the share `coverage[i]`.

    Coverage rises to 1; before the first row, the risk is 0. `aurc` is the area under the curve.
    """

    coverage: Array
    risk: Array
    aurc: Array


class GroupMetrics(NamedTuple):
    """The weight, mean loss and accuracy of each group of rows."""

    weight: Array
    nll: Array
    accuracy: Array


class Metrics(NamedTuple):
    """The metrics that `compute` returns; None for each metric that the state does not measure.

    ``print(metrics)`` shows the single numbers as a table, as a notebook does; `as_dict` has all of them.
    """

    weight: Array
    nll: Array
    perplexity: Array
    bits_per_token: Array
    bits_per_byte: Array | None
    accuracy: Array
    top_k_accuracy: Array
    brier: Array | None
    calibration_error: Array | None
    reliability: Reliability | None
    per_class_accuracy: Array | None
    per_class_weight: Array | None
    max_calibration_error: Array | None = None
    rms_calibration_error: Array | None = None
    equal_mass_calibration_error: Array | None = None
    equal_mass_reliability: Reliability | None = None
    class_calibration_error: Array | None = None
    macro_accuracy: Array | None = None
    macro_f1: Array | None = None
    per_class_precision: Array | None = None
    per_class_f1: Array | None = None
    confusion: Array | None = None
    risk_coverage: RiskCoverage | None = None
    groups: GroupMetrics | None = None

    def as_dict(self) -> dict[str, Any]:
        """Numbers, lists and dictionaries, as JSON holds them, without what is not measured.

        JSON has no NaN and no infinity: they become None and the strings "inf" and "-inf".

        >>> import json, jax.numpy as jnp
        >>> from jsoftmax import evaluation
        >>> state = evaluation.update(evaluation.empty(top_k=1, bins=None), jnp.eye(2), jnp.array([0, 0]))
        >>> print(json.dumps(evaluation.compute(state).as_dict(), allow_nan=False)[:52])
        {"weight": 2.0, "nll": 0.8132616281509399, "perplexi
        """
        return {name: _plain(value) for name, value in self._asdict().items() if value is not None}

    def __str__(self) -> str:
        """The single numbers, one per line."""
        rows = self._rows()
        if rows is None:
            return repr(self)
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value:>10}" for name, value in rows)

    def _repr_html_(self) -> str | None:
        """The single numbers, as a table in a notebook."""
        rows = self._rows()
        if rows is None:
            return None
        cells = "".join(
            f'<tr><td style="text-align:left">{html.escape(name)}</td><td>{value}</td></tr>'
            for name, value in rows
        )
        return f"<table><tbody>{cells}</tbody></table>"

    def _rows(self) -> list[tuple[str, str]] | None:
        """Names and values of the single numbers; None if they are traced, stacked, or only shapes."""
        if isinstance(self.nll, (jax.core.Tracer, jax.ShapeDtypeStruct)) or np.ndim(self.nll):
            return None
        found = {"rows, by weight": self.weight}
        for name, value in self._asdict().items():
            if value is None or name == "weight":
                continue
            if name == "top_k_accuracy":
                if len(value) > 1:
                    found[f"top-{len(value)} accuracy"] = value[-1]
            elif name == "risk_coverage":
                found["area under risk–coverage"] = value.aurc
            elif not isinstance(value, tuple) and np.ndim(value) == 0:
                found[_LABELS.get(name, name.replace("_", " "))] = value
        return [(name, _shown(float(value), name)) for name, value in found.items()]


_LABELS = {"nll": "loss (nll), nats", "brier": "Brier score", "macro_f1": "macro F1"}


def _shown(value: float, name: str) -> str:
    if name.startswith("rows"):
        return f"{value:,.3f}" if value % 1 else f"{value:,.0f}"
    return (
        f"{value:.4f}"
        if 1e-3 <= abs(value) < 1e4 or value == 0 or not math.isfinite(value)
        else f"{value:.3e}"
    )


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items() if part is not None}
    numbers = np.asarray(value, np.float64) if np.asarray(value).dtype.itemsize < 8 else np.asarray(value)
    return _finite(numbers.tolist())


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(part) for part in value]
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else "inf" if value > 0 else "-inf"
