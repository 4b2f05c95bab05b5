"""Raw log -> columns: the parser's Python face."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from .._compiled import _native
from ..machine import usable_cores
from ..schema import ALI_CCP, Field, Schema, Side
from .inputs import STANDARD_INPUT, Files, Inputs, LogFile, log_files
from .log_format import LogFormat
from .log_report import LogError, SideReport, report_of_keys, require_impressions
from .record_batches import (
    Layout,
    arrow_schema,
    check_columns,
    conform,
    promoted_schema,
    record_batch,
)

OnError = Literal["stop", "skip"]

CHUNK_BYTES = 8 << 20
"""Text per chunk, and so per record batch, in bytes. The cut depends on this alone, not on the
threads."""


@dataclass(frozen=True)
class Log:
    """A log in memory. Columns as in a dataset: see `Dataset`."""

    impressions: pa.Table
    common_rows: pa.Table
    schema: Schema
    report: dict[Side, SideReport]


def read_log(
    skeleton: Files,
    common: Files = None,
    schema: Schema = ALI_CCP,
    threads: int | None = None,
    *,
    on_error: OnError = "stop",
    chunk_bytes: int = CHUNK_BYTES,
) -> Log:
    """Returns the columns of a log, every occurrence with its value and every common row once.

    Args:
        skeleton: Skeleton file or files (one line per impression): plain, gzip, a tar archive that
            holds one, or ``-`` for standard input.
        common: Files of the common rows, likewise; an archive can be both. None: there are none;
            then the keys of the skeleton files become common rows without features, in the order
            in which they appear.
        schema: The fields. Where the log needs more than it says (a second occurrence in a row, a
            value other than 1), the field becomes `multi` or `weighted` in the result's schema.
        threads: Threads of the parser; None: all cores of this process. The result does not depend
            on it.
        on_error: ``"stop"`` raises at the first bad line, ``"skip"`` leaves bad lines out and
            counts them.
        chunk_bytes: Text per chunk and record batch, in bytes.

    Raises:
        LogError: ``file:line (byte N): reason; expected ..., got ...`` at the first bad line in
            file order.

    Example:
        >>> import pathlib, tempfile
        >>> line = "1,1,0,bacff91692951881,2,205\\x0277\\x031.0\\x01508\\x025\\x030.69315\\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "sample_skeleton.csv")
        ...     _ = file.write_text(line)
        ...     log = read_log(file)
        >>> log.impressions.select(["sample_id", "click", "205", "508", "508_value"]).to_pylist()
        [{'sample_id': 1, 'click': 1, '205': 77, '508': 5, '508_value': 0.693149983882904}]
    """
    reader = LogReader(
        skeleton, common, schema, threads=threads, on_error=on_error, chunk_bytes=chunk_bytes
    )
    batches: dict[Side, list[tuple[pa.RecordBatch, Layout]]] = {}
    for side in reader.sides:
        batches[side] = list(reader.read(side))
    reader.require_impressions()
    tables: dict[Side, pa.Table] = {}
    for side in reader.sides:
        fields, layout = reader.schema.of_side(side), reader.layouts[side]
        tables[side] = pa.Table.from_batches(
            [conform(batch, side, fields, layout) for batch, _ in batches[side]],
            schema=arrow_schema(side, fields, layout),
        )
    return Log(tables["impression"], tables["common"], reader.promoted_schema, reader.reports)


class LogReader:
    """One pass over the files of a log: `read` each of `sides` once, in that order.

    Args:
        skeleton, common, schema, threads, on_error, chunk_bytes: As in `read_log`.
        count_ids: Count the occurrences of every id (`SideReport.occurrences`).
        rejects: Called with the skipped lines (bytes) in file order.
        advance: Called after each block with the bytes of the files (as they are on disk) that are
            read, and with those there are (None: not known).
        shard: (i, n): Part i, from 0, of n of each (plain) file. Its common rows are all given,
            also repeated ones, and ``common_row`` numbers the keys in the order in which they
            appear: what depends on the other parts is left to their merging. Lines count from the
            part's first, but in a LogError.
        on_block: Called with each block of the parser before it is yielded.

    Attributes:
        sources: Side -> the names of its files as messages have them, once they are opened.
        keys, key_places: Of a shard: the keys in the order in which they appear, and the file
            (number), line and byte where each is first.
        ranges: Of a shard: side -> the bytes [begin, end) of each file that are read.
    """

    def __init__(
        self,
        skeleton: Files,
        common: Files,
        schema: Schema | LogFormat,
        *,
        threads: int | None = None,
        on_error: OnError = "stop",
        chunk_bytes: int = CHUNK_BYTES,
        count_ids: bool = True,
        rejects: Callable[[bytes], object] | None = None,
        advance: Callable[[int, int | None], object] | None = None,
        shard: tuple[int, int] | None = None,
        on_block: Callable[[Side, Any], object] | None = None,
    ):
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error: 'stop' or 'skip' expected, got {on_error!r}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads: at least 1 expected, got {threads}")
        self.format = LogFormat.of(schema)
        self.format.check_text()
        self.schema = self.format.schema
        check_columns(self.schema)
        self.files: dict[Side, list[LogFile]] = {
            "common": log_files(common, "common"),
            "impression": log_files(skeleton, "skeleton"),
        }
        if not self.files["impression"]:
            raise ValueError("skeleton: at least one file expected, got none")
        self.sides: tuple[Side, ...] = (
            ("common", "impression") if self.files["common"] else ("impression", "common")
        )
        self._fixed = None if self.format.usual else self._own_columns()
        self.layouts: dict[Side, Layout] = {
            "common": Layout.of(self.schema.common),
            "impression": Layout.of(self.schema.impression, self._fixed),
        }
        self.reports: dict[Side, SideReport] = {}
        self.label_counts = dict.fromkeys(self.schema.labels, 0)  # counted for own formats only
        self.sources: dict[Side, list[str]] = {"common": [], "impression": []}
        self._inputs = Inputs([*self.files["common"], *self.files["impression"]])
        self._threads = threads or usable_cores()
        self._skip = on_error == "skip"
        self._chunk_bytes = chunk_bytes
        self._count_ids = count_ids
        self._rejects, self._advance = rejects, advance
        self._shard, self._on_block = shard, on_block
        self._keys = _native.KeyMap()
        self.key_places: tuple[np.ndarray, ...] = ()
        self.ranges: dict[Side, list[tuple[int, int]]] = {"common": [], "impression": []}

    @property
    def synthetic(self) -> bool:
        """Whether `synth` wrote the log."""
        files = [f.path for f in self.files["impression"] if f.path != STANDARD_INPUT]
        return any((path.parent / "synth.json").exists() for path in files)

    @property
    def promoted_schema(self) -> Schema:
        """The schema, with `multi` and `weighted` as the log needs them."""
        return promoted_schema(self.schema, self.layouts["common"], self.layouts["impression"])

    def require_impressions(self) -> None:
        """Raises LogError if the files that were read hold no impression."""
        require_impressions(self.reports, self.sources["impression"][0])

    @property
    def keys(self) -> np.ndarray:
        return self._keys.keys()

    @property
    def numbered(self) -> bool:
        """Whether the impressions have no sample_id and are numbered from 1."""
        return self._fixed is not None and self.format.sample_id not in self.format.columns

    def read(self, side: Side) -> Iterator[tuple[pa.RecordBatch, Layout]]:
        """Yields the rows of one side in file order, in blocks, each with the layout it is in."""
        if side == "common" and not self.files["common"]:
            yield from self._keys_alone()
            return
        numbered = 0
        fields = self.schema.of_side(side)
        layout = self.layouts[side]
        stream = None
        try:
            inputs = [self._inputs.open(file) for file in self.files[side]]
            self.sources[side] = [name for name, _, _ in inputs]
            stream = _native.LogStream(
                inputs=inputs,
                common=side == "common",
                fields=[f.name for f in fields],
                other_fields=[f.name for f in self.schema.fields if f not in fields],
                multi=layout.multi,
                weighted=layout.weighted,
                keys=self._keys,
                discovers=side == "impression" and bool(self._shard or not self.files["common"]),
                threads=self._threads,
                chunk_bytes=self._chunk_bytes,
                skip_bad_lines=self._skip,
                keep_rejects=self._skip and self._rejects is not None,
                count_ids=self._count_ids,
                shard=self._shard,
                **self.format.native(),
            )
            if self._shard:
                self.ranges[side] = [stream.input_range(i) for i in range(len(inputs))]
            while (block := stream.next()) is not None:
                if self._on_block is not None:
                    self._on_block(side, block)
                if self._rejects is not None and (lines := block.rejects):
                    self._rejects(lines)
                if inputs[block.file][1] is not None:
                    self._inputs.add_plain(block.bytes)
                if self._advance is not None:
                    self._advance(self._inputs.done, self._inputs.total)
                if block.rows > len(block.dropped):
                    own = None
                    if side == "impression" and self._fixed is not None:
                        own = self._fixed, self._own_arrays(block, numbered)
                        numbered += block.rows
                    batch, block_layout = record_batch(block, side, fields, own)
                    self.layouts[side] |= block_layout
                    yield batch, block_layout
                    del batch
                del block
            if (problem := stream.problem()) is not None:
                if self._shard:
                    file = self.sources[side].index(problem["file"])
                    problem["line"] += lines_before(problem["file"], self.ranges[side][file][0])
                raise LogError.at(problem)
            if side == "impression":
                self.key_places = stream.key_places()
            self.reports[side] = _report(stream, fields)
        finally:
            stream = None  # its threads end before the files close
            if side == "impression" or sys.exc_info()[0] is not None:
                self._inputs.close()

    def _own_columns(self) -> pa.Schema:
        types = {n: self.format.extra_types.get(n, "int64") for n in self.schema.extra}
        extra = {n: pa.float64() if t == "float64" else pa.int64() for n, t in types.items()}
        return self.format.stored_columns(extra, self.format.key in self.format.columns)

    def _own_arrays(self, block: Any, numbered: int) -> list[pa.Array]:
        """Returns a block's columns before the fields; `numbered` rows stand before it."""
        assert self._fixed is not None
        names = [n for n in self.format.columns if n in self.format.carried]
        carried = dict(zip(names, block.carried(), strict=True))
        own = self.format
        columns: dict[str, pa.Array] = {"common_row": block.common_row}
        columns["sample_id"] = (
            block.sample_id
            if own.sample_id in own.columns
            else np.arange(numbered + 1, numbered + 1 + block.rows, dtype=np.uint64)
        )
        if own.dense:
            dense = np.stack([carried[n].view(np.float64) for n in own.dense], axis=1)
            flat = pa.array(dense.astype(np.float32).reshape(-1))
            columns["dense"] = pa.FixedSizeListArray.from_arrays(flat, len(own.dense))
        for name, bits in carried.items():
            if name in own.schema.labels:
                columns[name] = bits.astype(np.uint8)
                self.label_counts[name] += int(bits.sum())
            elif name == own.schema.weight:
                columns[name] = bits.view(np.float64).astype(np.float32)
            elif name in own.schema.extra:
                columns[name] = bits.view(self._fixed.field(name).type.to_pandas_dtype())
        return [pa.array(columns[name]) for name in self._fixed.names]

    def _keys_alone(self) -> Iterator[tuple[pa.RecordBatch, Layout]]:
        """Yields common rows that have a key and no features, for a log without common files."""
        fields, layout = self.schema.common, self.layouts["common"]
        has_keys = self.format.key in self.format.columns and not self._shard
        keys = self._keys.keys() if has_keys else np.empty(0, "u8")
        self.reports["common"] = report_of_keys(keys, fields)
        if len(keys):
            yield key_rows(keys, fields, layout), layout


