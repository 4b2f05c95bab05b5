"""What reading a log found: the error that names a place, the counts of each side, anomalies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..schema import Field, Side


class LogError(ValueError):
    """A log that is not what its grammar says.

    Attributes:
        file: The file as it was given.
        line: Line from 1.
        byte: Offset of the first wrong byte in the decompressed file, from 0.
        reason: The class of the error, e.g. ``"feature_num_mismatch"``.
    """

    def __init__(
        self, message: str, file: str = "", line: int = 0, byte: int = 0, reason: str = ""
    ):
        super().__init__(message)
        self.file, self.line, self.byte, self.reason = file, line, byte, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return LogError, (str(self), self.file, self.line, self.byte, self.reason)

    @staticmethod
    def at(found: dict[str, Any]) -> LogError:
        """Returns the error for a place and message as the parser reports them."""
        text = f"{place(found)}: {found['message']}"
        return LogError(text, found["file"], found["line"], found["byte"], found["reason"])


def place(found: dict[str, Any]) -> str:
    """Returns ``file:line (byte N)``; of a table ``file: row N``."""
    if "row" in found:
        return f"{found['file']}: row {found['row']}"
    return f"{found['file']}:{found['line']} (byte {found['byte']})"


@dataclass
class SideReport:
    """What one side's files held. `anomalies` and `rejected`: name -> count, file, line, byte (,
    message)."""

    rows: int = 0
    lines: int = 0
    bytes: int = 0
    clicks: int = 0
    conversions: int = 0  # with click
    common_rows_used: int = 0
    rows_without: dict[str, int] = field(default_factory=dict)
    anomalies: dict[str, dict[str, Any]] = field(default_factory=dict)
    rejected: dict[str, dict[str, Any]] = field(default_factory=dict)
    occurrences: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Field -> (feature ids, counts), both uint64, ids ascending."""


def report_of_keys(keys: np.ndarray, fields: tuple[Field, ...]) -> SideReport:
    """Returns the report of `key_rows`."""
    return SideReport(
        rows=len(keys),
        rows_without={f.name: len(keys) for f in fields},
        occurrences={f.name: (np.empty(0, "u8"), np.empty(0, "u8")) for f in fields},
    )


def require_impressions(reports: dict[Side, SideReport], file: str) -> None:
    """Raises LogError if there is no impression; `file` is the first of the skeleton files."""
    if reports["impression"].rows:
        return
    errors = merged(reports["common"].rejected, reports["impression"].rejected)
    if not errors:
        text = "no impressions; expected at least one line, got only blank ones"
        raise LogError(f"{file}:1 (byte 0): {text}", file, 1, 0, "bad_file")
    found = "; ".join(
        f"{e['count']} x {name}, first {e['first']}: {e['message']}" for name, e in errors.items()
    )
    raise LogError(
        f"{file}: every line was skipped; expected at least one good impression, got {found}", file
    )


NOTES = {
    "crlf": "lines end with \\r\\n",
    "blank_lines": "lines without a byte",
    "trailing_separators": "a \\x01 behind the last feature",
    "no_final_newline": "the last line has no line end: the file may be cut",
    "empty_lists": "rows without any feature",
    "duplicate_common_rows": "common rows that repeat an earlier one; stored once",
    "conversions_without_click": "impressions with conversion 1 and click 0",
}
"""What each class of anomaly means."""


def merged(*sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns class -> count, first place in the order in which the files are read, and what it
    means."""
    total: dict[str, dict[str, Any]] = {}
    for side in sides:
        for name, found in side.items():
            if name not in total:
                text = (
                    {"message": found["message"]} if "message" in found else {"note": NOTES[name]}
                )
                total[name] = {"count": 0, "first": place(found), **text}
            total[name]["count"] += found["count"]
    return total
