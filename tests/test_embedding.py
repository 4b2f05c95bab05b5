"""EmbeddingTables: what they return, and what torch does to them as a module."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from table_models import ROWS, SCHEMA, TableModel, make_batch

from esmm_fast import EmbeddingTables, Field, Schema, ops, reference
from esmm_fast.embedding import _table_key
from esmm_fast.optim import LazyAdam


def test_literal_example() -> None:
    schema = Schema((Field("user", side="common", rows=3), Field("a", rows=2), Field("b", rows=2)))
    tables = EmbeddingTables(schema, dim=2)
    with torch.no_grad():
        tables.weight.copy_(torch.arange(14.0).reshape(7, 2))
    #  user: {1, 2} | impression 0: a {0}, b {} | impression 1: a {1}, b {1 x 2}
    plan = reference.batch_plan(
        torch.tensor([1, 2, 3, 4, 6]),
        torch.tensor([0, 2, 3, 3, 4, 5]),
        torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0]),
    )
    batch = make_batch(0, common=1, impressions=2)
    batch.plan = plan
    common, impression = tables(batch)
    assert common.tolist() == [[6, 8]]
    assert impression.tolist() == [[6, 7, 0, 0], [8, 9, 24, 26]]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("common", "impressions"), [(3, 7), (0, 4), (2, 0), (0, 0)])
def test_matches_reference(fused: bool, common: int, impressions: int) -> None:
    model = TableModel(5)
    optimizer = LazyAdam(model) if fused else None
    batch = make_batch(4, common, impressions)
    pooled = model.tables(batch)
    twin = reference.pooled_embedding(model.tables.weight, batch.plan, 2 * common)
    assert pooled[0].shape == (common, 2 * 5) and pooled[1].shape == (impressions, 2 * 5)
    for ours, plain in zip(pooled, twin, strict=True):
        torch.testing.assert_close(ours.flatten(), plain.flatten())
    (pooled[0].sum() + pooled[1].sum()).backward()
    if optimizer:
        optimizer.step()


def test_large_tables_begin_on_a_huge_page_and_pickle() -> None:
    schema = Schema((Field("item", rows=9_000),))
    tables = EmbeddingTables(schema, 64, init_std=1.0)
    twin = torch.empty(9_000, 64)
    ops.embedding_init(twin, torch.arange(9_000), key=_table_key(0, "item"), std=1.0)
    assert torch.equal(tables.weight, twin)
    optimizer = LazyAdam(tables)
    assert tables.table().data_ptr() % (2 << 20) == 0 and tables.table().is_contiguous()
    assert torch.equal(tables.weight, twin) and not tables.state("exp_avg").any()
    for copied in (copy.deepcopy(tables), pickle.loads(pickle.dumps(tables))):
        assert torch.equal(copied.weight, twin)
    assert optimizer.tables == [tables]


def test_mean() -> None:
    tables = EmbeddingTables(SCHEMA, 4, mean=True)
    batch = make_batch(1)
    common, impression = tables(batch)
    twin = reference.pooled_embedding(tables.weight, batch.plan, 2 * batch.common, mean=True)
    torch.testing.assert_close(common.reshape(-1, 4), twin[0])
    torch.testing.assert_close(impression.reshape(-1, 4), twin[1])


def test_an_ordinary_optimizer_of_torch_trains_new_tables() -> None:
    dense, sparse = TableModel(), TableModel(sparse=True)
    twin = copy.deepcopy(dense)
    adam = torch.optim.Adam(dense.parameters())
    twin_adam = torch.optim.Adam(twin.parameters())
    for step in range(3):
        batch = make_batch(step)
        dense.loss(batch).backward()
        common, impression = reference.pooled_embedding(
            twin.tables.weight, batch.plan, 2 * batch.common
        )
        inputs = torch.cat(
            [
                common.reshape(batch.common, -1)[batch.common_of_impression.long()],
                impression.reshape(7, -1),
            ],
            1,
        )
        torch.nn.functional.binary_cross_entropy_with_logits(
            twin.towers(inputs), batch.labels
        ).backward()
        for optimizer in (adam, twin_adam):
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(dense.tables.weight, twin.tables.weight)

    sparse.loss(make_batch(0)).backward()
    grad = sparse.tables.weight.grad
    assert grad is not None and grad.is_sparse
    assert grad._indices()[0].tolist() == make_batch(0).plan.touched_rows.tolist()
    torch.optim.SparseAdam([sparse.tables.weight]).step()


class TestInitialWeight:
    def test_depends_on_seed_table_and_feature_alone(self) -> None:
        first = EmbeddingTables(SCHEMA, 6, seed=3)
        grown = Schema((Field("new", rows=4), *SCHEMA.with_rows({**ROWS, "item": 35}).fields))
        order = np.random.default_rng(0).permutation(35).astype(np.uint64)
        second = EmbeddingTables(grown, 6, seed=3, feature_ids={"item": order})
        users = slice(grown.row_bases["user"], grown.row_bases["user"] + 20)
        assert torch.equal(first.weight[:20], second.weight[users])
        items = second.weight[grown.row_bases["item"] :][:35]
        by_id = items[torch.from_numpy(np.argsort(order))]
        assert torch.equal(first.weight[26:56], by_id[:30])
        assert not torch.equal(first.weight, EmbeddingTables(SCHEMA, 6, seed=4).weight)
        assert abs(float(first.weight.detach().std()) - 0.01) < 0.001

    def test_zero(self) -> None:
        assert not EmbeddingTables(SCHEMA, 6, init_std=0).weight.any()

    def test_refuses_feature_ids_that_do_not_fit(self) -> None:
        with pytest.raises(
            ValueError, match=r"feature_ids\['item'\]: expected 30 integers, .*\(3,\)"
        ):
            EmbeddingTables(SCHEMA, 6, feature_ids={"item": np.arange(3)})
        with pytest.raises(ValueError, match=r"expected names of tables \['user', .* got \['x'\]"):
            EmbeddingTables(SCHEMA, 6, feature_ids={"x": np.arange(3)})


class TestAsModule:
    """The same promises in ordinary mode and with a fused optimizer."""

    @pytest.fixture(params=["ordinary", "fused"])
    def model(self, request: pytest.FixtureRequest) -> TableModel:
        model = TableModel()
        if request.param == "fused":
            model.optimizer = LazyAdam(model)  # type: ignore[assignment]
            model.loss(make_batch(0)).backward()
            model.optimizer.step()
        return model

    def test_state_dict_is_contiguous_and_loads_into_either_mode(self, model: TableModel) -> None:
        state = model.state_dict()
        weight = state["tables.weight"]
        assert weight.is_contiguous() and weight.untyped_storage().nbytes() == 56 * 18 * 4
        assert list(state) == list(TableModel().state_dict())
        saved = io.BytesIO()
        torch.save(state, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=True)
        ordinary, fused = TableModel(seed=1), TableModel(seed=2)
        optimizer = LazyAdam(fused)
        for other in (ordinary, fused):
            for assign in (False, True):
                with torch.no_grad():
                    other.tables.weight.zero_()
                other.load_state_dict(loaded, assign=assign)
                assert torch.equal(other.tables.weight, model.tables.weight)
        fused.loss(make_batch(1)).backward()
        optimizer.step()
        assert not torch.equal(fused.tables.weight, model.tables.weight)

    def test_load_state_dict_refuses_another_shape(self, model: TableModel) -> None:
        with pytest.raises(RuntimeError, match="size mismatch for weight"):
            model.tables.load_state_dict({"weight": torch.zeros(3, 18)})

    def test_deepcopy_and_pickle_alone_are_ordinary_and_independent(
        self, model: TableModel
    ) -> None:
        before = model.tables.weight.clone()
        tables = model.tables
        for copied in (copy.deepcopy(tables), pickle.loads(pickle.dumps(tables))):
            assert torch.equal(copied.weight, before) and not copied.fused
            assert copied.weight.is_contiguous()
            pooled, _ = copied(make_batch(1))
            pooled.sum().backward()
            torch.optim.Adam(copied.parameters()).step()
            assert not torch.equal(copied.weight, before)
            assert torch.equal(tables.weight, before)

    def test_deepcopy_keeps_shared_parameters_shared(self, model: TableModel) -> None:
        copied, weight = copy.deepcopy((model, model.tables.weight))
        assert copied.tables.weight is weight

    def test_to_another_dtype_and_back(self, model: TableModel) -> None:
        weight = model.tables.weight
        before = weight.detach().clone()
        model.double()
        assert model.tables.weight is weight and weight.dtype == torch.float64
        assert torch.equal(weight, before.double())
        model.loss(make_batch(1, dtype=torch.float64)).backward()
        if model.tables.fused:
            model.optimizer.step()  # type: ignore[operator, union-attr]
            assert model.tables.state("exp_avg").dtype == torch.float64
        model.float()
        model.loss(make_batch(1)).backward()

    def test_share_memory(self, model: TableModel) -> None:
        before = model.tables.weight.clone()
        model.share_memory()
        assert model.tables.weight.is_shared() and torch.equal(model.tables.weight, before)

    def test_frozen_tables_get_no_gradient(self, model: TableModel) -> None:
        model.tables.requires_grad_(False)
        before = model.tables.weight.clone()
        model.loss(make_batch(1)).backward()
        if model.tables.fused:
            assert not model.tables.queue.entries
            model.optimizer.step()  # type: ignore[operator, union-attr]
        assert torch.equal(model.tables.weight, before)

    def test_no_grad_and_eval(self, model: TableModel) -> None:
        with torch.no_grad():
            assert not model(make_batch(1)).requires_grad
        with torch.inference_mode():
            model(make_batch(1))


def test_memory_is_counted_and_printed() -> None:
    tables = EmbeddingTables(SCHEMA, 18)
    assert tables.nbytes == 56 * 18 * 4
    assert repr(tables) == "EmbeddingTables(4 fields, 3 tables, 56 rows, dim=18, 3.938 KiB)"
    optimizer = LazyAdam(tables)
    assert tables.nbytes == 56 * 224  # 3 x 18 floats in seven half lines of 32 bytes
    assert repr(tables).endswith("12.25 KiB, fused)")
    del optimizer


class TestErrors:
    def test_row_outside(self) -> None:
        tables, batch = EmbeddingTables(SCHEMA, 4), make_batch(0)
        batch.plan.rows[5] = 56
        with pytest.raises(IndexError, match=r"rows\[5\] = 56 is outside .* 56 rows: .*vocabulary"):
            tables(batch)

    def test_another_number_of_bags(self) -> None:
        tables, batch = EmbeddingTables(SCHEMA, 4), make_batch(0)
        batch.common = 2
        with pytest.raises(
            ValueError,
            match=r"batch: expected 2 common rows x 2 fields \+ 7 impr.* = 18 bags, got 20",
        ):
            tables(batch)

    def test_another_device(self) -> None:
        tables = EmbeddingTables(SCHEMA, 4).to("meta")
        with pytest.raises(
            ValueError, match="batch: expected it on the tables' device meta, got cpu"
        ):
            tables(make_batch(0))

    def test_schema_without_rows(self) -> None:
        with pytest.raises(ValueError, match="field 'x' has no table rows yet: take a vocabulary"):
            EmbeddingTables(Schema((Field("x"),)))

    def test_unsupported_dimensions(self) -> None:
        with pytest.raises(ValueError, match="dim: expected 1 to 256, got 257"):
            EmbeddingTables(SCHEMA, 257)

    def test_unsupported_dtype(self) -> None:
        tables = EmbeddingTables(SCHEMA, 4).to(torch.bfloat16)
        with pytest.raises(
            ValueError, match="weight: expected dtype float32 or float64, got bfloat16"
        ):
            tables(make_batch(0))
        fused = EmbeddingTables(SCHEMA, 4)
        optimizer = LazyAdam(fused)
        with pytest.raises(TypeError, match=r"can be float32 or float64 .* not torch.float16"):
            fused.half()
        assert fused.weight.dtype == torch.float32
        del optimizer
