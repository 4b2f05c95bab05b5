"""run_log: the lines of metrics.jsonl, the cut where a run goes on, and TensorBoard's events."""

import json
import resource
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from esmm_fast.run.log import RunLog, event_writer_class
from esmm_fast.train import History, Step


def steps(log: RunLog, first: int, last: int) -> None:
    for n in range(first, last + 1):
        log.step("esmm", Step(n, 1, n / 100, 10 * n, 0.0001 * n, 0.01))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_line_every_50_steps_and_the_rest_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    with closing(RunLog(tmp_path)) as log:
        steps(log, 1, 60)
        result = {"impressions": 3, "ctr": {"auc": 0.5}}
        log.evaluation("esmm", 1, History(steps=60, valid=[result], valid_steps=[60]))
        log.rest("esmm")
    first, rest, valid = lines(tmp_path)
    assert first == {
        "network": "esmm",
        "epoch": 1,
        "step": 50,
        "impressions": 500,
        "seconds": 0.005,
        "lr": 0.01,
        "loss": pytest.approx(0.255),
    }
    assert rest["step"] == 60 and rest["loss"] == pytest.approx(0.555)
    assert valid == {"network": "esmm", "epoch": 1, "step": 60, "valid": result}


@pytest.mark.parametrize("stop", [30, 50, 77, 100])
def test_it_goes_on_where_a_run_was_saved(stop: int, tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    with closing(RunLog(tmp_path / "whole")) as log:
        steps(log, 1, 120)
        log.rest("esmm")
    with closing(RunLog(tmp_path / "cut")) as log:
        steps(log, 1, stop)
        state = log.state(stop)
        steps(log, stop + 1, 110)  # is lost
    with closing(RunLog(tmp_path / "cut", json.loads(json.dumps(state)))) as log:
        steps(log, stop + 1, 120)
        log.rest("esmm")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    (tmp_path / "cut" / "metrics.jsonl").write_text("")
    if state["bytes"]:
        with pytest.raises(ValueError, match=r"expected at least the \d+ bytes that it had"):
            RunLog(tmp_path / "cut", state)


def test_a_full_disk_names_the_log(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))  # stands for a full disk
    try:
        message = r"metrics\.jsonl: cannot be made in .*: File too large"
        with closing(RunLog(tmp_path)) as log, pytest.raises(OSError, match=message):
            steps(log, 1, 2_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_without_tensorboardx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'esmm_fast\[tensorboard\]'"):
        event_writer_class()


def test_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    with closing(RunLog(tmp_path, tensorboard=True)) as log:
        steps(log, 1, 50)
        log.steps_before = 50
        steps(log, 1, 50)
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        found += [
            (event.step, value.tag, round(value.simple_value, 6)) for value in event.summary.value
        ]
    assert found == [
        (50, "esmm/loss", 0.255),
        (50, "esmm/lr", 0.01),
        (100, "esmm/loss", 0.255),
        (100, "esmm/lr", 0.01),
    ]