def key_rows(keys: np.ndarray, fields: tuple[Field, ...], layout: Layout) -> pa.RecordBatch:
    """Returns common rows that have a key and no features."""
    schema = arrow_schema("common", fields, layout)
    starts = pa.array(np.zeros(len(keys) + 1, np.int32))
    absent = [
        pa.ListArray.from_arrays(starts, pa.array([], f.type.value_type))
        if pa.types.is_list(f.type)
        else pa.nulls(len(keys), f.type)
        for f in list(schema)[1:]
    ]
    return pa.RecordBatch.from_arrays([pa.array(keys), *absent], schema=schema)


def lines_before(path: str, begin: int) -> int:
    """Returns how many lines of a file begin before the first that begins at byte `begin` or
    behind it."""
    if begin == 0:
        return 0
    lines, left = 1, begin - 1  # a line ends at the byte before `begin` or crosses it
    with open(path, "rb", buffering=0) as file:
        while left and (block := file.read(min(left, 1 << 24))):
            lines += block.count(b"\n")
            left -= len(block)
    return lines


def _report(stream: Any, fields: tuple[Field, ...]) -> SideReport:
    totals = stream.totals()
    without = totals.pop("rows_without")
    return SideReport(
        **totals,
        rows_without={f.name: n for f, n in zip(fields, without, strict=True)},
        occurrences={f.name: stream.counts(i) for i, f in enumerate(fields)},
    )
