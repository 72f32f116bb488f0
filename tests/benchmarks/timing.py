"""Interleaved timing in one process: the two runs of a ratio follow each other."""

import itertools
import os
import platform
import time
from importlib import metadata
from typing import NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """Medians in milliseconds, and the quartiles of the ratios ours / the peer's of single runs."""

    ours: float
    peer: float
    ratio: float
    low: float
    high: float


def once(call, count=1):
    """Milliseconds per call, for several calls in a row with one wait at the end."""
    start = time.perf_counter()
    for _ in range(count):
        out = call()
    jax.block_until_ready(out)
    return 1e3 * (time.perf_counter() - start) / count


def rotating(function, sets):
    """A call of the function that takes the next set of arguments each time, so that no cache holds them."""
    turns = itertools.cycle(sets)
    return lambda: function(*next(turns))


def seconds_each(calls, seconds, least=5, sample=0):
    """Times in ms of every call, in turns, `least` turns or until the seconds are over: {name: array}.

    One time is for enough calls to take `sample` ms together: the queue of a device hides their launch.
    """
    counts = {}
    for name, call in calls.items():
        once(call)
        counts[name] = max(1, round(sample / once(call)))
    times = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    turn = 0
    while turn < least or time.perf_counter() < end:
        # The order is reversed each time: a program finds the caches that the previous one left.
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            times[name].append(once(calls[name], counts[name]))
        turn += 1
    return {name: np.array(t) for name, t in times.items()}


def compared(ours, peer):
    low, ratio, high = np.quantile(ours / peer, [0.25, 0.5, 0.75])
    return Timing(*map(float, (np.median(ours), np.median(peer), ratio, low, high)))


def temporaries(function, arguments):
    """The bytes that the compiled program stores besides its arguments and results."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def machine():
    packages = ("jax", "jaxlib", "jax-cuda13-plugin", "libtpu", "optax", "torch", "numpy")
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "runtime": device.client.platform_version,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **found,
    }
