"""Every CUDA operator against float64 on fresh random inputs, over poisoned memory.

An error passes where it is at most twice that of plain PyTorch in float32, plus a rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from esmm_fast import ops, reference
from esmm_fast.gradient_queue import KeptGradient
from esmm_fast.ops.embedding_update import RULES
from esmm_fast.plan import Plan
from esmm_fast.reference.embedding_update import row_gradients

STEP = {"grad_factor": 0.5, "step_size": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8,
        "decay": 0.01}  # fmt: skip
DIMS = (1, 3, 4, 16, 18, 20, 64, 100, 128, 256)
DEVICE = "cuda"  # "cpu" checks the CPU operators, and that these checks are right themselves
LENGTHS: dict[str, list[int]] = {
    "none": [],
    "empty": [0, 0, 0],
    "1": [1],
    "31": [1] * 31,
    "33": [1] * 33,
    "mixed": [0, 3, 1, 0, 0, 40, 2, 5, 0, 700, 1, 1, 0] * 20,
    "many": [1, 0, 2, 7, 0, 0, 1, 30] * 5_000,
    "1e5": [2, 0, 100_000, 1],
}


def poison() -> None:
    """Fills the allocator's free memory with NaN, which the next outputs and scratch will hold."""
    if DEVICE == "cpu":
        return
    kept = [torch.full((1 << n,), torch.nan, device=DEVICE) for n in range(6, 26)]
    kept += [torch.full((1 << 16,), torch.nan, device=DEVICE) for _ in range(64)]
    del kept


def close(ours: Tensor, plain: Tensor, exact: Tensor, what: str) -> None:
    """Raises unless `ours` is about as near to `exact` as `plain` is."""
    if ours.numel() == 0:
        return
    scale = float(exact.abs().max()) + 1e-30
    error = float((ours.double() - exact).abs().max())
    allowed = 2 * float((plain.double() - exact).abs().max()) + 1e-6 * scale
    if ours.dtype == torch.float64:
        allowed = 1e-11 * scale
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g} ({scale:.3g})"


def make_plan(lengths: list[int], rows: int, weighted: bool, seed: int) -> Plan:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(DEVICE)
    count = int(offsets[-1])
    picked = torch.randint(0, rows, (count,), generator=generator, device=DEVICE)
    weights = torch.rand(count, generator=generator, device=DEVICE) + 0.5 if weighted else None
    return reference.batch_plan(picked, offsets, weights)


def exact_plan(plan: Plan) -> Plan:
    return replace(plan, weights=None if plan.weights is None else plan.weights.double())


def pooling_and_gradients(
    lengths: list[int], rows: int, dim: int, stride: int, dtype: torch.dtype, seed: int
) -> None:
    """Forward, both gradients and the squared norm, twice with equal bits."""
    mean, weighted = seed % 2 == 0, seed % 3 != 0
    plan = make_plan(lengths, rows, weighted, seed)
    common_bags = len(lengths) // 3
    what = f"{len(lengths)} bags, {len(plan.rows)} occurrences, R={rows} D={dim}/{stride} {dtype}"
    table = torch.full((rows, stride), torch.nan, device=DEVICE, dtype=dtype)
    table[:, :dim] = torch.randn(rows, dim, device=DEVICE)
    weight = table[:, :dim]
    grads = torch.randn(len(lengths), dim, device=DEVICE, dtype=dtype)

    def all_of(pool: Callable[..., Any], w: Tensor, p: Plan) -> list[Tensor]:
        w = w.detach().requires_grad_()
        inputs = [w]
        if p.weights is not None:
            p = replace(p, weights=p.weights.to(w.dtype).requires_grad_())
            inputs.append(p.weights)  # type: ignore[arg-type]
        pooled = torch.cat(pool(w, p, common_bags, mean))
        found = torch.autograd.grad(pooled, inputs, grads.to(w.dtype))
        return [pooled.detach(), *found]

    poison()
    ours = all_of(ops.pooled_embedding, weight, plan)
    again = all_of(ops.pooled_embedding, weight, plan)
    plain = all_of(reference.pooled_embedding, weight.contiguous(), plan)
    exact = all_of(reference.pooled_embedding, weight.double(), exact_plan(plan))
    for name, a, b, c, d in zip(("pooled", "grad", "grad of weights"), ours, again, plain, exact,
                                strict=False):  # fmt: skip
        assert torch.equal(a, b), f"{name}: two runs differ: {what}"
        close(a, c, d, f"{name}: {what}")


def kept(lengths: list[int], rows: int, dim: int, dtype: torch.dtype, seed: int) -> KeptGradient:
    plan = make_plan(lengths, rows, seed % 2 == 0, seed)
    grads = torch.randn(len(lengths), dim, device=DEVICE, dtype=dtype)
    cut = len(lengths) // 3
    weights = None if plan.weights is None else plan.weights.to(dtype)
    return KeptGradient(grads[:cut].clone(), grads[cut:].clone(), weights, plan.bag_of_occurrence,
                        plan.touched_rows, plan.segment_ptr, plan.occurrence_by_row)  # fmt: skip


