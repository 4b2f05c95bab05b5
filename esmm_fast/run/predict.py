"""write_predictions: the predictions of a run for every impression of a dataset, as Parquet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ..data.dataset import Dataset
from ..evaluation import COLUMNS, Predictions, predict_batch
from ..methods import evaluation_batches
from ..progress import Bar
from ..staging import naming, refuse_existing
from .checkpoint import sync
from .run import Run, check_same_fields

SCHEMA = pa.schema(
    [("sample_id", pa.uint64()), *((name, pa.float32()) for name in COLUMNS)],
    {"esmm_fast": "predictions"},
)
"""The columns; one that a method does not predict (BASE has no pCTR) holds nulls."""

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
    """Writes sample_id, pctr, pcvr and pctcvr of every impression, in order; returns their number.

    Impressions stream through, so memory does not grow with the dataset. The file is written beside
    `out`, synced and renamed: `out` is whole or not there.

    Args:
        run: Whose networks predict.
        dataset: Fields as in the run's training set.
        out: Parquet file; must not exist.
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
    batches = evaluation_batches(dataset, run.vocabulary, run.config.settings, run.schema)
    for network in trained.networks.values():
        network.eval()
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
    written, waiting = 0, []
    try:
        with (
            pa.parquet.ParquetWriter(beside, SCHEMA, use_dictionary=False) as writer,
            Bar(batches, progress, "predict") as bar,
        ):
            for batch in bar.over():
                parts = {
                    n: predict_batch(network, batch) for n, network in trained.networks.items()
                }
                waiting.append(_table(trained.method.combine(parts).corrected(kept)))
                if sum(len(table) for table in waiting) >= ROWS_AT_ONCE:
                    writer.write_table(pa.concat_tables(waiting).combine_chunks())
                    waiting.clear()
                written += len(batch.labels)
                bar.advance(len(batch.labels))
            if waiting:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
        sync(beside)
        beside.rename(out)
    finally:
        beside.unlink(missing_ok=True)
    return written


def _table(predictions: Predictions) -> Any:
    if predictions.sample_id is None:
        raise ValueError("batches: expected sample ids, got none")
    columns = {"sample_id": predictions.sample_id.astype(np.uint64)}
    for name in COLUMNS:
        values = getattr(predictions, name)
        columns[name] = pa.nulls(len(predictions), pa.float32()) if values is None else values
    return pa.table(columns, SCHEMA)
