"""The towers' pass by hand: equal to the plain layers, and theirs wherever it does not apply."""

import copy

import pytest
import torch
from torch import nn

from esmm_fast import ops, tower_pass
from esmm_fast.tower import SplitLinear, Tower, plain_tower_logits, tower_logits


@pytest.fixture
def passes(monkeypatch) -> list[torch.dtype | str]:
    """The passes that ran: the dtypes of `_Pass`, and "tiles"."""
    ran: list[torch.dtype | str] = []
    real, real_tiles = tower_pass._Pass.apply, tower_pass._TilePass.apply

    def counted(common, impression, which, dtype, *rest):
        ran.append(dtype)
        return real(common, impression, which, dtype, *rest)

    def counted_tiles(*arguments):
        ran.append("tiles")
        return real_tiles(*arguments)

    monkeypatch.setattr(tower_pass._Pass, "apply", counted)
    monkeypatch.setattr(tower_pass._TilePass, "apply", counted_tiles)
    return ran


@pytest.fixture(params=["tiles", torch.bfloat16], ids=["tiles", "torch's products"])
def bfloat16_pass(request, monkeypatch) -> torch.dtype | str:
    """Which pass bfloat16 takes."""
    if request.param != "tiles":
        monkeypatch.setattr(ops, "has_tiles", lambda: False)
    elif not ops.has_tiles():
        pytest.skip("this processor has no matrix tiles for bfloat16 (AMX)")
    return request.param


