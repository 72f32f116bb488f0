"""What the headers of the files, the labels and the weights tell before the logits are read."""

import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jsoftmax._cli.errors import UserError
from jsoftmax._cli.stored_arrays import StoredArray

BLOCK = 2**20  # rows of labels, weights or groups that are read at once
USUAL = (-100, -1, 255)  # labels that often mean "ignore"


def place(row: int, leading: tuple[int, ...]) -> str:
    """A row as messages name it: by its number or, of several axes of rows, by its index."""
    return f"row {row}" if len(leading) == 1 else f"row {[int(i) for i in np.unravel_index(row, leading)]}"


def check_headers(
    logits: StoredArray, labels: StoredArray, weights: StoredArray | None, groups: StoredArray | None
) -> None:
    """Raise for shapes and dtypes that do not fit."""
    shape, leading = logits.shape, logits.shape[:-1]
    both = f"logits of shape {shape} and labels of shape {labels.shape}"
    if not are_floats(logits):
        order = "; write the logits first, then the labels" if are_floats(labels) else ""
        raise UserError(f"{logits.name}: logits are {logits.dtype}, not floats{order}")
    if len(shape) < 2:
        raise UserError(f"{logits.name}: {both}; logits have one row per label, (rows, classes)")
    if not math.prod(shape):
        raise UserError(f"{logits.name}: logits of shape {shape} have no rows or no classes")
    if labels.shape not in (leading, shape):
        remedy = f"labels are class ids of shape {leading}, or probabilities of shape {shape}"
        if labels.shape == shape[1:]:
            remedy = "the classes are the last axis of the logits: transpose them"
        elif labels.shape == (*leading, 1):
            remedy = "save labels[..., 0]"
        raise UserError(f"{labels.name}: {both} do not fit; {remedy}")
    if labels.shape == shape and not are_floats(labels):
        one_hot = "save labels.argmax(axis=-1), or floats"
        raise UserError(f"{labels.name}: soft labels are {labels.dtype}, not floats; {one_hot}")
    if labels.shape == leading and labels.dtype.kind not in "iu":
        problem = f"labels of shape {leading} are class ids, and have dtype {labels.dtype}"
        raise UserError(f"{labels.name}: {problem}; save labels.astype(int)")
    for name, stored in (("weights", weights), ("groups", groups)):
        if stored is not None and stored.shape != leading:
            problem = f"{name} of shape {stored.shape} for logits of shape {shape}"
            raise UserError(f"{stored.name}: {problem}; give one for each row, {leading}")
    if weights is not None and weights.dtype.kind not in "iub" and not are_floats(weights):
        raise UserError(f"{weights.name}: weights are {weights.dtype}; give numbers")
    if groups is not None and groups.dtype.kind not in "iuUS":
        raise UserError(f"{groups.name}: groups are {groups.dtype}; give integers or strings")


def are_floats(stored: StoredArray) -> bool:
    """Whether the dtype is a float type, bfloat16 and those of 8 bits included."""
    return bool(jnp.issubdtype(stored.dtype, jnp.floating))


class _BadLabels:
    """The labels that count and are no class ids, and the range of all that count."""

    def __init__(self, classes: int):
        self.classes = classes
        self.first: tuple[int, int] | None = None  # row and label
        self.count = 0
        self.low, self.high = math.inf, -math.inf

    def add(self, ids: NDArray[Any], counts: NDArray[np.bool_], start: int) -> None:
        if not counts.any():
            return
        used = ids[counts]
        self.low, self.high = min(self.low, int(used.min())), max(self.high, int(used.max()))
        bad = np.flatnonzero(counts & ((ids < 0) | (ids >= self.classes)))
        if bad.size and self.first is None:
            self.first = start + int(bad[0]), int(ids[bad[0]])
        self.count += len(bad)

    def raise_for(self, name: str, leading: tuple[int, ...]) -> None:
        if self.first is None:
            return
        row, label = self.first
        last = self.classes - 1
        if self.low >= 1 and self.high == self.classes:
            problem = f"the labels go from {self.low:.0f} to {self.classes}, and class ids from 0 to {last}"
            raise UserError(f"{name}: {problem}; save labels - 1")
        where = f"{label}, in {place(row, leading)}"
        which = f"{self.count:,} labels are outside 0 to {last}, the first is {where}"
        if self.count == 1:
            which = f"a label is outside 0 to {last}: {where}"
        hint = f"; if rows with it do not count, add --ignore-index {label}" if label in USUAL else ""
        raise UserError(f"{name}: {which}{hint}")


def check_rows(
    labels: StoredArray,
    weights: StoredArray | None,
    leading: tuple[int, ...],
    classes: int | None,
    ignore_index: int | None,
) -> None:
    """Raise for bad weights, bad class ids, or no row that counts; `classes` is None for soft labels."""
    rows, bad_labels, counted = math.prod(leading), _BadLabels(classes or 0), 0
    of_labels = itertools.repeat(None) if classes is None else labels.blocks(BLOCK, len(leading))
    of_weights = itertools.repeat(None) if weights is None else weights.blocks(BLOCK, len(leading))
    for start, ids, w in zip(range(0, rows, BLOCK), of_labels, of_weights, strict=False):
        counts = np.ones(min(BLOCK, rows - start), bool)
        if w is not None and weights is not None:
            single = w.astype(np.float32)
            if (bad := np.flatnonzero(~((single >= 0) & (single < np.inf)))).size:
                problem = f"the weight of {place(start + int(bad[0]), leading)} is {w[bad[0]]}"
                raise UserError(f"{weights.name}: {problem}; give finite weights of at least 0")
            counts &= single > 0
        if ids is not None:
            if ignore_index is not None:
                counts &= ids != ignore_index
            bad_labels.add(ids, counts, start)
        counted += int(np.count_nonzero(counts))
    bad_labels.raise_for(labels.name, leading)
    if not counted:
        raise UserError(f"{labels.name}: no row counts: every label is ignored, or every weight is 0")


def names_of(groups: StoredArray) -> NDArray[Any]:
    """The groups, sorted, each once."""
    found = np.zeros(0, groups.dtype.newbyteorder("="))
    for block in groups.blocks(BLOCK, len(groups.shape)):
        found = np.union1d(found, block)
    return found
