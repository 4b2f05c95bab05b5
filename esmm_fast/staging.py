"""Files and directories that appear complete or not at all; a directory for one process alone."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        held = lock(
            partial, f"{given}: another process is writing it; wait for it or choose another name"
        )
        try:
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
            os.close(held)
    except BaseException:
        _remove_empty(created)
        raise


@contextmanager
def staged_file(path: Path, *, parents: bool = False) -> Iterator[Path]:
    """Yields the path of an empty file beside `path` that replaces it at the end, on the disk then.

    If the block raises (also by Ctrl-C), the file is removed, and what was at `path` stays.

    Args:
        path: The name at the end.
        parents: Makes the folders above it, which go with the file if the block raises.

    Raises:
        OSError: Naming `path`: there is no such folder, it cannot be written, the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with staged_file(Path(folder, "file")) as staged:
        ...         _ = staged.write_text("text")
        ...         before = Path(folder, "file").exists()
        ...     before, os.listdir(folder)
        (False, ['file'])
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming(path):
        created = _make_parents(path.parent) if parents else []
    try:
        with naming(path):
            beside.touch()
        try:
            yield beside
            sync(beside)
            beside.replace(path)
            sync(path.parent)
        except OSError as error:
            if error.errno in _NO_ROOM or error.filename in (str(beside), beside):
                raise _about(path, error) from error
            raise
    except BaseException:
        with suppress(OSError):  # where not even the folder is there
            beside.unlink(missing_ok=True)
        _remove_empty(created)
        raise


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def sync(path: Path) -> None:
    """Makes the operating system write a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(folder: Path, refusal: str) -> int:
    """Returns a descriptor of a directory, which is this process's alone until it is closed.

    Raises:
        FileExistsError: Saying `refusal`, where another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise FileExistsError(refusal) from None
    return descriptor


def refuse_existing(out: Path, hint: str = "", *, replace_empty: bool = False) -> None:
    """Raises FileExistsError where there is something by the name of what is to be made."""
    if replace_empty and out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return  # the renaming replaces it
    if out.exists() or out.is_symlink():
        raise FileExistsError(
            f"{out} exists; expected a new name: nothing is overwritten, "
            f"remove it first or choose another{hint}"
        )


def check_place(out: Path) -> None:
    """Raises OSError where nothing can be made at `out`, as far as that can be seen beforehand."""
    nearest = next(folder for folder in Path(os.path.abspath(out)).parents if folder.exists())
    if not nearest.is_dir():
        raise _about(out, NotADirectoryError(errno.ENOTDIR, ""))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _about(out, PermissionError(errno.EACCES, ""))


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
        raise _about(out, error) from error


def _about(out: Path, error: OSError) -> OSError:
    """Returns an error of the system as one about `out`, with the reason in words."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    nearest = next(folder for folder in Path(os.path.abspath(out)).parents if folder.exists())
    if not nearest.is_dir():
        reason = f"{nearest} is a file; expected a directory"
    elif isinstance(error, PermissionError):
        reason = "no permission to write"
    return type(error)(f"{out}: cannot be made in {out.parent}: {reason}")


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


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if not any(folder.iterdir()):
            folder.rmdir()


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
