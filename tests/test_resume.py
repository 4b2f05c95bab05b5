"""Resume: a run that is killed, stopped or fails goes on to the same bits; nothing is left half."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from forked import Forking
from safetensors.torch import load_file

from esmm_fast import catalogue, methods
from esmm_fast.catalogue import METHODS
from esmm_fast.config import RunConfig, resolve
from esmm_fast.methods import Method
from esmm_fast.run import checkpoint
from esmm_fast.run import run as runs
from esmm_fast.run.interruption import Interrupted
from esmm_fast.run.session import Session
from esmm_fast.staging import lock

if TYPE_CHECKING:
    from synthetic_log import SyntheticLog

pytest_plugins = ("synthetic_log",)

SETTINGS = {"dim": 4, "hidden": [8], "batch_size": 64, "epochs": 3, "lr": 0.01}
SCHEDULED = {"schedule": "cosine", "warmup_steps": 9}


@pytest.fixture(scope="module")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forking]:
    process = Forking(tmp_path_factory.mktemp("forking"))
    process.run("--version")  # has imported all
    yield process
    process.close()


def parameters(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    found = checkpoint.latest(run / "checkpoints")
    return {name: load_file(found.path / f"{name}.safetensors") for name in found.networks}


def step_saved(folder: Path) -> int:
    """Returns the step of the newest checkpoint in a folder, 0 where there is none."""
    return max((int(path.name[5:].partition(".")[0]) for path in folder.glob("step-*")), default=0)


def lines(run: Path) -> list[dict[str, Any]]:
    """Returns metrics.jsonl without the times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def assert_same(run: Path, other: Path) -> None:
    """Both runs are finished, and equal to the last bit but for the time they took."""
    a, b = parameters(run), parameters(other)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        assert all(torch.equal(a[name][key], b[name][key]) for key in a[name]), name
    assert lines(run) == lines(other)
    histories = []
    for each in (run, other):
        found = checkpoint.latest(each / "checkpoints")
        assert found.facts["finished"]
        state = found.training()["networks"]
        histories.append({n: s["history"]["losses"].tolist() for n, s in state.items()})
    assert histories[0] == histories[1]


