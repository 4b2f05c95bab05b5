"""Networks of one task, CTR, CVR and CTCVR, and of a schema's K labels: the paper's, for each."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .batch import Batch
from .model import ChainOutput, EntireSpaceChain
from .schema import Schema


class CTROutput(ChainOutput):
    """What `CTRNetwork` returns."""

    __slots__ = ()

    @property
    def pctr(self) -> Tensor:
        """P(click), [B]."""
        return self.logits[:, 0].sigmoid()


class CTRNetwork(EntireSpaceChain):
    """The network of one task, p(click | impression); the arguments are those of `ESMM`."""

    predicts = ("ctr",)

    def __init__(self, fields: Any, **options: Any) -> None:
        super().__init__(fields, ("ctr",), ("click",), **options)

    def forward(self, batch: Batch) -> CTROutput:
        """Returns logit and probability for each impression of the batch."""
        return CTROutput(self._logits(batch))


class CVROutput(ChainOutput):
    """What `CVRNetwork` returns."""

    __slots__ = ()

    @property
    def pcvr(self) -> Tensor:
        """P(conversion | click), [B]."""
        return self.logits[:, 0].sigmoid()


class CVRNetwork(EntireSpaceChain):
    """The network of one task, p(conversion | click), for batches of clicked impressions."""

    predicts = ("cvr",)

    def __init__(self, fields: Any, **options: Any) -> None:
        super().__init__(fields, ("cvr",), ("conversion",), **options)

    def forward(self, batch: Batch) -> CVROutput:
        """Returns logit and probability for each impression of the batch."""
        return CVROutput(self._logits(batch))


class CTCVROutput(ChainOutput):
    """What `CTCVRNetwork` returns."""

    __slots__ = ()

    @property
    def pctcvr(self) -> Tensor:
        """P(click and conversion), [B]."""
        return self.logits[:, 0].sigmoid()


class CTCVRNetwork(EntireSpaceChain):
    """The network of one task, p(click and conversion | impression), for all impressions.

    It is `CVRNetwork` seen over the entire space: with labels "and" an unclicked impression has no
    conversion.
    """

    predicts = ("ctcvr",)

    def __init__(self, fields: Any, **options: Any) -> None:
        super().__init__(fields, ("ctcvr",), ("conversion",), **options)

    def forward(self, batch: Batch) -> CTCVROutput:
        """Returns logit and probability for each impression of the batch."""
        return CTCVROutput(self._logits(batch))


class StagesOutput(NamedTuple):
    """What `ChainNetwork` returns."""

    logits: Tensor  # [B, K], at least float32
    labels: tuple[str, ...]  # K

    @property
    def stages(self) -> dict[str, Tensor]:
        """P(label | all labels before it) by label, each [B], first stage first."""
        return dict(zip(self.labels, self.logits.sigmoid().unbind(1), strict=True))


class ChainNetwork(EntireSpaceChain):
    """The entire-space chain over all labels of a schema: one stage for each, in their order."""

    def __init__(self, fields: Any, **options: Any) -> None:
        schema = Schema.of(fields)
        stages = [f"stage_{k + 1}" for k in range(len(schema.labels))]
        super().__init__(schema, stages, **options)

    def forward(self, batch: Batch) -> StagesOutput:  # type: ignore[override]
        """Returns logits and stages for each impression of the batch."""
        return StagesOutput(self._logits(batch), self.schema.labels)
