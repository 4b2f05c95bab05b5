"""The esmm-fast command: the whole way, its exit statuses, and its one-line errors."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from esmm_fast import config, quickstart
from esmm_fast.cli.printing import echo_metrics
from esmm_fast.config import RunConfig
from esmm_fast.evaluation import Predictions, Truth, task_metrics

if TYPE_CHECKING:
    from synthetic_log import SyntheticLog

pytest_plugins = ("synthetic_log",)

SMALL = ["--dim", "4", "--hidden", "16", "--batch-size", "256"]


def esmm_fast(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esmm_fast", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Runs the command in this process; returns its status, output and error output."""
    from esmm_fast.cli import main

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)
    shown = capsys.readouterr()
    return int(end.value.code or 0), shown.out, shown.err


def test_help_and_version_import_nothing_heavy() -> None:
    for option in ("--help", "--version", "train --help"):
        code = (
            "import sys; from esmm_fast.cli import main\n"
            f"try: main({option.split()})\n"
            "except SystemExit as end:\n"
            "    heavy = {'torch', 'numpy', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
            "    print('heavy:', sorted(heavy), 'status:', end.code)"
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "heavy: [] status: 0" in ended.stdout, ended
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert spent < 0.4  # seconds of the processor, which a busy machine does not stretch


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    from esmm_fast.cli import cli

    assert sorted(cli.commands) == [
        "compare",
        "dump",
        "evaluate",
        "head",
        "info",
        "merge",
        "predict",
        "prepare",
        "quickstart",
        "synth",
        "train",
    ]
    for name in cli.commands:
        status, out, _ = call(capsys, name, "--help")
        assert status == 0 and f"esmm-fast {name}" in out


def test_quickstart_goes_the_whole_way(tmp_path: Path) -> None:
    out = tmp_path / "first"
    ended = esmm_fast("quickstart", "--impressions", 2_000, "--out", out)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[-1] == str(out / "report.html") and Path(lines[-1]).is_file()
    assert lines[-3].startswith("CVR AUC, ESMM minus BASE: ")
    assert "raised rates: CTR 0.1, CVR 0.1 (published: 0.0389, 0.00535)" in ended.stdout
    assert any(re.match(r"BASE +\d\d\.\d\d", line) for line in lines)
    assert any(re.match(r"ESMM +\d\d\.\d\d", line) for line in lines)
    results = json.loads((out / "results.json").read_text())
    assert list(results["methods"]) == ["base", "esmm"] and results["repeats"] == 1
    assert results["data"]["train"]["impressions"] == 2_000
    assert results["data"]["test"]["impressions"] == 1_000
    spaces = results["methods"]["esmm"]["runs"][0]["metrics"]["truth"]["cvr"]
    assert set(spaces) == {"all", "clicked", "unclicked"}
    assert "Sample selection bias" in (out / "report.html").read_text()
    assert {p.name for p in out.iterdir()} == set(quickstart.ENTRIES)


def test_quickstart_replaces_only_its_own(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"one that a quickstart made, got .*'thesis\.txt'"):
        quickstart.quickstart(theirs, impressions=10)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / quickstart.MARKER).write_text("{}")
    (mixed / "notes.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"got 'notes\.txt'; move it away"):
        quickstart.quickstart(mixed, impressions=10)
    assert (mixed / "notes.txt").exists() and (theirs / "thesis.txt").exists()
    (mixed / "notes.txt").unlink()
    (mixed / "data").mkdir()
    quickstart._make_room(mixed)
    assert not list(mixed.iterdir())


def test_log_to_dataset_and_back(
    synthetic_log: SyntheticLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    status, shown, error = call(capsys, "prepare", synthetic_log.log, "--out", out)
    assert (status, shown) == (0, f"{out}\n"), error
    status, shown, _ = call(capsys, "info", out / "train", "--json", "--verify")
    facts = json.loads(shown)
    assert status == 0 and facts["impressions"] == 2_000 and facts["verified"]
    status, shown, _ = call(capsys, "info", out / "train")
    assert status == 0 and "impressions: 2,000" in shown and "  205: occurrences" in shown
    status, shown, _ = call(capsys, "head", out / "test", "-n", 2)
    assert status == 0 and shown.count("sample_id") == 2 and "  101 " in shown
    status, _, _ = call(capsys, "dump", out / "test", "--out", tmp_path / "dump")
    assert status == 0
    lines = (tmp_path / "dump" / "sample_skeleton.csv").read_bytes().splitlines()
    assert len(lines) == 1_000
    skeleton, common = (
        tmp_path / "dump" / f"{name}.csv" for name in ("sample_skeleton", "common_features")
    )
    again = tmp_path / "again"
    status, _, error = call(
        capsys, "prepare", "--skeleton", skeleton, "--common", common, "--out", again
    )
    assert status == 0, error
    status, shown, _ = call(capsys, "info", again, "--json")
    assert json.loads(shown)["impressions"] == 1_000


def test_prepare_check_writes_nothing(
    synthetic_log: SyntheticLog, capsys: pytest.CaptureFixture[str]
) -> None:
    status, shown, error = call(capsys, "prepare", synthetic_log.log, "--check")
    assert status == 0, error
    assert "impressions: 2,000" in shown and "anomalies" in shown


def test_synth_writes_a_log_and_its_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "log"
    options = ["--impressions", 300, "--test-impressions", 100, "--seed", 1]
    status, shown, error = call(capsys, "synth", out, *options)
    assert (status, shown) == (0, f"{out}\n"), error
    assert {"sample_skeleton_train.csv", "truth_test.parquet", "synth.json"} <= {
        p.name for p in out.iterdir()
    }


def test_train_then_evaluate(
    synthetic_log: SyntheticLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (tmp_path / "c.yaml").write_text(f"train: {synthetic_log.train_path}\nsettings: {{lr: 1e-2}}\n")
    options = ["--config", tmp_path / "c.yaml", "--valid", synthetic_log.test_path, "--epochs", 2]
    status, shown, error = call(capsys, "train", *options, *SMALL, "--out", run)
    assert status == 0, error
    assert "esmm: 16 steps, 4,000 impressions" in shown
    assert shown.splitlines()[-1] == str(run / "report.html")
    assert {p.name for p in run.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "vocabulary.arrow",
    }
    saved = config.resolve(RunConfig, config.load(run / "config.yaml"))
    assert saved.settings.lr == 0.01 and saved.settings.hidden == (16,) and saved.method == "esmm"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [8, 16]
    valid = [line["valid"] for line in lines if "valid" in line]
    assert len(valid) == 2

    status, shown, error = call(capsys, "evaluate", run, synthetic_log.test_path, "--json")
    assert status == 0, error
    assert json.loads(shown) == json.loads(msgspec.json.encode(valid[-1]))
    status, shown, _ = call(
        capsys, "evaluate", run, synthetic_log.test_path, "--truth", synthetic_log.truth_path
    )
    assert status == 0
    assert re.search(r"CVR +clicked impressions +\d\d\.\d\d", shown)
    assert re.search(r"CTCVR, own pCTR +all impressions", shown)
    assert re.search(r"pCVR against truth +unclicked impressions", shown)

    status, _, error = call(capsys, "train", *options, "--out", run)
    assert status == 1 and error.startswith(f"Error: {run} exists; expected a new name")
    status, shown, error = call(capsys, "train", "--resume", "--out", run)
    assert status == 0, error
    assert f"continues at step 16 of {run}/checkpoints/step-0000000016" in shown
    status, _, error = call(capsys, "train", "--resume", "--out", run, "--lr", "1")
    assert (
        status == 1 and error.startswith("Error: settings.lr: ") and "was begun with 0.01" in error
    )


def test_predict_and_calibration_by_slice(
    synthetic_log: SyntheticLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "p.parquet"
    test = synthetic_log.test_path
    assert call(capsys, "train", "--train", synthetic_log.train_path, "--out", run, *SMALL)[0] == 0
    status, shown, error = call(capsys, "predict", run, test, "--out", out)
    assert (status, shown) == (0, f"1,000 impressions -> {out}\n"), error
    status, _, error = call(capsys, "predict", run, test, "--out", out)
    assert (status, error) == (
        1,
        f"Error: {out} exists; expected a new name: nothing is overwritten, remove it first or "
        "choose another\n",
    )

    options = ["--by", "121", "--by", "210", "--unclicked-kept", "0.5"]
    status, shown, error = call(capsys, "evaluate", run, test, *options, "--top", 2)
    assert status == 0, error
    assert "CTR by field 121: the 2 largest slices" in shown and "CTCVR by field 210" in shown
    _, shown, _ = call(capsys, "evaluate", run, test, *options, "--json")
    slices = json.loads(shown)["slices"]["121"]
    assert sum(part["impressions"] for part in slices["ctr"]) <= 1000
    status, _, error = call(capsys, "evaluate", run, test, "--by", "12")
    assert status == 1 and error.startswith("Error: field '12': the dataset has none")


def test_tables_that_do_not_fit_are_refused_before_anything_is_made(
    synthetic_log: SyntheticLog,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("esmm_fast.run.run.available_memory", lambda: 1000)
    options = ["--train", synthetic_log.train_path, "--out", tmp_path / "run", *SMALL]
    status, shown, error = call(capsys, "train", *options)
    assert status == 1 and error.count("\n") == 1
    assert error.startswith("Error: the training needs about ") and "1000 B are available" in error
    assert (
        shown.startswith("memory: about ") and " 101 " in shown
    )  # bytes per field, printed before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["base", "ctr"])
def test_other_methods_train_too(
    method: str, synthetic_log: SyntheticLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["--train", synthetic_log.train_path, "--method", method, "--out", run, *SMALL]
    assert call(capsys, "train", *options)[0] == 0
    status, shown, error = call(capsys, "evaluate", run, synthetic_log.test_path)
    assert status == 0, error
    assert ("CVR " in shown) == (method == "base") and ("CTR " in shown) == (method == "ctr")


def test_compare(
    synthetic_log: SyntheticLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: list[object] = ["--train", synthetic_log.train_path, "--test", synthetic_log.test_path]
    options += ["--methods", "all", "--repeats", 1, "--out", tmp_path / "out", *SMALL]
    status, shown, error = call(capsys, "compare", *options, "--truth", synthetic_log.truth_path)
    assert status == 0, error
    assert shown.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    assert "| BASE |" in shown and "| ESMM |" in shown
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["synthetic"]["ctr"] == 0.2 and results["settings"]["dim"] == 4
    families = ["base", "aman", "oversampling", "unbias", "division", "esmm-ns", "esmm"]
    assert list(results["families"]) == families
    assert results["command"].startswith("esmm-fast ")
    options += ["--truth", synthetic_log.truth_path]
    status, shown, error = call(capsys, "compare", *options)  # goes on where it ended
    assert status == 0 and "14 of 14 runs are there already" in shown, error
    status, _, error = call(capsys, "compare", *options, "--lr", 0.5)
    assert status == 1 and "settings.lr = 0.001, asked for is 0.5" in error


def test_compare_on_shares_of_the_training_set(
    synthetic_log: SyntheticLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: list[object] = ["--train", synthetic_log.train_path, "--test", synthetic_log.test_path]
    options += ["--methods", "base", "--repeats", 1, "--out", tmp_path / "out", *SMALL]
    status, shown, error = call(capsys, "compare", *options, "--train-shares", "40,100")
    assert status == 0, error
    assert "40 % of the training groups" in shown
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [share["percent"] for share in results["shares"]] == [40, 100]
    for bad in ("0,100", "many", "101"):
        status, _, error = call(capsys, "compare", *options, "--train-shares", bad)
        assert status == 2 and "expected percents like 1,20,40,100" in error


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in (
        ["trian"],
        ["train", "--out", tmp_path / "run"],
        ["train", "--hidden", "wide", "--out", tmp_path / "run"],
        ["prepare", "--out", tmp_path / "data"],
        ["prepare", tmp_path],
        ["evaluate", tmp_path / "missing", tmp_path],
    ):
        status, _, error = call(capsys, *arguments)
        assert status == 2 and error.startswith("Error: "), arguments
        assert error.count("\n") == 1 and "--help" in error
    assert "did you mean" in call(capsys, "trian")[2].lower()
    assert "Did you mean '--batch-size'?" in call(capsys, "train", "--batchsize", 3)[2]
    assert "did you mean" not in call(capsys, "train", "--bogus")[2].lower()


def test_failures_are_one_line_and_debug_adds_the_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, out, error = call(capsys, "evaluate", tmp_path, tmp_path)
    assert (status, out) == (1, "")
    assert error == f"Error: {tmp_path}: expected a run, found no config.yaml\n"
    status, _, error = call(capsys, "evaluate", tmp_path, tmp_path, "--debug")
    assert status == 1 and "Traceback" in error and error.splitlines()[-1].startswith("Error: ")
    (tmp_path / "c.yaml").write_text("train: x\nmethid: base\n")
    options = ["--config", tmp_path / "c.yaml", "--out", tmp_path / "run"]
    status, _, error = call(capsys, "train", *options)
    named = f"Error: {tmp_path / 'c.yaml'}: "
    assert (status, error) == (1, f"{named}methid: unknown key; did you mean 'method'?\n")
    (tmp_path / "c.yaml").write_text("train: x\nbatch_size: 64\n")
    status, _, error = call(capsys, "train", *options)
    assert error == f"{named}batch_size: unknown key; did you mean 'settings.batch_size'?\n"
    _, _, error = call(capsys, "train", *options, "--lr", "-1")
    assert error.startswith(named)  # of the file's key, not of the option
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from esmm_fast.cli import main\n"
        f"try: main(['train', '--train', {str(tmp_path)!r}, '--out', {str(tmp_path)!r}])\n"
        "except SystemExit as end:\n"
        "    print('heavy:', sorted({'torch', 'numpy', 'pyarrow'} & set(sys.modules)), end.code)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "heavy: [] 1\n"
    assert f"{tmp_path} exists; " in ended.stderr and "--resume continues" in ended.stderr


def test_a_place_that_cannot_be_written_is_named_as_typed(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    synthetic_log: SyntheticLog,
) -> None:
    (tmp_path / "file").touch()
    log = synthetic_log.log
    for out in (tmp_path / "file" / "out", "/proc/out"):
        status, _, error = call(capsys, "prepare", log, "--out", out)
        assert status == 1 and error.startswith(f"Error: {out}: cannot be made in "), error
        assert ".partial" not in error
    monkeypatch.chdir(tmp_path)

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    _, _, error = call(capsys, "prepare", log, "--out", "out")
    assert error == "Error: out: cannot be made in .: no permission to write\n"


def test_help_says_the_defaults_and_what_the_choices_mean(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in ("train", "compare"):
        text = " ".join(call(capsys, command, "--help")[1].split())
        defaults = config.Settings()
        assert f"Impressions per step. Default: {defaults.batch_size}." in text
        assert f"at the start. Default: {defaults.init_std}." in text
        assert "Default: 360,200,80." in text
        assert "none (and), not trained on (drop), one (raw)" in text


def test_a_log_without_common_rows_is_announced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, synthetic_log: SyntheticLog
) -> None:
    skeleton = synthetic_log.log / "sample_skeleton_test.csv"
    status, _, error = call(
        capsys, "prepare", "--skeleton", skeleton, "--out", tmp_path / "without"
    )
    assert (status, error) == (0, "no --common was given: the common rows hold no features\n")
    other = synthetic_log.log / "common_features_train.csv"
    options = ["--skeleton", skeleton, "--common", other, "--out", tmp_path / "exchanged"]
    status, _, error = call(capsys, "prepare", *options)
    assert status == 1
    assert error.endswith("(is the common file of another log, or of the other half?)\n"), error


def test_what_is_not_the_truth_of_a_dataset_is_said(synthetic_log: SyntheticLog) -> None:
    with pytest.raises(ValueError, match=r"synth\.json: expected a Parquet file with"):
        Truth.load(synthetic_log.log / "synth.json")
    truth, test = synthetic_log.truth, synthetic_log.test
    truth.check_covers(test)
    with pytest.raises(ValueError, match=r"each of the 1000 impressions .* got 2000: is it the"):
        Truth.load(synthetic_log.log / "truth_train.parquet").check_covers(test)
    with pytest.raises(ValueError, match=r"expected the sample ids of .*, got others"):
        Truth(truth.sample_id + 1, truth.pctr, truth.pcvr).check_covers(test)
    Truth(truth.sample_id + 1, truth.pctr, truth.pcvr).check_covers(test.select([0, 1]))


def test_an_auc_of_one_class_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    one = Predictions(np.zeros((1, 2), np.float32), pctr=np.full(1, 0.5, np.float32))
    echo_metrics(task_metrics(one))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "CTR: no AUC, one class only: 0 positive of 1 (all impressions)"


def test_an_error_nobody_foresaw_says_its_kind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("esmm_fast.quickstart.quickstart", broken)
    status, _, error = call(capsys, "quickstart", "--out", tmp_path / "out")
    assert (status, error) == (1, "Error: RuntimeError: first second (--debug shows where)\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(number: signal.Signals, status: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "esmm_fast", "quickstart", "--impressions", "50000"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("3/4"):
            break
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status, error
    assert "Traceback" not in error
