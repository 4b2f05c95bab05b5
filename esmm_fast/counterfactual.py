"""Entire-space models whose CVR tower learns from inverse propensities: Multi-IPW/DR, ESCM2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from . import ops
from .batch import Batch
from .model import ChainOutput, EntireSpaceChain, ESMMOutput


class CounterfactualOutput(ESMMOutput):
    """What `CounterfactualESMM` returns: an `ESMMOutput`, and with DR the imputed error.

    `logits` is [B, 2], or [B, 3] with the imputation tower's output behind; `probabilities` and
    `stage_probabilities` of that third column mean nothing.
    """

    __slots__ = ()

    @property
    def imputed_error(self) -> Tensor:
        """e^ [B], the error of pCVR that the imputation tower expects: softplus of its output."""
        return softplus(self.logits[:, 2])


class CounterfactualESMM(EntireSpaceChain):
    """A CTR and a CVR tower over shared tables, the CVR tower trained by IPS or DR over all
    impressions.

    With y the click, z the conversion, e = BCE(z, pCVR), p = max(pCTR, clip) without gradient, e^
    the imputed error (its own tower over the same tables; softplus, so never negative), means over
    all impressions of the batch (weighted where the batch is):

    - ``"ips"``: L_cvr = mean(y e / p)
    - ``"dr"``: L_cvr = mean(e^ + y (e - e^) / p) + mean(y (e - e^)^2 / p)
    - loss = L_ctr + `cvr_weight` * L_cvr + `ctcvr_weight` * BCE(y and z, pCTR * pCVR)

    Multi-IPW and Multi-DR are ``cvr_weight=1, ctcvr_weight=0``; ESCM2 is ``ctcvr_weight > 0``.

    What pCVR estimates: p(conversion | impression, click) over the entire space, if pCTR is right
    (IPS), or if pCTR **or** e^ is right (DR), and if nothing that no feature carries drives both
    click and conversion. Instability: the variance of y / pCTR grows without bound as pCTR falls;
    `clip` bounds a click's weight by 1 / clip and biases what lies below it. Early in training pCTR
    is a guess, and so are the weights. The DR loss can be negative (e^ above e at a small p).

    Args:
        fields: As in `ESMM`.
        estimator: "ips" or "dr".
        cvr_weight: Of L_cvr. ESCM2's lambda_c; its paper tunes it for each data set, the default
            here is ours.
        ctcvr_weight: Of the entire-space loss. ESCM2's lambda_g; likewise.
        clip: Least propensity, in (0, 1]; ours.
        options: As in `ESMM`: dim, hidden, init_std, seed, ...

    Source: Multi-IPW and Multi-DR: Zhang et al., Large-scale Causal Approaches to Debiasing
    Post-click Conversion Rate Estimation with Multi-task Learning, WWW 2020 (arXiv:1910.09337).
    ESCM2: Wang et al., SIGIR 2022 (arXiv:2204.05125).
    """

    def __init__(
        self,
        fields: Any,
        estimator: str = "ips",
        *,
        cvr_weight: float = 1.0,
        ctcvr_weight: float = 1.0,
        clip: float = 0.01,
        **options: Any,
    ) -> None:
        if estimator not in ("ips", "dr"):
            raise ValueError(f"estimator: expected 'ips' or 'dr', got {estimator!r}")
        if not 0 < clip <= 1:
            raise ValueError(f"clip: expected a propensity in (0, 1], got {clip}")
        for name, weight in (("cvr_weight", cvr_weight), ("ctcvr_weight", ctcvr_weight)):
            if not weight >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {weight}")
        doubly_robust = estimator == "dr"
        super().__init__(
            fields,
            ("ctr", "cvr", "imputation") if doubly_robust else ("ctr", "cvr"),
            (0, 1, 1) if doubly_robust else (0, 1),
            **options,
        )
        self.estimator = estimator
        self.cvr_weight, self.ctcvr_weight, self.clip = cvr_weight, ctcvr_weight, clip

    def forward(self, batch: Batch) -> CounterfactualOutput:
        """Returns logits and probabilities for each impression of the batch."""
        return CounterfactualOutput(self._logits(batch))

    def loss(self, out: ChainOutput, batch: Batch) -> Tensor:
        """Returns the mean loss of the batch, []; labels are click and click-and-conversion."""
        click, conversion = batch.labels[:, 0], batch.labels[:, 1]
        ctr, cvr = out.logits[:, 0], out.logits[:, 1]
        loss = binary_cross_entropy_with_logits(ctr, click, reduction="none")
        if self.ctcvr_weight:
            both = ops.product_loss(out.logits[:, :2], batch.labels[:, :2], reduction="none")
            loss = (1 - self.ctcvr_weight) * loss + self.ctcvr_weight * both
        if self.cvr_weight:
            error = binary_cross_entropy_with_logits(cvr, conversion, reduction="none")
            weight = click / ctr.detach().sigmoid().clamp(min=self.clip)
            if self.estimator == "ips":
                counterfactual = weight * error
            else:
                imputed = softplus(out.logits[:, 2])
                counterfactual = imputed + weight * (error - imputed)
                counterfactual = counterfactual + weight * (error - imputed) ** 2
            loss = loss + self.cvr_weight * counterfactual
        if batch.impression_weights is None:
            return loss.mean()
        weights = batch.impression_weights.to(loss.dtype)
        return torch.dot(loss, weights) / weights.sum()
