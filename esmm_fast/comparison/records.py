"""What a comparison has finished, on disk: a record for each run, to go on from after a stop.

OUT = plan.json (what is compared, on which data, by which settings) · records/<run>.json ·
predictions/<run>.npz. Each is written beside its place and renamed: what exists is whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..config import over

Arrays = dict[str, NDArray[Any]]

PLAN, RECORDS, PREDICTIONS = "plan.json", "records", "predictions"
VERSION = "esmm_fast"
"""Key of the plan under which the version stands."""


class Records:
    """The finished runs of one comparison, by key; in memory alone where there is no directory.

    Args:
        out: Directory; made where it is missing. One that holds another plan is refused, one that
            holds this plan is gone on with.
        plan: Whatever the numbers depend on, as plain values. `VERSION` in it may differ from
            that of an earlier call.
        before: Laid out like `plan`: what a key stood for before there was such a key, so that a
            directory of an earlier version, whose plan lacks it, can be gone on with.

    Attributes:
        begun_by: The version that began it.

    Raises:
        FileExistsError: `out` holds something else, or a comparison of another plan; says the first
            difference.
    """

    def __init__(
        self,
        out: str | Path | None,
        plan: Mapping[str, Any],
        before: Mapping[str, Any] | None = None,
    ) -> None:
        self.out = None if out is None else Path(out)
        self._records: dict[str, Any] = {}
        self._arrays: dict[str, Arrays] = {}
        self.begun_by: str | None = plan.get(VERSION)
        if self.out is None:
            return
        wanted = _plain(plan)
        path = self.out / PLAN
        if path.is_file():
            found = over(_plain(before or {}), msgspec.json.decode(path.read_bytes()))
            self.begun_by = found.pop(VERSION, None)
            _check_same(found, {k: v for k, v in wanted.items() if k != VERSION}, self.out)
        elif self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise FileExistsError(
                f"{self.out}: expected nothing there, or a comparison to go on with; "
                f"it exists and has no {PLAN}"
            )
        for folder in (RECORDS, PREDICTIONS):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            _write(path, _json(wanted))

    def record(self, key: str) -> Any:
        """Returns the record of a run, or None."""
        if key not in self._records and self.out is not None:
            path = self.out / RECORDS / f"{key}.json"
            if path.is_file():
                self._records[key] = msgspec.json.decode(path.read_bytes())
        return self._records.get(key)

    def save(self, key: str, record: Any) -> Any:
        """Saves the record of a finished run and returns it as it will be read again.

        What JSON cannot hold (nan, infinity) becomes null, so that a run gives the same result
        whether it has been interrupted or not.
        """
        self._records[key] = _plain(record)
        if self.out is not None:
            _write(self.out / RECORDS / f"{key}.json", _json(record))
        return self._records[key]

    def arrays(self, key: str) -> Arrays | None:
        """Returns the arrays of a run, or None."""
        if key in self._arrays:
            return self._arrays[key]
        path = None if self.out is None else self.out / PREDICTIONS / f"{key}.npz"
        if path is None or not path.is_file():
            return None
        with np.load(path) as file:
            return dict(file)

    def save_arrays(self, key: str, arrays: Arrays) -> None:
        """Saves arrays of a run: on disk where there is a directory, in memory where not."""
        if self.out is None:
            self._arrays[key] = arrays
            return
        path = self.out / PREDICTIONS / f"{key}.npz"
        partial = path.with_suffix(".part")
        with open(partial, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            _sync(file)
        partial.rename(path)


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _write(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".part")
    with open(partial, "wb") as file:
        file.write(content)
        _sync(file)
    partial.rename(path)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_same(found: Any, wanted: Any, out: Path, place: str = "") -> None:
    """Raises where two plans differ, at the first difference."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in found | wanted:
            inner = f"{place}.{key}" if place else key
            _check_same(found.get(key), wanted.get(key), out, inner)
    elif found != wanted:
        raise FileExistsError(
            f"{out}: holds a comparison with {place} = {found!r}, asked for is {wanted!r}; "
            "give the same to go on with it, or another directory"
        )
