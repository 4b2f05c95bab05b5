"""Tables of a user's own: Parquet, Arrow and memory give the dataset that the log would give."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import slow_log
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm_fast.data import table_source
from esmm_fast.data.dataset import Dataset
from esmm_fast.data.log_format import LogFormat
from esmm_fast.data.logs import LogError
from esmm_fast.data.prepare_log import prepare
from esmm_fast.model import EntireSpaceChain
from esmm_fast.schema import ALI_CCP, Field, Schema
from esmm_fast.vocabulary import Vocabulary

SHOP = LogFormat(
    Schema(
        (
            Field("user", "common"),
            Field("seen", "common", multi=True, weighted=True, table="item"),
            Field("item"),
            Field("tags", multi=True),
        ),
        labels=("click", "cart", "buy"),
        dense=2,
        weight="w",
        extra=("time", "note"),
    ),
    key="session",
    dense=("price", "age"),
)
ROWS = pa.table(
    {
        "session": ["a", "a", "b", "a"],
        "user": pa.array([1, 1, None, 1], pa.int64()),
        "seen": pa.array([[7, 8], [7, 8], [], [7, 8]], pa.large_list(pa.int32())),
        "seen_value": [[0.5, 1.0], [0.5, 1.0], None, [0.5, 1.0]],
        "item": pa.array([7, None, 9, 5_000_000_000], pa.uint64()),
        "tags": pa.array([[1], None, [2, 3], []], pa.list_(pa.int8())),
        "click": [True, True, False, True],
        "cart": [1, 0, 0, 1],
        "buy": [1.0, 0.0, 1.0, 0.0],
        "price": [9.5, 1.0, 0.1, -3.0],
        "age": pa.array([1, 2, 3, 4], pa.int16()),
        "w": [1, 2, 3, 4],
        "time": pa.array([10, 20, 30, 40], pa.timestamp("s")),
        "note": pa.array(["x", None, "y", "x"]).dictionary_encode(),
        "unused": [b"", b"", b"", b""],
    }
)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "memory", "stream", "several"])
def test_literal(tmp_path, kind):
    given = ROWS
    if kind == "parquet":
        given = tmp_path / "t.parquet"
        pq.write_table(ROWS, given, row_group_size=3)
    elif kind == "arrow":
        given = tmp_path / "t.arrow"
        with pa.ipc.new_file(given, ROWS.schema) as file:
            file.write_table(ROWS, max_chunksize=3)
    elif kind == "stream":
        given = ROWS.to_reader()
    elif kind == "several":
        given = [ROWS.slice(0, 1), ROWS.slice(1, 0), ROWS.slice(1)]
    dataset = prepare(table=given, schema=SHOP, out=tmp_path / "out")
    assert dataset.impressions.to_pydict() == {
        "sample_id": [1, 2, 3, 4],
        "click": [1, 1, 0, 1],
        "cart": [1, 0, 0, 1],
        "buy": [1, 0, 1, 0],
        "common_row": [0, 0, 1, 0],
        "dense": [[9.5, 1], [1, 2], [pytest.approx(0.1), 3], [-3, 4]],
        "w": [1, 2, 3, 4],
        "time": ROWS["time"].to_pylist(),
        "note": ["x", None, "y", "x"],
        "item": [7, None, 9, 5_000_000_000],
        "tags": [[1], [], [2, 3], []],
    }
    assert dataset.common_rows.drop_columns("key").to_pydict() == {
        "user": [1, None],
        "seen": [[7, 8], []],
        "seen_value": [[0.5, 1.0], []],
    }
    assert Dataset(tmp_path / "out").schema == SHOP.schema
    info = dataset.info(verify=True)
    assert info["labels"] == {"click": 3, "cart": 2, "buy": 2}
    assert (info["clicks"], info["conversions"], info["conversions_without_click"]) == (3, 1, 1)
    found = info["anomalies"]["conversions_without_click"]["first"]
    assert found.endswith(": row 3" if kind != "several" else "table 2: row 2")
    assert info["fields"]["seen"] == {"occurrences": 2, "distinct_ids": 2, "rows_without": 1}
    assert info["promoted"] == {"item": ["uint64"]}
    assert (info["common_rows"], info["common_rows_unused"]) == (2, 0)
    counts = dataset.counts.to_pylist()
    assert {"field": "seen", "feature_id": 8, "count": 1} in counts
    assert len(counts) == 1 + 2 + 3 + 3
    report = prepare(table=given if kind != "stream" else ROWS, schema=SHOP, check=True)
    assert {n: report[n] for n in ("impressions", "fields", "labels")} == {
        n: info[n] for n in ("impressions", "fields", "labels")
    }


def tables_of(log) -> tuple[pa.Table, pa.Table]:
    """Returns a dataset's tables as a user would have them: with keys, without common_row."""
    keys = [f"{key:016x}" for key in log.common_rows["key"].to_pylist()]
    rows = pa.array(log.impressions["common_row"].to_numpy())
    impressions = log.impressions.append_column("key", pa.array(keys).take(rows))
    common = log.common_rows.drop_columns("key").append_column("key", pa.array(keys))
    return impressions.drop_columns("common_row"), common


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), strange=st.booleans(), rows=st.sampled_from([3, 1 << 16]))
def test_a_table_gives_what_the_log_gives(tmp_path_factory, seed, strange, rows):
    """With tables of common rows, and with their fields joined to every impression."""
    folder = tmp_path_factory.mktemp("tables")
    rng = random.Random(seed)
    texts = slow_log.generate(rng, rng.randrange(1, 25), rng.randrange(1, 6), strange=strange)
    files = slow_log.write(folder, *texts)
    log = prepare(skeleton=files[0], common=files[1], out=folder / "log")
    impressions, common = tables_of(log)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_source, "ROWS", rows)
        dataset = prepare(table=impressions, common=common, out=folder / "table", schema=log.schema)
        assert dataset.impressions.equals(log.impressions)
        assert dataset.common_rows.drop_columns("key").equals(log.common_rows.drop_columns("key"))
        assert dataset.counts.equals(log.counts)
        for name in ("impressions", "clicks", "conversions", "common_rows_unused", "fields"):
            assert dataset.info()[name] == log.info()[name]

        at = pa.array(log.impressions["common_row"].to_numpy())
        joined = impressions.drop_columns("key")
        for name in common.drop_columns("key").column_names:
            joined = joined.append_column(name, common[name].take(at))
        one = prepare(table=joined, out=folder / "joined", schema=log.schema)
    found = [[(row["fields"], row["sample_id"]) for row in d.head(100)] for d in (one, log)]
    assert found[0] == found[1]
    distinct = {repr(row["fields"]) for row in common_fields(log)}
    assert one.common_rows.num_rows == len(distinct)


