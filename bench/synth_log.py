"""The batches of every bench: a synthetic log with the public log's statistics, prepared once.

`esmm_fast.data.synth` makes the log (its docstring says what is published and what is not), so
sizes, bag lengths, groups and ids stand in one place. The vocabulary has a row for every id of the
fields' blocks: the ids that the log holds by descending count, then the others.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esmm_fast import Batch, Dataset, Schema, Vocabulary, _native, prepare
from esmm_fast.data.synth import VERSION, synth

DIM = 18  # the paper's
ROTATION = 16  # batches in turn, at most: few of a batch's rare rows are still in a cache
GROUPS = ("whole groups", "8 per group", "clicked only")
SMALL = 120_000  # impressions of the log for a run of pytest
FULL = 900_000  # of the command line: two batches of 16,384 clicked impressions


@cache
def dataset(impressions: int = FULL, seed: int = 0) -> Dataset:
    """Returns the train half of a synthetic log; it is kept in the temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"esmm_fast_bench_{os.getuid()}"
    done = folder / f"{VERSION}-{impressions}-{seed}" / "train"
    if not done.exists():
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as log:
            synth(f"{log}/log", impressions, test_impressions=1, seed=seed)
            prepare(f"{log}/log", f"{log}/dataset")
            os.replace(f"{log}/dataset", done.parent)
    return Dataset(done)


@cache
def vocabulary(impressions: int = FULL, *, whole: bool = True) -> Vocabulary:
    """Returns the vocabulary: of all ids of the fields' blocks, or (not `whole`) of the log's."""
    of_log = Vocabulary.from_dataset(dataset(impressions))
    if not whole:
        return of_log
    tables = {}
    for name, block in _native.synth_describe()["fields"].items():
        seen = of_log.feature_ids(name)[1:]
        ids = np.arange(block["first_id"], block["last_id"] + 1, dtype=np.uint64)
        unseen = np.ones(len(ids), bool)
        unseen[(seen - np.uint64(block["first_id"])).astype(np.int64)] = False
        ids = np.concatenate([seen, ids[unseen]])
        counts = np.zeros(len(ids), np.uint64)
        counts[: len(seen)] = of_log.counts(name)[1:]
        tables[name] = (ids, counts)
    return Vocabulary(tables)


@dataclass(frozen=True)
class Inputs:
    """One batch, in esmm_fast's form and as lists for nn.EmbeddingBag."""

    batch: Batch
    schema: Schema
    rows: Tensor  # [N] int64, in the joint row space
    offsets: Tensor  # [bags + 1] int64
    weights: Tensor  # [N] float32

    @staticmethod
    def of(batch: Batch, schema: Schema) -> Inputs:
        plan = batch.plan
        assert plan.weights is not None
        return Inputs(batch, schema, plan.rows.long(), plan.offsets.long(), plan.weights)

    def __str__(self) -> str:
        return (
            f"B = {len(self.batch.labels)}, U = {self.batch.common}, N = {len(self.rows)}, "
            f"T = {len(self.batch.plan.touched_rows)}"
        )

    def fields(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Returns (rows, offsets, weights) of each field, rows counted from its table's first."""
        parts, first_bag = [], 0
        lengths, bases = self.offsets.diff(), self.schema.row_bases
        for side, count in (
            (self.schema.common, self.batch.common),
            (self.schema.impression, len(self.batch.labels)),
        ):
            for place, field in enumerate(side):
                bags = first_bag + torch.arange(count) * len(side) + place
                at, offsets = _occurrences(self.offsets[bags], lengths[bags])
                rows = self.rows[at] - bases[field.table_name]
                parts.append((rows, offsets, self.weights[at]))
            first_bag += count * len(side)
        return parts

    def joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (rows, offsets, weights) with the common row's bags repeated per impression."""
        common, own = len(self.schema.common), len(self.schema.impression)
        impressions = torch.arange(len(self.batch.labels)).unsqueeze(1)
        of_common = self.batch.common_of_impression.long().unsqueeze(1)
        bags = torch.cat(
            [
                of_common * common + torch.arange(common),
                self.batch.common * common + impressions * own + torch.arange(own),
            ],
            1,
        ).flatten()
        at, offsets = _occurrences(self.offsets[bags], self.offsets.diff()[bags])
        return self.rows[at], offsets, self.weights[at]


def _occurrences(begins: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the occurrences of some bags, bag after bag, and the bags' new offsets."""
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    within = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(lengths)
    return begins.repeat_interleave(lengths) + within, offsets


def inputs(
    batch_size: int,
    groups: str = "whole groups",
    *,
    impressions: int = FULL,
    whole: bool = True,
    rotation: int = ROTATION,
) -> list[Inputs]:
    """Returns `rotation` batches of `batch_size` impressions, fewer where the log ends.

    Args:
        batch_size: B.
        groups: One of `GROUPS`: whole groups of one common row (57.9 impressions on average); at
            most 8 of a group together; clicked impressions only (2.3 per common row).
        impressions: Size of the log.
        whole: Tables have a row for every id of the fields' blocks, not only for those of the log.
        rotation: Batches at most.
    """
    data = dataset(impressions)
    if groups == "clicked only":
        data = data.select(np.flatnonzero(data.impressions["click"].to_numpy()))
    known = vocabulary(impressions, whole=whole)
    options: dict[str, Any] = {"group_limit": 8 if groups == "8 per group" else None}
    batches = data.batches(batch_size, vocabulary=known, threads=1, drop_last=True, **options)
    if not len(batches):
        raise ValueError(f"{len(data)} impressions ({groups}) make no batch of {batch_size}")
    rotation = min(rotation, len(batches), max(2, ROTATION * 4096 // batch_size))
    made = iter(batches)
    taken = [Inputs.of(next(made), batches.schema) for _ in range(rotation)]
    batches.close()
    return taken
