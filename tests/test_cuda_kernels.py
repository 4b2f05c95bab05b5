"""The CUDA kernels themselves, run thread by thread on the CPU (tests/cuda_on_host).

What this cannot show: speed, the memory model between warps, and what nvcc makes of the code.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esmm_fast import ops, reference
from esmm_fast.gradient_queue import KeptGradient
from esmm_fast.ops.embedding_update import RULES
from esmm_fast.plan import Plan
from esmm_fast.reference.embedding_update import row_gradients

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "tests" / "cuda_on_host"
DEFAULTS = {"pool_rows": 4, "pool_warps": 8, "pool_steps": 0, "update_rows": 4, "update_warps": 8,
            "update_steps": 0, "loss_blocks": 0, "loss_float64": 0}  # fmt: skip
STEP = {"grad_factor": 0.5, "step_size": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8,
        "decay": 0.01}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not on this machine")
    folder = tmp_path_factory.mktemp("cuda_on_host")
    command = ["g++", "-std=c++20", "-O1", "-w", "-fPIC", f"-I{HERE}", f"-I{ROOT / 'csrc'}"]
    sources = [HERE / "kernels.cpp", *sorted((ROOT / "csrc" / "kernels").glob("*.cu"))]
    objects = [folder / f"{source.stem}.o" for source in sources]
    running = [
        subprocess.Popen([*command, "-x", "c++", "-c", str(source), "-o", str(target)])
        for source, target in zip(sources, objects, strict=True)
    ]
    assert [process.wait() for process in running] == [0] * len(running)
    path = folder / "kernels.so"
    subprocess.run(["g++", "-shared", *map(str, objects), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.take_status.restype = ctypes.c_char_p
    return library


@pytest.fixture
def device(built: Any) -> Iterator[Any]:
    yield built
    for name, value in DEFAULTS.items():
        assert built.esmm_fast_cuda_tune(name.encode(), value)
    built.set_seed(0)
    assert built.take_status() == b""


def tune(device: Any, **choices: int) -> None:
    for name, value in choices.items():
        assert device.esmm_fast_cuda_tune(name.encode(), value)


def call(
    device: Any, name: str, tensors: list[Tensor | None], sizes: list[int], *more: Any
) -> None:
    """Calls a function of kernels.cpp; it returns whether the scratch was kept within its size."""
    pointers = (ctypes.c_void_p * len(tensors))(
        *[None if t is None else t.data_ptr() for t in tensors]
    )
    numbers = [(ctypes.c_double * len(m))(*m) for m in more]
    kept = getattr(device, name)(pointers, (ctypes.c_int64 * len(sizes))(*sizes), *numbers)
    assert kept & 0xFF, f"{name} wrote behind its scratch"


def name_of(dtype: torch.dtype) -> str:
    return {torch.float32: "float", torch.float64: "double"}[dtype]


@dataclass
class Case:
    """Bags over a table, with values that a float64 reference can compare."""

    weight: Tensor  # [R, D] view of rows at some stride
    plan: Plan
    common_bags: int

    @staticmethod
    def make(
        lengths: list[int],
        *,
        rows: int = 50,
        dim: int = 18,
        stride: int | None = None,
        weighted: bool = True,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> "Case":
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        count = int(offsets[-1])
        picked = torch.randint(0, rows, (count,), generator=generator)
        weights = torch.rand(count, generator=generator, dtype=dtype) + 0.5
        plan = reference.batch_plan(picked, offsets, weights if weighted else None)
        table = torch.full((rows, stride or dim), torch.nan, dtype=dtype)
        table[:, :dim] = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
        return Case(table[:, :dim], plan, len(lengths) // 3)

    def pool(self, device: Any, mean: bool = False, padded: bool = False) -> Tensor:
        weight, plan = self.weight, self.plan
        bags, dim = len(plan.offsets) - 1, weight.shape[1]
        out = torch.full((bags, dim), torch.nan, dtype=weight.dtype)
        tensors = [weight, plan.rows, plan.offsets, plan.weights, plan.bag_of_occurrence,
                   out[: self.common_bags], out[self.common_bags :]]  # fmt: skip
        sizes = [weight.stride(0), dim, self.common_bags, len(weight), bags, len(plan.rows)]
        call(device, f"pool_{name_of(weight.dtype)}", tensors, [*sizes, mean, padded])
        return out

    def expected(self, mean: bool = False) -> Tensor:
        pooled = reference.pooled_embedding(self.weight.double(), self.plan, self.common_bags, mean)
        return torch.cat(pooled)

    def gradient(self) -> KeptGradient:
        plan, dim = self.plan, self.weight.shape[1]
        generator = torch.Generator().manual_seed(5)
        grads = torch.randn(
            len(plan.offsets) - 1, dim, generator=generator, dtype=torch.float64
        ).to(self.weight.dtype)
        return KeptGradient(
            grads[: self.common_bags], grads[self.common_bags :], plan.weights,
            plan.bag_of_occurrence, plan.touched_rows, plan.segment_ptr, plan.occurrence_by_row,
        )  # fmt: skip


def by_row_arguments(gradient: KeptGradient) -> tuple[list[Tensor | None], list[int]]:
    common = len(gradient.grad_common)
    names = ("grad_common", "grad_impression", "weights", "bag_of_occurrence", "segment_ptr",
             "occurrence_by_row")  # fmt: skip
    tensors = [getattr(gradient, name) for name in names]
    sizes = [common, common + len(gradient.grad_impression), gradient.grad_impression.shape[1],
             len(gradient.segment_ptr) - 1, len(gradient.bag_of_occurrence)]  # fmt: skip
    return tensors, sizes


def row_gradients_of(device: Any, gradient: KeptGradient) -> tuple[Tensor, Tensor]:
    tensors, sizes = by_row_arguments(gradient)
    dtype = gradient.grad_impression.dtype
    values = torch.full((sizes[3], sizes[2]), torch.nan, dtype=dtype)
    norm = torch.full((), torch.nan, dtype=torch.float64)
    call(device, f"row_gradients_{name_of(dtype)}", [*tensors, values, norm], sizes)
    return values, norm


def updated(
    device: Any, gradient: KeptGradient, table: Tensor, rule: str, on_device: bool = False
) -> Tensor:
    tensors, sizes = by_row_arguments(gradient)
    table = table.clone()
    numbers = list(STEP.values())
    at = torch.tensor(numbers, dtype=torch.float64) if on_device else None
    if on_device:
        numbers = [torch.nan] * len(numbers)
    call(
        device,
        f"update_{name_of(table.dtype)}",
        [*tensors, table, gradient.touched_rows, at],
        [*sizes, table.shape[1], len(table), RULES[rule]],
        numbers,
    )
    return table


SHAPES = {
    "no bags": [],
    "empty bags": [0, 0, 0],
    "one": [1],
    "31": [1] * 31,
    "33": [1] * 33,
    "mixed": [0, 3, 1, 0, 0, 40, 2, 5, 0, 200, 1, 1, 0],
    "tiles": [1, 0, 2, 1] * 60 + [500, 0, 1, 250] + [3, 0] * 20,
    "long": [1000],
}


@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pooling(device: Any, lengths: list[int], dtype: torch.dtype) -> None:
    for dim, stride in ((18, 18), (18, 20), (4, 4), (7, 9)):
        for mean, weighted in ((False, True), (True, False)):
            case = Case.make(lengths, dim=dim, stride=stride, weighted=weighted, dtype=dtype)
            ours = case.pool(device, mean, padded=stride % 4 == 0)
            tolerance = 1e-12 if dtype == torch.float64 else 1e-4
            torch.testing.assert_close(
                ours.double(), case.expected(mean), rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 16, 18, 33, 64, 100, 128, 130, 255, 256])
def test_every_dimension(device: Any, dim: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        case = Case.make(SHAPES["mixed"] * 2, dim=dim, dtype=dtype)
        torch.testing.assert_close(
            case.pool(device).double(), case.expected(), rtol=tolerance, atol=tolerance
        )
        gradient = case.gradient()
        values, norm = row_gradients_of(device, gradient)
        expected = row_gradients(gradient).double()
        torch.testing.assert_close(values.double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(norm, values.double().square().sum())
        table = torch.rand(len(case.weight), 3 * dim + 1, dtype=dtype) + 0.1
        twin = table.clone().double()
        reference.embedding_update(twin, gradient, "lazy_adam", **STEP)
        ours = updated(device, gradient, table, "lazy_adam")
        torch.testing.assert_close(ours.double(), twin, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("rows", [1, 3, 500])
def test_row_gradients(device: Any, lengths: list[int], rows: int) -> None:
    for weighted in (True, False):
        gradient = Case.make(lengths, rows=rows, weighted=weighted).gradient()
        values, norm = row_gradients_of(device, gradient)
        torch.testing.assert_close(values, row_gradients(gradient), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(norm, row_gradients(gradient).square().sum())


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("rows", [1, 3, 500])
def test_update(device: Any, rule: str, rows: int) -> None:
    for name in ("no bags", "33", "tiles"):
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-3)):
            for stride in (55, 56):
                gradient = Case.make(SHAPES[name], rows=rows, dtype=dtype).gradient()
                table = torch.rand(rows, stride, dtype=dtype) + 0.1
                twin = table.clone().double()
                reference.embedding_update(twin, gradient, rule, **STEP)
                ours = updated(device, gradient, table, rule)
                torch.testing.assert_close(ours.double(), twin, rtol=tolerance, atol=tolerance)
                again = updated(device, gradient, table, rule, on_device=True)
                torch.testing.assert_close(again, ours, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["pool", "update"])
def test_every_cut(device: Any, kind: str) -> None:
    """Rows in flight, warps and steps change the order of sums, nothing else."""
    case = Case.make(SHAPES["tiles"], rows=40, dtype=torch.float32, stride=20)
    gradient = case.gradient()
    for rows in (2, 4, 8):
        for warps in (1, 3):
            for steps in (0, 5):
                tune(device, **{f"{kind}_rows": rows, f"{kind}_warps": warps})
                tune(device, **{f"{kind}_steps": steps})
                if kind == "pool":
                    ours, twin = case.pool(device, padded=True), case.expected()
                else:
                    ours, twin = row_gradients_of(device, gradient)[0], row_gradients(gradient)
                torch.testing.assert_close(ours.double(), twin.double(), rtol=1e-4, atol=1e-4)


def test_same_bits_in_any_order_of_threads(device: Any) -> None:
    case = Case.make(SHAPES["tiles"], rows=40, dtype=torch.float32)
    gradient, table = case.gradient(), torch.rand(40, 56)
    results = []
    for seed in range(3):
        device.set_seed(seed)
        results.append(
            [
                case.pool(device),
                *row_gradients_of(device, gradient),
                *[updated(device, gradient, table, rule) for rule in sorted(RULES)],
            ]
        )
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_a_bag_and_a_row_of_100_000(device: Any) -> None:
    case = Case.make([2, 100_000, 1], rows=1, dim=1)
    torch.testing.assert_close(case.pool(device), case.expected(), rtol=1e-10, atol=1e-10)
    gradient = case.gradient()
    values, _ = row_gradients_of(device, gradient)
    torch.testing.assert_close(values, row_gradients(gradient), rtol=1e-10, atol=1e-10)


def test_gradient_of_weights(device: Any) -> None:
    for lengths in SHAPES.values():
        case = Case.make(lengths, stride=21)
        gradient, plan = case.gradient(), case.plan
        tensors, sizes = by_row_arguments(gradient)
        out = torch.full((len(plan.rows),), torch.nan, dtype=torch.float64)
        call(
            device,
            "occurrence_gradients_double",
            [*tensors, case.weight, plan.rows, out],
            [*sizes, case.weight.stride(0), len(case.weight)],
        )
        grads = torch.cat([gradient.grad_common, gradient.grad_impression])
        expected = (grads[plan.bag_of_occurrence] * case.weight[plan.rows]).sum(1)
        torch.testing.assert_close(out, expected)


def test_bad_indices_are_left_out_and_reported(device: Any) -> None:
    case = Case.make([2, 3, 1])
    case.plan.rows[3] = 50
    ours = case.pool(device)
    assert b"rows[3] = 50 is outside the table" in device.take_status()
    case.plan.rows[3] = 0
    assert case.plan.weights is not None
    case.plan.weights[3] = 0
    torch.testing.assert_close(ours, case.expected())

    gradient = Case.make([2, 3, 1]).gradient()
    table = torch.rand(50, 54, dtype=torch.float64)
    gradient.occurrence_by_row[2] = -7
    gradient.bag_of_occurrence[0] = 9
    gradient.touched_rows[0] = 50
    assert updated(device, gradient, table, "lazy_adam").isfinite().all()
    message = device.take_status()
    assert b"is outside the batch" in message and device.take_status() == b""
    for name, index in (("occurrence_by_row", 2), ("touched_rows", 0)):
        damaged = Case.make([2, 3, 1]).gradient()
        getattr(damaged, name)[index] = 2**31 - 1
        updated(device, damaged, table, "sgd")
        assert f"{name}[{index}] = 2147483647 is outside".encode() in device.take_status()


@pytest.mark.parametrize("name", ["segment_ptr", "touched_rows"])
def test_what_does_not_ascend_is_left_out_and_reported(device: Any, name: str) -> None:
    gradient = Case.make([2, 3, 1, 40]).gradient()
    bounds = getattr(gradient, name)
    bounds[3] = bounds[2] if name == "touched_rows" else bounds[2] - 1
    if name == "segment_ptr":
        values, _ = row_gradients_of(device, gradient)
        assert values.isfinite().all()
    else:
        table = torch.rand(50, 54, dtype=torch.float64)
        assert updated(device, gradient, table, "lazy_adam").isfinite().all()
    message = device.take_status().decode()
    assert f"{name}[3] = {int(bounds[3])} is outside the ascending order" in message


def test_every_cut_fits_into_shared_memory(device: Any) -> None:
    device.shared_bytes.restype = ctypes.c_int64
    for items in (0, 1, 2**22 - 1, 2**22, 2**24, 2**31 - 1):
        for dim in (1, 2, 3, 4, 18, 64, 256):
            for vector, wide in ((1, 0), (2, 0), (4, 0), (1, 1), (2, 1)):
                for tuning in ((4, 8, 0), (8, 8, 0), (2, 1, 0), (8, 8, 8), (4, 8, 100)):
                    sizes = (ctypes.c_int64 * 7)(items, dim, vector, wide, *tuning)
                    assert 0 < device.shared_bytes(sizes) <= 47 * 1024, list(sizes)


@pytest.mark.parametrize("dim", [1, 4, 18, 19])
def test_initial_rows_have_the_bits_of_the_cpu(device: Any, dim: int) -> None:
    ids = torch.randint(-(2**63), 2**63 - 1, (37,))
    ours, twin = torch.full((37, 20), torch.nan), torch.full((37, 20), torch.nan)
    device.init_float(
        *[ctypes.c_void_p(t.data_ptr()) for t in (ours, ids)],
        *[ctypes.c_int64(n) for n in (37, 20, dim, -7)],
        ctypes.c_double(0.01),
    )
    ops.embedding_init(twin[:, :dim], ids, key=-7, std=0.01)
    assert torch.equal(ours.view(torch.int32), twin.view(torch.int32))


def plan_of(device: Any, rows: Tensor, offsets: Tensor, num_rows: int) -> tuple[int, list[Tensor]]:
    n = len(rows)
    found = [torch.full((size,), -9, dtype=torch.int32) for size in (n, n, n, n + 1, n)]
    tensors = [rows, offsets.int(), *found]
    pointers = (ctypes.c_void_p * 7)(*[t.data_ptr() for t in tensors])
    device.plan.restype = ctypes.c_int64
    return device.plan(pointers, (ctypes.c_int64 * 3)(n, len(offsets) - 1, num_rows)), found


@pytest.mark.parametrize("num_rows", [1, 3, 500, 2**31 - 1])
def test_plan(device: Any, num_rows: int) -> None:
    for lengths in SHAPES.values():
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        rows = torch.randint(0, num_rows, (int(offsets[-1]),))
        touched, found = plan_of(device, rows, offsets, num_rows)
        twin = reference.batch_plan(rows, offsets)
        assert touched == len(twin.touched_rows)
        names = ("bag_of_occurrence", "occurrence_by_row", "touched_rows", "segment_ptr",
                 "touched_of_occurrence")  # fmt: skip
        for name, ours in zip(names, found, strict=True):
            expected = getattr(twin, name)
            assert torch.equal(ours[: len(expected)], expected), name


def test_plan_finds_the_first_bad_row_and_offset(device: Any) -> None:
    good = torch.tensor([0, 2, 4])
    for rows, offsets, expected in (
        ([1, 9, 9, 2], good, -2),
        ([1, 2, 3, -1], good, -4),
        ([1, 2, 3, 4], torch.tensor([0, 3, 2, 4]), -(2**40) - 2),
        ([1, 2, 3, 4], torch.tensor([1, 3, 4]), -(2**40)),
        ([1, 2, 3, 4], torch.tensor([0, 3]), -(2**40) - 1),
    ):
        assert plan_of(device, torch.tensor(rows), offsets, 9)[0] == expected


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [4.0, 30.0, 300.0])
def test_loss(device: Any, stages: int, size: float) -> None:
    for impressions in (0, 1, 31, 33, 515):
        generator = torch.Generator().manual_seed(impressions)
        logits = (torch.rand(impressions, stages, generator=generator) * 2 - 1) * size
        labels = (torch.rand(impressions, stages, generator=generator) < 0.3).float()
        labels[::4] = torch.rand(len(labels[::4]), stages, generator=generator)
        weights = torch.rand(impressions, generator=generator) + 0.1
        for reduction in ("none", "mean", "sum"):
            a = logits.double().requires_grad_()
            value = ops.product_loss(a, labels, weights, reduction)  # type: ignore[arg-type]
            (expected,) = torch.autograd.grad(value.sum(), a)
            passed = labels.double().flip(1).cumsum(1).flip(1)
            scale = weights.double().unsqueeze(1)
            if reduction == "mean":
                scale = scale / scale.sum()
            negative = (-logits.double()).sigmoid() * passed * scale
            terms = (expected + negative).abs() + negative
            for name in ("float", "double"):
                dtype = torch.float32 if name == "float" else torch.float64
                rtol = 1e-6 if name == "float" else 1e-13
                given = [t.to(dtype).contiguous() for t in (logits, labels, weights)]
                loss = torch.full(value.shape, torch.nan, dtype=dtype)
                grad = torch.full(logits.shape, torch.nan, dtype=dtype)
                sizes = [impressions, stages, reduction == "mean", reduction != "none"]
                call(device, f"loss_{name}", [*given, loss, grad], sizes)
                torch.testing.assert_close(
                    loss.double(), value.detach(), rtol=rtol, atol=1e-37, equal_nan=True
                )
                assert ((grad.double() - expected).abs() <= rtol * terms + 1e-37).all()
