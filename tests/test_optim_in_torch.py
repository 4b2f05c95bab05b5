"""Fused optimizers in torch: GradScaler, clipping, schedulers, copies, torch.compile."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from table_models import SCHEMA, TableModel, make_batch, train
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config

from esmm_fast import Batch, EmbeddingTables, optim
from esmm_fast.optim import SGD, Adagrad, LazyAdam, LazyAdamW, RowwiseAdagrad

ALL = [SGD, Adagrad, RowwiseAdagrad, LazyAdam, LazyAdamW]


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
    @pytest.fixture(autouse=True)
    def without_caches(self) -> Iterator[None]:
        """Nothing that an earlier run left on disk."""
        torch._dynamo.reset()
        with (
            inductor_config.patch(force_disable_caches=True),
            functorch_config.patch(enable_autograd_cache=False),
        ):
            yield

    @pytest.mark.parametrize("fused", [False, True])
    def test_whole_model_without_recompiling(self, fused: bool) -> None:
        counter = CompileCounterWithBackend("aot_eager")
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

    def test_inductor_with_two_calls_in_a_step(self) -> None:
        mixing = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))

        def mixed(tables: EmbeddingTables, batch: Batch) -> list[Tensor]:
            # Products alone: Inductor calls them as they are, and starts no C++ compiler.
            return [torch.mm(side.reshape(-1, 4), mixing) for side in tables(batch)]

        compiled = torch.compile(mixed, fullgraph=True, dynamic=True)
        tables = [EmbeddingTables(SCHEMA, 4, init_std=0.3) for _ in range(2)]
        optimizers = [LazyAdam(each, lr=0.1) for each in tables]
        for step in range(2):
            batches = make_batch(step, impressions=9), make_batch(step + 5)
            for each, optimizer, run in zip(tables, optimizers, (mixed, compiled), strict=True):
                outs = [*run(each, batches[0]), *run(each, batches[1])]
                sum(out.square().sum() for out in outs).backward()  # type: ignore[union-attr]
                optimizer.step()
        torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=1e-3, atol=1e-5)

    def test_two_lookups_in_one_graph(self) -> None:
        both = torch.compile(
            lambda m, a, b: m.loss(a) + m.loss(b), fullgraph=True, dynamic=True, backend="aot_eager"
        )
        models = [TableModel(4) for _ in range(2)]
        optimizers = [LazyAdam(m, lr=0.1) for m in models]
        a, b = make_batch(0, impressions=9), make_batch(1)
        (models[0].loss(a) + models[0].loss(b)).backward()
        both(models[1], a, b).backward()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(
            models[1].tables.weight, models[0].tables.weight, rtol=1e-3, atol=1e-5
        )
