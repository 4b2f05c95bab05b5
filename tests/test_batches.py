"""Batches: what is in them, threads, errors; test_batch_order.py has their order."""

import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from batch_content import batches_of, content, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dataset import SCHEMA, TinyDataset, dataset_of, tiny_dataset

from esmm_fast import reference
from esmm_fast.batch import Batch, Plan
from esmm_fast.schema import Field, Schema
from esmm_fast.vocabulary import Vocabulary


def test_literal() -> None:
    schema = Schema((Field("history", "common", multi=True, weighted=True), Field("item")))
    common = [{"history": [(5, 0.5)]}, {"history": [(6, 2.0), (5, 1.0)]}]
    rows = [
        {"sample_id": 10, "click": 1, "conversion": 0, "common_row": 1, "item": [(70, 1.0)]},
        {"sample_id": 13, "click": 1, "conversion": 1, "common_row": 1, "item": []},
        {"sample_id": 16, "click": 0, "conversion": 0, "common_row": 0, "item": [(99, 1.0)]},
    ]
    dataset = dataset_of(schema, common, rows)
    vocabulary = Vocabulary({"history": ([5, 6], [2, 1]), "item": ([70], [1])})
    (batch,) = batches_of(dataset, vocabulary=vocabulary, shuffle=False)
    assert repr(batch) == "Batch(B=3, U=2, N=5, T=4)"
    assert batch.common == 2 and batch.common_of_impression.tolist() == [0, 0, 1]
    assert batch.sample_id is not None and batch.sample_id.tolist() == [10, 13, 16]
    assert batch.labels.tolist() == [[1, 0], [1, 1], [0, 0]]
    # history has rows 0 ... 2, item begins at 3; common row 1 comes first
    assert batch.plan.rows.tolist() == [2, 1, 1, 4, 3]
    assert batch.plan.offsets.tolist() == [0, 2, 3, 4, 4, 5]
    assert batch.plan.weights is not None
    assert batch.plan.weights.tolist() == [2.0, 1.0, 0.5, 1.0, 1.0]
    assert batch.plan.bag_of_occurrence.tolist() == [0, 0, 1, 2, 4]
    assert batch.plan.touched_rows.tolist() == [1, 2, 3, 4]
    assert batch.plan.occurrence_by_row.tolist() == [1, 2, 0, 4, 3]


def check_batch(dataset: TinyDataset, vocabulary: Vocabulary, batch: Batch, kind: str) -> None:
    """Compares a batch with a slow join of the lists it was made from."""
    schema = vocabulary.sized(dataset.schema)
    row_of = {
        (table, int(id)): row
        for table in vocabulary.tables
        for row, id in enumerate(vocabulary.feature_ids(table))
        if row
    }
    bases, plan = schema.row_bases, batch.plan
    impressions, fc, fs = len(batch.labels), len(schema.common), len(schema.impression)
    assert plan.offsets.numel() == batch.common * fc + impressions * fs + 1
    seen: dict[int, int] = {}
    for b, row in enumerate(rows_of([batch])):
        truth = dataset.rows[row]
        click, conversion = truth["click"], truth["conversion"]
        second = conversion if kind == "raw" else click * conversion
        assert batch.labels[b].tolist() == [click, second]
        if fc:
            u = seen.setdefault(truth["common_row"], len(seen))
            assert batch.common_of_impression[b] == u
        for f, field in enumerate((*schema.common, *schema.impression)):
            bag = u * fc + f if f < fc else batch.common * fc + b * fs + f - fc
            truth_bag = (dataset.common[truth["common_row"]] if f < fc else truth)[field.name]
            begin, end = plan.offsets[bag : bag + 2].tolist()
            assert plan.rows[begin:end].tolist() == [
                bases[field.table_name] + row_of.get((field.table_name, id), 0)
                for id, _ in truth_bag
            ]
            if plan.weights is not None:
                expected = torch.tensor([value for _, value in truth_bag])
                assert torch.equal(plan.weights[begin:end], expected)
    assert batch.common == len(seen) if fc else batch.common == 0
    twin = reference.batch_plan(plan.rows, plan.offsets)
    for name in Plan.__dataclass_fields__:
        if name != "weights":
            assert torch.equal(getattr(plan, name), getattr(twin, name)), name


