"""EmbeddingBag: a drop-in for torch.nn.EmbeddingBag, compared with it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.library import opcheck

from esmm_fast import EmbeddingBag, ops, set_isa
from esmm_fast._library import isa, operators


def pair(rows: int = 40, dim: int = 18, **options: Any) -> tuple[EmbeddingBag, nn.EmbeddingBag]:
    torch.manual_seed(0)
    ours = EmbeddingBag(rows, dim, **options)
    plain = nn.EmbeddingBag(rows, dim, **options)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.fixture(autouse=True)
def calls_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esmm_fast.embedding_bag._FEW", 0)


def bags(lengths: list[int], rows: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    weights = torch.rand(count, generator=generator) + 0.5
    return torch.randint(rows, (count,), generator=generator), offsets, weights


def gradients(bag: nn.EmbeddingBag, *arguments: Any) -> list[Tensor]:
    out = bag(*arguments)
    generator = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=generator).to(out.dtype))
    grad = bag.weight.grad
    assert grad is not None and grad.is_sparse == bag.sparse
    return [out.detach(), grad.to_dense() if grad.is_sparse else grad]


def test_literal() -> None:
    bag = EmbeddingBag(3, 2, mode="sum", _weight=torch.tensor([[0.0, 0], [1, 2], [10, 20]]))
    out = bag(torch.tensor([1, 2, 2]), torch.tensor([0, 2, 2]), torch.tensor([1.0, 0.5, 2]))
    assert out.tolist() == [[6, 12], [0, 0], [20, 40]]
    out.sum().backward()
    assert bag.weight.grad is not None
    assert bag.weight.grad.tolist() == [[0, 0], [1, 1], [2.5, 2.5]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 0, 1, 2, 5, 40]), min_size=1, max_size=12),
    dim=st.sampled_from([1, 3, 4, 8, 16, 18, 33, 64, 65, 256]),
    mode=st.sampled_from(["sum", "mean"]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
)
def test_equals_torch(
    lengths: list[int], dim: int, mode: str, flags: tuple[bool, bool, bool, bool]
) -> None:
    sparse, last, weighted, double = flags
    ours, plain = pair(dim=dim, mode=mode, sparse=sparse, include_last_offset=last)
    rows, offsets, weights = bags(lengths)
    if double:
        ours, plain, weights = ours.double(), plain.double(), weights.double()
    arguments: list[Any] = [rows, offsets if last else offsets[:-1]]
    if weighted and mode == "sum":
        arguments.append(weights)
    for a, b in zip(gradients(ours, *arguments), gradients(plain, *arguments), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_padded_input_and_gradient_of_weights(dtype: torch.dtype) -> None:
    ours, plain = pair(mode="sum")
    rows = torch.randint(40, (6, 5)).to(dtype)
    values = torch.rand(6, 5, requires_grad=True)
    grads = []
    for bag in (ours, plain):
        out = bag(rows, per_sample_weights=values)
        grads.append(torch.autograd.grad(out.square().sum(), [values, bag.weight]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "options",
    [{"mode": "max"}, {"max_norm": 0.5}, {"padding_idx": 0}, {"scale_grad_by_freq": True}],
)
def test_what_has_no_kernel_here_runs_in_torch(options: dict[str, Any]) -> None:
    ours, plain = pair(**options)
    rows, offsets, _ = bags([3, 0, 4])
    assert torch.equal(ours(rows, offsets[:-1]), plain(rows, offsets[:-1]))


def test_module_protocols() -> None:
    ours, plain = pair(mode="sum", sparse=True)
    rows, offsets, _ = bags([3, 0, 4])
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(rows, offsets[:-1]), ours(rows, offsets[:-1]))
    taken = EmbeddingBag.from_pretrained(plain.weight.detach(), mode="sum")
    torch.testing.assert_close(taken(rows, offsets[:-1]), plain(rows, offsets[:-1]))
    for bag in (ours, plain):
        optimizer = torch.optim.SparseAdam(bag.parameters())
        bag(rows, offsets[:-1]).sum().backward()
        optimizer.step()
    torch.testing.assert_close(ours.weight, plain.weight)


def test_compiles() -> None:
    ours, _ = pair(mode="sum")
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    rows, offsets, weights = bags([3, 0, 4])
    out = compiled(rows, offsets[:-1], weights)
    torch.testing.assert_close(out, ours(rows, offsets[:-1], weights))
    out.sum().backward()
    assert ours.weight.grad is not None


def test_opcheck_of_the_gradient_by_occurrence() -> None:
    _, offsets, weights = bags([3, 0, 4])
    op = operators.pooled_embedding_by_occurrence
    arguments = torch.rand(3, 5), offsets, weights, 7
    opcheck(torch.ops.esmm_fast.pooled_embedding_by_occurrence, arguments)
    with pytest.raises(ValueError, match=r"offsets: expected shape \[3\], got \[4\]"):
        op(torch.rand(2, 5), offsets, weights, 7)
    with pytest.raises(ValueError, match=r"weights: expected shape \[7\], got \[2\]"):
        op(torch.rand(3, 5), offsets, weights[:2], 7)


def test_same_bits_for_any_thread_count_and_instruction_set() -> None:
    rows, offsets, weights = bags([700, 0, 3, 1000, 2] * 30, rows=500)
    before, threads_before = isa(), torch.get_num_threads()
    found = []
    try:
        for name in ("baseline", "best"):
            set_isa(name)
            for threads in (1, 2, 7):
                torch.set_num_threads(threads)
                ours, _ = pair(500, mode="sum", include_last_offset=True)
                found.append(gradients(ours, rows, offsets, weights))
    finally:
        set_isa(before)
        torch.set_num_threads(threads_before)
    for result in found[1:]:
        for a, b in zip(result, found[0], strict=True):
            assert torch.equal(a, b)


def test_bad_input_is_named() -> None:
    ours, _ = pair(mode="sum")
    with pytest.raises(IndexError, match=r"rows\[2\] = 40 is outside the table of 40 rows"):
        ours(torch.tensor([1, 2, 40]), torch.tensor([0]))
    with pytest.raises(IndexError, match=r"rows\[0\] = 4294967297 is outside"):
        ours(torch.tensor([2**32 + 1]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"offsets\[2\] = 1: expected at least 2"):
        ops.embedding_bag(ours.weight, torch.tensor([1, 2]), torch.tensor([0, 2, 1]))


def test_weight_without_contiguous_rows_and_a_last_offset_before_the_end() -> None:
    rows, offsets = torch.tensor([1, 2, 2, 0]), torch.tensor([0, 2, 3])
    own = EmbeddingBag(3, 2, mode="sum", include_last_offset=True)
    torchs = torch.nn.EmbeddingBag(3, 2, mode="sum", include_last_offset=True)
    torchs.load_state_dict(own.state_dict())
    assert torch.equal(own(rows, offsets), torchs(rows, offsets))
    own.weight = torchs.weight = torch.nn.Parameter(torch.randn(2, 3).t())
    offsets = torch.tensor([0, 2, 4])
    assert torch.equal(own(rows, offsets), torchs(rows, offsets))
