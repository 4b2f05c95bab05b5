"""Vocabulary: feature id -> table row."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .schema import Schema
from .staging import staged_file

NO_ID = 2**64 - 1
"""Stands in `Vocabulary.feature_ids` at row 0, which belongs to every unknown id."""

_FORMAT = b"esmm_fast vocabulary"
_VERSION = b"1"
_MOST_ROWS = 2**31 - 1  # of all tables together: rows are int32


class LogTables(Protocol):
    """What vocabularies and batches read of a dataset; `Dataset` is one. Tables are pyarrow's."""

    @property
    def schema(self) -> Schema: ...
    @property
    def impressions(self) -> Any: ...
    @property
    def common_rows(self) -> Any: ...
    @property
    def counts(self) -> Any: ...
    @property
    def selection(self) -> np.ndarray | None: ...


class Vocabulary:
    """The feature ids of every table and the rows they have, by descending count.

    Row 0 of each table is the unknown id; rows 1, 2, ... are the ids by descending count, equal
    counts by ascending id. Several fields can share one table: their counts add up.

    A hashed table knows no ids: the hash of an id says which of the rows 1, 2, ... it has, and ids
    can share one.

    Args:
        tables: ``{table: (feature_ids [n] uint64, counts [n] uint64)}``, already in the order of
            the rows.
        min_count: The cut-off that made it, for the record.
        hashed: ``{table: rows}`` of the hashed tables; they are not among `tables`.

    Example:
        >>> vocabulary = Vocabulary({"205": ([70, 12, 31], [9, 4, 4])})
        >>> vocabulary.rows("205")
        4
        >>> vocabulary.lookup("205", [12, 99, 70]).tolist()
        [2, 0, 1]
    """

    def __init__(
        self,
        tables: Mapping[str, tuple[Any, Any]],
        min_count: int = 1,
        *,
        hashed: Mapping[str, int] | None = None,
    ) -> None:
        self.min_count = min_count
        self.hashed = dict(hashed or {})
        if both := self.hashed.keys() & tables.keys():
            raise ValueError(f"hashed: expected other tables than `tables`, got {sorted(both)}")
        self._ids: dict[str, np.ndarray] = {}
        self._counts: dict[str, np.ndarray] = {}
        self._lookups: dict[str, Any] = {}
        self._sums: dict[str, int] = {}  # checksums of ids
        for table, (ids, counts) in tables.items():
            self._ids[table] = np.ascontiguousarray(ids, dtype=np.uint64)
            self._counts[table] = np.ascontiguousarray(counts, dtype=np.uint64)
            if self._ids[table].ndim != 1 or self._ids[table].shape != self._counts[table].shape:
                raise ValueError(
                    f"table {table!r}: expected as many counts as feature ids, one dimension "
                    "each, got shapes "
                    f"{self._ids[table].shape} and {self._counts[table].shape}"
                )
        for table, rows in self.hashed.items():
            if rows < 2:
                raise ValueError(f"hashed: table {table!r}: expected 2 rows or more, got {rows}")
        total = sum(self.rows(table) for table in (*self.tables, *self.hashed))
        if total > _MOST_ROWS:
            ways = ["raise min_count"] * bool(tables) + ["hash to fewer rows"] * bool(hashed)
            raise ValueError(
                f"the tables hold {total} rows together, expected at most {_MOST_ROWS}: "
                f"{' or '.join(ways)}"
            )

    @classmethod
    def from_dataset(
        cls,
        dataset: LogTables,
        min_count: int = 1,
        *,
        schema: Schema | None = None,
        selected: bool = False,
    ) -> Vocabulary:
        """Returns the vocabulary of the ids that occur at least `min_count` times in a dataset.

        Counts are those of the log, unjoined: an id of a common row counts once per common row, not
        once per impression.

        Args:
            dataset: The dataset, or a view of one.
            min_count: Ids that occur less often have no row of their own. Since rows go by
                descending count, a higher `min_count` gives a prefix of each table. Runs take 5 by
                default: at 1 the row of unknown ids meets no training impression, stays at its
                random start, and a new id later adds that.
            schema: Whose fields and tables; None: the dataset's own.
            selected: Count the selected impressions of a view and the common rows they use, each
                once, instead of the whole dataset (which needs no reading: its counts are stored).
        """
        if min_count < 1:
            raise ValueError(f"min_count: expected at least 1, got {min_count}")
        schema = schema or dataset.schema
        count = _counts_of_selection if selected else _stored_counts
        hashed = schema.hashed_tables
        parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {
            t: [] for t in schema.tables if t not in hashed
        }
        tables = {f.name: f.table_name for f in schema.fields}
        for field, ids, counts in count(dataset, schema):
            if tables[field] in parts:
                parts[tables[field]].append((ids, counts))
        known = {t: _by_count(p, min_count) for t, p in parts.items()}
        return cls(known, min_count, hashed=hashed)

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that know their feature ids, hashed ones left out."""
        return tuple(self._ids)

    def rows(self, table: str) -> int:
        """Returns the rows of a table, the unknown id's row 0 included."""
        return self.hashed.get(table) or len(self._of(table)) + 1

    def feature_ids(self, table: str) -> np.ndarray:
        """Returns the feature id of every row, uint64 [rows]; row 0 has none and holds 2^64 - 1.

        The rows of a hashed table stand for themselves.
        """
        if table in self.hashed:
            return np.concatenate(
                [np.array([NO_ID], np.uint64), np.arange(1, self.hashed[table], dtype=np.uint64)]
            )
        return np.concatenate([np.array([NO_ID], np.uint64), self._of(table)])

    def counts(self, table: str) -> np.ndarray:
        """Returns how often each row's id occurs in the log, uint64 [rows]; 0 for row 0.

        Raises:
            KeyError: There is no such table, or it is hashed.
        """
        self._of(table)
        return np.concatenate([np.zeros(1, np.uint64), self._counts[table]])

    def sized(self, schema: Schema) -> Schema:
        """Returns the schema with every field's number of table rows written into it."""
        sized = schema.with_rows({table: self.rows(table) for table in schema.tables})
        return replace(sized, vocabulary=self.fingerprint(schema.tables))

    def fingerprint(self, tables: Iterable[str]) -> str:
        """Returns a checksum of the names, rows and ids of some tables, 8 hexadecimal digits.

        Example:
            >>> ids, counts = [70, 12, 31], [9, 4, 4]
            >>> vocabularies = [Vocabulary({"205": (ids[:n], counts[:n])}) for n in (2, 3, 3)]
            >>> a, b, c = (v.fingerprint(["205"]) for v in vocabularies)
            >>> a == b, b == c
            (False, True)
        """
        for table in tables:
            if table not in self._sums:
                ids = np.empty(0, np.uint64) if table in self.hashed else self._of(table)
                self._sums[table] = zlib.crc32(ids.data)
        found = sorted((table, self.rows(table), self._sums[table]) for table in tables)
        return f"{zlib.crc32(repr(found).encode()):08x}"

    def lookup(self, table: str, ids: Any) -> np.ndarray:
        """Returns the row of every feature id, int32 in the shape of `ids`; 0: unknown."""
        ids = np.asarray(ids)
        if ids.dtype.kind not in "iu" and ids.size:
            raise TypeError(f"ids: expected integers, got {ids.dtype}")
        if ids.dtype.kind == "i" and ids.size and ids.min() < 0:
            raise ValueError(f"ids: expected feature ids of at least 0, got {ids.min()}")
        if ids.dtype != np.uint32:
            ids = ids.astype(np.uint64, copy=False)
        return self._lookup(table).rows(np.ascontiguousarray(ids))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vocabulary as an Arrow file.

        Its columns: table (dictionary string), feature_id, count, row. It appears whole or not
        at all.
        """
        import pyarrow as pa

        sizes = [len(ids) for ids in self._ids.values()]
        codes = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        table = pa.table(
            {
                "table": pa.DictionaryArray.from_arrays(codes, pa.array(self.tables, pa.string())),
                "feature_id": _joined(list(self._ids.values()), np.uint64),
                "count": _joined(list(self._counts.values()), np.uint64),
                "row": _joined([np.arange(1, n + 1) for n in sizes], np.int32),
            }
        ).replace_schema_metadata(
            {
                _FORMAT: _VERSION,
                b"min_count": str(self.min_count),
                b"hashed": json.dumps(self.hashed),
            }
        )
        with (
            staged_file(Path(path)) as staged,
            pa.OSFile(str(staged), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            if table.num_rows:
                writer.write_table(table)
            else:  # a batch of no rows brings the dictionary, the names of the tables
                writer.write_batch(
                    pa.RecordBatch.from_arrays(
                        [c.combine_chunks() for c in table.columns], schema=table.schema
                    )
                )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Returns the vocabulary of a file that `save` wrote, checked."""
        import pyarrow as pa

        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such vocabulary")
        try:
            with pa.OSFile(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{path}: not an Arrow file, or cut off; expected a vocabulary ({error})"
            ) from error
        metadata = table.schema.metadata or {}
        if _FORMAT not in metadata:
            raise ValueError(
                f"{path}: not a vocabulary; its metadata lacks {_FORMAT.decode()!r}, "
                f"its columns are {table.column_names}"
            )
        if metadata[_FORMAT] != _VERSION:
            raise ValueError(
                f"{path}: vocabulary version {metadata[_FORMAT].decode()} is not known here, "
                f"expected {_VERSION.decode()}"
            )
        names = table["table"].combine_chunks()
        if isinstance(names, pa.ChunkedArray):
            names = names.chunk(0)
        codes = names.indices.to_numpy()
        ids, counts, rows = (table[c].to_numpy() for c in ("feature_id", "count", "row"))
        tables = {}
        for code, name in enumerate(names.dictionary.to_pylist()):
            mine = np.flatnonzero(codes == code)
            mine = mine[np.argsort(rows[mine], kind="stable")]
            if not np.array_equal(rows[mine], np.arange(1, len(mine) + 1)):
                raise ValueError(
                    f"{path}: table {name!r}: expected the rows 1 ... {len(mine)}, each once"
                )
            tables[name] = (ids[mine], counts[mine])
        hashed = json.loads(metadata.get(b"hashed", b"{}"))
        vocabulary = cls(tables, int(metadata[b"min_count"]), hashed=hashed)
        for name in tables:
            if len(np.unique(vocabulary._ids[name])) != len(vocabulary._ids[name]):
                raise ValueError(f"{path}: table {name!r}: a feature id has two rows")
        return vocabulary

    def __repr__(self) -> str:
        tables = (*self.tables, *self.hashed)
        rows = sum(self.rows(table) for table in tables)
        return f"Vocabulary({len(tables)} tables, {rows} rows, min_count={self.min_count})"

    def _of(self, table: str) -> np.ndarray:
        if table in self.hashed:
            raise KeyError(f"table {table!r} is hashed: it knows neither feature ids nor counts")
        if table not in self._ids:
            known = ", ".join((*self.tables, *self.hashed)) or "none"
            raise KeyError(f"the vocabulary has no table {table!r}; it has {known}")
        return self._ids[table]

    def _lookup(self, table: str) -> Any:
        """Returns the C++ look-up of a table, made when it is first wanted."""
        from ._compiled import _native

        if table not in self._lookups:
            if table in self.hashed:
                self._lookups[table] = _native.Lookup.hashed(self.hashed[table])
            else:
                self._lookups[table] = _native.Lookup(self._of(table))
        return self._lookups[table]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lookups": {}}


