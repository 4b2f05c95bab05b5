"""product_loss: literal values, reference, an oracle in 1,000 digits, compile, threads, CUDA."""

import itertools
import random
from collections.abc import Iterator
from functools import cache

import mpmath
import pytest
import torch
import torch._dynamo.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esmm_fast import ops, reference, set_isa
from esmm_fast._library import isa, operators

BOTH = [torch.float32, torch.float64]
ISAS = ["baseline", "avx2", "avx512"]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=ISAS)
def instruction_set(request) -> Iterator[str]:
    before = isa()
    try:
        set_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    set_isa(before)


def value_and_grad(logits, labels, weights=None, reduction="mean", loss=ops.product_loss):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, labels, weights, reduction)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    return value.detach(), grad


def random_case(impressions, stages, dtype=torch.float32, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(impressions, stages, generator=generator, dtype=torch.float64) * 4
    labels = torch.rand(impressions, stages, generator=generator, dtype=torch.float64)
    labels = torch.where(labels < 0.7, (labels < 0.2).double(), labels)
    weights = torch.rand(impressions, generator=generator, dtype=torch.float64)
    return tuple(x.to(device=device, dtype=dtype) for x in (logits, labels, weights))


# -- literal --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", BOTH)
def test_zero_logits(dtype):
    """P_1 = 1/2 and P_2 = 1/4: click without conversion costs log 2 + log(4/3)."""
    value, grad = value_and_grad(torch.zeros(1, 2, dtype=dtype), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(value.item(), 0.9808292530117262, rtol=1e-7, atol=0)
    torch.testing.assert_close(grad, torch.tensor([[-1 / 2 + 1 / 6, 1 / 6]], dtype=dtype))


def test_one_stage_is_binary_cross_entropy():
    logits, labels, _ = random_case(100, 1, torch.float64)
    ours = ops.product_loss(logits, labels, reduction="none")
    twin = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    torch.testing.assert_close(ours, twin[:, 0])


def test_reductions_weigh_impressions():
    logits, labels, weights = random_case(1500, 3, torch.float64)
    each, grad_each = value_and_grad(logits, labels, None, "none")
    weighted, grad_weighted = value_and_grad(logits, labels, weights, "none")
    total, grad_total = value_and_grad(logits, labels, weights, "sum")
    mean, grad_mean = value_and_grad(logits, labels, weights, "mean")
    torch.testing.assert_close(weighted, weights * each)
    torch.testing.assert_close(grad_weighted, weights[:, None] * grad_each)
    torch.testing.assert_close(total, weighted.sum())
    torch.testing.assert_close(grad_total, grad_weighted)
    torch.testing.assert_close(mean, weighted.sum() / weights.sum())
    torch.testing.assert_close(grad_mean, grad_weighted / weights.sum())
    torch.testing.assert_close(ops.product_loss(logits, labels), each.mean())


def test_gradient_follows_the_outer_gradient():
    logits, labels, _ = random_case(7, 2, torch.float64)
    outer = torch.arange(7.0, dtype=torch.float64)
    logits.requires_grad_()
    ops.product_loss(logits, labels, reduction="none").backward(outer)
    _, each = value_and_grad(logits, labels, None, "none")
    torch.testing.assert_close(logits.grad, outer[:, None] * each)


def test_backward_twice_and_of_a_scaled_loss():
    logits, labels, _ = random_case(7, 2)
    _, once = value_and_grad(logits, labels)
    logits.requires_grad_()
    loss = ops.product_loss(logits, labels)
    loss.backward(retain_graph=True)
    logits.grad.mul_(5)  # belongs to the leaf alone
    loss.backward(retain_graph=True)
    torch.testing.assert_close(logits.grad, 6 * once)
    (scaled,) = torch.autograd.grad(loss * 1024, logits, retain_graph=True)
    assert torch.equal(scaled, 1024 * once)
    torch.autograd.grad(loss, logits, retain_graph=True)[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_mean_of_nothing_is_nan():
    empty = torch.zeros(0, 2)
    assert ops.product_loss(empty, empty).isnan()
    assert ops.product_loss(empty, empty, reduction="sum") == 0
    assert ops.product_loss(empty, empty, reduction="none").shape == (0,)
    assert ops.product_loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3)).isnan()


# -- against the reference ------------------------------------------------------------------------


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    impressions=st.sampled_from([0, 1, 2, 15, 33, 511, 513, 1100]),
    stages=st.integers(1, 9),
    weighted=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    dtype=st.sampled_from(BOTH),
    seed=st.integers(0, 2**31),
)
def test_matches_reference(instruction_set, impressions, stages, weighted, reduction, dtype, seed):
    logits, labels, weights = random_case(impressions, stages, dtype, seed)
    weights = weights if weighted else None
    ours, grad = value_and_grad(logits, labels, weights, reduction)
    exact = [None if x is None else x.double() for x in (logits, labels, weights)]
    twin, twin_grad = value_and_grad(*exact, reduction, reference.product_loss)
    rtol, atol = (1e-6, 1e-9) if dtype == torch.float32 else (1e-11, 1e-14)
    assert ours.dtype == grad.dtype == dtype
    torch.testing.assert_close(ours.double(), twin, rtol=rtol, atol=atol, equal_nan=True)
    # A gradient is a difference of terms, each at most 1 before it is scaled: its error is theirs.
    scale = (
        1.0
        if reduction != "mean"
        else 1 / max(len(logits) if weights is None else float(weights.sum()), 1e-9)
    )
    torch.testing.assert_close(grad.double(), twin_grad, rtol=rtol, atol=rtol * scale)


