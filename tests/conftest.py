"""Strict settings: no implicit promotion of dtypes or ranks; eight devices on any CPU."""

import gc
import os

os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # the source locations of operations take time

import jax
import pytest
import sampling
from compiling import QUICKLY, flags

from jsoftmax.transforms import _platforms, _sharding

os.environ["XLA_FLAGS"] = " ".join(
    ("--xla_force_host_platform_device_count=8", flags(QUICKLY), os.environ.get("XLA_FLAGS", ""))
)
collect_ignore = ["data/record_entmax.py", "data/record_torch.py"]
collect_ignore += ["converters", "libraries", "other_metrics", "other_suites"]
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000)  # tracing creates many objects, and little garbage
_sharding.one_device = lambda: True  # as for most users: this enables the forms for arrays on one device


def pytest_addoption(parser):
    parser.addoption("--one-of-each", action="store_true", help="run one item of every short test function")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(config, items):
    """With --one-of-each, a parametrized test runs only with its first parameters that run by default."""
    sampling.mark(items)
    if config.getoption("--one-of-each"):
        first = {}
        short = [item for item in items if item.get_closest_marker("long") is None]
        for item in sorted(short, key=lambda item: item.get_closest_marker("full") is not None):
            first.setdefault((item.path, getattr(item, "originalname", item.name)), item)
        kept = set(first.values())
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


@pytest.fixture
def x64():
    """Enables float64 within the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def not_plain(monkeypatch):
    """The programs of larger batches, with their forms for CPU and their barriers."""
    monkeypatch.setattr(_platforms, "MOST_PLAIN", 0)


@pytest.fixture
def several_devices(monkeypatch):
    """Under Auto axes the sharding is unknown at trace time; programs traced before were for one device."""
    monkeypatch.undo()
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sharding, "one_device", lambda: False)
        yield
    jax.clear_caches()
