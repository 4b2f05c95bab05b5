"""Loaders of the same log in other tools, written as their users would: what `prepare` is compared
with.

Each module has ``load(skeleton, common, out) -> Loaded``: it reads both files whole, keeps every id
and value, finds the common row of every impression by its key, counts every id of every field, and
writes the result to the new folder `out`. The form on disk is the tool's choice: a table of
features (row, field, id, value) where that comes naturally, instead of a column per field. They
check less than the parser: a malformed line may pass.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.compute as pc

from esmm_fast.data.dataset import Dataset

NAMES = {
    "python": (),
    "pandas": ("pandas",),
    "polars": ("polars",),
    "duckdb": ("duckdb",),
    "pyarrow": (),
}
"""Peer -> the packages it needs besides this project's."""


@dataclass(frozen=True)
class Loaded:
    """What a peer found, for the comparison with `prepare`.

    Args:
        impressions, clicks, common_rows: Totals.
        occurrences: Occurrences of all fields, common rows stored once.
        distinct_ids: Distinct (field, id).
        id_sum: Sum of the ids of all occurrences.
        value_sum: Sum of their values.
        common_row_sum: Sum over impressions of the number of their common row.
    """

    impressions: int
    clicks: int
    common_rows: int
    occurrences: int
    distinct_ids: int
    id_sum: int
    value_sum: float
    common_row_sum: int

    def agrees_with(self, other: Loaded) -> bool:
        """Whether both found the same; the sum of values up to its rounding."""
        close = abs(self.value_sum - other.value_sum) <= 1e-6 * abs(other.value_sum)
        return close and replace(self, value_sum=0) == replace(other, value_sum=0)


Load = Callable[[Path, Path, Path], Loaded]


def of_dataset(path: Path) -> Loaded:
    """Returns what `prepare` found, read from the columns of its dataset."""
    dataset = Dataset(path)
    id_sum, value_sum, occurrences = 0, 0.0, 0
    for side, table in (("impression", dataset.impressions), ("common", dataset.common_rows)):
        for field in dataset.schema.fields:
            if field.side != side:
                continue
            column, values = table[field.name], None
            if field.weighted:
                values = table[f"{field.name}_value"]
            if field.multi:
                column = pc.list_flatten(column)
                values = None if values is None else pc.list_flatten(values)
            present = len(column) - column.null_count
            occurrences += present
            id_sum += pc.sum(column.cast("uint64")).as_py() or 0
            value_sum += present if values is None else pc.sum(values.cast("float64")).as_py() or 0
    return Loaded(
        impressions=len(dataset),
        clicks=int(dataset.labels()[:, 0].sum(dtype="float64")),
        common_rows=dataset.common_rows.num_rows,
        occurrences=occurrences,
        distinct_ids=dataset.counts.num_rows,
        id_sum=id_sum,
        value_sum=value_sum,
        common_row_sum=pc.sum(dataset.impressions["common_row"].cast("uint64")).as_py(),
    )


def peer(name: str) -> Load | None:
    """Returns a peer's `load`, or None where one of its packages is not installed."""
    for package in NAMES[name]:
        if importlib.util.find_spec(package) is None:
            return None
    load: Load = importlib.import_module(f"peers.{name}_loader").load
    return load
