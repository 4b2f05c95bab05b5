"""biased_relu and its gradient: literal values, reference, torch, threads, instruction sets."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm_fast import ops, reference, set_isa
from esmm_fast._library import isa, operators

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def restored() -> Iterator[None]:
    threads, instructions = torch.get_num_threads(), isa()
    yield
    torch.set_num_threads(threads)
    set_isa(instructions)


def random_case(rows, columns, groups, dtype=torch.float32, seed=0, ordered=True):
    """Returns x, bias and group, and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(rows, columns, generator=generator).to(dtype) for _ in range(2))
    bias = torch.randn(groups, columns, generator=generator)
    group = torch.randint(groups, (rows,), generator=generator, dtype=torch.int32)
    return x, bias, group.sort().values if ordered else group, grad


# -- literal --------------------------------------------------------------------------------------


def test_each_row_gets_the_bias_of_its_group():
    x = torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, 0.0]])
    bias = torch.tensor([[0.0, 3.0], [-2.5, 1.0]])
    same = ops.biased_relu_(x, bias, torch.tensor([0, 1, 1], dtype=torch.int32))
    assert same is x
    assert x.tolist() == [[1.0, 2.0], [0.0, 0.0], [0.5, 1.0]]


def test_gradient_is_masked_in_place_and_summed_by_group():
    out = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.5, 1.0]])
    grad = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    group = torch.tensor([2, 0, 2], dtype=torch.int32)
    sums = ops.biased_relu_gradient_(grad, out, group, 4)
    assert grad.tolist() == [[1.0, 2.0], [0.0, 0.0], [5.0, 6.0]]
    assert sums.tolist() == [[0.0, 0.0], [0.0, 0.0], [6.0, 8.0], [0.0, 0.0]]


def test_nan_stays():
    nan = float("nan")
    x = torch.tensor([[nan, 1.0], [-1.0, nan]])
    for dtype in DTYPES:
        out = ops.biased_relu_(x.to(dtype), torch.zeros(1, 2))
        assert out.isnan().tolist() == [[True, False], [False, True]]
        grad = torch.ones(2, 2, dtype=dtype)
        ops.biased_relu_gradient_(grad, out)
        assert grad.tolist() == [[1.0, 1.0], [0.0, 1.0]]  # as torch's ReLU


# -- against the reference ------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 2, 255, 256, 257, 700]),
    columns=st.sampled_from([0, 1, 3, 18, 64, 360]),
    groups=st.sampled_from([0, 1, 2, 9, 400]),  # 0: one bias for all
    ordered=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_matches_reference(rows, columns, groups, ordered, dtype, seed):
    x, bias, group, grad = random_case(rows, columns, max(groups, 1), dtype, seed, ordered)
    given_group = group if groups else None
    expected = reference.biased_relu(x, bias, given_group)
    out = ops.biased_relu_(x.clone(), bias, given_group)
    assert torch.equal(out, expected)
    exact = reference.biased_relu_gradient(grad.double(), out, given_group, max(groups, 1))
    expected_grad, _ = reference.biased_relu_gradient(grad, out, given_group, max(groups, 1))
    sums = ops.biased_relu_gradient_(grad, out, given_group, max(groups, 1))
    assert torch.equal(grad, expected_grad)
    torch.testing.assert_close(sums.double(), exact[1], rtol=1e-5, atol=1e-4)


def test_gradient_is_the_derivative():
    x, bias, group, grad = random_case(300, 7, 5)
    x.requires_grad_()
    bias.requires_grad_()
    twin = reference.biased_relu(x, bias, group)
    expected = torch.autograd.grad(twin, (x, bias), grad)
    sums = ops.biased_relu_gradient_(grad, twin.detach(), group, 5)
    assert torch.equal(grad, expected[0])
    torch.testing.assert_close(sums, expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ordered", [True, False])
def test_same_bits_for_any_number_of_threads_and_instruction_set(restored, dtype, ordered):
    x, bias, group, grad = random_case(3000, 360, 40, dtype, ordered=ordered)
    results = []
    for name in ("baseline", "avx2", "avx512"):
        try:
            set_isa(name)
        except ValueError:
            continue
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            out, g = ops.biased_relu_(x.clone(), bias, group), grad.clone()
            results.append((out, ops.biased_relu_gradient_(g, out, group, 40), g))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


# -- what torch asks of an operator ---------------------------------------------------------------


@pytest.mark.parametrize("grouped", [True, False])
def test_opcheck(grouped):
    x, bias, group, grad = random_case(17, 6, 4 if grouped else 1)
    group = group if grouped else None
    torch.library.opcheck(torch.ops.esmm_fast.biased_relu.default, (x.clone(), bias, group))
    out = ops.biased_relu_(x, bias, group)
    torch.library.opcheck(
        torch.ops.esmm_fast.biased_relu_gradient.default, (grad, out, group, len(bias))
    )


def test_versions_count_what_is_written():
    x, bias, group, grad = random_case(5, 3, 2)
    for call in (
        lambda: ops.biased_relu_(x, bias, group),
        lambda: ops.biased_relu_gradient_(grad, x, group, 2),
    ):
        before = x._version, grad._version, bias._version
        call()
        assert (x._version > before[0]) != (grad._version > before[1])
        assert bias._version == before[2]


def test_errors_name_the_argument_and_write_nothing():
    x, bias, group, grad = random_case(4, 3, 2)
    before = x.clone(), grad.clone()
    bad = torch.tensor([0, 1, 0, 2], dtype=torch.int32)
    relu, gradient = operators.biased_relu, operators.biased_relu_gradient
    for call, error, message in [
        (lambda: relu(x, bias, bad), IndexError, r"group\[3\] = 2 is outside the 2 rows of bias"),
        (lambda: gradient(grad, x, bad, 2), IndexError, r"group\[3\] = 2 is outside the 2 rows"),
        (lambda: relu(x, bias, None), ValueError, "bias: expected one row where group is not"),
        (lambda: relu(x, bias[:, :2], group), ValueError, r"bias: expected shape \[groups, 3\]"),
        (lambda: relu(x, bias.double(), group), ValueError, "bias: expected dtype float32, got"),
        (lambda: relu(x, bias, group.long()), ValueError, "group: expected dtype int32, got int64"),
        (lambda: relu(x, bias, group[:3]), ValueError, r"group: expected shape \[4\], got \[3\]"),
        (lambda: relu(x.double(), bias, group), ValueError, "x: expected dtype float32 or bfloat"),
        (lambda: relu(x.t(), bias, group), ValueError, "x: expected a contiguous tensor"),
        (lambda: relu(x[0], bias, group), ValueError, r"x: expected shape \[B, H\], got \[3\]"),
        (lambda: gradient(grad, x[:2], group, 2), ValueError, "out: expected the shape of grad"),
        (lambda: gradient(grad, x.bfloat16(), group, 2), ValueError, "out: expected dtype float32"),
        (lambda: gradient(grad, x, group, -1), ValueError, "num_groups: expected 0 or more"),
    ]:
        with pytest.raises(error, match=message):
            call()
    assert torch.equal(x, before[0])
    assert torch.equal(grad, before[1])
