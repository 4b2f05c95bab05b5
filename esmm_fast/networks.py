"""Networks of one task: CTR, CVR and CTCVR, each the paper's network with one tower."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .batch import Batch
from .model import ChainOutput, EntireSpaceChain


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
