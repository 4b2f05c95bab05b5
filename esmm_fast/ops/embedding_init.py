"""embedding_init: initial table rows that depend on the seed and the feature id alone."""

import torch
from torch import Tensor

from .._library import bumps_version, operators


@torch.library.register_fake("esmm_fast::embedding_init")
def _(weight: Tensor, feature_ids: Tensor, key: int, std: float) -> None:
    return None


bumps_version("embedding_init")


def embedding_init(
    weight: Tensor,  # [R, D], rows at any stride; written
    feature_ids: Tensor,  # [R] int64
    *,
    key: int,
    std: float,
) -> None:
    """Fills `weight` with N(0, std^2); a row depends on (key, its feature id) alone.

    The same bits on every machine, CPU or CUDA, for any order or number of rows and any number of
    threads.

    Args:
        weight: [R, D] float32 or float64.
        feature_ids: [R] int64; ids from 2^63 on as the negative number with the same bits.
        key: 64 bits that stand for the seed and the table.
        std: Standard deviation, at least 0.

    >>> a, b = torch.empty(2, 3), torch.empty(2, 3)
    >>> embedding_init(a, torch.tensor([10, 20]), key=1, std=0.01)
    >>> embedding_init(b, torch.tensor([20, 30]), key=1, std=0.01)
    >>> torch.equal(a[1], b[0]), torch.equal(a[0], b[1])
    (True, False)
    """
    operators.embedding_init(weight, feature_ids, key, std)
