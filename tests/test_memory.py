"""memory: what tables will take is what they take, and too much is refused before it is taken."""

from __future__ import annotations

from dataclasses import replace as replace_field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from msgspec.structs import replace

from esmm_fast import ESMM, Batch, Field, Schema
from esmm_fast.comparison import experiment
from esmm_fast.comparison.experiment import compare
from esmm_fast.config import Settings
from esmm_fast.embedding import tables_in
from esmm_fast.machine import available_memory, machine, usable_cores
from esmm_fast.run import memory
from esmm_fast.run.checkpoint import save
from esmm_fast.run.nested import split_tensors
from esmm_fast.schedule import default_optimizers

if TYPE_CHECKING:
    from synthetic_log import SyntheticLog

pytest_plugins = ("synthetic_log",)

SCHEMA = Schema(
    (
        Field("user", "common", rows=1000),
        Field("seen", "common", table="item", rows=70),
        Field("item", rows=70),
    )
)


SETTINGS = Settings(hidden=(5,), batch_size=64, evaluation_batch_size=64)


def build(schema: Schema, settings: Settings = SETTINGS, shared: bool = True) -> list[ESMM]:
    return [ESMM(schema, dim=18, hidden=settings.hidden, shared_tables=shared)]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("optimizer", ["lazy_adam", "adam"])
def test_the_estimate_is_what_tables_take(shared: bool, optimizer: str) -> None:
    settings = replace(SETTINGS, table_optimizer=optimizer)
    found = memory.of_training(lambda schema, s: build(schema, s, shared), SCHEMA, settings)
    (model,) = build(SCHEMA, shared=shared)
    tables = tables_in(model)
    optimizers = default_optimizers(model, tables=optimizer)
    weights = sum(t.weight.numel() * 4 for t in tables)
    if optimizer == "adam":
        assert (found.tables, found.peak) == (4 * weights, found.total)
        return
    assert found.tables == sum(t.nbytes for t in tables)
    saved = split_tensors(optimizers[0].state_dict())[1].values()
    assert found.peak - found.total == sum(t.numel() * 4 for t in saved) == 2 * weights
    assert found.rows == {"user": 1000, "item": 70}
    assert found.fields["item"] == ("seen", "item")


def test_lines_name_every_table_and_its_fields() -> None:
    found = memory.of_training(build, SCHEMA, SETTINGS)
    first, user, item = found.lines()
    assert first == (
        "memory: about 275.8 KiB: tables 234.1 KiB (1,070 rows with the optimizer's state), "
        "towers 8.8 KiB, a batch 33.0 KiB; 426.3 KiB while a checkpoint is written"
    )
    assert user.split() == ["user", "1,000", "rows", "218.8", "KiB"]
    assert item.endswith("(fields seen, item)")


def test_too_much_is_refused_by_name() -> None:
    found = memory.of_training(build, SCHEMA, SETTINGS)
    found.check(None)
    found.check(found.peak)
    with pytest.raises(MemoryError) as error:
        found.check(found.peak - 1)
    assert str(error.value).startswith(
        "the training needs about 426.3 KiB: tables 384.5 KiB (1,070 rows with the "
    )
    assert "table 'user' is the largest with 1,000 rows: raise min_count" in str(error.value)


def test_copies_that_early_stopping_keeps_count() -> None:
    none, two = (memory.of_training(build, SCHEMA, SETTINGS, n) for n in (0, 2))
    assert two.tables - none.tables == 2 * 1070 * 18 * 4
    (model,) = build(SCHEMA)
    parameters = sum(p.numel() for p in model.tower_parameters())
    assert (none.towers, two.towers) == (4 * 4 * parameters, 6 * 4 * parameters)


