"""plan_parts: literal values, the reference, weights' gradient, threads, errors."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm_fast import ops, reference
from esmm_fast.ops import FieldPart
from esmm_fast.ops.plan_parts import _by_reference
from esmm_fast.plan import Plan

TENSORS = [f.name for f in fields(Plan) if f.name != "weights"]


def test_literal() -> None:
    """A common row of fields {a, b}, two impressions of field c; a and c are part 0, b part 1.

    Tables: a rows 0 to 2, b 3 to 5, c 6 to 8 (rows 3 to 5 of part 0).
    """
    rows = torch.tensor([1, 1, 4, 3, 8, 6, 8])  # a {1, 1}, b {4, 3}, c {8}, c {6, 8}
    plan = ops.batch_plan(rows, torch.tensor([0, 2, 4, 5, 7]), torch.arange(7.0))
    common = [FieldPart(0, 0, 3, 0), FieldPart(1, 3, 6, 3)]
    first, second = ops.plan_parts(plan, 2, common, [FieldPart(0, 6, 9, 3)], 2)
    assert first.rows.tolist() == [1, 1, 5, 3, 5]
    assert first.offsets.tolist() == [0, 2, 3, 5]
    assert first.weights is not None and first.weights.tolist() == [0, 1, 4, 5, 6]
    assert first.bag_of_occurrence.tolist() == [0, 0, 1, 2, 2]
    assert first.touched_rows.tolist() == [1, 3, 5]
    assert first.segment_ptr.tolist() == [0, 2, 3, 5]
    assert first.occurrence_by_row.tolist() == [0, 1, 3, 2, 4]
    assert second.rows.tolist() == [1, 0] and second.offsets.tolist() == [0, 2]
    assert second.touched_rows.tolist() == [0, 1]
    assert second.occurrence_by_row.tolist() == [1, 0]


ROWS = 7  # of every table below


def batch_of(
    sides: list[list[int]], common: int, impressions: int, seed: int, longest: int = 3
) -> tuple[Plan, list[list[FieldPart]]]:
    """Returns a plan with bags of random length, a table for each field, and the fields' parts."""
    generator = torch.Generator().manual_seed(seed)
    before = [0] * 8
    places: list[list[FieldPart]] = [[], []]
    base = 0
    for side, parts in enumerate(sides):
        for part in parts:
            places[side].append(FieldPart(part, base, base + ROWS, base - before[part]))
            base, before[part] = base + ROWS, before[part] + ROWS
    bags = [f.first for f in places[0]] * common + [f.first for f in places[1]] * impressions
    lengths = torch.randint(0, longest + 1, (len(bags),), generator=generator)
    picked = torch.randint(0, ROWS, (int(lengths.sum()),), generator=generator)
    rows = torch.tensor(bags, dtype=torch.int64).repeat_interleave(lengths) + picked
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return reference.batch_plan(rows, offsets, torch.rand(len(rows), generator=generator)), places


def assert_same(found: list[Plan], expected: list[Plan]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in TENSORS:
            a, b = getattr(one, name), getattr(other, name)
            assert a.dtype == torch.int32 and torch.equal(a, b), name
        assert (one.weights is None) == (other.weights is None)
        assert one.weights is None or torch.equal(one.weights, other.weights)


SIDE = st.lists(st.integers(0, 2), max_size=4)


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, st.integers(0, 5), st.integers(0, 6), st.integers(0, 99), st.booleans())
def test_against_reference(
    common_fields: list[int],
    impression_fields: list[int],
    common: int,
    impressions: int,
    seed: int,
    weighted: bool,
) -> None:
    plan, sides = batch_of([common_fields, impression_fields], common, impressions, seed)
    plan = plan if weighted else replace(plan, weights=None)
    bags = common * len(common_fields)
    found = ops.plan_parts(plan, bags, *sides, parts=3)
    assert_same(found, reference.plan_parts(plan, bags, *sides, parts=3))


def test_many_stretches_and_any_number_of_threads() -> None:
    plan, sides = batch_of([[0, 1, 0], [2, 1]], 5000, 9000, seed=1)
    expected = reference.plan_parts(plan, 15000, *sides, parts=3)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            assert_same(ops.plan_parts(plan, 15000, *sides, parts=3), expected)
    finally:
        torch.set_num_threads(before)


def test_what_cuda_runs_gives_the_same() -> None:
    plan, sides = batch_of([[0, 1, 0], [2, 1]], 5, 9, seed=2)
    numbers = [[n for field in side for n in field] for side in sides]
    given_plan = (plan.rows, plan.offsets, plan.segment_ptr, plan.occurrence_by_row)
    expected = torch.ops.esmm_fast.plan_parts(*given_plan, 15, *numbers, 3)
    for a, b in zip(_by_reference(*given_plan, 15, *numbers, 3), expected, strict=True):
        assert torch.equal(a, b)


def test_gradient_reaches_the_weights() -> None:
    plan, sides = batch_of([[0], [1, 0]], 2, 4, seed=3)
    plan.weights = plan.weights.requires_grad_()  # type: ignore[union-attr]
    first, second = ops.plan_parts(plan, 2, *sides, parts=2)
    (2 * first.weights.sum() + 3 * second.weights.sum()).backward()  # type: ignore[union-attr]
    part_1 = (plan.rows >= sides[1][0].first) & (plan.rows < sides[1][0].end)
    assert torch.equal(plan.weights.grad, torch.where(part_1, 3.0, 2.0))  # type: ignore[union-attr]


def test_opcheck() -> None:
    plan, sides = batch_of([[0, 1], [1]], 2, 3, seed=4)
    numbers = [[n for field in side for n in field] for side in sides]
    torch.library.opcheck(
        torch.ops.esmm_fast.plan_parts,
        (plan.rows, plan.offsets, plan.segment_ptr, plan.occurrence_by_row, 4, *numbers, 2),
    )


class TestErrors:
    def test_row_of_another_table(self) -> None:
        plan, sides = batch_of([[0, 1], [1]], 3, 3, seed=5)
        plan.rows[4] = 20
        with pytest.raises(IndexError, match=r"rows\[4\] = 20 is outside its field's table, rows"):
            ops.plan_parts(plan, 6, *sides, parts=2)

    def test_transpose_of_another_plan(self) -> None:
        plan, sides = batch_of([[], [0, 1]], 0, 6, seed=6)
        plan.occurrence_by_row = plan.occurrence_by_row.flip(0).contiguous()
        plan.segment_ptr = plan.segment_ptr.clone()
        with pytest.raises(ValueError, match="occurrence_by_row: expected the transpose of rows"):
            ops.plan_parts(plan, 0, *sides, parts=2)
        plan.occurrence_by_row[0] = len(plan.rows)
        with pytest.raises(IndexError, match=r"occurrence_by_row\[0\] = \d+ is outside the batch"):
            ops.plan_parts(plan, 0, *sides, parts=2)

    def test_bags_that_are_no_rows_of_fields(self) -> None:
        plan, sides = batch_of([[0, 1], [1]], 3, 3, seed=7)
        with pytest.raises(ValueError, match="offsets: expected common rows' bags in rows of 2"):
            ops.plan_parts(plan, 5, *sides, parts=2)

    def test_numbers_of_fields(self) -> None:
        plan, sides = batch_of([[0, 1], [1]], 3, 3, seed=8)
        with pytest.raises(ValueError, match=r"common_fields\[4\]: expected a part from 0 to 0"):
            ops.plan_parts(plan, 6, *sides, parts=1)
