"""torch-rechub's and DeepCTR-Torch's ESMM on what they take: each field's last id, no values.

Both look every field of every impression up and keep dense gradients and a dense Adam for the
whole tables, as their trainers do. Their steps are taken here without their own loaders, metrics
and progress bars, on tensors that are ready: what is timed favours them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from esmm_fast import Dataset, Schema

from .training_script import Batches, Column

DIM, HIDDEN = 18, (360, 200, 80)


def last_rows(batches: Batches, schema: Schema) -> tuple[dict[str, Tensor], Tensor]:
    """Returns each field's last row (of its own table; 0 where the bag is empty) and labels."""
    count = len(batches.common_row)
    out = {}
    for side, fields in zip(batches.sides, (schema.common, schema.impression), strict=True):
        units = batches.common_row if fields == schema.common else np.arange(count)
        for column, field in zip(side, fields, strict=True):
            out[field.name] = torch.from_numpy(
                _last(column, units, schema.row_bases[field.table_name])
            )
    return out, torch.from_numpy(batches.labels)


def _last(column: Column, units: np.ndarray, base: int) -> np.ndarray:
    begin, end = column.ends[units], column.ends[units + 1]
    rows = np.zeros(len(units), np.int64)
    held = end > begin
    rows[held] = column.rows[end[held] - 1] - base
    return rows


def rechub_model(schema: Schema, hidden: Sequence[int] = HIDDEN) -> nn.Module:
    """Returns torch-rechub's ESMM; its outputs are pCVR, pCTR and pCTCVR, [B, 3].

    Raises ImportError where torch-rechub is not installed, as does `torch_rechub`.
    """
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import ESMM

    sides = [
        [
            SparseFeature(f.name, vocab_size=schema.table_rows[f.table_name], embed_dim=DIM)
            for f in fields
        ]
        for fields in (schema.common, schema.impression)
    ]
    tower = {"dims": list(hidden)}
    model: nn.Module = ESMM(*sides, cvr_params=tower, ctr_params=tower)
    return model


def rechub_loss(out: Tensor, labels: Tensor) -> Tensor:
    """Returns what torch-rechub's MTLTrainer minimizes for its ESMM."""
    loss = functional.binary_cross_entropy(out[:, 1], labels[:, 0])
    return loss + functional.binary_cross_entropy(out[:, 2], labels[:, 1])


def deepctr_model(
    schema: Schema, hidden: Sequence[int] = HIDDEN, l2: float = 0.0, seed: int = 1024
) -> nn.Module:
    """Returns DeepCTR-Torch's ESMM; its outputs are pCTR and pCTCVR, [B, 2].

    Raises ImportError where DeepCTR-Torch is not installed, as does `deepctr_torch`.
    """
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import ESMM

    features = [
        SparseFeat(f.name, schema.table_rows[f.table_name], embedding_dim=DIM)
        for f in (*schema.common, *schema.impression)
    ]
    model: nn.Module = ESMM(features, hidden, l2_reg_linear=0, l2_reg_embedding=l2, seed=seed)
    return model


def torch_rechub(
    dataset: Dataset, schema: Schema, ids: dict[str, np.ndarray], size: int
) -> Callable[[int], None]:
    """Returns `train(steps)` of torch-rechub's ESMM."""
    inputs, labels = last_rows(Batches(dataset, schema, ids, size, joined=True), schema)
    model = rechub_model(schema)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(at: Tensor) -> None:
        loss = rechub_loss(model({name: column[at] for name, column in inputs.items()}), labels[at])
        model.zero_grad()
        loss.backward()
        optimizer.step()

    return _steps(step, len(labels), size)


def deepctr_torch(
    dataset: Dataset, schema: Schema, ids: dict[str, np.ndarray], size: int
) -> Callable[[int], None]:
    """Returns `train(steps)` of DeepCTR-Torch's ESMM."""
    inputs, labels = last_rows(Batches(dataset, schema, ids, size, joined=True), schema)
    model = deepctr_model(schema)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    joined = torch.stack([inputs[name] for name in model.feature_index], 1).float()  # as it asks

    def step(at: Tensor) -> None:
        loss = functional.binary_cross_entropy(model(joined[at]), labels[at], reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return _steps(step, len(labels), size)


def _steps(step: Callable[[Tensor], None], count: int, size: int) -> Callable[[int], None]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    at = 0

    def train(steps: int) -> None:
        nonlocal at
        for _ in range(steps):
            if at + size > count:
                at = 0
            step(order[at : at + size])
            at += size

    return train
