"""A dataset in memory with the public log's field sizes and bag lengths, and its vocabulary."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from esmm_fast.schema import ALI_CCP
from esmm_fast.vocabulary import Vocabulary

# Published: distinct ids of each field, and mean bag length per impression.
FIELDS = {
    "101": (294_882, 1.0),
    "109_14": (12_204, 69.0),
    "110_14": (2_545_609, 250.0),
    "127_14": (396_179, 153.6),
    "150_14": (99_011, 135.9),
    "121": (97, 0.87),
    "122": (13, 0.87),
    "124": (2, 0.87),
    "125": (7, 0.87),
    "126": (3, 0.42),
    "127": (3, 0.87),
    "128": (2, 0.87),
    "129": (4, 0.6),
    "205": (3_168_671, 1.0),
    "206": (8_601, 1.0),
    "207": (610_380, 1.0),
    "210": (98_714, 6.1),
    "216": (209_990, 0.711),
    "508": (7_753, 0.7),
    "509": (388_805, 0.22),
    "702": (143_919, 0.22),
    "853": (86_895, 1.4),
    "301": (3, 1.0),
}
COMMON_SHARE = 518 / 615.8  # mean bag length per common row over that per impression
IMPRESSIONS_PER_COMMON_ROW = 57.9
FIRST_ID = {name: 1_000 for name in FIELDS}
_next = 1_000
for _name, (_ids, _) in FIELDS.items():  # each field has a block of ids of its own
    FIRST_ID[_name] = _next
    _next += _ids


def dataset_like_log(common_rows: int = 2_000, seed: int = 0, chunks: int = 4) -> Any:
    """Returns what batches read of a Dataset; ids are Zipf-like over the full blocks."""
    rng = np.random.default_rng(seed)
    sizes = rng.geometric(1 / IMPRESSIONS_PER_COMMON_ROW, common_rows)
    impressions = int(sizes.sum())
    columns: dict[str, Any] = {
        "sample_id": np.arange(1, impressions + 1, dtype=np.uint64),
        "click": (rng.random(impressions) < 0.0389).astype(np.uint8),
        "conversion": (rng.random(impressions) < 0.0002).astype(np.uint8),
        "common_row": np.repeat(rng.permutation(common_rows), sizes).astype(np.uint32),
    }
    columns |= _columns(rng, ALI_CCP.impression, impressions, 1.0)
    common = pa.table(_columns(rng, ALI_CCP.common, common_rows, COMMON_SHARE))
    table = pa.table(columns)
    step = -(-impressions // chunks)
    pieces = [table.slice(i, step).combine_chunks() for i in range(0, impressions, step)]
    return SimpleNamespace(
        schema=ALI_CCP,
        impressions=pa.concat_tables(pieces),
        common_rows=common,
        selection=None,
    )


def vocabulary_like_log(seed: int = 0) -> Vocabulary:
    """Returns a vocabulary of all ids; their order by frequency is random in each block."""
    return Vocabulary(
        {
            name: (_by_frequency(name, seed), np.arange(ids, 0, -1, dtype=np.uint64))
            for name, (ids, _) in FIELDS.items()
        }
    )


def _by_frequency(name: str, seed: int) -> np.ndarray:
    ids = FIELDS[name][0]
    order = np.random.default_rng([seed, FIRST_ID[name]]).permutation(ids)
    return (order + FIRST_ID[name]).astype(np.uint64)


def _columns(rng: np.random.Generator, fields: Any, rows: int, share: float) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {}
    for field in fields:
        ids, mean = FIELDS[field.name]
        if field.multi:
            lengths = rng.geometric(1 / (mean * share + 1), rows) - 1
            lengths = np.minimum(lengths, 1001)
        else:
            lengths = rng.random(rows) < min(mean, 1.0)
        n = int(lengths.sum())
        ranks = np.minimum((np.power(float(ids), rng.random(n)) - 1).astype(np.int64), ids - 1)
        drawn = _by_frequency(field.name, 0)[ranks].astype(np.uint32)
        values = rng.choice(np.log1p(np.arange(1, 200)), n).astype(np.float32)
        columns[field.name] = _array(drawn, lengths, field.multi)
        if field.weighted:
            columns[f"{field.name}_value"] = _array(values, lengths, field.multi)
    return columns


def _array(items: np.ndarray, lengths: np.ndarray, multi: bool) -> pa.Array:
    if multi:
        offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(items))
    full = np.zeros(len(lengths), items.dtype)
    full[lengths] = items
    return pa.array(full, mask=~lengths)