def random_case(in_common=7, in_impression=5, rows=300, common_rows=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(common_rows, in_common, generator=generator)
    impression = torch.randn(rows, in_impression, generator=generator)
    which = torch.randint(max(common_rows, 1), (rows,), generator=generator, dtype=torch.int32)
    return common, impression, which.sort().values, torch.randn(rows, 2, generator=generator)


def gradients(logits, towers, inputs, outer):
    wanted = [x for x in inputs if x.requires_grad]
    return torch.autograd.grad(
        logits, [*wanted, *(p for t in towers for p in t.parameters())], outer
    )


@pytest.mark.parametrize("hidden", [(8,), (9, 6), (12, 9, 6)])
@pytest.mark.parametrize(
    ("in_common", "in_impression", "common_rows"), [(7, 5, 11), (0, 5, 0), (7, 0, 11)]
)
@pytest.mark.parametrize("which_dtype", [torch.int32, torch.int64])
def test_equals_the_plain_layers(
    passes, hidden, in_common, in_impression, common_rows, which_dtype
):
    torch.manual_seed(1)
    towers = [Tower(in_common, in_impression, hidden) for _ in range(2)]
    *inputs, which, outer = random_case(in_common, in_impression, common_rows=common_rows)
    for x in inputs:
        x.requires_grad_(x.numel() > 0)
    logits = tower_logits(towers, *inputs, which.to(which_dtype))
    assert passes == [torch.float32]
    twins = [copy.deepcopy(t).double() for t in towers]
    exact_inputs = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    exact = plain_tower_logits(twins, *exact_inputs, which)
    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(logits, exact, **close)
    for ours, twin in zip(
        gradients(logits, towers, inputs, outer),
        gradients(exact, twins, exact_inputs, outer.double()),
        strict=True,
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-4, check_dtype=False)


def test_towers_of_different_sizes(passes):
    torch.manual_seed(1)
    towers = [Tower(7, 5, hidden) for hidden in ((8,), (6, 4), (12, 9, 6))]
    common, impression, which, _ = random_case()
    logits = tower_logits(towers, common, impression, which)
    expected = torch.stack([t(common, impression, which) for t in towers], 1)
    assert len(passes) == 4
    torch.testing.assert_close(logits, expected)
    loss, expected_loss = logits.square().sum(), expected.square().sum()
    for a, b in zip(
        gradients(loss, towers, (), None), gradients(expected_loss, towers, (), None), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_as_close_to_float64_as_the_plain_layers(passes, bfloat16_pass):
    torch.manual_seed(1)
    towers = [Tower(7, 5, (64, 32)) for _ in range(2)]
    common, impression, which, outer = random_case(rows=2000)
    inputs = [common.requires_grad_(), impression.requires_grad_()]
    results = []
    for forward in (tower_logits, plain_tower_logits):
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(towers, *inputs, which)
        assert logits.dtype == torch.float32
        results.append([logits, *gradients(logits, towers, inputs, outer)])
    assert passes == [bfloat16_pass]
    twins = [copy.deepcopy(t).double() for t in towers]
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    logits = plain_tower_logits(twins, *exact_inputs, which)
    exact = [logits, *gradients(logits, twins, exact_inputs, outer.double())]
    for ours, plain, right in zip(*results, exact, strict=True):
        size = right.norm()
        assert (ours - right).norm() <= 2 * (plain - right).norm() + 1e-4 * size


def autocast(dtype):
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_parameters_and_inputs_get_no_gradient(passes, dtype):
    towers = [Tower(7, 5, (8, 4)) for _ in range(2)]
    towers[0].requires_grad_(False)
    common, impression, which, outer = random_case()
    with autocast(dtype):
        logits = tower_logits(towers, common, impression.requires_grad_(), which)
    logits.backward(outer)
    assert passes
    assert common.grad is None
    assert impression.grad is not None
    assert all(p.grad is None for p in towers[0].parameters())
    assert all(p.grad is not None for p in towers[1].parameters())
    with torch.no_grad():
        assert not tower_logits(towers, common, impression, which).requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_batch(dtype):
    towers = [Tower(7, 5, (8, 4)) for _ in range(2)]
    common, impression, which, outer = random_case(rows=0)
    with autocast(dtype):
        logits = tower_logits(towers, common, impression, which)
    logits.backward(outer)
    assert logits.shape == (0, 2)
    assert all(p.grad.eq(0).all() for t in towers for p in t.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_twice_adds_and_a_changed_weight_is_noticed(dtype):
    tower = Tower(7, 5, (8, 4))
    common, impression, which, _ = random_case()
    with autocast(dtype):
        total = tower(common, impression, which).sum()
    total.backward(retain_graph=True)
    once = [p.grad.clone() for p in tower.parameters()]
    total.backward(retain_graph=True)
    for p, g in zip(tower.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)
    with torch.no_grad():
        tower[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_second_derivative_is_refused(dtype):
    tower = Tower(7, 5, (8, 4))
    common, impression, which, _ = random_case()
    with autocast(dtype):
        total = tower(common, impression.requires_grad_(), which).sum()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(total, impression, create_graph=True)


def _with_hook(tower):
    tower[1].register_forward_hook(lambda module, args, out: out * 2)


def _with_weight_norm(tower):
    nn.utils.parametrizations.weight_norm(tower[2])


def _with_another_activation(tower):
    tower[1] = nn.PReLU()


def _with_bias_removed(tower):
    tower[2].bias = None


@pytest.mark.parametrize(
    "change", [_with_hook, _with_weight_norm, _with_another_activation, _with_bias_removed]
)
def test_changed_layers_run_as_they_are(passes, change):
    torch.manual_seed(1)
    tower = Tower(7, 5, (8, 4))
    change(tower)
    common, impression, which, _ = random_case()
    logits = tower(common, impression, which)
    assert not passes
    x = torch.cat([common[which], impression], 1)
    for layer in tower:
        if isinstance(layer, SplitLinear):
            x = nn.functional.linear(x, layer.weight, layer.bias)
        else:
            x = layer(x)
    torch.testing.assert_close(logits, x.squeeze(1))


def test_wrong_inputs_are_named():
    common, impression, which, _ = random_case()
    tower = Tower(7, 5, (8, 4))
    with pytest.raises(ValueError, match=r"common: expected shape \[\*, 7\], got \[11, 6\]"):
        tower(common[:, :6], impression, which)
    with pytest.raises(IndexError, match="is outside the 11 rows of bias"):
        tower(common, impression, which + 11)


def test_functional_transforms_run_the_plain_layers(passes):
    tower = Tower(7, 5, (8, 4))
    common, impression, which, _ = random_case(rows=4)
    parameters = dict(tower.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(tower, parameters, (common, impression, which)).sum()

    grads = torch.func.grad(loss)(parameters)
    assert not passes
    tower(common, impression, which).sum().backward()
    for name, p in tower.named_parameters():
        torch.testing.assert_close(grads[name], p.grad)


@pytest.mark.parametrize("wrong", [2**32 + 1, -(2**32)])
def test_a_common_row_beyond_int32_is_no_other_common_row(wrong):
    tower = Tower(7, 5, (8,))
    common, impression, which, _ = random_case()
    which = which.long()
    which[17] = wrong
    with pytest.raises(IndexError) as error:
        tower_logits([tower], common, impression, which)
    assert str(error.value) == f"common_of_impression[17] = {wrong} is outside the 11 common rows"
