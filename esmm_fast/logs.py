"""Raw log -> columns: the parser's Python face."""

from __future__ import annotations

import gzip
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ._compiled import _native
from .machine import usable_cores
from .record_batches import (
    Layout,
    arrow_schema,
    check_columns,
    conform,
    promoted_schema,
    record_batch,
)
from .schema import ALI_CCP, Field, Schema, Side

PathLike = str | os.PathLike[str]
OnError = Literal["stop", "skip"]

CHUNK_BYTES = 8 << 20
"""Text per chunk, and so per record batch, in bytes. The cut depends on this alone, not on the
threads."""


class LogError(ValueError):
    """A log that is not what its grammar says.

    Attributes:
        file: The file as it was given.
        line: Line from 1.
        byte: Offset of the first wrong byte in the decompressed file, from 0.
        reason: The class of the error, e.g. ``"feature_num_mismatch"``.
    """

    def __init__(
        self, message: str, file: str = "", line: int = 0, byte: int = 0, reason: str = ""
    ):
        super().__init__(message)
        self.file, self.line, self.byte, self.reason = file, line, byte, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return LogError, (str(self), self.file, self.line, self.byte, self.reason)

    @staticmethod
    def at(found: dict[str, Any]) -> LogError:
        """Returns the error for a place and message as the parser reports them."""
        text = f"{place(found)}: {found['message']}"
        return LogError(text, found["file"], found["line"], found["byte"], found["reason"])


def place(found: dict[str, Any]) -> str:
    """Returns ``file:line (byte N)``."""
    return f"{found['file']}:{found['line']} (byte {found['byte']})"


