"""LogFormat: how a log of one's own is spelled, and the YAML file that says it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import pyarrow as pa

from .. import config
from ..schema import ALI_CCP, Field, Schema
from .manifest import schema_from_dict

KeyKind = Literal["hex", "decimal", "text"]
NumberType = Literal["int64", "float64"]

SEPARATORS = (",", "\x01", "\x02", "\x03")
"""Of the columns, the features, a field and its id, an id and its value."""
_USUAL = ("sample_id", "click", "conversion", "key", "feature_num")
# In the order of ColumnKind.
_KINDS = ("sample_id", "label", "key", "feature_num", "int64", "float64", "dense", "weight")


@dataclass(frozen=True)
class LogFormat:
    """What a line of a log, or a row of a table, looks like.

    Args:
        schema: Fields, labels, and the columns that are passed through.
        columns: Text: the columns before the feature list of a skeleton line, in their order:
            `sample_id`, every label, `key`, ``"feature_num"``, and the dense, weight and extra
            columns. `sample_id`, `key` and "feature_num" can be missing.
        separators: Text: one character each, as in `SEPARATORS`.
        sample_id: Name of the impressions' number. Where the log has none, they are numbered from
            1.
        key: Name of the column that says which common row an impression has. None: there is none.
        key_kind: Text: 16 hex characters, a decimal number, or any text (kept as its XXH64).
        dense: Names of the dense features, `schema.dense` of them.
        extra_types: Text: the type of every extra column; int64 where it is not named.
    """

    schema: Schema = ALI_CCP
    columns: tuple[str, ...] = _USUAL
    separators: tuple[str, str, str, str] = SEPARATORS
    sample_id: str = "sample_id"
    key: str | None = "key"
    key_kind: KeyKind = "hex"
    dense: tuple[str, ...] = ()
    extra_types: dict[str, NumberType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.key_kind not in get_args(KeyKind):
            raise ValueError(
                f"key_kind: one of {get_args(KeyKind)} expected, got {self.key_kind!r}"
            )
        for name, type in self.extra_types.items():
            if name not in self.schema.extra:
                raise ValueError(
                    "extra_types: names of extra columns expected "
                    f"({', '.join(self.schema.extra)}), got {name!r}"
                )
            if type not in get_args(NumberType):
                raise ValueError(
                    f"extra_types[{name!r}]: one of {get_args(NumberType)} expected, got {type!r}"
                )
        if len(self.separators) != len(SEPARATORS):
            raise ValueError(f"separators: four characters expected, got {self.separators!r}")
        if len(self.dense) != self.schema.dense:
            raise ValueError(
                f"dense: the schema's {self.schema.dense} names expected, got {list(self.dense)}"
            )
        names = self.carried
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"every column has one meaning; {twice[0]!r} has several")

    @staticmethod
    def of(given: Schema | LogFormat) -> LogFormat:
        """Returns the format of a log of these fields with Ali-CCP's columns."""
        if isinstance(given, LogFormat):
            return given
        if given.dense:
            raise ValueError("schema: dense features have no names in it; give a LogFormat")
        columns = ("sample_id", *given.labels, "key", "feature_num")
        return LogFormat(given, columns)

    @property
    def carried(self) -> tuple[str, ...]:
        """Columns that are stored as they are: labels, dense, weight, extra."""
        weight = () if self.schema.weight is None else (self.schema.weight,)
        return (*self.schema.labels, *self.dense, *weight, *self.schema.extra)

    @property
    def usual(self) -> bool:
        """Whether the columns are Ali-CCP's: sample_id, click, conversion, key, feature_num."""
        return (self.columns, self.carried, self.sample_id, self.key, self.key_kind) == (
            (_USUAL, ("click", "conversion"), "sample_id", "key", "hex")
        )

    def check_text(self) -> None:
        """Raises ValueError if this is not the format of a text."""
        known = {self.sample_id, self.key, "feature_num", *self.carried}
        for name in self.columns:
            if name not in known:
                raise ValueError(
                    f"columns: {name!r} is neither sample_id ({self.sample_id}), key ({self.key}), "
                    f"feature_num, nor one of labels, dense, weight and extra "
                    f"({', '.join(self.carried)})"
                )
            if self.columns.count(name) > 1:
                raise ValueError(f"columns: every name once, got {name!r} twice")
        if missing := [n for n in self.carried if n not in self.columns]:
            raise ValueError(
                f"columns: the place of {missing[0]!r} in a line expected, got {list(self.columns)}"
            )
        labels = tuple(n for n in self.columns if n in self.schema.labels)
        if labels != self.schema.labels:
            raise ValueError(
                f"columns: the labels in the order of their stages expected "
                f"({', '.join(self.schema.labels)}), got {', '.join(labels)}"
            )
        if self.schema.common and self.key not in self.columns:
            raise ValueError(
                f"columns: {self.key!r} expected, as the schema has fields of common rows "
                f"({self.schema.common[0].name}, ...), got {list(self.columns)}"
            )
        if len(set(self.separators)) < 4:
            raise ValueError(f"separators: four different ones expected, got {self.separators}")
        for separator in self.separators:
            if len(separator) != 1 or ord(separator) > 127 or separator in "\r\n.+-_":
                raise ValueError(
                    "separators: single ASCII characters other than line ends . + - and _ "
                    f"expected, got {separator!r}"
                )
            if separator.isalnum():
                raise ValueError(f"separators: no letters or digits expected, got {separator!r}")
            if named := [f.name for f in self.schema.fields if separator in f.name]:
                raise ValueError(
                    f"fields: names without separators expected, got {named[0]!r} with "
                    f"{separator!r}"
                )

    def native(self) -> dict[str, Any]:
        """Returns the arguments `own` and `separators` of the parser."""
        kinds = []
        for name in self.columns:
            if name in (self.sample_id, self.key, "feature_num"):
                role = {self.sample_id: "sample_id", self.key: "key"}.get(name, "feature_num")
            elif name in self.schema.labels:
                role = "label"
            elif name in self.dense:
                role = "dense"
            elif name == self.schema.weight:
                role = "weight"
            else:
                role = self.extra_types.get(name, "int64")
            kinds.append(_KINDS.index(role))
        counted = "feature_num" in self.columns
        keys = ("hex", "decimal", "text").index(self.key_kind)
        spelled = self.separators != SEPARATORS
        return {
            "own": None if self.usual else (kinds, list(self.columns), counted, keys),
            "separators": "".join(self.separators).encode() if spelled else b"",
        }

    def stored_columns(self, extra: Mapping[str, pa.DataType], grouped: bool) -> pa.Schema:
        """Returns the columns of `impressions.arrow` that stand before the fields.

        Args:
            extra: The type of every extra column.
            grouped: Impressions have common rows.
        """
        columns = [pa.field("sample_id", pa.uint64(), nullable=False)]
        columns += [pa.field(n, pa.uint8(), nullable=False) for n in self.schema.labels]
        if grouped:
            columns.append(pa.field("common_row", pa.uint32(), nullable=False))
        if self.dense:
            names = {"names": json.dumps(self.dense)}
            dense = pa.list_(pa.float32(), len(self.dense))
            columns.append(pa.field("dense", dense, nullable=False, metadata=names))
        if self.schema.weight is not None:
            columns.append(pa.field(self.schema.weight, pa.float32(), nullable=False))
        columns += [pa.field(n, extra[n]) for n in self.schema.extra]
        return pa.schema(columns)


