"""Embedding steps (forward, backward, update) of nn.EmbeddingBag and FBGEMM, at their best.

A step is a function of a batch's number. Deduplicated: the bags of common rows are pooled once,
then index_select and cat make the towers' input [B, F * D], as one does by hand. Index tensors are
ready in the dtype that the peer likes best; nothing else is made ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from synth_log import DIM, Inputs
from torch import Tensor, nn

Step = Callable[[int], object]


def side_gradients(inputs: Inputs, dim: int = DIM) -> tuple[Tensor, Tensor]:
    """Returns a gradient for each side's pooled fields, [U, Fc * D] and [B, Fs * D]."""
    generator = torch.Generator().manual_seed(len(inputs.rows))
    common, impression = len(inputs.schema.common), len(inputs.schema.impression)
    sizes = (inputs.batch.common, common * dim), (len(inputs.batch.labels), impression * dim)
    first, second = (torch.randn(size, generator=generator).mul_(1e-3) for size in sizes)
    return first, second


def joined_gradient(inputs: Inputs, dim: int = DIM) -> Tensor:
    """Returns a gradient for the towers' input, [B, F * D]."""
    generator = torch.Generator().manual_seed(len(inputs.rows))
    size = len(inputs.batch.labels), len(inputs.schema.fields) * dim
    return torch.randn(size, generator=generator).mul_(1e-3)


def _bag(rows: int) -> nn.EmbeddingBag:
    weight = torch.empty(rows, DIM).normal_(0, 0.01)
    return nn.EmbeddingBag(
        rows, DIM, mode="sum", sparse=True, include_last_offset=True, _weight=weight
    )


def _concatenated(common: Tensor, impression: Tensor, which: Tensor) -> Tensor:
    return torch.cat([common.index_select(0, which), impression], 1)


