"""Interleaved timing in one process: a ratio is that of two runs a moment apart."""

import os
import platform
import time
from importlib import metadata
from typing import NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """Medians in milliseconds, and of the ratios ours over the peer's, run by run, the quartiles."""

    ours: float
    peer: float
    ratio: float
    low: float
    high: float


def once(call):
    start = time.perf_counter()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - start)


def seconds_each(calls, seconds, least=5):
    """Times in ms of every call, in turns, `least` turns or until the seconds are over: {name: array}."""
    for call in calls.values():
        once(call), once(call)
    times = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    turn = 0
    while turn < least or time.perf_counter() < end:
        # The order turns round each time: what runs after another finds its caches.
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            times[name].append(once(calls[name]))
        turn += 1
    return {name: np.array(t) for name, t in times.items()}


def compared(ours, peer):
    low, ratio, high = np.quantile(ours / peer, [0.25, 0.5, 0.75])
    return Timing(*map(float, (np.median(ours), np.median(peer), ratio, low, high)))


def temporaries(function, arguments):
    """Bytes that the compiled program stores beside its arguments and results."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def machine():
    packages = ("jax", "jaxlib", "optax", "torch", "numpy")
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
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **found,
    }
