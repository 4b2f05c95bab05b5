"""Arrow IPC files, uncompressed, in which a dictionary can grow to the end and shared memory is
written once.

pyarrow writes a dictionary before the first record batch, and after that only additions, which
polars does not read. Here the dictionaries stand behind the record batches; the format asks only
that the file's footer names both. A column of values has the offsets of its column of ids: both
name the same bytes.

    ARROW1 | schema | record batch ... | dictionary ... | end | footer | size of footer | ARROW1

A message is a flatbuffer (github.com/apache/arrow, format/Message.fbs, File.fbs, of which this
writes three tables) and a body of buffers.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from .._compiled import _native

_MAGIC = b"ARROW1"
_ALIGNMENT = 64  # of bodies in the file and of buffers in a body
_CONTINUATION = 0xFFFFFFFF
_VERSION = 4  # MetadataVersion.V5
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # MessageHeader
_ZEROS = bytes(_ALIGNMENT)
_PARTS_AT_ONCE = 512  # of writev; Linux takes 1,024


class HashedFile:
    """A new file that counts and hashes what is written to it."""

    def __init__(self, path: Path):
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._checksum = _native.Xxh64()
        self._bytes = 0

    closed = property(lambda self: self._file.closed)

    def write(self, *parts: Any) -> int:
        """Writes one thing behind the other; returns their bytes."""
        left = [memoryview(part).cast("B") for part in parts if len(part)]
        for view in left:
            self._checksum.update(view)
        size = sum(map(len, left))
        self._bytes += size
        while left:
            try:
                written = os.writev(self._file.fileno(), left[:_PARTS_AT_ONCE])
            except OSError as error:  # names the file, as the error of a raw write does not
                raise OSError(error.errno, error.strerror, self._file.name) from None
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]
        return size

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()

    def facts(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "xxh64": self._checksum.hexdigest()}


class ArrowFile:
    """A new Arrow IPC file.

    Args:
        path: Of the file.
        schema: Its columns; those of dictionaries are written as their codes.
    """

    def __init__(self, path: Path, schema: pa.Schema):
        self._file = HashedFile(path)
        self._schema = memoryview(schema.serialize())
        self._record_batches: list[tuple[int, int, int]] = []
        self._dictionaries: list[tuple[int, int, int]] = []
        self._file.write(_MAGIC + bytes(2))
        self._file.write(self._schema)

    def write(self, columns: Sequence[pa.Array]) -> None:
        """Writes a record batch; a column of a dictionary, or a list of one, is given as the
        codes."""
        self._record_batches.append(self._message(_compact(columns), None))

    def close(self, dictionaries: Sequence[pa.Array] = ()) -> dict[str, Any]:
        """Ends the file; returns its size and checksum.

        Args:
            dictionaries: Those of the schema's columns in their order.
        """
        for number, dictionary in enumerate(dictionaries):
            self._dictionaries.append(self._message([dictionary], number))
        self._file.write(struct.pack("<II", _CONTINUATION, 0))
        footer = self._footer()
        self._file.write(footer + struct.pack("<I", len(footer)) + _MAGIC)
        self._file.close()
        return self._file.facts()

    def abandon(self) -> None:
        """Closes the file as it is."""
        self._file.close()

    def _message(self, columns: Sequence[pa.Array], dictionary: int | None) -> tuple[int, int, int]:
        """Writes a record batch or a dictionary; returns its place, and the sizes of its
        flatbuffer and its body."""
        nodes, buffers = bytearray(), bytearray()
        body: list[Any] = []
        size = 0
        places: dict[tuple[int, int], int] = {}  # memory that is written already
        for column in columns:
            for array in _with_children(column):
                nodes += struct.pack("<qq", len(array), array.null_count)
                for buffer in _buffers(array):
                    if buffer is None or buffer.size == 0:
                        buffers += struct.pack("<qq", size, 0)
                        continue
                    memory = buffer.address, buffer.size
                    if memory not in places:
                        places[memory] = size
                        padding = -buffer.size % _ALIGNMENT
                        body += [buffer, _ZEROS[:padding]]
                        size += buffer.size + padding
                    buffers += struct.pack("<qq", places[memory], buffer.size)
        begin = self._file.tell()
        flat = _batch_message(len(columns[0]) if columns else 0, nodes, buffers, size, dictionary)
        flat += bytes(-(begin + 8 + len(flat)) % _ALIGNMENT)
        self._file.write(struct.pack("<II", _CONTINUATION, len(flat)) + flat, *body)
        return begin, 8 + len(flat), size

    def _footer(self) -> bytes:
        flat = _FlatBuffer()
        _, schema, *blocks = flat.table(0, "hIII", _VERSION, 0, 0, 0)
        flat.embed(schema, self._schema[8:])
        for at, places in zip(blocks, (self._dictionaries, self._record_batches), strict=True):
            elements = b"".join(struct.pack("<qi4xq", *place) for place in places)
            flat.vector(at, len(places), elements)
        return bytes(flat.data)


# ---- Arrays


def _compact(columns: Sequence[pa.Array]) -> Sequence[pa.Array]:
    """Returns the columns so that no array begins inside its buffers."""
    if all(array.offset == 0 for column in columns for array in _with_children(column)):
        return columns
    batch = pa.RecordBatch.from_arrays(columns, names=[str(i) for i in range(len(columns))])
    copied: pa.RecordBatch = pa.ipc.read_record_batch(batch.serialize(), batch.schema)
    return copied.columns


def _with_children(array: pa.Array) -> Iterator[pa.Array]:
    """Yields an array and those inside it, each before what is inside it."""
    yield array
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        yield from _with_children(array.values)
    elif pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        yield from _with_children(array.values.slice(array.offset * size, len(array) * size))
    elif pa.types.is_struct(array.type):
        for i in range(array.type.num_fields):
            yield from _with_children(array.field(i))


def _buffers(array: pa.Array) -> list[pa.Buffer | None]:
    """Returns an array's own buffers, as long as its type says."""
    type, rows = array.type, len(array)
    if pa.types.is_null(type):
        return []
    valid, *others = array.buffers()
    found = [_cut(valid, (rows + 7) // 8) if array.null_count else None]
    if pa.types.is_fixed_size_list(type) or pa.types.is_struct(type):
        return found
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        width = 4 if pa.types.is_list(type) else 8
        return [*found, _cut(others[0], (rows + 1) * width)]
    if any(f(type) for f in (pa.types.is_string, pa.types.is_binary)):
        return [*found, _cut(others[0], (rows + 1) * 4), others[1]]
    if any(f(type) for f in (pa.types.is_large_string, pa.types.is_large_binary)):
        return [*found, _cut(others[0], (rows + 1) * 8), others[1]]
    return [*found, _cut(others[0], (rows * type.bit_width + 7) // 8)]


def _cut(buffer: pa.Buffer | None, size: int) -> pa.Buffer | None:
    return buffer if buffer is None or buffer.size <= size else buffer.slice(0, size)


def can_be_stored(type: pa.DataType) -> bool:
    """Returns whether a column of this type can stand in a file.

    Example:
        >>> can_be_stored(pa.list_(pa.float32())), can_be_stored(pa.string_view())
        (True, False)
    """
    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        return can_be_stored(type.value_type)
    if pa.types.is_struct(type):
        return all(can_be_stored(type.field(i).type) for i in range(type.num_fields))
    texts = (pa.types.is_string, pa.types.is_large_string)
    bytes_ = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    numbers = (pa.types.is_primitive, pa.types.is_decimal, pa.types.is_null)
    return any(f(type) for f in (*texts, *bytes_, *numbers))


# ---- Flatbuffers


class _FlatBuffer:
    """A flatbuffer written front to back: what an offset names comes behind it."""

    def __init__(self) -> None:
        self.data = bytearray(4)  # begins with the offset of the first table

    def table(self, at: int, codes: str, *values: int) -> list[int]:
        """Appends the table that the offset at byte `at` names; returns where its fields are.

        Args:
            codes: Of `struct`, one for each field; an "I" is an offset, to be set later.
        """
        sizes = [struct.calcsize(f"<{code}") for code in codes]
        order = sorted(range(len(codes)), key=lambda i: -sizes[i])  # so that each is aligned
        offsets, end = [0] * len(codes), 4
        for i in order:
            offsets[i], end = end, end + sizes[i]
        names = struct.pack(f"<{2 + len(codes)}H", 4 + 2 * len(codes), end, *offsets)
        self.data += bytes((4 - len(self.data) - len(names)) % 8) + names
        begin = len(self.data)
        self._point(at, begin)
        self.data += struct.pack("<i", len(names))
        for i in order:
            self.data += struct.pack(f"<{codes[i]}", values[i])
        return [begin + offset for offset in offsets]

    def vector(self, at: int, count: int, elements: bytes | bytearray) -> None:
        """Appends the vector that the offset at byte `at` names, its elements aligned to 8."""
        self.data += bytes((4 - len(self.data)) % 8)
        self._point(at, len(self.data))
        self.data += struct.pack("<I", count) + elements

    def embed(self, at: int, message: memoryview) -> None:
        """Appends a whole message; the offset at byte `at` names its header."""
        self.data += bytes(-len(self.data) % 8)
        (table,) = struct.unpack_from("<I", message, 0)
        (names,) = struct.unpack_from("<i", message, table)
        (offset,) = struct.unpack_from("<H", message, table - names + 4 + 2 * 2)  # its third field
        (header,) = struct.unpack_from("<I", message, table + offset)
        self._point(at, len(self.data) + table + offset + header)
        self.data += message

    def _point(self, at: int, to: int) -> None:
        struct.pack_into("<I", self.data, at, to - at)


def _batch_message(
    rows: int, nodes: bytearray, buffers: bytearray, body: int, dictionary: int | None
) -> bytes:
    """Returns the flatbuffer of a record batch, or of the dictionary of this number."""
    flat = _FlatBuffer()
    kind = _RECORD_BATCH if dictionary is None else _DICTIONARY_BATCH
    _, _, header, _ = flat.table(0, "hBIq", _VERSION, kind, 0, body)
    if dictionary is not None:
        _, header = flat.table(header, "qI", dictionary, 0)
    _, nodes_at, buffers_at = flat.table(header, "qII", rows, 0, 0)
    flat.vector(nodes_at, len(nodes) // 16, nodes)
    flat.vector(buffers_at, len(buffers) // 16, buffers)
    return bytes(flat.data)
