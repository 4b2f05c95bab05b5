"""The manifest of a dataset: what is written, read and refused."""

from __future__ import annotations

import json
import os
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from .._compiled import _native
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
        ValueError: An unknown key or side, no list of fields, or a value of another type.
    """
    if not isinstance(stored, dict) or not isinstance(stored.get("fields"), list):
        raise ValueError(f"schema: an object with a list 'fields' expected, got {stored!r:.80}")
    known = {f.name for f in dataclass_fields(Field)}
    fields: list[dict[str, Any]] = []
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
        fields.append(entry)
    others = {f.name for f in dataclass_fields(Schema)} - {"fields"}
    if unknown := set(stored) - others - {"fields"}:
        raise ValueError(f"schema: keys {sorted(others)} expected, got {sorted(unknown)}")
    try:
        return msgspec.convert({**stored, "fields": fields}, Schema)
    except msgspec.ValidationError as error:
        raise ValueError(f"schema: {error}") from None


def stored_schema(folder: Path, manifest: dict[str, Any]) -> Schema:
    """Returns the schema of the manifest of `folder`; raises DatasetError if it is none."""
    try:
        return schema_from_dict(manifest["schema"])
    except ValueError as error:
        raise DatasetError(f"{folder / FILE_NAME} is damaged: {error}") from None


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
    if found == SHARD_FORMAT:
        shard = manifest.get("shard")
        if not isinstance(shard, dict) or not {"part", "parts"} <= set(shard):
            raise DatasetError(f"{path} is damaged: shard: part and parts expected, got {shard!r}")
        if found != format:
            raise DatasetError(
                f"{folder} is shard {shard['part']}/{shard['parts']} of a dataset, which alone "
                "cannot be read or trained on; expected a dataset: join all "
                f"{shard['parts']} with `esmm-fast merge SHARD... --out DATASET`"
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
    needed = {"schema", "files", "impressions", "common_rows"}
    if format == SHARD_FORMAT:
        needed |= {"inputs", "reports", "fixed"}
    if missing := needed - set(manifest):
        raise DatasetError(f"{path} is damaged: it lacks {sorted(missing)}")
    files = manifest["files"]
    if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
        raise DatasetError(f"{path} is damaged: files: sizes and checksums expected, got {files!r}")
    for name in DATA_FILES if format == FORMAT else files:
        expected = files.get(name, {}).get("bytes")
        data = folder / name
        if not data.exists():
            raise DatasetError(f"{folder} is damaged: {name} is missing")
        if data.stat().st_size != expected:
            raise DatasetError(
                f"{data} is damaged: expected {expected} bytes, got {data.stat().st_size}"
            )
    return manifest


def verify_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises DatasetError if a file does not have the checksum that the manifest says."""
    buffer = memoryview(bytearray(1 << 24))
    for name, facts in manifest["files"].items():
        checksum = _native.Xxh64()
        with open(folder / name, "rb", buffering=0) as file:
            while size := file.readinto(buffer):
                checksum.update(buffer[:size])
        if checksum.hexdigest() != facts.get("xxh64"):
            raise DatasetError(
                f"{folder / name} is damaged: expected checksum {facts.get('xxh64')}, "
                f"got {checksum.hexdigest()}"
            )


def open_mapped(path: Path) -> pa.RecordBatchFileReader:
    """Returns a data file opened without reading it.

    Raises:
        DatasetError: It is no Arrow file.
        OSError: It cannot be read.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise type(error)(f"{path} cannot be read: {os.strerror(error.errno)}") from error
        raise DatasetError(f"{path} is damaged: an Arrow IPC file expected, got {error}") from error


def _likely(folder: Path) -> str:
    halves = [p.name for p in sorted(folder.iterdir()) if (p / FILE_NAME).exists()]
    if halves:
        return f"; it holds the datasets {', '.join(halves)}: give one, {folder / halves[0]}"
    if any(folder.glob("*.csv*")):
        return "; it holds csv files: make a dataset from them with `prepare`"
    return ""
