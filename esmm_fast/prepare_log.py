"""prepare: a raw log becomes a dataset, in one pass over the text and one write."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import esmm_fast._native as _native

from . import __version__
from .inputs import ARCHIVE_SUFFIXES, Files, Inputs, LogFile, PathLike, is_archive, log_files
from .log_format import LogFormat, read_format
from .logs import CHUNK_BYTES, LogReader, OnError, merged
from .manifest import DATA_FILES, schema_to_dict, write_manifest
from .progress import Progress
from .record_batches import Layout, arrow_schema, conform
from .schema import ALI_CCP, Field, Schema, Side
from .staging import staged_directory

if TYPE_CHECKING:
    from .dataset import Dataset

Log = tuple[list[LogFile], list[LogFile]]
"""The skeleton files and the common files of one log."""

_FILES: dict[Side, str] = {"common": "common_rows.arrow", "impression": "impressions.arrow"}


def prepare(
    logdir: PathLike | Iterable[PathLike] | None = None,
    out: PathLike | None = None,
    *,
    skeleton: Files = (),
    common: Files = (),
    schema: Schema | LogFormat | PathLike = ALI_CCP,
    threads: int | None = None,
    on_error: OnError = "stop",
    rejects: PathLike | None = None,
    check: bool = False,
    progress: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Dataset | dict[str, Dataset] | dict[str, Any]:
    """Writes the dataset of a log and returns it.

    Args:
        logdir: Directory with ``sample_skeleton_{train,test}.csv`` and
            ``common_features_{train,test}.csv`` (each also as ``.gz``), or with the archives
            ``sample_{train,test}.tar.gz`` that hold them: `out` gets a dataset for each half that
            is there. A directory with ``sample_skeleton.csv`` and ``common_features.csv`` (as
            `Dataset.dump` writes them) becomes one dataset `out`. Or the archives themselves: those
            named ``sample_{train,test}...`` are halves; one of another name becomes `out`. An
            archive is read as it is, its files found by name.
        out: New directory. It appears when everything is written; what exists is refused.
        skeleton, common: The files instead of a `logdir`: plain, gzip, a tar archive that holds
            one, ``-`` for standard input. Without `common`, the keys of the skeleton files become
            common rows without features.
        schema: The fields; or a `LogFormat`, or a YAML file of one, of a log that is spelled in
            another way (a manifest will do too). A field that needs more than
            it says (a second occurrence in a row, a value other than 1) is stored as `multi` or
            `weighted`; an id beyond 32 bits makes the ids of its file uint64. The manifest lists
            what was promoted.
        threads: Threads of the parser; None: all cores of this process. The dataset does not depend
            on it.
        on_error: ``"stop"`` raises at the first bad line and leaves nothing behind; ``"skip"``
            leaves bad lines out and counts them by reason.
        rejects: File for the skipped lines, whole and in order (common files first); only with
            ``"skip"``.
        check: Read everything, write nothing (`out` and `rejects` are ignored), and return what was
            found.
        progress: Show bytes read, rate and time left on standard error: a bar on a terminal, else
            a line every 15 s.
        chunk_bytes: Text per chunk and record batch, in bytes.

    Returns:
        The `Dataset`; for a `logdir` with halves, ``{"train": Dataset, "test": Dataset}``. With
        `check`, a report instead: the counts of `Dataset.info`, `anomalies` and `errors` as {class:
        {count, first (, message)}}.

    Raises:
        LogError: ``file:line (byte N): reason; expected ..., got ...`` at the first bad line in
            file order.
        FileExistsError: `out` (or `rejects`) exists.
        FileNotFoundError: A log file is missing.
    """
    if not check and out is None:
        raise ValueError("out: a new directory expected, got none")
    if rejects is not None and on_error != "skip" and not check:
        raise ValueError(f"rejects: on_error='skip' expected with it, got {on_error!r}")
    logs = _logs(logdir, skeleton, common)
    settings: dict[str, Any] = {
        "schema": schema if isinstance(schema, Schema | LogFormat) else read_format(Path(schema)),
        "threads": threads,
        "on_error": "skip" if check else on_error,
        "chunk_bytes": chunk_bytes,
    }
    with ExitStack() as stack:
        meter = _Meter(logs, stack.enter_context(Progress("prepare")) if progress else None)
        if check:
            reports = {
                half: _checked(LogReader(*files, advance=meter.of(half), **settings))
                for half, files in logs.items()
            }
            return reports.get("", reports)
        assert out is not None
        settings["rejects"] = stack.enter_context(_Rejects(rejects)).write if rejects else None
        staged = stack.enter_context(staged_directory(Path(out)))
        for half, files in logs.items():
            folder = staged / half
            folder.mkdir(exist_ok=True)
            _write_dataset(folder, LogReader(*files, advance=meter.of(half), **settings))

    from .dataset import Dataset

    if "" in logs:
        return Dataset(out)
    return {half: Dataset(Path(out) / half) for half in logs}


# ---- What to read


def _logs(
    logdir: PathLike | Iterable[PathLike] | None,
    skeleton: Files,
    common: Files,
) -> dict[str, Log]:
    """Returns half -> its files; the half is "" where there is one log only."""
    files = log_files(skeleton, "skeleton"), log_files(common, "common")
    given = _paths(logdir)
    if not given:
        if not files[0]:
            raise ValueError("logdir or skeleton expected, got neither")
        return {"": files}
    if files[0] or files[1]:
        raise ValueError("logdir or skeleton and common expected, got both")
    return _of_directory(given[0]) if given[0].is_dir() else _of_archives(given)


def _paths(given: PathLike | Iterable[PathLike] | None) -> list[Path]:
    if given is None or isinstance(given, str | os.PathLike):
        return [] if given is None else [Path(given)]
    paths = [Path(path) for path in given]
    if len(paths) > 1 and (folder := next((p for p in paths if p.is_dir()), None)):
        raise ValueError(f"one directory or archives expected, got {folder} among {len(paths)}")
    return paths


def _of_archives(archives: list[Path]) -> dict[str, Log]:
    logs: dict[str, Log] = {}
    for path in archives:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or directory; expected a log")
        if not is_archive(path):
            raise ValueError(
                f"{path}: a directory with the files of a log, or a tar archive of them expected; "
                "give single files with skeleton (--skeleton) and common (--common)"
            )
        named = re.match(r"sample_(train|test)\b", path.name)
        half = named[1] if named else ""
        if half in logs or (logs and "" in (half, *logs)):
            raise ValueError(
                f"{path}: sample_train and sample_test, or one archive expected, got "
                f"{' and '.join(p.name for p in archives)}"
            )
        logs[half] = _in_archive(path, half)
    return logs


def _in_archive(path: Path, half: str) -> Log:
    return [LogFile(path, "skeleton", half, True)], [LogFile(path, "common", half, True)]


def _of_directory(folder: Path) -> dict[str, Log]:
    logs: dict[str, Log] = {}
    for half, suffix in (("train", "_train"), ("test", "_test"), ("", "")):
        if half == "" and logs:
            continue
        skeleton = _named(folder, f"sample_skeleton{suffix}.csv")
        common = _named(folder, f"common_features{suffix}.csv")
        names = [f"sample{suffix}{end}" for end in ARCHIVE_SUFFIXES] if half else []
        archive = next((folder / name for name in names if (folder / name).is_file()), None)
        if skeleton and common:
            logs[half] = [LogFile(skeleton, "skeleton")], [LogFile(common, "common")]
        elif archive:
            logs[half] = _in_archive(archive, half)
        elif present := skeleton or common:
            missing = "common_features" if skeleton else "sample_skeleton"
            raise FileNotFoundError(
                f"{folder}: {missing}{suffix}.csv is missing beside {present.name}"
            )
    if not logs:
        raise FileNotFoundError(
            f"{folder}: sample_skeleton_train.csv and common_features_train.csv (or _test), or "
            "sample_train.tar.gz expected, got neither"
        )
    return logs


def _named(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


class _Meter:
    """Adds up what the logs of a call have read and have to read."""

    def __init__(self, logs: dict[str, Log], progress: Progress | None):
        self._progress = progress
        self._done = dict.fromkeys(logs, 0)
        self._total: dict[str, int | None] = {
            half: Inputs([*files[1], *files[0]]).total for half, files in logs.items()
        }

    def of(self, half: str) -> Callable[[int, int | None], object] | None:
        """Returns what the reader of this half reports to."""
        if self._progress is None:
            return None
        progress = self._progress

        def advance(done: int, total: int | None) -> None:
            self._done[half], self._total[half] = done, total
            totals = [t for t in self._total.values() if t is not None]
            known = len(totals) == len(self._total)
            progress.update(sum(self._done.values()), sum(totals) if known else None)

        return advance


# ---- What to write


class _HashedFile:
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
        while view:
            view = view[self._file.write(view) :]
        return len(view)

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()

    def facts(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "xxh64": self._checksum.hexdigest()}


class _TableFile:
    """An Arrow IPC file of one side; widened, by writing it again, when a batch needs a wider
    layout."""

    def __init__(self, path: Path, side: Side, fields: tuple[Field, ...], layout: Layout):
        self._path, self._side, self._fields = path, side, fields
        self._open(layout)

    def _open(self, layout: Layout) -> None:
        self.layout = layout
        self._file = _HashedFile(self._path)
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
        self._writer.close()
        self._file.close()
        return self._file.facts()


class _Rejects:
    """The file of skipped lines; it appears when the dataset does."""

    def __init__(self, path: PathLike):
        self._path = Path(path)
        self._partial = self._path.with_name(f".{self._path.name}.partial")

    def __enter__(self) -> _Rejects:
        if self._path.exists():
            raise FileExistsError(f"rejects: {self._path} exists; expected a new file")
        self._file = open(self._partial, "wb")
        return self

    def write(self, lines: bytes) -> None:
        self._file.write(lines)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._partial.rename(self._path)
        else:
            self._partial.unlink()


def _write_dataset(folder: Path, reader: LogReader) -> None:
    facts = {}
    for side in reader.sides:
        file = _TableFile(folder / _FILES[side], side, reader.fields(side), reader.layouts[side])
        try:
            for batch, layout in reader.read(side):
                file.write(batch, layout)
                del batch  # gives its memory back to the parser
        finally:
            facts[_FILES[side]] = file.close()
    reader.require_impressions()
    facts["counts.arrow"] = _write_counts(folder / "counts.arrow", reader)
    counted = _counted(reader)
    manifest = {
        "schema": schema_to_dict(reader.promoted_schema),
        **counted,
        "rejected": counted.pop("errors"),
        "promoted": _promoted(reader),
        "files": {name: facts[name] for name in DATA_FILES},
        "source": {
            "skeleton": [Path(name).name for name in reader.sources["impression"]],
            "common": [Path(name).name for name in reader.sources["common"]],
            "synthetic": any(
                (f.path.parent / "synth.json").exists() for f in reader.files["impression"]
            ),
            "text_bytes": sum(report.bytes for report in reader.reports.values()),
        },
        "written_by": {"esmm_fast": __version__, "pyarrow": pa.__version__},
    }
    write_manifest(folder, manifest)


def _write_counts(path: Path, reader: LogReader) -> dict[str, Any]:
    names = [f.name for f in reader.schema.fields]
    schema = pa.schema(
        [
            pa.field("field", pa.dictionary(pa.int16(), pa.string()), nullable=False),
            pa.field("feature_id", pa.uint64(), nullable=False),
            pa.field("count", pa.uint64(), nullable=False),
        ]
    )
    file = _HashedFile(path)
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


def _checked(reader: LogReader) -> dict[str, Any]:
    for side in reader.sides:
        for _ in reader.read(side):
            pass
    return {**_counted(reader), "promoted": _promoted(reader)}


def _counted(reader: LogReader) -> dict[str, Any]:
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


def _promoted(reader: LogReader) -> dict[str, list[str]]:
    """Returns field -> what it needed more than the schema says: "multi", "weighted", "uint64"."""
    promoted: dict[str, list[str]] = {}
    for side in reader.sides:
        fields, layout = reader.fields(side), reader.layouts[side]
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