def update(
    lengths: list[int], rows: int, dim: int, stride: int, dtype: torch.dtype, seed: int
) -> None:
    """Each rule against its reference; twice, and with numbers on the device, with equal bits."""
    gradient = kept(lengths, rows, dim, dtype, seed)
    exact_gradient = gradient.to(lambda t: t.double())
    for rule in RULES:
        what = f"{rule}: {len(lengths)} bags, R={rows} D={dim}/{stride} {dtype}"
        table = torch.rand(rows, stride, device=DEVICE, dtype=dtype) + 0.1
        exact, plain = table.clone().double(), table.clone()
        reference.embedding_update(exact, exact_gradient, rule, **STEP)
        reference.embedding_update(plain, gradient, rule, **STEP)
        poison()
        ours, again, by_tensor = table.clone(), table.clone(), table.clone()
        ops.embedding_update(ours, gradient, rule, **STEP)
        ops.embedding_update(again, gradient, rule, **STEP)
        numbers = torch.tensor(list(STEP.values()), dtype=torch.float64, device=DEVICE)
        tensors = [getattr(gradient, name) for name in KeptGradient.__dataclass_fields__]
        if DEVICE == "cuda":
            torch.ops.esmm_fast.embedding_update_by_tensor(
                by_tensor, *tensors, RULES[rule], numbers
            )
        else:
            by_tensor = ours
        assert torch.equal(ours, again) and torch.equal(ours, by_tensor), what
        close(ours, plain, exact, what)
    values = gradient.row_gradients()
    close(values, row_gradients(gradient), row_gradients(exact_gradient), "row gradients")
    norm, expected = gradient.squared_norm(), float(values.double().square().sum())
    assert abs(norm - expected) <= 1e-12 * expected, f"squared norm {norm}, expected {expected}"


def initial_rows() -> None:
    ids = torch.randint(-(2**63), 2**63 - 1, (1000,))
    for dim in DIMS:
        for dtype in (torch.float32, torch.float64):
            here, there = torch.empty(1000, dim, dtype=dtype), torch.empty(1000, dim, dtype=dtype)
            there = there.to(DEVICE)
            ops.embedding_init(here, ids, key=-5, std=0.01)
            ops.embedding_init(there, ids.to(DEVICE), key=-5, std=0.01)
            assert torch.equal(here, there.cpu()), f"initial rows differ in bits: D={dim} {dtype}"


def plans() -> None:
    for lengths in LENGTHS.values():
        for rows in (1, 50, 3_000_000, 2**31 - 2):
            for dtype in (torch.int32, torch.int64):
                offsets = torch.tensor([0, *lengths]).cumsum(0).to(dtype)
                picked = torch.randint(0, rows, (int(offsets[-1]),)).to(dtype)
                here = ops.batch_plan(picked, offsets, num_rows=rows)
                poison()
                there = ops.batch_plan(picked.to(DEVICE), offsets.to(DEVICE), num_rows=rows)
                for name in Plan.__dataclass_fields__:
                    a, b = getattr(here, name), getattr(there, name)
                    assert a is b or torch.equal(a, b.cpu()), f"plan.{name}, R={rows}"
    for rows, offsets in (([1, 9], [0, 2]), ([1, 2], [0, 2, 1]), ([1, 2], [0, 1])):
        try:
            ops.batch_plan(
                torch.tensor(rows).to(DEVICE), torch.tensor(offsets).to(DEVICE), num_rows=9
            )
        except (RuntimeError, ValueError, IndexError):
            continue
        raise AssertionError(f"batch_plan took rows {rows}, offsets {offsets}")


def losses() -> None:
    """Value and gradient of the loss against float64 on the CPU, within 1e-6 of their terms."""
    for stages in (1, 2, 3, 4, 7):
        for impressions in (0, 1, 31, 33, 4_099, *([] if DEVICE == "cpu" else [1_000_003])):
            for size in (3.0, 60.0, 700.0):
                logits = (torch.rand(impressions, stages) * 2 - 1) * size
                labels = (torch.rand(impressions, stages) < 0.3).float()
                labels[::3] = torch.rand(len(labels[::3]), stages)
                for reduction in ("none", "mean", "sum"):
                    check_loss(logits, labels, reduction)


def check_loss(logits: Tensor, labels: Tensor, reduction: Any) -> None:
    def both(a: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        a = a.detach().requires_grad_()
        value = ops.product_loss(a, t, None, reduction)
        return value.detach().cpu(), torch.autograd.grad(value.sum(), a)[0].cpu()

    poison()
    value, grad = both(logits.to(DEVICE), labels.to(DEVICE))
    again, again_grad = both(logits.to(DEVICE), labels.to(DEVICE))
    exact, exact_grad = both(logits.double(), labels.double())
    assert torch.equal(value.nan_to_num(), again.nan_to_num()) and torch.equal(grad, again_grad)
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-37, equal_nan=True)
    negative = negative_terms(logits, labels.double(), reduction)
    allowed = 1e-6 * ((exact_grad + negative).abs() + negative) + 1e-37
    worst = (
        ((grad.double() - exact_grad).abs() - allowed).max() if grad.numel() else torch.zeros(())
    )
    assert worst <= 0, f"product_loss: gradient off by {float(worst):.3g} more than allowed"


