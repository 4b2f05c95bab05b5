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
    codes = _Codes(schema, vocabulary)
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
                rows=batch.num_rows,
                columns=_columns(batch, schema.common, codes),
                owner=(batch, codes),
            )
    for batch in impressions.to_batches():
        arrays = [c.array(batch) for c in carried]
        source.add_impressions(
            rows=batch.num_rows,
            columns=_columns(batch, schema.impression, codes),
            common_row=_numbers(batch, "common_row", "uint32") if has_common_row else 0,
            sample_id=_numbers(batch, "sample_id", "uint64", "int64", "uint32"),
            sample_id_bytes=batch.schema.field("sample_id").type.bit_width // 8,
            labels=[_numbers(batch, name, "uint8") for name in schema.labels],
            carried=[array.ctypes.data for array in arrays],
            owner=(batch, arrays, codes),
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


class _Codes:
    """The table rows of the fields' dictionaries, each looked up once: record batches share them.

    It is to live as long as the addresses that it gives.
    """

    def __init__(self, schema: Schema, vocabulary: Vocabulary):
        self._schema, self._vocabulary = schema, vocabulary
        self._rows: dict[tuple[str, int, int], tuple[np.ndarray, pa.Array]] = {}

    def rows(self, field: Field, dictionary: pa.Array) -> np.ndarray:
        """Returns the table row of each code, int32."""
        key = field.name, dictionary.buffers()[1].address + dictionary.offset, len(dictionary)
        if key not in self._rows:
            lookup = self._vocabulary._lookup(field.table_name)
            ids = dictionary.to_numpy(zero_copy_only=False)
            rows = lookup.rows(ids, self._schema.row_bases[field.table_name])
            self._rows[key] = rows, dictionary  # while that lives, its address is no other's
        return self._rows[key][0]


def _columns(
    batch: pa.RecordBatch, fields: tuple[Field, ...], codes: _Codes
) -> list[_native.Column]:
    columns = []
    for field in fields:
        name = f"{field.name}_value"
        values = batch.column(name) if name in batch.schema.names else None
        columns.append(_column(field, batch.column(field.name), values, codes))
    return columns


def _column(field: Field, ids: pa.Array, values: pa.Array | None, codes: _Codes) -> _native.Column:
    import pyarrow as pa

    from .narrow_columns import plain_type

    name, item_type = field.name, plain_type(ids.type)
    is_list = pa.types.is_list(ids.type)
    if (item_type.value_type if is_list else item_type) not in (pa.uint32(), pa.uint64()):
        raise ValueError(
            f"column {name!r}: expected uint32, uint64, or a list of them, got {ids.type}"
        )
    if values is not None:
        expected = pa.list_(pa.float32()) if is_list else pa.float32()
        if not plain_type(values.type).equals(expected):
            raise ValueError(f"column '{name}_value': expected {expected}, got {values.type}")
    data = _data(name, ids)
    value_data = _data(f"{name}_value", values) if values is not None else _NOTHING
    row_of_code = codes.rows(field, data["dictionary"]) if data["dictionary"] else _NO_ROWS
    value_of_code = value_data["dictionary"]
    return _native.Column(
        id_bytes=data["bytes"],
        ids=data["items"],
        ids_length=data["length"],
        offsets=data["offsets"],
        validity=data["validity"],
        validity_offset=data["validity_offset"],
        row_of_code=row_of_code.ctypes.data,
        codes=len(row_of_code),
        values=value_data["items"],
        value_bytes=value_data["bytes"],
        values_length=value_data["length"],
        value_offsets=value_data["offsets"],
        value_validity=value_data["validity"],
        value_validity_offset=value_data["validity_offset"],
        value_of_code=_address(value_of_code.buffers()[1], value_of_code.offset, 4)
        if value_of_code
        else 0,
        value_codes=len(value_of_code) if value_of_code else 0,
    )


_NO_ROWS = np.empty(0, np.int32)
_NOTHING: dict[str, Any] = {
    "items": 0,
    "bytes": 4,
    "length": 0,
    "offsets": 0,
    "validity": 0,
    "validity_offset": 0,
    "dictionary": None,
}


def _data(name: str, array: pa.Array) -> dict[str, Any]:
    """Returns the addresses of an array's buffers at its first element (0 where there is none), the
    bytes of an item, and the dictionary if items are codes."""
    import pyarrow as pa

    buffers, items, offsets = array.buffers(), array, 0
    if pa.types.is_list(array.type):
        items = array.values
        if items.null_count:
            raise ValueError(f"column {name!r}: a list holds a null")
        offsets = _address(buffers[1], array.offset, 4)
    dictionary = items.dictionary if pa.types.is_dictionary(items.type) else None
    if dictionary is not None and dictionary.null_count:
        raise ValueError(f"column {name!r}: a dictionary holds a null")
    if dictionary is not None and items.indices.type not in (pa.uint8(), pa.uint16()):
        raise ValueError(f"column {name!r}: codes of uint8 or uint16 expected, got {items.type}")
    width = (items if dictionary is None else items.indices).type.bit_width // 8
    return {
        "items": _address(items.buffers()[1], items.offset, width),
        "bytes": width,
        "length": len(items),
        "offsets": offsets,
        "validity": _address(buffers[0], 0, 1),
        "validity_offset": array.offset,
        "dictionary": dictionary,
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
