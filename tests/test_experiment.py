"""experiment: the protocol of the comparison, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from esmm_fast import metrics
from esmm_fast.comparison import experiment, runner
from esmm_fast.comparison import results as tables
from esmm_fast.config import Settings
from esmm_fast.evaluation import Predictions

if TYPE_CHECKING:
    from synthetic_log import SyntheticLog

pytest_plugins = ("synthetic_log",)

SETTINGS = Settings(dim=4, hidden=(16,), batch_size=256)


@pytest.fixture(scope="module")
def results(synthetic_log: SyntheticLog) -> dict[str, Any]:
    return experiment.compare(
        synthetic_log.train,
        synthetic_log.test,
        repeats=2,
        settings=SETTINGS,
        truth=synthetic_log.truth,
    )


def test_every_method_is_judged_with_the_same_pctr(results: dict[str, Any]) -> None:
    assert list(results["methods"]) == ["base", "esmm"]
    for repeat in range(2):
        ctr = results["ctr_network"]["runs"][repeat]
        runs = [m["runs"][repeat] for m in results["methods"].values()]
        assert {run["seed"] for run in [ctr, *runs]} == {repeat}
        for run in runs:
            assert run["metrics"]["truth"]["ctr"] == ctr["metrics"]["truth"]["ctr"]
            assert "ctr" not in run["metrics"]
    base, esmm = (results["methods"][name]["runs"][0] for name in ("base", "esmm"))
    assert "own_pctr" not in base
    assert esmm["own_pctr"]["ctcvr"]["auc"] != esmm["metrics"]["ctcvr"]["auc"]
    assert esmm["own_pctr"]["ctr"]["impressions"] == 1_000


def test_spaces_and_counts(results: dict[str, Any], synthetic_log: SyntheticLog) -> None:
    labels = synthetic_log.test.labels()
    for method in results["methods"].values():
        found = method["runs"][0]["metrics"]
        assert found["cvr"]["impressions"] == found["clicks"] == labels[:, 0].sum()
        assert found["ctcvr"]["impressions"] == 1_000
        assert found["cvr"]["positives"] == found["ctcvr"]["positives"] == labels[:, 1].sum()
        spaces = found["truth"]["cvr"]
        assert spaces["all"]["impressions"] == 1_000
        assert spaces["unclicked"]["impressions"] == 1_000 - labels[:, 0].sum()
    assert results["data"]["test"]["clicks"] == labels[:, 0].sum()
    assert results["methods"]["esmm"]["runs"][0]["networks"]["esmm"]["steps"] == 8
    assert results["methods"]["base"]["runs"][0]["networks"]["cvr"]["steps"] < 8


def test_repeats_differ_and_are_summarized(results: dict[str, Any]) -> None:
    for method in results["methods"].values():
        values = [run["metrics"]["cvr"]["log_loss"] for run in method["runs"]]
        assert values[0] != values[1]
        found = method["summary"]["metrics.cvr.log_loss"]
        assert found["mean"] == pytest.approx(np.mean(values))
        assert found["std"] == pytest.approx(np.std(values, ddof=1))
        assert found["runs"] == 2


def test_the_same_seeds_give_the_same_numbers(
    results: dict[str, Any], synthetic_log: SyntheticLog
) -> None:
    lines: list[str] = []
    again = experiment.compare(
        synthetic_log.train,
        synthetic_log.test,
        ["base"],
        repeats=1,
        settings=SETTINGS,
        say=lines.append,
    )
    first = {k: v for k, v in again["methods"]["base"]["runs"][0]["metrics"].items()}
    expected = results["methods"]["base"]["runs"][0]["metrics"]
    assert first["cvr"] == expected["cvr"] and first["ctcvr"] == expected["ctcvr"]
    assert "truth" not in first and again["truth_known"] is False
    assert again["methods"]["base"]["summary"]["metrics.cvr.auc"]["std"] is None
    assert len(lines) == 3 and "BASE" in lines[2]


def test_undefined_metrics_do_not_count() -> None:
    runs = [{"metrics": {"auc": 0.5}}, {"metrics": {"auc": float("nan")}}]
    assert tables.summarize(runs) == {"metrics.auc": {"mean": 0.5, "std": None, "runs": 1}}
    undefined = tables.summarize(runs[1:])
    assert undefined == {"metrics.auc": {"mean": None, "std": None, "runs": 0}}
    assert tables.cell(undefined["metrics.auc"], "metrics.auc") == "-"


def test_written_files(results: dict[str, Any], tmp_path: Path) -> None:
    tables.write(results, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["methods"]["esmm"]["summary"] == results["methods"]["esmm"]["summary"]
    table = (tmp_path / "results.md").read_text().splitlines()
    assert table[0].startswith("| method | CVR AUC (clicked) | CTCVR AUC (all) |")
    assert table[2].startswith("| BASE | ") and "±" in table[2]
    assert len({line.count("|") for line in table[:4]}) == 1


def test_nan_becomes_null() -> None:
    assert json.loads(tables.to_json({"a": float("nan"), "b": [1.5]})) == {
        "a": None,
        "b": [1.5],
    }


def test_curves_match_the_predictions() -> None:
    random = np.random.default_rng(0)
    labels = np.stack([random.random(500) < 0.5, random.random(500) < 0.3], 1).astype(np.float32)
    labels[:, 1] *= labels[:, 0]
    pctr, pcvr = random.random((2, 500)).astype(np.float32)
    curves = runner.curves_of(Predictions(labels, None, pctr, pcvr, pctr * pcvr), None)
    assert "truth" not in curves
    clicked = labels[:, 0] == 1
    roc = curves["roc"]["cvr"]
    assert np.trapezoid(roc["true_positive_rate"], roc["false_positive_rate"]) == pytest.approx(
        metrics.auc(labels[clicked, 1], pcvr[clicked]), abs=2e-3
    )
    for shares in (curves["distribution"]["clicked"], curves["distribution"]["unclicked"]):
        assert sum(shares) == pytest.approx(1)


def test_bad_arguments(synthetic_log: SyntheticLog) -> None:
    train, test = synthetic_log.train, synthetic_log.test
    with pytest.raises(ValueError, match=r"method: unknown name 'aman2'; did you mean 'aman"):
        experiment.compare(train, test, ["aman2"])
    with pytest.raises(ValueError, match=r"methods: expected some names, each once, got \['base'"):
        experiment.compare(train, test, ["base", "base"])
    with pytest.raises(ValueError, match="repeats: expected at least 1, got 0"):
        experiment.compare(train, test, repeats=0)
    with pytest.raises(ValueError, match="test: expected impressions, got none in"):
        experiment.compare(train, test.select([]))
    for holdout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"holdout: expected a share from 0 .*got {holdout}"):
            experiment.compare(train, test, holdout=holdout)
