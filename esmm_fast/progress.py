"""Bar: a progress bar in impressions over the batches of one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from tqdm import tqdm

from .batch import Batch


class Bar:
    """A bar with the rate in impressions per second and the time left.

    Args:
        batches: What `over` yields. Its end is known where it has `impressions` or a length.
        shown: False draws nothing.
        description: What stands before the bar.
        begun: Impressions of this pass that were seen before.
    """

    def __init__(
        self, batches: Iterable[Batch], shown: bool, description: str, begun: int = 0
    ) -> None:
        self.batches = batches
        self.bar: Any = tqdm(
            desc=description,
            disable=not shown,
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
        self.bar.total = self.bar.n

    def advance(self, impressions: int, loss: float | None = None) -> None:
        """Moves on; `loss` is shown from then on."""
        if loss is not None and not self.bar.disable:
            self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self.bar.update(impressions)
