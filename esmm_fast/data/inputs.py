"""The files of a log as users have them: plain, gzip, members of a tar archive, standard input."""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

GzipFile: Any
try:
    from isal.igzip import IGzipFile as GzipFile
except ImportError:
    from gzip import GzipFile

PathLike = str | os.PathLike[str]
Role = Literal["skeleton", "common"]

STANDARD_INPUT = Path("-")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_MEMBER = {"skeleton": "sample_skeleton", "common": "common_features"}
_BLOCK = 1 << 20  # bytes that are skipped at a time
_PIECE = 1 << 17  # bytes unpacked at a time: what is before a damage is read, up to so many
_TAR_BLOCK = 512


class InputError(ValueError):
    """A file that cannot be read as what it is."""


@dataclass(frozen=True)
class LogFile:
    """A file of a log, or the archive it lies in.

    Args:
        path: The file; ``-`` is standard input.
        role: What it holds: lines of impressions or of common rows.
        half: "train" or "test" where only the member of that half is meant; "" otherwise.
        archive: `path` is a tar archive, and the file is a member of it.
    """

    path: Path
    role: Role
    half: str = ""
    archive: bool = False

    @property
    def bytes(self) -> int | None:
        """Size of the file on disk (compressed, if it is); None for a stream."""
        if self.path == STANDARD_INPUT or not self.path.is_file():
            return None
        return self.path.stat().st_size


Files = PathLike | LogFile | Iterable[PathLike | LogFile] | None
"""A file, files, or none."""


def log_files(files: Files, role: Role) -> list[LogFile]:
    """Returns the files, after a look whether each of them can be a log file.

    Raises:
        FileNotFoundError, IsADirectoryError: Naming the file.
        ValueError: Standard input twice.
    """
    if files is None:
        return []
    several = [files] if isinstance(files, str | os.PathLike | LogFile) else list(files)
    found = []
    for file in several:
        path = file.path if isinstance(file, LogFile) else Path(file)
        if path != STANDARD_INPUT and not path.exists():
            raise FileNotFoundError(f"{path}: no such file; expected a log file for {role}")
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a directory; expected a log file for {role}")
        of_role = file if isinstance(file, LogFile) else LogFile(path, role, "", is_archive(path))
        found.append(of_role)
    if sum(f.path == STANDARD_INPUT for f in found) > 1:
        raise ValueError(f"{role}: standard input (-) once expected, got it twice")
    return found


def is_archive(path: Path) -> bool:
    """Returns whether a file is a tar archive, compressed or not, by its content or its name."""
    if path == STANDARD_INPUT or not path.is_file():
        return False
    if path.name.endswith(ARCHIVE_SUFFIXES):
        return True
    with open(path, "rb", buffering=0) as file:
        head = file.read(_TAR_BLOCK)
        if head[:2] == b"\x1f\x8b":
            file.seek(0)
            try:
                head = GzipFile(fileobj=file, mode="rb").read(_TAR_BLOCK)
            except Exception:  # each decompressor has errors of its own
                return False  # the parser says where it breaks
    return head[257:262] == b"ustar"


