"""Batch and Plan: batches of a user's own bags, moving them, errors."""

import os
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dataset import SCHEMA, tiny_dataset

from esmm_fast.batch import Batch, Plan
from esmm_fast.data.batches import Batches
from esmm_fast.schema import Field, Schema
from esmm_fast.vocabulary import Vocabulary

TWO_SIDES = Schema(
    (
        Field("user", "common", rows=4),
        Field("history", "common", multi=True, weighted=True, rows=6),
        Field("item", rows=5),
        Field("tags", multi=True, rows=9),
    )
)


def two_sides(**changes: Any) -> Batch:
    arguments: dict[str, Any] = {
        "bags": {
            "user": ([3, 1], None),
            "history": ([5, 4, 5], [0, 2, 3], [0.5, 2.0, 3.0]),
            "item": ([1, 2, 4], None),
            "tags": ([8, 7], [0, 0, 1, 2]),
        },
        "labels": [[1, 1], [0, 0], [1, 0]],
        "schema": TWO_SIDES,
        "common_of_impression": [0, 1, 0],
    }
    bags = {**arguments["bags"], **changes.pop("bags", {})}
    return Batch.from_bags(**{**arguments, **changes, "bags": bags})


def assert_same(a: Batch, b: Batch) -> None:
    assert a.common == b.common
    for one, other, names in (
        (a.plan, b.plan, [f.name for f in fields(Plan)]),
        (a, b, ["common_of_impression", "labels", "sample_id", "dense", "impression_weights"]),
    ):
        for name in names:
            x, y = getattr(one, name), getattr(other, name)
            assert (x is None) == (y is None), name
            assert x is None or (x.dtype == y.dtype and torch.equal(x, y)), name


def test_literal() -> None:
    batch = two_sides(sample_id=[7, 8, 9], impression_weights=[1, 2, 3])
    assert repr(batch) == "Batch(B=3, U=2, N=10, T=9)"
    assert repr(batch.plan) == "Plan(bags=10, N=10, T=9)"
    # tables begin at 0 (user), 4 (history), 10 (item), 15 (tags)
    assert batch.plan.rows.tolist() == [3, 9, 8, 1, 9, 11, 12, 23, 14, 22]
    assert batch.plan.offsets.tolist() == [0, 1, 3, 4, 5, 6, 6, 7, 8, 9, 10]
    assert batch.plan.weights is not None
    assert batch.plan.weights.tolist() == [1, 0.5, 2, 1, 3, 1, 1, 1, 1, 1]
    assert batch.common == 2 and batch.common_of_impression.tolist() == [0, 1, 0]
    assert batch.labels.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert batch.sample_id is not None and batch.sample_id.tolist() == [7, 8, 9]
    assert batch.impression_weights is not None
    assert batch.impression_weights.tolist() == [1, 2, 3]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), impressions=st.integers(1, 30), common_rows=st.integers(1, 6))
def test_equals_the_batch_of_a_dataset(seed: int, impressions: int, common_rows: int) -> None:
    dataset = tiny_dataset(impressions, common_rows, seed=seed)
    vocabulary = Vocabulary.from_dataset(dataset, min_count=2)
    (made,) = Batches(dataset, impressions, vocabulary=vocabulary, shuffle=False, threads=0)
    first_of = {u: b for b, u in reversed(list(enumerate(made.common_of_impression.tolist())))}
    common = [dataset.rows[first_of[u]]["common_row"] for u in range(made.common)]
    bags = {}
    for field in SCHEMA.fields:
        rows = [dataset.common[c] for c in common] if field.side == "common" else dataset.rows
        own = [row[field.name] for row in rows]
        ids = np.array([id for bag in own for id, _ in bag], np.int64)
        offsets = np.cumsum([0, *map(len, own)])
        values = np.array([value for bag in own for _, value in bag], np.float32)
        bags[field.name] = (ids, offsets, values) if field.weighted else (ids, offsets)
    ours = Batch.from_bags(
        bags,
        made.labels,
        schema=SCHEMA,
        vocabulary=vocabulary,
        common_of_impression=made.common_of_impression,
        sample_id=made.sample_id,
    )
    assert_same(ours, made)


def test_padded_bags_equal_ragged_ones() -> None:
    ragged = two_sides()
    padded = two_sides(
        bags={
            "history": ([[5, 4], [5, -1]], None, [[0.5, 2.0], [3.0, 9.0]]),
            "tags": ([[-1, -1], [-1, 8], [7, -1]], None),
        },
        padding=-1,
    )
    assert_same(padded, ragged)
    masked = two_sides(bags={"tags": ([[0, 0], [0, 8], [7, 0]], None, TAGS_MASK)})
    assert_same(masked, ragged)


TAGS_MASK = torch.tensor([[False, False], [False, True], [True, False]])


def test_one_common_row_per_impression() -> None:
    bags = {"user": ([3, 1, 0], None), "history": ([], [0, 0, 0, 0])}
    batch = two_sides(bags=bags, common_of_impression=None)
    assert batch.common == 3 and batch.common_of_impression.tolist() == [0, 1, 2]
    assert batch.common_of_impression.dtype == torch.int32
    assert batch.plan.weights is None


def test_without_labels_the_loss_shows_it() -> None:
    batch = two_sides(labels=None)
    assert batch.labels.shape == (3, 2) and batch.labels.isnan().all()


