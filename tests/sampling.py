"""Selects the items of a parameter grid that run by default: the others get the mark "full" (`-m full`).

A test with the mark "diagonal" runs on the diagonal of its grid, one with "share(n)" on every n-th item;
`sample` marks the values of one list.
"""

import itertools
import math
import zlib
from collections import defaultdict

import pytest


def sample(values, *kept):
    """The values of a list, or the keys of a table, as parameters; those not kept get the mark "full"."""
    assert set(kept) <= set(values)
    return [pytest.param(value, marks=() if value in kept else pytest.mark.full) for value in values]


def diagonal(sizes):
    """Tuples of indices into lists of these sizes, as many as the longest list has; every index occurs.

    Tuple t has index t in every list, modulo its length. Longer lists come first. Each time a list starts
    again, the indices of the lists after it are shifted by one, so that short lists combine their values.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    for step in range(max(sizes)):
        places, shifted = [0] * len(sizes), step
        for i in order:
            places[i] = shifted % sizes[i]
            shifted += step // sizes[i]
        yield tuple(places)


def share(name, size, n):
    """The indices of every n-th of so many items; the first depends on the name of the test."""
    return range(zlib.crc32(name.encode()) % min(n, size), size, n)


def mark(items):
    """Mark as "full" what a marked test leaves out."""
    tests = defaultdict(list)
    for item in items:
        if item.get_closest_marker("diagonal") or item.get_closest_marker("share"):
            tests[item.path, item.originalname].append(item)
    for (_, name), grid in tests.items():
        kept = on_diagonal(grid) if grid[0].get_closest_marker("diagonal") else grid
        if given := grid[0].get_closest_marker("share"):
            kept = [item for item in kept if not item.get_closest_marker("full")]
            kept = [kept[i] for i in share(name, len(kept), *given.args)] if kept else []
        for item in grid:
            if item not in kept:
                item.add_marker("full")


def on_diagonal(grid):
    """The items of a test on the diagonal of its grid; all, if they were selected by name."""
    marks = grid[0].iter_markers("parametrize")  # the parameter that changes least often comes first
    sizes = [len(mark.kwargs["argvalues"] if "argvalues" in mark.kwargs else mark.args[1]) for mark in marks]
    if math.prod(sizes) != len(grid):
        return grid
    kept = set(diagonal(sizes))
    return [
        item
        for item, places in zip(grid, itertools.product(*map(range, sizes)), strict=True)
        if places in kept
    ]
