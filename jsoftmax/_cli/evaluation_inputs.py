"""The files of an evaluation, read as batches of rows."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jsoftmax._cli import evaluation_checks, stored_arrays
from jsoftmax._cli.errors import UserError
from jsoftmax._cli.stored_arrays import StoredArray
from jsoftmax.evaluation._scores import MOST_OFF

SAMPLE = 1000  # the rows that tell probabilities from logits
FILLER = -1  # the label of rows that fill up the last batch


class Batch(NamedTuple):
    """Consecutive rows; None for what is not given."""

    logits: NDArray[Any]
    labels: NDArray[Any]
    weights: NDArray[Any] | None
    groups: NDArray[Any] | None
    rows: int  # without those that fill up the batch


@dataclass(frozen=True)
class Inputs:
    """The files of an evaluation, and how to read them. The rows are the leading axes of the logits."""

    logits: StoredArray
    labels: StoredArray
    weights: StoredArray | None
    groups: StoredArray | None
    group_names: NDArray[Any] | None  # sorted, each once
    ignore_index: int | None  # None for soft labels
    probabilities: bool

    @property
    def rows(self) -> int:
        """The number of rows, with those that do not count."""
        return math.prod(self.logits.shape[:-1])

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.logits.shape[-1]

    @property
    def are_soft(self) -> bool:
        """Whether the labels are probabilities."""
        return self.labels.shape == self.logits.shape

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows, in batches of this size.

        Rows whose label is ignored fill up the last batch of several: all share one compiled program.
        """
        stored = (self.logits, self.labels, self.weights, self.groups)
        axes = len(self.logits.shape) - 1
        blocks = (itertools.repeat(None) if of is None else of.blocks(size, axes) for of in stored)
        start = 0
        for logits, labels, weights, groups in zip(*blocks, strict=False):
            assert logits is not None
            assert labels is not None
            batch = Batch(
                logits.astype(np.float32) if logits.dtype == np.float64 else logits,
                labels.astype(np.float32 if self.are_soft else np.int32),
                None if weights is None else weights.astype(np.float32),
                None if groups is None else self._numbers(groups),
                len(logits),
            )
            if self.are_soft and (bad := self._counted(batch, ~_are_probabilities(batch.labels))).size:
                given = batch.labels[bad[0]]
                problem = f"the labels of {self._place(start + int(bad[0]))} are no distribution"
                numbers = f"from {given.min():.4g} to {given.max():.4g}, sum {given.sum():.4g}"
                raise UserError(f"{self.labels.name}: {problem}: {numbers}")
            yield _filled(batch, size, self.ignore_index) if start else batch
            start += len(logits)

    def _numbers(self, groups: NDArray[Any]) -> NDArray[np.int32]:
        assert self.group_names is not None
        return np.searchsorted(self.group_names, groups).astype(np.int32)

    def _counted(self, batch: Batch, flags: NDArray[np.bool_]) -> NDArray[np.int_]:
        """The rows of a batch that count and have this flag."""
        if batch.weights is not None:
            flags = flags & (batch.weights > 0)
        if self.ignore_index is not None:
            flags = flags & (batch.labels != self.ignore_index)
        return np.flatnonzero(flags)

    def _place(self, row: int) -> str:
        return evaluation_checks.place(row, self.logits.shape[:-1])

    def check_kind(self) -> None:
        """Raise if probabilities are given as logits, or the reverse, as the first rows tell."""
        batch = next(self.batches(min(SAMPLE, self.rows)))
        counted = self._counted(batch, np.ones(len(batch.logits), bool))
        if not counted.size:
            return
        rows = batch.logits[counted].astype(np.float32)
        are = _are_probabilities(rows)
        if not self.probabilities and are.all():
            problem = "the rows lie in [0, 1] and sum to 1: they are probabilities, not logits"
            raise UserError(f"{self.logits.name}: {problem}; add --probabilities")
        if self.probabilities and not are.all():
            row, place = rows[~are][0], self._place(int(counted[~are][0]))
            problem = (
                f"{place} is no distribution: from {row.min():.4g} to {row.max():.4g}, sum {row.sum():.4g}"
            )
            raise UserError(f"{self.logits.name}: {problem}; leave out --probabilities if these are logits")

    def check_values(self, size: int) -> None:
        """Raise if a row that counts has NaN or +inf, or no probabilities; after a metric has become NaN."""
        first, count, start = None, 0, 0
        for batch in self.batches(size):
            x = batch.logits.astype(np.float32)
            good = _are_probabilities(x) if self.probabilities else np.all(x < np.inf, axis=-1)
            found = self._counted(batch, ~np.asarray(good))
            if found.size and first is None:
                first = start + int(found[0])
            count, start = count + len(found), start + batch.rows
        if first is not None:
            what = "no probabilities" if self.probabilities else "NaN or +inf"
            which = f"{count:,} rows have {what}, the first is {self._place(first)}"
            one = f"{self._place(first)} has {what}"
            raise UserError(f"{self.logits.name}: {which if count > 1 else one}")


def _are_probabilities(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows lie in [0, 1] and sum to 1."""
    is_inside = np.asarray(((rows >= 0) & (rows <= 1 + MOST_OFF)).all(axis=-1))
    return is_inside & (np.abs(rows.sum(axis=-1) - 1) <= MOST_OFF)


def _filled(batch: Batch, size: int, ignored: int | None) -> Batch:
    if ignored is None or batch.rows == size:
        return batch

    def filled(array: Any, value: float) -> Any:
        if array is None:
            return None
        new = np.empty((size, *array.shape[1:]), array.dtype)
        new[: batch.rows], new[batch.rows :] = array, value
        return new

    logits, labels, weights, groups, rows = batch
    return Batch(filled(logits, 0), filled(labels, ignored), filled(weights, 0), filled(groups, 0), rows)


def load(
    logits: str,
    labels: str,
    weights: str | None,
    groups: str | None,
    ignore_index: int | None,
    probabilities: bool,
) -> Inputs:
    """Open the files; raise for everything that can be told without reading all logits."""
    stored = {
        role: None if given is None else stored_arrays.find(given, role)
        for role, given in (("logits", logits), ("labels", labels), ("weights", weights), ("groups", groups))
    }
    x, y, w, g = stored.values()
    assert x is not None
    assert y is not None
    evaluation_checks.check_headers(x, y, w, g)
    is_soft = y.shape == x.shape
    if is_soft and ignore_index is not None:
        raise UserError("--ignore-index is for class ids; give rows of soft labels the weight 0 by --weights")
    classes = None if is_soft else x.shape[-1]
    evaluation_checks.check_rows(y, w, x.shape[:-1], classes, ignore_index)
    names = None if g is None else evaluation_checks.names_of(g)
    ignored = None if is_soft else FILLER if ignore_index is None else ignore_index
    found = Inputs(x, y, w, g, names, ignored, probabilities)
    found.check_kind()
    return found
