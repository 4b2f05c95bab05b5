"""A dataset in memory, as Python lists and as Arrow tables, for tests of what reads datasets."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from esmm_fast.schema import Field, Schema

Bag = list[tuple[int, float]]  # (feature id, value)

SCHEMA = Schema(
    (
        Field("user", "common"),
        Field("history", "common", multi=True, weighted=True),
        Field("seen", "common", multi=True, table="item"),
        Field("item"),
        Field("tags", multi=True),
        Field("cross", weighted=True),
        Field("crosses", multi=True, weighted=True),
    )
)
"""Each kind of column on each side; "seen" and "item" share a table."""

FIRST_ID = {"user": 1000, "history": 5_000_000, "item": 70, "tags": 300, "cross": 900, "crosses": 0}


@dataclass
class TinyDataset:
    """What `Dataset` gives to the batches, and the same as lists."""

    schema: Schema
    impressions: pa.Table
    common_rows: pa.Table
    counts: pa.Table
    rows: list[dict[str, Any]] = field(repr=False)  # sample_id, click, conversion, common_row, bags
    common: list[dict[str, Bag]] = field(repr=False)
    selection: np.ndarray | None = None

    def select(self, selection: Any) -> TinyDataset:
        return replace(self, selection=np.asarray(selection))


def tiny_dataset(
    impressions: int = 60,
    common_rows: int = 9,
    schema: Schema = SCHEMA,
    *,
    seed: int = 0,
    chunks: int = 3,
    sliced: bool = False,
    ids_apart: int = 1,
    wide: bool = False,
    coded: pa.DataType | None = None,
    with_common_row: bool = True,
) -> TinyDataset:
    """Returns a random dataset whose impressions of one common row stand together.

    Args:
        chunks: Record batches of each table.
        sliced: Every array is a slice of a longer one, and so are the values of its lists.
        ids_apart: Distance between neighbouring feature ids of a field.
        wide: uint64 feature ids.
        coded: Ids and values are codes of this type into a dictionary for each record batch.
        with_common_row: Impressions name a common row.
    """
    draw = random.Random(seed)

    def bag(f: Field) -> Bag:
        most = 4 if f.multi else 1
        first = FIRST_ID.get(f.table_name, 0)
        return [
            (
                first + ids_apart * min(draw.randrange(12), draw.randrange(12)),
                draw.choice([0.5, 1.0, 1.94591]) if f.weighted else 1.0,
            )
            for _ in range(draw.randint(0, most))
        ]

    common = [{f.name: bag(f) for f in schema.common} for _ in range(common_rows)]
    rows: list[dict[str, Any]] = []
    while len(rows) < impressions:
        common_row = draw.randrange(common_rows)
        for _ in range(draw.randint(1, 9)):
            click = int(draw.random() < 0.5)
            rows.append(
                {
                    "sample_id": 10 + 3 * len(rows),
                    "click": click,
                    "conversion": int(draw.random() < (0.5 if click else 0.2)),
                    "common_row": common_row,
                    **{f.name: bag(f) for f in schema.impression},
                }
            )
    del rows[impressions:]
    return dataset_of(
        schema,
        common,
        rows,
        chunks=chunks,
        sliced=sliced,
        wide=wide,
        coded=coded,
        with_common_row=with_common_row,
    )


def dataset_of(
    schema: Schema,
    common: list[dict[str, Bag]],
    rows: list[dict[str, Any]],
    *,
    chunks: int = 1,
    sliced: bool = False,
    wide: bool = False,
    coded: pa.DataType | None = None,
    with_common_row: bool = True,
) -> TinyDataset:
    """Returns the dataset of common rows {field: bag} and of impressions."""
    own = [("sample_id", pa.uint64()), ("click", pa.uint8()), ("conversion", pa.uint8())]
    if with_common_row:
        own.append(("common_row", pa.uint32()))
    ids = pa.uint64() if wide else pa.uint32()
    counts = Counter(
        (f.name, id)
        for f in schema.fields
        for row in (common if f.side == "common" else rows)
        for id, _ in row[f.name]
    )
    ordered = sorted(counts, key=lambda k: ([f.name for f in schema.fields].index(k[0]), k[1]))
    return TinyDataset(
        schema=schema,
        impressions=_table(rows, own, schema.impression, ids, chunks, sliced, coded),
        common_rows=_table(common, [], schema.common, ids, chunks, sliced, coded),
        counts=pa.table(
            {
                "field": pa.array([k[0] for k in ordered], pa.string()),
                "feature_id": pa.array([k[1] for k in ordered], pa.uint64()),
                "count": pa.array([counts[k] for k in ordered], pa.uint64()),
            }
        ),
        rows=rows,
        common=common,
    )


def _table(
    rows: list[dict[str, Any]],
    own: list[tuple[str, pa.DataType]],
    fields: tuple[Field, ...],
    ids: pa.DataType,
    chunks: int,
    sliced: bool,
    coded: pa.DataType | None,
) -> pa.Table:
    bounds = [len(rows) * i // chunks for i in range(chunks + 1)]
    batches = []
    for begin, end in pairwise(bounds):
        before, after = (min(begin, 3), 2) if sliced else (0, 0)
        part = rows[begin - before : end + after]
        columns = {name: pa.array([r[name] for r in part], type) for name, type in own}
        for f in fields:
            bags = [r[f.name] for r in part]
            columns[f.name] = _array(bags, 0, f.multi, ids, sliced, coded)
            if f.weighted:
                columns[f"{f.name}_value"] = _array(bags, 1, f.multi, pa.float32(), sliced, coded)
        batches.append(pa.RecordBatch.from_pydict(columns).slice(before, end - begin))
    return pa.Table.from_batches(batches)


def _array(
    bags: list[Bag],
    which: int,
    multi: bool,
    type: pa.DataType,
    sliced: bool,
    coded: pa.DataType | None,
) -> pa.Array:
    def items_of(values: list[Any]) -> pa.Array:
        items = pa.array(values, type)
        if coded is None:
            return items
        encoded = items.dictionary_encode()
        return pa.DictionaryArray.from_arrays(encoded.indices.cast(coded), encoded.dictionary)

    items = [[o[which] for o in bag] for bag in bags]
    if not multi:
        return items_of([bag[0] if bag else None for bag in items])
    junk = 5 if sliced else 0  # values before the first that a list names
    values = items_of([0] * junk + [i for bag in items for i in bag]).slice(junk)
    offsets = np.cumsum([0, *map(len, items)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
