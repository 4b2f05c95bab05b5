"""Totals of the public Ali-CCP files, and how a dataset compares with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..schema import ALI_CCP

_ROWS: dict[str, dict[str, int]] = {
    "train": {
        "impressions": 42_300_135,
        "clicks": 1_644_256,
        "conversions": 8_802,
        "conversions_without_click": 230,
        "common_rows": 730_600,
        "distinct_ids": 8_071_747,
    },
    "test": {
        "impressions": 43_016_840,
        "clicks": 1_673_447,
        "conversions": 9_195,
        "conversions_without_click": 226,
        "common_rows": 884_212,
        "distinct_ids": 8_113_594,
    },
}
RATES = {
    "ctr": _ROWS["train"]["clicks"] / _ROWS["train"]["impressions"],
    "cvr": _ROWS["train"]["conversions"] / _ROWS["train"]["clicks"],
}
"""Clicks / impressions and conversions / clicks of the public training set."""

_OCCURRENCES = {  # of the skeleton's fields: (train, test)
    "205": (42_300_056, 43_016_622),
    "206": (42_300_056, 43_016_622),
    "207": (42_300_056, 43_016_622),
    "210": (257_942_137, 262_021_372),
    "216": (30_097_985, 29_927_480),
    "508": (29_455_966, 29_931_082),
    "509": (9_354_971, 9_281_203),
    "702": (9_458_773, 9_583_056),
    "853": (59_198_373, 58_464_640),
    "301": (42_300_135, 43_016_840),
}
_DISTINCT_IDS = {  # of train
    "101": 294_882,
    "109_14": 12_204,
    "110_14": 2_545_609,
    "127_14": 396_179,
    "150_14": 99_011,
    "121": 97,
    "122": 13,
    "124": 2,
    "125": 7,
    "126": 3,
    "127": 3,
    "128": 2,
    "129": 4,
    "205": 3_168_671,
    "206": 8_601,
    "207": 610_380,
    "210": 98_714,
    "216": 209_990,
    "508": 7_753,
    "509": 388_805,
    "702": 143_919,
    "853": 86_895,
    "301": 3,
}


def _totals(half: str) -> dict[str, int]:
    totals = dict(_ROWS[half])
    for field, (train, test) in _OCCURRENCES.items():
        totals[f"{field}.occurrences"] = train if half == "train" else test
    if half == "train":
        totals |= {f"{field}.distinct_ids": count for field, count in _DISTINCT_IDS.items()}
    return totals


PUBLISHED: dict[str, dict[str, int]] = {half: _totals(half) for half in _ROWS}
"""Half -> name -> total, as public projects that processed the full files report them; conversions
are those with a click, occurrences those of the file (unjoined)."""


def published_comparison(
    manifest: dict[str, Any], counted: dict[str, Any]
) -> dict[str, Any] | None:
    """Returns how the totals compare with those of the public file of the same name, if there is
    one: `half`, `equal`, `published` and `here` ({name: total})."""
    source = manifest.get("source", {})
    names = [Path(name).name for name in source.get("skeleton", [])]
    if source.get("synthetic") or len(names) != 1:
        return None
    if [f["name"] for f in manifest["schema"]["fields"]] != [f.name for f in ALI_CCP.fields]:
        return None
    fields = counted["fields"]
    every = {**counted, "distinct_ids": sum(f["distinct_ids"] for f in fields.values())}
    for half, totals in PUBLISHED.items():
        if names[0].startswith(f"sample_skeleton_{half}."):
            here = {}
            for name in totals:
                field, _, count = name.partition(".")
                here[name] = fields[field][count] if count else every[name]
            return {"half": half, "equal": here == totals, "published": totals, "here": here}
    return None
