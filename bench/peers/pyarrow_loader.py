"""The log with pyarrow alone: its csv reader, split_pattern, list_flatten, group_by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from peers import Loaded


def _read(path: Path, names: list[str]) -> pa.Table:
    types = {"sample_id": pa.uint64(), "click": pa.uint8(), "conversion": pa.uint8()}
    return csv.read_csv(
        path,
        read_options=csv.ReadOptions(column_names=names, block_size=16 << 20),
        parse_options=csv.ParseOptions(quote_char=False),
        convert_options=csv.ConvertOptions(
            column_types={name: types.get(name, pa.string()) for name in names}
        ),
    )


def _features(lists: pa.ChunkedArray) -> pa.Table:
    batches, first = [], 0
    for chunk in lists.chunks:  # a chunk's features stay below 2^31 bytes of text
        split = pc.split_pattern(chunk, "\x01")
        features = pc.list_flatten(split)
        rows = pc.add(pc.list_parent_indices(split), first)
        # Three pieces each: one list of all pieces, taken apart by position.
        pieces = pc.list_flatten(
            pc.split_pattern(pc.replace_substring(features, "\x02", "\x03"), "\x03")
        )
        fields, ids, values = (
            pieces.take(pa.array(np.arange(i, len(pieces), 3))) for i in range(3)
        )
        batches.append(
            pa.table(
                {
                    "row": rows.cast(pa.uint32()),
                    "field": fields.dictionary_encode(),
                    "id": ids.cast(pa.uint64()),
                    "value": values.cast(pa.float32()),
                }
            )
        )
        first += len(chunk)
    return pa.concat_tables(batches).unify_dictionaries()


def _write(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def load(skeleton: Path, common: Path, out: Path) -> Loaded:
    """Reads both files at once."""
    rows = _read(skeleton, ["sample_id", "click", "conversion", "key", "count", "features"])
    common_rows = _read(common, ["key", "count", "features"])
    number = pc.index_in(rows["key"], value_set=common_rows["key"])
    labels = rows.select(["sample_id", "click", "conversion"]).append_column("common_row", number)
    tables = {
        "impression": _features(rows["features"]),
        "common": _features(common_rows["features"]),
    }
    counts = [
        table.group_by(["field", "id"]).aggregate([([], "count_all")]) for table in tables.values()
    ]
    out.mkdir(parents=True)
    _write(out / "rows.arrow", labels)
    for name, table in tables.items():
        _write(out / f"{name}.arrow", table)
    _write(out / "counts.arrow", pa.concat_tables(counts).unify_dictionaries())
    return Loaded(
        impressions=len(rows),
        clicks=pc.sum(labels["click"]).as_py(),
        common_rows=len(common_rows),
        occurrences=sum(map(len, tables.values())),
        distinct_ids=sum(map(len, counts)),
        id_sum=sum(pc.sum(table["id"]).as_py() for table in tables.values()),
        value_sum=sum(
            pc.sum(table["value"].cast(pa.float64())).as_py() for table in tables.values()
        ),
        common_row_sum=pc.sum(labels["common_row"].cast(pa.uint64())).as_py(),
    )