# ---- The file


class Extra(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An extra column of a text, with its type."""

    name: str
    type: NumberType = "int64"


class Separators(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands between the parts of a line."""

    column: str = ","
    feature: str = "\x01"
    field: str = "\x02"
    value: str = "\x03"


class FieldEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One field: see `schema.Field`."""

    name: str
    side: Literal["common", "impression"] = "impression"
    table: str | None = None
    dim: int | None = None
    weighted: bool = False
    multi: bool = False


class SchemaFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A schema file: the arguments of `LogFormat` and of its `Schema`."""

    fields: list[FieldEntry]
    labels: list[str] = msgspec.field(default_factory=lambda: ["click", "conversion"])
    dense: list[str] = []
    weight: str | None = None
    extra: list[str | Extra] = []
    sample_id: str = "sample_id"
    key: str | None = "key"
    key_kind: KeyKind = "hex"
    columns: list[str] | None = None
    separators: Separators = Separators()


def read_format(path: Path) -> LogFormat:
    """Returns the format that a YAML file describes; a manifest's schema (JSON) will do as well.

    Raises:
        ValueError: Naming the file and the key; for an unknown key with the nearest valid one.

    Example:
        >>> import tempfile
        >>> text = '''
        ... fields:
        ...   - {name: user, side: common}
        ...   - {name: tags, multi: true}
        ... labels: [click, buy]
        ... separators: {feature: ";", field: "=", value: ":"}
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "schema.yaml").write_text(text)
        ...     format = read_format(Path(folder, "schema.yaml"))
        >>> format.columns, [f.name for f in format.schema.common]
        (('sample_id', 'click', 'buy', 'key', 'feature_num'), ['user'])
    """
    content = config.load(path)
    try:
        stored = content.get("schema")
        if isinstance(stored, dict) or isinstance(content.get("dense"), int):
            return _of_manifest(stored if isinstance(stored, dict) else content)
        for i, entry in enumerate(content.get("fields") or []):
            name = entry.get("name") if isinstance(entry, dict) else None
            if isinstance(name, int):
                raise ValueError(
                    f"fields[{i}]: a name in quotes expected, got the number {name} (YAML reads "
                    "109_14 without quotes as the number 10914)"
                )
        return _format(config.resolve(SchemaFile, content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _format(file: SchemaFile) -> LogFormat:
    extra = [Extra(e) if isinstance(e, str) else e for e in file.extra]
    schema = Schema(
        fields=tuple(Field(**msgspec.structs.asdict(f)) for f in file.fields),
        labels=tuple(file.labels),
        dense=len(file.dense),
        weight=file.weight,
        extra=tuple(e.name for e in extra),
    )
    usual = LogFormat(
        schema,
        sample_id=file.sample_id,
        key=file.key,
        key_kind=file.key_kind,
        separators=msgspec.structs.astuple(file.separators),
        dense=tuple(file.dense),
        extra_types={e.name: e.type for e in extra},
    )
    columns = file.columns
    if columns is None:
        columns = [file.sample_id, *file.labels, *([file.key] if file.key else []), "feature_num"]
    return dataclasses.replace(usual, columns=tuple(columns))


def _of_manifest(stored: dict[str, Any]) -> LogFormat:
    """Returns the format of a dataset's schema, with the columns of a dump."""
    return LogFormat.of(schema_from_dict(stored))
