"""Bytes read, rate and time left: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm


class Progress:
    """Shows how far the reading of files is: a bar on a terminal, else a line now and then.

    Args:
        title: What is done.
        file: Where to; None: standard error.
        every: Seconds between lines where `file` is no terminal; the first comes after as many.
        clock: Seconds that go by.

    Example:
        >>> seconds = iter([0.0, 20.0, 40.0])
        >>> with Progress("prepare", sys.stdout, clock=lambda: next(seconds)) as progress:
        ...     progress.update(2_000_000_000, 8_000_000_000)
        ...     progress.update(4_000_000_000, None)
        prepare: 2.00 GB of 8.00 GB (25 %), 100.0 MB/s, 1:00 left
        prepare: 4.00 GB, 100.0 MB/s
    """

    def __init__(
        self,
        title: str,
        file: TextIO | None = None,
        *,
        every: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._title, self._every, self._clock = title, every, clock
        self._file = sys.stderr if file is None else file
        self._bar: Any = None
        if self._file.isatty():
            self._bar = tqdm(unit="B", unit_scale=True, desc=title, file=self._file)
        self._begin = self._shown = clock()

    def update(self, done: int, total: int | None) -> None:
        """Shows that `done` of `total` bytes (None: not known how many) are read."""
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)
            return
        now = self._clock()
        if now - self._shown < self._every:
            return
        self._shown = now
        rate = done / (now - self._begin)
        text = f"{self._title}: {_bytes(done)}"
        if total:
            text += f" of {_bytes(total)} ({100 * done // total} %)"
        text += f", {_bytes(rate)}/s"
        if total and rate:
            left = int(max(0, total - done) / rate)
            text += f", {left // 60}:{left % 60:02} left"
        print(text, file=self._file, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
