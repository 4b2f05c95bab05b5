"""ESMM in a user's own loop with ordinary gradients: torch's optimizers, and what torch adds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esmm_fast import ESMM, Batch, Field, Schema
from esmm_fast.optim import LazyAdam
from esmm_fast.train import evaluate

SCHEMA = Schema(
    (
        Field("user", "common", rows=30),
        Field("history", "common", table="item", rows=40, multi=True, weighted=True),
        Field("item", rows=40),
        Field("tags", rows=12, multi=True),
    ),
    dense=2,
)
NAMES = [f.name for f in SCHEMA.fields]
IMPRESSIONS, COMMON = 16, 5


class Twin(nn.Module):
    """The same model of torch's own layers; it sees a common row once per impression."""

    def __init__(self, model: ESMM, sparse: bool = False) -> None:
        super().__init__()
        rows = [SCHEMA.table_rows[table] for table in SCHEMA.tables]
        parts = model.tables.weight.detach().clone().split(rows)
        self.tables = nn.ModuleDict(
            {
                table: nn.EmbeddingBag(*part.shape, mode="sum", sparse=sparse, _weight=part)
                for table, part in zip(SCHEMA.tables, parts, strict=True)
            }
        )
        self.towers = nn.ModuleList(nn.Sequential(*map(plain, t)) for t in model.towers.values())

    def loss(self, batch: dict[str, Any]) -> Tensor:
        pooled = []
        for field in SCHEMA.fields:
            bags, weights = batch[field.name], batch["values"] if field.weighted else None
            units = batch["which"] if field.side == "common" else range(IMPRESSIONS)
            rows = torch.cat([bags[u] for u in units])
            lengths = torch.tensor([len(bags[u]) for u in units])
            values = None if weights is None else torch.cat([weights[u] for u in units])
            pooled.append(self.tables[field.table_name](rows, lengths.cumsum(0) - lengths, values))
        x = torch.cat([*pooled, batch["dense"]], 1)
        pctr, pcvr = (tower(x).squeeze(1).sigmoid() for tower in self.towers)
        click, conversion = batch["labels"].unbind(1)
        bce = nn.functional.binary_cross_entropy
        loss = bce(pctr, click, batch["weights"], reduction="sum")
        loss = loss + bce(pctr * pcvr, conversion, batch["weights"], reduction="sum")
        return loss / batch["weights"].sum()


def plain(layer: nn.Module) -> nn.Module:
    if not hasattr(layer, "weight"):
        return copy.deepcopy(layer)
    linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[0], dtype=torch.float64)
    linear.load_state_dict(layer.state_dict())
    return linear


def random_batch(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    batch: dict[str, Any] = {}
    for field in SCHEMA.fields:
        count = COMMON if field.side == "common" else IMPRESSIONS
        least, most = (0, 4) if field.multi else (1, 2)
        lengths = torch.randint(least, most, (count,), generator=generator).tolist()
        rows = SCHEMA.table_rows[field.table_name]
        batch[field.name] = [torch.randint(rows, (n,), generator=generator) for n in lengths]
    random = torch.rand(IMPRESSIONS, 8, generator=generator, dtype=torch.float32).double()
    batch["values"] = [(bag % 3 + 1).double() / 2 for bag in batch["history"]]
    batch["which"] = torch.randint(COMMON, (IMPRESSIONS,), generator=generator).tolist()
    batch["labels"] = (random[:, :2] < 0.6).double().cumprod(1)
    batch["dense"] = random[:, 2:4]
    batch["weights"] = (random[:, 4] * 8).floor() / 8 + 0.5  # exact in a batch's float32
    return batch


def ours(batch: dict[str, Any], begin: int = 0, end: int = IMPRESSIONS) -> Batch:
    """Returns impressions [begin, end) of a random batch."""
    bags = {
        f.name: batch[f.name] if f.side == "common" else batch[f.name][begin:end]
        for f in SCHEMA.fields
    }
    return Batch.from_bags(
        {**bags, "history": (batch["history"], None, batch["values"])},
        batch["labels"][begin:end],
        schema=SCHEMA,
        common_of_impression=batch["which"][begin:end],
        dense=batch["dense"][begin:end],
        impression_weights=batch["weights"][begin:end],
    )


def models(sparse: bool = False) -> tuple[ESMM, Twin]:
    model = ESMM(SCHEMA, 6, (9, 5), init_std=0.3, sparse=sparse).double()
    return model, Twin(model, sparse)


def loss_of(model: Any, batch: dict[str, Any]) -> Tensor:
    if isinstance(model, Twin):
        return model.loss(batch)
    part = ours(batch)
    return model.loss(model(part), part)


def run(model: Any, *optimizers: Any, steps: range = range(6)) -> list[float]:
    losses = []
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = loss_of(model, random_batch(step))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


def assert_equal_training(model: ESMM, twin: Twin, found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.cat([table.weight for table in twin.tables.values()])
    torch.testing.assert_close(model.tables.weight, weights, rtol=1e-6, atol=1e-8)


DENSE: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (torch.optim.Adam, {"lr": 0.02}),
    (torch.optim.Adam, {"lr": 0.02, "amsgrad": True, "foreach": True}),
    (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}),
    (torch.optim.AdamW, {"lr": 0.02, "fused": True}),
    (torch.optim.Adagrad, {"lr": 0.05}),
    (torch.optim.RMSprop, {"lr": 0.01, "centered": True}),
    (torch.optim.NAdam, {"lr": 0.02}),
    (torch.optim.RAdam, {"lr": 0.02}),
]


