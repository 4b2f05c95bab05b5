"""Shards: a part of each file of a log, read on its own, for `merge_shards` to join."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .. import __version__
from .._compiled import _native
from ..schema import Schema, Side
from .dataset_files import TABLES, HashedFile, TableFile, write_counts
from .find_logs import Log
from .inputs import STANDARD_INPUT, LogFile
from .log_report import SideReport
from .logs import LogReader
from .manifest import (
    SHARD_FORMAT,
    DatasetError,
    open_mapped,
    read_manifest,
    schema_to_dict,
    stored_schema,
    verify_files,
    write_manifest,
)
from .record_batches import Layout

_ENDS = 1 << 20  # bytes at either end of a file that its fingerprint is made of


def _numbers(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.uint64(), nullable=False) for name in names]


# What merging needs besides the tables. Lines count from 1 in the part, bytes from 0 in the file.
_PLACES = pa.schema(_numbers("line", "byte", "hash"))  # beside the common rows
_KEYS = pa.schema(_numbers("key", "file", "line", "byte"))  # by number; where each is first
_FINDINGS = (
    pa.schema(  # of the skeleton files, where bad lines are skipped; key_byte: 2^64 - 1: none
        [
            *_numbers("file", "kind", "line", "byte", "key", "key_byte"),
            pa.field("message", pa.string()),
        ]
    )
)


class Shard:
    """Part i of n of a log, as `prepare` with `shard` writes it. It is no dataset: which common row
    an impression has is known when all n are merged.

    Attributes:
        path: The directory.
        manifest: What it says about itself.
        part, parts: i (from 1) and n.
        schema: The fields, as they were given.

    Raises:
        DatasetError: The directory is not a shard, of another version, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_manifest(self.path, SHARD_FORMAT)
        self.part: int = self.manifest["shard"]["part"]
        self.parts: int = self.manifest["shard"]["parts"]
        self.schema: Schema = stored_schema(self.path, self.manifest)

    def __repr__(self) -> str:
        return f"Shard({str(self.path)!r}: {self.part}/{self.parts})"

    def info(self, verify: bool = False) -> dict[str, Any]:
        """Returns what the directory holds: ``shard`` ("i/n"), the counts of its part alone
        (``common_rows`` with repeated ones), and the bytes of the log that it was made of."""
        reports = self.manifest["reports"]
        if verify:
            self.verify()
        return {
            "shard": f"{self.part}/{self.parts}",
            "note": "a part of a log: all parts become a dataset with `esmm-fast merge`",
            "impressions": reports["impression"]["rows"],
            "clicks": reports["impression"]["clicks"],
            "conversions": reports["impression"]["conversions"],
            "common_rows": reports["common"]["rows"],
            "bytes": sum(file["bytes"] for file in self.manifest["files"].values()),
            "source": {
                side: {
                    i["name"]: f"bytes {i['begin']} to {i['end']} of {i['bytes']}" for i in files
                }
                for side, files in self.manifest["inputs"].items()
            },
            **({"verified": True} if verify else {}),
        }

    def verify(self) -> None:
        """Raises DatasetError if a file is not what `prepare` wrote."""
        verify_files(self.path, self.manifest)

    # ---- For merging

    def layout(self, side: Side) -> Layout:
        """Returns the layout that the tables of one side are in."""
        stored = self.open(TABLES[side]).schema
        fields = self.schema.of_side(side)
        names = [f.name for f in fields]
        types = [stored.field(n).type for n in names]
        ids = [t.value_type if pa.types.is_list(t) else t for t in types]
        first = stored.names.index(names[0]) if names else len(stored)
        return Layout(
            tuple(pa.types.is_list(t) for t in types),
            tuple(f"{n}_value" in stored.names for n in names),
            any(t == pa.uint64() for t in ids),
            pa.schema(list(stored)[:first]) if self.manifest["fixed"][side] else None,
        )

    def report(self, side: Side) -> SideReport:
        """Returns what the part held, without the occurrences."""
        return SideReport(**self.manifest["reports"][side])

    def open(self, name: str) -> pa.RecordBatchFileReader:
        """Opens one of the files, mapped."""
        return open_mapped(self.path / name)

    def batches(self, name: str, side: Side, file: int) -> Iterator[pa.RecordBatch]:
        """Yields the record batches of a table that come from file number `file` of a side."""
        inputs = self.manifest["inputs"][side]
        first = sum(i["batches"] for i in inputs[:file])
        reader = self.open(name)
        for i in range(first, first + inputs[file]["batches"]):
            yield reader.get_batch(i)


