"""How far the reading of files is, in bytes, and a pass over batches, in impressions."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from .batch import Batch


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


class Bar:
    """A bar with the rate in impressions per second and the time left.

    Where standard error is no terminal, a line now and then instead: one for all bars together.

    Args:
        batches: What `over` yields. Its end is known where it has `impressions` or a length.
        shown: False draws nothing.
        description: What stands before the bar.
        begun: Impressions of this pass that were seen before.
        every: Seconds between lines.

    Raises:
        TypeError: `batches` cannot be iterated over.
    """

    _said = -math.inf
    """When the last line of any bar was printed, or a bar was begun after a pause."""

    def __init__(
        self,
        batches: Iterable[Batch],
        shown: bool,
        description: str,
        begun: int = 0,
        every: float = 15.0,
    ) -> None:
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"batches: expected an iterable of Batch, got {type(batches).__name__} "
                "(a Dataset's: dataset.batches(1024, vocabulary=vocabulary))"
            )
        self.batches = batches
        drawn = sys.stderr.isatty()
        self._lines, self._every = shown and not drawn, every
        self._title, self._began = description, time.monotonic()
        self._begun = self._done = begun
        if self._began - Bar._said > 2 * every:
            Bar._said = self._began
        self.bar: Any = tqdm(
            desc=description,
            disable=not (shown and drawn),
            unit=" impressions",
            unit_scale=True,
            dynamic_ncols=True,
            initial=begun,
            total=getattr(batches, "impressions", None),
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def over(self) -> Iterator[Batch]:
        """Yields the batches."""
        for batch in self.batches:
            if self.bar.total is None and isinstance(self.batches, Sized):
                self.bar.total = len(self.batches) * len(batch.labels)
            yield batch
        self.bar.total = self._done

    def advance(self, impressions: int, loss: float | None = None) -> None:
        """Moves on; `loss` is shown from then on."""
        if loss is not None and not self.bar.disable:
            self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self.bar.update(impressions)
        self._done += impressions
        now = time.monotonic()
        if self._lines and now - Bar._said >= self._every:
            Bar._said = now
            total = self.bar.total
            text = f"{self._title}: {self._done:,}"
            if total:
                text += f" of {total:,} impressions ({100 * self._done // total} %)"
            rate = (self._done - self._begun) / (now - self._began)
            text += f", {rate:,.0f}/s" + ("" if loss is None else f", loss {loss:.4f}")
            print(text, file=sys.stderr, flush=True)
