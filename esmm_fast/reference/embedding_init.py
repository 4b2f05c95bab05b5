"""Initial table rows in plain PyTorch: the specification of ops.embedding_init."""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def _philox(key: int, low: Tensor, high: Tensor) -> Tensor:
    """Returns 4 random words of 32 bits for each counter (low, high), [n, 4] int64.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
    """
    k0, k1 = key & _WORD, key >> 32 & _WORD
    x0, x1, x2, x3 = low & _WORD, low >> 32 & _WORD, high & _WORD, high >> 32 & _WORD
    for _ in range(10):
        a, b = 0xD2511F53 * x0, 0xCD9E8D57 * x2  # wraps at 64 bits, which keeps the bits
        x0, x1, x2, x3 = b >> 32 & _WORD ^ x1 ^ k0, b & _WORD, a >> 32 & _WORD ^ x3 ^ k1, a & _WORD
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return torch.stack([x0, x1, x2, x3], 1)


def embedding_init(weight: Tensor, feature_ids: Tensor, *, key: int, std: float) -> None:
    """Fills `weight` [R, D] with N(0, std^2); a row depends on (key, its feature id) alone."""
    rows, dim = weight.shape
    blocks = -(-dim // 4)
    words = _philox(
        key, feature_ids.repeat_interleave(blocks), torch.arange(blocks).repeat(rows)
    ).reshape(rows, 4 * blocks)[:, :dim]
    uniform = (words.double() + 0.5) / 2**32
    weight.copy_(std * torch.special.ndtri(uniform))
