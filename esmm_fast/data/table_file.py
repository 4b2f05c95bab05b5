"""The file of one side of a dataset while it is written, in types as narrow as its rows allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from ..schema import Field, Side
from .arrow_file import ArrowFile
from .narrow_columns import Narrowed, plain_batch
from .record_batches import Layout, arrow_schema, conform


class TableFile:
    """An Arrow IPC file of one side; widened, by writing it again, when a batch needs a wider
    layout or wider types. As a context it closes what is not finished."""

    def __init__(self, path: Path, side: Side, fields: tuple[Field, ...], layout: Layout):
        self._path, self._side, self._fields = path, side, fields
        self.layout = layout
        self._narrowed = Narrowed(len(arrow_schema(side, (), Layout((), (), fixed=layout.fixed))))
        self._file: ArrowFile | None = None
        self._batches = 0

    def __enter__(self) -> TableFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.abandon()

    def write(self, batch: pa.RecordBatch, layout: Layout) -> None:
        if (wider := self.layout | layout) != self.layout:
            self.layout = wider
            self._write_again()
        columns, is_wider = self._columns(batch, self._batches)
        if is_wider:
            self._write_again()
        self._batches += 1
        self._opened().write(columns)

    def _columns(self, batch: pa.RecordBatch, number: int) -> tuple[list[pa.Array], bool]:
        plain = conform(batch, self._side, self._fields, self.layout)
        pairs = zip(self._fields, self.layout.weighted, strict=True)
        values = {f"{field.name}_value" for field, weighted in pairs if weighted}
        return self._narrowed.columns(plain, values, number)

    def _opened(self) -> ArrowFile:
        if self._file is None:
            self._stored = self._narrowed.schema(self._schema)
            self._file = ArrowFile(self._path, self._stored)
        return self._file

    @property
    def _schema(self) -> pa.Schema:
        return arrow_schema(self._side, self._fields, self.layout)

    def _write_again(self) -> None:
        """Writes what is there in the layout and the types that are needed now."""
        if self._file is None:
            return
        self.close()
        narrow = self._path.with_suffix(".narrow")
        self._path.rename(narrow)
        self._file = None
        with pa.OSFile(str(narrow)) as source:  # not mapped: memory is that of a record batch
            reader = pa.ipc.open_file(source)
            for i in range(reader.num_record_batches):
                columns, _ = self._columns(plain_batch(reader.get_batch(i)), i)
                self._opened().write(columns)
        narrow.unlink()

    def close(self) -> dict[str, Any]:
        """Ends the file; returns its size and checksum."""
        return self._opened().close(self._narrowed.dictionaries(self._stored))
