"""Datasets: the columns of a log on disk, memory-mapped, and views of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset

from .._compiled import _native
from ..machine import usable_cores
from ..schema import Field, LabelKind, Schema, Side
from ..staging import staged_directory
from .manifest import DatasetError, open_arrow, read_manifest, stored_schema, verify_files
from .published import published_comparison
from .record_batches import IMPRESSION_COLUMNS

if TYPE_CHECKING:
    from .batches import Batches

__all__ = ["Dataset", "DatasetError"]

TOTALS = (
    "impressions",
    "clicks",
    "conversions",
    "conversions_without_click",
    "common_rows",
    "common_rows_unused",
)
"""What `info` counts over a whole dataset."""

_DUMPED_TOGETHER: dict[Side, int] = {"common": 128, "impression": 4096}  # rows: 1 MB of text or so
_DUMPED_AHEAD = 16  # pieces that wait to be written


class Dataset:
    """A log as columns: feature ids, never table rows; common rows stored once.

    Args:
        path: Directory that `prepare` wrote. Its files are mapped, not read.

    Attributes:
        path: The directory.
        manifest: Schema, counts, versions and checksums, as `prepare` wrote them.
        schema: The fields of the log (without table rows, which a vocabulary gives).
        impressions: Table of all impressions of the directory, in the order of the log: sample_id,
            the labels, common_row (into `common_rows`; not where the log has no common rows),
            ``dense`` (a list of float32), the weight and the extra columns of the schema, and per
            field a list of ids (`multi`; empty: absent) or a nullable id; behind a weighted field
            ``<field>_value`` with the same offsets. Few distinct ids or values are codes into a
            dictionary (Arrow's type of that name).
        common_rows: Table of key (the 16 hex characters as uint64) and the common fields, in the
            order of the log.
        counts: Table of field, feature_id, count: occurrences as stored, by field and ascending id.
        selection: Rows of `impressions` that this view holds, in its order (int64; may repeat), or
            None: all.
        impression_weights: Weight of each impression of this view (float32 [len(self)]), which its
            batches carry, or None: all 1. See `weighted`.

    Raises:
        DatasetError: The directory is not a dataset, of another version, or damaged.

    Example:
        >>> import pathlib, tempfile
        >>> from esmm_fast import prepare
        >>> line = "{},{},0,00000000000000aa,1,205\\x02{}\\x031.0\\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "skeleton.csv")
        ...     _ = file.write_text(line.format(1, 0, 7) + line.format(2, 1, 8))
        ...     dataset = prepare(skeleton=file, out=pathlib.Path(folder, "dataset"))
        ...     clicked = dataset.select(pyarrow.compute.field("click") == 1)
        ...     len(dataset), len(clicked), clicked.labels().tolist(), clicked.head(1)[0]["fields"]
        (2, 1, [[1.0, 0.0]], {'205': [(8, 1.0)]})
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_manifest(self.path)
        self.schema: Schema = stored_schema(self.path, self.manifest)
        self.selection: np.ndarray | None = None
        self.impression_weights: np.ndarray | None = None
        self.impressions = self._open("impressions.arrow")
        self.common_rows = self._open("common_rows.arrow")
        for name, table in (("impressions", self.impressions), ("common_rows", self.common_rows)):
            if table.num_rows != self.manifest[name]:
                raise DatasetError(
                    f"{self.path / name}.arrow is damaged: expected {self.manifest[name]} rows, "
                    f"got {table.num_rows}"
                )

    @cached_property
    def counts(self) -> pa.Table:
        return self._open("counts.arrow")

    def _open(self, name: str) -> pa.Table:
        try:
            return open_arrow(self.path / name).read_all()
        except pa.ArrowException as error:
            raise DatasetError(f"{self.path / name} is damaged: {error}") from error

    def __len__(self) -> int:
        return self.impressions.num_rows if self.selection is None else len(self.selection)

    def __repr__(self) -> str:
        view = "" if self.selection is None else f" (a view of {self.impressions.num_rows:,})"
        common = f"{self.common_rows.num_rows:,} common rows"
        return f"Dataset({str(self.path)!r}: {len(self):,} impressions{view}, {common})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.selection, self.impression_weights)

    # ---- Views

    def select(self, which: Any) -> Dataset:
        """Returns a view of some of these impressions; nothing is copied, and views of views
        compose.

        Args:
            which: A boolean mask [len(self)]; or indices into this view, in any order, also
                repeated, negative ones counted from the end; or a `pyarrow.compute` expression over
                the columns of `impressions` (null counts as false).
        """
        chosen = self._chosen(which)
        view = object.__new__(Dataset)
        view.__dict__.update(self.__dict__)
        view.selection = chosen if self.selection is None else self.selection[chosen]
        if self.impression_weights is not None:
            view.impression_weights = self.impression_weights[chosen]
        return view

    def weighted(self, weights: Any) -> Dataset:
        """Returns this view with a weight for each impression; weights of views multiply.

        Batches carry them as `Batch.impression_weights`, and a loss of mean reduction is then
        sum(w L) / sum(w) of the batch. A later `select` takes each impression's weight along.

        Args:
            weights: [len(self)], finite and not negative; kept as float32.

        Raises:
            ValueError: Another length, or the first weight that is negative or not finite.
        """
        array = np.asarray(weights, np.float32)
        if array.shape != (len(self),):
            raise ValueError(
                f"weights: expected {len(self)}, one for each impression, got shape "
                f"{list(array.shape)}"
            )
        bad = ~((array >= 0) & (array < np.inf))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise ValueError(f"weights[{at}]: expected a finite number >= 0, got {array[at]}")
        view = object.__new__(Dataset)
        view.__dict__.update(self.__dict__)
        before = self.impression_weights
        view.impression_weights = array.copy() if before is None else before * array
        return view

    def _chosen(self, which: Any) -> np.ndarray:
        if isinstance(which, pa.compute.Expression):
            scanner = pa.dataset.dataset(self.impressions).scanner(columns={"chosen": which})
            column = scanner.to_table()["chosen"]
            if not pa.types.is_boolean(column.type):
                raise ValueError(
                    f"which: a boolean expression expected, got one of type {column.type}"
                )
            mask = column.fill_null(False).to_numpy()
            return np.flatnonzero(mask if self.selection is None else mask[self.selection])
        indices = np.asarray(which)
        if indices.ndim != 1:
            raise ValueError(f"which: one dimension expected, got shape {list(indices.shape)}")
        if indices.dtype == np.bool_:
            if len(indices) != len(self):
                raise ValueError(f"which: a mask of {len(self)} rows expected, got {len(indices)}")
            return np.flatnonzero(indices)
        if len(indices) == 0:
            return np.empty(0, np.int64)
        if not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(
                "which: a mask (bool), indices (integers) or an expression expected, "
                f"got {indices.dtype}"
            )
        outside = (indices < -len(self)) | (indices >= len(self))
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            raise IndexError(f"which[{at}] = {indices[at]} is outside the {len(self)} impressions")
        indices = indices.astype(np.int64)
        return np.where(indices < 0, indices + len(self), indices)

    def labels(self, kind: LabelKind = "and") -> np.ndarray:
        """Returns the labels of the view, float32 [n, K], first stage first.

        Args:
            kind: ``"and"``: a stage AND all before it (click; click AND conversion). ``"raw"``: as
                logged. ``"drop"``: as logged, without the rows where a stage is 1 after one that is
                0, a conversion without a click (n is then smaller than ``len(self)``).
        """
        if kind not in ("and", "drop", "raw"):
            raise ValueError(f"kind: 'and', 'drop' or 'raw' expected, got {kind!r}")
        labels = np.stack([self.impressions[n].to_numpy() for n in self.schema.labels], axis=1)
        if self.selection is not None:
            labels = labels[self.selection]
        if kind != "raw":
            reached = np.minimum.accumulate(labels, axis=1)
            labels = reached if kind == "and" else labels[(labels == reached).all(axis=1)]
        return labels.astype(np.float32)

    def batches(self, batch_size: int, **options: Any) -> Batches:
        """Returns the batches of this view: see `esmm_fast.data.batches.Batches`."""
        from .batches import Batches

        return Batches(self, batch_size, **options)

    # ---- What is in it

    def info(self, verify: bool = False) -> dict[str, Any]:
        """Returns what the directory holds: counts, per-field counts, anomalies, size.

        Args:
            verify: Read every file and compare its checksum.

        Returns:
            `impressions`, `clicks`, `conversions` (with click), `conversions_without_click`,
            `common_rows`, `common_rows_unused`, `bytes`, `fields` ({name: occurrences (as stored),
            distinct_ids, rows_without (of its own file)}), `anomalies` and `rejected` ({class:
            count, first}), `promoted`, `labels` ({name: impressions where it is 1}, where they are
            not click and conversion: `clicks` is then the first stage, `conversions` the last
            reached), and, for a file named like a public one, `published`: how
            the totals compare. `verified` is True after `verify`. A view adds `selected`; all else
            is about the directory.

        Raises:
            DatasetError: `verify` found a file that is not what `prepare` wrote.
        """
        info: dict[str, Any] = {name: self.manifest[name] for name in TOTALS}
        info["bytes"] = sum(file["bytes"] for file in self.manifest["files"].values())
        for name in ("fields", "anomalies", "rejected", "promoted"):
            info[name] = self.manifest[name]
        if "labels" in self.manifest:
            info["labels"] = self.manifest["labels"]
        if (published := published_comparison(self.manifest, info)) is not None:
            info["published"] = published
        if self.selection is not None:
            info["selected"] = len(self)
        if verify:
            verify_files(self.path, self.manifest)
            info["verified"] = True
        return info

    def head(self, n: int = 5) -> list[dict[str, Any]]:
        """Returns the first n impressions of the view, joined with their common rows.

        Returns:
            Per impression: `sample_id`, the labels, `common_row`, the columns that are carried
            along, `key` (16 hex characters), and `fields`: {name: [(feature id, value), ...]} of
            the fields that are there, common ones first.
        """
        rows = np.arange(min(n, len(self)), dtype=np.int64)
        if self.selection is not None:
            rows = self.selection[rows]
        impressions = []
        for row in rows.tolist():
            impression = self.impressions.slice(row, 1).to_pylist()[0]
            features, key = {}, {}
            if (common_row := impression.get("common_row")) is not None:
                common = self.common_rows.slice(common_row, 1).to_pylist()[0]
                features = _features(common, self.schema.common)
                key = {"key": f"{common['key']:016x}"}
            features |= _features(impression, self.schema.impression)
            own = [n for f in self.schema.impression for n in (f.name, f"{f.name}_value")]
            fixed = {n: value for n, value in impression.items() if n not in own}
            impressions.append({**fixed, **key, "fields": features})
        return impressions

    def _carried(self) -> tuple[str, ...]:
        """Returns the columns behind the labels that are carried along."""
        dense = ("dense",) if self.schema.dense else ()
        weight = () if self.schema.weight is None else (self.schema.weight,)
        return (*dense, *weight, *self.schema.extra)

    # ---- Back to text

    def dump(self, out: str | os.PathLike[str]) -> None:
        """Writes the log again: `sample_skeleton.csv` with the impressions of this view and
        `common_features.csv` with all common rows, into a new directory `out`.

        Nothing differs from the log that was read but the order of the fields inside a row and the
        spelling of numbers: a value is the shortest decimal that reads back to its float32. Keys
        are written as the 16 hex characters of `common_rows`'s key: of a text key its XXH64, of a
        table without a key column the hash of the common fields.

        Raises:
            ValueError: The dataset has other columns than a log of this format, or a field name or
                a value that such a log cannot spell. Nothing is written then.
        """
        columns = (*self.impressions.column_names[: len(IMPRESSION_COLUMNS)], *self._carried())
        if columns != IMPRESSION_COLUMNS:
            raise ValueError(
                f"{self.path}: a dump has the columns {', '.join(IMPRESSION_COLUMNS)}; the dataset "
                f"has {', '.join(columns)}, which it would lose: read {self.path}/*.arrow instead"
            )
        self._require_spellable()
        keys = self.common_rows["key"].to_numpy()
        common, own = self.schema.common, self.schema.impression
        whole = ((batch, [(0, batch.num_rows)]) for batch in self.common_rows.to_batches())
        with staged_directory(Path(out)) as staged, ThreadPoolExecutor(usable_cores()) as pool:
            with open(staged / "common_features.csv", "wb") as file:
                for batch, ranges in whole:
                    _dump(pool, batch, common, "common", None, ranges, file)
            with open(staged / "sample_skeleton.csv", "wb") as file:
                for batch, ranges in self._ranges():
                    _dump(pool, batch, own, "impression", keys, ranges, file)

    def _require_spellable(self) -> None:
        """Raises ValueError at a field name or value that no line of a log can hold."""
        for field in self.schema.fields:
            if not field.name or any(c < " " or c == "," for c in field.name):
                raise ValueError(
                    f"{self.path}: field {field.name!r}: a log has names without ',' and bytes "
                    f"below 0x20; read {self.path}/*.arrow instead"
                )
            table = self.common_rows if field.side == "common" else self.impressions
            if f"{field.name}_value" not in table.column_names:
                continue
            for chunk in table[f"{field.name}_value"].chunks:
                items = chunk.flatten() if field.multi else chunk.drop_null()
                values = items.dictionary if pa.types.is_dictionary(items.type) else items
                if np.signbit(found := values.to_numpy()).any():
                    raise ValueError(
                        f"{self.path}: field {field.name!r} has the value "
                        f"{found[np.signbit(found)][0]}; a log has values of at least 0 only: read "
                        f"{self.path}/*.arrow instead"
                    )

    def _ranges(self) -> Iterator[tuple[pa.RecordBatch, list[tuple[int, int]]]]:
        """Yields the rows of the view in its order, as ranges of rows of record batches."""
        batches = self.impressions.to_batches()
        if self.selection is None:
            for batch in batches:
                yield batch, [(0, batch.num_rows)]
            return
        starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        batch_of_row = np.searchsorted(starts, self.selection, side="right") - 1
        cuts = np.flatnonzero(np.diff(batch_of_row)) + 1
        for rows, of_batch in zip(
            np.split(self.selection, cuts), np.split(batch_of_row, cuts), strict=True
        ):
            if len(rows) == 0:
                continue
            first = int(of_batch[0])
            local = rows - starts[first]
            breaks = np.flatnonzero(np.diff(local) != 1) + 1
            begins = local[np.concatenate([[0], breaks])]
            ends = local[np.concatenate([breaks - 1, [len(local) - 1]])] + 1
            yield batches[first], list(zip(begins.tolist(), ends.tolist(), strict=True))


def _reopen(path: Path, selection: np.ndarray | None, weights: np.ndarray | None) -> Dataset:
    dataset = Dataset(path)
    dataset.selection, dataset.impression_weights = selection, weights
    return dataset


def _features(row: dict[str, Any], fields: tuple[Field, ...]) -> dict[str, list[tuple[int, float]]]:
    features: dict[str, list[tuple[int, float]]] = {}
    for field in fields:
        ids: Any = row[field.name]
        values: Any = row.get(f"{field.name}_value")
        if not field.multi:
            ids, values = ([], []) if ids is None else ([ids], [values])
        if ids:
            weights = values if field.weighted else [1.0] * len(ids)
            features[field.name] = list(zip(ids, weights, strict=True))
    return features


def _dump(
    pool: ThreadPoolExecutor,
    batch: pa.RecordBatch,
    fields: tuple[Field, ...],
    side: Side,
    keys: np.ndarray | None,
    ranges: list[tuple[int, int]],
    file: Any,
) -> None:
    """Writes rows of a record batch as text, some at a time in each thread."""
    columns = []
    for field in fields:
        offsets, valid, ids = _buffers(batch, field.name, field.multi)
        values = _buffers(batch, f"{field.name}_value", field.multi)[2] if field.weighted else None
        columns.append((field.name, offsets, valid, ids, values))
    numbers: dict[str, Any] = dict.fromkeys(("sample_id", "click", "conversion", "common_row"))
    if side == "impression":
        numbers = {name: batch.column(name).to_numpy() for name in numbers}
    else:
        keys = batch.column("key").to_numpy()
    text = partial(_native.dump_rows, **numbers, keys=keys, fields=columns)
    at_a_time = _DUMPED_TOGETHER[side]
    waiting: deque[Future[bytes]] = deque()
    for begin, end in ranges:
        for start in range(begin, end, at_a_time):
            stop = min(start + at_a_time, end)
            waiting.append(pool.submit(text, begin=start, end=stop))
            if len(waiting) > _DUMPED_AHEAD:
                file.write(waiting.popleft().result())
    for piece in waiting:
        file.write(piece.result())


def _buffers(
    batch: pa.RecordBatch, name: str, multi: bool
) -> tuple[np.ndarray | None, np.ndarray | None, Any]:
    """Returns (offsets, valid bits, items) of a column of a whole record batch, without copies;
    items are numbers, or (codes, dictionary)."""
    array = batch.column(name)
    if array.offset:
        raise ValueError(f"column {name!r}: a whole record batch expected, got a slice of one")
    valid = array.buffers()[0]
    bits = None if multi or valid is None else np.frombuffer(valid, np.uint8)
    items = array.values if multi else array
    coded = pa.types.is_dictionary(items.type)
    stored = items.indices if coded else items
    numbers = np.frombuffer(stored.buffers()[1] or b"", stored.type.to_pandas_dtype())
    offsets = array.offsets.to_numpy() if multi else None
    return offsets, bits, (numbers, items.dictionary.to_numpy()) if coded else numbers
