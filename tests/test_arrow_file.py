"""Arrow files: what pyarrow, polars and DuckDB read is what was written, from as few bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm_fast.data.arrow_file import ArrowFile, can_be_stored

IDS = pa.array([9351665, 9351666], pa.uint32())
VALUES = pa.array(np.array([0.5, 0.25, 0.125], np.float32))
SCHEMA = pa.schema(
    {
        "301": pa.dictionary(pa.uint8(), pa.uint32()),
        "853": pa.list_(pa.uint32()),
        "853_value": pa.list_(pa.dictionary(pa.uint16(), pa.float32())),
    }
)


def lists(offsets: pa.Buffer, items: np.ndarray) -> pa.Array:
    child = pa.array(items)
    buffers = [None, offsets]
    return pa.Array.from_buffers(pa.list_(child.type), 3, buffers, 0, children=[child])


def columns() -> list[pa.Array]:
    offsets = pa.py_buffer(np.array([0, 2, 2, 4], np.int32))
    return [
        pa.array([0, 1, None], pa.uint8()),
        lists(offsets, np.array([7, 8, 9, 10], np.uint32)),
        lists(offsets, np.array([0, 1, 2, 1], np.uint16)),
    ]


ROWS: list[dict[str, Any]] = [
    {"301": 9351665, "853": [7, 8], "853_value": [0.5, 0.25]},
    {"301": 9351666, "853": [], "853_value": []},
    {"301": None, "853": [9, 10], "853_value": [0.125, 0.25]},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = ArrowFile(tmp_path / "t.arrow", SCHEMA)
    file.write(columns())
    file.write([pa.concat_arrays([c, c]).slice(2, 3) for c in columns()])  # slices are cut out
    facts = file.close([IDS, VALUES])
    assert facts["bytes"] == (tmp_path / "t.arrow").stat().st_size
    return tmp_path / "t.arrow"


EXPECTED = [*ROWS, ROWS[2], ROWS[0], ROWS[1]]


def test_pyarrow_reads_it_mapped(path: Path) -> None:
    before = pa.total_allocated_bytes()
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    assert pa.total_allocated_bytes() == before
    table.validate(full=True)
    assert table.schema == SCHEMA and table.to_pylist() == EXPECTED
    first, second = table["853"].chunk(0), table["853_value"].chunk(0)
    assert first.buffers()[1].address == second.buffers()[1].address, "the offsets are there once"
    assert all(a.values.buffers()[1].address % 64 == 0 for a in (first, second))
    chosen = table.filter(pc.field("301") == 9351665)
    assert chosen.num_rows == 2
    scanned = pyarrow.dataset.dataset(str(path), format="ipc").to_table(columns=["853_value"])
    assert scanned["853_value"].to_pylist() == [row["853_value"] for row in EXPECTED]


def test_polars_reads_it(path: Path) -> None:
    pl = pytest.importorskip("polars")
    frame = pl.read_ipc(path)
    assert [str(t) for t in frame.dtypes] == ["UInt32", "List(UInt32)", "List(Float32)"]
    assert frame.to_dicts() == EXPECTED
    assert pl.scan_ipc(path).filter(pl.col("301") == 9351666).collect().height == 2


def test_duckdb_reads_it_through_pyarrow(path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    rows = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    found = duckdb.sql('SELECT "301", list_sum("853_value") FROM rows').fetchall()
    assert found[0] == (9351665, 0.75) and len(found) == len(EXPECTED) == rows.num_rows


TYPES = st.recursive(
    st.sampled_from(
        [
            *(pa.uint8(), pa.int64(), pa.float32(), pa.bool_(), pa.date32(), pa.timestamp("us")),
            *(pa.string(), pa.large_binary(), pa.binary(3), pa.decimal128(12, 3), pa.null()),
        ]
    ),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        inner.map(lambda t: pa.list_(t, 2)),
        st.lists(inner, min_size=1, max_size=2).map(
            lambda types: pa.struct([(f"f{i}", t) for i, t in enumerate(types)])
        ),
    ),
    max_leaves=3,
)


@settings(max_examples=80, deadline=None)
@given(type=TYPES, rows=st.integers(0, 20), cut=st.integers(0, 3), seed=st.integers(0, 99))
def test_every_type_comes_back(
    tmp_path_factory: pytest.TempPathFactory, type: pa.DataType, rows: int, cut: int, seed: int
) -> None:
    assert can_be_stored(type)
    rng = np.random.default_rng(seed)

    def value(type: pa.DataType) -> Any:
        if rng.random() < 0.2 or pa.types.is_null(type):
            return None
        if pa.types.is_fixed_size_list(type):
            return [value(type.value_type) for _ in range(2)]
        if pa.types.is_list(type) or pa.types.is_large_list(type):
            return [value(type.value_type) for _ in range(rng.integers(4))]
        if pa.types.is_struct(type):
            return {f.name: value(f.type) for f in type}
        if pa.types.is_string(type) or pa.types.is_large_binary(type):
            return "x" * rng.integers(5)
        if pa.types.is_fixed_size_binary(type):
            return b"abc"
        return bool(rng.integers(2)) if pa.types.is_boolean(type) else int(rng.integers(100))

    array = pa.array([value(type) for _ in range(rows + cut)], type).slice(cut)
    path = tmp_path_factory.mktemp("types") / "t.arrow"
    file = ArrowFile(path, pa.schema({"a": type, "b": pa.int32()}))
    file.write([array, pa.array(range(rows), pa.int32())])
    file.close()
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    table.validate(full=True)
    assert table["a"].to_pylist() == array.to_pylist()
    assert table["b"].to_pylist() == list(range(rows))


def test_a_file_without_rows(tmp_path: Path) -> None:
    ArrowFile(tmp_path / "t.arrow", SCHEMA).close([IDS[:0], VALUES[:0]])
    table = pa.ipc.open_file(tmp_path / "t.arrow").read_all()
    assert table.schema == SCHEMA and table.num_rows == 0