def test_one_stage_takes_flat_labels() -> None:
    schema = Schema((Field("item", rows=5),), labels=("click",))
    batch = Batch.from_bags({"item": ([1, 2], None)}, [0, 1], schema=schema)
    assert batch.labels.tolist() == [[0], [1]]
    assert batch.common == 0 and batch.common_of_impression.tolist() == [0, 0]


def test_empty_batch() -> None:
    batch = Batch.from_bags({"item": ([], [0])}, schema={"item": 5})
    assert repr(batch) == "Batch(B=0, U=0, N=0, T=0)"


def test_to() -> None:
    batch = two_sides()
    assert_same(batch.to("cpu"), batch)
    assert batch.to("cpu").plan.rows.data_ptr() == batch.plan.rows.data_ptr()
    moved = batch.to("meta")
    assert moved.plan.rows.is_meta and moved.plan.weights is not None and moved.labels.is_meta
    assert moved.common == 2 and moved.sample_id is None


@pytest.mark.cuda
def test_to_cuda_and_pinned() -> None:
    if not torch.cuda.is_available():
        assert "ESMM_FAST_REQUIRE_CUDA" not in os.environ
        pytest.skip("no CUDA device")
    batch = two_sides()
    pinned = batch.pin_memory()
    assert pinned.plan.rows.is_pinned() and pinned.labels.is_pinned()
    assert_same(pinned.to("cuda", non_blocking=True).to("cpu"), batch)


OTHER = "bags: the schema has no field 'x'; it has user, history, item, tags"


@pytest.mark.parametrize(
    ("bags", "message"),
    [
        (
            {"item": ([1, 2, 5], None)},
            r"field 'item': rows\[2\] = 5 is outside the table of 5 rows",
        ),
        ({"item": ([1, -2, 5], None)}, r"field 'item': rows\[1\] = -2 is outside the table of 5"),
        (
            {"tags": ([8, 7], [0, 2, 1, 2])},
            r"field 'tags': offsets\[2\] = 1 is less than offsets\[1\] = 2",
        ),
        (
            {"tags": ([8, 7], [0, 0, 1, 1])},
            r"field 'tags': offsets\[3\] = 1: expected the number of rows, 2",
        ),
        ({"tags": ([8, 7], [1, 1, 1, 2])}, r"field 'tags': offsets\[0\] = 1: expected 0"),
        ({"tags": ([8, 7], [0.0, 1.0, 1.0, 2.0])}, r"field 'tags': offsets: expected integers"),
        ({"tags": ([8, 7], [0, 1, 2])}, r"every impression field, got 'item': 3, 'tags': 2"),
        (
            {"tags": ([8.5, 7], [0, 1, 1, 2])},
            r"field 'tags': rows: expected integers, got torch.float32",
        ),
        (
            {"tags": ([8, 7], [0, 1, 1, 2], [1.0])},
            r"field 'tags': weights: expected the shape of rows, \[2\], got \[1\]",
        ),
        (
            {"tags": ([8, 7], [0, 1, 1, 2], [1, 2])},
            r"field 'tags': weights: expected floats, got torch.int64",
        ),
        (
            {"tags": ([[8], [7], [1]], [0, 1])},
            r"field 'tags': offsets: expected None beside padded rows",
        ),
        ({"tags": ([[[8]]], None)}, r"field 'tags': rows: expected shape \[N\] or \[bags, L\]"),
        ({"tags": [8, 7]}, r"field 'tags': expected a tuple \(rows, offsets, weights\), got list"),
        (
            {"tags": ()},
            r"field 'tags': expected a tuple \(rows, offsets, weights\), got tuple of 0",
        ),
        ({"x": ([1], None)}, OTHER),
    ],
)
def test_errors_of_bags(bags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_sides(bags=bags)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"common_of_impression": [0, 2, 0]},
            r"common_of_impression\[1\] = 2 is outside the 2 common",
        ),
        (
            {"common_of_impression": [0, 1]},
            r"common_of_impression: expected integers \[B\] = \[3\]",
        ),
        (
            {"common_of_impression": None},
            r"common_of_impression: expected \[B\] integers, for 3 impr",
        ),
        ({"labels": [[1, 0], [0, 0]]}, r"labels: expected shape \[B, K\] = \[3, 2\], got \[2, 2\]"),
        ({"impression_weights": [1.0]}, r"impression_weights: expected shape \[3\], got \[1\]"),
        ({"dense": [[1.0]] * 3}, r"dense: expected shape \[3, 0\], got \[3, 1\]"),
        (
            {"sample_id": [1.0] * 3},
            r"sample_id: expected integers \[B\] = \[3\], got torch.float32",
        ),
    ],
)
def test_errors_of_the_rest(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_sides(**changes)


def test_other_errors() -> None:
    with pytest.raises(ValueError, match="bags: no bags of field 'b'"):
        Batch.from_bags({"a": ([1], None)}, schema={"a": 3, "b": 3})
    with pytest.raises(ValueError, match="has no table rows yet"):
        Batch.from_bags({"a": ([1], None)}, schema=Schema((Field("a"),)))
    with pytest.raises(
        ValueError, match="field 'a': rows: expected a tensor on cpu, got one on meta"
    ):
        Batch.from_bags({"a": (torch.ones(1).to("meta"), None)}, schema={"a": 3})
    vocabulary = Vocabulary({"a": ([9], [1])})
    with pytest.raises(ValueError, match=r"field 'a': ids\[1\] = -4: expected an id of at least 0"):
        Batch.from_bags({"a": ([9, -4], None)}, schema={"a": 0}, vocabulary=vocabulary)
