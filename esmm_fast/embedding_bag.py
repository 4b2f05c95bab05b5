"""EmbeddingBag: torch.nn.EmbeddingBag with this package's pooling behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .ops.pooled_embedding import embedding_bag

_LARGEST_DIM = 256
_FEW = 16_384  # occurrences: below it an operator's call costs more than its work saves
_INTEGERS = (torch.int32, torch.int64)


class EmbeddingBag(nn.EmbeddingBag):
    """A drop-in for torch.nn.EmbeddingBag: the same arguments, state_dict, gradients and results.

    Sums and means of float32 and float64 rows on the CPU run here, in parallel forward and backward
    and with the same bits for any number of threads. What this package has no kernel for (`mode`
    "max", `max_norm`, `scale_grad_by_freq`, `padding_idx`, other dtypes and devices, D above 256)
    runs in torch as before, and so do calls of less than 16,384 occurrences without a dense
    gradient.

    Unlike torch's, weighted means are allowed: sum of weights[n] * row[n] over the number of
    occurrences. A row outside the table raises IndexError with its place.

    >>> bag = EmbeddingBag(3, 2, mode="sum", include_last_offset=True)
    >>> with torch.no_grad():
    ...     _ = bag.weight.copy_(torch.tensor([[0., 0.], [1., 2.], [10., 20.]]))
    >>> bag(torch.tensor([1, 2, 2]), torch.tensor([0, 2, 2, 3])).tolist()
    [[11.0, 22.0], [0.0, 0.0], [10.0, 20.0]]
    """

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Returns the pooled bags, [bags, D]; the arguments are those of torch.nn.EmbeddingBag."""
        if not self._here(input, offsets, per_sample_weights):
            return super().forward(input, offsets, per_sample_weights)
        rows = input.reshape(-1)
        if input.dim() == 2:
            length = input.shape[1]
            offsets = torch.arange(0, rows.numel() + 1, length, device=input.device)
            if per_sample_weights is not None:
                per_sample_weights = per_sample_weights.reshape(-1)
        else:
            assert offsets is not None
            if not self.include_last_offset:
                offsets = torch.cat([offsets, offsets.new_full((1,), rows.numel())])
        return embedding_bag(
            self.weight,
            rows.contiguous(),
            offsets.contiguous(),
            None if per_sample_weights is None else per_sample_weights.contiguous(),
            mean=self.mode == "mean",
            sparse=self.sparse,
        )

    def _here(self, input: Tensor, offsets: Tensor | None, weights: Tensor | None) -> bool:
        """Whether this package has a kernel for the call; torch also explains wrong arguments."""
        if input.numel() < _FEW and (
            self.sparse or not self.weight.requires_grad or not torch.is_grad_enabled()
        ):
            return False
        if (
            self.mode == "max"
            or self.max_norm is not None
            or self.scale_grad_by_freq
            or self.padding_idx is not None
            or self.embedding_dim > _LARGEST_DIM
        ):
            return False
        tensors = [t for t in (self.weight, input, offsets, weights) if t is not None]
        return (
            self.weight.dtype in (torch.float32, torch.float64)
            and self.weight.stride(1) == 1
            and all(t.device.type == "cpu" for t in tensors)
            and input.dtype in _INTEGERS
            and (
                weights is None
                or (weights.dtype, weights.shape) == (self.weight.dtype, input.shape)
            )
            and (
                (input.dim() == 2 and offsets is None and input.shape[1] > 0)
                or (
                    input.dim() == 1
                    and offsets is not None
                    and offsets.dtype in _INTEGERS
                    and self._ends_with(input, offsets)
                )
            )
        )

    def _ends_with(self, input: Tensor, offsets: Tensor) -> bool:
        """Whether the last bag ends with the input; torch lets the last offset stand before."""
        return not self.include_last_offset or (
            offsets.numel() > 0 and int(offsets[-1]) == input.numel()
        )
