"""The studies of quality run: every variant is trained, kept, and stands in the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Returns options that make a study small, and where it may write its results."""
    monkeypatch.syspath_prepend(str(BENCH))
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    before = torch.get_num_threads()
    log = ["--impressions", "600", "--test-impressions", "400", "--ctr", "0.3", "--cvr", "0.3"]
    yield [*log, "--seeds", "1", "--json", "--out", str(tmp_path / "kept")]
    torch.set_num_threads(before)


def found_in(tmp_path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["log"]["impressions"] == 600 and found["facts"]["torch"]
    for variant in found["variants"].values():
        assert set(variant["auc"]) == {"ctr", "cvr", "ctcvr", "truth"}
        assert len(variant["runs"]) == 1
    return found


def test_collapse(small, tmp_path, capsys):
    import collapse

    collapse.run(collapse.options().parse_args([*small, "--failure-seeds", "1"]))
    ours = found_in(tmp_path, "collapse")
    assert list(ours["variants"]) == list(collapse.ours()) == list(ours["collapsed"])
    failure = found_in(tmp_path, "collapse_failure")
    assert len(failure["variants"]) == 12 == len(set(failure["variants"]))
    assert "of 1 collapsed" in capsys.readouterr().out


def test_a_finished_run_is_not_trained_again(small, capsys):
    import costs

    arguments = costs.options().parse_args([*small, "--variants", "bfloat16 towers", "3 epochs"])
    costs.run(arguments)
    first = capsys.readouterr().out
    costs.run(arguments)
    again = capsys.readouterr().out
    assert first.count("seed 1:") == 3 and "seed 1:" not in again
    assert first[first.index("| variant") :] == again


def test_costs(small, tmp_path):
    import costs

    costs.run(costs.options().parse_args(small))
    found = found_in(tmp_path, "costs")
    runs = {name: variant["runs"][0] for name, variant in found["variants"].items()}
    assert list(runs) == list(costs.VARIANTS)
    assert runs["3 epochs"]["steps"] == 3 * runs[costs.BASELINE]["steps"]
    assert runs["min-count 10"]["rows"] < runs["3 epochs"]["rows"] < runs["min-count 1"]["rows"]
    changed = set(runs) - {costs.BASELINE}
    assert all(
        set(found["variants"][v]["difference"])
        == set(runs["3 epochs"]) & {"ctr", "cvr", "ctcvr", "truth"}
        for v in changed
    )
    assert all(runs[v]["truth"] != runs[costs.BASELINE]["truth"] for v in changed)


def test_agreement_with_other_libraries(small, tmp_path):
    pytest.importorskip("torch_rechub")
    pytest.importorskip("deepctr_torch")
    from peers import agreement

    agreement.run(agreement.options().parse_args([*small, "--batch-size", "64"]))
    found = found_in(tmp_path, "agreement")
    assert list(found["variants"]) == list(agreement.VARIANTS)
    for pair in found["pairs"].values():
        assert pair["greatest_difference_of_a_probability_in_float64"] < 1e-6
