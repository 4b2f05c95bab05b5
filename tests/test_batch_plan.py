"""ops.batch_plan against its reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esmm_fast import ops, reference
from esmm_fast.plan import Plan

INDICES = [f for f in Plan.__dataclass_fields__ if f != "weights"]


def assert_same(ours: Plan, twin: Plan) -> None:
    for name in INDICES:
        a, b = getattr(ours, name), getattr(twin, name)
        assert a.dtype == torch.int32, name
        assert torch.equal(a, b), name


def random_bags(occurrences: int, bags: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randint(0, occurrences + 1, (bags - 1,), generator=generator).sort().values
    offsets = torch.cat([torch.tensor([0]), inner, torch.tensor([occurrences])])
    return torch.randint(0, rows, (occurrences,), generator=generator), offsets


def test_literal() -> None:
    rows = torch.tensor([7, 3, 7, 5])
    plan = ops.batch_plan(rows, torch.tensor([0, 2, 2, 4]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert plan.rows.tolist() == [7, 3, 7, 5]
    assert plan.offsets.tolist() == [0, 2, 2, 4]
    assert plan.weights is not None and plan.weights.tolist() == [1, 2, 3, 4]
    assert plan.bag_of_occurrence.tolist() == [0, 0, 2, 2]
    assert plan.touched_rows.tolist() == [3, 5, 7]
    assert plan.segment_ptr.tolist() == [0, 1, 2, 4]
    assert plan.occurrence_by_row.tolist() == [1, 3, 0, 2]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), max_size=12),
    largest=st.sampled_from([0, 3, 300, 5000, 2**24 + 5, 2**31 - 2]),
    wide=st.tuples(st.booleans(), st.booleans()),
    data=st.data(),
)
def test_matches_reference(
    lengths: list[int], largest: int, wide: tuple[bool, bool], data: st.DataObject
) -> None:
    occurrences = sum(lengths)
    values = data.draw(
        st.lists(st.integers(0, largest), min_size=occurrences, max_size=occurrences)
    )
    rows = torch.tensor(values, dtype=torch.int64 if wide[0] else torch.int32)
    offsets = torch.tensor([0, *lengths], dtype=torch.int64 if wide[1] else torch.int32).cumsum(0)
    assert_same(ops.batch_plan(rows, offsets), reference.batch_plan(rows, offsets))


@pytest.mark.parametrize("rows", [1, 50, 3000, 9_000_000])
def test_matches_reference_at_size(rows: int) -> None:
    arguments = random_bags(60_000, 5_000, rows)
    assert_same(ops.batch_plan(*arguments, num_rows=rows), reference.batch_plan(*arguments))


def test_no_bags_and_no_occurrences() -> None:
    plan = ops.batch_plan(torch.tensor([], dtype=torch.int32), torch.tensor([0]))
    assert plan.touched_rows.tolist() == [] and plan.segment_ptr.tolist() == [0]
    plan = ops.batch_plan(torch.tensor([], dtype=torch.int32), torch.tensor([0, 0, 0]))
    assert plan.offsets.tolist() == [0, 0, 0] and plan.bag_of_occurrence.tolist() == []


def test_takes_strided_arguments() -> None:
    rows, offsets = random_bags(100, 9, 30)
    strided = torch.stack([rows, rows], 1)[:, 0]
    assert_same(ops.batch_plan(strided, offsets), reference.batch_plan(rows, offsets))


def test_opcheck() -> None:
    rows, offsets = random_bags(50, 7, 20)
    torch.library.opcheck(torch.ops.esmm_fast.batch_plan.default, (rows, offsets, 20))
    torch.library.opcheck(torch.ops.esmm_fast.batch_plan.default, (rows.int(), offsets.int(), 20))


def test_compiles() -> None:
    def pooled_sizes(rows: Tensor, offsets: Tensor) -> Tensor:
        plan = ops.batch_plan(rows, offsets)
        return plan.segment_ptr.diff() * plan.touched_rows

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(pooled_sizes, fullgraph=True, backend="aot_eager")
        for occurrences in (50, 70):
            arguments = random_bags(occurrences, 7, 20)
            assert torch.equal(compiled(*arguments), pooled_sizes(*arguments))


def test_same_bits_for_any_thread_count() -> None:
    rows, offsets = random_bags(200_000, 12_000, 100_000)
    before, plans = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            plans.append(ops.batch_plan(rows, offsets))
    finally:
        torch.set_num_threads(before)
    twin = reference.batch_plan(rows, offsets)
    for plan in plans:
        assert_same(plan, twin)


@pytest.mark.parametrize(
    ("rows", "offsets", "num_rows", "message"),
    [
        ([1, 9], [0, 2], 9, r"rows\[1\] = 9 is outside the table of 9 rows"),
        ([-3, 9], [0, 2], 9, r"rows\[0\] = -3 is outside the table of 9 rows"),
        ([1, -3], [0, 2], None, r"rows\[1\] = -3: expected a row of at least 0"),
        ([2**31 - 1], [0, 1], None, r"rows\[0\] = 2147483647: expected a row .* below 2\^31 - 1"),
        ([1, 2], [0, 2, 1], None, r"offsets\[2\] = 1 is less than offsets\[1\] = 2"),
        ([1, 2], [0, 1], None, r"offsets\[1\] = 1: the last offset is the number of rows, 2"),
        ([1, 2], [1, 2], None, r"offsets\[0\] = 1: the first bag begins at 0"),
        ([1, 2], [], None, r"offsets: expected shape \[bags \+ 1\]"),
        ([[1, 2]], [0, 2], None, r"rows: expected one dimension, got shape \[1, 2\]"),
        ([1, 2], [0, 2], -1, r"num_rows: expected 0 <= num_rows"),
    ],
)
def test_errors(rows: list[int], offsets: list[int], num_rows: int | None, message: str) -> None:
    error = IndexError if message.startswith(r"rows\[") else ValueError
    with pytest.raises(error, match=message):
        ops.batch_plan(torch.tensor(rows), torch.tensor(offsets).long(), num_rows=num_rows)


def test_errors_of_dtype_and_weights() -> None:
    rows, offsets = torch.tensor([1, 2]), torch.tensor([0, 2])
    with pytest.raises(ValueError, match="rows: expected dtype int32 or int64, got float32"):
        ops.batch_plan(rows.float(), offsets)
    with pytest.raises(ValueError, match=r"weights: expected the shape of rows, \[2\], got \[3\]"):
        ops.batch_plan(rows, offsets, torch.ones(3))
    with pytest.raises(ValueError, match=r"weights: expected float32, got torch.float64"):
        ops.batch_plan(rows, offsets, torch.ones(2).double())


@pytest.mark.cuda
@pytest.mark.parametrize("rows", [1, 50, 3000, 9_000_000])
def test_cuda_matches_cpu(rows: int) -> None:
    for arguments in (random_bags(60_000, 5_000, rows), random_bags(0, 3, rows)):
        for dtype in (torch.int32, torch.int64):
            there = ops.batch_plan(*[t.to("cuda", dtype) for t in arguments], num_rows=rows)
            assert_same(there.to("cpu"), ops.batch_plan(*arguments, num_rows=rows))


@pytest.mark.cuda
def test_cuda_errors() -> None:
    for rows, offsets, message in (
        ([1, 9], [0, 2], r"rows\[1\] = 9 is outside the table of 9 rows"),
        ([1, 2], [0, 2, 1], r"offsets\[2\] = 1 is less than offsets\[1\] = 2"),
        ([1, 2], [0, 1], r"offsets\[1\] = 1: the last offset is the number of rows, 2"),
    ):
        with pytest.raises((RuntimeError, ValueError, IndexError), match=message):
            ops.batch_plan(torch.tensor(rows).cuda(), torch.tensor(offsets).cuda(), num_rows=9)
