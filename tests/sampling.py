"""Which items of a grid of parameters run by default: the others have the mark "full", of `pytest -m full`.

A test with the mark "diagonal" runs on the diagonal of its grid; `sample` marks the values of one list.
"""

import itertools
import math
from collections import defaultdict

import pytest


def sample(values, *kept):
    """The values of a list, or the keys of a table, as parameters: all but those kept are "full"."""
    assert set(kept) <= set(values)
    return [pytest.param(value, marks=() if value in kept else pytest.mark.full) for value in values]


def diagonal(sizes):
    """Places in lists of these sizes, as many as the longest list has; all places of each list are there.

    Step t takes place t in every list, modulo its length. Longer lists come first, and the places in those
    that follow a list are shifted by one each time it starts again: so the values of short lists meet.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    for step in range(max(sizes)):
        places, shifted = [0] * len(sizes), step
        for i in order:
            places[i] = shifted % sizes[i]
            shifted += step // sizes[i]
        yield tuple(places)


def mark(items):
    """With "full" what lies off the diagonal of a test that asks for it, unless items were chosen by name."""
    grids = defaultdict(list)
    for item in items:
        if item.get_closest_marker("diagonal"):
            grids[item.path, item.originalname].append(item)
    for grid in grids.values():
        marks = grid[0].iter_markers("parametrize")  # that which changes most seldom comes first
        sizes = [
            len(mark.kwargs["argvalues"] if "argvalues" in mark.kwargs else mark.args[1]) for mark in marks
        ]
        if math.prod(sizes) == len(grid):
            kept = set(diagonal(sizes))
            for item, places in zip(grid, itertools.product(*map(range, sizes)), strict=True):
                if places not in kept:
                    item.add_marker("full")
