"""The benchmark programs run, at tiny sizes and for a few functions."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax._cli import text

sys.path.append(str(Path(__file__).parents[1]))

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import compiling, dense, device_peers, evaluating, linear, several_sums, training

RESULTS = Path(benchmarks.__file__).parent / "results"


@pytest.mark.long
def test_a_tiny_run_writes_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmarks.shapes, "SMALL", ())
    names = ["logsumexp", "loss and gradient"]
    options = ["--quick", "--elements", "64", "--classes", "5", "--seconds", "0", "--out", str(tmp_path)]
    tables = benchmarks.main([*options, "--head", "8", "4", "20", "--functions", *names])
    assert [r["function"] for r in tables["dense"]] == names
    assert all(r["error, ours"] < 1e-6 for r in tables["dense"])
    ours = [r for r in tables["linear"] if r["who"] == "ours"]
    assert [r["what"] for r in ours] == ["loss", "loss and gradients"]
    assert all(r["error"] < 1e-5 for r in ours)
    for name in tables:
        assert json.loads((tmp_path / f"{name}.json").read_text())["machine"]["platform"] == "cpu"
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert "quartiles" in capsys.readouterr().out


@pytest.mark.long
def test_functions_with_several_sums_are_their_plain_formulas(capsys):
    x, beside = several_sums.arrays((4, 9), jnp.float32)
    for name, (ours, plain, needed) in several_sums.PAIRS.items():
        given = x, *(beside[what] for what in needed)
        with jax.numpy_rank_promotion("allow"):
            np.testing.assert_allclose(ours(*given), plain(*given), rtol=1e-4, atol=1e-5, err_msg=name)
    options = ["--shape", "4", "9", "--seconds", "0", "--only", "entropy", "kl_divergence"]
    records = benchmarks.main(
        ["several_sums", *options, "--against", str(Path(jsoftmax.__file__).parents[1])]
    )
    assert [(r["function"], r["what"]) for r in records] == [
        (name, what) for name in ("entropy", "kl_divergence") for what in ("value", "gradient")
    ]
    assert "ours, ms" in capsys.readouterr().out


@pytest.mark.full
def test_a_step_beside_another_checkout(capsys):
    """Here the other is this one, in a second copy; every program has the same loss."""
    sizes = {"batch": 2, "length": 8, "features": 16, "heads": 2, "layers": 1, "classes": 64}
    options = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    root = Path(jsoftmax.__file__).parents[1]
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam multiplies integers and floats
        records = benchmarks.main(["step", *options, "--seconds", "0", "--against", str(root)])
    assert len(records) == 7
    assert max(r["loss"] for r in records) - min(r["loss"] for r in records) < 1e-4
    assert sys.modules["jsoftmax"] is jsoftmax
    assert "quartiles" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no package jsoftmax here"):
        benchmarks.main(["step", "--against", str(root / "tests")])


@pytest.mark.long
def test_a_tiny_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training.trained, "corpus", lambda classes: text.load(None, classes))
    sizes = {"seeds": 1, "words": 2048, "classes": 64, "features": 4, "batch": 128, "points": 2}
    options = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        curves = benchmarks.main(["training", *options, "--out", str(tmp_path)])
    assert all(losses[-1] < losses[0] for of_seeds in curves.values() for losses in of_seeds)
    assert (tmp_path / "training.png").stat().st_size > 1000
    assert "over the seeds" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize(
    "names",
    [("softmax",), pytest.param((*compiling.PAIRS,), marks=pytest.mark.full)],
    ids=len,
)
def test_the_time_to_compile(names, capsys, monkeypatch):
    monkeypatch.setattr(compiling, "PAIRS", {name: compiling.PAIRS[name] for name in names})
    records = benchmarks.main(["compile", "--sizes", "4x5", "--turns", "1"])
    assert {r["program"] for r in records} >= {*names, *(f"{name}, gradient" for name in names)}
    assert "after jax" in capsys.readouterr().out


@pytest.fixture
def on_device(tmp_path):
    sizes = ["--rows", "32", "100", "--head", "32", "8", "50", "--seconds", "0", "--out", str(tmp_path)]
    return lambda *options: benchmarks.main(["device", *sizes, *options])


@pytest.mark.long
def test_a_tiny_run_for_devices(on_device, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(device_peers, "CHUNK", 16)  # the last chunk has 2 of the 50 classes
    report = on_device("--only", "loss and gradient", "32x100 softmax and backward", "logsumexp")
    assert json.loads((tmp_path / "device.json").read_text()) == report
    assert (tmp_path / "roofline.png").stat().st_size > 1000
    loss, softmax, logsumexp, head = report["records"]
    assert head["who"].keys() == {"ours", "optax", "materialised", "chunked"}
    assert head["limit"]["name"] == "three products"
    assert loss["limit"]["name"] == "copy"
    assert softmax["who"].keys() >= {"ours", "jax.nn"}
    assert logsumexp["best peer"] == "jax.nn"
    for record in report["records"]:
        assert all("need jax 0.11" in reason for reason in record["failed"].values())
        assert record["copies"] == 16
        assert max(who["error"] for who in record["who"].values()) < report["bound"]
    assert "speed-up" in capsys.readouterr().out


@pytest.mark.long
def test_what_is_wrong_is_not_timed(on_device, tmp_path, monkeypatch):
    """A wrong value away from the labels, where gradients are small, and in one gradient of a head."""
    value_and_gradient = dense.PAIRS["loss and gradient"]

    def wrong(x, y, axis):
        value, gradient = value_and_gradient.ours(x, y, axis)
        return value, jnp.where(gradient < 0, gradient, 1.05 * gradient)

    name = "loss and gradient"
    monkeypatch.setitem(device_peers.ROWS, name, device_peers.ROWS[name]._replace(ours=wrong))
    right = linear.ours
    monkeypatch.setattr(linear, "ours", lambda h, w, y: right(jax.lax.stop_gradient(h), w, y))
    with pytest.raises(
        SystemExit, match="ours failed in: 32x100 loss and gradient, 32x8x50 loss and gradients"
    ):
        on_device("--only", "loss and gradient")
    for record in json.loads((tmp_path / "device.json").read_text())["records"]:
        assert "an error of" in record["failed"]["ours"]
        assert "ours" not in record["who"]


def test_a_run_out_of_time_names_what_it_left_out(on_device, capsys):
    report = on_device("--budget", "0", "--only", "softmax")
    maps = ["softmax", "softmax and backward", "log_softmax", "log_softmax and backward"]
    assert report["left out"] == [f"32x100 {name}" for name in maps]
    assert "--only '32x100 softmax'" in capsys.readouterr().out
    assert on_device("--budget", "0", "--only", "32x100 loss")["left out"] == ["32x100 loss"]


def test_results_are_those_of_devices():
    """Results have a date, versions and a command; the page lists them, or says that there are none."""
    reports = [json.loads(path.read_text()) for path in sorted(RESULTS.rglob("device.json"))]
    page = (RESULTS / "README.md").read_text()
    assert ("nothing is measured" in page) == (not reports)
    for report in reports:
        assert report["machine"]["platform"] != "cpu"
        assert report["machine"]["jax"]
        assert report["records"]
        assert report["date"][:10] in page
        assert report["command"] in page


SMALL = {
    "distillation": ["--head", "16", "4", "30"],
    "segments": ["--cell", "100", "7"],
    "contrastive": ["--pairs", "24", "--features", "8"],
    "contrastive, sigmoid": ["--loss", "sigmoid", "--pairs", "24", "--features", "8"],
    "modes": ["--sizes", "16x10", "--turns", "1"],
}


@pytest.mark.share(2)
@pytest.mark.parametrize("program", SMALL)
def test_what_a_program_compares_agrees(program):
    """Forward mode keeps no more than reverse mode."""
    for record in benchmarks.main([program.partition(",")[0], *SMALL[program], "--seconds", "0"]):
        if program == "segments":
            assert record["errors"][0] < 4
        elif program == "modes":
            both = zip(record["residuals, forward"], record["residuals, reverse"], strict=True)
            assert all(forward <= reverse for forward, reverse in both)
            assert record["operations, reverse"] > 0
        else:
            assert record["apart"] < 1e-4
            rtol = 1e-4 if program == "distillation" else 1e-3
            np.testing.assert_allclose(record["value"][1:], record["value"][0], rtol=rtol)


@pytest.mark.long
def test_the_command_evaluate(monkeypatch):
    """Four batches, and every metric beside its definition; the child process is left out."""
    monkeypatch.setattr(evaluating, "peak", lambda folder: 0)
    monkeypatch.setattr(evaluating.evaluation_loop, "LARGEST", 2**12)
    record = benchmarks.main(["evaluate", "--rows", "200", "--classes", "20", "--turns", "1", "--check"])
    assert record["batch"] == 64
    assert max(record["errors"].values()) < evaluating.BOUND
