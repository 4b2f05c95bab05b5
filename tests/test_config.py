"""config: defaults, YAML, overrides, and errors that name the key."""

from pathlib import Path
from typing import Any

import pytest

from esmm_fast import config
from esmm_fast.config import RunConfig, Settings, resolve


def test_defaults_are_the_papers_where_it_has_any() -> None:
    settings = Settings()
    assert (settings.dim, settings.hidden) == (18, (360, 200, 80))
    assert (settings.betas, settings.eps) == ((0.9, 0.999), 1e-8)
    assert (settings.batch_size, settings.lr, settings.init_std) == (1024, 1e-3, 0.01)


def test_overrides_reach_into_settings_and_none_leaves_alone() -> None:
    content = {"train": "a", "settings": {"lr": 0.1, "dim": 4}}
    found = resolve(RunConfig, content, {"train": "b", "settings.lr": 0.2, "settings.dim": None})
    assert (found.train, found.settings.lr, found.settings.dim) == ("b", 0.2, 4)
    assert content == {"train": "a", "settings": {"lr": 0.1, "dim": 4}}
    assert resolve(RunConfig, {"train": "a"}, {"settings.epochs": 3}).settings.epochs == 3


def test_overrides_begin_what_is_not_there_yet() -> None:
    content = {"train": "a", "valid": "b", "early_stopping": None}
    found = resolve(RunConfig, content, {"early_stopping.patience": 3})
    assert found.early_stopping is not None and found.early_stopping.patience == 3
    with pytest.raises(ValueError, match="settings: expected a mapping, got 3"):
        resolve(RunConfig, {"train": "a", "settings": 3}, {"settings.lr": 0.1})


def test_a_saved_config_comes_back(tmp_path: Path) -> None:
    saved = RunConfig(train="data/train", method="base", settings=Settings(hidden=(200, 80)))
    config.save(saved, tmp_path / "config.yaml")
    assert resolve(RunConfig, config.load(tmp_path / "config.yaml")) == saved


def test_a_number_without_a_point_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: data\nsettings: {lr: 1e-2, eps: 1e-7}\n")
    found = resolve(RunConfig, config.load(tmp_path / "c.yaml"))
    assert (found.settings.lr, found.settings.eps) == (0.01, 1e-7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"trian": "x"}, "trian: unknown key; did you mean 'train'?"),
        ({"train": "x", "settings": {"bach_size": 1}}, "settings.bach_size: unknown key; did you"),
        (
            {"train": "x", "settings": {"zzz": 1}},
            "settings.zzz: unknown key; known keys: dim, dims",
        ),
        ({}, "train: expected it, got none"),
        ({"train": "x", "settings": {"lr": "fast"}}, "settings.lr: expected a number, got 'fast'"),
        ({"train": "x", "settings": {"lr": 0}}, "settings: lr: expected a finite number above"),
        ({"train": "x", "settings": {"lr": ".inf"}}, "settings.lr: expected a number, got '.inf'"),
        ({"train": "x", "settings": {"lr": float("inf")}}, "settings: lr: expected a finite num"),
        ({"train": "x", "settings": {"lr": float("nan")}}, "settings: lr: expected a finite num"),
        (
            {"train": "x", "settings": {"betas": [0.9, 1.0]}},
            "settings: betas: expected two numbers in [0, 1), got [0.9, 1.0]",
        ),
        ({"train": "x", "settings": {"betas": [-0.1, 0.9]}}, "settings: betas: expected two numb"),
        ({"train": "x", "settings": {"betas": [0.9]}}, "settings.betas: expected a list of le"),
        (
            {"train": "x", "settings": {"eps": -1e-8}},
            "settings: eps: expected a finite number of at least 0, got -1e-08",
        ),
        (
            {"train": "x", "settings": {"init_std": float("inf")}},
            "settings: init_std: expected a finite number of at least 0, got inf",
        ),
        ({"train": "x", "settings": {"weight_decay": 1}}, "settings.weight_decay: unknown key; k"),
        ({"train": "x", "settings": {"dim": 0}}, "settings: dim: expected at least 1, got 0"),
        ({"train": "x", "settings": {"hidden": []}}, "settings: hidden: expected widths"),
        ({"train": "x", "settings": {"seed": -1}}, "settings: seed: expected 0 <= seed"),
        (
            {"train": "x", "settings": {"warmup_steps": -1}},
            "settings: warmup_steps: expected at",
        ),
        ({"train": "x", "settings": {"final_lr_share": 2}}, "settings: final_lr_share: expected a"),
        (
            {"train": "x", "settings": {"schedule": "step"}},
            "settings.schedule: expected one of constant, linear, cosine, got 'step'",
        ),
        ({"train": "x", "keep_checkpoints": 0}, "keep_checkpoints: expected at least 1, got 0"),
        ({"train": "x", "checkpoint_minutes": -1}, "checkpoint_minutes: expected a number of at"),
        ({"train": "x", "evaluate_steps": 5}, "evaluate_steps: expected a validation set with it"),
        (
            {"train": "x", "early_stopping": {"patience": 2}},
            "early_stopping: expected a validation set with it (valid: DATASET)",
        ),
        (
            {"train": "x", "valid": "y", "early_stopping": {"patience": 0}},
            "early_stopping: patience: expected at least 1, got 0",
        ),
        (
            {"train": "x", "valid": "y", "early_stopping": {"metric": "cvr.acu"}},
            "early_stopping: metric: expected ctr, cvr or ctcvr, a point and one of auc, log_loss,",
        ),
        (
            {"train": "x", "valid": "y", "early_stopping": {"patiense": 2}},
            "early_stopping.patiense: unknown key; did you mean 'patience'?",
        ),
        ({"train": "x", "settings": {"group_limit": 0}}, "settings: group_limit: expected at"),
        (
            {"train": "x", "settings": {"labels": "all"}},
            "settings.labels: expected one of and, drop, raw, got 'all'",
        ),
        (
            {"train": "x", "settings": {"hidden": 8}},
            "settings.hidden: expected a list like [360, 200, 80], got 8",
        ),
        (
            {"train": "x", "settings": {"hidden": [8, "wide"]}},
            "settings.hidden[1]: expected a whole number, got 'wide'",
        ),
        (
            {"train": "x", "settings": {"betas": [0.9]}},
            "settings.betas: expected a list of length 2 like [0.9, 0.999], got [0.9]",
        ),
        ({"train": "x", "tensorboard": "on"}, "tensorboard: expected true or false, got 'on'"),
        ({"train": "x", "early_stopping": 3}, "early_stopping: expected a mapping or null, got 3"),
    ],
)
def test_errors_name_the_key(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        resolve(RunConfig, content)
    assert str(error.value).startswith(message)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: [1\nx: 2\n")
    with pytest.raises(ValueError, match=r"c\.yaml:2: not YAML"):
        config.load(path)
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="expected a mapping at the top, got list"):
        config.load(path)
    path.write_text("train: a\nsettings:\n  lr: 1\n  dim: 2\n  lr: 3\n")
    with pytest.raises(ValueError, match=r"c\.yaml:5: lr: expected each key once, it stands"):
        config.load(path)
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert config.load(path)["b"] == {"x": 3, "y": 2}
    with pytest.raises(ValueError, match="expected a YAML file, got a directory"):
        config.load(tmp_path)
    path.write_text("")
    assert config.load(path) == {}
