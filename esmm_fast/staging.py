"""A directory that appears complete or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_directory(out: Path, *, replace_empty: bool = False) -> Iterator[Path]:
    """Yields an empty directory beside `out` that takes the name `out` at the end of the block.

    If the block raises (also by Ctrl-C), the directory is removed. If the process is killed,
    ``.<name>.partial`` remains; the next call for the same `out` removes it.

    Args:
        out: The name at the end.
        replace_empty: Lets `out` be a directory that holds nothing.

    Raises:
        FileExistsError: `out` exists, or another process is writing it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with staged_directory(Path(folder, "out")) as staged:
        ...         _ = (staged / "file").write_text("text")
        ...         before = Path(folder, "out").exists()
        ...     before, Path(folder, "out", "file").read_text()
        (False, 'text')
    """
    given, out = out, Path(os.path.abspath(out))
    refuse_existing(given, replace_empty=replace_empty)
    partial = out.parent / f".{out.name}.partial"
    with naming(given):
        created = _make_parents(out.parent)
    try:
        with naming(given):
            partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FileExistsError(
                    f"{given}: another process is writing it; wait for it or choose another name"
                ) from None
            try:
                _empty(partial)  # what a killed process left
                with _writing(given, partial):
                    yield partial
                refuse_existing(given, replace_empty=replace_empty)
                partial.rename(out)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        finally:
            os.close(lock)
    except BaseException:
        for folder in created:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


def refuse_existing(out: Path, hint: str = "", *, replace_empty: bool = False) -> None:
    """Raises FileExistsError where there is something by the name of what is to be made."""
    if replace_empty and out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return  # the renaming replaces it
    if out.exists() or out.is_symlink():
        raise FileExistsError(
            f"{out} exists; expected a new name: nothing is overwritten, "
            f"remove it first or choose another{hint}"
        )


@contextmanager
def naming(out: Path) -> Iterator[None]:
    """Makes an error of the system about a place beside `out` one about `out`.

    Example:
        >>> with naming(Path("folder/out")):
        ...     raise PermissionError(13, "Permission denied", "folder/.out.partial")
        Traceback (most recent call last):
        PermissionError: folder/out: cannot be made in folder: no permission to write
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if isinstance(error, PermissionError):
            reason = "no permission to write"
        raise type(error)(f"{out}: cannot be made in {out.parent}: {reason}") from error


@contextmanager
def _writing(out: Path, partial: Path) -> Iterator[None]:
    """Makes an error of the system about a file below `partial` one about `out`."""
    try:
        yield
    except OSError as error:
        below = os.path.relpath(error.filename, partial) if error.filename else ""
        full = not below and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not error.errno or not (full or (below and not below.startswith(".."))):
            raise
        what = f"{out}: cannot be written: {os.strerror(error.errno)}"
        raise type(error)(f"{what}: {below}" if below else what) from error


def _make_parents(parent: Path) -> list[Path]:
    """Creates `parent`; returns what was created, innermost first."""
    missing = []
    for folder in (parent, *parent.parents):
        if folder.exists():
            break
        missing.append(folder)
    parent.mkdir(parents=True, exist_ok=True)
    return missing


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
