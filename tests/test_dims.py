"""Fields with dimensions of their own: tables, every optimizer, torch's machinery, ESMM."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from table_models import SCHEMA, make_batch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from esmm_fast import ESMM, Batch, EmbeddingTables, EntireSpaceChain, Field, Schema, ops
from esmm_fast.embedding import tables_in
from esmm_fast.optim import (
    SGD,
    Adagrad,
    LazyAdam,
    LazyAdamW,
    RowwiseAdagrad,
    clip_grad_norm_,
)
from esmm_fast.run.checkpoint import load, save

DIMS = {"user": 4, "shop": 3, "item": None, "shop_of_item": 3}
DEFAULT = 6
SEVERAL = Schema(tuple(replace(f, dim=DIMS[f.name]) for f in SCHEMA.fields))
WIDTH = 4 + 3, DEFAULT + 3  # of the common rows, of the impressions


def make_tables(**options: Any) -> EmbeddingTables:
    return EmbeddingTables(SEVERAL, DEFAULT, **{"init_std": 0.3, **options})


class DimsModel(nn.Module):
    """Two layers on the pooled fields of an impression and its common row."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.tables = make_tables(**options)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.towers = nn.Sequential(nn.Linear(sum(WIDTH), 8), nn.Tanh(), nn.Linear(8, 2))
            self.towers.to(self.tables.parts[0].weight.dtype)

    def forward(self, batch: Batch) -> Tensor:
        common, impression = self.tables(batch)
        return self.towers(torch.cat([common[batch.common_of_impression.long()], impression], 1))

    def loss(self, batch: Batch) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self(batch), batch.labels)


def weights_of(model: nn.Module) -> dict[int, Tensor]:
    return {t.dim: t.weight.detach().clone() for t in tables_in(model)}


