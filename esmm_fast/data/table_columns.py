"""The columns of a user's table as a dataset stores them, each value looked at."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .._compiled import _native
from ..schema import Field

_UINT32_MAX = np.iinfo(np.uint32).max


class ColumnError(ValueError):
    """A value that a column cannot have; `row` counts from 0 in the batch, -1: the whole column."""

    def __init__(self, message: str, row: int = -1):
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class Bags:
    """One field of a batch.

    Row r holds ``ids[offsets[r] : offsets[r + 1]]``; `multi`: as a list, else at most one.
    """

    ids: np.ndarray  # uint64 [occurrences]
    values: np.ndarray | None  # float32 [occurrences]
    offsets: np.ndarray  # int32 [rows + 1]
    multi: bool

    def arrays(self, wide: bool) -> list[pa.Array]:
        """Returns the ids, and the values if there are any, as a dataset stores them."""
        items = [self.ids.astype(np.uint64 if wide else np.uint32, copy=False)]
        items += [] if self.values is None else [self.values]
        if self.multi:
            offsets = pa.array(self.offsets)
            return [pa.ListArray.from_arrays(offsets, pa.array(i)) for i in items]
        present = np.diff(self.offsets) == 1
        arrays = []
        for item in items:
            full = np.zeros(len(present), item.dtype)
            full[present] = item
            arrays.append(pa.array(full, mask=~present))
        return arrays


def is_list(type: pa.DataType) -> bool:
    """Returns whether a column holds a list in every row."""
    return (
        pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)
    )


def require(schema: pa.Schema, name: str, meaning: str) -> pa.DataType:
    """Returns the type of a column.

    Raises:
        ColumnError: There is none of this name; with the nearest one.
    """
    if name in schema.names:
        return schema.field(name).type
    near = difflib.get_close_matches(name, schema.names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(schema.names)}"
    raise ColumnError(f"no column {name!r} for {meaning}{hint}")


def check_field(schema: pa.Schema, field: Field) -> tuple[bool, bool]:
    """Returns (multi, weighted) of a field in a table; raises ColumnError if it cannot be one."""
    type = require(schema, field.name, "a field")
    item = type.value_type if is_list(type) else type
    if pa.types.is_dictionary(item):
        item = item.value_type
    if not (pa.types.is_integer(item) or pa.types.is_null(item)):
        hint = ""
        if pa.types.is_floating(item):
            hint = " (pandas turns integers with gaps into floats: astype('Int64') keeps them)"
        if pa.types.is_string(item) or pa.types.is_large_string(item):
            hint = " (number the texts first, or hash them to integers)"
        raise ColumnError(
            f"field {field.name!r}: feature ids, integers or lists of them, expected, "
            f"got {type}{hint}"
        )
    name = f"{field.name}_value"
    if name not in schema.names:
        if field.weighted:
            require(schema, name, f"the values of the weighted field {field.name!r}")
        return field.multi or is_list(type), False
    values = schema.field(name).type
    number = values.value_type if is_list(values) else values
    if is_list(values) != is_list(type) or not _is_number(number):
        wanted = "lists of numbers" if is_list(type) else "numbers"
        raise ColumnError(f"column {name!r}: {wanted} expected beside {type}, got {values}")
    return field.multi or is_list(type), True


def _is_number(type: pa.DataType) -> bool:
    return pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_null(type)


def bags(batch: pa.RecordBatch, field: Field, weighted: bool) -> Bags:
    """Returns a field of a batch. A null is an empty bag."""
    column = batch.column(field.name)
    items, offsets = _flat(column)
    ids = _ids(field.name, items, offsets)
    values = None
    if weighted:
        name = f"{field.name}_value"
        numbers, ends = _flat(batch.column(name))
        if not is_list(column.type):  # values of absent ids do not matter
            numbers = batch.column(name).filter(column.is_valid())
            ends = offsets
        if not np.array_equal(ends, offsets):
            row = int(np.flatnonzero(np.diff(ends) != np.diff(offsets))[0])
            raise ColumnError(
                f"column {name!r}: a value for each of {np.diff(offsets)[row]} ids expected, got "
                f"{np.diff(ends)[row]}",
                row,
            )
        values = _floats(name, numbers, offsets)
    return Bags(ids, values, offsets, field.multi or is_list(column.type))


def _flat(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Returns the items that are there, and where each row's begin: int32 [rows + 1]."""
    if is_list(column.type):
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        items = column.flatten() if column.null_count == 0 else column.drop_null().flatten()
    else:
        lengths = column.is_valid().to_numpy(zero_copy_only=False)
        items = column.drop_null()
    offsets = np.zeros(len(column) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return items, offsets.astype(np.int32)


def _row_of(offsets: np.ndarray, item: int) -> int:
    return int(np.searchsorted(offsets, item, side="right")) - 1


def _ids(name: str, items: pa.Array, offsets: np.ndarray) -> np.ndarray:
    if pa.types.is_dictionary(items.type):
        items = items.dictionary_decode()
    if items.null_count:
        at = int(np.flatnonzero(items.is_null().to_numpy(zero_copy_only=False))[0])
        raise ColumnError(f"field {name!r}: a feature id expected, got null", _row_of(offsets, at))
    if pa.types.is_null(items.type):
        return np.empty(0, np.uint64)
    ids = items.to_numpy(zero_copy_only=False)
    if ids.dtype.kind == "i" and len(ids) and ids.min() < 0:
        at = int(np.argmax(ids < 0))
        raise ColumnError(
            f"field {name!r}: a feature id of at least 0 expected, got {ids[at]}",
            _row_of(offsets, at),
        )
    return ids.astype(np.uint64)


def _floats(name: str, numbers: pa.Array, offsets: np.ndarray | None = None) -> np.ndarray:
    """Returns finite float32; `offsets`: whose rows the numbers belong to (None: one each)."""
    if pa.types.is_boolean(numbers.type):
        numbers = numbers.cast(pa.uint8())
    with np.errstate(over="ignore"):
        values = numbers.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        at = int(np.argmax(~np.isfinite(values)))
        row = at if offsets is None else _row_of(offsets, at)
        raise ColumnError(
            f"column {name!r}: a number of float32's range expected, got {numbers[at]}", row
        )
    return values


def floats(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """Returns a column of finite numbers as float32 [rows]."""
    column = batch.column(name)
    if not (_is_number(column.type) or pa.types.is_boolean(column.type)):
        raise ColumnError(f"column {name!r}: numbers expected, got {column.type}")
    return _floats(name, column)


def weights(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """Returns a column of finite numbers of at least 0 as float32 [rows]."""
    values = floats(batch, name)
    if (values < 0).any():
        at = int(np.argmax(values < 0))
        raise ColumnError(
            f"weight {name!r}: a number of at least 0 expected, got {batch.column(name)[at]}", at
        )
    return values


def label(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """Returns a label column, 0 or 1 (or false and true) in every row, as uint8 [rows]."""
    column = batch.column(name)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if not _is_number(column.type):
        raise ColumnError(f"label {name!r}: 0 and 1, or booleans, expected, got {column.type}")
    values = column.to_numpy(zero_copy_only=False)
    wrong = ~((values == 0) | (values == 1))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ColumnError(f"label {name!r}: 0 or 1 expected, got {column[at]}", at)
    return values.astype(np.uint8)


def numbers(batch: pa.RecordBatch, name: str, meaning: str) -> np.ndarray:
    """Returns a column of integers of at least 0, none missing, as uint64 [rows]."""
    column = batch.column(name)
    if not pa.types.is_integer(column.type):
        raise ColumnError(f"{meaning} {name!r}: integers expected, got {column.type}")
    if column.null_count:
        at = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ColumnError(f"{meaning} {name!r}: an integer expected, got null", at)
    return _ids(name, column, np.arange(len(column) + 1))


def keys(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """Returns a column of keys as uint64 [rows]: integers as they are, XXH64 of texts."""
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return numbers(batch, name, "key")
    if column.null_count:
        at = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ColumnError(f"key {name!r}: a text expected, got null", at)
    coded = column.dictionary_encode()
    hashes = np.array([_hash(text) for text in coded.dictionary.to_pylist()], np.uint64)
    return hashes[coded.indices.to_numpy()] if len(hashes) else np.empty(0, np.uint64)


def _hash(text: str) -> int:
    checksum = _native.Xxh64()
    checksum.update(text.encode())
    return int(checksum.hexdigest(), 16)


def is_wide(several: list[Bags]) -> bool:
    """Returns whether an id is beyond 32 bits."""
    return any(len(b.ids) and int(b.ids.max()) > _UINT32_MAX for b in several)


def content_hashes(several: list[Bags], rows: int, key: np.ndarray | None) -> np.ndarray:
    """Returns two hashes of 64 bits of every row's bags (and key): uint64 [rows, 2].

    Rows that are equal have equal ones; that rows which differ have both equal is a matter of
    2^-128.
    """
    hashes = np.zeros((rows, 2), np.uint64)
    for lane, seed in enumerate((0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)):
        total = np.full(rows, seed, np.uint64)
        if key is not None:
            total = _mixed(total ^ _mixed(key))
        for bag in several:
            place = np.arange(len(bag.ids)) - np.repeat(bag.offsets[:-1], np.diff(bag.offsets))
            items = _mixed(bag.ids + np.uint64(seed))
            if bag.values is not None:  # 1 is what an absent value means
                bits = bag.values.view(np.uint32) ^ np.float32(1).view(np.uint32)
                items = np.where(bits, _mixed(items ^ bits.astype(np.uint64)), items)
            items = _mixed(items + place.astype(np.uint64))
            sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(items, dtype=np.uint64)])
            own = sums[bag.offsets[1:]] - sums[bag.offsets[:-1]]
            total = _mixed(total ^ _mixed(own + np.diff(bag.offsets).astype(np.uint64)))
        hashes[:, lane] = total
    return hashes


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def extra(column: Any) -> pa.Array:
    """Returns an extra column as it is stored: dictionaries are written out."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
