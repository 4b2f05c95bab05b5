"""Interruption: SIGINT and SIGTERM as a wish to stop, granted when the state of work is whole."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Work that was stopped by a signal, in good order."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        """The signal; a process exits with 128 + this."""


class Interruption:
    """While it is entered, the first SIGINT or SIGTERM is only noted; the second does what it did.

    Outside the main thread, where Python gives no signals, it notes nothing.

    >>> with Interruption() as interruption:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interruption.number == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()
        if sys.stderr.isatty():
            print("\nstopping after this step; once more: at once", file=sys.stderr)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
