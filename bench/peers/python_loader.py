"""The log with plain Python: a loop over lines, lists and dicts, and pyarrow to write them."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa

from peers import Loaded


def _features(text: str, columns: dict, counts: dict, row: int) -> None:
    for feature in text.split("\x01"):
        field, rest = feature.split("\x02")
        number, value = rest.split("\x03")
        feature_id = int(number)
        rows, ids, values = columns[field]
        rows.append(row)
        ids.append(feature_id)
        values.append(float(value))
        counts[field][feature_id] += 1


def _write(path: Path, columns: dict) -> None:
    path.mkdir(parents=True)
    for field, (rows, ids, values) in columns.items():
        table = pa.table({"row": rows, "id": ids, "value": pa.array(values, pa.float32())})
        with pa.ipc.new_file(str(path / f"{field}.arrow"), table.schema) as writer:
            writer.write_table(table)


def load(skeleton: Path, common: Path, out: Path) -> Loaded:
    """Reads line by line."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    common_columns: dict = defaultdict(lambda: ([], [], []))
    columns: dict = defaultdict(lambda: ([], [], []))
    keys: dict[str, int] = {}
    with open(common) as file:
        for line in file:
            key, _, features = line.rstrip("\n").split(",", 2)
            keys[key] = len(keys)
            _features(features, common_columns, counts, keys[key])
    labels: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [])
    with open(skeleton) as file:
        for row, line in enumerate(file):
            sample_id, click, conversion, key, _, features = line.rstrip("\n").split(",", 5)
            for column, item in zip(
                labels, (int(sample_id), int(click), int(conversion), keys[key]), strict=True
            ):
                column.append(item)
            _features(features, columns, counts, row)
    _write(out / "common", common_columns)
    _write(out / "impressions", columns)
    table = pa.table(list(map(pa.array, labels)), ["sample_id", "click", "conversion", "common"])
    with pa.ipc.new_file(str(out / "labels.arrow"), table.schema) as writer:
        writer.write_table(table)
    both = [*common_columns.values(), *columns.values()]
    return Loaded(
        impressions=len(labels[0]),
        clicks=sum(labels[1]),
        common_rows=len(keys),
        occurrences=sum(len(ids) for _, ids, _ in both),
        distinct_ids=sum(map(len, counts.values())),
        id_sum=sum(sum(ids) for _, ids, _ in both),
        value_sum=sum(sum(values) for _, _, values in both),
        common_row_sum=sum(labels[3]),
    )
