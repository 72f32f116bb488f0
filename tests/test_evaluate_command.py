"""`python -m jsoftmax evaluate`, run in this process, on a linear classifier of the digits."""

import io
import json
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from test_command_line import assert_refused, run, without_extras  # noqa: F401

from jsoftmax import evaluation
from jsoftmax._cli import evaluate, evaluation_inputs, evaluation_loop, evaluation_report, main, stored_arrays
from jsoftmax._cli.errors import UserError

PICTURES = ("reliability-diagram.png", "confusion-matrix.png", "risk-coverage.png", "per-class-accuracy.png")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits():
    """Logits of a least-squares classifier, surer than right, and labels."""
    pixels, labels = load_digits(return_X_y=True)
    x = np.hstack([pixels / 16, np.ones((len(pixels), 1))])
    weights, *_ = np.linalg.lstsq(x[:300], np.eye(10)[labels[:300]], rcond=1e-6)
    return (12 * x @ weights).astype(np.float16), labels


def safetensors(path, **arrays):
    """The format by its description: the length of a header, the header, the bytes."""
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}
    header, content = {"__metadata__": {"format": "np"}}, b""
    for name, array in arrays.items():
        offsets = [len(content), len(content) + array.nbytes]
        header[name] = {"dtype": kinds[str(array.dtype)], "shape": array.shape, "data_offsets": offsets}
        content += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def command(capsys, *arguments):
    """The status, the output and the errors of a run."""
    status = main(["evaluate", *map(str, arguments)])
    return status, *capsys.readouterr()


