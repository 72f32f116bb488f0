"""The command line as users run it: a subprocess, on the digits, on good and bad IDX files and texts."""

import argparse
import dataclasses
import gzip
import os
import re
import shutil
import struct
import subprocess
import sys
from string import ascii_lowercase, ascii_uppercase

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import IN_FULL, flags
from PIL import Image

import jsoftmax
from jsoftmax._cli import (
    check,
    data,
    figures,
    functions,
    language,
    language_figures,
    language_training,
    main,
    models,
    options,
    text,
    train,
    training,
    verification,
)
from jsoftmax._cli.errors import UserError
from jsoftmax._cli.models import Network
from jsoftmax._cli.training import Settings

PICTURES = ("learning-curves.png", "confusion-matrix.png", "predictions.png", "jacobian.png")


def run(*arguments, folder, more_flags=""):
    command = [sys.executable, "-W", "error", "-m", "jsoftmax", *map(str, arguments)]
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {more_flags}"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def assert_refused(status, stderr, *words):
    """Status 2, and one line on stderr that contains these words."""
    assert status == 2
    assert len(stderr.splitlines()) == 1, stderr
    for word in words:
        assert word in stderr


def assert_is_a_picture(path):
    with Image.open(path) as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 50, path


@pytest.fixture
def refuse(capsys):
    """Assert that `train` with these arguments, in this process, fails with these words."""

    def refuse(*arguments, words):
        assert_refused(main(["train", *map(str, arguments)]), capsys.readouterr().err, *words)

    return refuse


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "least"), [pytest.param("linear", 0.95, marks=pytest.mark.full), ("mlp", 0.97)]
)
def test_the_main_job_learns_the_digits(model, least, tmp_path):
    more = ("--hidden", 64, "--epochs", 20) if model == "mlp" else ()
    outcome = run("train", "--model", model, *more, folder=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert not outcome.stderr
    assert float(re.search(r"test accuracy ([\d.]+)", outcome.stdout)[1]) >= least
    for name in ("softmax", "log_softmax", "logsumexp", "cross_entropy, class ids", "output layer, dW"):
        assert re.search(rf"^ +{name} .* ok", outcome.stdout, re.MULTILINE), name
    assert ("hidden layer, dW" in outcome.stdout) == (model == "mlp")
    for name in PICTURES:
        assert_is_a_picture(tmp_path / "jsoftmax-out" / name)


@pytest.mark.long
def test_the_same_seed_gives_the_same_numbers():
    def numbers(seed):
        settings = Settings(Network((16,), dropout=0.2), 1, 64, 2e-2, 1e-4, seed)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return training.train(data.digits(), settings, lambda number, epoch: None)

    first, again, other = numbers(3), numbers(3), numbers(4)
    chex.assert_trees_all_equal(first, again)
    assert first[1] != other[1]


def test_every_layer_is_verified(monkeypatch):
    """Here with a wrong gradient in the second of four layers."""
    right, network = models.backward, Network((9, 8, 7), "tanh")

    def wrong(parameters, *rest):
        gradients, errors = right(parameters, *rest)
        second = gradients[1]._replace(bias=1.001 * gradients[1].bias)
        return (gradients[0], second, *gradients[2:]), errors

    monkeypatch.setattr(models, "backward", wrong)
    random = np.random.default_rng(0)
    parameters = network.initialise(jax.random.key(0), 6, 5)
    x, labels = jnp.float32(random.normal(size=(20, 6))), jnp.int32(random.integers(0, 5, 20))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = list(verification.compare_backward_pass(network, parameters, x, labels, 1e-3))
    layers = ("output layer", "hidden layer 3", "hidden layer 2", "hidden layer 1")
    assert [c.quantity for c in found] == [
        f"{name}, {part}" for name in layers for part in ("error", "dW", "db")
    ]
    assert [c.quantity for c in found if not c.ok] == ["hidden layer 2, db"]


LABELS = np.arange(40, dtype=np.uint8) % 10
LETTERS = np.arange(78, dtype=np.uint8) % 26 + 1
QMNIST = np.stack([np.arange(40) % 10, *np.full((7, 40), 99)], axis=1).astype(np.int32)


def images_of(part, count):
    return np.random.default_rng(len(part)).integers(0, 256, (count, 7, 5), dtype=np.uint8)


def write_set(folder, names="{}-{}-{}", parts=("train", "t10k"), labels=LABELS, **changes):
    """Random images and these labels in IDX files; `names` takes part, "images" or "labels", and type.

    `changes` maps the name of a file (with _ for dashes) to a function of its bytes.
    """
    for part in parts:
        of_labels = "idx2-int" if labels.ndim == 2 else "idx1-ubyte"
        for kind, array, ending in (
            ("images", images_of(part, len(labels)), "idx3-ubyte"),
            ("labels", labels, of_labels),
        ):
            code, dtype = (0x0C, ">i4") if array.dtype == np.int32 else (0x08, ">u1")
            content = struct.pack(f">{1 + array.ndim}I", code << 8 | array.ndim, *array.shape)
            content += array.astype(dtype).tobytes()
            path = folder / names.format(part, kind, ending)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = changes.get(path.name.replace("-", "_"), lambda content: content)(content)
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return folder


TEST = ("train", "test")
SETS = {  # how it is written, its name, its classes
    "mnist": ({}, "mnist", range(10)),
    "packed": ({"names": "{}-{}-{}.gz"}, "mnist", range(10)),
    "dots": ({"names": "{}-{}.{}"}, "mnist", range(10)),
    "folders of the files' names": ({"names": "{0}-{1}-{2}/{0}-{1}.{2}"}, "mnist", range(10)),
    "test for t10k": ({"parts": TEST}, "mnist", range(10)),
    "one class is missing": ({"labels": LABELS[LABELS != 3]}, "mnist", (0, 1, 2, 4, 5, 6, 7, 8, 9)),
    "int32": ({"labels": np.int32(LABELS) + 1000}, "mnist", range(1000, 1010)),
    "emnist": (
        {"names": "emnist-letters-{}-{}-{}.gz", "parts": TEST, "labels": LETTERS},
        "emnist-letters",
        range(1, 27),
    ),
    "qmnist": ({"names": "qmnist-{}-{}-{}", "parts": TEST, "labels": QMNIST}, "qmnist", range(10)),
    "a set that holds the word train": ({"names": "my-train-set_{}-{}-{}"}, "my-train-set", range(10)),
}


@pytest.mark.parametrize(("written", "name", "classes"), SETS.values(), ids=SETS)
def test_a_set_is_read_as_people_have_it(written, name, classes, tmp_path):
    folder = write_set(tmp_path, **written)
    (tmp_path / "._train-images-idx3-ubyte").touch()  # as macOS leaves such files
    found, upright = data.read("mnist", folder), data.read("mnist", folder, transpose=True)
    assert found.name == name
    labels = written.get("labels", LABELS)
    for part, examples, other in zip(
        written.get("parts", ("train", "t10k")),
        (found.train, found.test),
        (upright.train, upright.test),
        strict=True,
    ):
        assert examples.classes == tuple(classes)
        assert examples.labels.dtype == np.int32
        true = labels if labels.ndim == 1 else labels[:, 0]
        np.testing.assert_array_equal(np.array(examples.classes)[examples.labels], true)
        images = images_of(part, len(labels)) / np.float32(255)
        np.testing.assert_array_equal(examples.images, images, strict=True)
        np.testing.assert_array_equal(other.images, images.transpose(0, 2, 1), strict=True)


@pytest.mark.full
def test_letters_are_learnt_under_their_own_numbers(tmp_path):
    folder = write_set(tmp_path / "emnist", **SETS["emnist"][0])
    outcome = run("train", "--data", "mnist", "--path", folder, "--epochs", 1, folder=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert "78 training and 78 test images of 7 x 5 pixels; 26 classes, labels 1 to 26;" in outcome.stdout
    assert "--data emnist turns them upright" in outcome.stdout
    mistakes = re.findall(r"^ +(\d+) +(\d+) +\d+ +3 *$", outcome.stdout, re.MULTILINE)
    assert len(mistakes) == 10
    assert {int(label) for pair in mistakes for label in pair} <= set(range(1, 27))
    for name in PICTURES:
        assert_is_a_picture(tmp_path / "jsoftmax-out" / name)


def test_many_classes_keep_their_pictures_small():
    """A matrix without numbers; every table fits the screen; names are given as ranges."""
    confusion = np.random.default_rng(0).integers(0, 9, (31, 31))
    assert max(figures.confusion_matrix(confusion, range(31)).get_size_inches()) < 7
    assert len(train.confusion_table(confusion, range(31)).columns) == 4
    assert len(train.confusion_table(confusion[:12, :12], range(12)).columns) == 13
    for classes, words in (
        (range(10), "0 to 9"),
        ((0, 1, 5, 6, 7), "0, 1, 5 to 7"),
        (range(0, 40, 2), "0, 2, 4, 6, 8, 10, 12, 14, 12 more"),
        ("0123ABCabx", "0 to 3, A to C, a, b, x"),
        (("o", "ki", "su"), "o, ki, su"),
    ):
        assert data.described(tuple(classes)) == words


MALFORMED = {
    "truncated": ({"train_images_idx3_ubyte": lambda data: data[:-1]}, "train-images-idx3-ubyte"),
    "header cut off": ({"t10k_labels_idx1_ubyte": lambda data: data[:5]}, "t10k-labels-idx1-ubyte"),
    "empty": ({"train_labels_idx1_ubyte": lambda data: b""}, "train-labels-idx1-ubyte"),
    "trailing bytes": ({"train_images_idx3_ubyte": lambda data: data + b"\0"}, "train-images-idx3-ubyte"),
    "wrong magic": (
        {"train_images_idx3_ubyte": lambda data: b"\0\0\x08\x01" + data[4:]},
        "magic number 2049, expected 2051",
    ),
    "labels of type float": (
        {"train_labels_idx1_ubyte": lambda data: b"\0\0\x0d\x01" + data[4:]},
        "magic number 3329, expected 2049 or 3073 or 3074",
    ),
    "counts differ": (
        {"train_labels_idx1_ubyte": lambda data: data[:4] + struct.pack(">I", 39) + data[8:-1]},
        "39 labels",
    ),
    "a class of the test images alone": (
        {"t10k_labels_idx1_ubyte": lambda data: data[:-1] + b"\x0a"},
        "label 10 at position 39, expected a label of the training images, 0 to 9",
    ),
    "one class": ({"labels": np.full(40, 7, np.uint8)}, "1 different labels (7)"),
    "negative": ({"labels": np.int32(LABELS) - 1}, "label -1 at position 0"),
    "columns": ({"labels": QMNIST[:, :3]}, "3 columns"),
    "more classes than are drawn": ({"labels": np.arange(1001, dtype=np.int32)}, "1001 different labels"),
}


@pytest.mark.parametrize(("changes", "word"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_one_line(changes, word, tmp_path, refuse):
    folder = write_set(tmp_path / "mnist", **changes)
    refuse("--data", "mnist", "--path", folder, "--out", tmp_path / "out", words=[word])


def test_a_corrupt_gz_is_one_line(tmp_path, refuse):
    folder = write_set(tmp_path / "mnist", names="{}-{}-{}.gz")
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    refuse("--data", "mnist", "--path", folder, "--out", tmp_path / "out", words=[path.name])


def test_missing_folders_and_files_are_one_line(tmp_path, refuse):
    out = ("--out", tmp_path / "out")
    nowhere, empty, file = tmp_path / "nowhere", tmp_path / "empty", tmp_path / "a-file"
    empty.mkdir()
    file.touch()
    refuse("--data", "mnist", "--path", nowhere, *out, words=[f"{nowhere}: no such folder"])
    refuse("--data", "mnist", "--path", file, *out, words=[f"{file}: not a folder"])
    refuse("--data", "mnist", "--path", empty, *out, words=["train-images-idx3-ubyte; the folder is empty"])
    refuse("--data", "mnist", *out, words=["--path"])
    folder = write_set(tmp_path / "MNIST" / "raw")
    refuse("--data", "mnist", "--path", tmp_path / "MNIST", *out, words=["the folder holds raw/"])
    (folder / "t10k-labels-idx1-ubyte").unlink()
    held = "t10k-images-idx3-ubyte, train-images-idx3-ubyte, train-labels-idx1-ubyte"
    refuse(
        "--data",
        "mnist",
        "--path",
        folder,
        *out,
        words=[f"{folder / 't10k-labels-idx1-ubyte'}: no such file", f"the folder holds {held}"],
    )
    refuse("--out", file, words=["a-file"])


def test_of_several_sets_one_is_chosen(tmp_path, refuse):
    """A part that is missing is not taken from the files of another set."""
    folder = write_set(tmp_path)
    write_set(folder, names="emnist-letters-{}-{}-{}", parts=TEST, labels=LETTERS)
    write_set(folder, names="qmnist-{}-{}-{}", parts=("train",), labels=QMNIST)
    command = ("--data", "mnist", "--path", folder, "--out", tmp_path / "out")
    refuse(*command, words=["3 sets, choose one by --set emnist-letters or mnist or qmnist"])
    refuse(*command, "--set", "kmnist", words=["no set kmnist", "emnist-letters or mnist or qmnist"])
    refuse(*command, "--set", "qmnist", words=["qmnist-test-images-idx3-ubyte: no such file"])
    assert data.read("mnist", folder, "mnist").train.classes == tuple(range(10))
    assert data.read("mnist", folder, "EMNIST-Letters").train.classes == tuple(range(1, 27))


EMNIST = {"parts": TEST, "names": "gzip/emnist-{}-{{}}-{{}}-{{}}.gz"}
BALANCED = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
NAMED = {  # --data, the files' name in the set, the labels, --set, the name, the classes
    "emnist": ("emnist", "balanced", np.arange(47), None, "emnist-balanced", tuple(BALANCED)),
    "letters": ("emnist", "letters", LETTERS, "letters", "emnist-letters", tuple(ascii_uppercase)),
    "by class": (
        "emnist",
        "byclass",
        np.arange(62),
        "emnist-ByClass",
        "emnist-byclass",
        (*BALANCED[:36], *ascii_lowercase),
    ),
    "kmnist": ("kmnist", None, LABELS, None, "kmnist", KANA),
    "fashion": ("fashion-mnist", None, LABELS, None, "fashion-mnist", tuple(range(10))),
}


@pytest.mark.parametrize(
    ("data_name", "part_of", "labels", "chosen", "name", "classes"), NAMED.values(), ids=NAMED
)
def test_a_set_known_by_name_has_the_names_of_its_classes(
    data_name, part_of, labels, chosen, name, classes, tmp_path
):
    """EMNIST's images are turned upright, and it has the folder of its archive."""
    layout = {} if part_of is None else {**EMNIST, "names": EMNIST["names"].format(part_of)}
    folder = write_set(tmp_path, **layout, labels=labels.astype(np.uint8))
    if part_of is not None:
        folder = write_set(tmp_path, names="gzip/emnist-mnist-{}-{}-{}.gz", parts=TEST) / "gzip"
    found = data.read(data_name, folder, chosen)
    assert (found.name, found.train.classes) == (name, classes)
    np.testing.assert_array_equal(found.test.labels, labels - labels.min())
    images = images_of("test" if part_of else "t10k", len(labels)) / np.float32(255)
    np.testing.assert_array_equal(found.test.images, images.swapaxes(1, 2) if part_of else images)


def test_a_set_that_is_not_there_is_one_line_that_says_where_it_is(tmp_path, refuse):
    out = ("--out", tmp_path / "out")
    emnist = "emnist-balanced-train-images-idx3-ubyte.gz and three more), from https://www.nist.gov/itl/"
    refuse("--data", "emnist", *out, words=["--data emnist needs --path DIR", emnist])
    refuse("--data", "kmnist", "--path", tmp_path / "no", *out, words=["no such folder", "rois-codh/kmnist"])
    folder = write_set(tmp_path / "bare")
    refuse(
        "--data", "emnist", "--path", folder, *out, words=["no IDX file of emnist", "https://www.nist.gov"]
    )
    write_set(folder, names="emnist-letters-{}-{}-{}", parts=TEST)
    words = ("train-labels-idx1-ubyte: label 0 at position 0", "expected a label of emnist-letters, 1 to 26")
    refuse("--data", "emnist", "--path", folder, *out, words=words)
    write_set(folder, names="emnist-digits-{}-{}-{}", parts=TEST)
    refuse("--data", "emnist", "--path", folder, *out, words=["2 sets, choose one by --set emnist-digits or"])
    refuse(
        "--data", "emnist", "--set", "x", "--path", folder, *out, words=["no set x, expected --set emnist"]
    )
    refuse("--data", "emnist", "--transpose", *out, words=["--transpose", "--data emnist", "--data mnist"])


@pytest.mark.full
def test_kana_are_learnt_under_their_names(tmp_path):
    folder = write_set(tmp_path / "kmnist")
    sizes = ("--model=mlp", "--hidden=8,6,4", "--epochs=1")
    outcome = run("train", "--data=kmnist", "--path", folder, *sizes, folder=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert not outcome.stderr
    assert "kmnist: 40 training and 40 test images" in outcome.stdout
    assert "10 classes, labels o, ki, su, tsu, na, ha, ma, ya, re, wo; model mlp" in outcome.stdout
    for layer in ("hidden layer 1", "hidden layer 2", "hidden layer 3", "output layer"):
        for part in ("error", "dW", "db"):
            assert re.search(rf"^ +{layer}, {part} .* ok", outcome.stdout, re.MULTILINE), (layer, part)
    for name in PICTURES:
        assert_is_a_picture(tmp_path / "jsoftmax-out" / name)


@pytest.fixture
def without_extras(tmp_path):
    """A folder with only the package, and stubs of the extras that fail to import."""
    for module in ("optax", "sklearn", "matplotlib", "rich"):
        (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})")
    shutil.copytree(next(iter(jsoftmax.__path__)), tmp_path / "jsoftmax")
    return tmp_path


def test_without_the_extras_train_names_them(without_extras):
    outcome = run("train", folder=without_extras)
    assert_refused(outcome.returncode, outcome.stderr, 'pip install "jsoftmax[demo]"')


@pytest.mark.full  # continuous integration checks the published package in an environment without extras
def test_without_the_extras_check_runs(without_extras):
    outcome = run("check", folder=without_extras)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "All within their bounds." in outcome.stdout
    # A confident loss, in which jax.nn has no correct digit.
    ours, peer = re.search(
        r"one class ahead by 30 .* (\S+) / (\S+) +\S+ / \S+$", outcome.stdout, re.M
    ).groups()
    assert float(ours) < 10
    assert float(peer) > 1e6


def test_check_fails_when_a_rule_is_wrong(monkeypatch, capsys):
    @jax.custom_vjp
    def wrong(x):
        return jsoftmax.logsumexp(x, -1)

    wrong.defvjp(lambda x: (wrong(x), x), lambda x, g: (1.001 * g[..., None] * jsoftmax.softmax(x),))
    right = next(f for f in functions.FUNCTIONS if f.name == "logsumexp")
    monkeypatch.setattr(check, "FUNCTIONS", (dataclasses.replace(right, ours=lambda r: wrong(r.logits)),))
    monkeypatch.setattr(check, "INFORMATION", ())
    monkeypatch.setattr(check, "OTHERS", ())
    monkeypatch.setattr(check.accuracy, "table", lambda: ())
    regimes = check.regimes()[:2]
    monkeypatch.setattr(check, "regimes", lambda: regimes)
    with jax.numpy_rank_promotion("allow"):
        assert check.run() == 1
    out = capsys.readouterr().out
    assert re.search(r"^logsumexp .* ok$", out, re.MULTILINE)
    assert re.search(r"^ +gradient .* FAILED$", out, re.MULTILINE)


POEM = "The cat “sat” on the mat:\n\n  $x$ and $y$, ...... and [i:x:j] sat on the cat. 猫\r\n\r\n" * 20


@pytest.fixture
def poem(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text(POEM, encoding="utf-8-sig", newline="")
    return path


SMALL = ("--batch-size=32", "--epochs=10", "--features=8", "--hidden=16", "--context=2")


@pytest.mark.long
@pytest.mark.parametrize(
    ("corpus", "arguments", "rows"),
    [
        ("poem", SMALL, 32),
        pytest.param("documentation of Python", ("--epochs=1",), 512, marks=pytest.mark.full),
    ],
    ids=["poem", "documentation of Python"],
)
def test_a_language_is_learnt(corpus, arguments, rows, poem, tmp_path):
    if corpus == "poem":
        outcome = run("train", "--data=text", f"--path={poem}", *arguments, folder=tmp_path)
    else:  # training takes longer than compiling
        outcome = run("train", "--data=text", *arguments, folder=tmp_path, more_flags=flags(IN_FULL))
    assert outcome.returncode == 0, outcome.stderr
    assert not outcome.stderr
    found = re.search(r"held-out perplexity ([\d.]+), of the unigram model ([\d.]+);", outcome.stdout)
    ours, unigram = map(float, found.groups())
    assert (1 if corpus == "poem" else 10) < ours < unigram / 2
    assert f"linear head: 1 block of {rows} rows × " in outcome.stdout
    for of in ("hidden", "table", "bias"):
        assert len(re.findall(rf"^ +gradient of {of} .* ok", outcome.stdout, re.MULTILINE)) == 3, of
    for name in language_figures.NAMES:
        assert_is_a_picture(tmp_path / "jsoftmax-out" / name)


@pytest.mark.long
def test_a_text_of_ones_own_and_a_wrong_gradient(poem, tmp_path, monkeypatch, capsys):
    right = jsoftmax.linear_cross_entropy

    def wrong(*arguments, **options):
        loss = right(*arguments, **options)
        return loss + 1e-3 * (loss - jax.lax.stop_gradient(loss))

    monkeypatch.setattr(jsoftmax, "linear_cross_entropy", wrong)
    sizes = ("--epochs=1", "--features=8", "--hidden=8", "--context=2", "--batch-size=999", "--vocabulary=9")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        status = main(["train", "--data=text", f"--path={poem}", f"--out={tmp_path / 'out'}", *sizes])
    out = capsys.readouterr().out
    assert status == 1, out
    assert "poem.txt: 612 words to learn from and 68 held out" in out
    assert "; 11 classes on" in out
    assert len(re.findall(r"^ +linear_cross_entropy, .* ok *$", out, re.MULTILINE)) == 3
    assert len(re.findall(r"^ +gradient of .* FAILED *$", out, re.MULTILINE)) == 9
    assert_is_a_picture(tmp_path / "out" / "next-words.png")


@pytest.mark.long
def test_the_same_seed_gives_the_same_language(poem):
    corpus = text.load(poem, 9)  # most of its words are unknown

    def numbers(seed):
        network = language.Network(context=2, features=8, hidden=8, dropout=0.5)
        settings = language_training.Settings(network, 2, 300, 1e-2, seed)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            parameters, history = language_training.train(corpus, settings, lambda number, epoch: None)
            written = language.write(
                network, parameters, 50, language.Sampling(0.7, 0.9), jax.random.key(seed)
            )
        assert (written != text.UNKNOWN_ID).all()
        return history, written, parameters

    first, again, other = numbers(3), numbers(3), numbers(4)
    chex.assert_trees_all_equal(first, again)
    assert first[0] != other[0]
    assert (first[1] != other[1]).any()


def test_words_are_the_text_and_seldom_ones_unknown(tmp_path):
    words = text.split(POEM)
    paragraphs = [" " + " ".join(part.split()) for part in POEM.split("\n\n")]
    assert "".join(words[:10]) == paragraphs[0] + text.PARAGRAPH
    assert [word for word in words[:20] if word.strip(" .") == ""] == [" ..."]
    path = tmp_path / "text.txt"
    path.write_text("once " + "one two " * 60 + "late " * 5, encoding="utf-8")
    corpus = text.load(path, 10)
    assert set(corpus.vocabulary) == {text.UNKNOWN, text.PARAGRAPH, " one", " two"}
    assert corpus.train[0] == text.UNKNOWN_ID
    assert (corpus.held_out[-6:-1] == text.UNKNOWN_ID).all()
    assert corpus.held_out[-1] == text.PARAGRAPH_ID
    assert len(corpus.held_out) == 12
    np.testing.assert_allclose(corpus.frequencies.sum(), 1, rtol=1e-6)


BAD_TEXTS = {
    "empty": (b"", "no words"),
    "blank": (b" \n\n \t", "no words"),
    "short": (b"To be or not to be.", "too short, 8 words"),
    "one word": (b"word " * 500, "'word'"),
    "no word twice": (" ".join(map(str, range(200))).encode(), "twice"),
    "not UTF-8": ("Grüße".encode("latin-1"), "0xfc"),
    "binary": (b"\x7fELF\0\0" * 100, "zero byte"),
}


@pytest.mark.parametrize(("content", "word"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_bad_text_is_one_line(content, word, tmp_path, refuse):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    refuse("--data", "text", "--path", path, "--out", tmp_path / "out", words=[str(path), word])


def test_no_text_is_one_line(tmp_path, refuse):
    for path in (tmp_path, tmp_path / "nowhere"):
        refuse(
            "--data", "text", "--path", path, "--out", tmp_path / "out", words=[str(path), "cannot be read"]
        )


JOBS = (
    "",
    "--model mlp",
    "--data mnist",
    "--data mnist --model mlp",
    "--data emnist",
    "--data kmnist",
    "--data text",
)
IMAGES, MLP, TEXT = JOBS[:6], (JOBS[1], JOBS[3]), JOBS[6:]
USED = {  # by option: where it applies
    "--path x": JOBS[2:],
    "--hidden 64": (*MLP, *TEXT),
    "--dropout 0": (*MLP, *TEXT),
    "--epochs 1": JOBS,
    "--batch-size 2": JOBS,
    "--learning-rate 1": JOBS,
    "--seed 0": JOBS,
    "--out x": JOBS,
    "--model linear": (JOBS[0], JOBS[2], *JOBS[4:6]),  # where mlp is not chosen already
    "--activation relu": MLP,
    "--l2 0": IMAGES,
    "--set x": JOBS[2:5],
    "--transpose": JOBS[2:4],
    "--vocabulary 5": TEXT,
    "--context 5": TEXT,
    "--features 5": TEXT,
    "--temperature 1": TEXT,
    "--gradient sampled": TEXT,
    "--top-p 0.9": TEXT,
}


def test_an_option_that_nothing_uses_is_refused():
    parser = argparse.ArgumentParser()
    settle = options.add_to(parser).settle
    flags = set(re.findall(r"^  (--[\w-]+)", parser.format_help(), re.MULTILINE))
    assert flags == {option.split()[0] for option in USED} | {"--data"}
    for option, uses in USED.items():
        for job in JOBS:
            if "--model" in option and "--model" in job:
                continue
            arguments = parser.parse_args([*job.split(), *option.split()])
            if job in uses:
                settle(arguments)
            else:
                with pytest.raises(UserError, match=f"{option.split()[0]} does not apply to --(data|model)"):
                    settle(arguments)


def test_an_option_of_other_data_is_one_line(refuse):
    refuse(
        "--data", "text", "--model", "mlp", words=["--model", "--data text", "--data digits, mnist, emnist"]
    )
    refuse("--data", "text", "--l2", 0, words=["--l2"])
    refuse("--temperature", 1, words=["--temperature", "--data digits", "--data text"])
    refuse("--path", "x", words=["--path", "digits"])
    refuse("--hidden", 64, words=["--hidden", "--model linear", "--model mlp or --data text"])
    refuse("--data", "text", "--hidden", "64,32", words=["--hidden 64,32", "one hidden layer", "one number"])
    refuse("--data", "mnist", "--activation", "relu", words=["--activation", "--model linear"])
