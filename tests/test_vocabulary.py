"""Vocabulary: rows by count, the file, look-ups of every kind."""

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dataset import SCHEMA, tiny_dataset

from esmm_fast import _native
from esmm_fast.data.batches import Batches
from esmm_fast.schema import Field, Schema
from esmm_fast.vocabulary import NO_ID, Vocabulary


def test_rows_go_by_count_then_id() -> None:
    dataset = tiny_dataset()
    vocabulary = Vocabulary.from_dataset(dataset)
    counts = Counter(
        id
        for field, rows in (("seen", dataset.common), ("item", dataset.rows))
        for row in rows
        for id, _ in row[field]
    )
    expected = sorted(counts, key=lambda id: (-counts[id], id))
    assert vocabulary.tables == ("user", "history", "item", "tags", "cross", "crosses")
    assert vocabulary.feature_ids("item").tolist() == [NO_ID, *expected]
    assert vocabulary.feature_ids("item").dtype == np.uint64
    assert vocabulary.counts("item").tolist() == [0, *(counts[id] for id in expected)]
    assert vocabulary.rows("item") == len(expected) + 1
    assert vocabulary.lookup("item", vocabulary.feature_ids("item")).tolist() == [
        0,
        *range(1, len(expected) + 1),
    ]


def test_min_count_cuts_a_prefix() -> None:
    dataset = tiny_dataset(200)
    whole, cut = Vocabulary.from_dataset(dataset), Vocabulary.from_dataset(dataset, min_count=9)
    for table in whole.tables:
        kept = cut.rows(table)
        assert cut.feature_ids(table).tolist() == whole.feature_ids(table)[:kept].tolist()
        assert (cut.counts(table)[1:] >= 9).all() and (whole.counts(table)[kept:] < 9).all()
    assert 1 < cut.rows("crosses") < whole.rows("crosses")


def test_counts_of_a_selection() -> None:
    dataset = tiny_dataset(80, sliced=True)
    view = dataset.select([i for i, r in enumerate(dataset.rows) if r["click"]] * 2)
    assert Vocabulary.from_dataset(view).counts("item").sum() == (
        Vocabulary.from_dataset(dataset).counts("item").sum()
    )
    rows = [r for r in dataset.rows if r["click"]]
    common = [dataset.common[c] for c in {r["common_row"] for r in rows}]
    vocabulary = Vocabulary.from_dataset(view, selected=True)
    for table in vocabulary.tables:
        counts = Counter(
            id
            for f in SCHEMA.fields
            if f.table_name == table
            for row in (common if f.side == "common" else rows)
            for id, _ in row[f.name]
        )
        expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ids, times = vocabulary.feature_ids(table)[1:], vocabulary.counts(table)[1:]
        assert list(zip(ids.tolist(), times.tolist(), strict=True)) == expected
    assert Vocabulary.from_dataset(dataset, selected=True).tables == vocabulary.tables


def test_counts_column_may_be_a_dictionary() -> None:
    dataset = tiny_dataset()
    expected = Vocabulary.from_dataset(dataset).feature_ids("tags").tolist()
    dataset.counts = pa.concat_tables(
        [dataset.counts.slice(0, 7), dataset.counts.slice(7)]
    ).set_column(0, "field", dataset.counts["field"].dictionary_encode())
    assert Vocabulary.from_dataset(dataset).feature_ids("tags").tolist() == expected


def test_sized() -> None:
    vocabulary = Vocabulary.from_dataset(tiny_dataset())
    schema = vocabulary.sized(SCHEMA)
    assert schema.table_rows == {t: vocabulary.rows(t) for t in vocabulary.tables}
    assert schema.row_bases["history"] == vocabulary.rows("user")


