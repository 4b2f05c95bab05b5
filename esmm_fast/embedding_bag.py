"""EmbeddingBag: torch.nn.EmbeddingBag with this package's pooling behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

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
    gradient, and what torch.func transforms, torch.jit, torch.fx and torch.export trace.

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
        if torch.jit.is_scripting():  # compiles this branch alone
            return self._in_torch(input, offsets, per_sample_weights)
        elif self._here(input, offsets, per_sample_weights):
            return self._pooled(input, offsets, per_sample_weights)
        else:
            return self._in_torch(input, offsets, per_sample_weights)

    def _in_torch(self, input: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        return functional.embedding_bag(
            input,
            self.weight,
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            weights,
            self.include_last_offset,
            self.padding_idx,
        )

    def _pooled(self, input: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        rows = input.reshape(-1)
        if input.dim() == 2:
            length = input.shape[1]
            offsets = torch.arange(0, rows.numel() + 1, length, device=input.device)
            if weights is not None:
                weights = weights.reshape(-1)
        else:
            assert offsets is not None
            if not self.include_last_offset:
                offsets = torch.cat([offsets, offsets.new_full((1,), rows.numel())])
        return embedding_bag(
            self.weight,
            rows.contiguous(),
            offsets.contiguous(),
            None if weights is None else weights.contiguous(),
            mean=self.mode == "mean",
            sparse=self.sparse,
        )

    def _here(self, input: Tensor, offsets: Tensor | None, weights: Tensor | None) -> bool:
        """Whether this package has a kernel for the call; torch also explains wrong arguments."""
        weight = self.weight
        if (
            self.mode not in ("sum", "mean")
            or self.max_norm is not None
            or self.scale_grad_by_freq
            or self.padding_idx is not None
            or self.embedding_dim > _LARGEST_DIM
            or type(input) is not Tensor
            or _traced()
        ):
            return False
        dense = weight.requires_grad and torch.is_grad_enabled() and not self.sparse
        if input.numel() < _FEW and not dense:
            return False
        if (
            weight.dtype not in (torch.float32, torch.float64)
            or weight.stride(1) != 1
            or input.dtype not in _INTEGERS
            or not (weight.is_cpu and input.is_cpu)
        ):
            return False
        if weights is not None and (
            (weights.dtype, weights.shape) != (weight.dtype, input.shape) or not weights.is_cpu
        ):
            return False
        if offsets is None:
            return input.dim() == 2 and input.shape[1] > 0
        return (
            input.dim() == offsets.dim() == 1
            and offsets.is_cpu
            and offsets.dtype in _INTEGERS
            and self._ends_with(input, offsets)
        )

    def _ends_with(self, input: Tensor, offsets: Tensor) -> bool:
        """Whether the last bag ends with the input; torch lets the last offset stand before."""
        if not self.include_last_offset:
            return True
        if torch.compiler.is_compiling():  # which cannot look
            return False
        return offsets.numel() > 0 and int(offsets[-1]) == input.numel()


def _traced() -> bool:
    """Whether what runs is recorded for elsewhere, or inside a transform of torch.func."""
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_exporting():
        return True
    return torch.jit.is_tracing()
