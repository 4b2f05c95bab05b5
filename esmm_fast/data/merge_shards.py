"""merge: the shards of a log become the dataset that one run over the whole log writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .._compiled import _native
from ..progress import Progress
from ..schema import Schema, Side
from ..staging import staged_directory
from ..vocabulary import summed_counts
from .dataset_files import TABLES, write_dataset
from .log_report import LogError, SideReport, report_of_keys, require_impressions
from .logs import key_rows
from .record_batches import Layout, narrowed, needed_layout, promoted_schema
from .shards import Shard, in_order

if TYPE_CHECKING:
    from .dataset import Dataset

_NONE = np.iinfo(np.uint32).max  # a key that no common row has
_NO_KEY = np.iinfo(np.uint64).max
_KINDS: list[str] = _native.finding_kinds


def merge_shards(
    shards: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    progress: bool = False,
) -> Dataset:
    """Writes the dataset of a log from all its shards, and returns it.

    It is the dataset that `prepare` without `shard` writes: the same files, byte by byte, and the
    same manifest but for the names of files, which are those that shard 1 was made of. Memory:
    what `prepare` needs for its counts and keys, and one record batch.

    Args:
        shards: The directories, in any order: part 1 to n of one log, once each. Their checksums
            are verified.
        out: New directory. It appears when everything is written.
        progress: Show bytes read, rate and time left on standard error.

    Raises:
        DatasetError: A directory is no shard, or is damaged; a shard is missing, is there twice, or
            was made of another log or with other settings.
        LogError: What only the whole log shows: an impression without a common row, or a second
            common row of a key with other contents (where bad lines are not skipped), or no
            impression at all.
        FileExistsError: `out` exists.
    """
    opened = in_order([Shard(path) for path in shards])
    with ExitStack() as stack:
        bar = stack.enter_context(Progress("merge")) if progress else None
        staged = stack.enter_context(staged_directory(Path(out)))
        for shard in opened:
            shard.verify()
        write_dataset(staged, MergedShards(opened, bar))

    from .dataset import Dataset

    return Dataset(out)


class MergedShards:
    """All shards of a log as the reader of the whole of it: see `dataset_files.Reader`.

    Args:
        shards: Part 1 to n.
        bar: Receives the bytes of the tables that are read.
    """

    def __init__(self, shards: list[Shard], bar: Progress | None = None):
        self._shards, self._bar = shards, bar
        first = shards[0]
        self._manifest = first.manifest
        self.schema: Schema = first.schema
        self.sources: dict[Side, list[str]] = {
            side: [file["name"] for file in files]
            for side, files in self._manifest["inputs"].items()
        }
        self._is_discovered = not self.sources["common"]
        self.sides: tuple[Side, ...] = (
            ("impression", "common") if self._is_discovered else ("common", "impression")
        )
        self.layouts: dict[Side, Layout] = {
            side: reduce(or_, (shard.layout(side) for shard in shards)) for side in self.sides
        }
        self.reports: dict[Side, SideReport] = {}
        counts: list[dict[str, int]] = [shard.manifest["label_counts"] for shard in shards]
        self.label_counts = {name: sum(c[name] for c in counts) for name in counts[0]}
        self._skips = self._manifest["on_error"] == "skip"
        self._keys = _native.KeyMap()
        self._keys_of: list[pa.Table] = []  # of each shard; this and the next two: see _match
        self._rows: list[np.ndarray] = []  # the common row of each of them
        self._is_missing = False  # a key has no common row
        self._removed: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        self._done = 0
        self._total = sum(
            shard.manifest["files"][TABLES[side]]["bytes"]
            for shard in shards
            for side in self.sides
        )

    @property
    def synthetic(self) -> bool:
        """Whether `synth` wrote the log."""
        return any(shard.manifest["synthetic"] for shard in self._shards)

    @property
    def promoted_schema(self) -> Schema:
        """The schema, with `multi` and `weighted` as the log needs them."""
        return promoted_schema(self.schema, self.layouts["common"], self.layouts["impression"])

    def require_impressions(self) -> None:
        """Raises LogError if the log holds no impression."""
        require_impressions(self.reports, self.sources["impression"][0])

    def read(self, side: Side) -> Iterator[tuple[pa.RecordBatch, Layout]]:
        """Yields the rows of one side in file order, in the record batches of the shards."""
        if side == "common" and self._is_discovered:
            keys = self._keys.keys() if self._manifest["keyed"] else np.empty(0, np.uint64)
            fields, layout = self.schema.of_side(side), self.layouts[side]
            self.reports[side] = report_of_keys(keys, fields)
            if len(keys):
                yield key_rows(keys, fields, layout), layout
            return
        report = self.reports[side] = self._summed(side)
        batches = self._common_rows(report) if side == "common" else self._impressions(report)
        for batch in batches:
            yield batch, self.layouts[side]
        report.occurrences = self._occurrences(side)
        if side == "common":
            self._match()  # before the impressions: it says in which layout they are

    # ---- Common rows

    def _common_rows(self, report: SideReport) -> Iterator[pa.RecordBatch]:
        """Yields the first common row of each key."""
        hash_of = np.empty(report.rows, np.uint64)
        line_of = np.empty(report.rows, np.uint64)
        file_of = np.empty(report.rows, np.uint32)
        stored = 0
        for file, shard, lines in self._parts("common"):
            tables = shard.batches(TABLES["common"], "common", file)
            places = shard.batches("places.arrow", "common", file)
            for batch, at in zip(tables, places, strict=True):
                line, byte, hashes = (at.column(i).to_numpy() for i in range(3))
                line = line + lines
                rows, is_new = self._keys.insert(batch.column("key").to_numpy())
                end = stored + int(is_new.sum())
                hash_of[stored:end], line_of[stored:end] = hashes[is_new], line[is_new]
                file_of[stored:end] = file
                stored = end
                repeated = np.flatnonzero(~is_new)
                equal = hash_of[rows[repeated]] == hashes[repeated]
                for tally, name, found in (
                    (report.anomalies, "duplicate_common_rows", repeated[equal]),
                    (report.rejected, "conflicting_common_row", repeated[~equal]),
                ):
                    if not len(found):
                        continue
                    row = int(found[0])
                    place: dict[str, Any] = {"file": self.sources["common"][file]}
                    place |= {"line": int(line[row]), "byte": int(byte[row])}
                    if tally is report.rejected:
                        origin = int(rows[row])
                        place["message"] = (
                            "a second common row of this key with other contents; expected the "
                            f"contents of {self.sources['common'][file_of[origin]]}:"
                            f"{line_of[origin]}, got others for "
                            f"'{batch.column('key')[row].as_py():016x}'"
                        )
                        if not self._skips:
                            raise LogError.at({**place, "reason": name})
                    tally.setdefault(name, {**place, "count": 0})["count"] += len(found)
                if len(repeated):
                    self._remove("common", batch.filter(pa.array(~is_new)), report)
                    batch = batch.filter(pa.array(is_new))
                if batch.num_rows:
                    yield batch

    # ---- Impressions

    def _impressions(self, report: SideReport) -> Iterator[pa.RecordBatch]:
        """Yields the impressions with the numbers of their common rows."""
        if self._is_discovered:
            self._match()
        used = np.zeros(len(self._keys), bool)
        numbered = kept_rows = 0
        has_common_row = True
        missing = 0
        for file, shard, _ in self._parts("impression"):
            rows_of_shard = self._rows[shard.part - 1]
            for batch in shard.batches(TABLES["impression"], "impression", file):
                has_common_row = "common_row" in batch.schema.names
                if has_common_row:
                    at = batch.schema.get_field_index("common_row")
                    common_row = rows_of_shard[batch.column(at).to_numpy()]
                    batch = batch.set_column(at, batch.schema.field(at), pa.array(common_row))
                    kept = common_row != _NONE
                    used[common_row[kept]] = True
                    if not kept.all():
                        missing += len(kept) - int(kept.sum())
                        gone = batch.filter(pa.array(~kept))
                        self._remove("impression", gone, report)
                        self._remove_labels(gone, report)
                        batch = batch.filter(pa.array(kept))
                if self._manifest["numbered"]:
                    at = batch.schema.get_field_index("sample_id")
                    ids = np.arange(1, batch.num_rows + 1, dtype=np.uint64) + np.uint64(numbered)
                    batch = batch.set_column(at, batch.schema.field(at), pa.array(ids))
                    numbered += batch.num_rows
                kept_rows += batch.num_rows
                if batch.num_rows:
                    layout = self.layouts["impression"]
                    if self._is_missing:
                        batch = narrowed(
                            batch, "impression", self.schema.of_side("impression"), layout
                        )
                    yield batch
        report.common_rows_used = (
            len(self._keys) if self._is_discovered or not has_common_row else int(used.sum())
        )
        if self._skips:
            self._tally_findings(report)
            if self._is_missing:
                self._count_missing(report, self._first_missing(), missing)

    def _match(self) -> None:
        """Finds the common row of each key of each shard.

        Without common files, the keys are numbered in the order in which they appear.
        """
        self._keys_of = [shard.open("keys.arrow").read_all() for shard in self._shards]
        if self._is_discovered:
            parts = [np.full(len(table), part) for part, table in enumerate(self._keys_of)]
            found = pa.concat_tables(self._keys_of).append_column("part", [np.concatenate(parts)])
            order = np.lexsort([found[name].to_numpy() for name in ("line", "part", "file")])
            self._keys.insert(found["key"].to_numpy()[order])
        self._rows = [self._keys.find(table["key"].to_numpy()) for table in self._keys_of]
        self._is_missing = any((rows == _NONE).any() for rows in self._rows)
        if self._is_missing and not self._skips:
            raise LogError.at({**self._first_missing(), "reason": "missing_common_row"})
        if self._is_missing:
            self.layouts["impression"] = self._layout_of_the_kept()

    def _first_missing(self) -> dict[str, Any]:
        """Returns the place and message of the first stored impression without a common row."""
        firsts = []
        for part, (table, numbers) in enumerate(zip(self._keys_of, self._rows, strict=True)):
            for i in np.flatnonzero(numbers == _NONE)[:1]:
                entry = table.slice(int(i), 1).to_pylist()[0]
                firsts.append((entry["file"], part, entry["line"], entry["byte"], entry["key"]))
        file, part, line, byte, key = min(firsts)
        return self._missing_at(file, part, line, byte, key)

    def _missing_at(self, file: int, part: int, line: int, byte: int, key: int) -> dict[str, Any]:
        kind = self._manifest["key_kind"]
        name = "common_feature_index" if kind == "usual" else "key"
        got = {"decimal": f"'{key}'", "text": f"one whose XXH64 is {key:016x}"}
        return {
            "file": self.sources["impression"][file],
            "line": line + self._lines_before("impression", file, part),
            "byte": byte,
            "message": f"no common row has this {name}; expected a key of the common files, "
            f"got {got.get(kind, repr(f'{key:016x}'))} "
            "(is the common file of another log, or of the other half?)",
        }

    def _layout_of_the_kept(self) -> Layout:
        """Returns the layout that the impressions with a common row need."""
        fields = self.schema.of_side("impression")
        layout = Layout.of(fields, self.layouts["impression"].fixed)
        for file, shard, _ in self._parts("impression"):
            for batch in shard.batches(TABLES["impression"], "impression", file):
                kept = self._rows[shard.part - 1][batch.column("common_row").to_numpy()] != _NONE
                layout |= needed_layout(batch.filter(pa.array(kept)), fields, layout)
        return layout

    def _remove_labels(self, gone: pa.RecordBatch, report: SideReport) -> None:
        labels = np.stack([gone.column(n).to_numpy() for n in self.schema.labels], axis=1) > 0
        report.clicks -= int(labels[:, 0].sum())
        if labels.shape[1] > 1:
            report.conversions -= int(labels.all(axis=1).sum())
        for name, column in zip(self.schema.labels, labels.T, strict=True):
            if self.schema.labels != ("click", "conversion"):
                self.label_counts[name] -= int(column.sum())

    # ---- Sums

    def _parts(self, side: Side) -> Iterator[tuple[int, Shard, int]]:
        """Yields (file, shard, lines of the file before it) in the order of the log."""
        for file in range(len(self.sources[side])):
            lines = 0
            for shard in self._shards:
                entry = shard.manifest["inputs"][side][file]
                yield file, shard, lines
                lines += entry["lines"]

    def _lines_before(self, side: Side, file: int, part: int) -> int:
        entries = [shard.manifest["inputs"][side][file] for shard in self._shards[:part]]
        return sum(entry["lines"] for entry in entries)

    def _summed(self, side: Side) -> SideReport:
        """Returns the sum of the shards' reports, with the lines of the files."""
        total = SideReport()
        reports = [shard.report(side) for shard in self._shards]
        for name in ("rows", "lines", "bytes", "clicks", "conversions"):
            setattr(total, name, sum(getattr(report, name) for report in reports))
        names = [field.name for field in self.schema.of_side(side)]
        total.rows_without = {n: sum(r.rows_without[n] for r in reports) for n in names}
        for name in ("anomalies", "rejected"):
            tallies = [getattr(report, name) for report in reports]
            setattr(total, name, self._summed_tallies(side, tallies))
        return total

    def _summed_tallies(
        self, side: Side, tallies: list[dict[str, dict[str, Any]]]
    ) -> dict[str, dict[str, Any]]:
        total: dict[str, dict[str, Any]] = {}
        for kind in _KINDS:
            found = [
                (self.sources_of(part, side).index(tally[kind]["file"]), part, tally[kind])
                for part, tally in enumerate(tallies)
                if kind in tally
            ]
            if not found:
                continue
            file, part, first = min(found, key=lambda f: (f[0], f[1]))
            line = first["line"] + self._lines_before(side, file, part)
            count = sum(tally["count"] for _, _, tally in found)
            name = self.sources[side][file]
            total[kind] = {**first, "file": name, "line": line, "count": count}
        return total

    def sources_of(self, part: int, side: Side) -> list[str]:
        """Returns the names of the files as shard `part` (from 0) was given them."""
        return [file["name"] for file in self._shards[part].manifest["inputs"][side]]

    def _tally_findings(self, report: SideReport) -> None:
        """Counts anomalies and bad lines of the skeleton files, but for the lines whose common row
        is missing: the parser of the whole log looks at nothing behind the key of those."""
        tallies: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}
        for part, shard in enumerate(self._shards):
            reader = shard.open("findings.arrow")
            for i in range(reader.num_record_batches):
                batch = reader.get_batch(i)
                file, kind, line, byte, key, key_byte = (
                    batch.column(c).to_numpy().copy() for c in range(6)
                )
                messages = batch.column(6)
                gone = (key_byte != _NO_KEY) & (self._keys.find(key) == _NONE)
                gone &= self._manifest["keyed"]
                first_reason = _KINDS.index("truncated_line")
                missing = np.flatnonzero(gone & (kind >= first_reason))
                if len(missing):
                    at = int(missing[0])
                    place = int(file[at]), part, int(line[at])
                    entry = self._missing_at(*place, int(key_byte[at]), int(key[at]))
                    _add(tallies, "missing_common_row", place, entry, len(missing))
                for number in np.unique(kind[~gone]).tolist():
                    rows = np.flatnonzero(~gone & (kind == number))
                    at = int(rows[0])
                    place = int(file[at]), part, int(line[at])
                    before = self._lines_before("impression", *place[:2])
                    entry = {
                        "file": self.sources["impression"][place[0]],
                        "line": place[2] + before,
                        "byte": int(byte[at]),
                    }
                    if text := messages[at].as_py():
                        entry["message"] = text
                    _add(tallies, _KINDS[number], place, entry, len(rows))
        split = _KINDS.index("truncated_line")
        for target, kinds in (("anomalies", _KINDS[:split]), ("rejected", _KINDS[split:])):
            setattr(report, target, {k: tallies[k][1] for k in kinds if k in tallies})

    def _count_missing(self, report: SideReport, first: dict[str, Any], count: int) -> None:
        """Adds the impressions that were stored by shards, and lack a common row."""
        name = "missing_common_row"
        before = report.rejected.get(name)
        names = self.sources["impression"]
        if before is not None:
            places = [(names.index(f["file"]), f["line"], f) for f in (before, first)]
            first = min(places, key=lambda p: p[:2])[2]
            count += before["count"]
        report.rejected[name] = {**first, "count": count}

    def _remove(self, side: Side, gone: pa.RecordBatch, report: SideReport) -> None:
        """Takes back what the shards counted of rows that are not stored."""
        report.rows -= gone.num_rows
        for field in self.schema.of_side(side):
            column = gone.column(field.name)
            if pa.types.is_list(column.type):
                empty = int(pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py())
                ids = column.flatten()
            else:
                empty = column.null_count
                ids = column.drop_null()
            report.rows_without[field.name] -= empty
            found = np.unique(ids.to_numpy().astype(np.uint64), return_counts=True)
            self._removed.setdefault(field.name, []).append(found)

    def _occurrences(self, side: Side) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns field -> (feature ids ascending, counts) of the rows that are stored."""
        parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        names = {field.name for field in self.schema.of_side(side)}
        for shard in self._shards:
            reader = shard.open("counts.arrow")
            for i in range(reader.num_record_batches):
                codes, ids, counts = reader.get_batch(i).columns
                if (name := codes[0].as_py()) in names:
                    parts.setdefault(name, []).append((ids.to_numpy(), counts.to_numpy()))
        found = {}
        for name in names:
            added, removed = parts.get(name, []), self._removed.get(name, [])
            ids, counts = summed_counts([*added, *((i, -n) for i, n in removed)])
            found[name] = ids[counts > 0], counts[counts > 0].astype(np.uint64)
        return found


def _add(
    tallies: dict[str, tuple[tuple[int, int, int], dict[str, Any]]],
    name: str,
    place: tuple[int, int, int],
    entry: dict[str, Any],
    count: int,
) -> None:
    if name not in tallies or place < tallies[name][0]:
        before = tallies[name][1]["count"] if name in tallies else 0
        tallies[name] = place, {**entry, "count": before}
    tallies[name][1]["count"] += count