def in_order(shards: list[Shard]) -> list[Shard]:
    """Returns part 1 to n of one log.

    Raises:
        DatasetError: They are not that; it names the shard.
    """
    if not shards:
        raise DatasetError("shards: all parts of a log expected, got none")
    first = shards[0]
    by_part: dict[int, Shard] = {}
    for shard in shards:
        _require_same(first, shard)
        if (other := by_part.setdefault(shard.part, shard)) is not shard:
            raise DatasetError(
                f"{shard.path} is shard {shard.part}/{shard.parts}, and so is {other.path}; "
                "expected each part once"
            )
    missing = [part for part in range(1, first.parts + 1) if part not in by_part]
    if missing:
        shown = ", ".join(f"{part}/{first.parts}" for part in missing[:8])
        raise DatasetError(
            f"shard {shown}{', ...' if len(missing) > 8 else ''} is missing; expected all "
            f"{first.parts} parts, got {len(by_part)}: {', '.join(str(s.path) for s in shards[:8])}"
            f"{', ...' if len(shards) > 8 else ''}"
        )
    return [by_part[part] for part in range(1, first.parts + 1)]


def _require_same(first: Shard, shard: Shard) -> None:
    if shard.parts != first.parts:
        raise DatasetError(
            f"{shard.path} is shard {shard.part}/{shard.parts}; expected one of {first.parts}, as "
            f"{first.path} is {first.part}/{first.parts}"
        )
    for name, meaning in (
        ("schema", "another schema"),
        ("log_format", "another spelling of the log"),
        ("on_error", "another on_error"),
        ("chunk_bytes", "other chunk_bytes"),
    ):
        if (got := shard.manifest[name]) != (expected := first.manifest[name]):
            raise DatasetError(
                f"{shard.path} was made with {meaning} than {first.path}; "
                f"expected {expected!r:.80}, got {got!r:.80}"
            )
    for side, files in first.manifest["inputs"].items():
        others = shard.manifest["inputs"][side]
        if len(others) != len(files):
            raise DatasetError(
                f"{shard.path} is a shard of another log than {first.path}: expected {len(files)} "
                f"files of the {side} side, got {len(others)}"
            )
        for one, other in zip(files, others, strict=True):
            if (one["bytes"], one["fingerprint"]) != (other["bytes"], other["fingerprint"]):
                raise DatasetError(
                    f"{shard.path} is a shard of another log than {first.path}: its "
                    f"{other['name']} ({other['bytes']} bytes) is not {one['name']} "
                    f"({one['bytes']} bytes)"
                )


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (i, n) of ``"i/n"``.

    Raises:
        ValueError: It is not that, or i is not in 1..n.

    Example:
        >>> parse_shard("2/8")
        (2, 8)
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"expected i/N with i from 1 to N, like 1/4, got {text!r}")
    return int(match[1]), int(match[2])


def part_of(shard: tuple[int, int], logs: dict[str, Log], is_checked: bool) -> tuple[int, int]:
    """Returns the part, from 0, and the parts, after a look whether the log can be cut.

    Raises:
        ValueError: Naming the file that is not plain, or the option that does not go with it.
    """
    part, parts = shard
    if not 1 <= part <= parts:
        raise ValueError(f"shard: expected (i, n) with i from 1 to n, got {shard}")
    if is_checked:
        raise ValueError("shard: expected without check and rejects, got it with one of them")
    for skeleton, common in logs.values():
        for file in (*common, *skeleton):
            if (kind := _not_plain(file)) is not None:
                raise ValueError(
                    f"shard: {file.path} is {kind}; expected plain files, of which a range of "
                    "bytes can be read: unpack it first"
                )
    return part - 1, parts


def _not_plain(file: LogFile) -> str | None:
    if file.path == STANDARD_INPUT:
        return "standard input"
    if file.archive:
        return "an archive"
    if not stat.S_ISREG(file.path.stat().st_mode):
        return "no regular file"
    with open(file.path, "rb") as opened:
        return "compressed" if opened.read(2) == b"\x1f\x8b" else None


