"""compare over all methods: going on after a stop, shared networks, choices of a grid, shares."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from test_cli import call

from esmm_fast import metrics
from esmm_fast.catalogue import METHODS, PAPER, resolve
from esmm_fast.comparison import experiment, report
from esmm_fast.comparison import results as tables
from esmm_fast.comparison.intervals import auc_error
from esmm_fast.config import Settings
from esmm_fast.data.dataset import Dataset
from esmm_fast.data.facts import common_rows_of
from esmm_fast.evaluation import Predictions
from esmm_fast.methods import Method, Network
from esmm_fast.networks import CTRNetwork, CVRNetwork
from esmm_fast.samplers import (
    Context,
    View,
    clicked,
    share_of_groups,
    split_off_end,
    with_unclicked,
)

if TYPE_CHECKING:
    from synthetic_log import SyntheticLog

pytest_plugins = ("synthetic_log",)

SETTINGS = Settings(dim=3, hidden=(8,), batch_size=256)
OPTIONS: dict[str, Any] = {"repeats": 2, "settings": SETTINGS, "holdout": 0.1}


class Stopped(Exception):
    """Stands for whatever ends a comparison in the middle."""


def compare(log: SyntheticLog, methods: list[str], **options: Any) -> dict[str, Any]:
    return experiment.compare(
        log.train, log.test, methods, **{**OPTIONS, "truth": log.truth, **options}
    )


def without_times(value: Any) -> Any:
    """Returns results without what differs from run to run: times, memory, the date."""
    drop = {"seconds", "impressions_per_second", "made", "peak_memory_bytes"}
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in drop}
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def whole(synthetic_log: SyntheticLog, folder: Path) -> dict[str, Any]:
    """All seven methods in one go, kept on disk."""
    return compare(synthetic_log, ["all"], out=folder / "whole")


def test_all_seven_with_their_grids(whole: dict[str, Any]) -> None:
    assert list(whole["families"]) == list(PAPER) and len(whole["rows"]) == 7
    assert list(whole["methods"]) == [m.name for m in resolve(["all"])]
    for name, method in whole["methods"].items():
        assert [run["seed"] for run in method["runs"]] == [0, 1]
        assert set(method["differences"]) == (
            set() if name == "base" else {"cvr", "ctcvr", "truth"}
        )
        assert method["curves"]["roc"]["cvr"]["true_positive_rate"][-1] == 1
    for family in whole["families"].values():
        for way, place in (("test", "metrics.cvr.auc"), ("valid", "valid.cvr.auc")):
            means = {n: whole["methods"][n]["summary"][place]["mean"] for n in family["members"]}
            assert means[family["best"][way]] == max(means.values())


def test_a_stop_after_any_run_changes_nothing(
    whole: dict[str, Any], synthetic_log: SyntheticLog, tmp_path: Path
) -> None:
    out, methods = tmp_path / "stopped", ["base", "unbias", "division"]
    for stop_after in (1, 2, 3):  # runs of this call, before it is stopped again
        lines: list[str] = []

        def say(line: str, lines: list[str] = lines, stop_after: int = stop_after) -> None:
            lines.append(line)
            if sum(text.startswith("run ") for text in lines) == stop_after:
                raise Stopped

        with pytest.raises(Stopped):
            compare(synthetic_log, methods, out=out, say=say)
    before = {path.name: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    lines = []
    again = compare(synthetic_log, methods, out=out, say=lines.append)
    assert "6 of 8 runs are there already" in lines
    assert all((out / "records" / n).stat().st_mtime_ns == t for n, t in before.items())
    for name in methods:
        assert without_times(again["methods"][name]) == without_times(whole["methods"][name])
    assert without_times(again["ctr_network"]) == without_times(whole["ctr_network"])


def test_methods_and_repeats_can_be_added(
    whole: dict[str, Any], synthetic_log: SyntheticLog, tmp_path: Path
) -> None:
    compare(synthetic_log, ["base"], out=tmp_path / "grown", repeats=1)
    lines: list[str] = []
    # UNBIAS needs the CTR network on clicked training impressions, which BASE alone did not.
    grown = compare(synthetic_log, ["base", "unbias"], out=tmp_path / "grown", say=lines.append)
    assert "2 of 6 runs are there already" in lines
    for name in ("base", "unbias"):
        expected = without_times(whole["methods"][name])
        assert without_times(grown["methods"][name]) == expected
    with pytest.raises(FileExistsError, match=r"settings.lr = 0.001, asked for is 0.01"):
        compare(
            synthetic_log,
            ["base"],
            out=tmp_path / "grown",
            settings=Settings(dim=3, hidden=(8,), batch_size=256, lr=0.01),
        )
    with pytest.raises(FileExistsError, match=r"holdout = 0.1, asked for is 0.2"):
        compare(synthetic_log, ["base"], out=tmp_path / "grown", holdout=0.2)
    other = share_of_groups(synthetic_log.train, 0.5)
    other_truth = replace(synthetic_log.truth, pcvr=synthetic_log.truth.pcvr / 2)
    with pytest.raises(FileExistsError, match=r"truth_crc32 = '\w{8}', asked for is '\w{8}'"):
        compare(synthetic_log, ["base"], out=tmp_path / "grown", truth=other_truth)
    with pytest.raises(FileExistsError, match=r"train\.selection"):
        experiment.compare(
            other,
            synthetic_log.test,
            ["base"],
            out=tmp_path / "grown",
            truth=synthetic_log.truth,
            **OPTIONS,
        )


def test_base_may_come_later(
    whole: dict[str, Any], synthetic_log: SyntheticLog, tmp_path: Path
) -> None:
    out, lines = tmp_path / "later", []
    alone = compare(synthetic_log, ["esmm", "aman-10"], out=out)
    assert alone["methods"]["esmm"]["differences"] == {}
    names = ["aman-10", "base", "esmm"]
    later = compare(synthetic_log, names, out=out, say=lines.append)
    assert "6 of 8 runs are there already" in lines
    for name in names:
        assert without_times(later["methods"][name]) == without_times(whole["methods"][name])
    kept = {path.name for path in (out / "predictions").iterdir()}
    assert kept == {f"00{r}-{n}.npz" for r in (0, 1) for n in ("base-judged", "network-ctr")}
    # A run whose predictions an earlier version did not keep is trained again.
    record = json.loads((out / "records" / "001-esmm.json").read_text())
    del record["intervals"]["cvr"]["minus_base_error"]
    (out / "records" / "001-esmm.json").write_text(json.dumps(record))
    again = compare(synthetic_log, names, out=out, say=lines.append)
    assert "7 of 8 runs are there already" in lines
    assert without_times(again["methods"]["esmm"]) == without_times(whole["methods"]["esmm"])


def test_what_is_finished_does_not_shrink(synthetic_log: SyntheticLog, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"out": out, "truth": None, "holdout": 0.0}
    tables.write(compare(synthetic_log, ["base"], **options, repeats=2), out)
    written = (out / "results.json").read_bytes()
    for methods, repeats, missing in ((["esmm"], 2, "method base"), (["base"], 1, "repeat 2")):
        with pytest.raises(FileExistsError, match=f"holds results with {missing}, which is not"):
            compare(synthetic_log, methods, **options, repeats=repeats)
    assert (out / "results.json").read_bytes() == written
    train, test = synthetic_log.train, synthetic_log.test
    of_shares = {"settings": SETTINGS, "repeats": 2, "out": out}
    with pytest.raises(FileExistsError, match="train_shares = None, asked for is True"):
        experiment.compare_shares(train, test, ["base"], [50], **of_shares)
    of_shares |= {"out": tmp_path / "shares", "repeats": 1}
    found = experiment.compare_shares(train, test, ["base"], [30, 50], **of_shares)
    tables.write(found, tmp_path / "shares")
    with pytest.raises(FileExistsError, match="holds results with share 30, which is not asked"):
        experiment.compare_shares(train, test, ["base"], [50], **of_shares)
    (tmp_path / "shares" / "plan.json").unlink()  # as an earlier version left it
    experiment.compare_shares(train, test, ["base"], [30, 50], **of_shares)
    with pytest.raises(FileExistsError, match="holds results with share 30, which is not asked"):
        compare(synthetic_log, ["base"], **{**options, "out": tmp_path / "shares"})


def test_two_processes_do_not_compare_in_one_place(
    synthetic_log: SyntheticLog, tmp_path: Path
) -> None:
    def say(line: str) -> None:
        with pytest.raises(FileExistsError, match="another process is at work on this"):
            compare(synthetic_log, ["base"], out=tmp_path / "out")
        said.append(line)

    said: list[str] = []
    compare(synthetic_log, ["base"], out=tmp_path / "out", repeats=1, say=say)
    compare(synthetic_log, ["base"], out=tmp_path / "out", repeats=1)
    assert said


def test_a_comparison_of_an_earlier_version_is_gone_on_with(
    synthetic_log: SyntheticLog, tmp_path: Path
) -> None:
    out = tmp_path / "earlier"
    first = compare(synthetic_log, ["base"], out=out, repeats=1)
    plan = json.loads((out / "plan.json").read_text())
    del plan["settings"]["schedule"], plan["settings"]["warmup_steps"]  # not there in that version
    del plan["truth_crc32"]
    (out / "plan.json").write_text(json.dumps({**plan, "esmm_fast": "0.0.1"}))
    lines: list[str] = []
    again = compare(synthetic_log, ["base"], out=out, repeats=1, say=lines.append)
    assert again["methods"]["base"]["runs"] == first["methods"]["base"]["runs"]
    assert "2 of 2 runs are there already" in lines
    assert any(line.startswith("begun by esmm_fast 0.0.1, goes on with") for line in lines)
    settings = Settings(dim=3, hidden=(8,), batch_size=256, warmup_steps=2)
    with pytest.raises(FileExistsError, match="warmup_steps = 0, asked for is 2"):
        compare(synthetic_log, ["base"], out=out, repeats=1, settings=settings)


@pytest.mark.parametrize("hidden", ["360,200,80", "200,80"])
def test_both_readings_of_the_network_and_both_adams_on_the_command_line(
    synthetic_log: SyntheticLog, tmp_path: Path, capsys: pytest.CaptureFixture[str], hidden: str
) -> None:
    losses = []
    for adam in ("lazy_adam", "adam"):
        arguments: list[Any] = ["compare", "--train", synthetic_log.train_path]
        arguments += ["--test", synthetic_log.test_path, "--methods", "esmm", "--repeats", 1]
        arguments += ["--hidden", hidden, "--table-optimizer", adam, "--batch-size", 256]
        status, _, error = call(capsys, *arguments, "--out", tmp_path / adam)
        assert status == 0, error
        found = json.loads((tmp_path / adam / "results.json").read_text())
        assert ",".join(map(str, found["settings"]["hidden"])) == hidden
        assert found["settings"]["table_optimizer"] == adam
        losses.append(found["methods"]["esmm"]["runs"][0]["metrics"]["ctcvr"]["log_loss"])
        text = (tmp_path / adam / "results.md").read_text()
        assert "| training | optimizer steps | impressions trained on |" in text
        assert "| ESMM | 8 | 2,000 |" in text
    assert losses[0] != losses[1]  # the dense Adam also moves rows that a batch does not touch


def test_shared_networks_are_trained_once_a_repeat(
    synthetic_log: SyntheticLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    from esmm_fast.comparison import runner

    trained: list[str] = []
    fit = runner.fit_method

    def counted(method: Any, *arguments: Any, **options: Any) -> Any:
        (network,) = method.networks.values()
        trained.append(network.shared or method.name)
        return fit(method, *arguments, **options)

    monkeypatch.setattr(runner, "fit_method", counted)
    compare(synthetic_log, ["unbias", "division", "aman-100", "base"], repeats=2)
    assert trained == ["ctr", "base", "unbias", "ctcvr"] * 2


@pytest.mark.parametrize("shared", [None, "clicks"])
def test_what_a_network_needs_of_another_is_of_its_repeat_and_view(
    shared: str | None, synthetic_log: SyntheticLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn, whole = with_unclicked(0.5), with_unclicked(1.0)
    seen: list[tuple[int, str]] = []

    def of(name: str, needed: View) -> View:
        def view(train: Dataset, context: Context) -> Dataset:
            expected = needed(train, context).impressions["sample_id"].to_numpy()
            rows = needed(train, context).selection
            np.testing.assert_array_equal(
                context.predictions["first"].sample_id, expected[rows].astype(np.int64)
            )
            seen.append((context.seed, name))
            return clicked(train, context)

        return view

    def method(name: str, needed: View) -> Method:
        networks = {
            "first": Network(CTRNetwork, shared=shared),
            "cvr": Network(CVRNetwork, of(name, needed), needs={"first": needed}),
        }
        return Method(name, name, "", "", "", networks, combine=lambda found: found["cvr"])

    monkeypatch.setitem(METHODS, "half", method("half", drawn))
    monkeypatch.setitem(METHODS, "all-of-it", method("all-of-it", whole))
    names = ["half", "all-of-it"]
    compare(synthetic_log, names, out=tmp_path / "out", truth=None, holdout=0.0)
    for path in (tmp_path / "out" / "records").glob("*-half.json"):
        path.unlink()  # from here on the shared network is read again
    compare(synthetic_log, names, out=tmp_path / "out", truth=None, holdout=0.0)
    assert seen == [(r, n) for r in (0, 1) for n in names] + [(0, "half"), (1, "half")]
    monkeypatch.setattr(whole, "__name__", drawn.__name__)
    if shared:
        with pytest.raises(ValueError, match=r"views of different names, got .*'with_unclicked\("):
            compare(synthetic_log, names, truth=None)


def test_division_reports_how_often_it_exceeds_1(whole: dict[str, Any]) -> None:
    runs = {name: m["runs"] for name, m in whole["methods"].items()}
    assert any(run["pcvr_above_1"]["all"] > 0 for run in runs["division"])
    assert all(
        run["pcvr_above_1"] == {"all": 0, "clicked": 0}
        for name, of in runs.items()
        if name != "division"
        for run in of
    )


def test_intervals_are_those_of_the_predictions(
    whole: dict[str, Any], folder: Path, synthetic_log: SyntheticLog
) -> None:
    test = synthetic_log.test
    labels, clusters = test.labels(), common_rows_of(test)
    clicked = labels[:, 0] == 1
    with np.load(folder / "whole" / "predictions" / "001-base-judged.npz") as file:
        base = file["pcvr"]
    with np.load(folder / "whole" / "predictions" / "001-network-ctr.npz") as file:
        pctr = file["test.pctr"]
    with np.load(folder / "whole" / "predictions" / "001-network-ctcvr.npz") as file:
        pcvr = file["test.pctcvr"]  # AMAN at 100 % is this network
    run = whole["methods"]["aman-100"]["runs"][1]
    assert run["metrics"]["cvr"]["auc"] == metrics.auc(labels[clicked, 1], pcvr[clicked])
    assert run["metrics"]["ctcvr"]["auc"] == metrics.auc(labels[:, 1], pcvr * pctr)
    cvr = auc_error(labels[clicked, 1], pcvr[clicked], clusters=clusters[clicked])
    minus = auc_error(
        labels[clicked, 1], pcvr[clicked], minus=base[clicked], clusters=clusters[clicked]
    )
    assert run["intervals"]["cvr"] == {
        "auc_error": pytest.approx(cvr[1]),
        "minus_base": pytest.approx(minus[0]),
        "minus_base_error": pytest.approx(minus[1]),
    }
    difference = whole["methods"]["aman-100"]["differences"]["cvr"]
    of_base = whole["methods"]["base"]["runs"]
    expected = [
        a["metrics"]["cvr"]["auc"] - b["metrics"]["cvr"]["auc"]
        for a, b in zip(whole["methods"]["aman-100"]["runs"], of_base, strict=True)
    ]
    assert difference["mean"] == pytest.approx(np.mean(expected))
    assert difference["low"] < difference["mean"] < difference["high"]
    assert "minus_base" not in of_base[0]["intervals"]["cvr"]


def test_nothing_is_trained_on_the_held_out_end(
    whole: dict[str, Any], synthetic_log: SyntheticLog
) -> None:
    kept, end = split_off_end(synthetic_log.train, 0.1)
    data = whole["data"]
    assert [data[n]["impressions"] for n in ("train", "valid")] == [len(kept), len(end)]
    assert len(kept) + len(end) == 2_000
    seen = whole["methods"]["esmm"]["runs"][0]["networks"]["esmm"]["impressions"]
    assert seen == len(kept)
    valid = whole["methods"]["base"]["runs"][0]["valid"]["cvr"]
    assert valid["impressions"] == end.labels()[:, 0].sum()
    assert valid["positives"] == end.labels()[:, 1].sum()


def test_the_choice_by_the_held_out_end(
    whole: dict[str, Any], synthetic_log: SyntheticLog, folder: Path
) -> None:
    chosen = compare(synthetic_log, ["all"], out=folder / "whole", select="valid")
    assert chosen["rows"] == [f["best"]["valid"] for f in whole["families"].values()]
    assert whole["rows"] == [f["best"]["test"] for f in whole["families"].values()]
    with pytest.raises(ValueError, match="select: expected 'test', or 'valid' with a holdout"):
        compare(synthetic_log, ["base"], select="valid", holdout=0.0)


def test_files(whole: dict[str, Any], tmp_path: Path) -> None:
    tables.write(whole, tmp_path)
    parquet = pyarrow.parquet.read_table(tmp_path / "runs.parquet")
    assert (
        parquet.equals(
            pyarrow.csv.read_csv(
                tmp_path / "runs.csv",
                convert_options=pyarrow.csv.ConvertOptions(column_types=parquet.schema),
            )
        )
        or parquet.num_rows == pyarrow.csv.read_csv(tmp_path / "runs.csv").num_rows
    )
    rows = parquet.to_pylist()
    found = {(r["method"], r["repeat"], r["metric"]): r["value"] for r in rows}
    assert len(found) == len(rows)
    run = whole["methods"]["esmm"]["runs"][1]
    assert found["esmm", 1, "metrics.cvr.auc"] == run["metrics"]["cvr"]["auc"]
    assert found["ctr", 0, "metrics.ctr.auc"] > 0
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == whole["rows"]
    text = (tmp_path / "results.md").read_text()
    assert "| ESMM | " in text and "| AMAN 50 % | " in text and "+2.56 | +3.25 |" in text
    page = report.render(json.loads((tmp_path / "results.json").read_text()))
    assert "The whole grids" in page


def test_shares(synthetic_log: SyntheticLog, tmp_path: Path) -> None:
    options: dict[str, Any] = {"repeats": 1, "settings": SETTINGS, "out": tmp_path / "out"}
    found = experiment.compare_shares(
        synthetic_log.train, synthetic_log.test, ["base"], [50, 100], **options
    )
    half, all_of_it = found["shares"]
    assert [half["percent"], all_of_it["percent"]] == [50, 100]
    assert half["common_rows_used"] == round(all_of_it["common_rows_used"] / 2)
    assert half["impressions"] == len(share_of_groups(synthetic_log.train, 0.5))
    assert all_of_it["impressions"] == found["data"]["train"]["impressions"] == 2_000
    assert half["methods"]["base"]["cvr"]["mean"] != all_of_it["methods"]["base"]["cvr"]["mean"]
    assert (tmp_path / "out" / "share-50" / "plan.json").is_file()
    assert "Less training data" in report.render(found)
    for bad in ([], [50, 50]):
        with pytest.raises(ValueError, match="train_shares: expected some shares, each once"):
            experiment.compare_shares(synthetic_log.train, synthetic_log.test, ["base"], bad)


def test_time_left_in_words() -> None:
    said = [experiment._time_left(s) for s in (0, 50, 600, 9000)]
    assert said == ["done", "about 50 s left", "about 10 min left", "about 2.5 h left"]


def test_a_method_without_pcvr_cannot_be_judged() -> None:
    from esmm_fast.comparison.runner import _scores

    with pytest.raises(ValueError, match="predictions: expected pctr, pcvr and pctcvr, got none"):
        _scores(Predictions(np.zeros((1, 2), np.float32)).pcvr)
