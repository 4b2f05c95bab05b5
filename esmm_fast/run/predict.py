"""write_predictions: the predictions of a run for every impression of a dataset, as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ..data.dataset import Dataset
from ..evaluation import COLUMNS, Predictions, predict_batch, stage_columns
from ..methods import evaluation_batches
from ..progress import Bar
from ..schema import check_same_fields
from ..staging import refuse_existing, staged_file
from .run import Run

ROWS_AT_ONCE = 1 << 17
"""Impressions of a row group, about: what is held in memory."""


def write_predictions(
    run: Run,
    dataset: Dataset,
    out: str | Path,
    *,
    kept: float = 1.0,
    progress: bool = False,
) -> int:
    """Writes the predictions of every impression, in order; returns their number.

    The columns are sample_id, pctr, pcvr and pctcvr; what a method does not predict (BASE has no
    pCTR) is null. Of a chain of the labels click and buy: p_click, p_buy (given a click) and
    p_buy_all, the product.

    Impressions stream through, so memory does not grow with the dataset. The file is written beside
    `out`, synced and renamed: `out` is whole or not there; so are the folders above it.

    Args:
        run: Whose networks predict.
        dataset: Fields as in the run's training set.
        out: Parquet file; must not exist. Folders above it are made.
        kept: Share of the unclicked impressions that the run's training set kept; see
            `calibration.undo_down_sampling`.
        progress: Shows a bar.

    Raises:
        FileExistsError: `out` exists.
        ValueError: The dataset's fields are others.
    """
    out = Path(out)
    refuse_existing(out)
    check_same_fields(run.schema, dataset.schema, run.path, dataset.path)
    trained = run.trained
    columns = [*COLUMNS]
    if trained.method.stages:
        none = dict.fromkeys(run.schema.labels, np.empty(0, np.float32))
        empty = Predictions(np.empty((0, len(none)), np.float32), stages=none)
        columns = [_column_of_stage(name) for name in stage_columns(empty)]
    types = [("sample_id", pa.uint64()), *((name, pa.float32()) for name in columns)]
    schema = pa.schema(types, {"esmm_fast": "predictions"})
    batches = evaluation_batches(dataset, run.vocabulary, run.config.settings, run.schema)
    for network in trained.networks.values():
        network.eval()
    written, waiting = 0, []
    with (
        staged_file(out, parents=True) as staged,
        pa.parquet.ParquetWriter(staged, schema, use_dictionary=False) as writer,
        Bar(batches, progress, "predict") as bar,
    ):
        for batch in bar.over():
            parts = {n: predict_batch(network, batch) for n, network in trained.networks.items()}
            waiting.append(_table(trained.method.combine(parts).corrected(kept), schema))
            if sum(len(table) for table in waiting) >= ROWS_AT_ONCE:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting.clear()
            written += len(batch.labels)
            bar.advance(len(batch.labels))
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
    return written


def _column_of_stage(name: str) -> str:
    return f"p_{name.replace('.', '_')}"


def _table(predictions: Predictions, schema: pa.Schema) -> Any:
    if predictions.sample_id is None:
        raise ValueError("batches: expected sample ids, got none")
    found = {name: getattr(predictions, name) for name in COLUMNS}
    for name, (_, _, scores, _) in stage_columns(predictions).items():
        found[_column_of_stage(name)] = scores
    columns = {"sample_id": predictions.sample_id.astype(np.uint64)}
    for name in schema.names[1:]:
        none = found[name] is None
        columns[name] = pa.nulls(len(predictions), pa.float32()) if none else found[name]
    return pa.table(columns, schema)
