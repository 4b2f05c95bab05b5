"""The files of a dataset: what is written of a log that is read, and what is said about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from .. import __version__
from ..schema import ALI_CCP, Schema, Side
from .arrow_file import HashedFile
from .log_report import SideReport, merged
from .manifest import DATA_FILES, schema_to_dict, write_manifest
from .narrow_columns import as_narrow
from .record_batches import Layout
from .table_file import TableFile

TABLES: dict[Side, str] = {"common": "common_rows.arrow", "impression": "impressions.arrow"}


class Reader(Protocol):
    """One pass over a log: `read` each of `sides` once, in that order; the rest is said behind
    it. See `logs.LogReader`."""

    sides: tuple[Side, ...]
    schema: Schema
    layouts: dict[Side, Layout]
    reports: dict[Side, SideReport]
    label_counts: dict[str, int]
    sources: dict[Side, list[str]]

    @property
    def synthetic(self) -> bool: ...

    @property
    def promoted_schema(self) -> Schema: ...

    def read(self, side: Side) -> Iterator[tuple[pa.RecordBatch, Layout]]: ...

    def require_impressions(self) -> None: ...


def write_dataset(folder: Path, reader: Reader) -> None:
    """Reads a log and writes its dataset into an empty directory."""
    facts = {}
    for side in reader.sides:
        fields, layout = reader.schema.of_side(side), reader.layouts[side]
        with TableFile(folder / TABLES[side], side, fields, layout) as file:
            for batch, layout in reader.read(side):
                file.write(batch, layout)
                del batch  # gives its memory back to the parser
            facts[TABLES[side]] = file.close()
    reader.require_impressions()
    facts["counts.arrow"] = write_counts(folder / "counts.arrow", reader)
    found = counted(reader)
    manifest = {
        "schema": schema_to_dict(reader.promoted_schema),
        **found,
        "rejected": found.pop("errors"),
        "promoted": _promoted(reader),
        "files": {name: facts[name] for name in DATA_FILES},
        "source": {
            "skeleton": [Path(name).name for name in reader.sources["impression"]],
            "common": [Path(name).name for name in reader.sources["common"]],
            "synthetic": reader.synthetic,
            "text_bytes": sum(report.bytes for report in reader.reports.values()),
        },
        "written_by": {"esmm_fast": __version__, "pyarrow": pa.__version__},
    }
    write_manifest(folder, manifest)


def write_counts(path: Path, reader: Reader) -> dict[str, Any]:
    """Writes `counts.arrow` of a log that is read; returns the size and checksum."""
    names = [f.name for f in reader.schema.fields]
    found = [reader.reports[f.side].occurrences[f.name] for f in reader.schema.fields]
    all_ids, all_counts = (as_narrow([columns[i] for columns in found]) for i in range(2))
    schema = pa.schema(
        [
            pa.field("field", pa.dictionary(pa.int16(), pa.string()), nullable=False),
            pa.field("feature_id", pa.from_numpy_dtype(all_ids[0].dtype), nullable=False),
            pa.field("count", pa.from_numpy_dtype(all_counts[0].dtype), nullable=False),
        ]
    )
    file = HashedFile(path)
    with pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema) as writer:
        for i, (ids, counts) in enumerate(zip(all_ids, all_counts, strict=True)):
            if len(ids) == 0:
                continue
            codes = pa.DictionaryArray.from_arrays(np.full(len(ids), i, np.int16), names)
            writer.write_batch(
                pa.RecordBatch.from_arrays([codes, pa.array(ids), pa.array(counts)], schema=schema)
            )
    file.close()
    return file.facts()


# ---- What was found


def checked(reader: Reader) -> dict[str, Any]:
    """Reads a log and returns what was found."""
    for side in reader.sides:
        for _ in reader.read(side):
            pass
    return {**counted(reader), "promoted": _promoted(reader)}


def counted(reader: Reader) -> dict[str, Any]:
    """Returns what a log that is read holds, as `Dataset.info` and `prepare(check=True)` say it."""
    common, impressions = reader.reports["common"], reader.reports["impression"]
    anomalies = merged(common.anomalies, impressions.anomalies)
    fields = {}
    for field in reader.schema.fields:
        report = reader.reports[field.side]
        ids, counts = report.occurrences[field.name]
        fields[field.name] = {
            "occurrences": int(counts.sum()),
            "distinct_ids": len(ids),
            "rows_without": report.rows_without[field.name],
        }
    usual = reader.schema.labels == ALI_CCP.labels
    labels = {} if usual else {"labels": reader.label_counts}
    return {
        "impressions": impressions.rows,
        "clicks": impressions.clicks,
        "conversions": impressions.conversions,
        "conversions_without_click": anomalies.get("conversions_without_click", {"count": 0})[
            "count"
        ],
        "common_rows": common.rows,
        "common_rows_unused": common.rows - impressions.common_rows_used,
        **labels,
        "fields": fields,
        "anomalies": anomalies,
        "errors": merged(common.rejected, impressions.rejected),
    }


def _promoted(reader: Reader) -> dict[str, list[str]]:
    """Returns field -> what it needed more than the schema says: "multi", "weighted", "uint64"."""
    promoted: dict[str, list[str]] = {}
    for side in reader.sides:
        fields, layout = reader.schema.of_side(side), reader.layouts[side]
        for field, multi, weighted in zip(fields, layout.multi, layout.weighted, strict=True):
            needs = [
                n
                for n, yes in (
                    ("multi", multi > field.multi),
                    ("weighted", weighted > field.weighted),
                )
                if yes
            ]
            ids = reader.reports[side].occurrences[field.name][0]
            if len(ids) and int(ids[-1]) > np.iinfo(np.uint32).max:
                needs.append("uint64")
            if needs:
                promoted[field.name] = needs
    return promoted
