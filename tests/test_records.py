"""records: what exists is whole, comes back as it was, and belongs to one plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from esmm_fast.comparison.records import Records

PLAN = {"settings": {"lr": 0.001, "hidden": (4, 2)}, "train": "abc"}


def test_records_and_arrays_come_back(tmp_path: Path) -> None:
    records = Records(tmp_path / "out", PLAN)
    assert records.record("000-base") is None and records.arrays("000-base") is None
    kept = records.save("000-base", {"auc": 0.5, "loss": float("nan"), "sizes": (1, 2)})
    assert kept == {"auc": 0.5, "loss": None, "sizes": [1, 2]}
    records.save_arrays("000-base", {"pcvr": np.arange(3, dtype=np.float32)})
    again = Records(tmp_path / "out", PLAN)
    assert again.record("000-base") == kept
    arrays = again.arrays("000-base")
    assert arrays is not None and arrays["pcvr"].dtype == np.float32
    assert arrays["pcvr"].tolist() == [0, 1, 2]


def test_in_memory_alone_it_is_the_same() -> None:
    records = Records(None, PLAN)
    assert records.save("a", {"x": float("inf"), "y": (1,)}) == {"x": None, "y": [1]}
    assert records.record("a") == {"x": None, "y": [1]} and records.record("b") is None
    records.save_arrays("a", {"p": np.ones(2)})
    assert records.arrays("a")["p"].tolist() == [1, 1]  # type: ignore[index]


def test_a_stop_in_the_middle_of_writing_leaves_no_record(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Records(out, PLAN)
    (out / "records" / "000-base.part").write_text('{"half": ')
    (out / "predictions" / "000-base.part").write_bytes(b"PK")
    records = Records(out, PLAN)
    assert records.record("000-base") is None and records.arrays("000-base") is None
    records.save("000-base", {"whole": 1})
    assert json.loads((out / "records" / "000-base.json").read_text()) == {"whole": 1}


def test_another_plan_is_refused_by_its_first_difference(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Records(out, PLAN)
    Records(out, {"train": "abc", "settings": {"lr": 0.001, "hidden": [4, 2]}})  # the same
    other = {**PLAN, "settings": {"lr": 0.01, "hidden": (4, 2)}}
    with pytest.raises(FileExistsError, match=r"settings.lr = 0.001, asked for is 0.01"):
        Records(out, other)
    with pytest.raises(FileExistsError, match="holds a comparison with valid = None"):
        Records(out, {**PLAN, "valid": 0.1})


def test_a_plan_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert Records(out, {**PLAN, "esmm_fast": "0.1"}).begun_by == "0.1"
    plan = {"settings": {"lr": 0.001, "hidden": (4, 2), "warmup": 0}, "esmm_fast": "0.2"}
    plan["train"] = "abc"
    before = {"settings": {"lr": 0.5, "warmup": 0}}  # of what stands in the plan, that counts
    assert Records(out, plan, before).begun_by == "0.1"
    with pytest.raises(FileExistsError, match=r"settings\.warmup = None, asked for is 0"):
        Records(out, plan)
    later = {**plan, "settings": {**plan["settings"], "warmup": 10}}  # type: ignore[dict-item]
    with pytest.raises(FileExistsError, match=r"settings\.warmup = 0, asked for is 10"):
        Records(out, later, before)


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"expected nothing there.*has no plan.json"):
        Records(tmp_path, PLAN)
    with pytest.raises(FileExistsError, match="expected nothing there"):
        Records(tmp_path / "notes.txt", PLAN)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    Records(tmp_path / "empty", PLAN)
