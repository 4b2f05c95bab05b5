"""Where a table comes from: Parquet and Arrow files, and tables in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from .log_report import LogError

ROWS = 1 << 16
"""Rows of a record batch at most."""


class Source:
    """One table: a Parquet or Arrow file, or anything that has Arrow's C stream interface (a
    pyarrow, polars or pandas table; one that can be read only once is kept in memory).

    Args:
        table: The file's path or the object.
        number: How many objects stand before it, for its name.
    """

    def __init__(self, table: Any, number: int):
        self.bytes = 0
        if isinstance(table, str | os.PathLike):
            self.name, self._file = str(table), Path(table)
            self._kind = _kind(self._file)
            self.bytes = self._file.stat().st_size
            with self._reading():
                opened = self._open()
                self.schema = opened.schema_arrow if self._kind == "parquet" else opened.schema
            return
        self.name, self._kind = f"table {number}", "memory"
        if hasattr(table, "to_arrow"):  # polars
            table = table.to_arrow()
        if not hasattr(table, "__arrow_c_stream__"):
            raise TypeError(
                "table: a path, or a table with Arrow's C stream interface (pyarrow, polars, "
                f"pandas >= 2.2) expected, got {type(table).__name__}"
            )
        self._table = pa.table(table)
        self.schema, self.bytes = self._table.schema, self._table.nbytes

    def _open(self) -> Any:
        if self._kind == "parquet":
            import pyarrow.parquet as pq

            return pq.ParquetFile(self._file, memory_map=True)
        return pa.ipc.open_file(pa.memory_map(str(self._file)))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Makes an error of pyarrow one that names the table."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise type(error)(error.errno, os.strerror(error.errno), self.name) from error
            raise LogError(
                f"{self.name} is damaged: a table of {self._kind.capitalize()} expected, got "
                f"{error}",
                self.name,
                reason="bad_file",
            ) from error

    def batches(self, names: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, float]]:
        """Yields the rows with these columns, and which share of the table is read by then.

        Raises:
            LogError: The file is damaged.
        """
        stored = self._stored(names)
        while True:
            with self._reading():
                read = next(stored, None)
            if read is None:
                return
            yield read

    def _stored(self, names: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, float]]:
        if self._kind == "parquet":
            with self._open() as file:
                rows, done = max(1, file.metadata.num_rows), 0
                for batch in file.iter_batches(ROWS, columns=list(names)):
                    done += batch.num_rows
                    yield batch.select(names), done / rows
            return
        if self._kind == "arrow":
            file = self._open()
            stored = (file.get_batch(i) for i in range(file.num_record_batches))
            total = max(1, file.num_record_batches)
        else:
            stored = iter(self._table.to_batches())
            total = max(1, len(self._table.to_batches()))
        for i, batch in enumerate(stored):
            for begin in range(0, batch.num_rows, ROWS):
                yield batch.select(names).slice(begin, ROWS), (i + 1) / total


def _kind(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a table (Parquet or Arrow)")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; expected its Parquet or Arrow files")
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic[:4] == b"PAR1":
        return "parquet"
    if magic == b"ARROW1":
        return "arrow"
    raise ValueError(f"{path}: a Parquet or Arrow (IPC file) table expected, got {magic!r}...")


def sources(given: Any) -> list[Source]:
    """Returns the tables of one path or object, or of several."""
    if given is None:
        return []
    single = isinstance(given, str | os.PathLike) or hasattr(given, "__arrow_c_stream__")
    tables = [given] if single or hasattr(given, "to_arrow") else list(given)
    return [Source(table, number) for number, table in enumerate(tables)]