def test_gradient_is_the_derivative():
    logits, labels, weights = random_case(5, 3, torch.float64)
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(
            lambda x, reduction=reduction: ops.product_loss(x, labels, weights, reduction),
            logits.requires_grad_(),
        )


# -- accuracy -------------------------------------------------------------------------------------

SIZES = [700, 100, 88, 40, 1, 1e-8, 0]
GRID = sorted({s * float(torch.tensor(x)) for x in SIZES for s in (1, -1)})
ORDINARY = [round(random.Random(i).uniform(-40, 40) * 2**10) / 2**10 for i in range(14)]
FAR = [-1e4, -1000, -745.5, -701, 3, 690, 701, 745.5, 800, 1000]


@cache
def sigmoids(a):
    """Returns sigma(a) and sigma(-a)."""
    e = mpmath.exp(-mpmath.mpf(a))
    return 1 / (1 + e), e / (1 + e)


@cache
def stages_of(logits):
    """Returns -log P_k, -log(1 - P_k) and P_k / (1 - P_k) for each stage."""
    p, result = mpmath.mpf(1), []
    for a in logits:
        p *= sigmoids(a)[0]
        result.append((-mpmath.log(p), -mpmath.log(1 - p), p / (1 - p)))
    return result


def cases(grid, stages):
    """Yields logits and labels: all pairs up to two stages, 120 random combinations beyond."""
    chooser = random.Random(stages)
    if stages <= 2:
        all_logits = list(itertools.product(grid, repeat=stages))
    else:
        all_logits = [tuple(chooser.choices(grid, k=stages)) for _ in range(120)]
    for logits in all_logits:
        yield logits, (1.0,) * (stages - 1) + (0.0,)
        for _ in range(2):
            yield logits, tuple(chooser.choices([0.0, 1.0, 0.3], k=stages))


@cache
def exact_results(dtype, grid, stages):
    """Returns logits, labels [B, K], the values [B], and for each gradient its value and the sum of
    the absolute terms of its stages."""
    tested = list(cases(grid, stages))
    logits = torch.tensor([a for a, _ in tested], dtype=dtype)
    labels = torch.tensor([t for _, t in tested], dtype=dtype)
    values, grads = [], []
    with mpmath.workdps(1000):
        for a, t in zip(logits.tolist(), labels.tolist(), strict=True):
            exact = stages_of(tuple(a))
            t = [mpmath.mpf(x) for x in t]
            values.append(sum(x * e[0] + (1 - x) * e[1] for x, e in zip(t, exact, strict=True)))
            for i in range(stages):
                passed = sigmoids(a[i])[1] * sum(t[i:])
                stopped = sigmoids(a[i])[1] * sum(
                    (1 - t[k]) * exact[k][2] for k in range(i, stages)
                )
                grads.append((stopped - passed, stopped + passed))
    return logits, labels, values, grads