def test_kills_at_random_moments_change_no_bit(
    synthetic_log: SyntheticLog, tmp_path: Path, forking: Forking
) -> None:
    options: list[object] = [
        "--train",
        synthetic_log.train_path,
        "--valid",
        synthetic_log.test_path,
    ]
    options += [
        "--dim",
        4,
        "--hidden",
        8,
        "--batch-size",
        16,
        "--epochs",
        3,
        "--schedule",
        "linear",
    ]
    options += ["--evaluate-steps", 100, "--keep-checkpoints", 1]
    status, output = forking.run("train", *options, "--out", tmp_path / "whole")
    assert status == 0, output
    last = checkpoint.latest(tmp_path / "whole" / "checkpoints").step

    draw, saved = random.Random(0), tmp_path / "killed" / "checkpoints"
    options += ["--checkpoint-minutes", 0.0003, "--resume", "--out", tmp_path / "killed"]
    for _ in range(3):  # while it begins, perhaps before the run is there
        process = forking.start("train", *options)
        time.sleep(draw.uniform(0, 0.3))
        forking.send(process, signal.SIGKILL)
        assert forking.status() in (0, -signal.SIGKILL), forking.output.read_text()
    steps = [step_saved(saved)]
    while steps[-1] < last:  # each time killed a moment after it came a little further
        process = forking.start("train", *options)
        further = min(steps[-1] + draw.randint(1, last // 6), last)
        deadline = time.monotonic() + 60
        while step_saved(saved) < further:
            assert time.monotonic() < deadline, forking.output.read_text()
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        forking.send(process, signal.SIGKILL)
        assert forking.status() in (0, -signal.SIGKILL), forking.output.read_text()
        steps.append(step_saved(saved))
    assert len(steps) > 2
    status, output = forking.run("train", *options)
    assert status == 0, output
    assert_same(tmp_path / "killed", tmp_path / "whole")
    assert (tmp_path / "killed" / "report.html").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(
    number: signal.Signals,
    status: int,
    synthetic_log: SyntheticLog,
    tmp_path: Path,
    forking: Forking,
) -> None:
    run = tmp_path / "run"
    options = ["--train", synthetic_log.train_path, "--dim", 4, "--hidden", 8, "--batch-size", 16]
    process = forking.start("train", *options, "--epochs", 1000, "--out", run)
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() or not lines(run):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    forking.send(process, number)
    assert forking.status() == status
    shown = forking.output.read_text().splitlines()[-1]
    step = checkpoint.latest(run / "checkpoints").step
    assert shown.startswith(f"stopped after step {step:,}, saved in {run}/checkpoints/step-")
    assert shown.endswith(f"esmm-fast train --resume --out {run} goes on")
    assert lines(run)[-1]["step"] <= step
    assert forking.run("evaluate", run, synthetic_log.test_path)[0] == 0


class Stop:
    """Stops a run the n-th time that its state is whole."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        real = Session.between

        def between(session: Session) -> None:
            self.left -= 1
            if self.left == 0:
                session.interruption.number = signal.SIGTERM
            real(session)

        monkeypatch.setattr(Session, "between", between)


def two_networks() -> Method:
    networks = {"cvr": METHODS["base"].networks["cvr"], "esmm": METHODS["esmm"].networks["esmm"]}
    last = Method("two", "Two", "", "", "", networks, lambda found: found["esmm"])
    return last


@pytest.mark.parametrize(
    "change",
    [
        {"settings": SETTINGS | SCHEDULED, "evaluate_steps": 20},
        {"settings": SETTINGS | {"table_optimizer": "adam", "group_limit": 2}},
        {
            "settings": SETTINGS | {"epochs": 30, "lr": 0.1},
            "early_stopping": {"patience": 2, "metric": "cvr.auc"},
            "evaluate_steps": 25,
        },
        {"method": "two", "settings": SETTINGS},
        {"method": "unbias", "settings": SETTINGS},
        {"method": "base-steps", "settings": SETTINGS | SCHEDULED},
    ],
    ids=["scheduled", "dense adam", "early stopping", "two", "unbias", "base for more steps"],
)
def test_stopping_wherever_the_state_is_whole_changes_no_bit(
    change: dict[str, Any],
    synthetic_log: SyntheticLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(catalogue.TRAINABLE, "two", two_networks())
    content = {"train": str(synthetic_log.train_path), "valid": str(synthetic_log.test_path)}
    config = resolve(RunConfig, content | change)
    stop = Stop(monkeypatch)
    runs.train(config, tmp_path / "whole")
    calls = -1 - stop.left
    moments = sorted(random.Random(1).sample(range(1, calls), 5))
    stop.left = moments[0]
    for before, after in zip(moments, [*moments[1:], 10**9], strict=True):
        with pytest.raises(Interrupted) as stopped:
            runs.train(config, tmp_path / "stopped", resume=True)
        assert stopped.value.number == signal.SIGTERM
        stop.left = max(after - before, 1)
    stop.left = -1
    results = runs.train(config, tmp_path / "stopped", resume=True)
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    again = runs.train(config, tmp_path / "stopped", resume=True)  # nothing is left to do
    for key in ("networks", "valid"):
        assert json.dumps(again[key]) == json.dumps(results[key])
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_is_continued_as_it_was_begun(synthetic_log: SyntheticLog, tmp_path: Path) -> None:
    run = tmp_path / "run"
    content = {"train": str(synthetic_log.train_path), "settings": SETTINGS}
    runs.train(resolve(RunConfig, content), run)
    with pytest.raises(FileExistsError, match=r"exists; .* \(--resume continues a run\)"):
        runs.train(resolve(RunConfig, content), run)
    with pytest.raises(ValueError, match=r"settings\.lr: .* was begun with 0\.01, got 0\.5: a run"):
        runs.train(resolve(RunConfig, content, {"settings.lr": 0.5}), run, resume=True)
    runs.train(resolve(RunConfig, content, {"keep_checkpoints": 7}), run, resume=True)
    assert "keep_checkpoints: 7" in (run / "config.yaml").read_text()
    said: list[str] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        runs.train(resolve(RunConfig, content), run, resume=True, say=said.append)
    finally:
        torch.set_num_threads(threads)
    assert any(line.startswith(f"threads: {threads} when it was saved") for line in said)
    found = checkpoint.latest(run / "checkpoints")
    facts = json.loads((found.path / "checkpoint.json").read_text())
    facts["data"]["train"]["impressions.arrow"] = "0" * 16
    (found.path / "checkpoint.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"train: expected the dataset that .* was begun with"):
        runs.train(resolve(RunConfig, content), run, resume=True)


def test_what_an_error_leaves(
    synthetic_log: SyntheticLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"train": str(synthetic_log.train_path), "settings": SETTINGS}
    config, run = resolve(RunConfig, content), tmp_path / "run"

    def fails_at(step: int, error: Exception) -> None:
        def between(session: Session) -> None:
            if session.steps == step:
                raise error

        monkeypatch.setattr(Session, "between", between)

    with monkeypatch.context() as patch:  # before the first step: nothing
        patch.setattr(methods.Training, "run", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runs.train(config, run)
    assert list(tmp_path.iterdir()) == []
    fails_at(5, FloatingPointError("nan"))  # later: what was done until then
    with pytest.raises(FloatingPointError):
        runs.train(config, run)
    assert checkpoint.latest(run / "checkpoints").step == 5
    fails_at(9, OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        runs.train(config, run, resume=True)
    assert checkpoint.latest(run / "checkpoints").step == 5
    monkeypatch.undo()
    runs.train(config, run, resume=True)
    runs.train(config, tmp_path / "whole")
    assert_same(run, tmp_path / "whole")


def test_what_a_failed_resume_leaves(
    synthetic_log: SyntheticLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"train": str(synthetic_log.train_path), "method": "unbias", "settings": SETTINGS}
    config, run = resolve(RunConfig, content), tmp_path / "run"
    stop = Stop(monkeypatch)
    stop.left = 120  # in the second network
    with pytest.raises(Interrupted):
        runs.train(config, run)

    def everything() -> dict[str, int]:
        found = (path for path in run.rglob("*") if path.name != "metrics.jsonl")
        return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in found}

    before = everything()
    last = checkpoint.latest(run / "checkpoints")
    assert last.networks == ("ctr", "cvr")
    for name in ("load_network", "training"):  # before or while its state is read
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(checkpoint.Checkpoint, name, lambda *_: 1 / 0)
            runs.train(config, run, resume=True)
        assert everything() == before
    held = lock(run, "")  # the config is not touched by one who may not train
    with pytest.raises(FileExistsError, match="another process is training this run"):
        runs.train(resolve(RunConfig, content, {"keep_checkpoints": 7}), run, resume=True)
    os.close(held)
    assert everything() == before
    stop.left = -1
    runs.train(config, run, resume=True)
    runs.train(config, tmp_path / "whole")
    assert_same(run, tmp_path / "whole")


def test_what_is_saved_is_not_saved_again(
    synthetic_log: SyntheticLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"train": str(synthetic_log.train_path), "settings": SETTINGS}
    config, run = resolve(RunConfig, content), tmp_path / "run"
    stop = Stop(monkeypatch)
    stop.left = 20
    with pytest.raises(Interrupted):
        runs.train(config, run)
    saved = checkpoint.latest(run / "checkpoints").path
    monkeypatch.setattr(methods.Training, "run", lambda self: self.between())
    stop.left = 1  # stopped again before a step is done
    with pytest.raises(Interrupted, match=f"saved in {saved}; esmm-fast train --resume"):
        runs.train(config, run, resume=True)
    assert list((run / "checkpoints").iterdir()) == [saved]


def test_a_metric_that_nothing_predicts_is_refused_first(
    synthetic_log: SyntheticLog, tmp_path: Path
) -> None:
    train, test = str(synthetic_log.train_path), str(synthetic_log.test_path)
    watched = {"valid": test, "method": "base", "early_stopping": {"metric": "ctr.auc"}}
    with pytest.raises(ValueError) as error:
        runs.train(resolve(RunConfig, {"train": train, **watched}), tmp_path / "run")
    assert not (tmp_path / "run").exists() and str(error.value) == (
        "early_stopping.metric: expected one of cvr, which the networks of base predict, got "
        "'ctr.auc'"
    )


def test_a_metric_is_watched_where_it_is_predicted(
    synthetic_log: SyntheticLog, tmp_path: Path
) -> None:
    content = {
        "train": str(synthetic_log.train_path),
        "valid": str(synthetic_log.test_path),
        "method": "unbias",
        "settings": {**SETTINGS, "epochs": 6, "lr": 0.1},
        "early_stopping": {"metric": "cvr.auc"},
    }
    networks = runs.train(resolve(RunConfig, content), tmp_path / "run")["networks"]
    assert networks["ctr"]["steps"] == 6 * 32 and networks["cvr"]["impressions"] < 6 * 400


def test_a_run_without_a_checkpoint_says_so(synthetic_log: SyntheticLog, tmp_path: Path) -> None:
    config = resolve(RunConfig, {"train": str(synthetic_log.train_path), "settings": SETTINGS})
    run = tmp_path / "run"
    runs.train(config, run)
    for path in (run / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    with pytest.raises(ValueError, match="ended before its first checkpoint; esmm-fast train --re"):
        runs.Run.load(run)
    runs.train(config, run, resume=True)
    runs.train(config, tmp_path / "whole")
    assert_same(run, tmp_path / "whole")


def test_two_processes_do_not_train_one_run(synthetic_log: SyntheticLog, tmp_path: Path) -> None:
    config = resolve(RunConfig, {"train": str(synthetic_log.train_path), "settings": SETTINGS})
    runs.train(config, tmp_path / "run")
    held = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(FileExistsError, match="another process is training this run"):
        runs.train(config, tmp_path / "run", resume=True)
    os.close(held)
    runs.train(config, tmp_path / "run", resume=True)
