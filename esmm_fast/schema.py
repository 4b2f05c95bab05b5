"""Field and Schema: what a line of a log means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

Side = Literal["common", "impression"]
LabelKind = Literal["and", "drop", "raw"]
"""What a stage's label is: see `Dataset.labels` and `Batches`."""


@dataclass(frozen=True)
class Field:
    """One feature field of the log.

    Args:
        name: The field as the log spells it, e.g. ``"109_14"``.
        side: ``"common"`` for fields of the common row (pooled once per common row),
            ``"impression"`` otherwise.
        table: Name of the embedding table; fields with the same name share it. None means a
            table of its own.
        dim: Embedding dimension; None means the model's.
        weighted: Occurrences carry a value that multiplies the embedding.
        multi: A bag can hold several occurrences (stored as a list, else as a nullable scalar).
        rows: Rows of the table, row 0 (unknown) included; None until a vocabulary gives it.
            ``"hash:2**20"`` (or ``"hash:1000000"``): a hashed table of so many rows, where a
            feature id has the row that its hash says and ids can share one.

    >>> Field("205", rows="hash:2**20").hashed_rows
    1048576
    """

    name: str
    side: Side = "impression"
    table: str | None = None
    dim: int | None = None
    weighted: bool = False
    multi: bool = False
    rows: int | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rows, str) and (self.hashed_rows or 0) < 2:
            raise ValueError(
                f"field {self.name!r}: rows: expected a number, 'hash:2**20' or 'hash:1000000' "
                f"(2 rows or more), got {self.rows!r}"
            )

    @property
    def table_name(self) -> str:
        return self.table or self.name

    @property
    def hashed_rows(self) -> int | None:
        """Rows of a hashed table, None for any other."""
        if not isinstance(self.rows, str):
            return None
        found = re.fullmatch(r"hash:(\d{1,10})(?:\*\*(\d{1,2}))?", self.rows)
        return int(found[1]) ** int(found[2] or 1) if found else None


@dataclass(frozen=True)
class Schema:
    """The fields of a log, its K ordered stage labels, and what else an impression carries.

    Args:
        fields: Every field; the order inside each side is the order of the bags.
        labels: Names of the K stage labels, first stage first.
        dense: Number of dense float features per impression.
        weight: Name of the per-impression weight column, if any.
        extra: Columns that are passed through.
    """

    fields: tuple[Field, ...]
    labels: tuple[str, ...] = ("click", "conversion")
    dense: int = 0
    weight: str | None = None
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [f.name for f in self.fields]
        if duplicate := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"fields: every name once, got {sorted(duplicate)} more than once")

    @property
    def common(self) -> tuple[Field, ...]:
        """The fields of the common rows, in bag order."""
        return self.of_side("common")

    @property
    def impression(self) -> tuple[Field, ...]:
        """The fields of the impressions, in bag order."""
        return self.of_side("impression")

    def of_side(self, side: Side) -> tuple[Field, ...]:
        """Returns the fields of one side, in bag order."""
        return tuple(f for f in self.fields if f.side == side)

    @property
    def tables(self) -> tuple[str, ...]:
        """Table names in the order of their first field, common fields first."""
        return tuple(dict.fromkeys(f.table_name for f in (*self.common, *self.impression)))

    @property
    def table_rows(self) -> dict[str, int]:
        """Rows of each table, in the order of `tables`."""
        rows: dict[str, int] = {}
        for field in (*self.common, *self.impression):
            size = field.hashed_rows if isinstance(field.rows, str) else field.rows
            if size is None:
                raise ValueError(
                    f"field {field.name!r} has no table rows yet: take a vocabulary's schema "
                    "(Vocabulary.sized(schema)) or give Field(..., rows=...)"
                )
            if rows.setdefault(field.table_name, size) != size:
                raise ValueError(
                    f"table {field.table_name!r}: expected one number of rows from all its fields, "
                    f"got {rows[field.table_name]} and {size}"
                )
        return rows

    @property
    def hashed_tables(self) -> dict[str, int]:
        """Rows of each hashed table; every field of such a table says so alike."""
        hashed: dict[str, int | None] = {}
        for field in self.fields:
            if hashed.setdefault(field.table_name, field.hashed_rows) != field.hashed_rows:
                raise ValueError(
                    f"table {field.table_name!r}: expected the same rows='hash:...' from all its "
                    f"fields, got {field.rows!r} from {field.name!r}"
                )
        return {table: rows for table, rows in hashed.items() if rows is not None}

    @property
    def row_bases(self) -> dict[str, int]:
        """First row of each table in the joint row space, where the tables follow each other."""
        bases, base = {}, 0
        for table, rows in self.table_rows.items():
            bases[table] = base
            base += rows
        return bases

    def with_rows(self, rows: Mapping[str, int]) -> Schema:
        """Returns this schema with `rows[table]` written into every field."""
        return replace(self, fields=tuple(replace(f, rows=rows[f.table_name]) for f in self.fields))

    @staticmethod
    def of(fields: Schema | Mapping[str, int] | Iterable[Field]) -> Schema:
        """Returns a schema from one, from fields, or from ``{name: table rows}``.

        Fields given by name and rows are multi-valued and stand on the impression side.
        """
        if isinstance(fields, Schema):
            return fields
        if isinstance(fields, Mapping):
            return Schema(tuple(Field(n, multi=True, rows=r) for n, r in fields.items()))
        given = tuple(fields) if isinstance(fields, Iterable) else (fields,)
        if other := next((f for f in given if not isinstance(f, Field)), None):
            hint = ": its schema is Vocabulary.from_dataset(dataset).sized(dataset.schema)"
            raise TypeError(
                "fields: expected a Schema, Fields or {name: table rows}, "
                f"got {type(other).__name__}{hint * hasattr(other, 'schema')}"
            )
        return Schema(given)


_HISTORY = ("109_14", "110_14", "127_14", "150_14")  # ln(1 + count) of the user's behaviour
_PROFILE = ("121", "122", "124", "125", "126", "127", "128", "129")
_COMMON = ("101", *_HISTORY, *_PROFILE)
_IMPRESSION = ("205", "206", "207", "210", "216", "508", "509", "702", "853", "301")
_MULTI = {*_HISTORY, "210", "853"}
_WEIGHTED = {*_HISTORY, "508", "509", "702", "853"}


def _ali_ccp(names: tuple[str, ...], side: Side) -> tuple[Field, ...]:
    return tuple(Field(n, side, multi=n in _MULTI, weighted=n in _WEIGHTED) for n in names)


ALI_CCP = Schema((*_ali_ccp(_COMMON, "common"), *_ali_ccp(_IMPRESSION, "impression")))
"""The 23 fields of the Ali-CCP log: 13 of the common rows, 10 of the impressions."""
