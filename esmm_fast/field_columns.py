"""FieldColumns: where tables of several dimensions lie, and the order of their pooled fields."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import ops
from .plan import Plan
from .schema import Schema


class FieldColumns(NamedTuple):
    """The fields of each side, whose tables lie in parts, one for each dimension."""

    common: list[ops.FieldPart]
    impression: list[ops.FieldPart]
    common_runs: list[tuple[int, int]]  # (part, columns) of neighbours of one part, from the left
    impression_runs: list[tuple[int, int]]
    parts: int

    @staticmethod
    def of(schema: Schema, dims: Mapping[str, int], of_part: list[int]) -> FieldColumns:
        """Returns the columns of a schema.

        Args:
            schema: With table rows.
            dims: Dimension of each table.
            of_part: Dimension of each part. The tables of a part follow each other in the order of
                `schema.tables`.

        Two fields of one column each beside one of two:

        >>> from esmm_fast import Field
        >>> schema = Schema(tuple(Field(name, rows=9) for name in "abc"))
        >>> columns = FieldColumns.of(schema, {"a": 1, "b": 1, "c": 2}, [1, 2])
        >>> columns.impression_runs, columns.impression[2]
        ([(0, 2), (1, 2)], FieldPart(part=1, first=18, end=27, shift=18))
        """
        before = [0] * len(of_part)  # rows of a part's tables so far
        places, rows_of = {}, schema.table_rows
        for table, first in schema.row_bases.items():
            part, rows = of_part.index(dims[table]), rows_of[table]
            places[table] = ops.FieldPart(part, first, first + rows, first - before[part])
            before[part] += rows

        def runs(side: list[ops.FieldPart]) -> list[tuple[int, int]]:
            neighbours = itertools.groupby(place.part for place in side)
            return [(part, of_part[part] * len(list(fields))) for part, fields in neighbours]

        common = [places[f.table_name] for f in schema.common]
        impression = [places[f.table_name] for f in schema.impression]
        return FieldColumns(common, impression, runs(common), runs(impression), len(of_part))

    def split(self, plan: Plan, common_rows: int) -> list[Plan]:
        """Returns each part's share of a batch's plan."""
        return ops.plan_parts(
            plan, common_rows * len(self.common), self.common, self.impression, self.parts
        )

    def join(self, pooled: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Returns both sides' pooled fields in the order of the fields, from those of each part."""
        common = _side_by_side([side for side, _ in pooled], self.common_runs)
        return common, _side_by_side([side for _, side in pooled], self.impression_runs)


def _side_by_side(pooled: list[Tensor], runs: list[tuple[int, int]]) -> Tensor:
    pieces = []
    for part, out in enumerate(pooled):
        widths = [columns for of, columns in runs if of == part]
        pieces.append(list(out.split(widths, 1)) if widths else [])
    ordered = [pieces[part].pop(0) for part, _ in runs]
    return torch.cat(ordered, 1) if ordered else pooled[0]
