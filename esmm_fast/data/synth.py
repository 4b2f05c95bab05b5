"""Logs in the exact Ali-CCP format, with the true pCTR and pCVR of every impression.

The public files need a registration, and nobody knows the truth behind their labels. A synthetic
log stands in for them: it has their grammar, their published sizes and shares, and labels drawn
from a known model. One C++ generator (``csrc/log/synth*``) makes it; this module owns the files.

**Published, and met** (in expectation, at any number of impressions; in a full-size train file the
lengths, shares and distinct ids differ from these by less than 1 %): the 23 fields and their side;
presence and mean bag length of every field per impression, 13.35 features per impression, 518 per
common row and 615.8 per common row seen from an impression; longest bags and rows (1001, 335, 38,
25; 50, 2706); distinct ids of a full-size train file; the greatest id, 10,091,378; 57.9 (train) and
48.7 (test) impressions per common row, standing together; CTR 3.887 %, CVR .535 %; the CTR of the
first 1M of 42.3M impressions (4.68 %); values ln(1 + count) in .07973 .. 8.18507; rows without 205,
206, 207; conversions without a click.

**Ours, because nothing is published**, with the reason:

* *Id blocks.* Contiguous, around the ids seen in public rows and in their order, as wide as the
  distinct counts ask. Ids inside a block are spread so that they tell neither popularity nor
  category.
* *Popularity.* A power law (rank^-2/3) with a long tail of rare ids, inside each of 8,627
  categories, over the whole block whatever the number of impressions: small logs have many ids that
  occur once, as a cut of the real log has.
* *Catalogue.* An item has one category, one shop, a brand or none, and its own nodes; shops and
  brands belong to one category, nodes to a family of categories. So 206, 207, 210, 216 are
  functions of 205.
* *Taste.* A common row has six interests (categories): 3 of 4 impressions and half of its history
  are from these.
* *Crosses.* 508, 509, 702 are present exactly where the impression's category, shop, brand is in
  the common row's 109_14, 110_14, 127_14 (every one the cross field knows), 853 lists the nodes of
  210 that are in 150_14, and their values are those of the history: a cross field means what its
  name says.
* *Histories.* All lengths of a common row share one activity factor (gamma, shape 2) times an
  exponential-like factor of their own; group size is 1 + a gamma variate whose mean grows with the
  activity: one cause gives both published means.
* *Users.* A common row shows a user at a point in time. Users (101) recur, in train and between
  train and test, the active ones often: at full size 295 thousand users have 731 thousand common
  rows. Their profile (121 .. 129) stays, their histories differ. Train and test never share a
  common_feature_index. 121, 122, 124, 125, 127, 128 are present together.
* *Values.* P(count >= c) = 1 / c, and one in 32 below one (decayed counts: the published least
  value asks for them).
* *Order.* The groups of a skeleton are in no order; the common file is sorted by
  common_feature_index (the public one begins with 0000350f0c2121e7, the least of 730,600 random
  ones). Inside a row the fields are shuffled, and in one row of eight the values of one field stand
  in two places.
* *Drift.* The click logit falls by .28 * (1 - x)^4, x the place in the file, in train and in test.
* *Odd rows.* Spread evenly over the file (not Bernoulli), at least one of each kind from 1,000
  impressions on, so that every test log has some; half of the rows without an item have one feature
  (301), the others 210 too. 1 row in 10,000 lacks 210; 1 common row in 450 lacks 101, 1 in 100 some
  or all histories. Every common row is used.

**The true model.** Both logits are sums over what the row and its common row show: an effect of
each id of 101, 121, 122, 124, 125, 205, 206, 207, 210, 216, 301, of the taste pair (122, category
modulo 32), and slopes on the values of 508, 509, 702 and 853. Effects are hashes of (seed, id),
bell-shaped, the same in train and test. An id's effect on conversion shares 36 % of its variance
(correlation .6) with its effect on clicks: what drives clicks drives conversions, so clicked
impressions convert more than unclicked ones would (**selection bias**). Each common row has a
random effect on clicks and one on conversions (correlation .5) that no feature carries: a session's
mood. Histories themselves have no effect but through interests, crosses and values. A click is
Bernoulli(pCTR), a conversion given a click Bernoulli(pCVR). Sizes of all effects are in
``synth.json``. The intercepts are set with a pilot of 16,384 groups that no log contains, so that
the rates hold in expectation: over seeds, with a standard deviation of .7 % (CTR) and 1.6 % (CVR)
of the rate. The rate drawn varies more in small logs, since common rows and head items weigh much.
Sizes were set so that a logistic regression on hashed ids, trained on 200,000 impressions at raised
rates, gets AUCs near .63 for clicks and for conversions (.75 and .78 with the truth itself), about
what is published for the real log; no comparison of methods had a part in them.

**Truth files**: ``sample_id, pctr, pcvr`` are the probabilities the labels were drawn with, random
effects included, also for unclicked impressions; so no method can reach their AUC. The conversions
without a click (and their click = 0) are errors of the log, outside of the model.

**Reproducible**: the same arguments give the same logs and truth values on every machine and for
any number of threads. Random numbers are hashes of (seed, place), and whatever decides a byte is
integer arithmetic or IEEE + - * / sqrt (no libm). Memory is bounded: a few blocks of text, the ends
of the groups, the ids seen (10 MB).
"""