def read_strictly(path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def assert_same(found, expected, rtol=2e-5):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(found[name], value, rtol)
        else:
            np.testing.assert_allclose(found[name], value, rtol, atol=1e-6, err_msg=name)


def assert_is_a_picture(path):
    with Image.open(path) as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50, path


@pytest.mark.long
def test_every_option_at_once_gives_the_numbers_of_the_arrays(digits, tmp_path, capsys):
    """Two batches, each filled up, beside `evaluation` on the whole arrays."""
    logits, labels = digits
    rows = len(labels)
    weights = RNG.integers(0, 4, rows).astype(np.float32)
    writers = RNG.integers(3, 12, rows)
    groups = np.array([f"writer {i}" for i in writers])
    path, out = tmp_path / "all.npz", tmp_path / "out"
    np.savez_compressed(path, logits=logits, labels=labels, weights=weights, groups=groups)
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    options = ["--weights", path, "--groups", path, "--ignore-index", 3, "--top-k", 4, "--bins", 12]
    options += ["--class-bins", 5, "--confidence-intervals", 50, "--temperature", "fit"]
    options += ["--names", tmp_path / "names.txt", "--batch-size", 900, "--out", out]
    status, printed, errors = command(capsys, path, path, *options)
    assert (status, errors) == (0, "")
    words = (
        "T = 1",
        "95 % interval",
        "seven",
        "writer 5",
        "class calibration error",
        "fit, pass 3",
        "9 are few",
    )
    assert all(word in printed for word in words)

    found = read_strictly(out / "metrics.json")
    names, numbers = np.unique(groups, return_inverse=True)
    given = {"ignore_index": 3, "weights": weights}
    temperature = float(evaluation.fit_temperature(logits, labels, **given))
    assert temperature > 1.1
    np.testing.assert_allclose(found["temperature"], temperature, rtol=1e-5)
    for key, t in (("metrics_before_fit", 1.0), ("metrics", found["temperature"])):
        state = evaluation.empty(
            10, top_k=4, bins=12, class_bins=5, confusion=True, selective=True, num_groups=len(names)
        )
        state = evaluation.update(
            state, logits, labels, groups=numbers.astype(np.int32), temperature=t, **given
        )
        assert_same(found[key], evaluation.compute(state).as_dict())
    low, high = found["confidence_intervals"]["accuracy"]
    assert low < found["metrics"]["accuracy"] < high < low + 0.1
    assert found["group_names"] == names.tolist()
    assert found["class_names"] == list(NAMES)
    assert found["files"]["labels"]["shape"] == [rows]
    for name in PICTURES:
        assert_is_a_picture(out / name)


@pytest.mark.long
def test_probabilities_and_soft_labels(digits, tmp_path, capsys):
    """Of several axes of rows, and more classes than a confusion matrix may have."""
    logits, labels = (array[:1200] for array in digits)
    p = np.asarray(jax.nn.softmax(logits.astype(np.float32) / 8))
    targets = (0.9 * np.eye(10)[labels] + 0.01).astype(np.float32)
    p, targets = p.reshape(3, 400, 10), targets.reshape(3, 400, 10)
    safetensors(tmp_path / "p.safetensors", logits=p, targets=targets)
    file = tmp_path / "p.safetensors"
    arguments = (file, f"{file}:targets", "--probabilities", "--out", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_loop, "MOST_CONFUSED", 9)
        status, printed, _ = command(capsys, *arguments)
    assert status == 0
    assert "no confusion matrix" in printed
    assert not (tmp_path / "confusion-matrix.png").exists()
    state = evaluation.empty(10, selective=True)
    state = evaluation.update(state, p, targets, probabilities=True)
    assert_same(read_strictly(tmp_path / "metrics.json")["metrics"], evaluation.compute(state).as_dict())


def test_what_is_not_finite_is_counted(digits, tmp_path, capsys):
    logits, labels = digits[0].copy(), digits[1]
    logits[700, 2], logits[1200, 0], logits[1500, 1] = np.nan, np.inf, -np.inf
    np.save(tmp_path / "x.npy", logits)
    np.save(tmp_path / "y.npy", labels)
    status, _, errors = command(capsys, tmp_path / "x.npy", tmp_path / "y.npy", "--out", tmp_path)
    assert_refused(status, errors, "2 rows have NaN or +inf, the first is row 700")
    logits[1200, 0] = 0
    np.save(tmp_path / "x.npy", logits.reshape(3, 599, 10))
    np.save(tmp_path / "y.npy", labels.reshape(3, 599))
    inputs = load(tmp_path / "x.npy", tmp_path / "y.npy")
    with pytest.raises(UserError, match=r"row \[1, 101\] has NaN or \+inf"):
        inputs.check_values(500)
    load(tmp_path / "x.npy", tmp_path / "y.npy", ignore_index=int(labels[700])).check_values(500)


def load(logits, labels, weights=None, groups=None, ignore_index=None, probabilities=False):
    paths = [None if path is None else str(path) for path in (logits, labels, weights, groups)]
    return evaluation_inputs.load(*paths, ignore_index, probabilities)


ARRAYS = {
    "float32": RNG.normal(size=(7, 3)).astype(np.float32),
    "float16": RNG.normal(size=(2, 5, 3)).astype(np.float16),
    "bfloat16": np.asarray(jnp.asarray(RNG.normal(size=(7, 3)), jnp.bfloat16)),
    "big-endian": RNG.normal(size=(7, 3)).astype(">f4"),
    "ids": RNG.integers(0, 9, 11),
    "words": np.array(["a", "bc", "déf"] * 3),
}
WRITERS = {
    "x.npy": lambda path, array: np.save(path, array),
    "x.npz": lambda path, array: np.savez(path, logits=array, other=array[:1]),
    "packed.npz": lambda path, array: np.savez_compressed(path, array),
    "x.safetensors": lambda path, array: safetensors(path, a=array[:1], logits=array),
}


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("kind", ARRAYS)
def test_every_file_is_read_in_blocks(file, kind, tmp_path):
    array = ARRAYS[kind]
    if file.endswith("safetensors") and kind in ("big-endian", "words"):
        return  # which the format does not have
    WRITERS[file](tmp_path / file, array)
    stored = stored_arrays.find(str(tmp_path / file), "logits")
    assert stored.shape == array.shape
    axes = max(array.ndim - 1, 1)
    for _ in range(2):  # the file can be read again
        blocks = list(stored.blocks(4, axes))
        assert {len(block) for block in blocks[:-1]} == {4}
        flat = array.reshape(-1, *array.shape[axes:])
        np.testing.assert_array_equal(np.concatenate(blocks), flat.astype(array.dtype.newbyteorder("=")))
        assert all(block.dtype.isnative for block in blocks)


def test_a_batch_is_read_while_the_one_before_is_in_use():
    log = []

    def batches():
        for i in range(3):
            log.append(f"read {i}")
            yield i

    for i in evaluation_loop.ahead(batches()):
        while f"read {i + 1}" not in log and i < 2:
            pass
        log.append(f"used {i}")
    assert log == ["read 0", "read 1", "used 0", "read 2", "used 1", "used 2"]


def test_batches_are_of_a_size_that_needs_no_filling():
    measures = evaluation_loop.Measures(5, 15, None, None)
    for classes in (2, 10, 1000, 50257, 10**8):
        size = evaluation_loop.batch_size(classes, measures)
        assert size & (size - 1) == 0
        assert size == 1 or size * classes <= evaluation_loop.LARGEST
    many = evaluation_loop.batch_size(10, measures._replace(replicates=1000))
    assert many * 1000 <= evaluation_loop.LARGEST


def test_the_progress_on_a_pipe(capsys, monkeypatch):
    monkeypatch.setattr(evaluation_report, "PLAIN_SECONDS", 0.0)
    with evaluation_report.progress(evaluate.console.screen(), 30, "evaluated") as advance:
        for _ in range(3):
            advance(10)
    middle, last = capsys.readouterr().out.splitlines()
    assert middle.startswith("evaluated: 20 of 30 rows, ")
    assert middle.endswith(" s left")
    assert last.startswith("evaluated: 30 rows in ")


def test_ctrl_c_ends_the_command(digits, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation_loop, "measured", interrupted)
    np.savez(tmp_path / "all.npz", logits=digits[0], labels=digits[1])
    file = tmp_path / "all.npz"
    assert command(capsys, file, file, "--out", tmp_path)[0] == 130


GOOD, IDS = RNG.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 2, 3, 3, 1])
P = np.asarray(jax.nn.softmax(GOOD))
REFUSED = {  # logits, labels, further options, words of the message
    "shapes": (GOOD, IDS[:5], (), ("(6, 4)", "(5,)", "do not fit")),
    "classes first": (GOOD.T.copy(), IDS, (), ("(4, 6)", "(6,)", "transpose")),
    "a column of labels": (GOOD, IDS[:, None], (), ("(6, 1)", "labels[..., 0]")),
    "labels from 1": (GOOD, IDS + 1, (), ("from 1 to 4", "save labels - 1")),
    "labels outside": (GOOD, IDS + np.array([0, 0, 7, 8, 0, 0]), (), ("2 labels", "0 to 3", "9, in row 2")),
    "a label outside": (GOOD, IDS - 5 * (IDS == 2), (), ("a label is outside 0 to 3: -3, in row 2",)),
    "a usual mark": (GOOD, np.where(IDS == 1, -100, IDS), (), ("2 labels", "--ignore-index -100")),
    "float labels": (GOOD, IDS / 1, (), ("(6,)", "float64", "astype(int)")),
    "one-hot integers": (GOOD, np.eye(4, dtype=int)[IDS], (), ("int64", "argmax")),
    "the wrong order": (IDS, GOOD, (), ("int64", "logits first")),
    "one row": (GOOD[0], IDS[0], (), ("(4,)", "()", "(rows, classes)")),
    "no rows": (GOOD[:0], IDS[:0], (), ("(0, 4)", "no rows")),
    "all ignored": (GOOD, 0 * IDS, ("--ignore-index", 0), ("no row counts",)),
    "probabilities": (P, IDS, (), ("probabilities, not logits", "--probabilities")),
    "no probabilities": (GOOD, IDS, ("--probabilities",), ("row 0", "sum", "leave out --probabilities")),
    "soft labels": (GOOD, P * 2, (), ("row 0", "no distribution", "sum 2")),
    "soft labels, ignored": (GOOD, P, ("--ignore-index", 0), ("--weights",)),
    "soft labels, fit": (GOOD, P, ("--temperature", "fit"), ("class ids",)),
    "Fortran order": (np.asfortranarray(GOOD), IDS, (), ("Fortran", "ascontiguousarray")),
    "text": (np.array([["a"] * 4] * 6), IDS, (), ("<U1", "not floats")),
    "top-k": (GOOD, IDS, ("--top-k", 5), ("--top-k 5", "4 classes")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_do_not_fit_are_refused(case, tmp_path, capsys):
    logits, labels, options, words = REFUSED[case]
    np.save(tmp_path / "x.npy", logits)
    np.save(tmp_path / "y.npy", labels)
    options = ("--out", tmp_path, *options)
    status, _, errors = command(capsys, tmp_path / "x.npy", tmp_path / "y.npy", *options)
    assert_refused(status, errors, *words)
    assert not list(tmp_path.glob("*.png"))


BESIDE = {  # an option, what its file has, words of the message
    "weights below 0": ("--weights", np.array([1, 1, -2, 1, 1, 1.0]), ("the weight of row 2 is -2",)),
    "weights of NaN": ("--weights", np.array([1, 1, 1, np.nan, 1, 1]), ("the weight of row 3 is nan",)),
    "weights of 0": ("--weights", np.zeros(6), ("no row counts",)),
    "weights of another length": ("--weights", np.ones(5), ("weights of shape (5,)", "(6, 4)", "(6,)")),
    "words as weights": ("--weights", np.array(["a"] * 6), ("<U1", "numbers")),
    "groups of another length": ("--groups", np.ones(5, int), ("groups of shape (5,)", "(6,)")),
    "groups of floats": ("--groups", np.ones(6), ("float64", "integers or strings")),
    "names": ("--names", b"a\nb\n", ("2 lines for 4 classes",)),
    "names in Latin-1": ("--names", b"\xe9\n" * 4, ("UTF-8",)),
    "no names": ("--names", None, ("cannot be read",)),
}


@pytest.mark.parametrize("case", BESIDE)
def test_other_files_that_do_not_fit_are_refused(case, tmp_path, capsys):
    option, content, words = BESIDE[case]
    np.savez(tmp_path / "both.npz", logits=GOOD, labels=IDS)
    path = tmp_path / "beside.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    files = [tmp_path / "both.npz"] * 2
    status, _, errors = command(capsys, *files, option, path, "--out", tmp_path)
    assert_refused(status, errors, *words)


def packed(array, change=lambda content: content, name="x.npy"):
    """The bytes of an .npz file with one compressed array."""
    content, stream = io.BytesIO(), io.BytesIO()
    np.save(content, array)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, change(content.getvalue()))
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


SCALES = struct.pack("<Q", 70) + b'{"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'.ljust(70) + b"0"
FILES = {  # the name of the file of logits, its bytes, words of the message
    "no file": ("x.npy", None, ("no such file",)),
    "a folder": ("x.npy/.npy", None, ("x.npy/.npy",)),
    "another type": ("x.csv", b"1,2", ("unknown file type", ".npy, .npz, .safetensors")),
    "an empty file": ("x.npy", b"", ("is empty",)),
    "no npy": ("x.npy", b"hello, world", ("no .npy file",)),
    "objects": ("x.npy", npy(np.array([{}, None])), ("holds object", "numbers")),
    "truncated npy": ("x.npy", npy(GOOD)[:-1], ("is truncated", "takes 96 bytes, it has 95")),
    "truncated header": ("x.npy", npy(GOOD)[:40], ("truncated",)),
    "truncated npz": ("x.npz", packed(GOOD)[:-30], ("truncated", "no .npz file")),
    "npz of a short array": ("x.npz", packed(GOOD, lambda content: content[:-5]), ("takes 96 bytes",)),
    "npz that fails its checksum": (
        "x.npz",
        packed(GOOD).replace(packed(GOOD)[120:150], bytes(30), 1),
        ("x.npz",),
    ),
    "npz without arrays": ("x.npz", packed(GOOD)[-22:-14] + bytes(14), ("x.npz",)),
    "no such array": ("x.npz:logits", packed(GOOD), ("no array 'logits'", "but x")),
    "safetensors": ("x.safetensors", b"0" * 20, ("no .safetensors file",)),
    "an unknown dtype": ("x.safetensors", SCALES, ("dtype F4", "BF16")),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_cannot_be_read_are_refused(case, tmp_path, capsys):
    name, content, words = FILES[case]
    if content is not None:
        (tmp_path / name.partition(":")[0]).write_bytes(content)
    np.save(tmp_path / "y.npy", IDS)
    status, _, errors = command(capsys, tmp_path / name, tmp_path / "y.npy", "--out", tmp_path)
    assert_refused(status, errors, *words)


def test_several_arrays_need_a_name(tmp_path, capsys):
    file = safetensors(tmp_path / "x.safetensors", first=GOOD, second=GOOD, labels=IDS)
    status, _, errors = command(capsys, file, file)
    assert_refused(status, errors, "holds first, second, labels", f"{file}:first")
    file.write_bytes(file.read_bytes()[:-1])
    status, _, errors = command(capsys, f"{file}:second", file)
    assert_refused(status, errors, "is truncated", "takes 48 bytes, it has 47")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--confidence-intervals", "x.npy", "y.npy"), "write the files first"),
        (("x.npy", "y.npy", "--temperature", "0"), "must be above 0"),
        (("x.npy", "y.npy", "--bins", "0"), "must be at least 1"),
    ],
)
def test_options_out_of_range(options, words, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", *options])
    assert words in capsys.readouterr().err


def test_without_the_extra_evaluate_names_it(without_extras):  # noqa: F811
    outcome = run("evaluate", "x.npy", "y.npy", folder=without_extras)
    assert_refused(outcome.returncode, outcome.stderr, 'pip install "jsoftmax[evaluate]"')