def write_shard(
    folder: Path,
    skeleton: list[LogFile],
    common: list[LogFile],
    part: tuple[int, int],
    *,
    rejects: Callable[[bytes], object] | None = None,
    **settings: Any,
) -> None:
    """Writes part i (from 0) of n of a log into an empty directory; `settings`: of `LogReader`."""
    notes = _Notes(folder)
    reader = LogReader(skeleton, common, shard=part, on_block=notes.take, **settings)
    facts: dict[str, dict[str, Any]] = {}
    files: dict[Side, list[LogFile]] = {"common": common, "impression": skeleton}
    inputs = {side: [_identity(file.path) for file in of_side] for side, of_side in files.items()}
    try:
        for side in reader.sides:
            table = TableFile(
                folder / TABLES[side], side, reader.schema.of_side(side), reader.layouts[side]
            )
            try:
                for batch, layout in reader.read(side):
                    table.write(batch, layout)
                    del batch
            finally:
                facts[TABLES[side]] = table.close()
    finally:
        facts |= notes.close()
    keys = _Rows(folder / "keys.arrow", _KEYS)
    keys.write([reader.keys, *reader.key_places])
    facts["keys.arrow"] = keys.close()
    facts["counts.arrow"] = write_counts(folder / "counts.arrow", reader)
    for side, of_side in inputs.items():
        for i, entry in enumerate(of_side):
            begin, end = reader.ranges[side][i]
            entry |= {"begin": begin, "end": end, **notes.of_file(side, i)}
            entry["name"] = reader.sources[side][i]
    reports = {side: asdict(report) for side, report in reader.reports.items()}
    for report in reports.values():
        del report["occurrences"]
    manifest = {
        "shard": {"part": part[0] + 1, "parts": part[1]},
        "schema": schema_to_dict(reader.schema),
        "log_format": repr(reader.format),
        "on_error": settings["on_error"],
        "chunk_bytes": settings["chunk_bytes"],
        "impressions": reader.reports["impression"].rows,
        "common_rows": reader.reports["common"].rows,
        "reports": reports,
        "fixed": {side: layout.fixed is not None for side, layout in reader.layouts.items()},
        "label_counts": reader.label_counts,
        "numbered": reader.numbered,
        "keyed": reader.format.key in reader.format.columns,
        "key_kind": "usual" if reader.format.usual else reader.format.key_kind,
        "synthetic": reader.synthetic,
        "inputs": inputs,
        "files": facts,
        "written_by": {"esmm_fast": __version__, "pyarrow": pa.__version__},
    }
    write_manifest(folder, manifest, SHARD_FORMAT)


class _Rows:
    """A new Arrow file of one of the schemas above."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._file, self._schema = HashedFile(path), schema
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, mode="w"), schema)

    def write(self, columns: list[Any]) -> None:
        arrays = [pa.array(c, f.type) for c, f in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def close(self) -> dict[str, Any]:
        self._writer.close()
        self._file.close()
        return self._file.facts()


class _Notes:
    """What is kept of the blocks besides their rows: lines and batches per file, and places."""

    def __init__(self, folder: Path):
        self._places = _Rows(folder / "places.arrow", _PLACES)
        self._findings = _Rows(folder / "findings.arrow", _FINDINGS)
        self._counts: dict[tuple[Side, int], dict[str, int]] = {}

    def take(self, side: Side, block: Any) -> None:
        counts = self._counts.setdefault((side, block.file), {"lines": 0, "batches": 0})
        counts["lines"] += block.lines
        counts["batches"] += block.rows > 0
        if side == "common" and block.rows:
            self._places.write(list(block.row_places()))
        kind, *others = block.findings()
        if len(kind):
            self._findings.write([np.full(len(kind), block.file, np.uint64), kind, *others])

    def of_file(self, side: Side, file: int) -> dict[str, int]:
        return self._counts.get((side, file), {"lines": 0, "batches": 0})

    def close(self) -> dict[str, dict[str, Any]]:
        return {"places.arrow": self._places.close(), "findings.arrow": self._findings.close()}


def _identity(path: Path) -> dict[str, Any]:
    """Returns the size of a file and a checksum of its ends: shards of one log agree in both."""
    size = path.stat().st_size
    checksum = _native.Xxh64()
    with open(path, "rb", buffering=0) as file:
        checksum.update(file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        checksum.update(file.read(_ENDS))
    return {"name": str(path), "bytes": size, "fingerprint": checksum.hexdigest()}
