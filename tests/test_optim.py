"""Fused optimizers of EmbeddingTables: equal to torch's step by step, and at home in torch's machinery."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from table_models import SCHEMA, TableModel, make_batch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from esmm_fast import EmbeddingTables, optim
from esmm_fast.optim import SGD, Adagrad, LazyAdam, LazyAdamW, RowwiseAdagrad

ALL = [SGD, Adagrad, RowwiseAdagrad, LazyAdam, LazyAdamW]


def train(model: TableModel, *optimizers: Any, steps: range = range(5), **sizes: int) -> None:
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        model.loss(make_batch(step, **sizes)).backward()
        for optimizer in optimizers:
            optimizer.step()


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
    ours_state, torch_state = (
        (o.state_dict()["state"][0] for o in (optimizers[0], twins[0]))
        if twins[0].state
        else ({}, {})
    )
    for name, value in torch_state.items():
        torch.testing.assert_close(
            torch.as_tensor(ours_state[name]).float(), torch.as_tensor(value).float()
        )


def test_rowwise_adagrad_literal() -> None:
    tables = EmbeddingTables(SCHEMA, 2, init_std=0)
    optimizer = RowwiseAdagrad(tables, lr=0.5, eps=0)
    batch = make_batch(0)
    for _ in range(2):
        common, impression = tables(batch)
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


class TestGradScaler:
    @pytest.mark.parametrize("unscale_first", [False, True])
    def test_equals_training_without(self, unscale_first: bool) -> None:
        scaled, plain = TableModel(), TableModel()
        optimizers = [LazyAdam(m, lr=0.1) for m in (scaled, plain)]
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # a power of two scales exactly
        for step in range(4):
            scaler.scale(scaled.loss(make_batch(step))).backward()
            if unscale_first:
                scaler.unscale_(optimizers[0])
            scaler.step(optimizers[0])
            scaler.update()
            plain.loss(make_batch(step)).backward()
            optimizers[1].step()
            assert torch.equal(scaled.tables.weight, plain.tables.weight)

    @pytest.mark.parametrize("unscale_first", [False, True])
    def test_an_infinite_gradient_is_dropped_and_lowers_the_scale(
        self, unscale_first: bool
    ) -> None:
        model = TableModel()
        optimizer = LazyAdam(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        before = model.tables.table().clone()
        model.tables(make_batch(0))[0].sum().mul(float("inf")).backward()
        scaler.scale(torch.zeros(()))
        if unscale_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 512
        assert torch.equal(model.tables.table(), before)
        assert not model.tables.queue.entries
        assert optimizer.state_dict()["state"][0]["step"] == 0

    def test_two_tables_that_share_a_gradient_are_unscaled_once_each(self) -> None:
        models = nn.ModuleList([EmbeddingTables(SCHEMA, 4) for _ in range(2)])
        optimizer = SGD(models, lr=1.0)
        before = [m.weight.detach().clone() for m in models]
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        batch = make_batch(0)
        scaler.scale(sum(m(batch)[0] for m in models).sum()).backward()  # type: ignore[union-attr, misc]
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        steps = [b - m.weight.detach() for b, m in zip(before, models, strict=True)]
        reference_model = EmbeddingTables(SCHEMA, 4)
        reference_model(batch)[0].sum().backward()
        for step in steps:
            torch.testing.assert_close(step, reference_model.weight.grad)


class TestClipping:
    def test_max_grad_norm_clips_the_norm_over_touched_rows(self) -> None:
        fused, twin = TableModel(), TableModel(sparse=True)
        optimizer = SGD(fused, lr=1.0, max_grad_norm=1e-3)
        for model in (fused, twin):
            model.loss(make_batch(0)).backward()
        grad = twin.tables.weight.grad.to_dense()  # type: ignore[union-attr]
        assert grad.norm() > 1e-3
        before = fused.tables.weight.detach().clone()
        optimizer.step()
        torch.testing.assert_close(
            before - fused.tables.weight, grad * (1e-3 / grad.norm()), rtol=1e-2, atol=1e-6
        )

    @pytest.mark.parametrize("passes", [1, 2])
    @pytest.mark.parametrize("kind", ["fused", "sparse", "dense"])
    def test_clip_grad_norm_counts_tables_and_towers(self, passes: int, kind: str) -> None:
        model, twin = TableModel(sparse=kind == "sparse"), TableModel()
        optimizer = (
            SGD(model, lr=1.0) if kind == "fused" else torch.optim.SGD([model.tables.weight], 1.0)
        )
        for step in range(passes):
            model.loss(make_batch(step)).backward()
            twin.loss(make_batch(step)).backward()
        norm = optim.clip_grad_norm_(model, 1e-2)
        twin_norm = nn.utils.clip_grad_norm_(twin.parameters(), 1e-2)
        torch.testing.assert_close(norm, twin_norm)
        for ours, plain in zip(model.towers.parameters(), twin.towers.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, plain.grad)
        before = model.tables.weight.detach().clone()
        optimizer.step()
        torch.testing.assert_close(
            before - model.tables.weight, twin.tables.weight.grad, rtol=1e-3, atol=1e-7
        )

    def test_clip_after_unscale(self) -> None:
        scaled, plain = TableModel(), TableModel()
        optimizers = [SGD(m, lr=1.0) for m in (scaled, plain)]
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(scaled.loss(make_batch(0))).backward()
        scaler.unscale_(optimizers[0])
        for parameter in scaled.towers.parameters():
            parameter.grad = None
        optim.clip_grad_norm_(scaled, 1e-3)
        scaler.step(optimizers[0])
        plain.loss(make_batch(0)).backward()
        for parameter in plain.towers.parameters():
            parameter.grad = None
        optim.clip_grad_norm_(plain, 1e-3)
        optimizers[1].step()
        assert torch.equal(scaled.tables.weight, plain.tables.weight)


def test_learning_rate_schedulers() -> None:
    fused, twin = TableModel(), TableModel(sparse=True)
    optimizers = [LazyAdam(fused, lr=0.1), torch.optim.SparseAdam([twin.tables.weight], lr=0.1)]
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in optimizers]
    for step in range(4):
        for model, optimizer, scheduler in zip((fused, twin), optimizers, schedulers, strict=True):
            train(model, optimizer, steps=range(step, step + 1))
            scheduler.step()
    assert optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)
    torch.testing.assert_close(fused.tables.weight, twin.tables.weight, rtol=1e-5, atol=1e-6)


def test_closure_and_hooks() -> None:
    model = TableModel()
    optimizer = LazyAdam(model)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(make_batch(0))
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert float(optimizer.step(closure)) < float(first)  # type: ignore[arg-type]
    assert calls == ["before", "after"] * 2


@pytest.mark.parametrize("kind", ALL)
class TestSaving:
    def test_state_dict_continues_the_run_bit_by_bit(self, kind: Any) -> None:
        model = TableModel()
        optimizer = kind(model, lr=0.05)
        train(model, optimizer)
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        for state in saved[1]["state"].values():
            for value in state.values():
                assert not isinstance(value, Tensor) or value.is_contiguous()
        other = TableModel(seed=5)
        other.load_state_dict(saved[0])
        other_optimizer = kind(other, lr=1.0)
        other_optimizer.load_state_dict(saved[1])
        assert other_optimizer.param_groups[0]["lr"] == 0.05
        for each in (model, other):
            train(each, optimizer if each is model else other_optimizer, steps=range(5, 8))
        assert torch.equal(model.tables.table(), other.tables.table())

    @pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    @pytest.mark.parametrize("order", [1, -1])
    def test_copy_and_pickle_together(self, kind: Any, how: Callable, order: int) -> None:
        model = TableModel()
        optimizer = kind(model, lr=0.05)
        train(model, optimizer)
        copied, copied_optimizer = how((model, optimizer)[::order])[::order]
        assert copied_optimizer.tables[0] is copied.tables
        before = model.tables.table().clone()
        train(copied, copied_optimizer, steps=range(5, 8))
        assert torch.equal(model.tables.table(), before)
        train(model, optimizer, steps=range(5, 8))
        assert torch.equal(model.tables.table(), copied.tables.table())


def test_state_dict_is_that_of_sparse_adam() -> None:
    fused, twin = TableModel(), TableModel(sparse=True)
    ours, sparse_adam = (
        LazyAdam(fused, lr=0.01),
        torch.optim.SparseAdam([twin.tables.weight], lr=0.01),
    )
    train(twin, sparse_adam)
    fused.load_state_dict(twin.state_dict())
    ours.load_state_dict(sparse_adam.state_dict())
    back = torch.optim.SparseAdam([twin.tables.weight], lr=0.01)
    back.load_state_dict(ours.state_dict())
    train(fused, ours, steps=range(5, 8))
    train(twin, back, steps=range(5, 8))
    torch.testing.assert_close(fused.tables.weight, twin.tables.weight)


def test_load_state_dict_refuses_what_does_not_fit_and_changes_nothing() -> None:
    model, other = TableModel(), TableModel()
    optimizer = LazyAdam(model)
    train(model, optimizer)
    before = model.tables.table().clone()
    with pytest.raises(
        ValueError, match=r"state\[0\]\['exp_avg'\]: expected shape \[56, 18\], got"
    ):
        optimizer.load_state_dict(Adagrad(other).state_dict())
    with pytest.raises(ValueError, match="expected one group with 1 tables, got 1 with 2"):
        optimizer.load_state_dict(SGD(nn.ModuleList([TableModel(), TableModel()])).state_dict())
    assert torch.equal(model.tables.table(), before)


class TestChangeOfOptimizer:
    def test_a_new_one_takes_over(self) -> None:
        model = TableModel()
        old = LazyAdam(model)
        train(model, old)
        before = model.tables.weight.detach().clone()
        new = RowwiseAdagrad(model)
        assert torch.equal(model.tables.weight, before)
        for use in (old.step, old.zero_grad, old.state_dict):
            with pytest.raises(RuntimeError, match="this LazyAdam no longer owns its tables"):
                use()
        train(model, new)
        assert not torch.equal(model.tables.weight, before)

    def test_unfuse_returns_to_ordinary_mode(self) -> None:
        model = TableModel()
        optimizer = LazyAdam(model)
        train(model, optimizer)
        before = model.tables.weight.detach().clone()
        model.tables.unfuse()
        assert torch.equal(model.tables.weight, before) and model.tables.weight.is_contiguous()
        train(model, torch.optim.Adam(model.parameters()))
        assert not torch.equal(model.tables.weight, before)

    def test_a_lost_optimizer_is_noticed_in_backward(self) -> None:
        model = TableModel()
        LazyAdam(model)
        with pytest.raises(RuntimeError, match="optimizer that no longer exists"):
            model.loss(make_batch(0)).backward()

    def test_an_optimizer_of_torch_on_fused_tables_is_noticed(self) -> None:
        model = TableModel()
        fused = LazyAdam(model)
        adam = torch.optim.Adam(model.parameters())
        with pytest.raises(
            RuntimeError, match=r"Adam steps, .* belong to LazyAdam, which does not"
        ):
            train(model, adam, steps=range(2))
        fused.zero_grad()
        train(model, adam, fused)  # both: Adam finds no gradient there

    def test_a_graph_from_before(self) -> None:
        model = TableModel()
        old = LazyAdam(model)
        loss = model.loss(make_batch(0))
        new = LazyAdam(model)
        with pytest.raises(RuntimeError, match="have left their optimizer since the forward pass"):
            loss.backward()
        del old, new


class TestCompile:
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    @pytest.mark.parametrize("fused", [False, True])
    def test_whole_model_without_recompiling(self, fused: bool, backend: str) -> None:
        torch._dynamo.reset()
        counter = CompileCounterWithBackend(backend)
        loss = torch.compile(TableModel.loss, fullgraph=True, dynamic=True, backend=counter)
        models = TableModel(4), TableModel(4)
        optimizers = [
            LazyAdam(m, lr=0.1) if fused else torch.optim.Adam(m.parameters(), lr=0.01)
            for m in models
        ]
        for step in range(4):
            batch = make_batch(step, common=3 + step, impressions=7 + 2 * step)
            for model, optimizer, run in zip(
                models, optimizers, (TableModel.loss, loss), strict=True
            ):
                optimizer.zero_grad()
                run(model, batch).backward()
                optimizer.step()
        torch.testing.assert_close(
            models[0].tables.weight, models[1].tables.weight, rtol=1e-3, atol=1e-5
        )
        assert counter.frame_count == 1

    def test_two_lookups_and_two_calls_in_a_step(self) -> None:
        torch._dynamo.reset()
        both = torch.compile(
            lambda m, a, b: m.loss(a) + m.loss(b), fullgraph=True, dynamic=True, backend="aot_eager"
        )
        one = torch.compile(TableModel.loss, fullgraph=True, dynamic=True)
        models = [TableModel(4) for _ in range(3)]
        optimizers = [LazyAdam(m, lr=0.1) for m in models]
        a, b = make_batch(0, impressions=9), make_batch(1)
        (models[0].loss(a) + models[0].loss(b)).backward()
        both(models[1], a, b).backward()
        (one(models[2], a) + one(models[2], b)).backward()
        for optimizer in optimizers:
            optimizer.step()
        for model in models[1:]:
            torch.testing.assert_close(
                model.tables.weight, models[0].tables.weight, rtol=1e-3, atol=1e-5
            )


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