def negative_terms(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """The sum of a gradient's negative terms, as a positive number: sigma(-a_i) sum_{k>=i} t_k."""
    passed = labels.flip(1).cumsum(1).flip(1)
    scale = 1 / max(1, len(logits)) if reduction == "mean" else 1.0
    return (-logits.double()).sigmoid() * passed * scale


def bad_rows() -> None:
    """A row outside the table is left out, said by the next call, and corrupts nothing."""
    plan = make_plan([2, 3], 9, True, 0)
    plan.rows[3] = 9
    pooled = torch.cat(ops.pooled_embedding(torch.ones(9, 18, device=DEVICE), plan, 1))
    torch.cuda.synchronize()
    assert bool(pooled.isfinite().all())
    try:
        ops.pooled_embedding(torch.ones(9, 18, device=DEVICE), make_plan([1], 9, True, 0), 0)
    except IndexError as error:
        assert "rows[3] = 9 is outside the table" in str(error), error
    else:
        raise AssertionError("a bad row was not reported")


def graphs_and_streams() -> None:
    """A captured step gives the eager step's bits; calls run on the current stream."""
    gradient, table = kept(LENGTHS["many"], 5_000, 18, torch.float32, 1), torch.rand(5_000, 56)
    plan, table = make_plan(LENGTHS["many"], 5_000, True, 1), table.to(DEVICE)
    numbers = torch.tensor(list(STEP.values()), dtype=torch.float64, device=DEVICE)
    tensors = [getattr(gradient, name) for name in KeptGradient.__dataclass_fields__]

    def step(on: Tensor) -> Tensor:
        common, impression = ops.pooled_embedding(on[:, :18], plan, 100)
        torch.ops.esmm_fast.embedding_update_by_tensor(on, *tensors, 3, numbers)
        return torch.cat([common, impression])

    eager = table.clone()
    expected = [step(eager), step(eager)]
    replayed, start = table.clone(), table.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(start)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(replayed)
    replayed.copy_(table)
    for each in expected:
        graph.replay()
        assert torch.equal(out, each), "graph and eager step differ"
    assert torch.equal(replayed, eager)


def training() -> None:
    """EmbeddingTables, LazyAdam and ESMM on the GPU follow the CPU."""
    import cuda_data

    from esmm_fast import ESMM
    from esmm_fast.optim import LazyAdam

    fields = cuda_data.schema()
    small = type(fields)(tuple(replace(f, rows=min(f.rows or 1, 2_000)) for f in fields.fields))
    batch = cuda_data.make(512, 3, device=DEVICE).batch
    rows = batch.plan.rows % sum(small.table_rows.values())
    plan = ops.batch_plan(rows, batch.plan.offsets, batch.plan.weights)
    batch = replace(batch, plan=plan)
    models = [ESMM(small, hidden=(32, 16)).to(device) for device in ("cpu", DEVICE)]
    for model in models:
        tables = LazyAdam(model, lr=0.01)
        towers = torch.optim.SGD(model.tower_parameters(), lr=0.01)
        local = batch.to(next(model.parameters()).device)
        for _ in range(3):
            model.loss(model(local), local).backward()
            for optimizer in (tables, towers):
                optimizer.step()
                optimizer.zero_grad()
    for (name, here), there in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(here, there.cpu(), rtol=1e-3, atol=2e-4, msg=name)


def run(report: Callable[[str], None]) -> int:
    """Runs all checks; returns how many. Raises at the first that fails."""
    count, small = 0, DEVICE == "cpu"
    lengths = {k: v for k, v in LENGTHS.items() if not small or len(v) < 100}
    for dtype in (torch.float32, torch.float64):
        for name, each in lengths.items():
            for rows in (1, 3, 700):
                for dim in DIMS if name in ("33", "mixed") and not small else (18,):
                    for stride in (dim, dim + 2, -(-3 * dim // 8) * 8):
                        pooling_and_gradients(each, rows, dim, stride, dtype, count)
                        update(each, rows, dim, 3 * dim + (stride - dim) % 4, dtype, count)
                        count += 1
        report(f"pooling, gradients, updates in {dtype}: {count} cases")
    for rows in () if small else (1, 1_000_000):
        pooling_and_gradients([10_000_000 // 64] * 64, rows, 18, 20, torch.float32, 1)
        count += 1
    others = [initial_rows, plans, losses, training]
    if not small:
        others += [bad_rows, graphs_and_streams]
    for check in others:
        check()
        count += 1
        report(f"{check.__name__.replace('_', ' ')}: right")
    return count
