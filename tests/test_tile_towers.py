"""tile_towers and its gradient: literal values, reference, threads, what torch asks; needs AMX."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm_fast import ops, reference, set_isa
from esmm_fast._library import isa

needs_tiles = pytest.mark.skipif(
    not ops.has_tiles(), reason="this processor has no matrix tiles for bfloat16 (AMX)"
)


@pytest.fixture
def restored() -> Iterator[None]:
    threads, instructions = torch.get_num_threads(), isa()
    yield
    torch.set_num_threads(threads)
    set_isa(instructions)


def random_case(rows, common_rows, in_common, in_impression, towers, seed=0, whole=False):
    """Returns the arguments of tile_towers, and a gradient of the logits; `whole`: whole numbers,
    so that sums are exact, and a unit at its threshold is on the reference's side of it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        x = torch.randn(*shape, generator=generator)
        return x.round().clamp(-2, 2) if whole else x

    parameters = []
    for hidden in towers:
        size = in_common + in_impression
        for out in (*hidden, 1):
            weight = draw(out, size)
            parameters += [weight if whole else weight / max(size, 1) ** 0.5, draw(out)]
            size = out
    group = torch.randint(max(common_rows, 1), (rows,), generator=generator).int()
    inputs = draw(common_rows, in_common), draw(rows, in_impression), group
    return inputs, parameters, [len(h) + 1 for h in towers], draw(rows, len(towers))


def backward(grad, saved, inputs, parameters, layers, **wants):
    common, _, group = inputs
    return ops.tile_towers_gradient(grad, saved, group, *common.shape, parameters, layers, **wants)


# -- literal --------------------------------------------------------------------------------------


@needs_tiles
def test_one_tower_by_hand():
    common = torch.tensor([[1.0], [-2.0]])
    impression = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    group = torch.tensor([0, 1, 1], dtype=torch.int32)
    first = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, -1.0]])  # common, impression, impression
    parameters = [first, torch.tensor([0.5, 0.0]), torch.tensor([[2.0, 10.0]]), torch.ones(1)]
    inputs = common, impression, group
    logits, saved = ops.tile_towers(*inputs, parameters, [2])
    # hidden: relu([1 + 2 + .5, 1]), relu([-2 + 3 + .5, -3]), relu([-2 + 5 + .5, -3])
    assert logits.tolist() == [[18.0], [4.0], [8.0]]
    grad = torch.tensor([[1.0], [1.0], [2.0]])
    of_common, of_impression, grads = backward(grad, saved, inputs, parameters, [2])
    assert of_common.tolist() == [[2.0 + 10.0], [2.0 + 4.0]]
    assert of_impression.tolist() == [[4.0, 6.0 - 10.0], [4.0, 6.0], [8.0, 12.0]]
    weight, bias, last_weight, last_bias = (g.tolist() for g in grads)
    assert weight == [[2.0 - 4.0 - 8.0, 2.0 + 4.0, 2.0 + 4.0], [10.0, 10.0, 0.0]]
    assert bias == [2.0 + 2.0 + 4.0, 10.0]
    assert last_weight == [[3.5 + 1.5 + 2 * 3.5, 1.0]]
    assert last_bias == [4.0]


# -- against the reference ------------------------------------------------------------------------


@needs_tiles
@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 31, 32, 33, 256, 257, 1100, 2300]),
    common_rows=st.sampled_from([1, 2, 33, 300]),
    in_common=st.sampled_from([0, 1, 16, 33, 234]),
    in_impression=st.sampled_from([0, 1, 17, 32, 180]),
    towers=st.lists(
        st.lists(st.sampled_from([1, 5, 16, 17, 32, 80, 200]), min_size=1, max_size=3),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 2**31),
)
def test_matches_reference(rows, common_rows, in_common, in_impression, towers, seed):
    inputs, parameters, layers, grad = random_case(
        rows, common_rows, in_common, in_impression, towers, seed, whole=True
    )
    logits, saved = ops.tile_towers(*inputs, parameters, layers)
    common, impression, group = inputs
    exact = [x.double().requires_grad_() for x in (common, impression, *parameters)]
    expected = reference.tile_towers(*exact[:2], group, exact[2:], layers)
    assert (logits - expected).norm() <= 1e-5 * expected.norm()
    *found, of_parameters = backward(grad, saved, inputs, parameters, layers)
    derivatives = torch.autograd.grad(expected, exact, grad.double(), allow_unused=True)
    for ours, right in zip([*found, *of_parameters], derivatives, strict=True):
        assert ours.dtype == torch.float32
        if right is not None:
            assert ours.shape == right.shape
            assert (ours - right).norm() <= 1e-2 * right.norm()  # gradients in bfloat16 between