class Inputs:
    """Opens the files of one log for the parser and knows how much of them is read.

    An archive that holds both files is decompressed once, if the common rows stand in it first;
    else twice: once up to their end, once for the skeleton.

    Args:
        files: All of them, so that an archive is known to be read for several.
    """

    def __init__(self, files: Iterable[LogFile]):
        self._files = tuple(files)
        if sum(f.path == STANDARD_INPUT for f in self._files) > 1:
            raise ValueError(
                "standard input (-) is given for skeleton and for common; expected one of them"
            )
        self._archives = {f.path: _Archive(f.path) for f in self._files if f.archive}
        for file in self._files:
            if file.archive:
                if (file.role, file.half) in self._archives[file.path].wanted:
                    raise ValueError(f"{file.role}: {file.path} once expected, got it twice")
                self._archives[file.path].wanted.add((file.role, file.half))
        sizes = {f.path: f.bytes for f in self._files}
        self._size = None if None in sizes.values() else sum(s or 0 for s in sizes.values())
        self._plain = 0
        self._streams: list[_Raw] = []

    def open(self, file: LogFile) -> tuple[str, str | None, Any]:
        """Returns (name, path, None) for a plain file, (name, None, stream) for all else.

        Raises:
            InputError: The archive lacks the member, or is damaged before it.
        """
        if file.archive:
            member, stream = self._archives[file.path].open(file)
            return f"{file.path}/{member}", None, stream
        if file.path != STANDARD_INPUT and stat.S_ISREG(file.path.stat().st_mode):
            with open(file.path, "rb") as opened:
                magic = opened.read(2)
            if magic != b"\x1f\x8b":
                return str(file.path), str(file.path), None
        raw = _Raw(file.path)
        self._streams.append(raw)
        name = "<stdin>" if file.path == STANDARD_INPUT else str(file.path)
        return name, None, _decompressed(raw)

    def add_plain(self, count: int) -> None:
        """Counts bytes that the parser read by itself."""
        self._plain += count

    @property
    def done(self) -> int:
        """Bytes of the files on disk (compressed, where they are) that are read."""
        streams = sum(raw.position for raw in self._streams)
        return self._plain + streams + sum(a.done for a in self._archives.values())

    @property
    def total(self) -> int | None:
        """Bytes to read in all; None where a stream has no known end."""
        if self._size is None:
            return None
        return self._size + sum(a.again for a in self._archives.values())

    def close(self) -> None:
        """Closes everything that was opened."""
        for raw in self._streams:
            raw.close()
        for archive in self._archives.values():
            archive.close()


class _Raw(io.RawIOBase):
    """The bytes of a file or pipe, with a look at the first two."""

    def __init__(self, path: Path):
        if path == STANDARD_INPUT:
            self._file = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115
        else:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.magic = b""
        while len(self.magic) < 2 and (more := self._file.read(2 - len(self.magic))):
            self.magic += more
        self._ahead = self.magic
        self.position = len(self.magic)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._ahead:
            taken = min(len(buffer), len(self._ahead))
            buffer[:taken] = self._ahead[:taken]
            self._ahead = self._ahead[taken:]
            return taken
        count = self._file.readinto(buffer) or 0
        self.position += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _decompressed(raw: _Raw) -> Any:
    """Returns the stream of the text: the bytes themselves where they are not gzip."""
    return _Unpacked(raw) if raw.magic == b"\x1f\x8b" else raw


class _Unpacked(io.RawIOBase):
    """The text of a gzip stream."""

    def __init__(self, packed: io.RawIOBase):
        self._file = GzipFile(fileobj=packed, mode="rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        text = self._file.read1(min(len(buffer), _PIECE))
        buffer[: len(text)] = text
        return len(text)


class _Tape:
    """A stream that is read forwards, for `tarfile`: it remembers the last block it gave."""

    def __init__(self, stream: Any):
        self._stream = stream
        self._position = 0
        self.last = b""

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        parts = []
        while size and (part := self._stream.read(size)):
            parts.append(part)
            size -= len(part)
            self._position += len(part)
        self.last = b"".join(parts)
        return self.last

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)
        self._position += count
        return count

    def seek(self, position: int) -> int:
        if position < self._position:
            raise tarfile.ReadError("a member stands before the one that was read")
        scratch = memoryview(bytearray(min(_BLOCK, position - self._position)))
        while self._position < position:
            count = self.readinto(scratch[: position - self._position])
            if count == 0:
                break
        return self._position