@pytest.mark.parametrize(("kind", "options"), DENSE)
def test_optimizers_of_dense_gradients(kind: Any, options: dict[str, Any]) -> None:
    model, twin = models()
    found, expected = (run(m, kind(m.parameters(), **options)) for m in (model, twin))
    assert_equal_training(model, twin, found, expected)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SparseAdam, {"lr": 0.02}),
        (torch.optim.SGD, {"lr": 0.3}),
        (torch.optim.Adagrad, {"lr": 0.05}),
    ],
)
def test_optimizers_of_sparse_gradients(kind: Any, options: dict[str, Any]) -> None:
    model, twin = models(sparse=True)
    losses = []
    for m, towers in ((model, model.tower_parameters()), (twin, twin.towers.parameters())):
        tables = kind(list(m.tables.parameters()), **options)
        losses.append(run(m, tables, torch.optim.Adam(towers, lr=0.02)))
    assert_equal_training(model, twin, *losses)
    grad = model.tables.weight.grad
    assert grad is not None and grad.is_sparse
    rows = grad._indices()[0]  # each once, though torch drops that it is coalesced
    assert torch.equal(rows, rows.unique())
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients"):
        run(model, torch.optim.Adam(model.parameters()))


@pytest.mark.parametrize("shared", [True, False])
def test_sparse_reaches_every_table(shared: bool) -> None:
    model = ESMM(SCHEMA, 4, (5,), shared, sparse=True)
    assert all(tables.sparse for tables in model.embedding_tables())
    loss_of(model, random_batch(0)).backward()
    assert all(t.weight.grad.is_sparse for t in model.embedding_tables())  # type: ignore[union-attr]


