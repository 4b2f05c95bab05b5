"""Two processes: ordinary gradients train as one process does; fused and sparse ones refuse."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from esmm_fast import ESMM, Batch, EmbeddingBag, Field, Schema
from esmm_fast.optim import LazyAdam

SCHEMA = Schema(
    (Field("user", "common", multi=True, rows=9), Field("item", "impression", multi=True, rows=7))
)


WEIGHT = torch.arange(12.0).reshape(4, 3)


def batch(begin: int, end: int) -> Batch:
    """Impressions [begin, end) of four, each with a common row of its own."""
    count, here = end - begin, torch.arange(begin, end)
    offsets = torch.arange(count + 1)
    return Batch.from_bags(
        {"user": (here + 1, offsets, None), "item": (here % 3 + 2, offsets, None)},
        schema=SCHEMA,
        common_of_impression=torch.arange(count),
        labels=torch.stack([here % 2, (here % 2) * (here % 3 == 0)], 1).float(),
    )


def gradients(model: torch.nn.Module, part: Batch) -> dict[str, torch.Tensor]:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    inner.loss(model(part), part).backward()
    return {name: p.grad.clone() for name, p in inner.named_parameters() if p.grad is not None}


def process(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ESMM(SCHEMA, dim=3, hidden=(4,))
    found = gradients(DistributedDataParallel(model), batch(2 * rank, 2 * rank + 2))
    if rank == 0:
        torch.save(found, Path(folder) / "gradients.pt")
    fused = ESMM(SCHEMA, dim=3, hidden=(4,))
    optimizer = LazyAdam(fused)
    gradients(fused, batch(0, 2))
    with pytest.raises(RuntimeError, match="LazyAdam updates tables with the gradient of its own"):
        optimizer.step()
    sparse = ESMM(SCHEMA, dim=3, hidden=(4,), sparse=True)
    parallel = DistributedDataParallel(sparse)
    with pytest.raises(NotImplementedError, match="expected sparse=False inside DistributedData"):
        parallel(batch(0, 2))
    gradients(sparse, batch(0, 2))  # alone it goes on
    bag = DistributedDataParallel(EmbeddingBag.from_pretrained(WEIGHT, freeze=False, sparse=True))
    bag(torch.tensor([[1, 2], [rank, 2]])).sum().backward()
    found = bag.module.weight.grad
    assert found.is_sparse
    if rank == 0:
        torch.save(found.to_dense(), Path(folder) / "bag.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads can abort a process whose interpreter is torn down under them


@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(process, (port, str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    alone = gradients(ESMM(SCHEMA, dim=3, hidden=(4,)), batch(0, 4))
    together = torch.load(tmp_path / "gradients.pt")
    assert alone.keys() == together.keys() and len(alone) > 3
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, atol=1e-6, rtol=1e-5)
    plain = torch.nn.EmbeddingBag.from_pretrained(WEIGHT, freeze=False)
    plain(torch.tensor([[1, 2], [0, 2], [1, 2], [1, 2]])).sum().backward()
    torch.testing.assert_close(torch.load(tmp_path / "bag.pt"), plain.weight.grad / 2)
