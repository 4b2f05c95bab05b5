"""Method chain: K ordered labels, hashed rows and dimensions of fields, from tables to Parquet."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from stage_dataset import LABELS, write_tables
from test_cli import call

from esmm_fast import ESMM, Batch, Dataset, Field, Schema, Vocabulary, metrics
from esmm_fast.config import RunConfig, resolve
from esmm_fast.embedding import tables_in
from esmm_fast.evaluation import Predictions, stage_columns, task_metrics
from esmm_fast.networks import ChainNetwork
from esmm_fast.run.run import Run

pytest_plugins = ("synthetic_log",)

TRAIN = ["--method", "chain", "--batch-size", "128", "--hidden", "16", "--epochs", "2"]
TRAIN += ["--dim", "4", "--lr", "1e-2", "--min-count", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with train and test, prepared by the command."""
    folder = tmp_path_factory.mktemp("stages")
    paths = write_tables(folder / "tables")
    from click.testing import CliRunner

    from esmm_fast.cli.main import cli

    for half in ("train", "test"):
        given = ["--table", paths[half], "--schema", paths["schema"], "--out", folder / half]
        done = CliRunner().invoke(cli, ["prepare", *map(str, given)])
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    from click.testing import CliRunner

    from esmm_fast.cli.main import cli

    given = ["train", "--train", data / "train", "--valid", data / "test", "--out", data / "run"]
    done = CliRunner().invoke(cli, [*map(str, given), *TRAIN])
    assert done.exit_code == 0, done.output
    text = done.output
    assert re.search(r"^  item +128 rows", text, re.M)
    assert "3,000 impressions, " in text and " cart, " in text
    for name, space in (
        ("CLICK", "all impressions"),
        ("CART", "impressions with click"),
        ("CART.ALL", "all impressions"),
        ("BUY", "impressions with cart"),
        ("BUY.ALL", "all impressions"),
    ):
        assert any(line.split("  ")[0] == name and space in line for line in text.splitlines())
    return data / "run"


def test_the_schema_files_rows_and_dimensions_reach_the_network(run: Path, data: Path) -> None:
    loaded = Run.load(run)
    assert loaded.vocabulary.hashed == {"item": 128}
    network = loaded.trained.networks["chain"]
    assert isinstance(network, ChainNetwork) and network.stages == ("stage_1", "stage_2", "stage_3")
    shapes = {t.dim: tuple(t.weight.shape) for t in tables_in(network)}
    tags = len(
        np.unique(
            Dataset(data / "train").counts.filter(
                Dataset(data / "train").counts["field"].cast("string").to_numpy(False) == "tags"
            )["feature_id"]
        )
    )
    assert shapes == {6: (600 + 1 + tags + 1, 6), 4: (128, 4)}


def test_every_stage_is_learned_and_predicted(
    run: Path, data: Path, tmp_path: Path, capsys
) -> None:
    status, text, error = call(capsys, "evaluate", run, data / "test", "--json")
    assert status == 0, error
    found = json.loads(text)
    assert list(found["stages"]) == ["click", "cart", "cart.all", "buy", "buy.all"]
    assert "ctr" not in found and found["conversions"] == found["stages"]["buy"]["positives"]
    for name, part in found["stages"].items():
        assert part["auc"] > 0.6, name
    reached = found["stages"]["click"]["positives"]
    assert found["stages"]["cart"]["impressions"] == reached

    out = tmp_path / "p.parquet"
    status, text, error = call(capsys, "predict", run, data / "test", "--out", out)
    assert status == 0 and text == f"3,000 impressions -> {out}\n"
    table = pq.read_table(out)
    names = ["p_click", "p_cart", "p_cart_all", "p_buy", "p_buy_all"]
    assert table.column_names == ["sample_id", *names]
    columns = {name: table[name].to_numpy() for name in names}
    product = columns["p_click"] * columns["p_cart"]
    np.testing.assert_allclose(columns["p_cart_all"], product, rtol=1e-6)
    np.testing.assert_allclose(columns["p_buy_all"], product * columns["p_buy"], rtol=1e-6)
    labels = Dataset(data / "test").labels()
    assert found["stages"]["buy.all"]["auc"] == metrics.auc(labels[:, 2], columns["p_buy_all"])

    status, text, _ = call(capsys, "evaluate", run, data / "test", "--by", "item", "--top", "2")
    assert status == 0 and "CART.ALL by field item: the 2 largest slices" in text
    status, text, _ = call(
        capsys, "predict", run, data / "test", "--out", tmp_path / "q", "--unclicked-kept", "0.5"
    )
    corrected = pq.read_table(tmp_path / "q")
    assert (corrected["p_click"].to_numpy() < columns["p_click"]).all()
    assert (corrected["p_cart"].to_numpy() == columns["p_cart"]).all()
    assert (corrected["p_buy_all"].to_numpy() < columns["p_buy_all"]).all()


def test_a_run_goes_on_and_its_log_and_report_have_the_stages(run: Path, capsys) -> None:
    before = (run / "metrics.jsonl").read_text()
    status, _, error = call(capsys, "train", "--out", run, "--resume")
    assert status == 0 and "continues at step" in _ + error
    assert (run / "metrics.jsonl").read_text() == before
    lines = [json.loads(line) for line in before.splitlines()]
    assert {"click", "buy.all"} <= lines[-1]["valid"]["stages"].keys()
    page = (run / "report.html").read_text()
    assert "buy.all" in page and "A run of Entire-space chain" in page


