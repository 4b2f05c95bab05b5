"""prepare: a raw log becomes a dataset, in one pass over the text and one write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from . import __version__
from ._compiled import _native
from .logs import CHUNK_BYTES, LogReader, OnError, PathLike, file_list, merged
from .manifest import DATA_FILES, read_schema, schema_to_dict, write_manifest
from .record_batches import Layout, arrow_schema, conform
from .schema import ALI_CCP, Field, Schema, Side
from .staging import staged_directory

if TYPE_CHECKING:
    from .dataset import Dataset

_FILES: dict[Side, str] = {"common": "common_rows.arrow", "impression": "impressions.arrow"}


def prepare(
    logdir: PathLike | None = None,
    out: PathLike | None = None,
    *,
    skeleton: PathLike | Iterable[PathLike] = (),
    common: PathLike | Iterable[PathLike] = (),
    schema: Schema | PathLike = ALI_CCP,
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
            ``common_features_{train,test}.csv`` (each also as ``.gz``): `out` gets a dataset for
            each half that is there. A directory with ``sample_skeleton.csv`` and
            ``common_features.csv`` (as `Dataset.dump` writes them) becomes one dataset `out`.
        out: New directory. It appears when everything is written; what exists is refused.
        skeleton, common: The files instead of a `logdir`, plain or gzip. Without `common`, the keys
            of the skeleton files become common rows without features.
        schema: The fields, or a JSON file of them (as in a manifest). A field that needs more than
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
        progress: Show a progress bar.
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
        "schema": schema if isinstance(schema, Schema) else read_schema(Path(schema)),
        "threads": threads,
        "on_error": "skip" if check else on_error,
        "chunk_bytes": chunk_bytes,
    }
    with ExitStack() as stack:
        advance = None
        if progress:
            bar = tqdm(total=_plain_bytes(logs), unit="B", unit_scale=True, desc="prepare")
            advance = stack.enter_context(bar).update
        if check:
            reports = {half: _checked(*files, advance, settings) for half, files in logs.items()}
            return reports.get("", reports)
        assert out is not None
        settings["rejects"] = stack.enter_context(_Rejects(rejects)).write if rejects else None
        staged = stack.enter_context(staged_directory(Path(out)))
        for half, (skeleton_files, common_files) in logs.items():
            folder = staged / half
            folder.mkdir(exist_ok=True)
            _write_dataset(folder, skeleton_files, common_files, advance, settings)

    from .dataset import Dataset

    if "" in logs:
        return Dataset(out)
    return {half: Dataset(Path(out) / half) for half in logs}


# ---- What to read


def _logs(
    logdir: PathLike | None,
    skeleton: PathLike | Iterable[PathLike],
    common: PathLike | Iterable[PathLike],
) -> dict[str, tuple[list[Path], list[Path]]]:
    """Returns half -> (skeleton files, common files); the half is "" where there is one log
    only."""
    files = file_list(skeleton, "skeleton"), file_list(common, "common")
    if logdir is None:
        if not files[0]:
            raise ValueError("logdir or skeleton expected, got neither")
        return {"": files}
    if files[0] or files[1]:
        raise ValueError("logdir or skeleton and common expected, got both")
    folder = Path(logdir)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: a directory with the files of a log expected")
    logs: dict[str, tuple[list[Path], list[Path]]] = {}
    for half, suffix in (("train", "_train"), ("test", "_test"), ("", "")):
        if half == "" and logs:
            continue
        found = [
            _named(folder, f"{name}{suffix}.csv") for name in ("sample_skeleton", "common_features")
        ]
        if found[0] and found[1]:
            logs[half] = ([found[0]], [found[1]])
        elif present := found[0] or found[1]:
            missing = "common_features" if found[0] else "sample_skeleton"
            raise FileNotFoundError(
                f"{folder}: {missing}{suffix}.csv is missing beside {present.name}"
            )
    if not logs:
        archives = sorted(p.name for p in folder.glob("sample_*.tar.gz"))
        hint = f" (unpack {', '.join(archives)} first)" if archives else ""
        raise FileNotFoundError(
            f"{folder}: sample_skeleton_train.csv and common_features_train.csv (or _test) "
            f"expected, got neither{hint}"
        )
    return logs


def _named(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _plain_bytes(logs: dict[str, tuple[list[Path], list[Path]]]) -> int | None:
    """Returns the bytes of text, or None if a file is compressed."""
    files = [f for both in logs.values() for side in both for f in side]
    return None if any(f.suffix == ".gz" for f in files) else sum(f.stat().st_size for f in files)


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
            try:
                view = view[self._file.write(view) :]
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


def _write_dataset(
    folder: Path,
    skeleton: list[Path],
    common: list[Path],
    advance: Callable[[int], object] | None,
    settings: dict[str, Any],
) -> None:
    reader = LogReader(skeleton, common, advance=advance, **settings)
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
            "skeleton": [f.name for f in skeleton],
            "common": [f.name for f in common],
            "synthetic": (skeleton[0].parent / "synth.json").exists(),
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


def _checked(
    skeleton: list[Path],
    common: list[Path],
    advance: Callable[[int], object] | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    reader = LogReader(skeleton, common, advance=advance, **settings)
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
    return {
        "impressions": impressions.rows,
        "clicks": impressions.clicks,
        "conversions": impressions.conversions,
        "conversions_without_click": anomalies.get("conversions_without_click", {"count": 0})[
            "count"
        ],
        "common_rows": common.rows,
        "common_rows_unused": common.rows - impressions.common_rows_used,
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