def plain_pooled(tables: EmbeddingTables, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns what tables return, field by field and bag by bag."""
    plan, sides = batch.plan, []
    bags = (plan.rows[a:b].long() for a, b in plan.offsets.unfold(0, 2, 1).tolist())
    weights = (plan.weights[a:b] for a, b in plan.offsets.unfold(0, 2, 1).tolist())  # type: ignore[index]
    for fields, count in (
        (SEVERAL.common, batch.common),
        (SEVERAL.impression, len(batch.labels)),
    ):
        rows = []
        for _ in range(count):
            row = []
            for field in fields:
                part = tables.by_dim[str(field.dim or DEFAULT)]  # type: ignore[index]
                local = next(bags) - SEVERAL.row_bases[field.table_name]
                mine = part.weight[part.schema.row_bases[field.table_name] + local]
                row.append((mine * next(weights).unsqueeze(1)).sum(0))
            rows.append(torch.cat(row))
        sides.append(torch.stack(rows))
    return sides[0], sides[1]


def test_literal() -> None:
    schema = Schema((Field("a", dim=1, rows=2), Field("b", dim=2, rows=3), Field("c", rows=2)))
    tables = EmbeddingTables(schema, 1)
    assert tables.by_dim is not None and list(tables.by_dim) == ["1", "2"]
    with torch.no_grad():
        tables.by_dim["1"].weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))  # a, then c
        tables.by_dim["2"].weight.copy_(torch.tensor([[10.0, 20], [30, 40], [50, 60]]))
    batch = Batch.from_bags(
        {"a": ([1, 0], None), "b": ([2, 0, 1], [0, 1, 3]), "c": ([1], [0, 1, 1])}, schema=schema
    )
    common, impression = tables(batch)
    assert common.shape == (0, 0)
    assert impression.tolist() == [[2, 50, 60, 4], [1, 40, 60, 0]]


@pytest.mark.parametrize(("common", "impressions"), [(3, 7), (1, 1), (0, 0), (2, 0)])
def test_forward_and_gradient_against_plain_pytorch(common: int, impressions: int) -> None:
    tables = make_tables(dtype=torch.float64)
    batch = make_batch(5, common, impressions, dtype=torch.float64)
    batch.plan.weights.requires_grad_()  # type: ignore[union-attr]
    inputs = [*tables.parameters(), batch.plan.weights]
    pooled = tables(batch)
    assert [tuple(side.shape) for side in pooled] == [(common, 7), (impressions, 9)]
    if not common * impressions:
        return
    expected = plain_pooled(tables, batch)
    torch.testing.assert_close(pooled, expected)
    factors = [torch.rand_like(side) for side in pooled]
    found, twin = (
        torch.autograd.grad(sum((f * s).sum() for f, s in zip(factors, sides, strict=True)), inputs)
        for sides in (pooled, expected)
    )
    torch.testing.assert_close(found, twin)


def test_each_dimension_has_the_bits_of_tables_of_that_dimension() -> None:
    tables, batch = make_tables(), make_batch(6)
    common, impression = tables(batch)
    for dim, columns in ((4, common[:, :4]), (3, common[:, 4:]), (3, impression[:, DEFAULT:])):
        field = "user" if dim == 4 else "shop"
        alone = EmbeddingTables(SCHEMA, dim, init_std=0.3)
        base, part = SCHEMA.row_bases[field], tables.by_dim[str(dim)]  # type: ignore[index]
        assert torch.equal(part.weight, alone.weight[base : base + SCHEMA.table_rows[field]])
        sides = [side.reshape(len(side), -1, dim) for side in alone(batch)]
        side = sides[0] if columns.shape[0] == batch.common else sides[1]
        at = {("user", True): 0, ("shop", True): 1, ("shop", False): 1}[field, side is sides[0]]
        assert torch.equal(columns, side[:, at])


def test_one_dimension_that_every_field_says_is_the_ordinary_case() -> None:
    said = Schema(tuple(replace(f, dim=5) for f in SCHEMA.fields))
    tables, twin = EmbeddingTables(said, 18), EmbeddingTables(SCHEMA, 5)
    assert tables.by_dim is None and tables.dim == 5 and list(tables.state_dict()) == ["weight"]
    assert torch.equal(tables.weight, twin.weight)
    assert torch.equal(tables(make_batch(0))[1], twin(make_batch(0))[1])


OPTIMIZERS: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {
    "sgd": (lambda m: SGD(m, lr=0.5), lambda p: torch.optim.SGD(p, lr=0.5)),
    "adagrad": (lambda m: Adagrad(m, lr=0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    "lazy_adam": (lambda m: LazyAdam(m, lr=0.1), lambda p: torch.optim.SparseAdam(p, lr=0.1)),
    "rowwise_adagrad": (lambda m: RowwiseAdagrad(m, lr=0.1), None),
    "lazy_adamw": (lambda m: LazyAdamW(m, lr=0.1, weight_decay=0.2), None),
}


def train(model: DimsModel, optimizer: Any, steps: int = 4) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model.loss(make_batch(step)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_optimizers_follow_torch(name: str) -> None:
    fused, ordinary = OPTIMIZERS[name]
    model, start = DimsModel(), DimsModel()
    train(model, fused(model))
    assert model.tables.fused and all(p.weight.grad is None for p in model.tables.parts)
    for part, before in zip(model.tables.parts, start.tables.parts, strict=True):
        assert not torch.equal(part.weight, before.weight)
    if ordinary is None:
        return
    twin = DimsModel(sparse=True)
    train(twin, ordinary(list(twin.tables.parameters())))
    for part, other in zip(model.tables.parts, twin.tables.parts, strict=True):
        torch.testing.assert_close(part.weight, other.weight, rtol=1e-5, atol=1e-6)


def test_ordinary_gradients_sparse_and_dense_are_the_same() -> None:
    dense, sparse = DimsModel(), DimsModel(sparse=True)
    for model in (dense, sparse):
        model.loss(make_batch(0)).backward()
    changed = DimsModel()
    changed.tables.sparse = True
    changed.loss(make_batch(0)).backward()
    assert all(part.weight.grad.is_sparse for part in changed.tables.parts)
    for a, b in zip(dense.tables.parts, sparse.tables.parts, strict=True):
        assert b.weight.grad.is_sparse
        assert torch.equal(a.weight.grad, b.weight.grad.to_dense())
    optimizer = torch.optim.Adam(dense.parameters())
    before = weights_of(dense)
    optimizer.step()
    assert all(not torch.equal(w, before[d]) for d, w in weights_of(dense).items())


def test_clipping_takes_the_norm_over_all_dimensions() -> None:
    plain, fused = DimsModel(), DimsModel()
    optimizer = SGD(fused, lr=1.0)
    for model in (plain, fused):
        model.loss(make_batch(0)).backward()
    expected = nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
    torch.testing.assert_close(clip_grad_norm_(fused, 0.01), expected)
    before = weights_of(fused)
    optimizer.step()
    for part in plain.tables.parts:
        after = fused.tables.by_dim[str(part.dim)].weight  # type: ignore[index]
        torch.testing.assert_close(before[part.dim] - after, part.weight.grad)
    optimizer = SGD(fused, lr=1.0, max_grad_norm=1e-3)
    fused.loss(make_batch(0)).backward()
    before = weights_of(fused)
    optimizer.step()
    moved = sum(float((w - before[d]).square().sum()) for d, w in weights_of(fused).items())
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-2)


def test_grad_scaler() -> None:
    scaled, plain = DimsModel(), DimsModel()
    optimizers = LazyAdam(scaled, lr=0.1), LazyAdam(plain, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaler.scale(scaled.loss(make_batch(0))).backward()
    scaler.unscale_(optimizers[0])
    scaler.step(optimizers[0])
    plain.loss(make_batch(0)).backward()
    optimizers[1].step()
    for dim, weight in weights_of(scaled).items():
        torch.testing.assert_close(weight, weights_of(plain)[dim])


class TestAsModule:
    @pytest.fixture(params=["ordinary", "fused"])
    def model(self, request: pytest.FixtureRequest) -> DimsModel:
        model = DimsModel()
        if request.param == "fused":
            model.optimizer = LazyAdam(model)  # type: ignore[assignment]
            model.loss(make_batch(0)).backward()
            model.optimizer.step()
        return model

    def test_names_and_repr(self, model: DimsModel) -> None:
        names = [f"by_dim.{dim}.weight" for dim in (4, 3, 6)]
        assert [name for name, _ in model.tables.named_parameters()] == names
        state = model.tables.state_dict()
        assert list(state) == names
        assert {n: tuple(t.shape) for n, t in state.items()} == {
            "by_dim.4.weight": (20, 4),
            "by_dim.3.weight": (6, 3),
            "by_dim.6.weight": (30, 6),
        }
        assert all(t.is_contiguous() for t in state.values())
        shown = repr(model.tables).splitlines()[1].strip()
        assert shown.startswith("4 fields, 3 tables, 56 rows, dim=(4, 3, 6), ")
        assert shown.endswith("fused") == model.tables.fused

    def test_state_dict_loads_into_either_mode(self, model: DimsModel) -> None:
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        ordinary, fused = DimsModel(seed=1), DimsModel(seed=2)
        optimizer = LazyAdam(fused)
        for other in (ordinary, fused):
            other.load_state_dict(saved)
            for dim, weight in weights_of(other).items():
                assert torch.equal(weight, weights_of(model)[dim])
        train(fused, optimizer, 1)

    def test_copies_are_ordinary_and_independent(self, model: DimsModel) -> None:
        before = weights_of(model)
        for copied in (copy.deepcopy(model.tables), pickle.loads(pickle.dumps(model.tables))):
            assert not copied.fused
            copied(make_batch(1))[0].sum().backward()
            torch.optim.Adam(copied.parameters()).step()
            assert not torch.equal(weights_of(copied)[4], before[4])
            assert torch.equal(weights_of(model)[4], before[4])

    def test_to_another_dtype_and_back(self, model: DimsModel) -> None:
        before = weights_of(model)
        model.double()
        model.loss(make_batch(1, dtype=torch.float64)).backward()
        if model.tables.fused:
            assert model.tables.parts[0].state("exp_avg").dtype == torch.float64
        model.float()
        assert all(torch.equal(w, before[d]) for d, w in weights_of(model).items())

    def test_zero_grad_frozen_and_unfuse(self, model: DimsModel) -> None:
        model.loss(make_batch(1)).backward()
        model.tables.zero_grad()
        for part in model.tables.parts:
            assert part.weight.grad is None and not (part.fused and part.queue.entries)
        model.tables.requires_grad_(False)
        model.loss(make_batch(1)).backward()
        for part in model.tables.parts:
            assert part.weight.grad is None and not (part.fused and part.queue.entries)
        model.tables.unfuse()
        assert not model.tables.fused
        assert all(part.weight.is_contiguous() for part in model.tables.parts)


def test_model_and_optimizer_together_stay_connected() -> None:
    model = DimsModel()
    optimizer = LazyAdam(model, lr=0.1)
    train(model, optimizer, 2)
    for other, other_optimizer in (
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ):
        train(other, other_optimizer, 2)
        again, again_optimizer = copy.deepcopy((model, optimizer))
        train(again, again_optimizer, 2)
        assert all(torch.equal(w, weights_of(again)[d]) for d, w in weights_of(other).items())


def test_checkpoint_continues_to_the_same_bits(tmp_path: Any) -> None:
    model = DimsModel()
    optimizer = LazyAdam(model, lr=0.1)
    train(model, optimizer, 2)
    path = save(tmp_path, {"net": model}, 2, training=optimizer.state_dict())
    train(model, optimizer, 3)
    other = DimsModel(seed=9)
    other_optimizer = LazyAdam(other, lr=0.1)
    saved = load(path)
    saved.load_into({"net": other})
    other_optimizer.load_state_dict(saved.training())
    train(other, other_optimizer, 3)
    assert all(torch.equal(w, weights_of(model)[d]) for d, w in weights_of(other).items())


class TestCompile:
    @pytest.fixture(autouse=True)
    def without_caches(self) -> Iterator[None]:
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.parametrize("fused", [False, True])
    def test_whole_model_without_recompiling(self, fused: bool) -> None:
        counter = CompileCounterWithBackend("aot_eager")
        loss = torch.compile(DimsModel.loss, fullgraph=True, dynamic=True, backend=counter)
        models = DimsModel(), DimsModel()
        optimizers = [
            LazyAdam(m, lr=0.1) if fused else torch.optim.Adam(m.parameters(), lr=0.01)
            for m in models
        ]
        for step in range(4):
            batch = make_batch(step, common=3 + step, impressions=7 + 2 * step)
            for model, optimizer, run in zip(
                models, optimizers, (DimsModel.loss, loss), strict=True
            ):
                optimizer.zero_grad()
                run(model, batch).backward()
                optimizer.step()
        first, second = (weights_of(model) for model in models)
        for dim, weight in first.items():
            torch.testing.assert_close(weight, second[dim], rtol=1e-3, atol=1e-5)
        assert counter.frame_count == 1

    def test_inductor_with_two_calls_in_a_step(self) -> None:
        mixing = [torch.ones(width, 4) for width in WIDTH]

        def mixed(tables: EmbeddingTables, batch: Batch) -> list[Tensor]:
            # Products alone: Inductor calls them as they are, and starts no C++ compiler.
            return [torch.mm(side, m) for side, m in zip(tables(batch), mixing, strict=True)]

        compiled = torch.compile(mixed, fullgraph=True, dynamic=True)
        tables = [make_tables() for _ in range(2)]
        optimizers = [LazyAdam(each, lr=0.1) for each in tables]
        for step in range(2):
            batches = make_batch(step, impressions=9), make_batch(step + 5)
            for each, optimizer, run in zip(tables, optimizers, (mixed, compiled), strict=True):
                outs = [*run(each, batches[0]), *run(each, batches[1])]
                sum(out.square().sum() for out in outs).backward()  # type: ignore[union-attr]
                optimizer.step()
        for a, b in zip(*(each.parts for each in tables), strict=True):
            torch.testing.assert_close(a.weight, b.weight, rtol=1e-3, atol=1e-5)


class TestESMM:
    def test_towers_read_the_sum_of_the_dimensions(self) -> None:
        model = ESMM(SEVERAL, dim=DEFAULT, hidden=(5,), dense_features=2)
        assert model.towers["ctr"].first.in_common == WIDTH[0]  # type: ignore[index]
        assert model.towers["ctr"].first.in_impression == WIDTH[1] + 2  # type: ignore[index]
        assert [n for n in model.state_dict() if n.startswith("tables")] == [
            f"tables.by_dim.{dim}.weight" for dim in (4, 3, 6)
        ]
        assert model.embedding_tables() == [model.tables]

    @pytest.mark.parametrize("shared", [True, False])
    def test_trains(self, shared: bool) -> None:
        model = ESMM(SEVERAL, dim=DEFAULT, hidden=(5,), shared_tables=shared, init_std=0.1)
        optimizer = LazyAdam(model, lr=0.05)
        towers = torch.optim.Adam(model.tower_parameters(), lr=0.05)
        assert len(optimizer.tables) == 3 * (1 if shared else 2)
        batch = make_batch(3)
        batch.labels[:, 1] *= batch.labels[:, 0]
        losses = []
        for _ in range(60):
            loss = model.loss(model(batch), batch)
            loss.backward()
            for each in (optimizer, towers):
                each.step()
                each.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.5 * losses[0]

    def test_chain_of_three(self) -> None:
        schema = replace(SEVERAL, labels=("a", "b", "c"))
        model = EntireSpaceChain(schema, ("a", "b", "c"), dim=DEFAULT, hidden=(4,))
        assert model(make_batch(0)).logits.shape == (7, 3)


class TestErrors:
    def test_fields_of_one_table_agree(self) -> None:
        fields = (Field("seen", table="item", dim=4, rows=3), Field("item", dim=8, rows=3))
        with pytest.raises(
            ValueError,
            match="table 'item': expected one dimension from all its fields, got 4 and 8",
        ):
            EmbeddingTables(Schema(fields))
        with pytest.raises(ValueError, match=r"4 and 18 \(the default, as 'item' says none\)"):
            EmbeddingTables(Schema((fields[0], Field("item", rows=3))))

    def test_dimension_out_of_range(self) -> None:
        for dim in (0, 257):
            with pytest.raises(ValueError, match=f"field 'x': dim: expected 1 to 256, got {dim}"):
                Field("x", dim=dim)

    def test_row_of_another_table(self) -> None:
        tables, batch = make_tables(), make_batch(0)
        batch.plan.rows[0] = 55
        with pytest.raises(
            IndexError,
            match=r"rows\[0\] = 55 is outside its field's table, rows \d+ to \d+: .*vocabulary",
        ):
            tables(batch)

    def test_another_number_of_bags(self) -> None:
        tables, batch = make_tables(), make_batch(0)
        batch.common = 2
        with pytest.raises(ValueError, match="batch: expected 2 common rows x 2 fields"):
            tables(batch)

    def test_unknown_table_of_feature_ids(self) -> None:
        with pytest.raises(ValueError, match="feature_ids: expected names of tables"):
            make_tables(feature_ids={"x": [1]})


def test_initial_rows_depend_on_the_feature_id() -> None:
    ids = {"item": torch.arange(29, -1, -1)}
    a, b = make_tables().by_dim["6"], make_tables(feature_ids=ids).by_dim["6"]  # type: ignore[index]
    assert torch.equal(a.weight.flip(0), b.weight)


def test_ops_are_public() -> None:
    assert ops.FieldPart(0, 1, 2, 0).end == 2