def common_fields(log: Dataset) -> list[dict]:
    names = [f.name for f in log.schema.common]
    return [
        {"fields": {n: v for n, v in row["fields"].items() if n in names}}
        for row in log.head(len(log))
    ]


def test_no_key_and_no_common_fields(tmp_path):
    schema = Schema((Field("item"),), labels=("click",))
    table = pa.table({"item": [1, 2], "click": [0, 1], "id": [70, 60]})
    dataset = prepare(table=table, schema=schema, out=tmp_path / "a")
    assert dataset.impressions.to_pydict() == {"sample_id": [1, 2], "click": [0, 1], "item": [1, 2]}
    assert dataset.common_rows.num_rows == 0
    keyed = LogFormat(schema, key="id", sample_id="id")
    dataset = prepare(table=table, schema=keyed, out=tmp_path / "b")
    assert dataset.impressions["sample_id"].to_pylist() == [70, 60]
    assert dataset.common_rows.to_pydict() == {"key": [70, 60]}


def test_a_dataset_of_a_table_trains(tmp_path):
    """Every stage, dense feature and weight reaches the loss of a chain of stages."""
    table = pa.concat_tables([ROWS] * 16)
    dataset = prepare(table=table, schema=SHOP, out=tmp_path / "out")
    vocabulary = Vocabulary.from_dataset(dataset)
    model = EntireSpaceChain(vocabulary.sized(dataset.schema), dim=4, hidden=(8,))
    for batch in dataset.batches(16, vocabulary=vocabulary):
        assert batch.labels.shape == (16, 3) and batch.dense.shape == (16, 2)
        assert sorted(batch.extra) == ["time"]
        model.loss(model(batch), batch).backward()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_of_other_libraries(tmp_path, library):
    """What they make of lists, gaps and booleans is read like Arrow's own."""
    module = pytest.importorskip(library)
    rows = ROWS.drop_columns(["time", "note", "unused"])
    schema = dataclasses.replace(SHOP, schema=dataclasses.replace(SHOP.schema, extra=()))
    if library == "polars":
        table = module.from_arrow(rows)
    else:
        types = {pa.int64(): module.Int64Dtype(), pa.uint64(): module.UInt64Dtype()}
        table = rows.to_pandas(types_mapper=types.get)
    ours = prepare(table=rows, schema=schema, out=tmp_path / "ours")
    theirs = prepare(table=table, schema=schema, out=tmp_path / "theirs")
    assert theirs.impressions.equals(ours.impressions)
    assert theirs.common_rows.equals(ours.common_rows)


