"""predict: a run's predictions as Parquet, streamed, and nothing half written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from esmm_fast.config import RunConfig, resolve
from esmm_fast.run import predict
from esmm_fast.run import run as runs
from esmm_fast.run.predict import write_predictions
from esmm_fast.run.run import Run

if TYPE_CHECKING:
    from synthetic_log import SyntheticLog

pytest_plugins = ("synthetic_log",)

SETTINGS = {"dim": 4, "hidden": [8], "batch_size": 256, "evaluation_batch_size": 96}


@pytest.fixture(scope="module")
def trained(synthetic_log: SyntheticLog, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = tmp_path_factory.mktemp("predict") / "run"
    content = {"train": str(synthetic_log.train_path), "settings": SETTINGS}
    runs.train(resolve(RunConfig, content), run)
    return Run.load(run)


def test_every_impression_in_order_with_its_probabilities(
    trained: Run, synthetic_log: SyntheticLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "ROWS_AT_ONCE", 200)
    out = tmp_path / "new" / "p.parquet"
    test = synthetic_log.test
    assert write_predictions(trained, test, out) == 1000
    table = parquet.read_table(out)
    assert [(f.name, str(f.type)) for f in table.schema] == [
        ("sample_id", "uint64"),
        ("pctr", "float"),
        ("pcvr", "float"),
        ("pctcvr", "float"),
    ]
    assert table["sample_id"].to_pylist() == test.impressions["sample_id"].to_pylist()
    expected = trained.trained.predict(test, trained.vocabulary, trained.config.settings)
    for name in ("pctr", "pcvr", "pctcvr"):
        np.testing.assert_array_equal(table[name].to_numpy(), getattr(expected, name))
    file = parquet.ParquetFile(out)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sizes == [288, 288, 288, 136]  # of 96 each, as they came
    assert [p.name for p in out.parent.iterdir()] == ["p.parquet"]


def test_a_down_sampled_training_set_is_corrected(
    trained: Run, synthetic_log: SyntheticLog, tmp_path: Path
) -> None:
    tables = []
    for kept in (1.0, 0.1):
        write_predictions(trained, synthetic_log.test, tmp_path / str(kept), kept=kept)
        tables.append(parquet.read_table(tmp_path / str(kept)))
    raw, corrected = (t["pctr"].to_numpy().astype(float) for t in tables)
    np.testing.assert_allclose(corrected, raw / (raw + (1 - raw) / 0.1), rtol=1e-6)
    assert tables[0]["pcvr"] == tables[1]["pcvr"]
    product = corrected * tables[1]["pcvr"].to_numpy()
    np.testing.assert_allclose(tables[1]["pctcvr"].to_numpy(), product, rtol=1e-6)


def test_what_a_method_does_not_predict_is_null(
    synthetic_log: SyntheticLog, tmp_path: Path
) -> None:
    content = {
        "train": str(synthetic_log.train_path),
        "method": "base",
        "settings": SETTINGS,
    }
    runs.train(resolve(RunConfig, content), tmp_path / "run")
    run = Run.load(tmp_path / "run")
    write_predictions(run, synthetic_log.test, tmp_path / "p.parquet", kept=0.5)
    table = parquet.read_table(tmp_path / "p.parquet")
    assert [table[n].null_count for n in ("pctr", "pcvr", "pctcvr")] == [1000, 0, 1000]


def test_division_is_corrected_by_the_pctr_of_its_own_network(
    synthetic_log: SyntheticLog, tmp_path: Path
) -> None:
    content = {"train": str(synthetic_log.train_path), "method": "division", "settings": SETTINGS}
    runs.train(resolve(RunConfig, content), tmp_path / "run")
    run, tables = Run.load(tmp_path / "run"), []
    for kept in (1.0, 0.1):
        write_predictions(run, synthetic_log.test, tmp_path / str(kept), kept=kept)
        table = parquet.read_table(tmp_path / str(kept))
        tables.append({name: table[name].to_numpy().astype(float) for name in table.column_names})
    raw, corrected = tables
    expected = raw["pctr"] / (raw["pctr"] + (1 - raw["pctr"]) / 0.1)
    np.testing.assert_allclose(corrected["pctr"], expected, rtol=1e-6)
    np.testing.assert_allclose(corrected["pctcvr"], expected * raw["pcvr"], rtol=1e-5)
    np.testing.assert_allclose(raw["pctcvr"], raw["pctr"] * raw["pcvr"], rtol=1e-5)


def test_nothing_half_written(
    trained: Run, synthetic_log: SyntheticLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.parquet"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match=r"p\.parquet exists; expected a new"):
        write_predictions(trained, synthetic_log.test, out)
    assert out.read_text() == "mine"
    out.unlink()
    calls = []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    real = predict.predict_batch
    monkeypatch.setattr(predict, "predict_batch", failing)
    for place in (out, tmp_path / "new" / "folders" / "p.parquet"):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            write_predictions(trained, synthetic_log.test, place)
        assert list(tmp_path.iterdir()) == []


def test_folders_above_are_made_as_by_the_other_commands(
    trained: Run, synthetic_log: SyntheticLog, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "folders" / "p.parquet"
    write_predictions(trained, synthetic_log.test, out)
    assert parquet.read_table(out).num_rows == 1000
    with pytest.raises(FileExistsError, match=r"cannot be made in .*p\.parquet"):
        write_predictions(trained, synthetic_log.test, out / "p.parquet")


def test_an_empty_view_gives_an_empty_table(
    trained: Run, synthetic_log: SyntheticLog, tmp_path: Path
) -> None:
    nobody = synthetic_log.test.select(np.zeros(1000, bool))
    assert write_predictions(trained, nobody, tmp_path / "p.parquet") == 0
    table = parquet.read_table(tmp_path / "p.parquet")
    assert (table.num_rows, table.num_columns) == (0, 4)