@pytest.mark.parametrize("min_count", [1, 10_000])
def test_save_and_load(tmp_path: Path, min_count: int) -> None:
    saved = Vocabulary.from_dataset(tiny_dataset(), min_count)
    saved.save(tmp_path / "vocabulary.arrow")
    assert [p.name for p in tmp_path.iterdir()] == ["vocabulary.arrow"]
    loaded = Vocabulary.load(tmp_path / "vocabulary.arrow")
    assert loaded.tables == saved.tables and loaded.min_count == min_count
    for table in saved.tables:
        assert np.array_equal(loaded.feature_ids(table), saved.feature_ids(table))
        assert np.array_equal(loaded.counts(table), saved.counts(table))
    with pa.OSFile(str(tmp_path / "vocabulary.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.column_names == ["table", "feature_id", "count", "row"]
    assert table.schema.field("row").type == pa.int32()
    assert table["table"].type.value_type == pa.string()


def test_pickles() -> None:
    vocabulary = Vocabulary.from_dataset(tiny_dataset())
    ids = vocabulary.feature_ids("tags")
    copy = pickle.loads(pickle.dumps(vocabulary))
    assert np.array_equal(copy.lookup("tags", ids), vocabulary.lookup("tags", ids))


@settings(max_examples=60, deadline=None)
@given(
    ids=st.one_of(
        st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=40),
        st.lists(st.integers(500, 700), unique=True, max_size=40),
        st.lists(st.integers(2**32 - 9, 2**32 + 9), unique=True, max_size=9),
    ),
    others=st.lists(st.integers(0, 2**64 - 1), max_size=20),
)
def test_lookup_matches_a_dict(ids: list[int], others: list[int]) -> None:
    rows = {id: i + 1 for i, id in enumerate(ids)}
    asked = ids + others + [id + 1 for id in ids if id < 2**64 - 1]
    vocabulary = Vocabulary({"t": (ids, [1] * len(ids))})
    expected = [rows.get(id, 0) for id in asked]
    assert vocabulary.lookup("t", np.array(asked, np.uint64)).tolist() == expected
    narrow = [id for id in asked if id < 2**32]
    assert vocabulary.lookup("t", np.array(narrow, np.uint32)).tolist() == [
        rows.get(id, 0) for id in narrow
    ]


@pytest.mark.parametrize(("apart", "direct"), [(1, True), (15, True), (1000, False)])
def test_lookup_is_direct_where_ids_stand_close(apart: int, direct: bool) -> None:
    ids = np.random.default_rng(0).permutation(20_000).astype(np.uint64) * np.uint64(apart)
    lookup = _native.Lookup(ids)
    assert lookup.direct is direct and len(lookup) == 20_000
    assert np.array_equal(lookup.rows(ids, base=5), np.arange(6, 20_006))


def test_lookup_keeps_the_shape() -> None:
    vocabulary = Vocabulary({"t": ([7, 8], [2, 1])})
    rows = vocabulary.lookup("t", [[8, 9], [7, 7]])
    assert rows.dtype == np.int32 and rows.tolist() == [[2, 0], [1, 1]]
    assert vocabulary.lookup("t", []).tolist() == []


def test_errors() -> None:
    vocabulary = Vocabulary({"t": ([7, 8], [2, 1])})
    with pytest.raises(KeyError, match="the vocabulary has no table 'x'; it has t"):
        vocabulary.rows("x")
    with pytest.raises(ValueError, match="expected feature ids of at least 0, got -1"):
        vocabulary.lookup("t", [-1])
    with pytest.raises(TypeError, match="ids: expected integers, got float64"):
        vocabulary.lookup("t", [0.5])
    with pytest.raises(ValueError, match="feature id 7 comes twice"):
        Vocabulary({"t": ([7, 7], [1, 1])}).lookup("t", [7])
    with pytest.raises(ValueError, match="feature id 700000 comes twice"):
        Vocabulary({"t": ([700_000, 1, 700_000], [1, 1, 1])}).lookup("t", [7])
    with pytest.raises(ValueError, match="table 't': expected as many counts as feature ids"):
        Vocabulary({"t": ([7, 8], [1])})
    with pytest.raises(ValueError, match="min_count: expected at least 1, got 0"):
        Vocabulary.from_dataset(tiny_dataset(), 0)


def test_errors_of_files(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.arrow"
    with pytest.raises(FileNotFoundError, match="no such vocabulary"):
        Vocabulary.load(path)
    vocabulary = Vocabulary.from_dataset(tiny_dataset())
    vocabulary.save(path)
    with pa.OSFile(str(path)) as source:
        good = pa.ipc.open_file(source).read_all()

    def write(table: pa.Table) -> None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not an Arrow file, or cut off"):
        Vocabulary.load(path)
    write(good.replace_schema_metadata({}))
    with pytest.raises(ValueError, match="not a vocabulary"):
        Vocabulary.load(path)
    write(good.replace_schema_metadata({**good.schema.metadata, b"esmm_fast vocabulary": b"7"}))
    with pytest.raises(ValueError, match="version 7 is not known here, expected 1"):
        Vocabulary.load(path)
    write(good.slice(1))
    with pytest.raises(ValueError, match=r"table 'user': expected the rows 1 \.\.\."):
        Vocabulary.load(path)
    ids = good["feature_id"].to_numpy().copy()
    ids[1] = ids[0]
    write(good.set_column(1, "feature_id", pa.array(ids)))
    with pytest.raises(ValueError, match="table 'user': a feature id has two rows"):
        Vocabulary.load(path)
    write(good)
    assert Vocabulary.load(path).tables == vocabulary.tables


class TestHashed:
    SCHEMA = Schema(
        (Field("a", rows="hash:2**10"), Field("b"), Field("c", table="a", rows="hash:2**10"))
    )

    def vocabulary(self) -> Vocabulary:
        return Vocabulary({"b": ([7], [3])}, hashed=self.SCHEMA.hashed_tables)

    def test_rows_are_spread_evenly_and_never_0(self) -> None:
        vocabulary = self.vocabulary()
        rows = vocabulary.lookup("a", np.arange(102_300, dtype=np.uint64))
        counts = np.bincount(rows, minlength=1024)
        assert counts[0] == 0 and len(counts) == 1024
        assert counts[1:].min() > 60 and counts[1:].max() < 150  # Poisson(100)
        wide = vocabulary.lookup("a", np.arange(100, dtype=np.uint32))
        assert np.array_equal(wide, rows[:100])
        assert vocabulary.lookup("a", np.array([2**64 - 1, 12], np.uint64)).tolist() == [
            vocabulary.lookup("a", np.uint64(2**64 - 1)).item(),
            rows[12],
        ]

    def test_sized_saved_and_pickled(self, tmp_path: Path) -> None:
        vocabulary = self.vocabulary()
        assert vocabulary.tables == ("b",) and vocabulary.rows("a") == 1024
        assert vocabulary.feature_ids("a").tolist() == [NO_ID, *range(1, 1024)]
        assert vocabulary.sized(self.SCHEMA).table_rows == {"a": 1024, "b": 2}
        vocabulary.save(tmp_path / "v.arrow")
        for other in (
            Vocabulary.load(tmp_path / "v.arrow"),
            pickle.loads(pickle.dumps(vocabulary)),
        ):
            assert other.hashed == {"a": 1024}
            assert other.lookup("a", [5, 6]).tolist() == vocabulary.lookup("a", [5, 6]).tolist()

    def test_batches_of_a_dataset(self) -> None:
        fields = [
            replace(f, rows="hash:50") if f.name == SCHEMA.fields[0].name else f
            for f in SCHEMA.fields
        ]
        schema = replace(SCHEMA, fields=tuple(fields))
        dataset = tiny_dataset()
        vocabulary = Vocabulary.from_dataset(dataset, schema=schema)
        assert vocabulary.hashed == {fields[0].table_name: 50}
        batches = Batches(dataset, 4, vocabulary=vocabulary, schema=schema, threads=0)
        assert batches.schema.table_rows[fields[0].table_name] == 50
        assert sum(int(batch.plan.rows.numel()) for batch in batches) > 0

    def test_errors(self) -> None:
        for wrong in ("hash:", "hash:1", "hash:2**", "2**20", "hash:-4"):
            with pytest.raises(ValueError, match="field 'a': rows: expected a number, 'hash:2"):
                Field("a", rows=wrong)
        with pytest.raises(ValueError, match="table 'a': expected the same rows='hash:"):
            _ = Schema((Field("a", rows="hash:8"), Field("b", table="a"))).hashed_tables
        with pytest.raises(ValueError, match=r"hold 2147483648 rows .*7: hash to fewer rows$"):
            Vocabulary({}, hashed={"a": 2**31})
        with pytest.raises(ValueError, match=r"raise min_count or hash to fewer rows$"):
            Vocabulary({"b": ([7], [3])}, hashed={"a": 2**31})
        with pytest.raises(ValueError, match="hashed: table 'a': expected 2 rows or more, got 0"):
            Vocabulary({}, hashed={"a": 0})
        with pytest.raises(KeyError, match="table 'a' is hashed: it knows neither feature ids nor"):
            self.vocabulary().counts("a")
        with pytest.raises(KeyError, match="no table 'x'; it has b, a"):
            self.vocabulary().rows("x")
