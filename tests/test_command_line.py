"""The command line as its users run it: a subprocess, on the digits, on good and bad IDX files and texts."""

import dataclasses
import gzip
import os
import re
import shutil
import struct
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from compiling import IN_FULL, flags
from PIL import Image

import jsoftmax
from jsoftmax._cli import (
    check,
    data,
    functions,
    language,
    language_figures,
    language_training,
    main,
    text,
    training,
)
from jsoftmax._cli.models import Network
from jsoftmax._cli.training import Settings

PICTURES = ("learning-curves.png", "confusion-matrix.png", "predictions.png", "jacobian.png")


def run(*arguments, folder, more_flags=""):
    command = [sys.executable, "-W", "error", "-m", "jsoftmax", *map(str, arguments)]
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {more_flags}"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def assert_refused(status, stderr, *words):
    """One line on stderr that says these words, and status 2."""
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
    """Asserts that `train` with these arguments, in this process, is refused in these words."""

    def refuse(*arguments, words):
        assert_refused(main(["train", *map(str, arguments)]), capsys.readouterr().err, *words)

    return refuse


@pytest.mark.parametrize(("model", "least"), [("linear", 0.95), ("mlp", 0.97)])
def test_the_main_job_learns_the_digits(model, least, tmp_path):
    outcome = run("train", "--model", model, folder=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert not outcome.stderr
    assert float(re.search(r"test accuracy ([\d.]+)", outcome.stdout)[1]) >= least
    for name in ("softmax", "log_softmax", "logsumexp", "cross_entropy, class ids", "output layer, dW"):
        assert re.search(rf"^ +{name} .* ok", outcome.stdout, re.MULTILINE), name
    assert ("hidden layer, dW" in outcome.stdout) == (model == "mlp")
    for name in PICTURES:
        assert_is_a_picture(tmp_path / "jsoftmax-out" / name)


def test_the_same_seed_gives_the_same_numbers():
    def numbers(seed):
        settings = Settings(Network((16,), dropout=0.2), 1, 64, 2e-2, 1e-4, seed)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return training.train(data.load("digits", None), settings, lambda number, epoch: None)

    first, again, other = numbers(3), numbers(3), numbers(4)
    chex.assert_trees_all_equal(first, again)
    assert first[1] != other[1]


def write_mnist(folder, count=40, compress=False, **changes):
    """Random images under MNIST's names. `changes` maps a file's name (dashes as _) to bytes -> bytes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            data = struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()
            data = changes.get(name.replace("-", "_"), lambda data: data)(data)
            path = folder / f"{name}.gz" if compress else folder / name
            path.write_bytes(gzip.compress(data) if compress else data)
    return folder


def test_mnist_files_are_read(tmp_path):
    folder, compressed = write_mnist(tmp_path / "plain"), write_mnist(tmp_path / "gz", compress=True)
    chex.assert_trees_all_equal(*(vars(data.load("mnist", path).test) for path in (folder, compressed)))
    command = ("train", "--data", "mnist", "--path", compressed, "--model", "linear", "--epochs", 1)
    outcome = run(*command, folder=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert "40 training and 40 test images of 28 x 28 pixels" in outcome.stdout


MALFORMED = {
    "truncated": ({"train_images_idx3_ubyte": lambda data: data[:-1]}, "train-images-idx3-ubyte"),
    "header cut off": ({"t10k_labels_idx1_ubyte": lambda data: data[:5]}, "t10k-labels-idx1-ubyte"),
    "empty": ({"train_labels_idx1_ubyte": lambda data: b""}, "train-labels-idx1-ubyte"),
    "trailing bytes": ({"train_images_idx3_ubyte": lambda data: data + b"\0"}, "train-images-idx3-ubyte"),
    "wrong magic": (
        {"train_images_idx3_ubyte": lambda data: b"\0\0\x08\x01" + data[4:]},
        "train-images-idx3-ubyte",
    ),
    "counts differ": (
        {"train_labels_idx1_ubyte": lambda data: data[:4] + struct.pack(">I", 39) + data[8:-1]},
        "39",
    ),
    "label 10": ({"t10k_labels_idx1_ubyte": lambda data: data[:-1] + b"\x0a"}, "10"),
}


@pytest.mark.parametrize(("changes", "word"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_one_line(changes, word, tmp_path, refuse):
    folder = write_mnist(tmp_path / "mnist", **changes)
    refuse("--data", "mnist", "--path", folder, "--out", tmp_path / "out", words=[word])


def test_a_corrupt_gz_is_one_line(tmp_path):
    folder = write_mnist(tmp_path / "mnist", compress=True)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    outcome = run("train", "--data", "mnist", "--path", folder, folder=tmp_path)
    assert_refused(outcome.returncode, outcome.stderr, path.name)


def test_missing_folders_and_files_are_one_line(tmp_path, refuse):
    out = ("--out", tmp_path / "out")
    nowhere = tmp_path / "nowhere"
    refuse("--data", "mnist", "--path", nowhere, *out, words=[str(nowhere)])
    refuse("--data", "mnist", *out, words=["--path"])
    folder = write_mnist(tmp_path / "mnist")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    refuse("--data", "mnist", "--path", folder, *out, words=["t10k-labels-idx1-ubyte"])
    (tmp_path / "a-file").touch()
    refuse("--out", tmp_path / "a-file", words=["a-file"])


def test_without_the_extras_train_names_them_and_check_runs(tmp_path):
    """A folder of its own with the package and nothing but stubs of the extras, each failing to import."""
    for module in ("optax", "sklearn", "matplotlib", "rich"):
        (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})")
    shutil.copytree(next(iter(jsoftmax.__path__)), tmp_path / "jsoftmax")
    outcome = run("train", folder=tmp_path)
    assert_refused(outcome.returncode, outcome.stderr, 'pip install "jsoftmax[demo]"')
    outcome = run("check", folder=tmp_path)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "All within their bounds." in outcome.stdout
    # A confident loss beside jax.nn's, which is lost altogether.
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
    monkeypatch.setattr(check.accuracy, "table", lambda: ())
    regimes = check.regimes()[:2]
    monkeypatch.setattr(check, "regimes", lambda: regimes)
    with jax.numpy_rank_promotion("allow"):
        assert check.run() == 1
    out = capsys.readouterr().out
    assert re.search(r"^logsumexp .* ok$", out, re.MULTILINE)
    assert re.search(r"^ +gradient .* FAILED$", out, re.MULTILINE)


def test_a_language_is_learnt(tmp_path):
    arguments = ("train", "--data", "text", "--epochs", 1)
    # It runs for longer than it compiles.
    outcome = run(*arguments, folder=tmp_path, more_flags=flags(IN_FULL))
    assert outcome.returncode == 0, outcome.stderr
    assert not outcome.stderr
    found = re.search(r"held-out perplexity ([\d.]+), of the unigram model ([\d.]+);", outcome.stdout)
    ours, unigram = map(float, found.groups())
    assert 10 < ours < unigram / 2
    assert "linear head: 1 block of 512 rows × " in outcome.stdout
    for of in ("hidden", "table", "bias"):
        assert len(re.findall(rf"^ +gradient of {of} .* ok", outcome.stdout, re.MULTILINE)) == 3, of
    for name in language_figures.NAMES:
        assert_is_a_picture(tmp_path / "jsoftmax-out" / name)


POEM = "The cat “sat” on the mat:\n\n  $x$ and $y$, ...... and [i:x:j] sat on the cat. 猫\r\n\r\n" * 20


@pytest.fixture
def poem(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text(POEM, encoding="utf-8-sig", newline="")
    return path


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


def test_the_same_seed_gives_the_same_language(poem):
    corpus = text.load(poem, 9)  # most of its words are unknown

    def numbers(seed):
        network = language.Network(context=2, features=8, hidden=8, dropout=0.5)
        settings = language_training.Settings(network, 2, 300, 1e-2, seed)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            parameters, history = language_training.train(corpus, settings, lambda number, epoch: None)
            written = language.write(network, parameters, 50, 0.7, jax.random.key(seed))
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


def test_an_option_of_other_data_is_one_line(refuse):
    refuse("--data", "text", "--model", "mlp", words=["--model", "--data text", "digits and mnist"])
    refuse("--data", "text", "--l2", 0, words=["--l2"])
    refuse("--temperature", 1, words=["--temperature", "--data digits", "text"])
    refuse("--path", "x", words=["--path", "digits"])
