"""A strict world: no silent promotion of dtypes or ranks, and eight devices on any CPU."""

import gc
import os

os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # where in the source an operation is from takes time

import jax
import pytest
import sampling
from compiling import QUICKLY, flags

from jsoftmax.transforms import _sharding

os.environ["XLA_FLAGS"] = " ".join(
    ("--xla_force_host_platform_device_count=8", flags(QUICKLY), os.environ.get("XLA_FLAGS", ""))
)
collect_ignore = ["data/record_torch.py", "converters", "other_suites"]
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000)  # tracing makes many objects, and little garbage
_sharding.one_device = lambda: True  # as where users are: the forms for arrays that lie on one device


def pytest_addoption(parser):
    parser.addoption("--one-of-each", action="store_true", help="run the first item of every test function")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(config, items):
    """With --one-of-each, functions that are parametrized run with their first parameters alone."""
    sampling.mark(items)
    if config.getoption("--one-of-each"):
        first = {}
        for item in sorted(items, key=lambda item: item.get_closest_marker("full") is not None):
            first.setdefault((item.path, getattr(item, "originalname", item.name)), item)
        kept = set(first.values())
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


@pytest.fixture
def x64():
    """Float64 within the test."""
    with jax.enable_x64(True):
        yield