@needs_tiles
def test_gradients_that_are_not_wanted_are_left_out():
    inputs, parameters, layers, grad = random_case(300, 7, 5, 6, [(8, 4), (9,)])
    _, saved = ops.tile_towers(*inputs, parameters, layers)
    *both, grads = backward(grad, saved, inputs, parameters, layers)
    for common, impression in [(True, False), (False, True), (False, False)]:
        wants = {"wants_common": common, "wants_impression": impression}
        *found, same = backward(grad, saved, inputs, parameters, layers, **wants)
        for wanted, ours, right in zip(wants.values(), found, both, strict=True):
            assert torch.equal(ours, right if wanted else right[:0])
        assert all(torch.equal(a, b) for a, b in zip(same, grads, strict=True))


@needs_tiles
def test_nan_stays():
    inputs, parameters, layers, grad = random_case(40, 3, 4, 6, [(8, 4)])
    inputs[1][17, 2] = float("nan")
    logits, saved = ops.tile_towers(*inputs, parameters, layers)
    assert logits.isnan().squeeze(1).nonzero().tolist() == [[17]]
    _, of_impression, _ = backward(grad, saved, inputs, parameters, layers)
    assert of_impression.isfinite().all()  # as torch's ReLU: a NaN passes the gradient on
    grad[17] = float("nan")
    _, of_impression, _ = backward(grad, saved, inputs, parameters, layers)
    assert of_impression[17].isnan().all()
    assert of_impression[:17].isfinite().all()


@needs_tiles
def test_same_bits_for_any_number_of_threads(restored):
    inputs, parameters, layers, grad = random_case(3000, 400, 30, 50, [(96, 40), (33,)])
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        logits, saved = ops.tile_towers(*inputs, parameters, layers)
        *found, grads = backward(grad, saved, inputs, parameters, layers)
        results.append([logits, *found, *grads])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


# -- what torch asks of an operator ---------------------------------------------------------------


@needs_tiles
@pytest.mark.parametrize("in_common", [0, 5])
def test_opcheck(in_common):
    # Whole stretches of 256 rows: what is saved of others is not all written, and it is compared.
    inputs, parameters, layers, grad = random_case(256, 256, in_common, 6, [(8, 4), (9,)])
    own = torch.ops.esmm_fast
    torch.library.opcheck(own.tile_towers.default, (*inputs, parameters, layers))
    _, saved = ops.tile_towers(*inputs, parameters, layers)
    for wants in [(True, True), (False, False)]:
        arguments = grad, saved, inputs[2], 256, in_common, parameters, layers, *wants
        torch.library.opcheck(own.tile_towers_gradient.default, arguments)


@needs_tiles
def test_errors_name_the_argument():
    (common, impression, group), parameters, layers, grad = random_case(4, 3, 5, 6, [(8, 4)])
    bad = torch.tensor([0, 1, 3, 2], dtype=torch.int32)
    _, saved = ops.tile_towers(common, impression, group, parameters, layers)

    def run(
        common=common, impression=impression, group=group, parameters=parameters, layers=layers
    ):
        ops.tile_towers(common, impression, group, parameters, layers)

    def back(grad=grad, saved=saved, group=group, in_common=5, parameters=parameters):
        ops.tile_towers_gradient(grad, saved, group, 3, in_common, parameters, layers)

    for call, error, message in [
        (lambda: run(group=bad), IndexError, r"group\[2\] = 3 is outside the 3 rows of common"),
        (lambda: back(group=bad), IndexError, r"group\[2\] = 3 is outside the 3 rows of common"),
        (lambda: run(group=group.long()), ValueError, "group: expected dtype int32, got int64"),
        (lambda: run(group=group[:2]), ValueError, r"group: expected shape \[4\], got \[2\]"),
        (lambda: run(common=common.double()), ValueError, "common: expected dtype float32, got"),
        (lambda: run(impression=impression[0]), ValueError, r"impression: expected shape \[\*, \*"),
        (lambda: run(impression=impression.t()), ValueError, "impression: expected a contiguous"),
        (lambda: run(common=common[:, :4].contiguous()), ValueError, r"parameters\[0\]: expected"),
        (lambda: run(parameters=parameters[:-1]), ValueError, "parameters: expected 6, weight and"),
        (lambda: run(layers=[2]), ValueError, "parameters: expected 4, weight and bias of each"),
        (lambda: run(layers=[1, 2]), ValueError, "layers: expected at least 2 of each tower"),
        (lambda: run(layers=[]), ValueError, "layers: expected at least one tower"),
        (lambda: back(grad=grad.double()), ValueError, "grad_logits: expected dtype float32"),
        (lambda: back(saved=saved[1:]), ValueError, "saved: expected shape"),
        (lambda: back(in_common=12), ValueError, "in_common: expected 0 to 11, got 12"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_another_instruction_set_has_no_tiles(restored):
    set_isa("baseline")
    assert not ops.has_tiles()
    inputs, parameters, layers, _ = random_case(4, 3, 5, 6, [(8, 4)])
    with pytest.raises(ValueError, match="has no matrix tiles for bfloat16"):
        ops.tile_towers(*inputs, parameters, layers)
