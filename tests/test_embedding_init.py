"""ops.embedding_init: initial rows of tables, a function of the key and the feature id alone."""

import pytest
import torch
from torch.library import opcheck

from esmm_fast import ops, reference, set_isa
from esmm_fast._library import _cpu, isa

FIXED_BITS = [
    [1058836970, 1055007736, 1046448310, -1096968979, -1080635264],
    [-1092202618, 1065194543, -1091859807, -1086825727, 1076757221],
]  # of this generator on any machine


@pytest.mark.parametrize("dim", [1, 3, 4, 18])
def test_matches_reference(dim: int) -> None:
    ids = torch.tensor([0, 1, 2, 7, 2**40 + 3, 2**63 - 1, -1, -(2**63)])
    for key in (0, 1, -5, 2**63 - 1):
        ours, twin = torch.empty(2, len(ids), dim, dtype=torch.float64)
        ops.embedding_init(ours, ids, key=key, std=0.5)
        reference.embedding_init(twin, ids, key=key, std=0.5)
        torch.testing.assert_close(ours, twin, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", _cpu.esmm_fast_isas().decode().split(", "))
def test_bits_are_fixed_on_every_instruction_set(name: str) -> None:
    before, found = isa(), []
    weight, threads = torch.empty(2, 5), torch.get_num_threads()
    try:
        set_isa(name)
        ops.embedding_init(weight, torch.tensor([3, 4]), key=42, std=1.0)
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            found.append(torch.empty(3000, 18))
            ops.embedding_init(found[-1], torch.arange(3000), key=42, std=1.0)
        set_isa("baseline")
        ops.embedding_init(whole := torch.empty(3000, 18), torch.arange(3000), key=42, std=1.0)
    finally:
        set_isa(before)
        torch.set_num_threads(threads)
    assert weight.view(torch.int32).tolist() == FIXED_BITS
    assert all(torch.equal(each, whole) for each in found)


def test_is_normal() -> None:
    weight = torch.empty(20_000, 18, dtype=torch.float64)
    ops.embedding_init(weight, torch.arange(20_000), key=7, std=1.0)
    values = weight.flatten().sort().values
    assert abs(float(values.mean())) < 0.005 and abs(float(values.std()) - 1) < 0.005
    steps = (torch.arange(len(values)) + 0.5) / len(values)
    distance = (torch.special.ndtr(values) - steps).abs().max()  # Kolmogorov-Smirnov
    assert distance < 1.63 / len(values) ** 0.5
    columns = torch.corrcoef(weight.t()) - torch.eye(18)
    assert columns.abs().max() < 0.03


def test_a_row_depends_on_its_feature_alone() -> None:
    ids = torch.randperm(1000)
    whole, part = torch.empty(1000, 18), torch.zeros(10, 64)
    ops.embedding_init(whole, ids, key=3, std=0.01)
    ops.embedding_init(part[:, :18], ids[500:510], key=3, std=0.01)
    assert torch.equal(part[:, :18], whole[500:510])
    assert not part[:, 18:].any()


def test_opcheck_version_and_errors() -> None:
    weight = torch.empty(4, 3)
    opcheck(torch.ops.esmm_fast.embedding_init, (weight, torch.arange(4), 1, 0.1))
    version = weight._version
    ops.embedding_init(weight, torch.arange(4), key=1, std=0.0)
    assert weight._version == version + 1 and not weight.any()
    with pytest.raises(ValueError, match=r"feature_ids: expected shape \[4\], got \[3\]"):
        ops.embedding_init(weight, torch.arange(3), key=1, std=0.1)
    with pytest.raises(ValueError, match="std: expected a number of at least 0, got -1"):
        ops.embedding_init(weight, torch.arange(4), key=1, std=-1.0)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_gives_the_same_bits(dtype: torch.dtype) -> None:
    ids = torch.randint(-(2**63), 2**63 - 1, (1000,))
    cpu, cuda = torch.empty(1000, 19, dtype=dtype), torch.empty(1000, 19, dtype=dtype).cuda()
    ops.embedding_init(cpu, ids, key=-5, std=0.01)
    ops.embedding_init(cuda, ids.cuda(), key=-5, std=0.01)
    assert torch.equal(cuda.cpu(), cpu)
