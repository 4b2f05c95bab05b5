"""The command's errors where a place, a file or an option is wrong: one line that names it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_cli import call

from esmm_fast import Vocabulary
from esmm_fast.catalogue import METHODS, family_of
from esmm_fast.run import run as runs

if TYPE_CHECKING:
    from synthetic_log import SyntheticLog

pytest_plugins = ("synthetic_log",)


def test_a_config_that_is_no_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--config", tmp_path, "--out", tmp_path / "run"]
    status, _, error = call(capsys, "train", *options)
    assert (status, error) == (1, f"Error: {tmp_path}: expected a YAML file, got a directory\n")


@pytest.mark.parametrize(
    "option", [("--patience", 1), ("--stop-metric", "cvr.auc"), ("--evaluate-steps", 5)]
)
def test_options_that_need_a_validation_set(
    option: tuple[str, object], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--train", tmp_path, "--out", tmp_path / "run", *option]
    status, _, error = call(capsys, "train", *options)
    assert status == 2
    assert error.startswith(f"Error: {option[0]}: expected a validation set with it (--valid)")


def test_a_warm_up_longer_than_the_training(
    synthetic_log: SyntheticLog, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--train", synthetic_log.train_path, "--out", tmp_path / "run", "--dim", 2]
    status, _, error = call(capsys, "train", *options, "--warmup-steps", 3)
    expected = "warmup_steps: expected at most the 2 steps of network 'esmm', got 3"
    assert (status, error) == (1, f"Error: {expected}\n") and list(tmp_path.iterdir()) == []


def test_a_misspelt_method_is_answered_with_the_nearest(
    synthetic_log: SyntheticLog, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sets = ["--train", synthetic_log.train_path, "--test", synthetic_log.test_path]
    for methods, hint in (
        (
            "base,esm",
            "unknown name 'esm'; did you mean 'esmm'? expected one of all, steps, base, aman, ",
        ),
        ("nothing", "unknown name 'nothing'; expected one of all, steps, base, aman, "),
    ):
        options = [*sets, "--methods", methods, "--out", tmp_path / "out"]
        status, _, error = call(capsys, "compare", *options)
        assert status == 1 and error.startswith(f"Error: method: {hint}")
    options = ["--train", synthetic_log.train_path, "--method", "esm2", "--out", tmp_path / "out"]
    status, _, error = call(capsys, "train", *options)
    assert status == 1 and "unknown name 'esm2'; did you mean 'esmm'? expected one of" in error
    assert list(tmp_path.iterdir()) == []


def test_the_help_of_compare_names_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys, "compare", "--help")[1]
    families: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        families.setdefault(family_of(method), []).append(name)
    for family, names in families.items():
        assert family in text
        if not family.endswith("-steps"):
            for name in names:
                assert name in text or name.removeprefix(family) in text


def test_places_where_nothing_can_be_made_come_first(
    synthetic_log: SyntheticLog,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def counted(*arguments: object, **options: object) -> None:
        raise AssertionError("the vocabulary was counted first")

    monkeypatch.setattr(Vocabulary, "from_dataset", counted)
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    train = ["--train", synthetic_log.train_path]
    for command in (["train"], ["compare", "--test", synthetic_log.test_path]):
        status, _, error = call(capsys, *command, *train, "--out", out)
        assert (status, error) == (
            1,
            f"Error: {out}: cannot be made in {out.parent}: {out.parent} is a file; "
            "expected a directory\n",
        )
    compare = ["compare", *train, "--test", synthetic_log.test_path]
    _, _, error = call(capsys, *compare, "--out", "/proc/x")
    assert error == "Error: /proc/x: cannot be made in /proc: No such file or directory\n"

    def missing() -> None:
        raise ImportError("tensorboard: expected the package")

    monkeypatch.setattr(runs, "event_writer_class", missing)
    status, _, error = call(capsys, "train", *train, "--tensorboard", "--out", tmp_path / "run")
    assert (status, error) == (1, "Error: tensorboard: expected the package\n")


def test_a_full_standard_output_is_said() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "esmm_fast", "--version"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "Error: standard output: No space left on device\n"
