"""Batch: what a step of training receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .plan import Plan as Plan
from .plan import map_tensors
from .schema import Schema

if TYPE_CHECKING:
    from .vocabulary import Vocabulary


def check_batch(batch: Any, schema: Schema) -> None:
    """Raises where tables of a schema are given what is no batch, or one of other rows.

    Raises:
        TypeError: It is no batch.
        ValueError: It was made with another vocabulary than the schema was sized with.
    """
    if not hasattr(batch, "plan"):
        raise TypeError(
            f"batch: expected a Batch, got {type(batch).__name__} "
            "(Batch.from_bags makes one of rows or feature ids)"
        )
    made, sized = batch.vocabulary, schema.vocabulary
    if made is not None and sized is not None and made != sized:
        raise ValueError(
            f"batch: expected one made with the model's vocabulary {sized}, got one made with "
            f"{made}: a feature id has another row there"
        )


@dataclass(repr=False)
class Batch:
    """B impressions of U common rows: bags of both sides, labels, and the plan.

    Letters: B impressions, U common rows, Fc / Fs fields of the common / impression side, K stages.
    A schema without common fields has U = 0, and `common_of_impression` is all 0.
    """

    plan: Plan
    common: int  # U
    common_of_impression: Tensor  # [B] int32
    labels: Tensor  # [B, K] float32
    dense: Tensor | None = None  # [B, dense] float32
    impression_weights: Tensor | None = None  # [B] float32
    sample_id: Tensor | None = None  # [B] int64
    extra: dict[str, Tensor] = field(default_factory=dict)  # each [B]: columns passed through
    vocabulary: str | None = None  # fingerprint of what gave the rows; None: they came as rows

    @staticmethod
    def from_bags(
        bags: Mapping[str, Any],
        labels: Any = None,
        *,
        schema: Schema | Mapping[str, int],
        common_of_impression: Any = None,
        vocabulary: Vocabulary | None = None,
        padding: int | None = None,
        dense: Any = None,
        impression_weights: Any = None,
        sample_id: Any = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Batch:
        """Returns the batch of a user's own bags, with its plan. Tensors or arrays, all on CPU.

        Args:
            bags: For every field of the schema ``(rows, offsets, weights)``; the later ones can be
                left out, and rows alone need no tuple. An impression's field has B bags, a common
                row's field U. Integers of any width, signed or not. Bags are given as one of:

                * rows [N_f] and offsets, ascending from 0: [bags + 1] up to N_f or, as
                  torch.nn.EmbeddingBag takes them, [bags]. Where nothing beside them gives the
                  number of bags, offsets that end with N_f are [bags + 1]. Weights [N_f].
                * rows [bags], offsets None: one row per bag. Weights [bags].
                * rows [bags, L]: entries equal to `padding` belong to no bag. Weights [bags, L],
                  or a bool mask [bags, L] of the entries that do belong.
                * a list (or array) of rows for each bag; `padding`, weights and mask likewise.
                * an Arrow column of integers or lists (pyarrow, polars, pandas), where null is an
                  empty bag.
            labels: [B, K] (or [B] where K = 1), or None: all NaN, so that a loss of them shows.
            schema: The fields with their table rows, or ``{field: rows}`` (all on the impression
                side).
            common_of_impression: [B] integers below U. None where the schema has no common fields,
                or where U = B (each impression has a common row of its own).
            vocabulary: Where given, `bags` hold feature ids (an unknown one becomes row 0), and
                `schema` needs no table rows.
            padding: What stands in padded rows (or ids) where nothing is.
            dense: [B, schema.dense] float features.
            impression_weights: [B] floats.
            sample_id: [B] integers.
            extra: Each [B]: what is to come along.

        Raises:
            ValueError: Names the field and what is wrong:
                ``field '205': rows[17] = 400012 is outside the table of 400000 rows``.

        Two impressions; the second has no "tag":

        >>> batch = Batch.from_bags(
        ...     {"item": [3, 1], "tag": ([4, 4], [0, 2, 2])},
        ...     labels=[[1, 0], [0, 0]],
        ...     schema={"item": 5, "tag": 10},
        ... )
        >>> batch
        Batch(B=2, U=0, N=4, T=3)
        >>> batch.plan.rows.tolist(), batch.plan.offsets.tolist()  # table "tag" begins at row 5
        ([3, 9, 9, 1], [0, 1, 3, 4, 4])

        The same with ``"tag": [[4, 4], []]``.
        """
        from .bags import batch_arguments

        sized = None if vocabulary is None else vocabulary.sized(Schema.of(schema))
        return Batch(
            vocabulary=None if sized is None else sized.vocabulary,
            **batch_arguments(
                bags,
                labels,
                schema=schema,
                common_of_impression=common_of_impression,
                vocabulary=vocabulary,
                padding=padding,
                dense=dense,
                impression_weights=impression_weights,
                sample_id=sample_id,
                extra=extra or {},
            ),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Returns the batch on a device; tensors that are there already are not copied."""
        return map_tensors(self, lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory, whose copies to a GPU overlap with work."""
        return map_tensors(self, lambda t: t.pin_memory())

    def __repr__(self) -> str:
        return (
            f"Batch(B={self.labels.shape[0]}, U={self.common}, N={self.plan.rows.numel()}, "
            f"T={self.plan.touched_rows.numel()})"
        )