def worst_errors(dtype, grid, stages, relative):
    """Returns the largest error of value and gradient, in units of what is allowed."""
    logits, labels, values, grads = exact_results(dtype, tuple(grid), stages)
    value, grad = value_and_grad(logits, labels, None, "none")
    assert value.isfinite().all()
    assert grad.isfinite().all()
    absolute = 1e-37 if dtype == torch.float32 else 1e-307

    def error(ours, exact, size):
        allowed = relative * size if size >= torch.finfo(dtype).tiny else absolute
        return float(abs(mpmath.mpf(ours) - exact) / allowed)

    with mpmath.workdps(30):
        return (
            max(error(x, v, v) for x, v in zip(value.tolist(), values, strict=True)),
            max(error(x, g, s) for x, (g, s) in zip(grad.flatten().tolist(), grads, strict=True)),
        )


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("grid", "float64"),
    [(GRID, 1e-14), (ORDINARY, 1e-14), (FAR, 1e-12)],
    ids=["within 700", "within 40", "beyond 700"],
)
def test_accuracy_against_a_thousand_digits(instruction_set, grid, float64, stages):
    worst_value, worst_grad = worst_errors(torch.float32, grid, stages, 1e-6)
    assert worst_value <= 1
    assert worst_grad <= 1
    if instruction_set == "baseline":  # float64 is scalar on each
        worst_value, worst_grad = worst_errors(torch.float64, grid, stages, float64)
        assert worst_value <= 1
        assert worst_grad <= 1


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_nan_propagates(instruction_set, dtype, stages):
    for place in range(stages):
        for tensor in (0, 1):
            case = random_case(20, stages, dtype)
            case[tensor][7, place] = torch.nan
            value, grad = value_and_grad(*case[:2], None, "none")
            assert value.isnan().nonzero().tolist() == [[7]]
            assert grad[7, place].isnan()
            assert grad[torch.arange(20) != 7].isfinite().all()
            assert ops.product_loss(*case[:2]).isnan()


# -- what torch asks of an operator ---------------------------------------------------------------


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(reduction, weighted):
    logits, labels, weights = random_case(17, 2)
    torch.library.opcheck(
        torch.ops.esmm_fast.product_loss.default,
        (logits.requires_grad_(), labels, weights if weighted else None, reduction),
    )


def test_bare_operator_has_the_same_gradient():
    logits, labels, weights = random_case(17, 2)
    _, grad = value_and_grad(logits, labels, weights)
    bare = logits.clone().requires_grad_()
    torch.ops.esmm_fast.product_loss(bare, labels, weights, 1)[0].backward()
    assert torch.equal(bare.grad, grad)


def test_compile_whole_graph_for_any_batch():
    counter = torch._dynamo.testing.CompileCounter()

    def step(logits, labels, weights):
        return ops.product_loss(logits * 2, labels, weights)

    traced = torch.compile(step, fullgraph=True, backend=counter)
    compiled = torch.compile(step, fullgraph=True)
    for impressions in (33, 64, 700, 1025):
        case = random_case(impressions, 2)
        traced(*case)
        ours, grad = value_and_grad(*case, loss=lambda x, t, w, _: compiled(x, t, w))
        eager, eager_grad = value_and_grad(*case, loss=lambda x, t, w, _: step(x, t, w))
        torch.testing.assert_close(ours, eager)
        torch.testing.assert_close(grad, eager_grad)
    assert counter.frame_count <= 2  # once for the first batch, once for any


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("stages", [2, 3])
def test_same_bits_for_any_number_of_threads(threads, instruction_set, dtype, reduction, stages):
    case = random_case(20_011, stages, dtype)
    results = []
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        results.append(value_and_grad(*case, reduction))
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_instruction_sets_agree():
    logits, labels, weights = random_case(1000, 2)
    before, results = isa(), []
    for name in ISAS:
        try:
            set_isa(name)
        except ValueError:
            continue
        results.append(value_and_grad(logits, labels, weights, "none"))
    set_isa(before)
    for value, grad in results:  # each within 1e-6 of the exact result
        torch.testing.assert_close(value, results[0][0], rtol=1e-6, atol=0)
        torch.testing.assert_close(grad, results[0][1], rtol=1e-6, atol=1e-7)


def test_strided_logits():
    logits, labels, weights = random_case(100, 2)
    apart = torch.stack([logits, logits], 2)[:, :, 0]
    assert not apart.is_contiguous()
    for ours, twin in zip(
        value_and_grad(apart, labels, weights), value_and_grad(logits, labels, weights), strict=True
    ):
        assert torch.equal(ours, twin)


# -- dtypes and errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_computed_in_float32(dtype):
    logits, labels, _ = random_case(50, 2)
    half = logits.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        value, grad = value_and_grad(half, labels)
    wide, wide_grad = value_and_grad(half.float(), labels)
    assert value.dtype == torch.float32
    assert grad.dtype == dtype
    assert torch.equal(value, wide)
    assert torch.equal(grad, wide_grad.to(dtype))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float64, torch.bfloat16]
)
def test_labels_and_weights_of_any_dtype(dtype):
    logits, labels, _ = random_case(50, 2)
    hard, ones = (labels > 0.5).to(dtype), torch.ones(50).to(dtype)
    assert torch.equal(
        ops.product_loss(logits, hard, ones), ops.product_loss(logits, hard.float(), ones.float())
    )