def test_activations_of_a_batch_by_hand() -> None:
    found = memory.of_training(build, SCHEMA, SETTINGS)
    values = 3 * 18 + 2 * (5 + 1)  # pooled fields, two towers of a hidden layer and a logit
    assert found.activations == 2 * 64 * values * 4  # each with its gradient
    larger = replace(SETTINGS, evaluation_batch_size=1000)
    assert memory.of_training(build, SCHEMA, larger).activations == 1000 * values * 4
    several = Schema((replace_field(SCHEMA.fields[0], dim=4), *SCHEMA.fields[1:]))
    found = memory.of_training(build, several, SETTINGS)
    assert found.activations == 2 * 64 * 4 * (2 * (4 + 2 * 18) + 12)
    assert found.row_bytes == {"user": 64, "item": 224}  # 12 and 54 floats in units of 32 bytes


def test_what_a_step_takes_is_about_what_was_said() -> None:
    """The greatest of what torch holds at once in a step, by its own profiler."""
    settings = Settings(batch_size=4096, evaluation_batch_size=1, hidden=(360, 200, 80))
    found = memory.of_training(build, SCHEMA, settings)
    (model,) = build(SCHEMA, settings)
    bags = torch.arange(4096) % 70, None
    batch = Batch.from_bags(
        {"user": bags, "seen": bags, "item": bags}, torch.zeros(4096, 2), schema=SCHEMA
    )
    optimizers = default_optimizers(model)
    for _ in range(2):
        with torch.profiler.profile(profile_memory=True) as profile:
            model.loss(model(batch), batch).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    held = most = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    assert 0.7 * most < found.activations < 1.4 * most


def test_available_memory_is_below_that_of_the_machine() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    available = available_memory()
    assert available is not None and 0 < available < total


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 900 * 1024),
        ({"a/b": (1000, 600, 50)}, 450),
        ({"a": (500, 450, 0), "a/b": ("max", 400, 0)}, 50),
        ({"": (700, 650, 10), "a": (1000, 500, 0)}, 60),
        ({"other": (10, 0, 0)}, 900 * 1024),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_the_least_room_of_the_groups_around_the_process_counts(
    version: int, limits: dict[str, tuple[object, int, int]], expected: int, tmp_path: Path
) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 900 kB\n")
    lines = {1: "3:cpu:/elsewhere\n9:memory,hugetlb:/a/b\n", 2: "0::/a/b\n"}
    (tmp_path / "proc" / "self" / "cgroup").write_text(lines[version])
    top = tmp_path / "sys/fs/cgroup" / ("memory" if version == 1 else "")
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }
    for group, (limit, used, cache) in limits.items():
        (top / group).mkdir(parents=True, exist_ok=True)
        for name, value in zip(names[version], (limit, used), strict=False):
            (top / group / name).write_text(f"{value}\n")
        (top / group / "memory.stat").write_text(f"anon 1\n{names[version][2]} {cache}\n")
    assert available_memory(tmp_path) == expected
    assert available_memory(tmp_path / "nowhere") is None


def test_the_machine_has_the_cores_that_may_be_used() -> None:
    assert machine()["cpus"] == usable_cores() >= 1


def test_a_checkpoint_of_tables_copies_no_more_than_was_said(tmp_path: Path) -> None:
    """The parameters' copy is dropped before the optimizer's state is taken."""
    (model,) = build(SCHEMA)
    default_optimizers(model)
    found = memory.of_training(build, SCHEMA, SETTINGS)
    path = save(tmp_path, {"esmm": model}, 1)
    assert (path / "esmm.safetensors").stat().st_size < found.peak - found.total


def test_a_comparison_that_does_not_fit_is_refused(
    synthetic_log: SyntheticLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "available_memory", lambda: 1000)
    said: list[str] = []
    with pytest.raises(MemoryError, match=r"the training needs .* 1000 B are"):
        compare(synthetic_log.train, synthetic_log.test, ("esmm",), repeats=1, say=said.append)
    assert said[0].startswith("memory: about ") and "checkpoint" not in said[0]


def test_hashed_tables_count_with_the_rows_they_have() -> None:
    fields = (Field("user", "common", rows="hash:256"), Field("item", rows=70))
    found = memory.of_training(build, Schema(fields), SETTINGS)
    assert found.rows == {"user": 257, "item": 70} or found.rows == {"user": 256, "item": 70}
    (model,) = build(Schema(fields))
    default_optimizers(model)
    assert found.tables == model.tables.nbytes
