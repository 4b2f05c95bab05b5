"""Parquet files, Arrow files and tables in memory, read into the columns of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from .._compiled import _native
from ..data import table_columns
from ..schema import Field, Schema, Side
from ..vocabulary import summed_counts
from .log_format import LogFormat
from .log_report import LogError, SideReport
from .record_batches import Layout, arrow_schema, check_columns, promoted_schema
from .table_columns import Bags, ColumnError
from .table_source import Source, sources

_COUNTED_TOGETHER = 1 << 22  # ids of a field that wait to be added up


class TableReader:
    """One pass over the tables of a log: `read` each of `sides` once, in that order.

    Common rows come from `common`, found by their key; or, without it, from the same table:
    impressions with equal common fields (and key) share one. A key alone makes common rows without
    features; without key and common fields there are none.

    Args:
        table: Tables of the impressions, as `Source` takes them.
        common: Tables of the common rows.
        format: What the columns mean.
        advance: Called after each batch with the bytes that are read, and with those there are.
    """

    sides: tuple[Side, ...] = ("common", "impression")

    def __init__(
        self,
        table: Any,
        common: Any,
        format: Schema | LogFormat,
        *,
        advance: Callable[[int, int | None], object] | None = None,
    ):
        self.format = LogFormat.of(format)
        self.schema = self.format.schema
        check_columns(self.schema)
        self._impressions, self._common = sources(table), sources(common)
        if not self._impressions:
            raise ValueError("table: at least one expected, got none")
        self._key = self._named("key", self.format.key, bool(self._common))
        self._grouped = self._key is not None or bool(self.schema.common)
        self.sources: dict[Side, list[str]] = {
            "common": [s.name for s in self._common],
            "impression": [s.name for s in self._impressions],
        }
        self.synthetic = False
        self.label_counts = dict.fromkeys(self.schema.labels, 0)
        self.reports: dict[Side, SideReport] = {}
        self._sample_id = self._named("sample_id", self.format.sample_id, False)
        joined = self._common or self._impressions
        self.layouts: dict[Side, Layout] = {
            "common": self._layout(self.schema.common, joined, None),
            "impression": self._layout(
                self.schema.impression, self._impressions, self._stored_columns()
            ),
        }
        self._common_row = np.empty(0, np.uint32)  # joined: of every impression
        self._rows_of_keys = _native.KeyMap()  # of the tables of common rows
        self._advance, self._done = advance, 0

    @property
    def promoted_schema(self) -> Schema:
        """The schema, with `multi` and `weighted` as the tables have them."""
        return promoted_schema(self.schema, self.layouts["common"], self.layouts["impression"])

    def require_impressions(self) -> None:
        """Raises LogError if the tables hold no impression."""
        if not self.reports["impression"].rows:
            name = self._impressions[0].name
            raise LogError(f"{name}: no impressions; expected at least one row", name)

    def read(self, side: Side) -> Iterator[tuple[pa.RecordBatch, Layout]]:
        """Yields the rows of one side in order, in batches, each with the layout it is in."""
        self.reports[side] = SideReport()
        counts = _Counts(self.schema.of_side(side))
        if side == "impression":
            yield from self._read_impressions(counts)
        elif self._common:
            yield from self._read_common(counts)
        elif self._grouped:
            yield from self._read_joined(counts)
        counts.write(self.reports[side])

    # ---- What the columns are

    def _named(self, role: str, name: str | None, needed: bool) -> str | None:
        """Returns the column's name where the tables have it; it can be missing if nobody named
        it."""
        missing = [s for s in self._impressions if name is not None and name not in s.schema.names]
        if name is None or (missing and name == role and not needed):
            if needed:
                raise ValueError(f"{role}: the name of a column expected in the schema, got none")
            return None
        for source in missing:
            with _place(source, -1):
                table_columns.require(source.schema, name, role)
        return name

    def _layout(
        self, fields: tuple[Field, ...], tables: list[Source], fixed: pa.Schema | None
    ) -> Layout:
        multi, weighted = [False] * len(fields), [False] * len(fields)
        for source in tables:
            for i, field in enumerate(fields):
                try:
                    is_multi, is_weighted = table_columns.check_field(source.schema, field)
                except ColumnError as error:
                    raise ValueError(f"{source.name}: {error}") from None
                multi[i] |= is_multi
                weighted[i] |= is_weighted
        return Layout(tuple(multi), tuple(weighted), fixed=fixed)

    def _stored_columns(self) -> pa.Schema:
        extra: dict[str, pa.DataType] = {}
        for source in self._impressions:
            try:
                for name in self.format.carried:
                    type = table_columns.require(source.schema, name, "a column of the schema")
                    if name not in self.schema.extra:
                        continue
                    type = type.value_type if pa.types.is_dictionary(type) else type
                    if extra.setdefault(name, type) != type:
                        raise ColumnError(f"column {name!r}: {extra[name]} expected, got {type}")
            except ColumnError as error:
                raise ValueError(f"{source.name}: {error}") from None
        return self.format.stored_columns(extra, self._grouped)

    # ---- Rows

    def _batches(
        self, tables: list[Source], names: Iterable[str]
    ) -> Iterator[tuple[pa.RecordBatch, Source, int]]:
        """Yields every batch, its table, and how many rows of it stand before."""
        wanted = list(dict.fromkeys(names))
        total = sum(s.bytes for s in (*self._common, *self._impressions))
        total += 0 if self._common or not self._grouped else total  # read twice
        for source in tables:
            row, begin = 0, self._done
            for batch, share in source.batches(wanted):
                yield batch, source, row
                row += batch.num_rows
                self._done = begin + int(share * source.bytes)
                if self._advance is not None:
                    self._advance(self._done, total)

    def _names(self, fields: tuple[Field, ...], source: Source) -> list[str]:
        pairs = [n for f in fields for n in (f.name, f"{f.name}_value")]
        return [n for n in pairs if n in source.schema.names]

    def _bags(self, batch: pa.RecordBatch, side: Side) -> list[Bags]:
        return [
            table_columns.bags(batch, f, f"{f.name}_value" in batch.schema.names)
            for f in self.schema.of_side(side)
        ]

    def _built(
        self, side: Side, fixed: dict[str, Any], several: list[Bags]
    ) -> tuple[pa.RecordBatch, Layout]:
        layout = Layout(
            tuple(b.multi for b in several),
            tuple(b.values is not None for b in several),
            table_columns.is_wide(several),
            self.layouts[side].fixed,
        )
        self.layouts[side] |= layout
        arrays = [pa.array(column) for column in fixed.values()]
        arrays += [array for b in several for array in b.arrays(layout.wide)]
        schema = arrow_schema(side, self.schema.of_side(side), layout)
        return pa.RecordBatch.from_arrays(arrays, schema=schema), layout

    def _read_impressions(self, counts: _Counts) -> Iterator[tuple[pa.RecordBatch, Layout]]:
        report = self.reports["impression"]
        used = np.zeros(self.reports["common"].rows, bool)
        own = [*self.format.carried, *([self._key] if self._common and self._key else [])]
        own += [self._sample_id] if self._sample_id else []
        for source in self._impressions:
            names = [*own, *self._names(self.schema.impression, source)]
            for batch, _, row in self._batches([source], names):
                with _place(source, row):
                    fixed = self._fixed(batch, report, source, row)
                    if self._grouped:
                        end = report.rows + batch.num_rows
                        rows = (
                            self._found(batch)
                            if self._common
                            else self._common_row[report.rows : end]
                        )
                        fixed["common_row"] = rows
                        used[rows] = True
                    several = self._bags(batch, "impression")
                counts.add(several)
                report.rows += batch.num_rows
                ordered = {n: fixed[n] for n in self.layouts["impression"].fixed.names}  # type: ignore[union-attr]
                yield self._built("impression", ordered, several)
        report.common_rows_used = int(used.sum())

    def _fixed(
        self, batch: pa.RecordBatch, report: SideReport, source: Source, row: int
    ) -> dict[str, Any]:
        rows, own = batch.num_rows, self.format
        first = report.rows + 1
        fixed: dict[str, Any] = {
            "sample_id": table_columns.numbers(batch, self._sample_id, "sample_id")
            if self._sample_id
            else np.arange(first, first + rows, dtype=np.uint64)
        }
        labels = np.stack([table_columns.label(batch, n) for n in self.schema.labels], axis=1)
        reached = np.minimum.accumulate(labels, axis=1)
        wrong = (labels != reached).any(axis=1)
        if wrong.any():
            found = {"count": 0, "file": source.name, "row": row + int(np.argmax(wrong)) + 1}
            anomaly = report.anomalies.setdefault("conversions_without_click", found)
            anomaly["count"] += int(wrong.sum())
        report.clicks += int(labels[:, 0].sum())
        report.conversions += int(reached[:, -1].sum()) if labels.shape[1] > 1 else 0
        for k, name in enumerate(self.schema.labels):
            fixed[name] = np.ascontiguousarray(labels[:, k])
            self.label_counts[name] += int(labels[:, k].sum())
        if own.dense:
            dense = np.stack([table_columns.floats(batch, n) for n in own.dense], axis=1)
            fixed["dense"] = pa.FixedSizeListArray.from_arrays(
                pa.array(dense.reshape(-1)), len(own.dense)
            )
        if self.schema.weight is not None:
            fixed[self.schema.weight] = table_columns.weights(batch, self.schema.weight)
        for name in self.schema.extra:
            fixed[name] = table_columns.extra(batch.column(name))
        return fixed

    # ---- Common rows

    def _read_common(self, counts: _Counts) -> Iterator[tuple[pa.RecordBatch, Layout]]:
        """Reads tables of common rows; a key that comes again must have the same row."""
        assert self._key is not None
        report = self.reports["common"]
        origins = np.zeros(0, [("content", np.uint64), ("table", np.uint32), ("row", np.uint64)])
        for table, source in enumerate(self._common):
            names = [self._key, *self._names(self.schema.common, source)]
            if self._key not in source.schema.names:
                raise ValueError(f"{source.name}: no column {self._key!r}, the key of common rows")
            for batch, _, row in self._batches([source], names):
                with _place(source, row):
                    keys = table_columns.keys(batch, self._key)
                    several = self._bags(batch, "common")
                    contents = table_columns.content_hashes(several, len(keys), None)[:, 0]
                    rows, new = self._rows_of_keys.insert(keys)
                    if len(self._rows_of_keys) > len(origins):
                        origins.resize(2 * len(self._rows_of_keys), refcheck=False)
                    origins["content"][rows[new]] = contents[new]
                    origins["table"][rows[new]] = table
                    origins["row"][rows[new]] = row + 1 + np.flatnonzero(new)
                    other = origins["content"][rows] != contents
                    if other.any():
                        at = int(np.argmax(other))
                        first = origins[rows[at]]
                        raise ColumnError(
                            f"key {batch.column(self._key)[at]}: a second common row with other "
                            f"contents; expected those of {self._common[first['table']].name}: "
                            f"row {first['row']}",
                            at,
                        )
                if not new.all():
                    found = {"count": 0, "file": source.name, "row": row + int(np.argmin(new)) + 1}
                    report.anomalies.setdefault("duplicate_common_rows", found)["count"] += int(
                        (~new).sum()
                    )
                    several = self._bags(batch.filter(pa.array(new)), "common")
                counts.add(several)
                report.rows += int(new.sum())
                yield self._built("common", {"key": keys[new]}, several)

    def _found(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns the common row of every impression, by its key."""
        assert self._key is not None
        if not len(self._rows_of_keys):
            raise ColumnError("the tables of the common rows are empty", 0)
        rows = self._rows_of_keys.find(table_columns.keys(batch, self._key))
        missing = rows == np.iinfo(np.uint32).max
        if missing.any():
            row = int(np.argmax(missing))
            raise ColumnError(
                f"no common row has the key {batch.column(self._key)[row]}; expected one in "
                f"{', '.join(self.sources['common'])}",
                row,
            )
        return rows

    def _read_joined(self, counts: _Counts) -> Iterator[tuple[pa.RecordBatch, Layout]]:
        """Finds the common rows of tables that hold them beside each impression."""
        report = self.reports["common"]
        row_of: dict[tuple[int, int], int] = {}
        common_row = [self._common_row]
        for source in self._impressions:
            names = [*([self._key] if self._key else []), *self._names(self.schema.common, source)]
            for batch, _, row in self._batches([source], names):
                with _place(source, row):
                    keys = table_columns.keys(batch, self._key) if self._key else None
                    several = self._bags(batch, "common")
                hashes = table_columns.content_hashes(several, batch.num_rows, keys)
                # Impressions of one common row mostly stand together: a look-up for each run.
                starts = np.flatnonzero(
                    np.concatenate([[True], (hashes[1:] != hashes[:-1]).any(axis=1)])
                )
                before = len(row_of)
                pairs = map(tuple, hashes[starts].tolist())
                rows = np.array([row_of.setdefault(p, len(row_of)) for p in pairs], np.uint32)
                lengths = np.diff(np.append(starts, batch.num_rows))
                common_row.append(np.repeat(rows, lengths))
                first = np.unique(rows, return_index=True)[1]
                new = starts[np.sort(first[rows[first] >= before])]
                if len(new):
                    several = self._bags(batch.take(pa.array(new)), "common")
                    counts.add(several)
                    report.rows += len(new)
                    # With fields, a key can have several common rows: then the key is their hash.
                    own = keys if keys is not None and not self.schema.common else hashes[:, 0]
                    yield self._built("common", {"key": own[new]}, several)
        self._common_row = np.concatenate(common_row)


