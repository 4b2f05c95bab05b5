"""ESMM in plain PyTorch on a Parquet table of lists: python before.py TABLE.parquet"""

import sys
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

FIELDS = {"user": 2_000, "history": 5_000, "item": 5_000, "tags": 300}  # column: ids are below this
BATCH = 256


def tower(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 200), nn.ReLU(), nn.Linear(200, 80), nn.ReLU(), nn.Linear(80, 1)
    )


class ESMM(nn.Module):
    def __init__(self, dim: int = 18) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {name: nn.EmbeddingBag(rows, dim, mode="sum") for name, rows in FIELDS.items()}
        )
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=0.01)
        self.ctr, self.cvr = tower(len(FIELDS) * dim), tower(len(FIELDS) * dim)

    def forward(self, bags: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        pooled = torch.cat([table(*bags[name]) for name, table in self.tables.items()], 1)
        return self.ctr(pooled).squeeze(1).sigmoid(), self.cvr(pooled).squeeze(1).sigmoid()


def bags_of(column: pa.ChunkedArray) -> tuple[Tensor, Tensor]:
    lists = column.combine_chunks()
    lengths = torch.tensor(lists.value_lengths().to_numpy())
    return torch.tensor(lists.flatten().to_numpy()), lengths.cumsum(0) - lengths


def train(
    model: ESMM, table: pa.Table, *optimizers: torch.optim.Optimizer, seed: int = 0
) -> Iterator[float]:
    """Yields the loss of each step of an epoch."""
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    for picked in order.split(BATCH):
        rows = table.take(picked.numpy())
        click = torch.tensor(rows["click"].to_numpy(), dtype=torch.float32)
        conversion = torch.tensor(rows["conversion"].to_numpy(), dtype=torch.float32)
        pctr, pcvr = model({name: bags_of(rows[name]) for name in FIELDS})
        loss = binary_cross_entropy(pctr, click)
        loss = loss + binary_cross_entropy(pctr * pcvr, click * conversion)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        yield loss.item()


if __name__ == "__main__":
    torch.manual_seed(0)
    model = ESMM()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step, loss in enumerate(train(model, pa.parquet.read_table(sys.argv[1]), optimizer)):
        print(f"step {step}: loss {loss:.5f}")