def test_sparse_gradients_compiled_and_scaled() -> None:
    (model, _), batch = models(sparse=True), ours(random_batch(0))
    model.loss(model(batch), batch).backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    out = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")(batch)
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.scale(model.loss(out, batch)).backward()
    scaler.unscale_(optimizer)
    for p, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_lbfgs() -> None:
    model, twin = models()
    losses = []
    for m in (model, twin):
        optimizer = torch.optim.LBFGS(m.parameters(), lr=0.5, max_iter=4)

        def closure(m: Any = m, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(m, random_batch(0))
            loss.backward()
            return loss

        losses.append([float(optimizer.step(closure).detach()) for _ in range(3)])
    assert losses[0][-1] < 0.9 * losses[0][0]
    torch.testing.assert_close(*losses, rtol=1e-7, atol=1e-7)


def test_gradients_of_parts_add_up() -> None:
    whole, parts = models()[0], models()[0]
    batch = random_batch(0)
    loss_of(whole, batch).backward()
    for begin in (0, IMPRESSIONS // 2):
        part = ours(batch, begin, begin + IMPRESSIONS // 2)
        share = batch["weights"][begin : begin + IMPRESSIONS // 2].sum() / batch["weights"].sum()
        (parts.loss(parts(part), part) * share).backward()
    for a, b in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_schedule_clipping_and_scaler_on_ordinary_tables() -> None:
    model, twin = models()
    losses: list[list[float]] = []
    for m in (model, twin):
        optimizer = torch.optim.Adam(m.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        losses.append([])
        for step in range(6):
            loss = loss_of(m, random_batch(step))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(m.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            schedule.step()
            losses[-1].append(loss.item())
    assert_equal_training(model, twin, *losses)


def test_two_optimizers_of_parts_and_a_frozen_table() -> None:
    model, twin = models()
    for m in (model, twin):
        m.tables.requires_grad_(False)
    before = model.tables.weight.clone()
    found = run(model, torch.optim.Adam(model.tower_parameters(), lr=0.02))
    expected = run(twin, torch.optim.Adam(twin.towers.parameters(), lr=0.02))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(model.tables.weight, before)


def test_averaged_weights_and_evaluation() -> None:
    model, _ = models()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    weights = []
    for step in range(3):
        run(model, optimizer, steps=range(step, step + 1))
        averaged.update_parameters(model)
        weights.append(model.tables.weight.detach().clone())
    mean = torch.stack(weights).mean(0)
    torch.testing.assert_close(averaged.module.tables.weight.detach(), mean)  # type: ignore[union-attr]
    found = evaluate(averaged.module, [ours(random_batch(s)) for s in range(3)])  # type: ignore[arg-type]
    assert 0 <= found["ctr"]["auc"] <= 1


# -- what torch adds: works, or says why not ------------------------------------------------------


def calls(model: ESMM) -> dict[str, Callable[[], Any]]:
    batch = ours(random_batch(0))
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return model.loss(torch.func.functional_call(model, parameters, (batch,)), batch)

    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(batch).logits + x

    stacked, _ = torch.func.stack_module_state([Closed(), Closed()])
    return {
        "grad": lambda: torch.func.grad(loss)(parameters),
        "vjp": lambda: torch.func.vjp(loss, parameters),
        "jvp": lambda: torch.func.jvp(loss, (parameters,), (parameters,)),
        "hessian": lambda: torch.func.hessian(loss)(parameters),
        "vmap": lambda: torch.func.vmap(torch.func.grad(loss))(
            {name.removeprefix("model."): p for name, p in stacked.items()}
        ),
        "script": lambda: torch.jit.script(model),
        "trace": lambda: torch.jit.trace(Closed(), (torch.zeros(1),)),
    }


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("grad", "pooled_embedding: expected no transform of torch.func, got grad"),
        ("vjp", "pooled_embedding: expected no transform of torch.func, got grad"),
        ("jvp", "pooled_embedding: expected no transform of torch.func, got jvp"),
        ("hessian", "pooled_embedding: expected no transform of torch.func, got"),
        ("vmap", "pooled_embedding: expected no transform of torch.func, got grad"),
        ("script", "EmbeddingTables: expected no torch.jit, whose graphs hold no batch"),
        ("trace", "EmbeddingTables: expected no torch.jit, whose graphs hold no batch"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_has_no_place_for_a_batch(name: str, message: str, fused: bool) -> None:
    model, _ = models()
    optimizer = LazyAdam(model) if fused else None
    with pytest.raises(NotImplementedError, match=message):
        calls(model)[name]()
    run(model, optimizer or torch.optim.Adam(model.parameters()))  # nothing is left behind


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_vmap_over_models_predicts() -> None:
    several = [ESMM(SCHEMA, 4, (5,), seed=seed) for seed in range(3)]
    batch = ours(random_batch(0))
    stacked, _ = torch.func.stack_module_state(several)  # type: ignore[arg-type]

    def logits(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(several[0], parameters, (batch,)).logits

    found = torch.func.vmap(logits)(stacked)
    torch.testing.assert_close(found, torch.stack([m(batch).logits for m in several]))


def test_second_derivatives_are_refused() -> None:
    model, _ = models()
    loss = loss_of(model, random_batch(0))
    with pytest.raises(RuntimeError, match="product_loss: expected a first derivative, got create"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    out = model.tables(ours(random_batch(0)))[1].square().sum()
    (grad,) = torch.autograd.grad(out, model.tables.weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not implemented"):
        grad.sum().backward()


def test_half_tables_are_refused() -> None:
    model, _ = models()
    with pytest.raises(ValueError, match="weight: expected dtype float32 or float64, got bfloat16"):
        model.bfloat16()(ours(random_batch(0)))