def _joined(arrays: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *(a.astype(dtype, copy=False) for a in arrays)])


def summed_counts(
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each id of all (ids, counts), ascending, and the sum of its counts: uint64, int64.

    Example:
        >>> ids, counts = summed_counts([([7, 5], [1, 2]), ([5], [-1])])
        >>> ids.tolist(), counts.tolist()
        ([5, 7], [1, 1])
    """
    several = [(np.asarray(ids), np.asarray(counts)) for ids, counts in parts]
    ids = _joined([p[0] for p in several], np.uint64)
    counts = _joined([p[1] for p in several], np.int64)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])[: len(ids)])
    return ids[starts], np.add.reduceat(counts[order], starts) if len(ids) else counts


def _by_count(
    parts: list[tuple[np.ndarray, np.ndarray]], min_count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of all parts and their summed counts, in the order of the rows."""
    ids, counts = summed_counts(parts)
    order = np.argsort(-counts, kind="stable")
    kept = order[: np.count_nonzero(counts >= min_count)]
    return ids[kept], counts[kept].astype(np.uint64)


def _stored_counts(
    dataset: LogTables, schema: Schema
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    import pyarrow as pa

    table = dataset.counts
    fields = table["field"].combine_chunks()
    if isinstance(fields, pa.ChunkedArray):
        fields = pa.concat_arrays(fields.chunks) if fields.num_chunks else pa.array([], pa.string())
    if not pa.types.is_dictionary(fields.type):
        fields = fields.dictionary_encode()
    codes = fields.indices.to_numpy()
    names = fields.dictionary.to_pylist()
    ids, counts = table["feature_id"].to_numpy(), table["count"].to_numpy()
    for field in schema.fields:
        if field.name in names:
            mine = np.flatnonzero(codes == names.index(field.name))
            yield field.name, ids[mine], counts[mine]


def _counts_of_selection(
    dataset: LogTables, schema: Schema
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    import pyarrow as pa

    rows = None if dataset.selection is None else np.unique(dataset.selection)
    common_rows = None
    if schema.common:
        common_rows = dataset.impressions["common_row"].to_numpy()
        common_rows = np.unique(common_rows if rows is None else common_rows[rows])
    for field in schema.fields:
        table, taken = dataset.impressions, rows
        if field.side == "common":
            table, taken = dataset.common_rows, common_rows
        column = table[field.name]
        if taken is not None:
            column = column.take(pa.array(taken))
        for chunk in column.chunks:
            values = chunk.flatten() if pa.types.is_list(chunk.type) else chunk.drop_null()
            ids, counts = np.unique(values.to_numpy(zero_copy_only=False), return_counts=True)
            yield field.name, ids.astype(np.uint64), counts