class _Counts:
    """Occurrences of every id, and rows without any, field by field."""

    def __init__(self, fields: tuple[Field, ...]):
        self._fields = fields
        self._parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in fields]
        self._waiting = [0] * len(fields)
        self._without = [0] * len(fields)

    def add(self, several: list[Bags]) -> None:
        for i, b in enumerate(several):
            self._parts[i].append(np.unique(b.ids, return_counts=True))
            self._waiting[i] += len(self._parts[i][-1][0])
            self._without[i] += int((np.diff(b.offsets) == 0).sum())
            if self._waiting[i] > _COUNTED_TOGETHER:
                self._parts[i] = [summed_counts(self._parts[i])]
                self._waiting[i] = 0

    def write(self, report: SideReport) -> None:
        for i, field in enumerate(self._fields):
            report.rows_without[field.name] = self._without[i]
            ids, counts = summed_counts(self._parts[i])
            report.occurrences[field.name] = ids, counts.astype(np.uint64)


class _place:
    """Turns a ColumnError into the LogError that names the table and its row."""

    def __init__(self, source: Source, row: int):
        self._source, self._row = source, row

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, ColumnError):
            return
        name = self._source.name
        if error.row < 0:
            raise LogError(f"{name}: {error}", name, reason="bad_column") from None
        row = self._row + error.row + 1
        raise LogError(f"{name}: row {row}: {error}", name, row, reason="bad_column") from None
