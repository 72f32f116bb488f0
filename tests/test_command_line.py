"""The command line as its users run it: a subprocess, on the digits and on good and bad IDX files."""

import gzip
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import jsoftmax

PICTURES = ("learning-curves.png", "confusion-matrix.png", "predictions.png", "jacobian.png")


def run(*arguments, folder):
    command = [sys.executable, "-W", "error", "-m", "jsoftmax", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def assert_refused(outcome, *words):
    """One line on stderr that says these words, and status 2."""
    assert outcome.returncode == 2
    assert len(outcome.stderr.splitlines()) == 1, outcome.stderr
    for word in words:
        assert word in outcome.stderr


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


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    def numbers(seed):
        outcome = run("train", "--epochs", 1, "--seed", seed, folder=tmp_path)
        assert outcome.returncode == 0, outcome.stderr
        return re.sub(r"trained in .*", "", outcome.stdout)

    first = numbers(3)
    assert numbers(3) == first
    assert numbers(4) != first


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


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_mnist_files_are_read(compress, tmp_path):
    folder = write_mnist(tmp_path / "mnist", compress=compress)
    outcome = run("train", "--data", "mnist", "--path", folder, "--epochs", 1, folder=tmp_path)
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
def test_a_malformed_file_is_one_line(changes, word, tmp_path):
    folder = write_mnist(tmp_path / "mnist", **changes)
    assert_refused(run("train", "--data", "mnist", "--path", folder, folder=tmp_path), word)


def test_a_corrupt_gz_is_one_line(tmp_path):
    folder = write_mnist(tmp_path / "mnist", compress=True)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert_refused(run("train", "--data", "mnist", "--path", folder, folder=tmp_path), path.name)


def test_missing_folders_and_files_are_one_line(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert_refused(run("train", "--data", "mnist", "--path", nowhere, folder=tmp_path), str(nowhere))
    assert_refused(run("train", "--data", "mnist", folder=tmp_path), "--path")
    folder = write_mnist(tmp_path / "mnist")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    outcome = run("train", "--data", "mnist", "--path", folder, folder=tmp_path)
    assert_refused(outcome, "t10k-labels-idx1-ubyte")
    (tmp_path / "a-file").touch()
    assert_refused(run("train", "--out", tmp_path / "a-file", folder=tmp_path), "a-file")


def test_without_the_extras_train_names_them_and_check_runs(tmp_path):
    """A folder of its own with the package and nothing but stubs of the extras, each failing to import."""
    for module in ("optax", "sklearn", "matplotlib", "rich"):
        (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})")
    shutil.copytree(next(iter(jsoftmax.__path__)), tmp_path / "jsoftmax")
    assert_refused(run("train", folder=tmp_path), 'pip install "jsoftmax[demo]"')
    outcome = run("check", folder=tmp_path)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "All within their bounds." in outcome.stdout
    # A confident loss beside jax.nn's, which is lost altogether.
    ours, peer = re.search(
        r"one class ahead by 30 .* (\S+) / (\S+) +\S+ / \S+$", outcome.stdout, re.M
    ).groups()
    assert float(ours) < 10
    assert float(peer) > 1e6


def test_check_fails_when_a_rule_is_wrong(tmp_path):
    package = tmp_path / "jsoftmax"
    shutil.copytree(next(iter(jsoftmax.__path__)), package)
    rules = (package / "rules.py").read_text()
    assert "g - p * _sum(g, axis)" in rules
    (package / "rules.py").write_text(rules.replace("g - p * _sum(g, axis)", "g - 1.001 * p * _sum(g, axis)"))
    outcome = run("check", folder=tmp_path)
    assert outcome.returncode == 1
    assert re.search(r"gradient .* FAILED", outcome.stdout)