@dataclass
class SideReport:
    """What one side's files held. `anomalies` and `rejected`: name -> count, file, line, byte (,
    message)."""

    rows: int = 0
    lines: int = 0
    bytes: int = 0
    clicks: int = 0
    conversions: int = 0  # with click
    common_rows_used: int = 0
    rows_without: dict[str, int] = field(default_factory=dict)
    anomalies: dict[str, dict[str, Any]] = field(default_factory=dict)
    rejected: dict[str, dict[str, Any]] = field(default_factory=dict)
    occurrences: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Field -> (feature ids, counts), both uint64, ids ascending."""


@dataclass(frozen=True)
class Log:
    """A log in memory. Columns as in a dataset: see `Dataset`."""

    impressions: pa.Table
    common_rows: pa.Table
    schema: Schema
    report: dict[Side, SideReport]


def read_log(
    skeleton: PathLike | Iterable[PathLike],
    common: PathLike | Iterable[PathLike] | None = None,
    schema: Schema = ALI_CCP,
    threads: int | None = None,
    *,
    on_error: OnError = "stop",
    chunk_bytes: int = CHUNK_BYTES,
) -> Log:
    """Returns the columns of a log, every occurrence with its value and every common row once.

    Args:
        skeleton: Skeleton file or files (one line per impression), plain or gzip.
        common: Files of the common rows. None: there are none; then the keys of the skeleton files
            become common rows without features, in the order in which they appear.
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
        fields, layout = reader.fields(side), reader.layouts[side]
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
        advance: Called with the bytes of text of each block.
    """

    def __init__(
        self,
        skeleton: PathLike | Iterable[PathLike],
        common: PathLike | Iterable[PathLike] | None,
        schema: Schema,
        *,
        threads: int | None = None,
        on_error: OnError = "stop",
        chunk_bytes: int = CHUNK_BYTES,
        count_ids: bool = True,
        rejects: Callable[[bytes], object] | None = None,
        advance: Callable[[int], object] | None = None,
    ):
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error: 'stop' or 'skip' expected, got {on_error!r}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads: at least 1 expected, got {threads}")
        check_columns(schema)
        self.schema = schema
        self.files: dict[Side, list[Path]] = {
            "common": file_list(common, "common"),
            "impression": file_list(skeleton, "skeleton"),
        }
        if not self.files["impression"]:
            raise ValueError("skeleton: at least one file expected, got none")
        self.sides: tuple[Side, ...] = (
            ("common", "impression") if self.files["common"] else ("impression", "common")
        )
        self.layouts: dict[Side, Layout] = {
            "common": Layout.of(schema.common),
            "impression": Layout.of(schema.impression),
        }
        self.reports: dict[Side, SideReport] = {}
        self._threads = threads or usable_cores()
        self._skip = on_error == "skip"
        self._chunk_bytes = chunk_bytes
        self._count_ids = count_ids
        self._rejects, self._advance = rejects, advance
        self._keys = _native.KeyMap()

    @property
    def promoted_schema(self) -> Schema:
        """The schema, with `multi` and `weighted` as the log needs them."""
        return promoted_schema(self.schema, self.layouts["common"], self.layouts["impression"])

    def require_impressions(self) -> None:
        """Raises LogError if the files that were read hold no impression."""
        if self.reports["impression"].rows:
            return
        file = str(self.files["impression"][0])
        errors = merged(self.reports["common"].rejected, self.reports["impression"].rejected)
        if not errors:
            raise LogError(
                f"{file}:1 (byte 0): no impressions; expected at least one line, "
                "got only blank ones",
                file,
                1,
                0,
                "bad_file",
            )
        found = "; ".join(
            f"{e['count']} x {name}, first {e['first']}: {e['message']}"
            for name, e in errors.items()
        )
        raise LogError(
            f"{file}: every line was skipped; expected at least one good impression, got {found}",
            file,
        )

    def fields(self, side: Side) -> tuple[Field, ...]:
        """Returns the fields of one side."""
        return self.schema.common if side == "common" else self.schema.impression

    def read(self, side: Side) -> Iterator[tuple[pa.RecordBatch, Layout]]:
        """Yields the rows of one side in file order, in blocks, each with the layout it is in."""
        if side == "common" and not self.files["common"]:
            yield from self._keys_alone()
            return
        fields = self.fields(side)
        layout = self.layouts[side]
        inputs = [_input(path) for path in self.files[side]]
        try:
            stream = _native.LogStream(
                inputs=inputs,
                common=side == "common",
                fields=[f.name for f in fields],
                other_fields=[f.name for f in self.schema.fields if f not in fields],
                multi=layout.multi,
                weighted=layout.weighted,
                keys=self._keys,
                discovers=side == "impression" and not self.files["common"],
                threads=self._threads,
                chunk_bytes=self._chunk_bytes,
                skip_bad_lines=self._skip,
                keep_rejects=self._skip and self._rejects is not None,
                count_ids=self._count_ids,
            )
            while (block := stream.next()) is not None:
                if self._rejects is not None and (lines := block.rejects):
                    self._rejects(lines)
                if self._advance is not None:
                    self._advance(block.bytes)
                if block.rows > len(block.dropped):
                    batch, block_layout = record_batch(block, side, fields)
                    self.layouts[side] |= block_layout
                    yield batch, block_layout
                    del batch
                del block
            if (problem := stream.problem()) is not None:
                raise LogError.at(problem)
            self.reports[side] = _report(stream, fields)
        finally:
            stream = None  # its threads end before the files close
            for _, _, opened in inputs:
                if opened is not None:
                    opened.close()

    def _keys_alone(self) -> Iterator[tuple[pa.RecordBatch, Layout]]:
        """Yields common rows that have a key and no features, for a log without common files."""
        fields, layout = self.schema.common, self.layouts["common"]
        keys = self._keys.keys()
        names = [f.name for f in fields]
        self.reports["common"] = SideReport(
            rows=len(keys),
            rows_without=dict.fromkeys(names, len(keys)),
            occurrences={n: (np.empty(0, np.uint64), np.empty(0, np.uint64)) for n in names},
        )
        schema = arrow_schema("common", fields, layout)
        absent = [
            pa.array([[] if pa.types.is_list(f.type) else None] * len(keys), f.type)
            for f in list(schema)[1:]
        ]
        if len(keys):
            yield pa.RecordBatch.from_arrays([pa.array(keys), *absent], schema=schema), layout


NOTES = {
    "crlf": "lines end with \\r\\n",
    "blank_lines": "lines without a byte",
    "trailing_separators": "a \\x01 behind the last feature",
    "no_final_newline": "the last line has no line end: the file may be cut",
    "empty_lists": "rows without any feature",
    "duplicate_common_rows": "common rows that repeat an earlier one; stored once",
    "conversions_without_click": "impressions with conversion 1 and click 0",
}
"""What each class of anomaly means."""


def merged(*sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns class -> count, first place in the order in which the files are read, and what it
    means."""
    total: dict[str, dict[str, Any]] = {}
    for side in sides:
        for name, found in side.items():
            if name not in total:
                text = (
                    {"message": found["message"]} if "message" in found else {"note": NOTES[name]}
                )
                total[name] = {"count": 0, "first": place(found), **text}
            total[name]["count"] += found["count"]
    return total


def file_list(files: PathLike | Iterable[PathLike] | None, argument: str) -> list[Path]:
    """Returns the files as paths, after a look whether each of them can be a log file."""
    if files is None:
        return []
    paths = [Path(files)] if isinstance(files, (str, os.PathLike)) else [Path(f) for f in files]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; expected a log file for {argument}")
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a directory; expected a log file for {argument}")
        if path.name.endswith((".tar", ".tar.gz", ".tgz")):
            raise ValueError(
                f"{path} is an archive; expected the file inside it: "
                f"unpack it first (tar xf {path.name})"
            )
    return paths


def _input(path: Path) -> tuple[str, str | None, Any]:
    """Returns (name, path, None) for a plain file, (name, None, stream) for a gzip file or a
    pipe."""
    if not stat.S_ISREG(path.stat().st_mode):
        return str(path), None, open(path, "rb", buffering=0)
    with open(path, "rb") as file:
        magic = file.read(2)
    if magic != b"\x1f\x8b":
        return str(path), str(path), None
    return str(path), None, _open_gzip(path)


def _open_gzip(path: Path) -> Any:
    try:
        from isal import igzip
    except ImportError:
        return gzip.open(path, "rb")
    return igzip.open(path, "rb")


def _report(stream: Any, fields: tuple[Field, ...]) -> SideReport:
    totals = stream.totals()
    without = totals.pop("rows_without")
    return SideReport(
        **totals,
        rows_without={f.name: n for f, n in zip(fields, without, strict=True)},
        occurrences={f.name: stream.counts(i) for i, f in enumerate(fields)},
    )
