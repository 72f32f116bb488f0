"""User errors are raised before any computation; they repeat the call and say what to write instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import evaluation, online

X = jnp.zeros((4, 3))
Y = jnp.zeros(4, jnp.int32)
T = jnp.zeros((4, 3))
ZERO, TINY = jnp.float16(0), jnp.float32(1e-38)

ERRORS = {
    "axis out of range": (
        lambda: jsoftmax.softmax(X, axis=2),
        ValueError,
        r"softmax\(x=float32\[4,3\], axis=2\): axis 2 is out of range .* write one from -2 to 1",
    ),
    "axis of a scalar": (lambda: jsoftmax.softmax(jnp.float32(1)), ValueError, "write axis=None"),
    "axis named twice": (lambda: jsoftmax.log_softmax(X, axis=(1, -1)), ValueError, "once"),
    "axis of a wrong type": (lambda: jsoftmax.logsumexp(X, axis="classes"), TypeError, "write an int"),
    "no classes": (lambda: jsoftmax.cross_entropy(jnp.zeros((4, 0)), Y), ValueError, "no classes"),
    "complex": (
        lambda: jsoftmax.softmax(X.astype(jnp.complex64)),
        TypeError,
        r"complex \(complex64\).*x\.real",
    ),
    "not an array": (lambda: jsoftmax.softmax("logits"), TypeError, "not an array of numbers"),
    "mask of another shape": (
        lambda: jsoftmax.softmax(X, where=jnp.ones((3, 4), bool)),
        ValueError,
        r"where=bool\[3,4\].*does not broadcast to \(4, 3\)",
    ),
    "a mask of the rows": (
        lambda: jsoftmax.cross_entropy(X, Y, where=Y > 0),
        ValueError,
        r"where of shape \(4,\) does not broadcast to \(4, 3\); to mask whole rows, "
        r"write jnp\.expand_dims\(where, -1\)",
    ),
    "a mask of the columns": (
        lambda: jsoftmax.log_softmax(X[..., None], (0, 1), where=Y[:2] > 0),
        ValueError,
        r"give it the shape \(4, 3, 1\), or one that broadcasts to it",
    ),
    "mask larger than the logits": (
        lambda: jsoftmax.softmax(X, where=jnp.ones((2, 4, 3), bool)),
        ValueError,
        "does not broadcast",
    ),
    "additive mask": (lambda: jsoftmax.softmax(X, where=X), TypeError, "boolean mask"),
    "temperature of another shape": (
        lambda: jsoftmax.softmax(X, temperature=jnp.ones(3)),
        ValueError,
        r"\(3,\) is neither one number nor one per row; give it the shape \(4,\) or \(4, 1\)",
    ),
    "a temperature that float32 has not": (
        lambda: jsoftmax.softmax(X, temperature=1e-46),
        ValueError,
        "temperature is 1e-46, nearer to 0 than the normal .* of float32; write one of at least 1.18e-38",
    ),
    "a temperature below the normal numbers": (
        lambda: jsoftmax.entropy(X, temperature=TINY),
        ValueError,
        "temperature is .*e-3., nearer to 0 than .* write one of at least 1.18e-38 in absolute value",
    ),
    "a temperature without end": (
        lambda: jsoftmax.softmax(X, temperature=10**40),
        ValueError,
        "temperature is 10+; write a number up to 3.4e.38 in absolute value",
    ),
    "a key": (lambda: jsoftmax.softmax(jax.random.key(0)), TypeError, "not an array of numbers"),
    "objects": (lambda: jsoftmax.softmax(np.array([0, None])), TypeError, "not an array of numbers"),
    "words": (lambda: jsoftmax.softmax(np.array(["a"])), TypeError, "not an array of numbers"),
    "temperature 0": (lambda: jsoftmax.softmax(X, temperature=0), ValueError, "finite number, not 0"),
    "temperature inf": (lambda: jsoftmax.softmax(X, temperature=float("inf")), ValueError, "finite"),
    "weights of another shape": (
        lambda: jsoftmax.logsumexp(X, b=jnp.ones(4)),
        ValueError,
        r"do not broadcast; give b the shape \(4, 3\)",
    ),
    "ids of another shape": (
        lambda: jsoftmax.cross_entropy(X, jnp.zeros(3, int)),
        ValueError,
        r"cross_entropy\(logits=float32\[4,3\], labels=int32\[3\].*give one id for each row, shape \(4,\)",
    ),
    "one-hot integers": (
        lambda: jsoftmax.cross_entropy(X, jnp.zeros((4, 3), int)),
        ValueError,
        r"target probabilities as floats: labels\.astype\(float\)",
    ),
    "ids as floats": (
        lambda: jsoftmax.cross_entropy(X, jnp.zeros(4)),
        ValueError,
        r"class ids as integers: labels\.astype\(int\)",
    ),
    "boolean labels": (lambda: jsoftmax.cross_entropy(X, T > 0), TypeError, "integer class ids or floating"),
    "unknown reduction": (
        lambda: jsoftmax.cross_entropy(X, Y, reduction="avg"),
        ValueError,
        r"no reduction 'avg'; write one of 'none', 'mean', 'sum'",
    ),
    "ignore_index with targets": (
        lambda: jsoftmax.cross_entropy(X, T, ignore_index=-1),
        ValueError,
        "ignore_index is for class ids.*leave it out",
    ),
    "ignore_index of a wrong type": (
        lambda: jsoftmax.cross_entropy(X, Y, ignore_index=0.5),
        TypeError,
        "write one integer",
    ),
    "class weights of another shape": (
        lambda: jsoftmax.cross_entropy(X, Y, class_weights=jnp.ones(4)),
        ValueError,
        r"give one weight for each class, shape \(3,\)",
    ),
    "smoothing above 1": (
        lambda: jsoftmax.cross_entropy(X, Y, label_smoothing=1.5),
        ValueError,
        "label_smoothing is 1.5; write a number from 0 to 1",
    ),
    **{
        f"{name} of {number!r}": (
            lambda name=name, number=number: jsoftmax.cross_entropy(X, Y, **{name: number}),
            ValueError,
            f"{name} is {float(number)}.*; write",
        )
        for name, number in (
            ("label_smoothing", np.float32(2)),
            ("label_smoothing", jnp.bfloat16(-1)),
            ("z_loss", np.float32(-1)),
            ("z_loss", jnp.float32(np.inf)),
            ("soft_cap", np.array(-30.0)),
            ("soft_cap", jnp.int32(0)),
            ("temperature", np.int64(0)),
            ("temperature", jnp.float32(np.nan)),
        )
    },
    "a temperature of a head": (
        lambda: jsoftmax.linear_row_statistics(X, X.T, Y, temperature=ZERO),
        ValueError,
        "linear_row_statistics.*temperature is 0.0; write a finite number, not 0",
    ),
    "a temperature of an evaluation": (
        lambda: evaluation.update(evaluation.empty(), X, Y, temperature=np.float32(np.inf)),
        ValueError,
        "evaluation.update.*temperature is inf; write a finite number",
    ),
    "a temperature of two": (
        lambda: jsoftmax.kl_divergence(X, X, temperature=ZERO),
        ValueError,
        "temperature is 0.0",
    ),
    "negative z-loss": (lambda: jsoftmax.cross_entropy(X, Y, z_loss=-1.0), ValueError, "from 0 up"),
    "soft cap below 0": (
        lambda: jsoftmax.row_statistics(X, Y, soft_cap=-30.0),
        ValueError,
        r"row_statistics\(.*soft_cap is -30.0; write a number above 0",
    ),
    "soft cap of another shape": (
        lambda: jsoftmax.cross_entropy(X, Y, soft_cap=jnp.ones(3)),
        ValueError,
        "neither one number nor one per row",
    ),
    "weights of a loss of single logits": (
        lambda: jsoftmax.binary_cross_entropy(X, T, weights=jnp.ones(4)),
        ValueError,
        r"neither one number nor one per entry; give it the shape \(4, 3\), or one that broadcasts to it",
    ),
    "targets for log_prob": (
        lambda: jsoftmax.log_prob(X, T),
        TypeError,
        r"dtype float32; give class ids as integers, one for each row, shape \(4,\), of one-hot labels "
        r"labels\.argmax\(1\), or call jsoftmax\.cross_entropy with target probabilities as floats\.",
    ),
    "one-hot integers for log_prob": (
        lambda: jsoftmax.log_prob(X, T.astype(int)),
        ValueError,
        r"labels\.argmax\(1\), or call jsoftmax\.cross_entropy .* floats: labels\.astype\(float\)",
    ),
    "float ids for log_prob": (
        lambda: jsoftmax.log_prob(X, jnp.zeros(4)),
        TypeError,
        r"class ids as integers: labels\.astype\(int\)\.(?m:$)",
    ),
    "one-hot integers in an evaluation": (
        lambda: evaluation.update(evaluation.empty(), X, T.astype(int)),
        ValueError,
        r"of one-hot labels labels\.argmax\(1\), or target probabilities as floats: labels\.astype\(float\)",
    ),
    "targets for a temperature": (
        lambda: evaluation.fit_temperature(X.T, T.T, axis=0),
        TypeError,
        r"labels\.argmax\(0\), or call jsoftmax\.cross_entropy",
    ),
    "targets of no shape at all": (
        lambda: jsoftmax.cross_entropy(X, jnp.zeros((4, 2))),
        ValueError,
        r"of shape \(4, 2\) for logits of shape \(4, 3\); give them the shape \(4, 3\)\.(?m:$)",
    ),
    "labels first": (
        lambda: jsoftmax.cross_entropy(Y, X),
        TypeError,
        r"the two look swapped: write cross_entropy\(labels, logits\)",
    ),
    "labels first, and an axis": (
        lambda: evaluation.fit_temperature(Y, X, axis=1),
        TypeError,
        r"swapped: write evaluation\.fit_temperature\(labels, logits\)",
    ),
    "labels before the weight": (
        lambda: jsoftmax.linear_cross_entropy(X, Y, X.T),
        ValueError,
        "give it two axes.*the labels come third",
    ),
    "pictures with classes along axis 1": (
        lambda: jsoftmax.cross_entropy(jnp.zeros((2, 3, 5, 4)), jnp.zeros((2, 5, 4), int)),
        ValueError,
        r"write axis=1 if the classes lie there, or give one id for each row, shape \(2, 3, 5\)",
    ),
    "classes along one of two axes": (
        lambda: jsoftmax.log_prob(jnp.zeros((3, 3, 5)), jnp.zeros((3, 5), int)),
        ValueError,
        "write axis=0 or 1 if",
    ),
    "a column of ids": (
        lambda: jsoftmax.cross_entropy(X, Y[:, None]),
        ValueError,
        r"shape \(4,\): labels\.reshape\(\(4,\)\)",
    ),
    "a first argument to broadcast": (
        lambda: jsoftmax.kl_divergence(X[0], X),
        ValueError,
        r"give both the same shape, as jnp\.broadcast_to\(p_logits, \(4, 3\)\)",
    ),
    "two shapes that no broadcast mends": (
        lambda: jsoftmax.js_divergence(X, X.T),
        ValueError,
        r"q_logits of shape \(3, 4\); give both the same shape\.(?m:$)",
    ),
    "a state that is none": (
        lambda: online.absorb(None, X),
        TypeError,
        r"online\.absorb\(.*state is NoneType, not a State; begin with online\.empty",
    ),
    "an array for a state": (lambda: online.finish(X), TypeError, r"online\.finish\(state=float32\[4,3\]\)"),
    "a mesh axis by number": (lambda: jsoftmax.entropy(X, axis_name=7), ValueError, "7 is not a mesh axis"),
    "scales": (
        lambda: jsoftmax.softmax(X.astype(jnp.float8_e8m0fnu)),
        TypeError,
        r"x is float8_e8m0fnu, a type without a sign or a zero; write x\.astype\(jnp\.float32\)",
    ),
    "scales of a weight": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T.astype(jnp.float8_e8m0fnu), Y),
        TypeError,
        "weight is float8_e8m0fnu, a type without",
    ),
    "a state of scales": (lambda: online.empty((), jnp.float8_e8m0fnu), TypeError, "write a float type"),
    "6 bits": (
        lambda: jsoftmax.entropy(np.zeros((4, 3), jnp.float6_e2m3fn)),
        TypeError,
        r"float6_e2m3fn, a type that XLA lacks; write logits\.astype\(np\.float32\)",
    ),
    "probabilities in 4 bits": (
        lambda: jsoftmax.softmax(X.astype(jnp.float4_e2m1fn)),
        TypeError,
        r"the result would be float4_e2m1fn, as x is, .* write x\.astype\(jnp\.float32\)",
    ),
    "targets that do not broadcast": (
        lambda: jsoftmax.softmax_cross_entropy(X, jnp.zeros((4, 2))),
        ValueError,
        r"softmax_cross_entropy\(.*target probabilities of shape \(4, 2\)",
    ),
    "two shapes": (
        lambda: jsoftmax.kl_divergence(X, X[0]),
        ValueError,
        r"kl_divergence\(p_logits=float32\[4,3\], q_logits=float32\[3\], axis=-1, reduction='none'\): "
        r"p_logits of shape \(4, 3\) and q_logits of shape \(3,\); give both the same shape",
    ),
    "a mesh axis without a mesh": (
        lambda: jsoftmax.softmax(X, axis_name="model"),
        ValueError,
        r"axis_name='model'\): axis_name 'model' is not a mesh axis here; call it within a jax\.shard_map",
    ),
    "no classes in two rows": (
        lambda: jsoftmax.js_divergence(jnp.zeros((4, 0)), jnp.zeros((4, 0))),
        ValueError,
        "no classes",
    ),
    "complex logits of the second": (
        lambda: jsoftmax.js_divergence(X, X.astype(jnp.complex64)),
        TypeError,
        r"q_logits is complex",
    ),
    "features that do not meet": (
        lambda: jsoftmax.linear_cross_entropy(X, jnp.zeros((5, 3)), Y),
        ValueError,
        r"hidden of shape \(4, 3\) for a weight of 5 features; give hidden 5 .* or write vocab_axis=0",
    ),
    "a weight of one axis": (
        lambda: jsoftmax.linear_row_statistics(X, jnp.zeros(3), Y),
        ValueError,
        r"linear_row_statistics\(.*weight of shape \(3,\); give it two axes",
    ),
    "a bias of another shape": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T, Y, bias=jnp.zeros(3)),
        ValueError,
        r"bias of shape \(3,\) for 4 classes; give it the shape \(4,\)",
    ),
    "a sampled gradient without a key": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T, Y, gradient="sampled"),
        TypeError,
        r"there is no key, and the gradient is random; write key=jax\.random\.key\(0\), and another for",
    ),
    "several keys": (
        lambda: jsoftmax.linear_cross_entropy(
            X, X.T, Y, gradient="sampled", key=jax.random.split(jax.random.key(0))
        ),
        TypeError,
        r"key is key<fry>\[2\], not one random key; write key=jax\.random\.key\(0\)",
    ),
    "a gradient of another name": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T, Y, gradient="approximate"),
        ValueError,
        "there is no gradient 'approximate'; write one of 'exact', 'sampled', 'truncated'",
    ),
    "a share of no classes": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T, Y, keep=0),
        ValueError,
        "keep is 0; write a number from 0 to 1, more than 0",
    ),
    "a threshold above one": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T, Y, threshold=2.0),
        ValueError,
        "threshold is 2.0; write a number from 0 to 1, 0 for all classes",
    ),
    "a third axis of the weight": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T, Y, vocab_axis=2),
        ValueError,
        "vocab_axis is 2; write -1",
    ),
    "ids that are no rows of hidden": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T, Y[:3]),
        ValueError,
        r"class ids of shape \(3,\) for rows of shape \(4,\)",
    ),
    "no classes in a head": (
        lambda: jsoftmax.linear_cross_entropy(X, jnp.zeros((3, 0)), Y),
        ValueError,
        "no classes",
    ),
    "a block of nothing": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T, Y, block_size=0),
        ValueError,
        "block_size is 0; write a number of rows",
    ),
    "an unknown backend": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T, Y, backend="triton"),
        ValueError,
        "there is no backend 'triton'; write one of 'blocked', 'xla'",
    ),
    "a backend by number": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T, Y, backend=3),
        ValueError,
        "there is no backend 3; write one of",
    ),
    "an axis that is no integer": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T, Y, vocab_axis=1.0),
        ValueError,
        "vocab_axis is 1.0; write -1",
    ),
    "an axis that is one of NumPy's floats": (
        lambda: jsoftmax.linear_cross_entropy(X, X.T, Y, vocab_axis=np.float32(1)),
        ValueError,
        "vocab_axis is np.float32.1.0.; write -1",
    ),
    "a plan for half a row": (
        lambda: jsoftmax.linear_plan(0.5, 512, 1000),
        ValueError,
        r"linear_plan\(rows=0.5.*rows is 0.5; write an integer",
    ),
    "float ids": (
        lambda: jsoftmax.softmax_cross_entropy_with_integer_labels(X, T),
        TypeError,
        r"softmax_cross_entropy_with_integer_labels\(.*integer",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_call_is_refused_in_words(call, kind, message):
    for attempt in (call, jax.jit(call)):
        with pytest.raises(kind, match=rf"^jsoftmax\.(?s:.*){message}"):
            attempt()


def test_nothing_is_computed_before_the_refusal():
    huge = jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32)
    with pytest.raises(ValueError, match="axis 2"):
        jax.eval_shape(lambda x: jsoftmax.softmax(x, axis=2), huge)


@pytest.mark.parametrize("label", [-1, -100, 3, 2**31 - 1])
def test_a_class_id_outside_the_classes_is_nan_in_its_row_alone(label):
    labels = Y.at[1].set(label)
    losses = jsoftmax.cross_entropy(X, labels)
    gradient = jax.grad(lambda x: jsoftmax.cross_entropy(x, labels).sum())(X)
    for values in (losses, gradient):
        bad = np.isnan(values).reshape(4, -1)
        assert bad[1].all()
        assert not np.delete(bad, 1, axis=0).any()


LOSSES = {
    "logits": lambda labels: jsoftmax.cross_entropy(X.astype(jnp.float32), labels),
    "a head": lambda labels: jsoftmax.linear_cross_entropy(
        jnp.eye(len(X), dtype=jnp.float32), X.astype(jnp.float32), labels, block_size=(3, 2)
    ),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_wide_class_ids_do_not_wrap(loss, x64):
    labels = jnp.array([2**32, 0, 1, -(2**32)])
    np.testing.assert_array_equal(np.isnan(loss(labels)), [True, False, False, True])


def _of_update(labels, **options):
    state = evaluation.update(evaluation.empty(top_k=1, bins=None), X[:2], labels, **options)
    return evaluation.compute(state).nll


def _of_statistics(labels, **options):
    found = jsoftmax.row_statistics(X[:2], jnp.zeros(2, int))
    state = evaluation.empty(top_k=1, bins=None)
    return evaluation.compute(evaluation.update_from_statistics(state, found, labels, **options)).nll


OF_IDS = {
    "cross_entropy": lambda y, **o: jsoftmax.cross_entropy(X[:2], y, **o),
    "linear_cross_entropy": lambda y, **o: jsoftmax.linear_cross_entropy(X[:2], jnp.eye(3), y, **o),
    "update": _of_update,
    "update_from_statistics": _of_statistics,
    "fit_temperature": lambda y, **o: evaluation.fit_temperature(X[:2], y, **o),
    "softmax_cross_entropy_with_integer_labels": (
        lambda y: jsoftmax.softmax_cross_entropy_with_integer_labels(X[:2], y)
    ),
    "log_prob": lambda y: jsoftmax.log_prob(X[:2], y),
    "row_statistics": lambda y: jsoftmax.row_statistics(X[:2], y).nll,
    "linear_row_statistics": lambda y: jsoftmax.linear_row_statistics(X[:2], jnp.eye(3), y).nll,
}


@pytest.mark.share(3)
@pytest.mark.parametrize("name", OF_IDS)
def test_ids_that_32_bits_do_not_hold_are_no_classes(name):
    """Truncated, each would be class 1 or 0; only the same number can be the one to ignore."""
    of = OF_IDS[name]
    for wide in (
        np.array([1, 2**32 + 1]),
        [1, 2**32 + 1],
        np.array([1, -(2**63)]),
        np.uint64([1, 2**64 - 2**32]),
    ):
        assert np.isnan(of(wide)).any()
    assert not np.isnan(of(np.array([1, 2]))).any()
    if name not in list(OF_IDS)[:5]:
        return
    far, near = np.array([1, -(2**63)]), np.array([1, -1])
    for labels, index in (
        (far, -(2**63)),
        (far, np.int64(-(2**63))),
        (np.uint64([1, 2**63]), np.uint64(2**63)),
        ([1, 2**40], 2**40),
        (np.array([-1, 2**40, 1])[::2], jnp.int32(-1)),
    ):
        assert not np.isnan(of(labels, ignore_index=index)).any()
    for labels, index in ((far, 0), (far, -1), (far, -(2**62)), (far, jnp.int32(-1)), (near, 2**32 - 1)):
        assert np.isnan(of(labels, ignore_index=index)).any()


def test_one_wide_id_is_compared_too():
    assert np.isnan(jsoftmax.cross_entropy(X[0], 2**32 + 1))
    assert np.isnan(jsoftmax.log_prob(X[0], np.int64(2**32)))
    assert jsoftmax.cross_entropy(X[0], 2**32, ignore_index=2**32) == 0
    mixed = np.array([-1, -2, 2**32, 0])  # −1 and −2 stay
    for index, ignored in ((-1, [0]), (-2, [1]), (2**32, [2]), (2**33, [])):
        losses = jsoftmax.cross_entropy(X, mixed, ignore_index=index)
        np.testing.assert_array_equal(losses == 0, np.isin(np.arange(4), ignored))


def test_wide_integers_are_no_small_logits():
    np.testing.assert_array_equal(jsoftmax.softmax(np.array([2**40, 0])), [1, 0])
    np.testing.assert_allclose(jsoftmax.logsumexp(X[0], b=2**40), np.log(3 * 2.0**40), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint32", "uint64"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_class_ids_may_be_any_integers(loss, dtype, x64):
    labels = np.array([2, 0, 1, 1])
    np.testing.assert_array_equal(loss(jnp.asarray(labels, dtype)), loss(jnp.asarray(labels, jnp.int32)))


@pytest.mark.share(9)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint32"])
@pytest.mark.parametrize(
    "index", [1, 156, -100, -1, 2**32 - 1, 2**40, np.int64(-100), jnp.int32(-1), jnp.int8(1)]
)
def test_only_the_class_id_to_ignore_is_ignored(index, dtype):
    """A number that the type of the labels cannot hold equals none of them, not even truncated."""
    labels, logits = np.array([1, 156, 255, 2**32 - 1]).astype(dtype), jnp.zeros((4, 256))
    given = {"labels": jnp.asarray(labels), "ignore_index": index}
    wanted = [int(label) == int(index) for label in labels]
    state = evaluation.update(evaluation.empty(), logits, **given)
    for losses in (
        jsoftmax.cross_entropy(logits, **given),
        jsoftmax.linear_cross_entropy(logits, jnp.eye(256), **given),
    ):
        np.testing.assert_array_equal(losses == 0, wanted)
    assert evaluation.compute(state).weight == 4 - sum(wanted)
