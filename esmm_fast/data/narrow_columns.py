"""Columns in their narrowest types, and back: ids and values of few distinct numbers become codes
into a dictionary, sample ids 32 bits.

A column begins with codes of one byte; more than 256 distinct numbers give it codes of two, more
than 65,536 none. To outgrow a type means to write again what is there, so a column that is on its
way there gets no codes early: where 1,024 and more numbers hold each of them less than three times
on average, where the first record batch holds 16,384 distinct ones, or the first 16 twice as many.
Codes count the numbers in the order in which they come, so all of this follows from the rows and
the record batches alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from .._compiled import _native

_LIMITS = {1: 1 << 8, 2: 1 << 16}  # bytes of a code -> numbers it can name
_EARLY_LIMITS = ((1, 1 << 14), (16, 1 << 15))  # (record batches at most, numbers)
_LEAST_TIMES, _FROM = 3, 1 << 10  # that a number comes on average, from so many occurrences on
_UINT32_MAX = np.iinfo(np.uint32).max


@dataclass
class _Column:
    """How one column is stored.

    Args:
        width: Bytes of its codes; 0: it has none, but the numbers themselves.
        codes: Of its numbers, as long as it has codes.
        batches, occurrences: That they count.
    """

    width: int = 1
    batches: int = 0
    occurrences: int = 0
    codes: Any = field(default_factory=_native.Codes)


class Narrowed:
    """The columns of one table while it is written.

    Args:
        fixed: How many columns stand before the fields; of these, sample_id alone is narrowed.
    """

    def __init__(self, fixed: int):
        self._fixed = fixed
        self._columns: dict[str, _Column] = {}
        self._wide_sample_id = False

    def schema(self, plain: pa.Schema) -> pa.Schema:
        """Returns the schema of a table as it is stored, from that of its plain columns."""
        stored = []
        for i, column in enumerate(plain):
            if i < self._fixed:
                narrow = column.name == "sample_id" and not self._wide_sample_id
                stored.append(column.with_type(pa.uint32()) if narrow else column)
                continue
            width = self._of(column.name).width
            stored.append(column.with_type(_coded_type(column.type, width)))
        return pa.schema(stored)

    def dictionaries(self, stored: pa.Schema) -> list[pa.Array]:
        """Returns the dictionaries of a table that is stored in this schema."""
        found = []
        for column in stored:
            type = _item_type(column.type)
            if pa.types.is_dictionary(type):
                numbers = getattr(self._of(column.name).codes, _kind(type.value_type))()
                found.append(pa.array(numbers))
        return found

    def columns(
        self, batch: pa.RecordBatch, values: Collection[str], number: int
    ) -> tuple[list[pa.Array], bool]:
        """Returns a record batch's columns as they are stored, and whether that took a wider type
        than those before it have.

        Args:
            values: The columns that hold values; each stands behind its ids, and shares the memory
                of their offsets, or of what says which are there.
            number: Of the record batch, from 0; one that comes again is known.
        """
        columns: list[pa.Array] = []
        widened = False
        for i, (array, name) in enumerate(zip(batch.columns, batch.schema.names, strict=True)):
            if i >= self._fixed:
                ids = batch.column(i - 1) if name in values else array
                stored, wider = self._stored(self._of(name), array, ids, number)
            elif name == "sample_id":
                stored, wider = self._sample_id(array)
            else:
                stored, wider = array, False
            columns.append(stored)
            widened |= wider
        return columns, widened

    def _of(self, name: str) -> _Column:
        return self._columns.setdefault(name, _Column())

    def _sample_id(self, array: pa.Array) -> tuple[pa.Array, bool]:
        ids = array.to_numpy()
        if self._wide_sample_id:
            return array, False
        if len(ids) and int(ids.max()) > _UINT32_MAX:
            self._wide_sample_id = True
            return array, True
        return pa.array(ids.astype(np.uint32)), False

    def _stored(
        self, state: _Column, array: pa.Array, ids: pa.Array, number: int
    ) -> tuple[pa.Array, bool]:
        before, is_new = state.width, number == state.batches
        limit = _LIMITS[2]
        if is_new:
            state.batches += 1
            state.occurrences += len(_items(array)) - array.null_count
            limit = min([most for n, most in _EARLY_LIMITS if state.batches <= n], default=limit)
        numbers, valid = _numbers(array)
        while state.width:
            most = min(_LIMITS[state.width], limit)
            codes = state.codes.encode(numbers, valid, state.width, most)
            if is_new and _FROM <= state.occurrences < _LEAST_TIMES * len(state.codes):
                codes, state.width = None, 2
            if codes is not None:
                return _with_items(ids, codes), state.width != before
            state.width = state.width + 1 if state.width < 2 else 0
        return (array if array is ids else _with_items(ids, numbers)), before != 0


def plain_type(type: pa.DataType) -> pa.DataType:
    """Returns the type of a stored column's numbers, without a dictionary.

    Example:
        >>> str(plain_type(pa.list_(pa.dictionary(pa.uint16(), pa.float32()))))
        'list<item: float>'
    """
    if pa.types.is_list(type):
        return pa.list_(plain_type(type.value_type))
    return type.value_type if pa.types.is_dictionary(type) else type


def plain_schema(stored: pa.Schema) -> pa.Schema:
    """Returns the schema of `plain_batch`."""
    return pa.schema(
        f.with_type(pa.uint64() if f.name == "sample_id" else plain_type(f.type)) for f in stored
    )


def plain_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the numbers of a record batch that is stored: ids, values and sample ids themselves,
    as the parser gives them."""
    schema = plain_schema(batch.schema)
    arrays = []
    for array, column in zip(batch.columns, schema, strict=True):
        array = plain_array(array)
        arrays.append(array if array.type.equals(column.type) else array.cast(column.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def plain_array(array: pa.Array) -> pa.Array:
    """Returns the numbers of ids or values that are stored as codes; 0 where there is none.

    Raises:
        ValueError: A code is outside its dictionary.
    """
    items = _items(array)
    if not pa.types.is_dictionary(items.type):
        return array
    codes, valid = _numbers(items.indices)
    try:
        numbers = _native.decode(codes, items.dictionary.to_numpy(), valid)
    except IndexError as error:
        raise ValueError(str(error)) from None
    return _with_items(array, numbers)


# ---- Arrays


def _items(array: pa.Array) -> pa.Array:
    return array.values if pa.types.is_list(array.type) else array


def _item_type(type: pa.DataType) -> pa.DataType:
    return type.value_type if pa.types.is_list(type) else type


def _coded_type(type: pa.DataType, width: int) -> pa.DataType:
    if width == 0:
        return type
    if pa.types.is_list(type):
        return pa.list_(_coded_type(type.value_type, width))
    return pa.dictionary(pa.uint8() if width == 1 else pa.uint16(), type)


def _kind(type: pa.DataType) -> str:
    return "float32" if type == pa.float32() else str(type)


def _numbers(array: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the numbers of a column, whatever stands where there is none, and the bitmap of those
    that are there; None: all."""
    items = _items(array)
    if items.offset:
        items = pa.concat_arrays([items, items.slice(0, 0)])
    valid, data = items.buffers()
    dtype = items.type.to_pandas_dtype()
    numbers = np.frombuffer(data, dtype, len(items)) if len(items) else np.empty(0, dtype)
    return numbers, np.frombuffer(valid, np.uint8) if items.null_count else None


def _with_items(array: pa.Array, items: np.ndarray) -> pa.Array:
    """Returns an array with these items in the lists of another, or where that holds something."""
    buffers = array.buffers()[: 2 if pa.types.is_list(array.type) else 1]
    if pa.types.is_list(array.type):
        child = pa.array(items)
        type = pa.list_(child.type)
        return pa.Array.from_buffers(type, len(array), buffers, null_count=0, children=[child])
    type = pa.from_numpy_dtype(items.dtype)
    return pa.Array.from_buffers(type, len(array), [*buffers, pa.py_buffer(items)])


def as_narrow(several: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns arrays of uint64 as uint32, if all of them fit."""
    fits = all(int(array.max(initial=0)) <= _UINT32_MAX for array in several)
    return [array.astype(np.uint32 if fits else np.uint64) for array in several]
