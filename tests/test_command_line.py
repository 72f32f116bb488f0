"""The command line as its users run it: a subprocess, on the digits and on good and bad IDX files."""

import dataclasses
import gzip
import re
import shutil
import struct
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from PIL import Image

import jsoftmax
from jsoftmax._cli import check, data, functions, main, training
from jsoftmax._cli.models import Network
from jsoftmax._cli.training import Settings

PICTURES = ("learning-curves.png", "confusion-matrix.png", "predictions.png", "jacobian.png")


def run(*arguments, folder):
    command = [sys.executable, "-W", "error", "-m", "jsoftmax", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def assert_refused(status, stderr, *words):
    """One line on stderr that says these words, and status 2."""
    assert status == 2
    assert len(stderr.splitlines()) == 1, stderr
    for word in words:
        assert word in stderr


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
        with Image.open(tmp_path / "jsoftmax-out" / name) as picture:
            colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) > 50, name


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
    outcome = run("train", "--data", "mnist", "--path", compressed, "--epochs", 1, folder=tmp_path)
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
