"""The drop-ins: optax's own unit tests pass with our functions instead of optax's."""

import unittest

import jax
import numpy as np
import pytest
import sampling
from optax.losses import _classification_test as optax_tests

import jsoftmax

REPLACED = ("softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels")
SUITES = ("SoftmaxCrossEntropyTest", "SoftmaxCrossEntropyWithIntegerLabelsTest")


@pytest.fixture
def in_place_of_optax(monkeypatch):
    calls = dict.fromkeys(REPLACED, 0)

    def counted(name):
        def call(*arguments, **options):
            calls[name] += 1
            return getattr(jsoftmax, name)(*arguments, **options)

        return call

    for name in REPLACED:
        monkeypatch.setattr(optax_tests._classification, name, counted(name))
    np.random.seed(0)  # the seed of optax's data; an all-False mask in it would leave no class
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield calls


@pytest.mark.long
@pytest.mark.parametrize("suite", sampling.sample(SUITES, SUITES[1]))
def test_the_unit_tests_of_optax_pass(suite, in_place_of_optax):
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(getattr(optax_tests, suite))
    result = unittest.TestResult()
    tests.run(result)
    assert result.testsRun >= 8
    assert not result.errors + result.failures, (result.errors + result.failures)[0][1]
    assert all(in_place_of_optax[name] for name in REPLACED[: 1 + SUITES.index(suite)])
