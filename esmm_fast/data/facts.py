"""A dataset or view in a few numbers: what it holds, and what tells it from others."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset


def counts(dataset: Dataset) -> dict[str, Any]:
    """Returns path, impressions, clicks, conversions (with click) and common rows of a dataset.

    Of a view all but `common_rows`, which is the directory's; `common_rows_used` is the view's.
    """
    labels = dataset.labels("and")
    return {
        "path": str(dataset.path),
        "impressions": len(dataset),
        "clicks": int(labels[:, 0].sum()),
        "conversions": int(labels[:, 1].sum()),
        "common_rows": len(dataset.common_rows),
        "common_rows_used": len(np.unique(common_rows_of(dataset))),
    }


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Returns what tells a dataset or view from others: its files' checksums, and a view's rows."""
    files = dataset.manifest["files"]
    identity = {name: files[name]["xxh64"] for name in sorted(files)}
    for name in ("selection", "impression_weights"):
        array = getattr(dataset, name)
        if array is not None:
            identity[name] = f"{len(array)} {zlib.crc32(array.tobytes()):08x}"
    return identity


def common_rows_of(dataset: Dataset) -> NDArray[np.int64]:
    """Returns the common row of each impression of a view, [n]."""
    rows = dataset.impressions["common_row"].to_numpy()
    return (rows if dataset.selection is None else rows[dataset.selection]).astype(np.int64)
