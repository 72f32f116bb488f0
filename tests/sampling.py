"""Which items of a grid of parameters run by default. The others have the mark "full": ``pytest -m full`` runs them.

A test with the mark "diagonal" runs on the diagonal of its grid; `sample` marks the values of one list.
"""

import itertools
import math
from collections import defaultdict

import pytest


def sample(values, *kept):
    """The values of a list, or the keys of a table, as parameters: those that are not kept have the mark "full"."""
    assert set(kept) <= set(values)
    return [pytest.param(value, marks=() if value in kept else pytest.mark.full) for value in values]


def diagonal(sizes):
    """Places in lists of these sizes, as many as the longest list has. Each place of every list is among them.

    Step t takes place t in every list, modulo its length; what comes after a list is shifted by one each time the
    list starts again, so that the values of short lists meet. Longer lists come first.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    for step in range(max(sizes)):
        places, shifted = [0] * len(sizes), step
        for i in order:
            places[i] = shifted % sizes[i]
            shifted += step // sizes[i]
        yield tuple(places)


def mark(items):
    """With "full" what lies off the diagonal of the tests that ask for it; not where single items were chosen."""
    grids = defaultdict(list)
    for item in items:
        if item.get_closest_marker("diagonal"):
            grids[item.path, item.originalname].append(item)
    for grid in grids.values():
        marks = grid[0].iter_markers("parametrize")  # that which changes most seldom comes first
        sizes = [len(mark.kwargs["argvalues"] if "argvalues" in mark.kwargs else mark.args[1]) for mark in marks]
        if math.prod(sizes) == len(grid):
            kept = set(diagonal(sizes))
            for item, places in zip(grid, itertools.product(*map(range, sizes)), strict=True):
                if places not in kept:
                    item.add_marker("full")
