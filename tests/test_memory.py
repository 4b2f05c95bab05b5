"""memory: what tables will take is what they take, and too much is refused before it is taken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from esmm_fast import ESMM, Field, Schema
from esmm_fast.comparison import experiment
from esmm_fast.comparison.experiment import compare
from esmm_fast.embedding import EmbeddingTables
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


def build(schema: Schema, shared: bool = True) -> list[ESMM]:
    return [ESMM(schema, dim=18, hidden=(1,), shared_tables=shared)]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("optimizer", ["lazy_adam", "adam"])
def test_the_estimate_is_what_tables_take(shared: bool, optimizer: str) -> None:
    found = memory.of_tables(lambda schema: build(schema, shared), SCHEMA, optimizer)
    (model,) = build(SCHEMA, shared)
    tables = [m for m in model.modules() if isinstance(m, EmbeddingTables)]
    optimizers = default_optimizers(model, tables=optimizer)
    weights = sum(t.weight.numel() * 4 for t in tables)
    if optimizer == "adam":
        assert (found.total, found.peak) == (4 * weights, 4 * weights)
        return
    assert found.total == sum(t.nbytes for t in tables)
    saved = split_tensors(optimizers[0].state_dict())[1].values()
    assert found.peak - found.total == sum(t.numel() * 4 for t in saved) == 2 * weights
    assert found.rows == {"user": 1000, "item": 70}
    assert found.fields["item"] == ("seen", "item")


def test_lines_name_every_table_and_its_fields() -> None:
    found = memory.of_tables(build, SCHEMA)
    first, user, item = found.lines()
    assert first == (
        "tables: 1,070 rows, 267.5 KiB with the optimizer's state, "
        "418.0 KiB while a checkpoint is written"
    )
    assert user.split() == ["user", "1,000", "rows", "250.0", "KiB"]
    assert item.endswith("(fields seen, item)")


def test_too_much_is_refused_by_name() -> None:
    found = memory.of_tables(build, SCHEMA)
    found.check(None)
    found.check(found.peak)
    with pytest.raises(MemoryError) as error:
        found.check(found.peak - 1)
    assert str(error.value).startswith("the tables need 418.0 KiB (1,070 rows, ")
    assert "table 'user' is the largest with 1,000 rows: raise min_count" in str(error.value)


def test_copies_that_early_stopping_keeps_count() -> None:
    none, two = (memory.of_tables(build, SCHEMA, kept_copies=n) for n in (0, 2))
    assert two.total - none.total == 2 * 1070 * 18 * 4


def test_available_memory_is_below_that_of_the_machine() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    available = memory.available()
    assert available is not None and 0 < available < total


def test_a_checkpoint_of_tables_copies_no_more_than_was_said(tmp_path: Path) -> None:
    """The parameters' copy is dropped before the optimizer's state is taken."""
    (model,) = build(SCHEMA)
    default_optimizers(model)
    found = memory.of_tables(build, SCHEMA)
    path = save(tmp_path, {"esmm": model}, 1)
    assert (path / "esmm.safetensors").stat().st_size < found.peak - found.total


def test_a_comparison_that_does_not_fit_is_refused(
    synthetic_log: SyntheticLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "available", lambda: 1000)
    said: list[str] = []
    with pytest.raises(MemoryError, match=r"the tables need .* state\), 1000 B are"):
        compare(synthetic_log.train, synthetic_log.test, ("esmm",), repeats=1, say=said.append)
    assert said[0].startswith("tables: ") and "checkpoint" not in said[0]


def test_hashed_tables_count_with_the_rows_they_have() -> None:
    fields = (Field("user", "common", rows="hash:256"), Field("item", rows=70))
    found = memory.of_tables(build, Schema(fields))
    assert found.rows == {"user": 257, "item": 70} or found.rows == {"user": 256, "item": 70}
    (model,) = build(Schema(fields))
    default_optimizers(model)
    assert found.total == model.tables.nbytes
