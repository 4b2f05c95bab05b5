"""The entire-space chain's loss in plain PyTorch: the specification of ops.product_loss."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def product_loss(
    logits: Tensor,  # [B, K]
    labels: Tensor,  # [B, K]
    impression_weights: Tensor | None = None,  # [B]
    reduction: str = "mean",
) -> Tensor:
    """Returns sum_k BCE(t_k, P_k) with P_k = sigma(a_1) ... sigma(a_k), [] or [B].

    1 - P_k is the sum of P_{j-1} sigma(-a_j) over j <= k, the chance to stop at stage j: nothing
    cancels. In float32 the terms underflow for logits beyond about 80; in ops.product_loss they
    do not.

    Source: ESMM, arXiv 1804.07931, Eq. 3 (K = 2).
    """
    p = logits.sigmoid().cumprod(1)
    p_before = p.roll(1, 1).index_fill(1, logits.new_zeros(1).long(), 1.0)
    log_p = logsigmoid(logits).cumsum(1)
    log_not_p = (p_before * (-logits).sigmoid()).cumsum(1).log()
    loss = -(labels * log_p + (1 - labels) * log_not_p).sum(1)
    if impression_weights is None:
        impression_weights = loss.new_ones(loss.shape)
    loss = loss * impression_weights
    if reduction == "none":
        return loss
    return loss.sum() / impression_weights.sum() if reduction == "mean" else loss.sum()