# ---- Tables that do not fit


def changed(**columns) -> pa.Table:
    table = ROWS
    for name, values in columns.items():
        at = table.schema.names.index(name)
        table = table.set_column(at, name, pa.array(values) if isinstance(values, list) else values)
    return table


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item": ["7"] * 4}, "table 0: field 'item': .*got string .number the texts"),
        ({"item": [7.0, NAN, 1.0, 2.0]}, r"got double \(pandas turns integers with gaps"),
        ({"item": [7, 8, -9, 10]}, "row 3: field 'item': .* at least 0 expected, got -9"),
        ({"tags": [[1], [2], [3, -4], []]}, "row 3: field 'tags': .* got -4"),
        (
            {"tags": [[1], [2, None], [3], []]},
            "row 2: field 'tags': a feature id .*null",
        ),
        (
            {"seen_value": [[1.0]] * 4},
            "row 1: column 'seen_value': .* each of 2 ids .* got 1",
        ),
        ({"seen_value": [1.0] * 4}, "'seen_value': lists of numbers expected beside large_list"),
        (
            {"seen_value": [[1.0, 1.0], [1.0, INF], None, [1.0, 1.0]]},
            "row 2: column 'seen_value': a number of float32's range expected, got inf",
        ),
        ({"click": [1, 0, 2, 0]}, "row 3: label 'click': 0 or 1 expected, got 2"),
        ({"click": [1, 0, 1, None]}, "row 4: label 'click': 0 or 1 expected, got None"),
        ({"click": ["1"] * 4}, "label 'click': 0 and 1, or booleans, expected, got string"),
        ({"w": [1.0, NAN, 1.0, 1.0]}, "row 2: column 'w': a number of float32's range"),
        ({"w": [1.0, 1e60, 1.0, 1.0]}, r"row 2: column 'w': .*got 1e\+60"),
        ({"w": [1.0, 0.0, -0.5, -1.0]}, "row 3: weight 'w': .* of at least 0 expected, got -0.5"),
        ({"price": [None, 1.0, 1.0, 1.0]}, "row 1: column 'price': .*got None"),
        ({"price": ["1"] * 4}, "column 'price': numbers expected, got string"),
        ({"session": ["a", None, "b", "a"]}, "row 2: key 'session': a text expected, got null"),
        ({"session": [1.5] * 4}, "key 'session': integers expected, got double"),
    ],
)
def test_bad_values(tmp_path, columns, message):
    with pytest.raises((LogError, ValueError), match=message):
        prepare(table=changed(**columns), schema=SHOP, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_columns_that_are_missing(tmp_path):
    for old, new, message in [
        ("item", "itme", "no column 'item' for a field; did you mean 'itme'"),
        ("cart", "x", "no column 'cart' for a column of the schema"),
        ("seen_value", "x", "no column 'seen_value' for the values of the weighted field 'seen'"),
        ("session", "sessions", "no column 'session' for key; did you mean 'sessions'"),
        ("time", "x", "no column 'time'"),
    ]:
        table = ROWS.rename_columns([new if n == old else n for n in ROWS.column_names])
        with pytest.raises(ValueError, match=message):
            prepare(table=table, schema=SHOP, out=tmp_path / "out")
    other = changed(time=[1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"1: column 'time': timestamp\[s\] expected, got int"):
        prepare(table=[ROWS, other], schema=SHOP, out=tmp_path / "out")


def test_common_tables_that_do_not_fit(tmp_path):
    users = pa.table({"key": [1, 2, 1], "101": [7, 8, 7]})
    schema = Schema((Field("101", "common"), Field("205")))
    rows = pa.table({"key": [2, 1], "205": [5, 6], "click": [0, 1], "conversion": [0, 0]})
    dataset = prepare(table=rows, common=users, schema=schema, out=tmp_path / "out")
    assert dataset.common_rows.to_pydict() == {"key": [1, 2], "101": [7, 8]}
    assert dataset.impressions["common_row"].to_pylist() == [1, 0]
    assert dataset.info()["anomalies"]["duplicate_common_rows"]["first"] == "table 0: row 3"
    for common, message in [
        (
            users.slice(0, 1),
            r"0: row 1: no common row has the key 2; expected one in table 0",
        ),
        (users.slice(0, 0), "the tables of the common rows are empty"),
        (
            pa.table({"key": [1, 2, 1], "101": [7, 8, 9]}),
            "row 3: key 1: a second .* row 1",
        ),
        (users.rename_columns(["k", "101"]), "no column 'key', the key of common rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            prepare(table=rows, common=common, schema=schema, out=tmp_path / "new")
    with pytest.raises(ValueError, match="no column 'key' for key"):
        prepare(table=rows.drop_columns("key"), common=users, schema=schema, out=tmp_path / "new")


def test_no_values_are_values_of_1(tmp_path):
    """Rows are the same common row whether or not their table has a column of values."""
    schema = Schema((Field("u", "common", multi=True), Field("item")), labels=("click",))
    bare = pa.table({"u": [[1, 2], [1, 2]], "item": [5, 6], "click": [0, 1]})
    ones = bare.append_column("u_value", pa.array([[1.0, 1.0], [1.0, 2.0]]))
    dataset = prepare(table=[bare, ones], schema=schema, out=tmp_path / "out")
    assert dataset.impressions["common_row"].to_pylist() == [0, 0, 0, 1]
    assert dataset.common_rows["u_value"].to_pylist() == [[1, 1], [1, 2]]
    keyed = LogFormat(schema, key="k", columns=())
    users = bare.append_column("k", pa.array([1, 2])).drop_columns(["item", "click"])
    again = users.append_column("u_value", pa.array([[1.0, 1.0], [1.0, 1.0]]))
    rows = pa.table({"k": [2, 1], "item": [5, 6], "click": [0, 1]})
    dataset = prepare(table=rows, common=[users, again], schema=keyed, out=tmp_path / "keyed")
    assert dataset.info()["anomalies"]["duplicate_common_rows"]["count"] == 2


def test_what_is_no_table(tmp_path):
    (tmp_path / "text").write_text("a,b\n")
    for table, error, message in [
        (tmp_path / "text", ValueError, r"text: a Parquet or Arrow .* expected, got b'a,b\\n'"),
        (tmp_path, IsADirectoryError, "expected its Parquet or Arrow files"),
        (tmp_path / "none", FileNotFoundError, "no such file; expected a table"),
        ([5], TypeError, "Arrow's C stream interface .* expected, got int"),
        ([], ValueError, "at least one expected, got none"),
    ]:
        with pytest.raises(error, match=message):
            prepare(table=table, schema=ALI_CCP, out=tmp_path / "out")
    with pytest.raises(LogError, match="table 0: no impressions; expected at least one row"):
        prepare(table=ROWS.slice(0, 0), schema=SHOP, out=tmp_path / "out")
    for options, message in [
        ({"skeleton": tmp_path / "text"}, "table, or logdir, or skeleton expected, got several"),
        ({"on_error": "skip"}, "on_error: 'stop' expected with a table.*got 'skip'"),
        ({"on_error": "skp"}, "on_error: 'stop' expected with a table.*got 'skp'"),
        ({"threads": 2}, "threads: the text files of a log expected with it, got a table"),
        ({"chunk_bytes": 9}, "chunk_bytes: the text files of a log expected with it, got a table"),
    ]:
        with pytest.raises(ValueError, match=message):
            prepare(table=ROWS, schema=SHOP, out=tmp_path / "out", **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text"]
    for nothing in (None, (), []):
        options = {"skeleton": nothing, "common": nothing, "check": True}
        assert prepare(table=ROWS, schema=SHOP, **options)["impressions"] == 4


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("where", ["begin", "end"])
def test_damaged_files_are_named(tmp_path, kind, where):
    path = tmp_path / f"t.{kind}"
    rows = pa.concat_tables([ROWS] * 400)
    if kind == "parquet":
        pq.write_table(rows, path, use_dictionary=False, compression="zstd")
    else:
        with pa.ipc.new_file(path, rows.schema) as file:
            file.write_table(rows, max_chunksize=100)
    stored = bytearray(path.read_bytes())
    if where == "end":
        del stored[-20:]
    else:
        stored[8:-2000] = b"\xff" * (len(stored) - 2008)
    path.write_bytes(stored)
    with pytest.raises(LogError, match=rf"^{path} is damaged: a table of {kind.capitalize()} ex"):
        prepare(table=path, schema=SHOP, out=tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_values_are_rounded_to_float32(tmp_path):
    dataset = prepare(table=changed(price=[0.1] * 4), schema=SHOP, out=tmp_path / "out")
    assert np.stack(dataset.impressions["dense"].to_numpy())[0, 0] == np.float32(0.1)