@settings(max_examples=80, deadline=None)
@given(
    dataset=st.builds(
        tiny_dataset,
        impressions=st.integers(1, 60),
        common_rows=st.integers(1, 9),
        seed=st.integers(0, 99),
        chunks=st.integers(1, 5),
        sliced=st.booleans(),
        ids_apart=st.sampled_from([1, 70_000]),
        wide=st.booleans(),
    ),
    batch_size=st.integers(1, 70),
    group_limit=st.sampled_from([None, 1, 2, 5]),
    shuffle=st.booleans(),
    kind=st.sampled_from(["and", "raw", "drop"]),
    min_count=st.sampled_from([1, 3]),
    threads=st.integers(0, 2),
    part=st.booleans(),
)
def test_matches_a_slow_join(
    dataset: TinyDataset,
    batch_size: int,
    group_limit: int | None,
    shuffle: bool,
    kind: Any,
    min_count: int,
    threads: int,
    part: bool,
) -> None:
    if part:  # a view that takes impressions twice and leaves others out
        dataset = dataset.select([r for r in range(len(dataset.rows)) for _ in range(r % 3)])
    vocabulary = Vocabulary.from_dataset(dataset, min_count)
    batches = batches_of(
        dataset,
        batch_size,
        vocabulary=vocabulary,
        group_limit=group_limit,
        shuffle=shuffle,
        labels=kind,
        threads=threads,
    )
    made = list(batches)
    assert len(made) == len(batches)
    assert all(len(batch.labels) == batch_size for batch in made[:-1])
    for batch in made:
        check_batch(dataset, vocabulary, batch, kind)
    selected = list(range(len(dataset.rows)) if dataset.selection is None else dataset.selection)
    if kind == "drop":
        selected = [
            r for r in selected if dataset.rows[r]["click"] >= dataset.rows[r]["conversion"]
        ]
    if shuffle:
        assert Counter(rows_of(made)) == Counter(selected)
    else:
        assert rows_of(made) == selected


def test_pooled_sums_equal_a_join_in_python() -> None:
    dataset = tiny_dataset(50)
    vocabulary = Vocabulary.from_dataset(dataset)
    schema = vocabulary.sized(SCHEMA)
    weight = torch.randn(sum(schema.table_rows.values()), 3, dtype=torch.float64)
    for batch in batches_of(dataset, 16, vocabulary=vocabulary):
        common, impression = reference.pooled_embedding(
            weight, batch.plan, batch.common * len(schema.common)
        )
        common = common.view(batch.common, -1)[batch.common_of_impression.long()]
        ours = torch.cat([common, impression.view(len(batch.labels), -1)], 1)
        for b, row in enumerate(rows_of([batch])):
            truth = {**dataset.rows[row], **dataset.common[dataset.rows[row]["common_row"]]}
            expected = torch.zeros(len(schema.fields), 3, dtype=torch.float64)
            for f, field in enumerate((*schema.common, *schema.impression)):
                for id, value in truth[field.name]:
                    row_of_id = vocabulary.lookup(field.table_name, [id])[0]
                    at = schema.row_bases[field.table_name] + row_of_id
                    expected[f] += float(np.float32(value)) * weight[at]
            torch.testing.assert_close(ours[b], expected.flatten())


