"""ESMM with esmm_fast on a Parquet table of lists: python after.py TABLE.parquet"""

import sys
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

import esmm_fast as ef

FIELDS = {"user": 2_000, "history": 5_000, "item": 5_000, "tags": 300}  # column: ids are below this
BATCH = 256


def train(
    model: ef.ESMM, table: pa.Table, *optimizers: torch.optim.Optimizer, seed: int = 0
) -> Iterator[float]:
    """Yields the loss of each step of an epoch."""
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    for picked in order.split(BATCH):
        rows = table.take(picked.numpy())
        click, conversion = rows["click"].to_numpy(), rows["conversion"].to_numpy()
        labels = np.stack([click, click * conversion], 1)
        batch = ef.Batch.from_bags({name: rows[name] for name in FIELDS}, labels, schema=FIELDS)
        loss = model.loss(model(batch), batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        yield loss.item()


if __name__ == "__main__":
    model = ef.ESMM(FIELDS, hidden=(200, 80))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step, loss in enumerate(train(model, pa.parquet.read_table(sys.argv[1]), optimizer)):
        print(f"step {step}: loss {loss:.5f}")