def test_errors_name_the_argument():
    x = torch.zeros(3, 2)
    for arguments, message in [
        ((x[0], x[0]), r"logits: expected shape \[B, K\] with K >= 1, got \[2\]"),
        ((x[:, :0], x[:, :0]), r"logits: expected shape \[B, K\] with K >= 1, got \[3, 0\]"),
        ((x, x[:2]), r"labels: expected the shape of logits, \[3, 2\], got \[2, 2\]"),
        ((x, x[:, 0]), r"labels: expected the shape of logits, \[3, 2\], got \[3\]"),
        ((x, x, x), r"impression_weights: expected shape \[3\], one per impression, got \[3, 2\]"),
        ((x, x, x[0]), r"impression_weights: expected shape \[3\], one per impression, got \[2\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.product_loss(*arguments)
    with pytest.raises(ValueError, match="reduction: expected 'mean', 'sum' or 'none', got 'avg'"):
        ops.product_loss(x, x, reduction="avg")
    with pytest.raises(
        TypeError, match=r"logits: expected a floating-point dtype, got torch\.int64"
    ):
        ops.product_loss(x.long(), x)
    with pytest.raises(ValueError, match="labels: expected a tensor that needs no gradient"):
        ops.product_loss(x, x.clone().requires_grad_())
    with pytest.raises(ValueError, match="labels: expected the dtype of logits"):
        operators.product_loss(x, x.double(), None, 0)
    with pytest.raises(ValueError, match="reduction: expected 0"):
        operators.product_loss(x, x, None, 3)


@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_transforms_of_torch_func_are_refused(transform):
    labels = torch.ones(3, 2)
    message = f"product_loss: expected no transform of torch.func, got {transform}; take loss"
    with pytest.raises(NotImplementedError, match=message):
        getattr(torch.func, transform)(lambda x: ops.product_loss(x, labels))(torch.zeros(2, 3, 2))


def test_second_derivative_is_refused():
    logits, labels, _ = random_case(3, 2)
    loss = ops.product_loss(logits.requires_grad_(), labels)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(loss, logits, create_graph=True)


# -- CUDA -----------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cuda_matches_cpu(dtype, stages, reduction):
    rtol = 2e-7 if dtype == torch.float32 else 1e-14
    for impressions in (0, 1, 31, 33, 257, 1_000_003):
        case = random_case(impressions, stages, dtype)
        on_device = [x.cuda() for x in case]
        for weights, device_weights in ((None, None), (case[2], on_device[2])):
            value, grad = value_and_grad(*case[:2], weights, reduction)
            ours, ours_grad = value_and_grad(*on_device[:2], device_weights, reduction)
            again, again_grad = value_and_grad(*on_device[:2], device_weights, reduction)
            torch.testing.assert_close(ours.cpu(), value, rtol=rtol * 10, atol=0, equal_nan=True)
            torch.testing.assert_close(ours_grad.cpu(), grad, rtol=rtol, atol=1e-9)
            assert torch.equal(ours.nan_to_num(), again.nan_to_num())
            assert torch.equal(ours_grad, again_grad)


@pytest.mark.cuda
@pytest.mark.parametrize("grid", [GRID, FAR], ids=["within 700", "beyond 700"])
def test_cuda_extreme_logits(grid):
    tested = list(cases(grid, 2))
    logits, labels = (torch.tensor(x) for x in zip(*tested, strict=True))
    value, grad = value_and_grad(logits, labels, None, "none")
    ours, ours_grad = value_and_grad(logits.cuda(), labels.cuda(), None, "none")
    torch.testing.assert_close(ours.cpu(), value, rtol=2e-7, atol=1e-37)
    torch.testing.assert_close(ours_grad.cpu(), grad, rtol=2e-7, atol=1e-37)


@pytest.mark.cuda
def test_cuda_uses_the_current_stream():
    logits, labels, weights = random_case(100_000, 2, device="cuda")
    expected, _ = value_and_grad(logits, labels, weights)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10_000_000)
        copy = logits.clone()
        ours, _ = value_and_grad(copy, labels, weights)
    torch.cuda.synchronize()
    assert torch.equal(ours, expected)


@pytest.mark.cuda
def test_cuda_graph():
    logits, labels, weights = random_case(10_000, 2, device="cuda")
    ops.product_loss(logits, labels, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = ops.product_loss(logits, labels, weights)
    logits.mul_(2)
    graph.replay()
    assert torch.equal(loss, ops.product_loss(logits, labels, weights))


def test_why_cuda_is_unavailable_is_said():
    from esmm_fast import _library

    if torch.version.cuda is None:
        assert _library.cuda_unavailable == f"torch {torch.__version__} has no CUDA"
    else:
        assert _library.cuda_unavailable is None or "CUDA" in _library.cuda_unavailable