def test_tensors_own_their_memory() -> None:
    dataset = tiny_dataset(50)
    kept = [batch.labels for batch in batches_of(dataset, 10, shuffle=False)]
    expected = [[r["click"], r["click"] * r["conversion"]] for r in dataset.rows]
    assert torch.cat(kept).tolist() == expected
    assert kept[0].data_ptr() % 64 == 0


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_reads_memory_mapped_files(tmp_path: Path, compression: str | None) -> None:
    dataset = tiny_dataset(50, chunks=4)
    expected = [content(batch) for batch in batches_of(dataset)]
    mapped = {}
    for name in ("impressions", "common_rows"):
        table = getattr(dataset, name)
        options = pa.ipc.IpcWriteOptions(compression=compression)
        path = str(tmp_path / name)
        with pa.ipc.new_file(path, table.schema, options=options) as writer:
            writer.write_table(table)
        mapped[name] = pa.ipc.open_file(pa.memory_map(path)).read_all()
    dataset, vocabulary = replace(dataset, **mapped), Vocabulary.from_dataset(dataset)
    batches = batches_of(dataset, vocabulary=vocabulary)
    del dataset, mapped
    assert [content(batch) for batch in batches] == expected


def test_unweighted_schema_has_no_weights() -> None:
    schema = Schema((SCHEMA.fields[0], SCHEMA.fields[3], SCHEMA.fields[4]))
    dataset = tiny_dataset(schema=schema)
    assert all(batch.plan.weights is None for batch in batches_of(dataset))


def test_fields_of_the_schema_are_read() -> None:
    dataset = tiny_dataset()
    some = Schema((SCHEMA.fields[6], SCHEMA.fields[0]))
    batches = batches_of(dataset, 60, schema=some, shuffle=False)
    (batch,) = batches
    assert [f.name for f in batches.schema.fields] == ["crosses", "user"]
    assert batch.plan.offsets.numel() - 1 == batch.common + 60
    check_batch(
        replace(dataset, schema=some), Vocabulary.from_dataset(dataset, schema=some), batch, "and"
    )


def test_without_common_rows() -> None:
    schema = Schema(SCHEMA.impression)
    dataset = tiny_dataset(schema=schema, with_common_row=False)
    made = list(batches_of(dataset, 8, group_limit=None))
    assert sorted(rows_of(made)) == list(range(60))
    assert rows_of(made) != sorted(rows_of(made))
    for batch in made:
        assert batch.common == 0 and batch.common_of_impression.unique().tolist() == [0]
        check_batch(dataset, Vocabulary.from_dataset(dataset), batch, "and")


def test_no_impressions() -> None:
    dataset = tiny_dataset().select([])
    batches = batches_of(dataset)
    assert len(batches) == 0 and list(batches) == []
    assert batches.epoch == 1


def test_same_bytes_for_any_thread_count() -> None:
    dataset = tiny_dataset(500, 40)
    runs = [
        [
            content(b)
            for b in batches_of(dataset, 9, group_limit=3, threads=threads, prefetch=prefetch)
        ]
        for threads, prefetch in ((0, None), (1, 1), (2, 3), (7, None), (7, 1))
    ]
    assert all(run == runs[0] for run in runs[1:])


def test_abandoned_iterators_end() -> None:
    def native_threads() -> int:
        return len(os.listdir("/proc/self/task"))

    dataset = tiny_dataset(300)
    before = native_threads()
    for _ in range(20):
        iterator = iter(batches_of(dataset, 2, threads=3))
        next(iterator)
        del iterator
    batches = batches_of(dataset, 2, threads=3)
    iterator = iter(batches)
    next(iterator)
    assert native_threads() == before + 3
    batches.close()
    deadline = time.monotonic() + 5  # a joined thread can stay listed for a moment
    while native_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert native_threads() == before


