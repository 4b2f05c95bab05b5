"""Fused optimizers of EmbeddingTables: equal to torch's, and at home in torch's machinery."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from table_models import SCHEMA, TableModel, make_batch, train
from torch import nn

from esmm_fast import EmbeddingTables
from esmm_fast.optim import SGD, Adagrad, LazyAdam, LazyAdamW, RowwiseAdagrad

ALL = [SGD, Adagrad, RowwiseAdagrad, LazyAdam, LazyAdamW]


def towers_sgd(model: TableModel) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.towers.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("ours", "torch_optimizer"),
    [
        (lambda m: LazyAdam(m, lr=0.01), lambda w: torch.optim.SparseAdam([w], lr=0.01)),
        (
            lambda m: LazyAdam(m, 0.02, (0.5, 0.9), 1e-3),
            lambda w: torch.optim.SparseAdam([w], 0.02, (0.5, 0.9), 1e-3),
        ),
        (lambda m: SGD(m, lr=0.1), lambda w: torch.optim.SGD([w], lr=0.1)),
        (
            lambda m: Adagrad(m, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.1),
            lambda w: torch.optim.Adagrad([w], 0.1, 0.1, initial_accumulator_value=0.1),
        ),
    ],
    ids=["LazyAdam", "LazyAdam with options", "SGD", "Adagrad"],
)
@pytest.mark.parametrize("dim", [3, 18])
def test_equals_torch_step_by_step(ours: Callable, torch_optimizer: Callable, dim: int) -> None:
    fused, twin = TableModel(dim), TableModel(dim, sparse=True)
    optimizers = [ours(fused), towers_sgd(fused)]
    twins = [torch_optimizer(twin.tables.weight), towers_sgd(twin)]
    for step in range(20):
        train(fused, *optimizers, steps=range(step, step + 1))
        train(twin, *twins, steps=range(step, step + 1))
        torch.testing.assert_close(fused.tables.weight, twin.tables.weight, rtol=1e-6, atol=1e-7)
    assert fused.tables.weight.grad is None
    state = optimizers[0].state_dict()["state"][0]
    for name, value in twins[0].state_dict()["state"].get(0, {}).items():
        if value is not None:  # momentum of torch.optim.SGD
            torch.testing.assert_close(
                torch.as_tensor(state[name], dtype=torch.float32), torch.as_tensor(value).float()
            )


def test_rowwise_adagrad_literal() -> None:
    tables = EmbeddingTables(SCHEMA, 2, init_std=0)
    optimizer = RowwiseAdagrad(tables, lr=0.5, eps=0)
    batch = make_batch(0)
    for _ in range(2):
        common, _ = tables(batch)
        (common[0, 0] * 3 + common[0, 1] * 4).backward()
        optimizer.step()
    first = int(batch.plan.rows[0])
    in_bag = int(batch.plan.offsets[1])
    weight = float(batch.plan.weights[:in_bag][batch.plan.rows[:in_bag] == first].sum())
    # g = weight (3, 4): mean g^2 = 12.5 weight^2
    assert float(tables.state("sum")[first]) == pytest.approx(2 * 12.5 * weight**2)
    step = 0.5 / 12.5**0.5 * (1 + 0.5**0.5)
    assert tables.weight[first].tolist() == pytest.approx([-3 * step, -4 * step], rel=1e-5)


def test_lazy_adamw_decays_touched_rows_only() -> None:
    with_decay, without = TableModel(), TableModel()
    start = with_decay.tables.weight.detach().clone()
    train(with_decay, LazyAdamW(with_decay, lr=0.1, weight_decay=0.2), steps=range(1))
    train(without, LazyAdam(without, lr=0.1), steps=range(1))
    touched = make_batch(0).plan.touched_rows.long()
    expected = without.tables.weight.detach().clone()
    expected[touched] -= 0.1 * 0.2 * start[touched]
    torch.testing.assert_close(with_decay.tables.weight.detach(), expected)


@pytest.mark.parametrize("kind", ALL)
def test_untouched_rows_and_padding_stay(kind: Any) -> None:
    model = TableModel()
    optimizer = kind(model)
    before = model.tables.table().clone()
    train(model, optimizer, steps=range(1))
    untouched = torch.ones(56, dtype=torch.bool)
    untouched[make_batch(0).plan.touched_rows.long()] = False
    assert untouched.any()
    assert torch.equal(model.tables.table()[untouched], before[untouched])
    used = 18 + sum(width for width, _ in optimizer.states(18).values())
    assert not model.tables.table()[:, used:].any()


class TestPendingGradient:
    def test_zero_grad_drops_it(self) -> None:
        model = TableModel()
        optimizer = LazyAdam(model)
        before = model.tables.weight.detach().clone()
        for drop in (optimizer.zero_grad, model.tables.zero_grad):
            model.loss(make_batch(0)).backward()
            drop()
            optimizer.step()
            assert torch.equal(model.tables.weight, before)

    def test_a_step_applies_it_once(self) -> None:
        model = TableModel()
        optimizer = LazyAdam(model)
        model.loss(make_batch(0)).backward()
        optimizer.step()
        before = model.tables.weight.detach().clone()
        optimizer.step()
        assert torch.equal(model.tables.weight, before)
        assert optimizer.state_dict()["state"][0]["step"] == 1

    @pytest.mark.parametrize("seeds", [(0, 0), (0, 1), (0, 1, 2, 0)])
    def test_backward_passes_and_lookups_before_a_step_add_up(self, seeds: tuple[int, ...]) -> None:
        passes, lookups, twin = TableModel(), TableModel(), TableModel(sparse=True)
        ours = [LazyAdam(passes, lr=0.1), LazyAdam(lookups, lr=0.1)]
        sparse_adam = torch.optim.SparseAdam([twin.tables.weight], lr=0.1)
        batches = [make_batch(seed, impressions=5 + seed) for seed in seeds]
        for _ in range(3):
            for batch in batches:
                passes.loss(batch).backward()
                twin.loss(batch).backward()
            sum(lookups.loss(batch) for batch in batches).backward()  # type: ignore[union-attr]
            for optimizer in (*ours, sparse_adam):
                optimizer.step()
                optimizer.zero_grad()
            for model in (passes, lookups):
                torch.testing.assert_close(
                    model.tables.weight, twin.tables.weight, rtol=1e-5, atol=1e-5
                )

    def test_a_retained_graph_twice(self) -> None:
        once, twice = TableModel(), TableModel()
        optimizers = [SGD(once, lr=0.1), SGD(twice, lr=0.1)]
        (2 * once.loss(make_batch(0))).backward()
        loss = twice.loss(make_batch(0))
        loss.backward(retain_graph=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(once.tables.weight, twice.tables.weight)

    def test_a_failed_step_leaves_everything_as_it_was(self) -> None:
        model = TableModel()
        optimizer = LazyAdam(model)
        batch = make_batch(0)
        batch.plan.touched_rows[-1] = 56
        model.loss(batch).backward()
        before = model.tables.table().clone()
        with pytest.raises(
            IndexError, match=r"touched_rows\[\d+\] = 56 is outside the table of 56"
        ):
            optimizer.step()
        assert torch.equal(model.tables.table(), before)
        assert optimizer.state_dict()["state"][0]["step"] == 0

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"check_finite": True}, r"grad_common\[0, 3\] = (nan|inf): expected finite numbers"),
            ({"max_grad_norm": 1.0}, r"the norm of the tables' gradient is (nan|inf): expected"),
        ],
    )
    def test_a_gradient_that_is_not_finite_is_refused(
        self, options: Any, message: str, bad: float
    ) -> None:
        model = TableModel()
        optimizer = LazyAdam(model, **options)
        common, impression = model.tables(make_batch(0))
        grad = torch.ones_like(common)
        grad[0, 3] = bad
        torch.autograd.backward((common, impression), (grad, torch.ones_like(impression)))
        before = model.tables.table().clone()
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        assert torch.equal(model.tables.table(), before)
        assert optimizer.state_dict()["state"][0]["step"] == 0
        optimizer.zero_grad()
        optimizer.step()

    def test_a_module_moves_with_what_waits(self) -> None:
        moved, twin = TableModel(), TableModel()
        optimizers = [SGD(moved, lr=0.1), SGD(twin, lr=0.1)]
        for model in (moved, twin):
            model.loss(make_batch(0)).backward()
        moved.double()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(moved.tables.weight.float(), twin.tables.weight)

    def test_version_counter_sees_the_step(self) -> None:
        model = TableModel()
        optimizer = LazyAdam(model)
        squared = model.tables.weight.square().sum()
        model.loss(make_batch(0)).backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            squared.backward()


@pytest.mark.parametrize("kind", ALL)
def test_same_bits_for_any_number_of_threads(kind: Any) -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            model = TableModel()
            train(
                model, kind(model, max_grad_norm=0.01), common=300, impressions=900, steps=range(2)
            )
            results.append(model.tables.table())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


class TestErrors:
    def test_wrong_model(self) -> None:
        with pytest.raises(TypeError, match="model: expected a module with EmbeddingTables"):
            LazyAdam(TableModel().parameters())  # type: ignore[arg-type]
        with pytest.raises(
            ValueError, match="expected a module with EmbeddingTables, Linear contains none"
        ):
            LazyAdam(nn.Linear(2, 2))

    def test_wrong_settings(self) -> None:
        tables = EmbeddingTables(SCHEMA, 4)
        for make, message in (
            (lambda: LazyAdam(tables, lr=-1), "lr: expected at least 0, got -1"),
            (
                lambda: LazyAdam(tables, betas=(0.9, 1.0)),
                r"betas: expected two numbers in \[0, 1\)",
            ),
            (lambda: LazyAdam(tables, eps=float("nan")), "eps: expected at least 0, got nan"),
            (lambda: Adagrad(tables, lr_decay=-1), "lr_decay: expected at least 0, got -1"),
            (
                lambda: LazyAdamW(tables, weight_decay=-1),
                "weight_decay: expected at least 0, got -1",
            ),
            (
                lambda: SGD(tables, max_grad_norm=0),
                "max_grad_norm: expected a positive number or None",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                make()
        assert not tables.fused

    def test_more_groups(self) -> None:
        model = TableModel()
        with pytest.raises(NotImplementedError, match="LazyAdam has one group"):
            LazyAdam(model).add_param_group({"params": [torch.zeros(1)]})


@pytest.mark.cuda
@pytest.mark.parametrize("kind", [SGD, Adagrad, RowwiseAdagrad, LazyAdam, LazyAdamW])
def test_cuda_follows_the_cpu_and_states_move(kind: Any) -> None:
    cpu, cuda = TableModel(), TableModel(device="cuda").cuda()
    assert torch.equal(cuda.tables.weight.cpu(), cpu.tables.weight)
    optimizers = {model: kind(model, lr=0.05) for model in (cpu, cuda)}
    for step in range(4):
        for model, optimizer in optimizers.items():
            model.loss(make_batch(step).to(model.tables.weight.device)).backward()
            optimizer.step()
    torch.testing.assert_close(cuda.tables.weight.cpu(), cpu.tables.weight, rtol=1e-3, atol=1e-4)
    optimizers[cuda].load_state_dict(optimizers[cpu].state_dict())
    cuda.load_state_dict(cpu.state_dict())
    for name in optimizers[cpu].states(18):
        assert torch.equal(cuda.tables.state(name).cpu(), cpu.tables.state(name))
    back = cuda.cpu()
    assert torch.equal(back.tables.weight, cpu.tables.weight)
