"""What a comparison has finished, on disk: a record for each run, to go on from after a stop.

OUT = plan.json (what is compared, on which data, by which settings) · records/<run>.json ·
predictions/<run>.npz. Each is written beside its place and renamed: what exists is whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..config import over
from ..staging import lock, naming, staged_file

Arrays = dict[str, NDArray[Any]]

PLAN, RECORDS, PREDICTIONS = "plan.json", "records", "predictions"
VERSION = "esmm_fast"
"""Key of the plan under which the version stands."""


class Guard:
    """A directory that belongs to one plan, and while it is entered to one process.

    Args:
        out: Directory; made where it is missing. One that holds another plan is refused, one that
            holds this plan is gone on with. None: nothing is guarded.
        plan: Whatever the numbers depend on, as plain values. `VERSION` in it may differ from
            that of an earlier call.
        before: Laid out like `plan`: what a key stood for before there was such a key, so that a
            directory of an earlier version, whose plan lacks it, can be gone on with.
        below: Comparisons below `out`, as a pattern: where there is one, `out` is no stranger's
            (an earlier version wrote no plan there).

    Attributes:
        begun_by: The version that began it.

    Raises:
        FileExistsError: `out` holds something else, or a comparison of another plan (says the first
            difference), or another process is at work there.
    """

    def __init__(
        self,
        out: str | Path | None,
        plan: Mapping[str, Any],
        before: Mapping[str, Any] | None = None,
        below: str = "",
    ) -> None:
        self.out = None if out is None else Path(out)
        self._held: int | None = None
        self.begun_by: str | None = plan.get(VERSION)
        if self.out is None:
            return
        wanted = _plain(plan)
        path = self.out / PLAN
        taken = self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir()))
        known = path.is_file() or (below and any(self.out.glob(f"{below}/{PLAN}")))
        if taken and not known:
            raise FileExistsError(
                f"{self.out}: expected nothing there, or a comparison to go on with; "
                f"it exists and has no {PLAN}"
            )
        with naming(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        with self:
            if path.is_file():
                found = over(_plain(before or {}), msgspec.json.decode(path.read_bytes()))
                self.begun_by = found.pop(VERSION, None)
                _check_same(found, {k: v for k, v in wanted.items() if k != VERSION}, self.out)
            else:
                _write(path, _json(wanted))

    def __enter__(self) -> Self:
        if self.out is not None:
            self._held = lock(
                self.out, f"{self.out}: another process is at work on this comparison"
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


class Records(Guard):
    """The finished runs of one comparison, by key; in memory alone where there is no directory."""

    def __init__(
        self,
        out: str | Path | None,
        plan: Mapping[str, Any],
        before: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(out, plan, before)
        self._records: dict[str, Any] = {}
        self._arrays: dict[str, Arrays] = {}
        if self.out is not None:
            for folder in (RECORDS, PREDICTIONS):
                (self.out / folder).mkdir(exist_ok=True)

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
        with staged_file(self.out / PREDICTIONS / f"{key}.npz") as staged, open(staged, "wb") as to:
            np.savez(to, **arrays)  # type: ignore[arg-type]

    def drop_arrays(self, key: str) -> None:
        """Removes arrays that nobody needs any more."""
        self._arrays.pop(key, None)
        if self.out is not None:
            (self.out / PREDICTIONS / f"{key}.npz").unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _write(path: Path, content: bytes) -> None:
    with staged_file(path) as staged:
        staged.write_bytes(content)


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
