"""Two processes train like one device; if one dies the other ends, and two new ones resume from the file."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import train_on_processes
from compiling import QUICKLY, flags
from jax.sharding import Mesh

from jsoftmax._cli import text

EXAMPLE = Path(train_on_processes.__file__)
PATIENCE = 6  # seconds


@pytest.fixture
def start(tmp_path):
    """Start two processes that train on a mesh of this shape; kill those that remain at the end."""
    processes = []

    def start(name, mesh, **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = "{}:{}".format(*free.getsockname())
        options = {"coordinator": coordinator, "processes": 2, "patience": PATIENCE, **options}
        command = [sys.executable, "-W", "error", str(EXAMPLE), "--mesh", *map(str, mesh)]
        command += [str(word) for option, value in options.items() for word in (f"--{option}", value)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags(QUICKLY)}
        started = []
        for number in range(2):
            output = (tmp_path / f"{name}-{number}.txt").open("w+")
            process = subprocess.Popen(
                [*command, "--process", str(number)], env=environment, stdout=output, stderr=output
            )
            process.output = output
            started.append(process)
        processes.extend(started)
        return started

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.output.close()


def printed(process):
    """What a process has written so far: losses by step number, the metrics, and the whole text."""
    process.output.seek(0)
    everything = process.output.read()
    losses = {int(n): float(x) for n, x in re.findall(r"^step (\d+) loss (\S+)$", everything, re.MULTILINE)}
    metrics = re.findall(r"^rows (\S+) nll (\S+) accuracy (\S+)$", everything, re.MULTILINE)
    return losses, [tuple(map(float, found)) for found in metrics], everything


def agree(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.long
def test_two_processes(start, tmp_path):
    """First the classes are sharded over all devices; later within each process, with the rows over both."""
    checkpoint = tmp_path / "state.npz"
    survivor, victim = start("killed", (1, 4), checkpoint=checkpoint, steps=10**6)
    deadline = time.monotonic() + 60
    while not checkpoint.exists():
        assert survivor.poll() is None, printed(survivor)[-1]
        assert time.monotonic() < deadline, printed(survivor)[-1]
        time.sleep(0.05)
    victim.kill()
    assert survivor.wait(timeout=4 * PATIENCE) != 0
    losses = [printed(survivor)[0], printed(victim)[0]]

    with np.load(checkpoint) as file:
        saved = int(file["arr_0"])
    steps = saved + train_on_processes.SAVED_EVERY
    restarted = start("restarted", (2, 2), checkpoint=checkpoint, steps=steps)
    for process in restarted:
        assert process.wait(timeout=60) == 0, printed(process)[-1]

    want = {}
    one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("rows", "classes"))
    corpus = text.load(None, train_on_processes.VOCABULARY)
    with jax.numpy_rank_promotion("allow"):
        metrics = train_on_processes.train(one, corpus, steps, tmp_path / "none.npz", want.__setitem__)
    for process in restarted:
        of_process, of_metrics, _ = printed(process)
        assert list(of_process) == list(range(saved + 1, steps + 1))
        losses.append(of_process)
        agree(of_metrics, [(metrics.weight, metrics.nll, metrics.accuracy)])
    assert losses[0].keys() >= set(range(1, saved + 1))
    for of_process in losses:
        common = want.keys() & of_process.keys()
        agree([of_process[n] for n in common], [want[n] for n in common])
