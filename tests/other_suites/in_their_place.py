"""A pytest plugin that replaces functions of JAX, optax and jaxopt by those of this package.

``python -m tests.other_suites`` runs the tests of other projects with it, and sets:

- ``FUNCTIONS``: "theirs", which changes nothing, "ours", or "ours, forward mode"
- ``REPORT``: the file for the outcome of every test, the errors, and the calls of each function
"""

import collections
import contextlib
import functools
import importlib.util
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.scipy.special
import pytest

import jsoftmax

FUNCTIONS = os.environ["FUNCTIONS"]
RANKS = ("skipped", "passed", "failed")  # the outcome of a test is the last of these among its reports
calls = collections.Counter()
outcomes, errors = {}, {}


def replace(module, name, ours):
    """Rebind `theirs`, under all its names in all imported modules, to `ours`, and count the calls."""
    theirs = getattr(module, name)
    key = f"{module.__name__}.{name}"
    calls[key] = 0

    @functools.wraps(ours)
    def counted(*arguments, **options):
        calls[key] += 1
        return ours(*arguments, **options)

    for holder in list(sys.modules.values()):
        for attribute, value in list(getattr(holder, "__dict__", {}).items()):
            if value is theirs:
                setattr(holder, attribute, counted)


def replace_all():
    # JAX first: the other packages bind its functions at their import.
    replace(jax.nn, "softmax", jsoftmax.softmax)
    replace(jax.nn, "log_softmax", jsoftmax.log_softmax)
    replace(jax.nn, "logsumexp", jsoftmax.logsumexp)  # jax.scipy.special.logsumexp is the same function
    if importlib.util.find_spec("optax"):
        import optax

        integers = "softmax_cross_entropy_with_integer_labels"
        replace(optax, integers, jsoftmax.softmax_cross_entropy_with_integer_labels)
        replace(optax, "softmax_cross_entropy", jsoftmax.softmax_cross_entropy)
        replace(optax, "safe_softmax_cross_entropy", jsoftmax.softmax_cross_entropy)
    if importlib.util.find_spec("jaxopt"):
        import jaxopt.loss

        def multiclass_logistic_loss(label, logits):
            return jsoftmax.cross_entropy(jnp.asarray(logits), jnp.asarray(label))

        replace(jaxopt.loss, "multiclass_logistic_loss", multiclass_logistic_loss)


if FUNCTIONS != "theirs":
    replace_all()  # at the import of the plugin, before any test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with jsoftmax.forward_mode() if "forward" in FUNCTIONS else contextlib.nullcontext():
        return (yield)


def record(name, outcome, report):
    outcomes[name] = max(outcomes.get(name, outcome), outcome, key=RANKS.index)
    if outcome == "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        lines = (crash.message if crash else str(report.longrepr)).strip().splitlines()
        errors.setdefault(name, " ".join(lines[:3])[:400])


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        record(report.nodeid, report.outcome, report)


def pytest_collectreport(report):
    if report.failed:
        record(report.nodeid, report.outcome, report)


def pytest_sessionfinish(session):
    found = {"outcomes": outcomes, "errors": errors, "calls": calls}
    Path(os.environ["REPORT"]).write_text(json.dumps(found))
