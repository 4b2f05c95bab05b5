"""ops.embedding_update: the fused optimizer step, and the gradients that wait for it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import esmm_fast
from esmm_fast import ops, reference
from esmm_fast._library import isa
from esmm_fast.gradient_queue import KeptGradient, merged
from esmm_fast.ops.embedding_update import RULES
from esmm_fast.reference.embedding_update import row_gradients

ARGUMENTS = {
    "step_size": 0.1,
    "grad_factor": 0.5,
    "beta1": 0.9,
    "beta2": 0.99,
    "eps": 1e-8,
    "decay": 0.01,
}


def index(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def make_gradient(
    lengths: list[int],
    rows: int,
    dim: int,
    *,
    common_bags: int = 0,
    weighted: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> KeptGradient:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    count, bags = int(offsets[-1]), len(lengths)
    plan = reference.batch_plan(torch.randint(0, rows, (count,), generator=generator), offsets)
    grads = torch.randn(bags, dim, generator=generator, dtype=dtype)
    return KeptGradient(
        grads[:common_bags],
        grads[common_bags:],
        torch.rand(count, generator=generator, dtype=dtype) if weighted else None,
        plan.bag_of_occurrence,
        plan.touched_rows,
        plan.segment_ptr,
        plan.occurrence_by_row,
    )


def test_literal_example() -> None:
    gradient = KeptGradient(  # row 2 in bags 0 and 1 (twice), row 0 in bag 1
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[10.0, 20.0]]),
        torch.tensor([1.0, 0.5, 1.0, 2.0]),
        bag_of_occurrence=index(0, 1, 1, 1),
        touched_rows=index(0, 2),
        segment_ptr=index(0, 1, 4),
        occurrence_by_row=index(2, 0, 1, 3),
    )
    table = torch.zeros(3, 2)
    ops.embedding_update(table, gradient, "sgd", step_size=2.0)
    assert table.tolist() == [[-20, -40], [0, 0], [-2 * (1 + 5 + 20), -2 * (2 + 10 + 40)]]

    table = torch.zeros(3, 4)  # weight, sum
    ops.embedding_update(table, gradient, "adagrad", step_size=2.0)
    assert table.tolist() == [[-2, -2, 100, 400], [0, 0, 0, 0], [-2, -2, 26**2, 52**2]]


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(sorted(RULES)),
    lengths=st.lists(st.sampled_from([0, 0, 1, 2, 5, 40]), max_size=12),
    dim=st.sampled_from([1, 3, 4, 5, 16, 18, 64]),
    rows=st.sampled_from([1, 3, 50]),
    weighted=st.booleans(),
    padding=st.sampled_from([0, 3]),
)
def test_matches_reference(
    rule: str, lengths: list[int], dim: int, rows: int, weighted: bool, padding: int
) -> None:
    gradient = make_gradient(lengths, rows, dim, common_bags=len(lengths) // 3, weighted=weighted)
    ours = torch.rand(rows, 3 * dim + padding, dtype=torch.float64) + 0.1
    twin = ours.clone()
    for _ in range(2):
        ops.embedding_update(ours, gradient, rule, **ARGUMENTS)
        reference.embedding_update(twin, gradient, rule, **ARGUMENTS)
    torch.testing.assert_close(ours, twin, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 18, 100])
def test_a_row_in_every_bag(dim: int) -> None:
    gradient = make_gradient([1] * 20_000, 2, dim)  # two long segments, summed in blocks
    torch.testing.assert_close(
        gradient.row_gradients(), row_gradients(gradient), rtol=1e-9, atol=1e-9
    )
    assert gradient.squared_norm() == pytest.approx(float(row_gradients(gradient).square().sum()))


def test_merged_gradients_are_the_sum_by_row() -> None:
    rows, dim = 30, 4
    entries = [
        make_gradient([3, 0, 5], rows, dim, common_bags=1, seed=1),
        make_gradient([2, 9], rows, dim, weighted=False, seed=2),
        make_gradient([], rows, dim, seed=3),
    ]
    entries.append(replace(entries[0], grad_common=entries[0].grad_common * 3))
    expected = torch.zeros(rows, dim, dtype=torch.float64)
    for entry in entries:
        expected.index_add_(0, entry.touched_rows.long(), row_gradients(entry))
    for chosen in (entries, [entries[0], entries[3], *entries[1:3]]):
        joint = merged(chosen)
        values = torch.zeros_like(expected)
        values[joint.touched_rows.long()] = joint.row_gradients()
        torch.testing.assert_close(values, expected)
    same_plan = merged([entries[0], entries[3]])
    assert same_plan.touched_rows is entries[0].touched_rows
    torch.testing.assert_close(same_plan.grad_common, entries[0].grad_common * 4)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_opcheck_and_version_counter(rule: str) -> None:
    gradient = make_gradient([2, 0, 3], 9, 4, common_bags=1)
    table = torch.rand(9, 12, dtype=torch.float64)
    tensors = [getattr(gradient, name) for name in gradient.__dataclass_fields__]
    scalars = (
        RULES[rule],
        *(ARGUMENTS[k] for k in ("grad_factor", "step_size", "beta1", "beta2", "eps", "decay")),
    )
    opcheck(torch.ops.esmm_fast.embedding_update, (table, *tensors, *scalars))

    version = table._version
    ops.embedding_update(table, gradient, rule, step_size=0.1)
    assert table._version == version + 1
    used = (table.requires_grad_() ** 2).sum()
    ops.embedding_update(table.detach(), gradient, rule, step_size=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        used.backward()


def updated(rule: str, dim: int) -> Tensor:
    gradient = make_gradient(
        [1] * 3_000 + [4, 0, 20] * 300, 50, dim, common_bags=70, dtype=torch.float32
    )
    table = torch.rand(50, 3 * dim, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        ops.embedding_update(table, gradient, rule, **ARGUMENTS)
    return torch.cat([table.flatten(), torch.tensor([gradient.squared_norm()])])


@pytest.mark.parametrize("rule", sorted(RULES))
def test_same_bits_for_any_number_of_threads(rule: str) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = updated(rule, 18)
        for count in (2, 7):
            torch.set_num_threads(count)
            assert torch.equal(single, updated(rule, 18))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_instruction_set(name: str, rule: str) -> None:
    best = [updated(rule, dim) for dim in (3, 18)]
    before = isa()
    try:
        esmm_fast.set_isa(name)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for a, b in zip([updated(rule, dim) for dim in (3, 18)], best, strict=True):
            torch.testing.assert_close(a, b)
    finally:
        esmm_fast.set_isa(before)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"touched_rows": index(1, 9)}, IndexError, r"touched_rows\[1\] = 9 is outside"),
        ({"touched_rows": index(4, 4)}, ValueError, r"touched_rows\[1\] = 4: expected more than"),
        ({"touched_rows": index(1)}, ValueError, r"touched_rows: expected shape \[2\], got \[1\]"),
        ({"segment_ptr": index(0, 1, 2)}, ValueError, r"segment_ptr\[2\] = 2: expected .* 3"),
        ({"occurrence_by_row": index(0, 1, -3)}, IndexError, r"by_row\[2\] = -3 is outside"),
        ({"bag_of_occurrence": index(0, 1, 2)}, IndexError, r"\[2\] = 2 is outside the batch"),
        ({"weights": torch.ones(2)}, ValueError, r"weights: expected shape \[3\], got \[2\]"),
        ({"grad_impression": torch.ones(2, 3)}, ValueError, r"expected shape .* 4\], got \[2, 3\]"),
    ],
)  # fmt: skip
def test_refuses_bad_arguments_before_it_writes(
    changes: dict[str, Tensor], error: type, message: str
) -> None:
    gradient = KeptGradient(
        torch.ones(1, 4), torch.ones(1, 4), torch.ones(3),
        index(0, 1, 1), index(1, 4), index(0, 1, 3), index(0, 1, 2),
    )  # fmt: skip
    table = torch.ones(9, 12)
    with pytest.raises(error, match=message):
        ops.embedding_update(table, replace(gradient, **changes), "lazy_adam", **ARGUMENTS)
    assert torch.equal(table, torch.ones(9, 12))


def test_refuses_a_table_without_room_for_the_state() -> None:
    gradient = make_gradient([1, 2], 9, 4)
    with pytest.raises(ValueError, match=r"table: expected rows of at least 12 .* got \[9, 11\]"):
        ops.embedding_update(torch.ones(9, 11).double(), gradient, "lazy_adam", step_size=1)
    with pytest.raises(ValueError, match="table: expected dtype float64, got float32"):
        ops.embedding_update(torch.ones(9, 12), gradient, "lazy_adam", step_size=1)


@pytest.mark.cuda
@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_matches_cpu(rule: str, dtype: torch.dtype) -> None:
    tolerance = {"rtol": 1e-11, "atol": 1e-11} if dtype == torch.float64 else {}
    for lengths, rows in (([], 3), ([1] * 33, 1), ([1] * 3_000 + [4, 0, 20] * 300, 50)):
        for dim, stride in ((18, 56), (4, 12), (7, 23)):
            gradient = make_gradient(lengths, rows, dim, common_bags=len(lengths) // 3, dtype=dtype)
            on_device = gradient.to(lambda t: t.cuda())
            cpu = torch.rand(rows, stride, dtype=dtype) + 0.1
            cuda = cpu.cuda()
            again = cuda.clone()
            ops.embedding_update(cpu, gradient, rule, **ARGUMENTS)
            ops.embedding_update(cuda, on_device, rule, **ARGUMENTS)
            tensors = [getattr(on_device, name) for name in on_device.__dataclass_fields__]
            numbers = [ARGUMENTS[k] for k in ("grad_factor", "step_size", "beta1", "beta2")]
            numbers += [ARGUMENTS["eps"], ARGUMENTS["decay"]]
            torch.ops.esmm_fast.embedding_update_by_tensor(
                again, *tensors, RULES[rule], torch.tensor(numbers).double().cuda()
            )
            torch.testing.assert_close(cuda.cpu(), cpu, **tolerance)
            torch.testing.assert_close(again, cuda, rtol=1e-6, atol=1e-7)
            assert on_device.squared_norm() == pytest.approx(gradient.squared_norm(), rel=1e-5)


@pytest.mark.cuda
def test_cuda_graph_equals_eager() -> None:
    gradient = make_gradient([1] * 3_000, 50, 18, dtype=torch.float32).to(lambda t: t.cuda())
    start = torch.rand(50, 56, device="cuda")
    eager, replayed = start.clone(), start.clone()
    ops.embedding_update(eager, gradient, "lazy_adam", **ARGUMENTS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.embedding_update(replayed, gradient, "lazy_adam", **ARGUMENTS)
    graph.replay()
    assert torch.equal(replayed, eager)
