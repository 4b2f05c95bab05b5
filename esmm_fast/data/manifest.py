"""The manifest of a dataset: what is written, read and refused."""

from __future__ import annotations

import json
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from ..schema import Field, Schema

FORMAT = "esmm_fast dataset"
SHARD_FORMAT = "esmm_fast shard"
VERSION = 1
FILE_NAME = "manifest.json"
DATA_FILES = ("impressions.arrow", "common_rows.arrow", "counts.arrow")


class DatasetError(ValueError):
    """A directory that is not a dataset this version can read, or a dataset that is damaged."""


def schema_to_dict(schema: Schema) -> dict[str, Any]:
    """Returns the schema as JSON takes it; `schema_from_dict` reverses it.

    Example:
        >>> schema = Schema((Field("205"),), labels=("click", "order"))
        >>> schema_from_dict(schema_to_dict(schema)) == schema
        True
    """
    return {
        "fields": [
            {
                f.name: value
                for f in dataclass_fields(Field)
                if (value := getattr(field, f.name)) is not None
            }
            for field in schema.fields
        ],
        "labels": list(schema.labels),
        "dense": schema.dense,
        "weight": schema.weight,
        "extra": list(schema.extra),
    }


def schema_from_dict(stored: Any) -> Schema:
    """Returns the schema of a dict such as ``{"fields": [{"name": "205", "side": "impression"},
    ...]}``.

    Raises:
        ValueError: An unknown key or side, or no list of fields.
    """
    if not isinstance(stored, dict) or not isinstance(stored.get("fields"), list):
        raise ValueError(f"schema: an object with a list 'fields' expected, got {stored!r:.80}")
    known = {f.name for f in dataclass_fields(Field)}
    fields = []
    for i, entry in enumerate(stored["fields"]):
        if not isinstance(entry, dict) or "name" not in entry or not set(entry) <= known:
            raise ValueError(
                f"schema: fields[{i}]: an object with 'name' and any of {sorted(known)} expected, "
                f"got {entry!r:.80}"
            )
        if entry.get("side", "impression") not in ("common", "impression"):
            raise ValueError(
                f"schema: fields[{i}]: side 'common' or 'impression' expected, "
                f"got {entry['side']!r}"
            )
        fields.append(Field(**entry))
    others = {f.name for f in dataclass_fields(Schema)} - {"fields"}
    if unknown := set(stored) - others - {"fields"}:
        raise ValueError(f"schema: keys {sorted(others)} expected, got {sorted(unknown)}")
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in stored.items() if k in others
    }
    return Schema(tuple(fields), **given)


def write_manifest(folder: Path, manifest: dict[str, Any], format: str = FORMAT) -> None:
    """Writes the manifest; it is the last file of a dataset, or of a shard."""
    text = json.dumps({"format": format, "version": VERSION, **manifest}, indent=1)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def is_shard(folder: Path) -> bool:
    """Returns whether a directory holds a shard of a dataset."""
    try:
        return bool(json.loads((folder / FILE_NAME).read_text("utf-8"))["format"] == SHARD_FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_manifest(folder: Path, format: str = FORMAT) -> dict[str, Any]:
    """Returns the manifest of a dataset (or of what `format` says) whose files are there and of the
    sizes it says.

    Raises:
        DatasetError: Not a dataset, a shard of one, a newer version, or files that are missing or
            cut.
    """
    path = folder / FILE_NAME
    if folder.exists() and not folder.is_dir():
        raise DatasetError(
            f"{folder} is a file; expected a dataset, the directory that `prepare` made"
        )
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such directory; expected a dataset (made by `prepare`)")
    if not path.exists():
        raise DatasetError(f"{folder} is not a dataset: it has no {FILE_NAME}{_likely(folder)}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path} is damaged: JSON expected, got {error}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found == SHARD_FORMAT != format:
        part, parts = manifest["shard"]["part"], manifest["shard"]["parts"]
        raise DatasetError(
            f"{folder} is shard {part}/{parts} of a dataset, which alone cannot be read or trained "
            f"on; expected a dataset: join all {parts} with `esmm-fast merge SHARD... --out "
            "DATASET`"
        )
    if found == FORMAT != format:
        raise DatasetError(f"{folder} is a whole dataset; expected a shard (`prepare --shard`)")
    if found != format:
        raise DatasetError(f"{path} is not the manifest of a dataset: format {FORMAT!r} expected")
    if manifest.get("version") != VERSION:
        raise DatasetError(
            f"{path}: this esmm_fast reads datasets of version {VERSION}, "
            f"got version {manifest.get('version')!r}; "
            "read it with the esmm_fast that wrote it "
            f"({manifest.get('written_by', {}).get('esmm_fast', 'unknown')}), "
            "or prepare the log again"
        )
    if missing := {"schema", "files", "impressions", "common_rows"} - set(manifest):
        raise DatasetError(f"{path} is damaged: it lacks {sorted(missing)}")
    for name in DATA_FILES if format == FORMAT else manifest["files"]:
        expected = manifest["files"].get(name, {}).get("bytes")
        data = folder / name
        if not data.exists():
            raise DatasetError(f"{folder} is damaged: {name} is missing")
        if data.stat().st_size != expected:
            raise DatasetError(
                f"{data} is damaged: expected {expected} bytes, got {data.stat().st_size}"
            )
    return manifest


def _likely(folder: Path) -> str:
    halves = [p.name for p in sorted(folder.iterdir()) if (p / FILE_NAME).exists()]
    if halves:
        return f"; it holds the datasets {', '.join(halves)}: give one, {folder / halves[0]}"
    if any(folder.glob("*.csv*")):
        return "; it holds csv files: make a dataset from them with `prepare`"
    return ""
