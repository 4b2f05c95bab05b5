"""A log generator, parser and comparison in plain Python: slow, and not the package's parser."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from esmm_fast.schema import ALI_CCP, Schema

Features = dict[str, list[tuple[int, float]]]
"""Field -> [(feature id, value)] in the order of the row."""


@dataclass
class SlowLog:
    """impressions: (sample_id, click, conversion, key, features); common: key -> features."""

    impressions: list[tuple[int, int, int, str, Features]] = field(default_factory=list)
    common: dict[str, Features] = field(default_factory=dict)


def float32(text: str) -> float:
    return float(np.float32(text))


def parse_features(text: str) -> Features:
    features: Features = {}
    for feature in filter(None, text.split("\x01")):
        name, rest = feature.split("\x02")
        number, value = rest.split("\x03")
        features.setdefault(name, []).append((int(number), float32(value)))
    return features


def parse(skeleton: str, common: str) -> SlowLog:
    """Returns the rows of a good log."""
    log = SlowLog()
    for line in common.replace("\r\n", "\n").split("\n"):
        if line:
            key, count, text = line.split(",")
            row = parse_features(text)
            assert sum(map(len, row.values())) == int(count)
            assert log.common.setdefault(key, row) == row
    for line in skeleton.replace("\r\n", "\n").split("\n"):
        if line:
            sample_id, click, conversion, key, count, text = line.split(",")
            row = parse_features(text)
            assert sum(map(len, row.values())) == int(count)
            log.impressions.append((int(sample_id), int(click), int(conversion), key, row))
    return log


def stored(impressions: Any, common_rows: Any, schema: Schema) -> SlowLog:
    """Returns the rows of a dataset's (or read_log's) tables."""
    log = SlowLog()
    keys = []
    for row in common_rows.to_pylist():
        keys.append(f"{row['key']:016x}")
        assert keys[-1] not in log.common
        log.common[keys[-1]] = _features(row, schema.common)
    for row in impressions.to_pylist():
        log.impressions.append(
            (
                row["sample_id"],
                row["click"],
                row["conversion"],
                keys[row["common_row"]],
                _features(row, schema.impression),
            )
        )
    return log


def _features(row: dict[str, Any], fields: Any) -> Features:
    features: Features = {}
    for f in fields:
        ids, values = row[f.name], row.get(f"{f.name}_value")
        assert (f"{f.name}_value" in row) == f.weighted
        if not f.multi:
            assert not isinstance(ids, list)
            ids, values = ([], []) if ids is None else ([ids], [values])
        values = values if f.weighted else [1.0] * len(ids)
        assert len(ids) == len(values)
        if ids:
            features[f.name] = [(i, float(np.float32(v))) for i, v in zip(ids, values, strict=True)]
    return features


def count(log: SlowLog, schema: Schema) -> dict[str, Any]:
    """Returns what `Dataset.info` counts."""
    rows_of = {
        "common": list(log.common.values()),
        "impression": [features for *_, features in log.impressions],
    }
    fields = {}
    for f in schema.fields:
        rows = rows_of[f.side]
        ids = Counter(number for row in rows for number, _ in row.get(f.name, []))
        fields[f.name] = {
            "occurrences": ids.total(),
            "distinct_ids": len(ids),
            "rows_without": sum(f.name not in row for row in rows),
        }
    labels = [(click, conversion) for _, click, conversion, _, _ in log.impressions]
    return {
        "impressions": len(labels),
        "clicks": sum(click for click, _ in labels),
        "conversions": labels.count((1, 1)),
        "conversions_without_click": labels.count((0, 1)),
        "common_rows": len(log.common),
        "common_rows_unused": len(set(log.common) - {key for *_, key, _ in log.impressions}),
        "fields": fields,
    }


# ---- Generation


def generate(
    rng: random.Random, impressions: int, common: int, *, strange: bool = False
) -> tuple[str, str]:
    """Returns (skeleton text, common text), with everything that is tolerated if `strange`."""
    keys = [f"{rng.getrandbits(64):016x}" for _ in range(common)]
    common_lines = [f"{key},{_list(rng, ALI_CCP.common, 12, strange)}" for key in keys]
    if strange:
        common_lines += rng.sample(common_lines, min(2, common))
        rng.shuffle(common_lines)
    skeleton_lines = []
    for i in range(impressions):
        key = keys[min(int(rng.expovariate(0.5)), common - 1)]
        labels = f"{rng.getrandbits(1)},{rng.getrandbits(1)}"
        sample_id = rng.choice([i, rng.getrandbits(64)]) if strange else i + 1
        skeleton_lines.append(
            f"{sample_id},{labels},{key},{_list(rng, ALI_CCP.impression, 5, strange)}"
        )
    return _text(rng, skeleton_lines, strange), _text(rng, common_lines, strange)


def _list(rng: random.Random, fields: Any, most: int, strange: bool) -> str:
    features = []
    for f in fields:
        lengths = [0, 1, 1, 2, most] if f.multi or (strange and rng.random() < 0.02) else [0, 1, 1]
        for _ in range(rng.choice(lengths)):
            weighted = f.weighted or (strange and rng.random() < 0.02)
            features.append(
                f"{f.name}\x02{_id(rng, strange)}\x03{_value(rng, strange) if weighted else '1.0'}"
            )
    if not features and not strange:
        features.append(f"{fields[0].name}\x025\x031.0")
    rng.shuffle(features)
    tail = "\x01" if strange and features and rng.random() < 0.1 else ""
    return f"{len(features)}," + "\x01".join(features) + tail


def _id(rng: random.Random, strange: bool) -> int:
    bits = rng.choice([4, 12, 24, 27]) if not strange else rng.choice([1, 8, 24, 31, 32])
    if strange and rng.random() < 0.003:
        bits = 64
    return rng.getrandbits(bits)


def _value(rng: random.Random, strange: bool) -> str:
    if strange and rng.random() < 0.2:
        whole = str(rng.getrandbits(rng.choice([1, 10, 60])))
        digits = "".join(rng.choice("0123456789") for _ in range(rng.randrange(1, 30)))
        return rng.choice([whole, f"{whole}.{digits}"])
    return rng.choice(["1.0", "0.69315", f"{rng.randrange(819000) / 100000:.5f}"])


def _text(rng: random.Random, lines: list[str], strange: bool) -> str:
    if not strange:
        return "".join(line + "\n" for line in lines)
    ends = [rng.choice(["\n", "\n", "\r\n", "\n\n"]) for _ in lines]
    if rng.random() < 0.5:
        ends[-1] = ""
    return "".join(line + end for line, end in zip(lines, ends, strict=True))


def write(folder: Path, skeleton: str, common: str, half: str = "train") -> tuple[Path, Path]:
    """Writes the two files of a log; returns their paths."""
    files = folder / f"sample_skeleton_{half}.csv", folder / f"common_features_{half}.csv"
    files[0].write_bytes(skeleton.encode("latin-1"))
    files[1].write_bytes(common.encode("latin-1"))
    return files