from __future__ import annotations

import json
import operator
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from .._compiled import _native
from ..machine import usable_cores
from ..staging import staged_directory
from .published import PUBLISHED, RATES

VERSION = 1
"""Version of the generator: another one can give other bytes for the same arguments."""

IMPRESSIONS = {half: totals["impressions"] for half, totals in PUBLISHED.items()}
COMMON_ROWS = {half: totals["common_rows"] for half, totals in PUBLISHED.items()}
CTR, CVR = RATES["ctr"], RATES["cvr"]
_WITHOUT_ITEM = {"train": 79, "test": 218}
_STRAY_CONVERSIONS = {half: t["conversions_without_click"] for half, t in PUBLISHED.items()}
_MOST_IMPRESSIONS = 10**10

_GROUPS_AT_ONCE = 16_384
"""Common rows per call into C++ (0.95M impressions, 0.25 GB of text): a row group of the truth."""

_TRUTH = pa.schema([("sample_id", pa.uint64()), ("pctr", pa.float32()), ("pcvr", pa.float32())])


def synth(
    out: str | os.PathLike[str],
    impressions: int,
    test_impressions: int | None = None,
    *,
    ctr: float = CTR,
    cvr: float = CVR,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Returns what a new synthetic log contains (its ``synth.json``), after writing it.

    `out` gets ``sample_skeleton_{train,test}.csv``, ``common_features_{train,test}.csv``,
    ``truth_{train,test}.parquet`` (sample_id uint64, pctr and pcvr float32) and ``synth.json``. It
    appears at the end, complete; after a failure nothing is left. What the log is like: see the
    module.

    Args:
        out: A new or empty directory.
        impressions: Rows of the train skeleton, 1 or more. The public one has 42,300,135: 10.9 GB,
            and 8.6 GB of common rows.
        test_impressions: Rows of the test skeleton; None: in the public files' proportion.
        ctr: Expected clicks per impression, inside (0, 1).
        cvr: Expected conversions per click, inside (0, 1).
        seed: 0 .. 2^64 - 1; decides everything: ids, effects, labels.
        threads: Workers; None: as many as this process may use. Does not change the result.
        progress: Show a bar for every file.

    Returns:
        ``parameters``, ``model`` (intercepts, effects), ``id_blocks``, and for ``train`` and
        ``test``: impressions, clicks, conversions (with a click), conversions_without_click,
        impressions_without_item, common_rows, common_rows_unused, bytes by file, and by field
        occurrences (as stored, unjoined), distinct_ids, rows_without (rows of its own file); and
        anomalies, {class: count} of what `prepare` will tolerate and count.

    Raises:
        ValueError: An argument is outside of its range; the message names it.
        FileExistsError: `out` is not empty.
        OSError: A file could not be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = synth(folder, impressions=100, ctr=0.2, seed=1)
    ...     with open(f"{folder}/sample_skeleton_train.csv") as skeleton:
    ...         lines = skeleton.readlines()
    >>> len(lines), made["train"]["impressions"], lines[99].split(",")[0]
    (100, 100, '100')
    """
    impressions = _integer("impressions", impressions, 1, _MOST_IMPRESSIONS)
    if test_impressions is None:
        test_impressions = max(1, round(impressions * IMPRESSIONS["test"] / IMPRESSIONS["train"]))
    test_impressions = _integer("test_impressions", test_impressions, 1, 2 * _MOST_IMPRESSIONS)
    seed = _integer("seed", seed, 0, 2**64 - 1)
    threads = usable_cores() if threads is None else _integer("threads", threads, 1, 4096)
    for name, rate in (("ctr", ctr), ("cvr", cvr)):
        if not 0.0 < rate < 1.0:
            raise ValueError(f"{name}: expected a rate inside (0, 1), got {rate}")

    generator = _native.SynthGenerator(seed, ctr, cvr, IMPRESSIONS["train"] / COMMON_ROWS["train"])
    described = _native.synth_describe()
    made: dict[str, Any] = {
        "format": "esmm_fast synthetic log",
        "version": VERSION,
        "parameters": {
            "impressions": impressions,
            "test_impressions": test_impressions,
            "ctr": ctr,
            "cvr": cvr,
            "seed": seed,
        },
        "model": {
            "click_intercept": generator.click_intercept,
            "conversion_intercept": generator.conversion_intercept,
            **{key: described[key] for key in ("effects", "slopes", "drift")},
        },
        "id_blocks": described["fields"],
    }
    with staged_directory(Path(out), replace_empty=True) as folder:
        for part, size in (("train", impressions), ("test", test_impressions)):
            made[part] = _write_part(folder, part, size, generator, threads, progress)
        (folder / "synth.json").write_text(json.dumps(made, indent=1) + "\n")
    return made


def _integer(name: str, value: Any, least: int, most: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise ValueError(f"{name}: expected an integer in {least} .. {most}, got {value!r}")
    return number


def _write_part(
    folder: Path, part: str, impressions: int, generator: Any, threads: int, progress: bool
) -> dict[str, Any]:
    """Returns the counts of one part, train or test, after writing its three files."""
    layout = _native.SynthPart(
        generator,
        part=("train", "test").index(part),
        impressions=impressions,
        mean_impressions=IMPRESSIONS[part] / COMMON_ROWS[part],
        without_item_share=_WITHOUT_ITEM[part] / IMPRESSIONS[part],
        stray_conversion_share=_STRAY_CONVERSIONS[part] / IMPRESSIONS[part],
    )
    skeleton, common = (
        folder / f"sample_skeleton_{part}.csv",
        folder / f"common_features_{part}.csv",
    )
    truth = folder / f"truth_{part}.parquet"
    pieces = [
        (first, min(first + _GROUPS_AT_ONCE, layout.groups))
        for first in range(0, layout.groups, _GROUPS_AT_ONCE)
    ]
    counts: dict[str, Any] = {}
    with (
        _open(skeleton) as file,
        pq.ParquetWriter(
            truth,
            _TRUTH,
            compression="NONE",
            use_dictionary=False,
            column_encoding={"sample_id": "DELTA_BINARY_PACKED", "pctr": "PLAIN", "pcvr": "PLAIN"},
        ) as writer,
        tqdm(
            total=impressions,
            desc=skeleton.name,
            unit="rows",
            unit_scale=True,
            disable=not progress,
        ) as bar,
    ):
        for first, last in pieces:
            new, pctr, pcvr = layout.write_skeleton(
                file.fileno(), str(skeleton), first, last, threads
            )
            begin = layout.group_start(first) + 1
            sample_id = np.arange(begin, begin + len(pctr), dtype=np.uint64)
            writer.write_table(pa.table([sample_id, pctr, pcvr], schema=_TRUTH))
            _add(counts, new)
            bar.update(len(pctr))
    skeleton_bytes = counts.pop("bytes")
    with (
        _open(common) as file,
        tqdm(
            total=layout.groups,
            desc=common.name,
            unit="rows",
            unit_scale=True,
            disable=not progress,
        ) as bar,
    ):
        for first, last in pieces:
            _add(counts, layout.write_common(file.fileno(), str(common), first, last, threads))
            bar.update(last - first)
    for field, distinct in layout.distinct_ids().items():
        counts["fields"][field]["distinct_ids"] = distinct
    counts["common_rows_unused"] = 0
    strays = counts["conversions_without_click"]
    counts["anomalies"] = {"conversions_without_click": strays} if strays else {}
    counts["bytes"] = {skeleton.name: skeleton_bytes, common.name: counts.pop("bytes")}
    return counts


def _open(path: Path) -> BinaryIO:
    return open(path, "xb", buffering=0)


def _add(total: dict[str, Any], more: dict[str, Any]) -> None:
    """Adds numbers to numbers, in place and at any depth."""
    for key, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value
