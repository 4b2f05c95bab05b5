"""Impressions of three ordered labels with hashed rows and several dimensions, as own tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LABELS = ("click", "cart", "buy")
SCHEMA = """
fields:
  - {name: user, side: common, dim: 6}
  - {name: item, rows: "hash:2**7"}
  - {name: tags, multi: true, dim: 6}
labels: [click, cart, buy]
"""


def write_tables(folder: Path, rows: int = 3000, seed: int = 0) -> dict[str, Path]:
    """Writes train.parquet, test.parquet and schema.yaml, whose paths it returns by stem.

    P(click), P(cart | click) and P(buy | cart) each hang on the item alone.
    """
    random = np.random.default_rng(seed)
    chances = random.choice([0.3, 0.9], (50, len(LABELS)))
    paths = {"schema": folder / "schema.yaml"}
    folder.mkdir(parents=True, exist_ok=True)
    paths["schema"].write_text(SCHEMA)
    for half in ("train", "test"):
        items = random.integers(0, 50, rows)
        labels = np.minimum.accumulate(random.random((rows, 3)) < chances[items], axis=1)
        tags = [random.integers(0, 9, n).tolist() for n in random.integers(0, 4, rows)]
        columns = {"user": np.arange(rows) // 5, "item": items + 10**6, "tags": tags}
        columns |= {name: labels[:, k].astype(np.uint8) for k, name in enumerate(LABELS)}
        paths[half] = folder / f"{half}.parquet"
        pq.write_table(pa.table(columns), paths[half])
    return paths
