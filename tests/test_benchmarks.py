"""The benchmark program runs: tiny sizes, two of the functions."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from tests.benchmarks import __main__ as benchmarks


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
