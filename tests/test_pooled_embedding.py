"""ops.pooled_embedding: pooling of a batch's bags, its gradients, and what it refuses."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import esmm_fast
from esmm_fast import ops, reference
from esmm_fast._library import isa
from esmm_fast.batch import Plan

DIMS = (1, 3, 4, 16, 18, 64)


def make_plan(lengths: list[int], rows: int, seed: int = 0, weighted: bool = True) -> Plan:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    count = int(offsets[-1])
    picked = torch.randint(0, rows, (count,), generator=generator)
    weights = torch.rand(count, generator=generator) + 0.5 if weighted else None
    return reference.batch_plan(picked, offsets, weights)


def with_float64_weights(plan: Plan) -> Plan:
    weights = plan.weights
    return replace(plan, weights=None if weights is None else weights.double().requires_grad_())


def gradients(pooled: tuple[Tensor, Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a scalar in which every element of both outputs counts differently."""
    loss = sum(
        (out * torch.linspace(-1, 2, out.numel()).reshape(out.shape)).sum() for out in pooled
    )
    return torch.autograd.grad(loss, inputs)


def test_literal_example() -> None:
    weight = torch.tensor([[0.0, 0.0], [1.0, 2.0], [10.0, 20.0]], requires_grad=True)
    #                      bag 0: rows 1 and 2 x 0.5   bag 1: empty   bag 2: row 2 x 2
    plan = reference.batch_plan(
        torch.tensor([1, 2, 2]), torch.tensor([0, 2, 2, 3]), torch.tensor([1.0, 0.5, 2.0])
    )
    common, impression = ops.pooled_embedding(weight, plan, common_bags=2)
    assert common.tolist() == [[6, 12], [0, 0]]
    assert impression.tolist() == [[20, 40]]

    mean, _ = ops.pooled_embedding(weight, plan, common_bags=2, mean=True)
    assert mean.tolist() == [[3, 6], [0, 0]]

    (common[0, 0] + 10 * impression[0, 1]).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0, 0], [1, 0], [0.5, 20]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 0, 1, 2, 5, 40]), max_size=12),
    dim=st.sampled_from(DIMS),
    rows=st.sampled_from([1, 3, 50]),
    common_share=st.floats(0, 1),
    weighted=st.booleans(),
    mean=st.booleans(),
    padding=st.sampled_from([0, 5]),
)
def test_matches_reference(
    lengths: list[int],
    dim: int,
    rows: int,
    common_share: float,
    weighted: bool,
    mean: bool,
    padding: int,
) -> None:
    common_bags = int(common_share * len(lengths))
    plan = with_float64_weights(make_plan(lengths, rows, weighted=weighted))
    weight = torch.randn(rows, dim + padding, dtype=torch.float64)[:, :dim].requires_grad_()
    ours = ops.pooled_embedding(weight, plan, common_bags, mean)
    twin = reference.pooled_embedding(weight, plan, common_bags, mean)
    inputs = [weight] if plan.weights is None else [weight, plan.weights]
    for a, b in zip(
        (*ours, *gradients(ours, inputs)), (*twin, *gradients(twin, inputs)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [*DIMS, 5, 8, 9, 33, 65, 100, 256])
def test_float32_is_as_accurate_as_plain_pytorch(dim: int) -> None:
    plan = make_plan([0, 3, 700, 1, 0, 60], rows=40, seed=dim)
    exact_plan = replace(plan, weights=plan.weights.double())  # type: ignore[union-attr]
    weight = torch.randn(40, dim, requires_grad=True)
    exact_weight = weight.detach().double().requires_grad_()
    ours, plain = (op(weight, plan, 3) for op in (ops.pooled_embedding, reference.pooled_embedding))
    exact = reference.pooled_embedding(exact_weight, exact_plan, 3)
    ours, plain = ((*p, *gradients(p, [weight])) for p in (ours, plain))
    exact = (*exact, *gradients(exact, [exact_weight]))
    for a, b, c in zip(ours, plain, exact, strict=True):
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + 1e-6


def test_one_bag_with_everything_and_one_row_in_every_bag() -> None:
    weight = torch.randn(7, 18, dtype=torch.float64, requires_grad=True)
    for lengths, rows in (([20_000], 7), ([1] * 20_000, 1)):  # long bag; long segment, in blocks
        plan = make_plan(lengths, rows, weighted=False)
        ours = ops.pooled_embedding(weight, plan, 0)
        twin = reference.pooled_embedding(weight, plan, 0)
        for a, b in zip(
            (*ours, *gradients(ours, [weight])), (*twin, *gradients(twin, [weight])), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-8)


def test_sparse_gradient_equals_the_dense_one_and_is_coalesced() -> None:
    plan = make_plan([3, 0, 5, 2], rows=100)
    weight = torch.randn(100, 18, requires_grad=True)
    (dense,) = gradients(ops.pooled_embedding(weight, plan, 2), [weight])
    (sparse,) = gradients(ops.pooled_embedding(weight, plan, 2, sparse=True), [weight])
    assert sparse.is_sparse and sparse.is_coalesced()
    assert sparse.indices()[0].tolist() == plan.touched_rows.tolist()
    assert torch.equal(sparse.to_dense(), dense)


@pytest.mark.parametrize("mean", [False, True])
def test_gradcheck(mean: bool) -> None:
    plan = with_float64_weights(make_plan([2, 0, 3, 1], rows=4))
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def pooled(weight: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return ops.pooled_embedding(weight, replace(plan, weights=weights), 2, mean)

    assert torch.autograd.gradcheck(pooled, (weight, plan.weights))


def test_second_derivatives_raise() -> None:
    plan = with_float64_weights(make_plan([2, 3], rows=4))
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    pooled, _ = ops.pooled_embedding(weight, plan, 2)
    for wanted in (weight, plan.weights):
        (grad,) = torch.autograd.grad(pooled.square().sum(), wanted, create_graph=True)
        with pytest.raises(NotImplementedError, match="second derivatives are not implemented"):
            grad.sum().backward()


def test_occurrence_gradient_refuses_a_weight_that_changed_since() -> None:
    plan = with_float64_weights(make_plan([2, 3], rows=4))
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    pooled, _ = ops.pooled_embedding(weight, plan, 2)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pooled.sum().backward()


def test_opcheck() -> None:
    plan = with_float64_weights(make_plan([2, 0, 3, 600], rows=9))
    weight = torch.randn(9, 18, dtype=torch.float64, requires_grad=True)
    transposed = (
        plan.bag_of_occurrence,
        plan.touched_rows,
        plan.segment_ptr,
        plan.occurrence_by_row,
    )
    for mean in (False, True):
        arguments = (
            weight,
            plan.rows,
            plan.offsets,
            plan.weights,
            *transposed,
            None,
            2,
            mean,
            False,
        )
        opcheck(torch.ops.esmm_fast.pooled_embedding, arguments)
    grads = torch.randn(2, 18, dtype=torch.float64), torch.randn(2, 18, dtype=torch.float64)
    weights = plan.weights.detach()  # type: ignore[union-attr]
    by_row = (*grads, weights, plan.bag_of_occurrence, plan.segment_ptr, plan.occurrence_by_row)
    opcheck(torch.ops.esmm_fast.pooled_embedding_row_gradients, by_row)
    opcheck(torch.ops.esmm_fast.pooled_embedding_squared_norm, by_row)
    dense = (*grads, weights, *transposed, 9)
    opcheck(torch.ops.esmm_fast.pooled_embedding_dense_gradient, dense)
    by_occurrence = (*grads, weight.detach(), plan.rows, plan.bag_of_occurrence)
    opcheck(torch.ops.esmm_fast.pooled_embedding_weights_gradient, by_occurrence)


def test_compiles_once_for_all_batch_sizes() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def loss(weight: Tensor, plan: Plan, common_bags: int) -> Tensor:
        common, impression = ops.pooled_embedding(weight, plan, common_bags)
        return common.square().sum() + impression.sin().sum()

    weight = torch.randn(30, 18, requires_grad=True)
    for size in (3, 5, 11):
        plan = make_plan([size, 0, 2] * size, rows=30, seed=size)
        (compiled,) = torch.autograd.grad(loss(weight, plan, size), weight)
        common, impression = reference.pooled_embedding(weight, plan, size)
        (plain,) = torch.autograd.grad(common.square().sum() + impression.sin().sum(), weight)
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


def everything(dim: int) -> list[Tensor]:
    """Outputs and gradients of a batch with long bags and segments, enough for several threads."""
    plan = make_plan([0, 1, 30, 9_000, 2] + [3, 1, 0, 20] * 500, rows=300, seed=1)
    plan.rows[plan.rows < 40] = 7
    plan = reference.batch_plan(plan.rows.long(), plan.offsets, plan.weights)
    plan = replace(plan, weights=plan.weights.requires_grad_())  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(300, dim, generator=generator, requires_grad=True)
    pooled = ops.pooled_embedding(weight, plan, 5)
    return [*pooled, *gradients(pooled, [weight, plan.weights])]  # type: ignore[list-item]


@pytest.mark.parametrize("dim", [3, 18])
def test_same_bits_for_any_number_of_threads(dim: int) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = everything(dim)
        for count in (2, 7):
            torch.set_num_threads(count)
            assert all(map(torch.equal, single, everything(dim)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("dim", [3, 18, 100])
def test_every_instruction_set(name: str, dim: int) -> None:
    best = everything(dim)
    before = isa()
    try:
        esmm_fast.set_isa(name)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        assert isa() == name
        for a, b in zip(everything(dim), best, strict=True):
            torch.testing.assert_close(a, b)
    finally:
        esmm_fast.set_isa(before)


def test_environment_variable_forces_an_instruction_set() -> None:
    command = "from esmm_fast import _library; print(_library.isa())"
    for name, returncode, output in (("baseline", 0, "baseline"), ("sse9", 1, "ESMM_FAST_ISA")):
        run = subprocess.run(
            [sys.executable, "-c", command],
            env={**os.environ, "ESMM_FAST_ISA": name},
            capture_output=True,
            text=True,
        )
        assert run.returncode == returncode and output in run.stdout + run.stderr


def test_unknown_instruction_set_names_those_of_this_machine() -> None:
    with pytest.raises(ValueError, match=r"expected one of baseline, .*best .*got 'sse9'"):
        esmm_fast.set_isa("sse9")


def index(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rows": index(1, 40, 2)}, IndexError, r"rows\[1\] = 40 is outside the table of 9 rows"),
        ({"rows": index(1, 2, -1)}, IndexError, r"rows\[2\] = -1 is outside the table of 9 rows"),
        ({"rows": torch.ones(3)}, ValueError, "rows: expected dtype int32, got float32"),
        ({"offsets": index(0, 2, 1, 3)}, ValueError, r"offsets\[2\] = 1: expected at least 2"),
        ({"offsets": index(1, 2, 3)}, ValueError, r"offsets\[0\]: expected 0, got 1"),
        (
            {"offsets": index(0, 2)},
            ValueError,
            r"offsets\[1\] = 2: expected the number of occ.*, 3",
        ),
        ({"offsets": index()}, ValueError, "offsets: expected at least one element, got none"),
        ({"weights": torch.ones(2)}, ValueError, r"weights: expected shape \[3\], got \[2\]"),
        ({"rows": index(1, 0, 2, 0, 3, 0)[::2]}, ValueError, "rows: expected a contiguous tensor"),
    ],
)
def test_refuses_a_bad_plan(changes: dict[str, Tensor], error: type, message: str) -> None:
    plan = reference.batch_plan(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3]), torch.ones(3))
    with pytest.raises(error, match=message):
        ops.pooled_embedding(torch.zeros(9, 4), replace(plan, **changes), 1)


def test_refuses_a_bad_weight_or_number_of_common_bags() -> None:
    plan = make_plan([1, 2], rows=3, weighted=False)
    for weight, message in (
        (torch.zeros(3), r"weight: expected shape \[R, D\], got \[3\]"),
        (torch.zeros(3, 257), r"weight: expected 1 <= D <= 256, got \[3, 257\]"),
        (
            torch.zeros(3, 4, dtype=torch.bfloat16),
            "weight: expected dtype float32 or float64, got bfloat16",
        ),
        (
            torch.zeros(4, 3).t(),
            r"weight: expected rows of contiguous elements .* got stride\(1\) = 3",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ops.pooled_embedding(weight, plan, 1)
    with pytest.raises(ValueError, match="common_bags: expected 0 to 2, the number of bags, got 3"):
        ops.pooled_embedding(torch.zeros(3, 4), plan, 3)


def test_gradient_refuses_a_plan_that_leads_outside() -> None:
    plan = make_plan([1, 2], rows=3)
    for changes, message in (
        (
            {"bag_of_occurrence": index(0, 1, 2)},
            r"bag_of_occurrence\[2\] = 2 is outside the batch of 2 bags",
        ),
        (
            {"occurrence_by_row": index(0, 1, 3)},
            r"occurrence_by_row\[2\] = 3 is outside the batch of 3",
        ),
        ({"segment_ptr": index(0, 2, 1)}, r"segment_ptr\[2\] = 1: expected at least 2"),
    ):
        weight = torch.zeros(3, 4, requires_grad=True)
        pooled, _ = ops.pooled_embedding(weight, replace(plan, **changes), 2)
        with pytest.raises((IndexError, ValueError), match=message):
            pooled.sum().backward()
        assert weight.grad is None


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 3, 18, 64, 130])
def test_cuda_matches_cpu(dtype: torch.dtype, dim: int) -> None:
    tolerance = {"rtol": 1e-11, "atol": 1e-11} if dtype == torch.float64 else {}
    for lengths in ([], [0, 0], [1], [1] * 33, [0, 3, 700, 1, 0, 60], [2, 100_000, 0]):
        plan = make_plan(lengths, rows=40, seed=dim)
        plan = replace(plan, weights=plan.weights.to(dtype))  # type: ignore[union-attr]
        weight = torch.randn(40, dim + 2, dtype=dtype)[:, :dim]
        grads = torch.randn(len(lengths), dim, dtype=dtype)
        results = []
        for device in ("cpu", "cuda", "cuda"):
            w = weight.to(device).requires_grad_()
            p = plan.to(device)
            p = replace(p, weights=p.weights.detach().requires_grad_())  # type: ignore[union-attr]
            pooled = torch.cat(ops.pooled_embedding(w, p, len(lengths) // 2))
            found = torch.autograd.grad(pooled, [w, p.weights], grads.to(device))  # type: ignore[list-item]
            results.append([pooled.detach(), *found])
        for cpu, cuda, again in zip(*results, strict=True):
            assert torch.equal(cuda, again)
            torch.testing.assert_close(cuda.cpu(), cpu, **tolerance)


@pytest.mark.cuda
def test_cuda_leaves_a_bad_row_out_and_the_next_call_says_so() -> None:
    plan = make_plan([2, 3], rows=9).to("cuda")
    plan.rows[3] = 9
    weight = torch.ones(9, 4, device="cuda")
    pooled = torch.cat(ops.pooled_embedding(weight, plan, 1))
    torch.cuda.synchronize()
    assert pooled.isfinite().all()
    with pytest.raises(IndexError, match=r"rows\[3\] = 9 is outside the table"):
        ops.pooled_embedding(weight, make_plan([1], rows=9).to("cuda"), 0)


@pytest.mark.cuda
def test_cuda_refuses_tensors_on_two_devices() -> None:
    plan = make_plan([2, 3], rows=9)
    with pytest.raises(ValueError, match="rows: expected a tensor on the device"):
        ops.pooled_embedding(torch.ones(9, 4, device="cuda"), plan, 1)
