"""The files of a dataset: what is written of a log that is read, and what is said about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from .. import __version__
from .._compiled import _native
from ..schema import ALI_CCP, Field, Schema, Side
from .log_report import SideReport, merged
from .manifest import DATA_FILES, schema_to_dict, write_manifest
from .record_batches import Layout, arrow_schema, conform

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


class HashedFile:
    """A new file that counts and hashes what is written to it."""

    def __init__(self, path: Path):
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._checksum = _native.Xxh64()
        self._bytes = 0

    closed = property(lambda self: self._file.closed)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._checksum.update(view)
        self._bytes += len(view)
        left = view
        while left:
            try:
                left = left[self._file.write(left) :]
            except OSError as error:  # names the file, as the error of a raw write does not
                raise OSError(error.errno, error.strerror, self._file.name) from None
        return len(view)

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()

    def facts(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "xxh64": self._checksum.hexdigest()}


class TableFile:
    """An Arrow IPC file of one side; widened, by writing it again, when a batch needs a wider
    layout."""

    def __init__(self, path: Path, side: Side, fields: tuple[Field, ...], layout: Layout):
        self._path, self._side, self._fields = path, side, fields
        self._open(layout)

    def _open(self, layout: Layout) -> None:
        self.layout = layout
        self._file = HashedFile(self._path)
        self._sink = pa.PythonFile(self._file, mode="w")
        self._writer = pa.ipc.new_file(self._sink, arrow_schema(self._side, self._fields, layout))

    def write(self, batch: pa.RecordBatch, layout: Layout) -> None:
        if (wider := self.layout | layout) != self.layout:
            self._widen(wider)
        self._writer.write_batch(conform(batch, self._side, self._fields, self.layout))

    def _widen(self, layout: Layout) -> None:
        self.close()
        narrow = self._path.with_suffix(".narrow")
        self._path.rename(narrow)
        self._open(layout)
        with pa.memory_map(str(narrow)) as source:
            reader = pa.ipc.open_file(source)
            for i in range(reader.num_record_batches):
                self.write(reader.get_batch(i), layout)
        narrow.unlink()

    def close(self) -> dict[str, Any]:
        try:
            self._writer.close()
        finally:  # the disk may be full
            self._file.close()
        return self._file.facts()


def write_dataset(folder: Path, reader: Reader) -> None:
    """Reads a log and writes its dataset into an empty directory."""
    facts = {}
    for side in reader.sides:
        file = TableFile(
            folder / TABLES[side], side, reader.schema.of_side(side), reader.layouts[side]
        )
        try:
            for batch, layout in reader.read(side):
                file.write(batch, layout)
                del batch  # gives its memory back to the parser
        finally:
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
    schema = pa.schema(
        [
            pa.field("field", pa.dictionary(pa.int16(), pa.string()), nullable=False),
            pa.field("feature_id", pa.uint64(), nullable=False),
            pa.field("count", pa.uint64(), nullable=False),
        ]
    )
    file = HashedFile(path)
    with pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema) as writer:
        for i, field in enumerate(reader.schema.fields):
            ids, counts = reader.reports[field.side].occurrences[field.name]
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
