"""torch-rechub's and DeepCTR-Torch's ESMM on what they take: each field's last id, no values.

Both look every field of every impression up and keep dense gradients and a dense Adam for the
whole tables, as their trainers do. Their steps are taken here without their own loaders, metrics
and progress bars, on tensors that are ready: what is timed favours them.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from esmm_fast import Dataset, Schema

from .training_script import Batches, Column

DIM, HIDDEN = 18, (360, 200, 80)


def last_rows(batches: Batches, schema: Schema) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
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


def torch_rechub(
    dataset: Dataset, schema: Schema, ids: dict[str, np.ndarray], size: int
) -> Callable[[int], None]:
    """Raises ImportError where torch-rechub is not installed."""
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import ESMM

    inputs, labels = last_rows(Batches(dataset, schema, ids, size, joined=True), schema)
    sides = [
        [
            SparseFeature(f.name, vocab_size=schema.table_rows[f.table_name], embed_dim=DIM)
            for f in fields
        ]
        for fields in (schema.common, schema.impression)
    ]
    tower = {"dims": list(HIDDEN)}
    model = ESMM(*sides, cvr_params=tower, ctr_params=tower)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(at: torch.Tensor) -> None:
        out = model({name: column[at] for name, column in inputs.items()})
        own = labels[at]
        loss = functional.binary_cross_entropy(out[:, 1], own[:, 0])
        loss = loss + functional.binary_cross_entropy(out[:, 2], own[:, 1])
        model.zero_grad()
        loss.backward()
        optimizer.step()

    return _steps(step, len(labels), size)


def deepctr_torch(
    dataset: Dataset, schema: Schema, ids: dict[str, np.ndarray], size: int
) -> Callable[[int], None]:
    """Raises ImportError where DeepCTR-Torch is not installed."""
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import ESMM

    inputs, labels = last_rows(Batches(dataset, schema, ids, size, joined=True), schema)
    features = [
        SparseFeat(f.name, schema.table_rows[f.table_name], embedding_dim=DIM)
        for f in (*schema.common, *schema.impression)
    ]
    model = ESMM(
        features, tower_dnn_hidden_units=HIDDEN, l2_reg_embedding=0, l2_reg_linear=0, l2_reg_dnn=0
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    joined = torch.stack([inputs[name] for name in model.feature_index], 1).float()  # as it asks

    def step(at: torch.Tensor) -> None:
        out = model(joined[at])
        loss = functional.binary_cross_entropy(out, labels[at], reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return _steps(step, len(labels), size)


def _steps(step: Callable[[torch.Tensor], None], count: int, size: int) -> Callable[[int], None]:
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
