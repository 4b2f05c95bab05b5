"""The log with pandas: read_csv, split and explode, groupby."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from peers import Loaded


def _features(lists: pd.Series) -> pd.DataFrame:
    features = lists.str.split("\x01").explode()
    parts = features.str.split("[\x02\x03]", expand=True, regex=True)
    return pd.DataFrame(
        {
            "row": features.index.to_numpy(np.uint32),
            "field": parts[0].astype("category").array,
            "id": parts[1].astype(np.uint64).to_numpy(),
            "value": parts[2].astype(np.float32).to_numpy(),
        }
    )


def load(skeleton: Path, common: Path, out: Path) -> Loaded:
    """Reads both files at once."""
    rows = pd.read_csv(
        skeleton,
        header=None,
        names=["sample_id", "click", "conversion", "key", "count", "features"],
        dtype={"key": str},
    )
    common_rows = pd.read_csv(
        common, header=None, names=["key", "count", "features"], dtype={"key": str}
    )
    number = pd.Series(np.arange(len(common_rows)), index=common_rows["key"])
    rows["common_row"] = rows["key"].map(number)
    tables = {
        "impression": _features(rows["features"]),
        "common": _features(common_rows["features"]),
    }
    counts = pd.concat(
        table.groupby(["field", "id"], observed=True).size().rename("count").reset_index()
        for table in tables.values()
    )
    out.mkdir(parents=True)
    rows[["sample_id", "click", "conversion", "common_row"]].to_feather(
        out / "rows.arrow", compression="uncompressed"
    )
    for name, table in tables.items():
        table.to_feather(out / f"{name}.arrow", compression="uncompressed")
    counts.reset_index(drop=True).to_feather(out / "counts.arrow", compression="uncompressed")
    return Loaded(
        impressions=len(rows),
        clicks=int(rows["click"].sum()),
        common_rows=len(common_rows),
        occurrences=sum(map(len, tables.values())),
        distinct_ids=len(counts),
        id_sum=sum(int(table["id"].sum()) for table in tables.values()),
        value_sum=sum(float(table["value"].astype(np.float64).sum()) for table in tables.values()),
        common_row_sum=int(rows["common_row"].sum()),
    )
