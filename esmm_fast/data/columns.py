"""The Arrow columns of a dataset as the C++ batch builder reads them: addresses, nothing copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._compiled import _native
from ..schema import Field, Schema
from ..vocabulary import LogTables, Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa


def batch_source(
    dataset: LogTables,
    schema: Schema,
    vocabulary: Vocabulary,
    raw_labels: bool,
    carried: tuple[Carried, ...] = (),
) -> _native.BatchSource:
    """Returns the source of batches of a dataset; `schema` has the vocabulary's rows, `carried` is
    what `carried_columns` returns."""
    impressions, common = dataset.impressions, dataset.common_rows
    has_common_row = "common_row" in impressions.column_names
    if schema.common and not has_common_row:
        raise ValueError(
            f"the schema has common fields ({schema.common[0].name}, ...), but the impressions "
            "have no column common_row"
        )
    for field in schema.fields:
        _require(common if field.side == "common" else impressions, field.side, field.name)
    for name in ("sample_id", *schema.labels):
        _require(impressions, "impression", name)
    weighted = any(
        f.weighted
        or f"{f.name}_value" in (common if f.side == "common" else impressions).column_names
        for f in schema.fields
    )
    source = _native.BatchSource(
        stages=len(schema.labels),
        raw_labels=raw_labels,
        has_common_row=has_common_row,
        weighted=weighted,
        row_end=max(1, sum(schema.table_rows.values())),
        carried_widths=[c.width for c in carried],
    )
    for field in (*schema.common, *schema.impression):
        source.add_field(
            common=field.side == "common",
            lookup=vocabulary._lookup(field.table_name),
            base=schema.row_bases[field.table_name],
        )
    if schema.common:
        for batch in common.to_batches():
            source.add_common(
                rows=batch.num_rows, columns=_columns(batch, schema.common), owner=batch
            )
    for batch in impressions.to_batches():
        arrays = [c.array(batch) for c in carried]
        source.add_impressions(
            rows=batch.num_rows,
            columns=_columns(batch, schema.impression),
            common_row=_numbers(batch, "common_row", "uint32") if has_common_row else 0,
            sample_id=_numbers(batch, "sample_id", "uint64", "int64"),
            labels=[_numbers(batch, name, "uint8") for name in schema.labels],
            carried=[array.ctypes.data for array in arrays],
            owner=(batch, arrays),
        )
    return source


@dataclass(frozen=True)
class Carried:
    """A column of fixed width that comes along with each impression of a batch.

    Args:
        name: Its name in the dataset.
        type: Of one number.
        numbers: Per impression: 1, or those of a list.
    """

    name: str
    type: np.dtype
    numbers: int = 1

    @property
    def width(self) -> int:
        """Bytes per impression."""
        return self.type.itemsize * self.numbers

    def array(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns the numbers of a record batch [rows * numbers], copied where they must be."""
        import pyarrow as pa

        column = batch.column(self.name)
        is_list = pa.types.is_fixed_size_list(column.type)
        if column.null_count and (is_list or self.type.kind != "f"):
            kind = "lists" if is_list else "values"
            raise ValueError(
                f"column {self.name!r}: {column.null_count} {kind} are null, which no "
                f"{self.type} can be; fill them, or leave the column out of the schema"
            )
        if is_list:
            column = column.flatten()
        if self.type.kind == "u" and pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        if pa.types.is_temporal(column.type):
            column = column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
        values = column.to_numpy(zero_copy_only=False)
        return np.ascontiguousarray(values, dtype=self.type)

    def of_batch(self, bytes_: np.ndarray) -> np.ndarray:
        """Returns a batch's numbers [B], or [B, numbers] of a list, from their bytes."""
        values = bytes_.view(self.type)
        return values.reshape(-1, self.numbers) if self.name == "dense" else values


