"""prepare: a raw log becomes a dataset, in one pass over the text and one write."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import Progress
from ..schema import ALI_CCP, Schema
from ..staging import naming, refuse_existing, staged_directory
from .dataset_files import checked, write_dataset
from .find_logs import Meter, find_logs
from .inputs import Files, PathLike
from .log_format import LogFormat, read_format
from .logs import CHUNK_BYTES, LogReader, OnError
from .record_batches import check_columns
from .shards import Shard, part_of, write_shard
from .tables import TableReader

if TYPE_CHECKING:
    from .dataset import Dataset


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
    shard: tuple[int, int] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Dataset | Shard | dict[str, Dataset] | dict[str, Shard] | dict[str, Any]:
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
        shard: (i, n): Read only part i, from 1, of n of each file (plain ones), and write a shard
            of the dataset to `out`; `merge_shards` makes the dataset of all n.
        chunk_bytes: Text per chunk and record batch, in bytes.

    Returns:
        The `Dataset` (with `shard`, the `Shard`); for a `logdir` with halves, ``{"train": Dataset,
        "test": Dataset}``. With `check`, a report instead: the counts of `Dataset.info`,
        `anomalies` and `errors` as {class: {count, first (, message)}}.

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
    if shard is not None and table is not None:
        raise ValueError("shard: the text files of a log expected with it, got a table")
    format = _format(schema, is_text=table is None)
    if table is not None:
        if logdir is not None or not _is_nothing(skeleton):
            raise ValueError("table, or logdir, or skeleton expected, got several")
        if on_error != "stop":
            raise ValueError(
                "on_error: 'stop' expected with a table, whose first bad row ends it, got "
                f"{on_error!r}"
            )
        of_text = {"threads": threads is not None, "chunk_bytes": chunk_bytes != CHUNK_BYTES}
        for name in (n for n, is_given in of_text.items() if is_given):
            raise ValueError(f"{name}: the text files of a log expected with it, got a table")
        several = None if _is_nothing(common) else common
        return _prepare_table(table, several, format, out, check, progress)
    logs = find_logs(logdir, skeleton, common)
    part = None if shard is None else part_of(shard, logs, check or rejects is not None)
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
                half: checked(LogReader(*files, advance=meter.of(half), **settings))
                for half, files in logs.items()
            }
            return reports.get("", reports)
        assert out is not None
        settings["rejects"] = stack.enter_context(_Rejects(rejects)).write if rejects else None
        staged = stack.enter_context(staged_directory(Path(out)))
        for half, files in logs.items():
            folder = staged / half
            folder.mkdir(exist_ok=True)
            if part is None:
                write_dataset(folder, LogReader(*files, advance=meter.of(half), **settings))
            else:
                write_shard(folder, *files, part, advance=meter.of(half), **settings)

    from .dataset import Dataset

    kind = Dataset if part is None else Shard
    if "" in logs:
        return kind(Path(out))
    return {half: kind(Path(out) / half) for half in logs}


# ---- What is given


def _is_nothing(files: Any) -> bool:
    return files is None or (isinstance(files, tuple | list) and not files)


def _format(schema: Schema | LogFormat | PathLike, is_text: bool) -> Schema | LogFormat:
    """Returns the format; what is wrong with that of a file names the file."""
    if isinstance(schema, Schema | LogFormat):
        return schema
    format = read_format(Path(schema))
    try:
        check_columns(format.schema)
        if is_text:
            format.check_text()
    except ValueError as error:
        raise ValueError(f"{schema}: {error}") from None
    return format


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
            return checked(reader)
        assert out is not None
        write_dataset(stack.enter_context(staged_directory(Path(out))), reader)

    from .dataset import Dataset

    return Dataset(out)


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
