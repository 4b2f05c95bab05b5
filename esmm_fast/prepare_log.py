"""prepare: a raw log becomes a dataset, in one pass over the text and one write."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from . import __version__
from ._compiled import _native
from .find_logs import Meter, find_logs
from .inputs import Files, PathLike
from .log_format import LogFormat, read_format
from .logs import CHUNK_BYTES, LogReader, OnError, merged
from .manifest import DATA_FILES, schema_to_dict, write_manifest
from .progress import Progress
from .record_batches import Layout, arrow_schema, conform
from .schema import ALI_CCP, Field, Schema, Side
from .staging import naming, refuse_existing, staged_directory
from .tables import TableReader

if TYPE_CHECKING:
    from .dataset import Dataset

Reader = LogReader | TableReader

_FILES: dict[Side, str] = {"common": "common_rows.arrow", "impression": "impressions.arrow"}


def prepare(
    logdir: PathLike | Iterable[PathLike] | None = None,
    out: PathLike | None = None,
    *,
    skeleton: Files = (),
    table: Any = None,
    common: Any = (),
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
        table: Instead of them: Parquet or Arrow files, or tables in memory (pyarrow, polars,
            pandas), one row per impression, columns by the names in `schema`; `common` are then
            tables of the common rows, found by the schema's `key`. Without `common`, the common
            fields stand in `table`, and impressions with equal ones share a common row.
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
    format = schema if isinstance(schema, Schema | LogFormat) else read_format(Path(schema))
    if table is not None:
        if logdir is not None or skeleton not in (None, ()):
            raise ValueError("table, or logdir, or skeleton expected, got several")
        if on_error == "skip":
            raise ValueError("on_error: 'stop' expected with a table: its first bad row ends it")
        several = None if isinstance(common, tuple | list) and not common else common
        return _prepare_table(table, several, format, out, check, progress)
    logs = find_logs(logdir, skeleton, common)
    settings: dict[str, Any] = {
        "schema": format,
        "threads": threads,
        "on_error": "skip" if check else on_error,
        "chunk_bytes": chunk_bytes,
    }
    with ExitStack() as stack:
        meter = Meter(logs, stack.enter_context(Progress("prepare")) if progress else None)
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


# ---- What to write


def _prepare_table(
    table: Any,
    common: Any,
    format: Schema | LogFormat,
    out: PathLike | None,
    check: bool,
    progress: bool,
) -> Dataset | dict[str, Any]:
    with ExitStack() as stack:
        bar = stack.enter_context(Progress("prepare")) if progress else None
        reader = TableReader(table, common, format, advance=bar.update if bar else None)
        if check:
            return _checked(reader)
        assert out is not None
        _write_dataset(stack.enter_context(staged_directory(Path(out))), reader)

    from .dataset import Dataset

    return Dataset(out)


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
        refuse_existing(self._path)
        with naming(self._path):
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


def _write_dataset(folder: Path, reader: Reader) -> None:
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
            "synthetic": reader.synthetic,
            "text_bytes": sum(report.bytes for report in reader.reports.values()),
        },
        "written_by": {"esmm_fast": __version__, "pyarrow": pa.__version__},
    }
    write_manifest(folder, manifest)


def _write_counts(path: Path, reader: Reader) -> dict[str, Any]:
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


def _checked(reader: Reader) -> dict[str, Any]:
    for side in reader.sides:
        for _ in reader.read(side):
            pass
    return {**_counted(reader), "promoted": _promoted(reader)}


def _counted(reader: Reader) -> dict[str, Any]:
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
