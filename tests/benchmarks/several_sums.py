"""``python -m tests.benchmarks several_sums``: functions with several sums of a row, beside plain formulas.

A plain formula is what a user would write with jax.nn or optax. The gradient is in the logits; that of a
divergence in both logits, without a teacher. "arrays" are the temporaries, in arrays of the logits' shape.
"""

import argparse
import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax
from tests.benchmarks import against, timing

SHAPES = ((400000, 10), (4096, 1000), (1024, 32000), (512, 50257))
LINE = "{function:28}{what:10}{shape:>14}{ours:9.1f}{peer:9.1f}{ratio:8.2f}{arrays:>14}"


def _kl(log_p, log_q):
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)


def _log_softmaxes(*logits):
    return tuple(map(jax.nn.log_softmax, logits))


def plain_kl(x, other):
    return _kl(*_log_softmaxes(x, other))


def plain_js(x, other):
    p, q = _log_softmaxes(x, other)
    m = jnp.logaddexp(p, q) - jnp.log(2.0)
    return (_kl(p, m) + _kl(q, m)) / 2


def plain_entropy(x):
    log_p = jax.nn.log_softmax(x)
    return -jnp.sum(jnp.exp(log_p) * log_p, -1)


def plain_smoothed(x, ids):
    return optax.softmax_cross_entropy(x, optax.smooth_labels(jax.nn.one_hot(ids, x.shape[-1]), 0.1))


def plain_log_odds(x, ids):
    log_p = -optax.softmax_cross_entropy_with_integer_labels(x, ids)
    return log_p - jnp.log1p(-jnp.exp(log_p))


def statistics(x, ids):
    """The sum of what `row_statistics` returns of a row, with 1 for a correct prediction."""
    of = jsoftmax.row_statistics(x, ids)
    return of.nll + of.entropy + (of.prediction == ids).astype(x.dtype)


def plain_statistics(x, ids):
    log_p = jax.nn.log_softmax(x)
    nll = -jnp.take_along_axis(log_p, ids[:, None], -1)[:, 0]
    return nll - jnp.sum(jnp.exp(log_p) * log_p, -1) + (jnp.argmax(x, -1) == ids).astype(x.dtype)


# For each function: ours, the plain formula, and the arrays beside the logits.
PAIRS = {
    "softmax, temperature": (
        lambda x, t: jsoftmax.softmax(x, temperature=t),
        lambda x, t: jax.nn.softmax(x / t[:, None]),
        ("temperatures",),
    ),
    "log_softmax, temperature": (
        lambda x, t: jsoftmax.log_softmax(x, temperature=t),
        lambda x, t: jax.nn.log_softmax(x / t[:, None]),
        ("temperatures",),
    ),
    "softmax, masked": (
        lambda x, live: jsoftmax.softmax(x, where=live),
        lambda x, live: jax.nn.softmax(x, where=live),
        ("mask",),
    ),
    "logsumexp, masked": (
        lambda x, live: jsoftmax.logsumexp(x, -1, where=live),
        lambda x, live: jax.nn.logsumexp(x, -1, where=live),
        ("mask",),
    ),
    "cross_entropy, temperature": (
        lambda x, ids, t: jsoftmax.cross_entropy(x, ids, temperature=t),
        lambda x, ids, t: optax.softmax_cross_entropy_with_integer_labels(x / t[:, None], ids),
        ("ids", "temperatures"),
    ),
    "cross_entropy, smoothed": (
        lambda x, ids: jsoftmax.cross_entropy(x, ids, label_smoothing=0.1),
        plain_smoothed,
        ("ids",),
    ),
    "cross_entropy, targets": (jsoftmax.cross_entropy, optax.softmax_cross_entropy, ("targets",)),
    "entropy": (jsoftmax.entropy, plain_entropy, ()),
    "row_statistics": (statistics, plain_statistics, ("ids",)),
    "kl_divergence": (jsoftmax.kl_divergence, plain_kl, ("other",)),
    "kl_divergence, teacher": (
        lambda q, p: jsoftmax.kl_divergence(p, q),
        lambda q, p: plain_kl(p, q),
        ("teacher",),
    ),
    "js_divergence": (jsoftmax.js_divergence, plain_js, ("other",)),
    "log_odds": (jsoftmax.log_odds, plain_log_odds, ("ids",)),
}


def arrays(shape, dtype):
    rng = np.random.default_rng(0)
    rows, classes = shape
    x, other = (jnp.asarray(3 * rng.normal(size=shape), dtype) for _ in range(2))
    beside = {
        "ids": jnp.asarray(rng.integers(classes, size=rows), jnp.int32),
        "temperatures": jnp.asarray(rng.uniform(1, 3, rows), jnp.float32),
        "mask": other > -3,
        "targets": jax.nn.softmax(other),
        "other": other,
        "teacher": other,
    }
    return x, beside


def with_gradient(function, count):
    """The values, and the gradients of their sum times a cotangent, in the first arguments."""

    def both(*arguments):
        *arguments, g = arguments
        value, pull = jax.vjp(lambda *first: function(*first, *arguments[count:]), *arguments[:count])
        return value, pull(g)

    return both


def measured(name, shape, dtype, seconds, pairs):
    x, beside = arrays(shape, dtype)
    *forms, needed = pairs[name]
    given = (x, *(beside[what] for what in needed))
    for what in ("value", "gradient"):
        calls = dict(zip(("ours", "peer"), forms, strict=True))
        if what == "gradient":
            calls = {who: with_gradient(f, 1 + ("other" in needed)) for who, f in calls.items()}
            value = jax.eval_shape(forms[0], *given)
            given = (*given, jnp.ones(value.shape, value.dtype))
        programs = {who: jax.jit(f).lower(*given).compile() for who, f in calls.items()}
        calls = {who: partial(program, *given) for who, program in programs.items()}
        times = timing.seconds_each(calls, seconds)
        record = {"function": name, "what": what, "shape": shape, "dtype": dtype}
        record |= timing.compared(times["ours"], times["peer"])._asdict()
        for who, program in programs.items():
            record[f"arrays, {who}"] = program.memory_analysis().temp_size_in_bytes / x.nbytes
        yield record


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks several_sums", description=__doc__)
    parser.add_argument("--shape", type=int, nargs=2, metavar=("ROWS", "CLASSES"), help="this shape alone")
    parser.add_argument("--only", nargs="*", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--against", metavar="PATH", help="another checkout, the peer of this one")
    parser.add_argument("--seconds", type=float, default=1, help="for every line")
    options = parser.parse_args(arguments)
    pairs = PAIRS
    if options.against:
        others = against.loaded(sys.modules[__name__], options.against).PAIRS
        pairs = {name: (ours, others[name][0], needed) for name, (ours, _, needed) in PAIRS.items()}
    print(json.dumps(timing.machine()))
    print(f"{'function':38}{'shape':>14}{'ours, ms':>9}{'peer, ms':>9}{'ratio':>8}{'arrays':>14}")
    records = []
    for shape in (tuple(options.shape),) if options.shape else SHAPES:
        for name in options.only:
            for record in measured(name, shape, options.dtype, options.seconds, pairs):
                records.append(record)
                sizes = " / ".join(f"{record[f'arrays, {who}']:.2f}" for who in ("ours", "peer"))
                print(
                    LINE.format(**record | {"shape": "{} × {}".format(*shape), "arrays": sizes}), flush=True
                )
    return records