def test_exit_with_an_iterator_under_way(tmp_path: Path) -> None:
    code = """
        from batch_content import batches_of
        from tiny_dataset import tiny_dataset
        iterator = iter(batches_of(tiny_dataset(300), 2, threads=3))
        next(iterator)
        import builtins; builtins.kept = iterator
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_errors_in_threads_come_in_order() -> None:
    dataset = tiny_dataset(60)
    column = dataset.impressions["common_row"].to_numpy().copy()
    column[33] = 9
    at = dataset.impressions.column_names.index("common_row")
    dataset.impressions = dataset.impressions.set_column(at, "common_row", [column])
    for threads in (0, 1, 3):
        iterator = iter(batches_of(dataset, 10, shuffle=False, threads=threads))
        for _ in range(3):
            next(iterator)
        with pytest.raises(ValueError, match="common_row 9 is outside the 9 common rows"):
            next(iterator)


def test_a_fork_is_told() -> None:
    iterator = iter(batches_of(tiny_dataset(60), 2))
    next(iterator)
    child = os.fork()
    if child == 0:
        try:
            next(iterator)
        except RuntimeError as error:
            os._exit(0 if "made in another process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"group_limit": 0}, "group_limit: expected at least 1, got 0"),
        ({"threads": -1}, "threads: expected at least 0, got -1"),
        ({"prefetch": 0}, "prefetch: expected at least 1, got 0"),
        ({"seed": -1}, r"seed: expected 0 <= seed < 2\^64, got -1"),
        ({"labels": "or"}, "labels: expected 'and', 'drop' or 'raw', got 'or'"),
        ({"schema": replace(SCHEMA, dense=3)}, "has no column 'dense'"),
    ],
)
def test_errors_of_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches_of(tiny_dataset(), **options)
    with pytest.raises(TypeError, match=r"batch_size: expected an int, got 64\.0"):
        batches_of(tiny_dataset(), batch_size=64.0)


def test_errors_of_datasets() -> None:
    dataset = tiny_dataset(60)
    vocabulary = Vocabulary.from_dataset(dataset)
    with pytest.raises(ValueError, match=r"selection\[1\] = 60 is outside the dataset of 60"):
        batches_of(dataset.select([3, 60]), vocabulary=vocabulary)
    with pytest.raises(KeyError, match="the vocabulary has no table 'user'"):
        batches_of(dataset, vocabulary=Vocabulary({"x": ([], [])}))

    def with_column(name: str, values: Any) -> TinyDataset:
        at = dataset.impressions.column_names.index(name)
        return replace(dataset, impressions=dataset.impressions.set_column(at, name, values))

    impressions = dataset.impressions
    missing = replace(dataset, impressions=impressions.drop_columns(["tags"]))
    with pytest.raises(ValueError, match="impression side of the dataset has no column 'tags'"):
        batches_of(missing, vocabulary=vocabulary)
    missing = replace(dataset, impressions=impressions.drop_columns(["common_row"]))
    with pytest.raises(ValueError, match="the impressions have no column common_row"):
        batches_of(missing, vocabulary=vocabulary)
    for name, type, message in (
        (
            "item",
            pa.int64(),
            "column 'item': expected uint32, uint64, or a list of them, got int64",
        ),
        ("cross_value", pa.float64(), "column 'cross_value': expected float, got double"),
        ("click", pa.int16(), "column 'click': expected uint8 without nulls, got int16"),
    ):
        with pytest.raises(ValueError, match=message):
            batches_of(with_column(name, impressions[name].cast(type)), vocabulary=vocabulary)
    short = [bag[:-1] for bag in impressions["crosses_value"].to_pylist()]
    damaged = with_column("crosses_value", pa.array(short, pa.list_(pa.float32())))
    with pytest.raises(ValueError, match="not one value per feature id: the file is damaged"):
        list(batches_of(damaged, vocabulary=vocabulary))
    rows = impressions.num_rows
    for begin, end in ((0, 2**31 - 1), (-1, 2), (2**31 - 1, -(2**31)), (-(2**31), 2**31 - 1)):
        offsets = np.array([begin, end] * (rows // 2 + 1), np.int32)[: rows + 1]
        offsets[[0, -1]] = 0, 3  # which pyarrow looks at
        buffers = [None, pa.py_buffer(offsets)]
        ids = pa.array([7, 8, 9], pa.uint32())
        bags = pa.Array.from_buffers(pa.list_(ids.type), rows, buffers, children=[ids])
        damaged = with_column("tags", bags)
        with pytest.raises(ValueError, match="list offsets leave their column: the file is damage"):
            list(batches_of(damaged, vocabulary=vocabulary))