class _Archive:
    """A tar archive whose log files are found by name and streamed."""

    def __init__(self, path: Path):
        self.path = path
        self.wanted: set[tuple[Role, str]] = set()
        self._passed: list[str] = []  # members, of this pass
        self._raw: _Raw | None = None
        self._before = 0  # bytes read in earlier passes
        self._passes = 0
        self._checked = False  # read to its very end once

    @property
    def done(self) -> int:
        return self._before + (self._raw.position if self._raw else 0)

    @property
    def again(self) -> int:
        """Bytes that are read more than once."""
        return max(0, self._passes - 1) * self.path.stat().st_size

    def open(self, file: LogFile) -> tuple[str, Any]:
        """Returns the name and the stream of the member that holds the file."""
        if self._raw is None or self._named(file.role, file.half):  # it stands before: begin again
            self.close()
            self._raw = _Raw(self.path)
            self._tape = _Tape(_decompressed(self._raw))
            self._passes += 1
            self._passed = []
            self._tar: tarfile.TarFile | None = None
        try:
            return self._find(file)
        except (InputError, MemoryError):
            raise
        except Exception as error:  # each decompressor has errors of its own
            raise InputError(
                f"{self.path} (byte {self._tape.tell()} of the unpacked archive): the archive "
                "cannot be read; expected its members, got "
                f"{type(error).__name__}: {error}"
            ) from error

    def _find(self, file: LogFile) -> tuple[str, Any]:
        name = _pattern(file.role, file.half)
        while (member := self._next()) is not None:
            if member.isreg() and name.fullmatch(_base(member.name)):
                stream = _Member(self, self._tape, member)
                packed = member.name.endswith(".gz")
                return member.name, _Unpacked(stream) if packed else stream
        self._check_end()
        half = f"_{file.half}" if file.half else ""
        held = ", ".join(self._passed) or "nothing"
        raise InputError(
            f"{self.path}: the archive has no {_MEMBER[file.role]}{half}.csv; it holds {held}"
        )

    def _next(self) -> tarfile.TarInfo | None:
        if self._tar is None:
            self._tar = tarfile.TarFile(fileobj=self._tape)  # type: ignore[arg-type]
        member = self._tar.next()
        if member is not None:
            self._passed.append(member.name)
        return member

    def read_on(self) -> None:
        """Goes to the archive's end behind the last file that is wanted of it, once: damage there
        (a checksum, a second log) is found too."""
        if self._checked or not all(self._named(*wanted) for wanted in self.wanted):
            return
        while self._next() is not None:
            pass
        self._check_end()
        for role, half in sorted(self.wanted):
            if len(named := self._named(role, half)) > 1:
                raise InputError(
                    f"{self.path}: one {_MEMBER[role]}.csv expected in the archive, got "
                    f"{' and '.join(named)}; unpack it and give the files of one log"
                )

    def _named(self, role: Role, half: str) -> list[str]:
        """Returns the members passed so far that hold a file of this role."""
        name = _pattern(role, half)
        return [m for m in self._passed if name.fullmatch(_base(m))]

    def _check_end(self) -> None:
        last = self._tape.last
        if last.strip(b"\0"):
            raise InputError(
                f"{self.path} (byte {self._tape.tell() - len(last)} of the unpacked archive): the "
                f"header of a member is damaged; expected one behind {self._passed[-1]}"
            )
        while self._tape.read(_BLOCK):
            pass
        self._checked = True

    def close(self) -> None:
        if self._raw is not None:
            self._before += self._raw.position
            self._raw.close()
            self._raw = None


def _pattern(role: Role, half: str) -> re.Pattern[str]:
    """Returns what the name of a member matches that holds this file."""
    halves = f"(_{half})?" if half else r"(_\w+)?"
    return re.compile(rf"{_MEMBER[role]}{halves}\.csv(\.gz)?")


def _base(member: str) -> str:
    return PurePosixPath(member).name


class _Member(io.RawIOBase):
    """The bytes of one member of an archive."""

    def __init__(self, archive: _Archive, tape: _Tape, member: tarfile.TarInfo):
        self._archive, self._tape = archive, tape
        self._size = self._left = member.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._archive.read_on()
            return 0
        count = self._tape.readinto(memoryview(buffer)[: self._left])
        if count == 0:
            raise EOFError(
                f"the archive ends inside this member, of which it announces {self._size} bytes"
            )
        self._left -= count
        return count
