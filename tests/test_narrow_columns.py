"""Narrow columns: which types a table gets, and that no number is lost, whatever comes in which
order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import esmm_fast._native as _native
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm_fast.data.dataset import Dataset
from esmm_fast.data.manifest import DATA_FILES
from esmm_fast.data.narrow_columns import plain_batch, plain_schema
from esmm_fast.data.prepare_log import prepare
from esmm_fast.data.record_batches import Layout, arrow_schema
from esmm_fast.data.synth import synth
from esmm_fast.data.table_file import TableFile
from esmm_fast.schema import Field
from esmm_fast.vocabulary import Vocabulary

FIELDS = (Field("one"), Field("many", multi=True, weighted=True))


# ---- Codes


def test_codes_literal() -> None:
    codes = _native.Codes()
    numbers = np.array([7, 0, 7, 9], np.uint32)
    valid = np.array([0b1101], np.uint8)  # the second is absent
    assert codes.encode(numbers, valid, 1, 256).tolist() == [0, 0, 0, 1]
    assert codes.uint32().tolist() == [7, 9] and len(codes) == 2
    assert codes.encode(np.array([9, 8], np.uint32), None, 2, 65536).tolist() == [1, 2]
    back = _native.decode(np.array([2, 0, 0, 1], np.uint8), codes.uint32(), valid)
    assert back.tolist() == [8, 0, 7, 9] and back.dtype == np.uint32


def test_values_are_told_apart_by_their_bits() -> None:
    codes = _native.Codes()
    values = np.array([0.0, -0.0, 1.0, 1.0 + 2**-23], np.float32)
    assert codes.encode(values, None, 1, 256).tolist() == [0, 1, 2, 3]
    assert codes.float32().tobytes() == values.tobytes()


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([np.uint32, np.uint64, np.float32]),
    distinct=st.integers(1, 400),
    sizes=st.lists(st.integers(0, 300), max_size=4),
    holes=st.booleans(),
    seed=st.integers(0, 99),
)
def test_codes_against_a_dict(
    dtype: Any, distinct: int, sizes: list[int], holes: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codes, known = _native.Codes(), {}
    pool = (rng.integers(0, 2**31, distinct) + 5).astype(dtype)
    for size in sizes:
        numbers = rng.choice(pool, size)
        present = rng.random(size) < 0.6 if holes else np.ones(size, bool)
        bits = np.packbits(present, bitorder="little")
        found = codes.encode(numbers, bits if holes else None, 2, 65536)
        expected = [
            known.setdefault(n, len(known)) if p else 0
            for n, p in zip(numbers.tolist(), present.tolist(), strict=True)
        ]
        assert found.tolist() == expected
        back = _native.decode(found, getattr(codes, np.dtype(dtype).name)(), bits)
        assert back.tolist() == np.where(present, numbers, 0).tolist()


def test_more_numbers_than_the_limit() -> None:
    codes = _native.Codes()
    assert codes.encode(np.arange(256, dtype=np.uint32), None, 1, 256) is not None
    assert codes.encode(np.arange(257, dtype=np.uint32), None, 1, 256) is None
    wider = codes.encode(np.arange(300, dtype=np.uint32), None, 2, 65536)
    assert wider.tolist() == list(range(300)) and wider.dtype == np.uint16
    assert codes.encode(np.arange(65537, dtype=np.uint32), None, 2, 65536) is None
    with pytest.raises(ValueError, match=r"1 \(limit <= 256\) or 2 .* expected, got 1 \(limit 30"):
        codes.encode(np.arange(3, dtype=np.uint32), None, 1, 300)
    with pytest.raises(ValueError, match="a bit for each of 9 numbers expected, got 8"):
        codes.encode(np.arange(9, dtype=np.uint32), np.zeros(1, np.uint8), 2, 300)
    with pytest.raises(IndexError, match="outside its dictionary of 2: the file is damaged"):
        _native.decode(np.array([2], np.uint8), np.array([1, 2], np.uint32), None)


# ---- Tables


def plain(rows: list[tuple[int, int | None, list[tuple[int, float]]]]) -> pa.RecordBatch:
    """Returns rows (sample_id, one, many) as the parser gives them."""
    ids = [[i for i, _ in many] for _, _, many in rows]
    values = [[v for _, v in many] for _, _, many in rows]
    schema = arrow_schema("impression", FIELDS, Layout.of(FIELDS))
    zeros = [0] * len(rows)
    columns = [[r[0] for r in rows], zeros, zeros, zeros, [r[1] for r in rows], ids, values]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def written(path: Path, batches: list[pa.RecordBatch]) -> pa.Table:
    with TableFile(path, "impression", FIELDS, Layout.of(FIELDS)) as file:
        for batch in batches:
            file.write(batch, Layout.of(FIELDS))
        file.close()
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".narrow"] == []
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def types(table: pa.Table) -> list[str]:
    names = {"float": "float32"}
    found = []
    for name in ("sample_id", "one", "many", "many_value"):
        type = table.schema.field(name).type
        item = type.value_type if pa.types.is_list(type) else type
        found.append(str(item.index_type if pa.types.is_dictionary(item) else item))
    return [names.get(t, t) for t in found]


def test_few_numbers_are_codes(tmp_path: Path) -> None:
    rows: Any = [(1, 7, [(5, 0.5), (6, 1.0)]), (2, None, []), (3, 8, [(5, 0.5)])]
    table = written(tmp_path / "t.arrow", [plain(rows)] * 2)
    assert types(table) == ["uint32", "uint8", "uint8", "uint8"]
    assert table["one"].to_pylist() == [7, None, 8] * 2
    assert table["many_value"].to_pylist() == [[0.5, 1.0], [], [0.5]] * 2
    assert table["one"].chunk(0).dictionary.to_pylist() == [7, 8]
    back = [plain_batch(b) for b in table.to_batches()]
    assert all(b.equals(plain(rows)) for b in back)
    assert plain_schema(table.schema) == back[0].schema


def ids(first: int, count: int, times: int = 1) -> pa.RecordBatch:
    """Returns `count` distinct ids of "one", each `times` times."""
    return plain([(1, first + i % count, [(3, 1.0)]) for i in range(count * times)])


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([ids(0, 256)], "uint8"),
        ([ids(0, 257)], "uint16"),
        ([ids(0, 200), ids(100, 200)], "uint16"),
        ([ids(0, 1023)], "uint16"),
        ([ids(0, 1024)], "uint32"),  # 1,024 and more that come less than three times each
        ([ids(0, 400), ids(400, 300, 2)], "uint16"),  # 1,000 occurrences
        ([ids(0, 400), ids(400, 312, 2)], "uint32"),  # 1,024
        ([ids(0, 400, 3), ids(400, 400, 3)], "uint16"),
        ([ids(0, 16384, 3)], "uint16"),
        ([ids(0, 16385, 3)], "uint32"),
        ([ids(0, 10, 3), ids(10, 32758, 3)], "uint16"),
        ([ids(0, 10, 3), ids(10, 32759, 3)], "uint32"),
    ],
)
def test_which_codes_a_column_gets(
    tmp_path: Path, batches: list[pa.RecordBatch], expected: str
) -> None:
    table = written(tmp_path / "t.arrow", batches)
    assert types(table) == ["uint32", expected, "uint8", "uint8"]
    rows = [row for batch in batches for row in batch["one"].to_pylist()]
    assert table["one"].to_pylist() == rows
    assert table["many_value"].to_pylist() == [[1.0]] * len(rows)


def test_a_column_outgrows_two_bytes_late(tmp_path: Path) -> None:
    batches = [ids(0, 10, 3) for _ in range(16)] + [ids(0, 65536, 3)]
    assert types(written(tmp_path / "a.arrow", batches))[1] == "uint16"
    table = written(tmp_path / "b.arrow", [*batches, ids(65536, 1), ids(0, 5)])
    assert types(table)[1] == "uint32"
    rows = [row for batch in batches for row in batch["one"].to_pylist()]
    assert table["one"].to_pylist() == [*rows, 65536, 0, 1, 2, 3, 4]
    assert table["many"].chunk(3).type == pa.list_(pa.dictionary(pa.uint8(), pa.uint32()))


def test_sample_ids_beyond_32_bits(tmp_path: Path) -> None:
    small, large = plain([(2**32 - 1, 1, [])]), plain([(2**32, 1, [])])
    assert types(written(tmp_path / "a.arrow", [small]))[0] == "uint32"
    table = written(tmp_path / "b.arrow", [small, large, small])
    assert types(table)[0] == "uint64"
    assert table["sample_id"].to_pylist() == [2**32 - 1, 2**32, 2**32 - 1]


def test_a_table_without_rows(tmp_path: Path) -> None:
    table = written(tmp_path / "t.arrow", [])
    assert table.num_rows == 0 and types(table) == ["uint32", "uint8", "uint8", "uint8"]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(1, 60), late=st.integers(0, 4))
def test_the_bytes_do_not_depend_on_when_a_layout_is_wide(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, late: int
) -> None:
    """Batches of ids without values come before those with them, or with values of 1."""
    rng = np.random.default_rng(seed)
    fields = (Field("one"), Field("many", multi=True))
    narrow, wide = Layout.of(fields), Layout.of(FIELDS)
    batches: list[pa.RecordBatch] = []
    for k in range(5):
        values = [1.0] if k < late else [0.25, 0.5, 1.0, 2.0]
        many = [
            [(int(i), float(rng.choice(values))) for i in rng.integers(0, 40, rng.integers(3))]
            for _ in range(rows)
        ]
        one = [None if rng.random() < 0.3 else int(rng.integers(400)) for _ in range(rows)]
        batches.append(plain(list(zip(range(rows), one, many, strict=True))))
    folder = tmp_path_factory.mktemp("widened")
    with TableFile(folder / "a", "impression", fields, narrow) as file:
        for k, batch in enumerate(batches):
            short = batch.select(batch.schema.names[:-1]) if k < late else batch
            file.write(short, narrow if k < late else wide)
        file.close()
    with TableFile(folder / "b", "impression", fields, wide) as file:
        for batch in batches:
            file.write(batch, wide)
        file.close()
    a, b = ((folder / name).read_bytes() for name in "ab")
    assert a == b or late == 5  # then nothing widened the first
    table = pa.ipc.open_file(folder / "b").read_all()
    joined = pa.Table.from_batches([plain_batch(x) for x in table.to_batches()])
    assert joined.equals(pa.Table.from_batches(batches))


# ---- Datasets


def as_version_1(dataset: Dataset, out: Path) -> Dataset:
    """Writes a dataset as version 1 has it: no codes, sample ids and counts of 64 bits."""
    out.mkdir()
    manifest = dict(dataset.manifest)
    for name in DATA_FILES:
        table = pa.ipc.open_file(dataset.path / name).read_all()
        batches = table.to_batches()
        if name == "counts.arrow":
            wide = [pa.field(n, pa.uint64(), nullable=False) for n in ("feature_id", "count")]
            batches = table.cast(pa.schema([table.schema.field("field"), *wide])).to_batches()
        else:
            batches = [plain_batch(batch) for batch in batches]
        with pa.ipc.new_file(out / name, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        manifest["files"] |= {name: {"bytes": (out / name).stat().st_size, "xxh64": ""}}
    (out / "manifest.json").write_text(json.dumps(manifest | {"version": 1}))
    return Dataset(out)


def test_version_1_gives_what_version_2_gives(tmp_path: Path) -> None:
    synth(tmp_path / "log", 3000, 10, seed=5)
    new = prepare(tmp_path / "log", out=tmp_path / "new", chunk_bytes=100_000)["train"]
    old = as_version_1(new, tmp_path / "old")
    stored = [str(f.type) for f in new.impressions.schema]
    assert sum("dictionary" in t for t in stored) >= 4 and "uint32" in stored[0]
    assert not any("dictionary" in str(f.type) for f in old.impressions.schema)
    assert sum(f.stat().st_size for f in new.path.iterdir()) < 0.85 * sum(
        f.stat().st_size for f in old.path.iterdir()
    )
    assert new.head(50) == old.head(50)
    for dataset in (new, old):
        dataset.dump(tmp_path / f"dump_{dataset.path.name}")
        # a view, in another order
        view = dataset.select(np.arange(len(dataset))[::-7])
        view.dump(tmp_path / f"view_{dataset.path.name}")
    for kind in ("dump", "view"):
        for name in ("sample_skeleton.csv", "common_features.csv"):
            a, b = (tmp_path / f"{kind}_{n}" / name for n in (new.path.name, "old"))
            assert a.read_bytes() == b.read_bytes()
    vocabularies = [Vocabulary.from_dataset(d, selected=True) for d in (new, old)]
    made = [
        list(d.batches(256, vocabulary=v, threads=2, seed=3))
        for d, v in zip((new, old), vocabularies, strict=True)
    ]
    for one, other in zip(*made, strict=True):
        for name in ("rows", "offsets", "weights"):
            assert torch.equal(getattr(one.plan, name), getattr(other.plan, name))
        assert torch.equal(one.sample_id, other.sample_id)
