"""The parser's blocks as Arrow record batches, and what happens when a log needs more than its
schema says.

A file of a dataset has one Arrow schema. Where the log needs a wider one (a field holds two
occurrences in a row, has a value other than 1, or an id beyond 32 bits), later blocks come in the
wider layout and what is already there is widened by `conform`: no text is read again and nothing is
dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..schema import Field, Schema, Side

IMPRESSION_COLUMNS = ("sample_id", "click", "conversion", "common_row")
COMMON_COLUMNS = ("key",)
_FIXED: dict[Side, pa.Schema] = {
    "common": pa.schema([pa.field("key", pa.uint64(), nullable=False)]),
    "impression": pa.schema(
        [
            pa.field("sample_id", pa.uint64(), nullable=False),
            pa.field("click", pa.uint8(), nullable=False),
            pa.field("conversion", pa.uint8(), nullable=False),
            pa.field("common_row", pa.uint32(), nullable=False),
        ]
    ),
}


@dataclass(frozen=True)
class Layout:
    """How the fields of one side are stored.

    Args:
        multi: Per field: a list of ids, otherwise a nullable id.
        weighted: Per field: a column of values stands beside the ids.
        wide: Ids are uint64, otherwise uint32.
        fixed: The columns that stand before the fields; None: `COMMON_COLUMNS` or
            `IMPRESSION_COLUMNS`.
    """

    multi: tuple[bool, ...]
    weighted: tuple[bool, ...]
    wide: bool = False
    fixed: pa.Schema | None = None

    @staticmethod
    def of(fields: Sequence[Field], fixed: pa.Schema | None = None) -> Layout:
        """Returns the layout that the schema asks for."""
        multi, weighted = (tuple(getattr(f, n) for f in fields) for n in ("multi", "weighted"))
        return Layout(multi, weighted, fixed=fixed)

    def __or__(self, other: Layout) -> Layout:
        return Layout(
            tuple(a or b for a, b in zip(self.multi, other.multi, strict=True)),
            tuple(a or b for a, b in zip(self.weighted, other.weighted, strict=True)),
            self.wide or other.wide,
            self.fixed,
        )


def check_columns(schema: Schema) -> None:
    """Raises ValueError if two columns of a dataset of this schema would have one name."""
    weight = () if schema.weight is None else (schema.weight,)
    own = ("sample_id", *schema.labels, "common_row", "dense", *weight, *schema.extra)
    for side, fixed in (("impression", own), ("common", COMMON_COLUMNS)):
        fields = schema.impression if side == "impression" else schema.common
        names = [*fixed, *(n for f in fields for n in (f.name, f"{f.name}_value"))]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(
                f"schema: on the {side} side two columns would be named {twice[0]!r}; "
                f"expected field names other than {', '.join(fixed)} and <field>_value"
            )


def arrow_schema(side: Side, fields: Sequence[Field], layout: Layout) -> pa.Schema:
    """Returns the Arrow schema of `common_rows.arrow` or `impressions.arrow`."""
    id_type = pa.uint64() if layout.wide else pa.uint32()
    columns = list(_FIXED[side] if layout.fixed is None else layout.fixed)
    for field, multi, weighted in zip(fields, layout.multi, layout.weighted, strict=True):
        columns.append(
            pa.field(field.name, pa.list_(id_type) if multi else id_type, nullable=not multi)
        )
        if weighted:
            value_type = pa.list_(pa.float32()) if multi else pa.float32()
            columns.append(pa.field(f"{field.name}_value", value_type, nullable=not multi))
    return pa.schema(columns)


def record_batch(
    block: Any,
    side: Side,
    fields: Sequence[Field],
    fixed: tuple[pa.Schema, list[pa.Array]] | None = None,
) -> tuple[pa.RecordBatch, Layout]:
    """Returns a block's rows without copying them, and their layout. The batch keeps the block's
    memory. `fixed`: the columns before the fields, where they are not the usual ones."""
    layout = Layout(
        tuple(map(bool, block.multi)),
        tuple(map(bool, block.weighted)),
        bool(block.wide),
        fixed[0] if fixed else None,
    )
    rows = block.rows
    names = COMMON_COLUMNS if side == "common" else IMPRESSION_COLUMNS
    arrays = fixed[1] if fixed else [pa.array(getattr(block, name)) for name in names]
    for (offsets, valid, ids, values), weighted in zip(
        block.fields(), layout.weighted, strict=True
    ):
        arrays.append(_array(ids, offsets, valid, rows))
        if weighted:
            arrays.append(_array(values, offsets, valid, rows))
    batch = pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(side, fields, layout))
    if block.dropped:
        stored = np.ones(rows, bool)
        stored[block.dropped] = False
        batch = batch.filter(pa.array(stored))
    return batch, layout


def _array(
    items: np.ndarray, offsets: np.ndarray | None, valid: np.ndarray | None, rows: int
) -> pa.Array:
    if offsets is None:
        buffers = [pa.py_buffer(valid), pa.py_buffer(items)]
        return pa.Array.from_buffers(pa.from_numpy_dtype(items.dtype), rows, buffers)
    child = pa.array(items)
    return pa.Array.from_buffers(
        pa.list_(child.type), rows, [None, pa.py_buffer(offsets)], null_count=0, children=[child]
    )


def conform(
    batch: pa.RecordBatch, side: Side, fields: Sequence[Field], layout: Layout
) -> pa.RecordBatch:
    """Returns the batch in a layout that is at least as wide as its own.

    A nullable id becomes a list of none or one, a missing value becomes 1, uint32 becomes uint64.
    The bytes are those that the parser would have written in that layout: which blocks it reads in
    the narrow one is a matter of time, and must not show.
    """
    schema = arrow_schema(side, fields, layout)
    if batch.schema.equals(schema):
        return batch
    arrays = [batch.column(n) for n in (layout.fixed or _FIXED[side]).names]
    id_type = pa.uint64() if layout.wide else pa.uint32()
    for field, multi, weighted in zip(fields, layout.multi, layout.weighted, strict=True):
        stored = batch.column(field.name)
        arrays.append(_widened(stored, multi, id_type))
        if not weighted:
            continue
        name = f"{field.name}_value"
        values = batch.column(name) if name in batch.schema.names else _ones_like(stored)
        arrays.append(_widened(values, multi, pa.float32()))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _ones_like(ids: pa.Array) -> pa.Array:
    """Returns 1.0 for every id, in the same lists or with the same nulls."""
    if pa.types.is_list(ids.type):
        ones = pa.array(np.ones(len(ids.values), np.float32))
        return pa.ListArray.from_arrays(ids.offsets, ones)
    present = ids.is_valid().to_numpy(zero_copy_only=False)
    ones = pa.py_buffer(
        present.astype(np.float32)
    )  # 0 where there is nothing, as the parser has it
    return pa.Array.from_buffers(pa.float32(), len(ids), [ids.buffers()[0], ones])


def _widened(stored: pa.Array, multi: bool, item_type: pa.DataType) -> pa.Array:
    if pa.types.is_list(stored.type):
        return pa.ListArray.from_arrays(stored.offsets, stored.values.cast(item_type))
    if not multi:
        return stored.cast(item_type)
    present = stored.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(stored) + 1, np.int32)
    np.cumsum(present, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), stored.drop_null().cast(item_type))


def promoted_schema(schema: Schema, common: Layout, impression: Layout) -> Schema:
    """Returns the schema with `multi` and `weighted` as the log needs them, and without table
    rows."""
    from dataclasses import replace

    layouts = {
        field.name: (multi, weighted)
        for fields, layout in ((schema.common, common), (schema.impression, impression))
        for field, multi, weighted in zip(fields, layout.multi, layout.weighted, strict=True)
    }
    return replace(
        schema,
        fields=tuple(
            replace(f, multi=layouts[f.name][0], weighted=layouts[f.name][1], rows=None)
            for f in schema.fields
        ),
    )


def needed_layout(batch: pa.RecordBatch, fields: Sequence[Field], layout: Layout) -> Layout:
    """Returns `layout`, wider where the rows of the batch need it."""
    multi, weighted, wide = list(layout.multi), list(layout.weighted), layout.wide
    for i, field in enumerate(fields):
        column = batch.column(field.name)
        is_list = pa.types.is_list(column.type)
        ids = (column.flatten() if is_list else column.drop_null()).to_numpy()
        wide = wide or bool((ids > np.iinfo(np.uint32).max).any())
        lengths = np.diff(column.offsets.to_numpy()) if is_list else np.ones(1)
        multi[i] = multi[i] or bool((lengths > 1).any())
        if f"{field.name}_value" in batch.schema.names:
            stored = batch.column(f"{field.name}_value")
            values = (stored.flatten() if is_list else stored.drop_null()).to_numpy()
            weighted[i] = weighted[i] or bool((values != 1).any())
    return Layout(tuple(multi), tuple(weighted), wide, layout.fixed)


def narrowed(
    batch: pa.RecordBatch, side: Side, fields: Sequence[Field], layout: Layout
) -> pa.RecordBatch:
    """Returns the batch in a layout that its rows need no wider one than: `conform` the other way
    round."""
    schema = arrow_schema(side, fields, layout)
    arrays = []
    for wanted in schema:
        if wanted.name in batch.schema.names:
            stored = batch.column(wanted.name)
        else:
            stored = _ones_like(batch.column(wanted.name.removesuffix("_value")))
        if not stored.type.equals(wanted.type):
            stored = _as_type(stored, wanted.type)
        arrays.append(stored)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _as_type(stored: pa.Array, wanted: pa.DataType) -> pa.Array:
    if not pa.types.is_list(stored.type):
        multi = pa.types.is_list(wanted)
        return _widened(stored, multi, wanted.value_type if multi else wanted)
    items = stored.flatten()
    if pa.types.is_list(wanted):
        offsets = stored.offsets.to_numpy()
        return pa.ListArray.from_arrays(
            pa.array(offsets - offsets[0]), items.cast(wanted.value_type)
        )
    present = np.diff(stored.offsets.to_numpy()) > 0
    scalars = np.zeros(len(stored), wanted.to_pandas_dtype())  # 0 where there is nothing
    scalars[present] = items.cast(wanted).to_numpy()
    valid = pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.Array.from_buffers(wanted, len(stored), [valid, pa.py_buffer(scalars)])
