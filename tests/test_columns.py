"""What comes along with an impression: dense features, its weight, extra columns."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_dataset import tiny_dataset

from esmm_fast.batch import Batch
from esmm_fast.data.batches import Batches
from esmm_fast.model import ESMM
from esmm_fast.schema import Schema
from esmm_fast.vocabulary import Vocabulary


def carrying(dense=2, weight="w", rows=60, chunks=3, **columns: pa.Array):
    """Returns a tiny dataset with a column of each kind, in several record batches."""
    tiny = tiny_dataset(rows, chunks=chunks)
    rng = np.random.default_rng(0)
    table = tiny.impressions
    flat = pa.array(rng.normal(size=rows * max(dense, 1)).astype(np.float32))
    added = {
        "dense": pa.FixedSizeListArray.from_arrays(flat, max(dense, 1)),
        "w": pa.array(rng.random(rows).astype(np.float32)),
        "i": pa.array(np.arange(rows) * 10**12 - 5),
        "f": pa.array([None if i == 3 else i / 3 for i in range(rows)], pa.float64()),
        "b": pa.array([i % 3 == 0 for i in range(rows)]),
        "t": pa.array(range(rows), pa.timestamp("ms")),
        "d": pa.array(range(rows), pa.date32()),
        "small": pa.array(np.arange(rows).astype(np.uint8)),
        "text": pa.array([str(i) for i in range(rows)]),
        **columns,
    }
    bounds = [0, *np.cumsum([c.num_rows for c in table.to_batches()])]
    for name, column in added.items():
        parts = [column.slice(a, b - a) for a, b in pairwise(bounds)]
        table = table.append_column(name, pa.chunked_array(parts))
    extra = ("i", "f", "b", "t", "d", "small", "text", *columns)
    schema = dataclasses.replace(tiny.schema, dense=dense, weight=weight, extra=extra)
    return dataclasses.replace(tiny, impressions=table, schema=schema)


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_everything_comes_along(threads, shuffle):
    dataset = carrying().select(np.arange(59, 4, -1))
    table = dataset.impressions
    ids = table["sample_id"].to_numpy()
    batches = Batches(
        dataset, 7, vocabulary=Vocabulary.from_dataset(dataset), threads=threads, shuffle=shuffle
    )
    seen = 0
    for batch in batches:
        at = np.searchsorted(ids, batch.sample_id.numpy())
        seen += len(at)
        dense = np.stack(table["dense"].to_numpy())[at]
        assert batch.dense.dtype == torch.float32 and np.array_equal(batch.dense, dense)
        assert np.array_equal(batch.impression_weights, table["w"].to_numpy()[at])
        assert sorted(batch.extra) == ["b", "d", "f", "i", "small", "t"]
        for name in ("i", "small"):
            assert np.array_equal(batch.extra[name], table[name].to_numpy()[at])
        assert np.array_equal(batch.extra["f"], table["f"].to_numpy()[at], equal_nan=True)
        assert batch.extra["b"].tolist() == [int(x % 3 == 0) for x in at]
        assert batch.extra["t"].tolist() == batch.extra["d"].tolist() == at.tolist()
        assert batch.extra["t"].dtype == torch.int64
        moved = batch.to("cpu")
        assert moved.extra["i"] is batch.extra["i"]
    assert seen == 55


def test_dense_features_and_weights_reach_the_loss():
    dataset = carrying()
    vocabulary = Vocabulary.from_dataset(dataset)
    model = ESMM(vocabulary.sized(dataset.schema), dim=4, hidden=(8,))
    batch = next(iter(Batches(dataset, 16, vocabulary=vocabulary, threads=0)))
    loss = model.loss(model(batch), batch)
    loss.backward()
    moved = dataclasses.replace(batch, dense=batch.dense + 1)
    assert model.loss(model(moved), moved) != loss
    even = dataclasses.replace(batch, impression_weights=None)
    assert model.loss(model(even), even) != loss


def test_columns_that_do_not_fit():
    vocabulary = Vocabulary.from_dataset(carrying())

    def batches(dataset):
        return Batches(dataset, 8, vocabulary=vocabulary)

    holes = carrying(n=pa.array([None, *range(59)], pa.int64()))
    with pytest.raises(ValueError, match=r"column 'n': 1 values are null, which no int64 can be"):
        batches(holes)
    gap = pa.array([None] + [[1.0, 2.0]] * 59, pa.list_(pa.float32(), 2))
    with pytest.raises(ValueError, match=r"column 'dense': 1 lists are null, which no float32"):
        dataset = carrying()
        at = dataset.impressions.schema.names.index("dense")
        batches(
            dataclasses.replace(
                dataset, impressions=dataset.impressions.set_column(at, "dense", gap)
            )
        )
    with pytest.raises(
        ValueError, match=r"'dense': 3 float32 expected, got fixed_size_list<.*\[2\]"
    ):
        dataset = carrying()
        batches(dataclasses.replace(dataset, schema=dataclasses.replace(dataset.schema, dense=3)))
    with pytest.raises(ValueError, match="'text': a number expected for the weight, got string"):
        batches(carrying(weight="text"))
    with pytest.raises(ValueError, match="has no column 'gone'"):
        batches(carrying(weight="gone"))


def test_from_bags_takes_extra_columns():
    schema = Schema.of({"item": 5})
    batch = Batch.from_bags({"item": ([1, 2], None)}, schema=schema, extra={"time": [7, 8]})
    assert batch.extra["time"].tolist() == [7, 8]
    with pytest.raises(ValueError, match=r"extra\['time'\]: expected 2 values, got shape \[3\]"):
        Batch.from_bags({"item": ([1, 2], None)}, schema=schema, extra={"time": [7, 8, 9]})
