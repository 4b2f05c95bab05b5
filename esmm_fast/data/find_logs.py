"""Which files a log consists of, and how much of them is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ..progress import Progress
from .inputs import ARCHIVE_SUFFIXES, Files, Inputs, LogFile, PathLike, is_archive, log_files

Log = tuple[list[LogFile], list[LogFile]]
"""The skeleton files and the common files of one log."""


def find_logs(
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


class Meter:
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
