"""Batch and Plan: what a step of training receives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Plan:
    """The occurrences of a batch and their transpose.

    Bags: u * Fc + f for common rows, then U * Fc + b * Fs + f for impressions.
    """

    rows: Tensor  # [N] int32, row in the joint row space: table base + row of the table
    offsets: Tensor  # [bags + 1] int32, first occurrence of each bag
    weights: Tensor | None  # [N] float32, None: all 1
    bag_of_occurrence: Tensor  # [N] int32
    touched_rows: Tensor  # [T] int32, ascending
    segment_ptr: Tensor  # [T + 1] int32, into occurrence_by_row
    occurrence_by_row: Tensor  # [N] int32, occurrences sorted by row, stable
    touched_of_occurrence: Tensor  # [N] int32, rows == touched_rows[touched_of_occurrence]


@dataclass
class Batch:
    """B impressions of U common rows: bags of both sides, labels, and the plan.

    Letters: B impressions, U common rows, Fc / Fs fields of the common / impression side, K stages.
    """

    plan: Plan
    common: int  # U
    common_of_impression: Tensor  # [B] int32
    labels: Tensor  # [B, K] float32
    dense: Tensor | None = None  # [B, dense] float32
    impression_weights: Tensor | None = None  # [B] float32
    sample_id: Tensor | None = None  # [B] int64