class OneTable:
    """Every field in one nn.EmbeddingBag, updated by SparseAdam."""

    def __init__(self, rows: int) -> None:
        self.bag = _bag(rows)
        self.optimizer = torch.optim.SparseAdam(self.bag.parameters())

    def _update(self, out: Tensor, grad: Tensor) -> None:
        out.backward(grad)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def deduplicated(self, inputs: Sequence[Inputs]) -> Step:
        """One call for the bags of both sides, cut afterwards."""
        grads = [joined_gradient(each) for each in inputs]

        def step(i: int) -> None:
            x = inputs[i]
            out = self.bag(x.rows, x.offsets, per_sample_weights=x.weights)
            split = x.batch.common * len(x.schema.common)
            common, impression = out[:split], out[split:]
            common = common.reshape(x.batch.common, -1)
            impression = impression.reshape(len(x.batch.labels), -1)
            which = x.batch.common_of_impression
            self._update(_concatenated(common, impression, which), grads[i])

        return step

    def bags(self, lists: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> Step:
        """Bags as they are: joined rows."""
        grads = [torch.randn(len(offsets) - 1, DIM).mul_(1e-3) for _, offsets, _ in lists]

        def step(i: int) -> None:
            rows, offsets, weights = lists[i]
            self._update(self.bag(rows, offsets, per_sample_weights=weights), grads[i])

        return step


class TablePerField:
    """One nn.EmbeddingBag per field, updated by SparseAdam."""

    def __init__(self, table_rows: Sequence[int]) -> None:
        self.bags = [_bag(rows) for rows in table_rows]
        self.optimizer = torch.optim.SparseAdam([bag.weight for bag in self.bags])

    def deduplicated(self, inputs: Sequence[Inputs]) -> Step:
        grads = [joined_gradient(each) for each in inputs]
        fields = [each.fields() for each in inputs]

        def step(i: int) -> None:
            x = inputs[i]
            pooled = [
                bag(rows, offsets, per_sample_weights=weights)
                for bag, (rows, offsets, weights) in zip(self.bags, fields[i], strict=True)
            ]
            split = len(x.schema.common)
            common, impression = torch.cat(pooled[:split], 1), torch.cat(pooled[split:], 1)
            out = _concatenated(common, impression, x.batch.common_of_impression)
            out.backward(grads[i])
            self.optimizer.step()
            self.optimizer.zero_grad()

        return step


FBGEMM_DIM = 20
"""The least multiple of 4 (FBGEMM refuses others) that holds D = 18."""


class Fbgemm:
    """FBGEMM's table-batched embedding bags with exact row-wise Adagrad, one per side.

    It has no Adam on the CPU. The tables of a side are fields of one operator; bounds checks off.
    """

    def __init__(self, common_rows: Sequence[int], impression_rows: Sequence[int]) -> None:
        import fbgemm_gpu  # noqa: F401  # registers its operators
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            EmbeddingLocation,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        def bags(rows: Sequence[int]) -> Any:
            return SplitTableBatchedEmbeddingBagsCodegen(
                [(n, FBGEMM_DIM, EmbeddingLocation.HOST, ComputeDevice.CPU) for n in rows],
                optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
                learning_rate=1e-3,
                eps=1e-10,
                bounds_check_mode=BoundsCheckMode.NONE,
            )

        self.sides = [bags(common_rows), bags(impression_rows)]
        for side in self.sides:
            for weight in side.split_embedding_weights():
                weight.normal_(0, 0.01)

    @staticmethod
    def _table_major(
        fields: Sequence[tuple[Tensor, Tensor, Tensor]], weighted: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        rows = torch.cat([f[0] for f in fields])
        lengths = torch.cat([f[1].diff() for f in fields])
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return rows, offsets, torch.cat([f[2] for f in fields]) if weighted else None

    def deduplicated(self, inputs: Sequence[Inputs], weighted: bool = True) -> Step:
        grads = [joined_gradient(each, FBGEMM_DIM) for each in inputs]
        sides = []
        for each in inputs:
            fields, split = each.fields(), len(each.schema.common)
            cut = fields[:split], fields[split:]
            sides.append([self._table_major(part, weighted) for part in cut])

        def step(i: int) -> None:
            pooled = [
                side(rows, offsets, weights)
                for side, (rows, offsets, weights) in zip(self.sides, sides[i], strict=True)
            ]
            out = _concatenated(*pooled, inputs[i].batch.common_of_impression)
            out.backward(grads[i])

        return step

    def joined(self, inputs: Sequence[Inputs], weighted: bool) -> Step:
        """Every impression with its own copy of the common row's bags: U = B, no index_select."""
        sides, grads = [], []
        for each in inputs:
            common, impression = len(each.schema.common), len(each.schema.impression)
            batch = each.batch
            which = batch.common_of_impression.long()
            fields = []
            for f, (rows, offsets, weights) in enumerate(each.fields()):
                if f < common:
                    at = offsets.diff()[which]
                    begins = offsets[:-1][which].repeat_interleave(at)
                    ends = torch.cat([at.new_zeros(1), at.cumsum(0)])
                    within = torch.arange(int(ends[-1])) - ends[:-1].repeat_interleave(at)
                    rows, offsets, weights = rows[begins + within], ends, weights[begins + within]
                fields.append((rows, offsets, weights))
            cut = fields[:common], fields[common:]
            sides.append([self._table_major(part, weighted) for part in cut])
            widths = common * FBGEMM_DIM, impression * FBGEMM_DIM
            grads.append([torch.randn(len(batch.labels), w).mul_(1e-3) for w in widths])

        def step(i: int) -> None:
            pooled = [
                side(rows, offsets, weights)
                for side, (rows, offsets, weights) in zip(self.sides, sides[i], strict=True)
            ]
            torch.autograd.backward(pooled, grads[i])

        return step


def fbgemm_reason() -> str | None:
    """Returns why FBGEMM cannot take part, None where it can.

    fbgemm-gpu-cpu 1.8.0 loads beside torch 2.13 (``pip install --no-deps``); 1.9.0 does not.
    """
    try:
        import fbgemm_gpu  # noqa: F401
    except (ImportError, OSError) as error:
        return f"fbgemm-gpu-cpu is not installed or does not load beside torch: {error}"
    return None