def carried_columns(dataset: LogTables, schema: Schema) -> tuple[Carried, ...]:
    """Returns the dense features, the weight, and the extra columns that are numbers.

    Times come as their integers; a column of text stays in the dataset.
    """
    import pyarrow as pa

    table = dataset.impressions
    carried = []
    if schema.dense:
        _require(table, "impression", "dense")
        stored = table.schema.field("dense").type
        if not stored.equals(pa.list_(pa.float32(), schema.dense)):
            raise ValueError(f"column 'dense': {schema.dense} float32 expected, got {stored}")
        carried.append(Carried("dense", np.dtype(np.float32), schema.dense))
    for name in ((schema.weight,) if schema.weight is not None else ()) + schema.extra:
        _require(table, "impression", name)
        stored = table.schema.field(name).type
        if pa.types.is_boolean(stored):
            carried.append(Carried(name, np.dtype(np.uint8)))
        elif pa.types.is_temporal(stored) and stored.bit_width <= 64:
            carried.append(Carried(name, np.dtype(f"i{stored.bit_width // 8}")))
        elif pa.types.is_integer(stored) or pa.types.is_floating(stored):
            carried.append(Carried(name, np.dtype(stored.to_pandas_dtype())))
        elif name == schema.weight:
            raise ValueError(f"column {name!r}: a number expected for the weight, got {stored}")
    return tuple(carried)


def contradicting_labels(dataset: LogTables, labels: tuple[str, ...]) -> np.ndarray:
    """Returns, for every impression of the table, whether a stage is 1 after one that is 0."""
    reached = np.ones(dataset.impressions.num_rows, bool)
    contradicts = np.zeros_like(reached)
    for name in labels:
        stage = dataset.impressions[name].to_numpy() != 0
        contradicts |= stage & ~reached
        reached &= stage
    return contradicts


def _require(table: pa.Table, side: str, name: str) -> None:
    if name not in table.column_names:
        raise ValueError(
            f"the {side} side of the dataset has no column {name!r}; it has "
            f"{', '.join(table.column_names)}"
        )


def _columns(batch: pa.RecordBatch, fields: tuple[Field, ...]) -> list[_native.Column]:
    columns = []
    for field in fields:
        name = f"{field.name}_value"
        values = batch.column(name) if name in batch.schema.names else None
        columns.append(_column(field.name, batch.column(field.name), values))
    return columns


def _column(name: str, ids: pa.Array, values: pa.Array | None) -> _native.Column:
    import pyarrow as pa

    id_type = ids.type.value_type if pa.types.is_list(ids.type) else ids.type
    if id_type not in (pa.uint32(), pa.uint64()):
        raise ValueError(
            f"column {name!r}: expected uint32, uint64, or a list of them, got {ids.type}"
        )
    if values is not None:
        expected = pa.list_(pa.float32()) if pa.types.is_list(ids.type) else pa.float32()
        if not values.type.equals(expected):
            raise ValueError(f"column '{name}_value': expected {expected}, got {values.type}")
    data = _data(name, ids)
    value_data = _data(f"{name}_value", values) if values is not None else _NOTHING
    return _native.Column(
        wide=id_type == pa.uint64(),
        ids=data["items"],
        ids_length=data["length"],
        offsets=data["offsets"],
        validity=data["validity"],
        validity_offset=data["validity_offset"],
        values=value_data["items"],
        values_length=value_data["length"],
        value_offsets=value_data["offsets"],
        value_validity=value_data["validity"],
        value_validity_offset=value_data["validity_offset"],
    )


_NOTHING = {"items": 0, "length": 0, "offsets": 0, "validity": 0, "validity_offset": 0}


def _data(name: str, array: pa.Array) -> dict[str, int]:
    """Returns the addresses of an array's buffers at its first element; 0 where there is none."""
    import pyarrow as pa

    buffers, items, offsets = array.buffers(), array, 0
    if pa.types.is_list(array.type):
        items = array.values
        if items.null_count:
            raise ValueError(f"column {name!r}: a list holds a null")
        offsets = _address(buffers[1], array.offset, 4)
    return {
        "items": _address(items.buffers()[1], items.offset, items.type.bit_width // 8),
        "length": len(items),
        "offsets": offsets,
        "validity": _address(buffers[0], 0, 1),
        "validity_offset": array.offset,
    }


def _numbers(batch: pa.RecordBatch, name: str, *types: str) -> int:
    array = batch.column(name)
    if str(array.type) not in types or array.null_count:
        raise ValueError(
            f"column {name!r}: expected {' or '.join(types)} without nulls, got {array.type} with "
            f"{array.null_count} nulls"
        )
    return _address(array.buffers()[1], array.offset, array.type.bit_width // 8)


def _address(buffer: Any, offset: int, width: int) -> int:
    return 0 if buffer is None else buffer.address + offset * width