def test_early_stopping_watches_a_stage(data: Path, tmp_path: Path, capsys) -> None:
    given = ["--train", data / "train", "--valid", data / "test", *TRAIN, "--patience", "1"]
    for metric, expected in (("buy.all.auc", 0), ("boy.auc", 1)):
        out = tmp_path / metric
        status, _, error = call(capsys, "train", *given, "--stop-metric", metric, "--out", out)
        assert status == expected, error
    assert "early_stopping.metric: expected one of buy.all.auc, " in error
    given[given.index("chain")], out = "ctr", tmp_path / "ctr"
    status, _, error = call(capsys, "train", *given, "--stop-metric", "buy.auc", "--out", out)
    assert status == 1 and "early_stopping: metric: expected ctr, cvr or ctcvr" in error


def test_settings_of_a_run_override_tables(data: Path, tmp_path: Path, capsys) -> None:
    given = ["--train", data / "train", *TRAIN, "--out", tmp_path / "run"]
    given += ["--dims", "item=3,tags=5", "--rows", "user=hash:64"]
    status, _, error = call(capsys, "train", *given)
    assert status == 0, error
    loaded = Run.load(tmp_path / "run")
    assert loaded.vocabulary.hashed == {"user": 64, "item": 128}
    assert (loaded.config.settings.dims, loaded.config.settings.rows) == (
        {"item": 3, "tags": 5},
        {"user": "hash:64"},
    )
    assert sorted(t.dim for t in tables_in(loaded.trained.networks["chain"])) == [3, 5, 6]
    out = tmp_path / "p.parquet"
    assert call(capsys, "predict", tmp_path / "run", data / "test", "--out", out)[0] == 0
    assert np.isfinite(pq.read_table(out)["p_buy_all"].to_numpy()).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dims", "itm=3"], "dims: the schema has no table 'itm'; did you mean 'item'?"),
        (["--rows", "x=hash:64"], "rows: the schema has no table 'x'; it has user, item, tags"),
        (["--rows", "item=64"], "rows: expected a number, 'hash:2**20' or 'hash:1000000'"),
        (["--dims", "item=0"], "dims.item: expected 1 to 256, got 0"),
        (["--dims", "item"], "expected tables and values like item=8,shop=4, got 'item'"),
        (["--method", "esmm"], "fields: expected a schema of two labels, got ['click', 'cart', "),
        (["--method", "esmm"], "the method chain of the command line, takes any number"),
    ],
)
def test_errors(data: Path, tmp_path: Path, capsys, options: list[str], message: str) -> None:
    out = tmp_path / "run"
    given = ["--train", data / "train", *TRAIN, *options, "--out", out]
    status, _, error = call(capsys, "train", *given)
    assert status in (1, 2) and message in error and error.count("\n") == 1, error
    assert not out.exists()


def test_truth_is_of_clicks_and_conversions(run: Path, data: Path, synthetic_log, capsys) -> None:
    given = ["evaluate", run, data / "test", "--truth", synthetic_log.truth_path]
    status, _, error = call(capsys, *given)
    assert status == 1
    assert error == "Error: truth: it holds pctr and pcvr; a chain predicts its labels, " + (
        "click, cart, buy\n"
    )


def test_hashed_rows_from_settings_in_a_yaml_file(data: Path, tmp_path: Path) -> None:
    content = {"train": str(data / "train"), "settings": {"rows": {"tags": "hash:16"}}}
    settings = resolve(RunConfig, content).settings
    schema = Dataset(data / "train").schema.with_tables(settings.dims, settings.rows)
    vocabulary = Vocabulary.from_dataset(Dataset(data / "train"), schema=schema)
    assert vocabulary.rows("tags") == 16 and vocabulary.sized(schema).table_rows["item"] == 128


def test_with_two_labels_the_chain_is_esmm() -> None:
    fields = (Field("item", rows=9), Field("shop", rows=4))
    chain = ChainNetwork(Schema(fields), dim=3, hidden=(5,), seed=4)
    esmm = ESMM(Schema(fields), dim=3, hidden=(5,), seed=4)
    batch = Batch.from_bags(
        {"item": ([3, 8, 1], None), "shop": ([0, 1, 1], None)},
        labels=[[1, 0], [0, 0], [1, 1]],
        schema=Schema(fields),
    )
    ours, theirs = chain(batch), esmm(batch)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(chain.loss(ours, batch), esmm.loss(theirs, batch))
    assert list(ours.stages) == ["click", "conversion"]
    assert torch.equal(ours.stages["conversion"], theirs.pcvr)


def test_stage_columns_by_hand() -> None:
    labels = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)
    stages = {name: np.array([0.5, 0.4, 0.3, 0.2], np.float32) for name in LABELS}
    found = {
        name: (label[rows].tolist(), scores[rows].round(4).tolist())
        for name, (_, label, scores, rows) in stage_columns(
            Predictions(labels, stages=stages)
        ).items()
    }
    assert found["buy"] == ([1, 0], pytest.approx([0.5, 0.4]))
    assert found["buy.all"] == ([1, 0, 0, 0], pytest.approx([0.125, 0.064, 0.027, 0.008]))
    result = task_metrics(Predictions(labels, stages=stages))
    assert (result["clicks"], result["conversions"]) == (3, 1)
    assert result["stages"]["cart"]["space"] == "impressions with click"
    assert result["stages"]["cart"]["impressions"] == 3
