"""Builds the CUDA operators, checks them, and prints one table of times: one command on a GPU.

    python bench/cuda.py                  build where needed, check, time
    python bench/cuda.py --sweep          also every choice of the kernels' cut (cuda_tuning.h)
    python bench/cuda.py --only check     or time, sweep
    python bench/cuda.py --device cpu     the checks alone, on the CPU operators

It needs nvcc, cmake, ninja, PyTorch with CUDA and NumPy, and no network: cmake finds the PyTorch
that runs this script. Times are medians of event timings, each over enough calls to last 2 ms, with
16 batches in turn; `graph` replays captured graphs, `eager` calls from Python. Records go to
$OUT/cuda.json, or to bench/results/cuda.json.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
DIM = 18
ROTATION = 16  # batches in turn
LR = 1e-3
Call = Callable[[], object]
Row = dict[str, Any]
TUNED = {"pool_rows": 4, "pool_warps": 8, "pool_steps": 0, "update_rows": 4, "update_warps": 8,
         "update_steps": 0, "update_prefetch": 1, "loss_blocks": 0, "loss_float64": 0}  # fmt: skip


def build(architectures: str) -> float:
    """Builds the operator libraries into the package where they are older than the sources."""
    begin = time.perf_counter()
    folder = ROOT / "build-gpu"
    options = ["-DESMM_FAST_INPLACE=ON", "-DESMM_FAST_CUDA=ON", "-DESMM_FAST_NATIVE=OFF"]
    commands = [
        ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *options,
         f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}"],
        ["cmake", "--build", str(folder), "--target", "esmm_fast_cpu", "esmm_fast_cuda"],
    ]  # fmt: skip
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-6000:]}")
    return time.perf_counter() - begin


def timed(calls: Sequence[Call], graph: bool = False, samples: int = 15) -> float:
    """Returns the median seconds of one call, with `calls` in turn."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    if graph:
        graphs = []
        for call in calls:
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[-1]):
                call()
        calls = [each.replay for each in graphs]
    turn = itertools.cycle(calls)

    def sample(repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            next(turn)()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats

    sample(len(calls))
    repeats = max(len(calls), round(2e-3 / max(sample(len(calls)), 1e-7)))
    return statistics.median(sample(repeats) for _ in range(samples))


def copy_bandwidth(count: int = 2**30) -> float:
    """Returns bytes per second, read and written, of a device-to-device copy."""
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * count / timed([lambda: target.copy_(source)])


class Step:
    """Batches, a table with Adam's state beside its rows, and gradients of the pooled outputs."""

    def __init__(self, made: list[Any], stride: int, rows: int) -> None:
        from esmm_fast.gradient_queue import KeptGradient

        self.made = made
        self.table = torch.zeros(rows, stride, device="cuda")
        self.table[:, :DIM].normal_(0, 0.01)
        self.numbers = torch.tensor(
            [1.0, LR, 0.9, 0.999, 1e-8, 0.0], dtype=torch.float64, device="cuda"
        )
        self.common = [m.batch.common * 13 for m in made]
        self.kept = []
        for m, common in zip(made, self.common, strict=True):
            p = m.batch.plan
            grads = torch.randn(len(p.offsets) - 1, DIM, device="cuda") * 1e-3
            self.kept.append(
                KeptGradient(grads[:common].clone(), grads[common:].clone(), p.weights,
                             p.bag_of_occurrence, p.touched_rows, p.segment_ptr,
                             p.occurrence_by_row)
            )  # fmt: skip

    def forward(self, i: int) -> Any:
        from esmm_fast import ops

        return ops.pooled_embedding(self.table[:, :DIM], self.made[i].batch.plan, self.common[i])

    def update(self, i: int) -> None:
        from esmm_fast.ops.embedding_update import RULES

        kept = self.kept[i]
        torch.ops.esmm_fast.embedding_update_by_tensor(
            self.table, *[getattr(kept, n) for n in kept.__dataclass_fields__],
            RULES["lazy_adam"], self.numbers,
        )  # fmt: skip

    def both(self, i: int) -> None:
        self.forward(i)
        self.update(i)

    def calls(self, name: str) -> list[Call]:
        return [lambda i=i: getattr(self, name)(i) for i in range(len(self.made))]  # type: ignore[misc]

    def bytes(self) -> dict[str, float]:
        """Mean bytes of a call: what the work names, and what must come from or go to DRAM."""
        n, t, bags = (
            statistics.mean(len(getattr(m.batch.plan, name)) for m in self.made)
            for name in ("rows", "touched_rows", "offsets")
        )
        row = DIM * 4
        forward = n * (row + 12) + bags * (row + 4)
        update = n * (row + 12) + t * (6 * row + 8)
        return {
            "forward": forward, "update": update, "both": forward + update,
            "forward DRAM": t * row + n * 12 + bags * (row + 4),
            "update DRAM": n * 12 + bags * row + t * (6 * row + 8),
        }  # fmt: skip


def embedding_rows(bandwidth: float, peers: bool) -> tuple[list[Row], dict[str, Step]]:
    """The embedding rows of the table, and their steps for the sweep."""
    import cuda_data

    rows = sum(cuda_data.schema().table_rows.values())
    cases = {
        "whole groups, zipf": (cuda_data.PER_COMMON_ROW, "zipf", ROTATION),
        "joined, uniform": (1.0, "uniform", 4),
        "joined, zipf": (1.0, "zipf", 4),
    }
    table: list[Row] = []
    steps: dict[str, Step] = {}
    for name, (group, ids, count) in cases.items():
        made = [cuda_data.make(8192, seed, group, ids) for seed in range(count)]
        for stride in (64, 56):  # 256 and 224 bytes
            step = steps[name] = Step(made, stride, rows)
            moved = step.bytes()
            for part in ("forward", "update", "both"):
                graph, eager = timed(step.calls(part), graph=True), timed(step.calls(part))
                row = {"work": f"{part}, {name}, stride {stride}", "batch": str(made[0]),
                       "graph": graph, "eager": eager, "bytes": moved[part],
                       "of copy": moved[part] / graph / bandwidth}  # fmt: skip
                if f"{part} DRAM" in moved:
                    row["of copy, DRAM"] = moved[f"{part} DRAM"] / graph / bandwidth
                table.append(row)
        if peers:
            ours = table[-1]["eager"]
            for peer, seconds in peer_times(made, rows, dense=group > 1).items():
                table.append({"work": f"{peer}, {name}", "eager": seconds,
                              "ratio": seconds / ours})  # fmt: skip
        torch.cuda.empty_cache()
    return table, steps


def peer_times(made: list[Any], rows: int, dense: bool) -> dict[str, float]:
    """nn.EmbeddingBag over all fields in one table: forward, backward and step, eager."""
    from torch import nn

    kinds: dict[str, tuple[bool, Callable[[Any], Any]]] = {
        "EmbeddingBag + SparseAdam": (True, lambda p: torch.optim.SparseAdam(p, lr=LR))
    }
    if dense:
        kinds["EmbeddingBag + dense fused Adam"] = (
            False,
            lambda p: torch.optim.Adam(p, lr=LR, fused=True),
        )
    times = {}
    for name, (sparse, optimizer_of) in kinds.items():
        bag = nn.EmbeddingBag(rows, DIM, mode="sum", sparse=sparse, include_last_offset=True,
                              device="cuda")  # fmt: skip
        optimizer = optimizer_of(list(bag.parameters()))

        def call(m: Any, bag: Any = bag, optimizer: Any = optimizer) -> None:
            p = m.batch.plan
            out = bag(p.rows, p.offsets, per_sample_weights=p.weights)
            out.backward(torch.ones_like(out))
            optimizer.step()
            optimizer.zero_grad()

        times[name] = timed([lambda m=m: call(m) for m in made], samples=5)  # type: ignore[misc]
    return times


def loss_rows(bandwidth: float) -> list[Row]:
    """The loss against a copy of equal bytes, plain PyTorch and torch.compile."""
    from esmm_fast import ops

    def plain(a: Any, t: Any) -> Any:
        p = a.sigmoid().cumprod(1).clamp(1e-7, 1 - 1e-7)
        return torch.nn.functional.binary_cross_entropy(p, t, reduction="sum") / len(a)

    compiled = torch.compile(plain)
    table: list[Row] = []
    for impressions in (2**16, 2**24):
        count = 4 if impressions > 2**20 else ROTATION
        pairs = [
            (torch.randn(impressions, 2, device="cuda", requires_grad=True),
             (torch.rand(impressions, 2, device="cuda") < 0.04).float())
            for _ in range(count)
        ]  # fmt: skip
        moved = impressions * 24.0
        calls = [
            lambda a=a, t=t: torch.ops.esmm_fast.product_loss(a.detach(), t, None, 1)
            for a, t in pairs
        ]
        row: Row = {"work": f"product loss, kernel, B={impressions}", "bytes": moved}
        row |= {"graph": timed(calls, graph=True), "eager": timed(calls)}  # type: ignore[arg-type]
        row["of copy"] = moved / row["graph"] / bandwidth
        table.append(row)
        with_autograd: dict[str, Callable[[Any, Any], Any]] = {
            "ours": ops.product_loss,
            "plain PyTorch": plain,
            "torch.compile": compiled,
        }
        seconds = {
            name: timed([lambda a=a, t=t, f=f: torch.autograd.grad(f(a, t), a) for a, t in pairs])  # type: ignore[misc]
            for name, f in with_autograd.items()
        }
        for name, each in seconds.items():
            work = f"product loss, forward + backward, {name}, B={impressions}"
            table.append({"work": work, "eager": each, "ratio": each / seconds["ours"]})
    return table


def model_rows() -> list[Row]:
    """A whole training step of ESMM with bfloat16 towers, eager, and its towers alone."""
    import cuda_data

    from esmm_fast import ESMM
    from esmm_fast.optim import LazyAdam

    table: list[Row] = []
    for impressions in (8192, 65536):
        made = [cuda_data.make(impressions, seed) for seed in range(4)]
        model = ESMM(cuda_data.schema()).to("cuda")
        towers = torch.optim.Adam(model.tower_parameters(), lr=LR, fused=True)
        fused = LazyAdam(model, lr=LR)

        def whole(m: Any, model: Any = model, towers: Any = towers, fused: Any = fused) -> None:
            with torch.autocast("cuda", torch.bfloat16):
                out = model(m.batch)
            model.loss(out, m.batch).backward()
            for optimizer in (fused, towers):
                optimizer.step()
                optimizer.zero_grad()

        def tower_alone(m: Any, model: Any = model, towers: Any = towers) -> None:
            from esmm_fast.tower import tower_logits

            with torch.autocast("cuda", torch.bfloat16):
                logits = tower_logits(model._towers(), *m.pooled, m.batch.common_of_impression)
            logits.sum().backward()
            towers.step()
            towers.zero_grad()

        for m in made:
            pooled = [p.detach().requires_grad_() for p in model.tables(m.batch)]
            object.__setattr__(m, "pooled", pooled)
        for name, call in (("whole step", whole), ("towers alone", tower_alone)):
            seconds = timed([lambda m=m, call=call: call(m) for m in made], samples=7)  # type: ignore[misc]
            table.append({"work": f"ESMM {name}, bf16 towers", "batch": str(made[0]),
                          "eager": seconds, "impressions/s": impressions / seconds})  # fmt: skip
    return table


def tune(library: ctypes.CDLL, **choices: int) -> None:
    for name, value in choices.items():
        assert library.esmm_fast_cuda_tune(name.encode(), value), name


def sweep(library: ctypes.CDLL, steps: dict[str, Step]) -> list[Row]:
    """The kernels' choices, one axis product per kernel, on graphs; the best of each first."""
    table: list[Row] = []
    cuts = list(itertools.product((2, 4, 8), (2, 4, 8), (1, 2, 4, 8)))
    for name, step in steps.items():
        for kind, part in (("pool", "forward"), ("update", "update")):
            found: list[Row] = []
            for prefetch in (0, 1) if kind == "update" else (1,):
                for rows, warps, count in cuts:
                    choice = {f"{kind}_rows": rows, f"{kind}_warps": warps,
                              f"{kind}_steps": count, "update_prefetch": prefetch}  # fmt: skip
                    tune(library, **choice)
                    seconds = timed(step.calls(part), graph=True, samples=5)
                    found.append({"work": f"sweep {part}, {name}", "choice": choice,
                                  "graph": seconds})  # fmt: skip
            tune(library, **TUNED)
            table += sorted(found, key=lambda row: row["graph"])
    for impressions in (2**16, 2**24):
        logits = torch.randn(impressions, 2, device="cuda")
        labels = (torch.rand(impressions, 2, device="cuda") < 0.04).float()
        for blocks, float64 in itertools.product((0, 264, 528, 1056, 2112, 4224), (0, 1)):
            choice = {"loss_blocks": blocks, "loss_float64": float64}
            tune(library, **choice)
            call = lambda: torch.ops.esmm_fast.product_loss(logits, labels, None, 1)  # noqa: B023, E731
            table.append({"work": f"sweep loss, B={impressions}", "choice": choice,
                          "graph": timed([call], graph=True, samples=7)})  # fmt: skip
        tune(library, **TUNED)
    return table


def text_of(row: Row) -> str:
    def micro(name: str) -> str:
        return f"{row[name] * 1e6:10.1f}" if name in row else " " * 10

    extra = [f"{row[k]:.1%} {k}" for k in ("of copy", "of copy, DRAM") if k in row]
    extra += [f"{row['ratio']:.2f} x"] if "ratio" in row else []
    extra += [f"{row['impressions/s'] / 1e6:.2f} M impressions/s"] if "impressions/s" in row else []
    extra += [str(row["choice"])] if "choice" in row else []
    return f"{row['work']:58}{micro('graph')}{micro('eager')}  {', '.join(extra)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=["build", "check", "time", "sweep"], help="one part")
    parser.add_argument("--sweep", action="store_true", help="also sweep the kernels' choices")
    parser.add_argument("--no-build", action="store_true", help="take the libraries as they are")
    parser.add_argument("--no-peers", action="store_true", help="leave nn.EmbeddingBag out")
    parser.add_argument("--architectures", default="native", help="of the build, e.g. 90")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - begin:6.1f} s] {text}", flush=True)

    begin = time.perf_counter()
    if options.device == "cuda" and not options.no_build:
        say(f"built in {build(options.architectures):.0f} s")
    if options.only == "build":
        return
    import cuda_check
    import harness

    from esmm_fast import _library

    if options.device == "cpu":
        cuda_check.DEVICE = "cpu"
        say(f"{cuda_check.run(say)} checks of the CPU operators passed")
        return
    if _library.cuda_unavailable or not torch.cuda.is_available():
        raise SystemExit(_library.cuda_unavailable or "torch finds no CUDA device")
    record: dict[str, Any] = {"facts": harness.facts(), "driver": driver()}
    print(*(f"{key}: {value}" for key, value in record["facts"].items()), sep="\n")
    if options.only in (None, "check"):
        record["checks"] = cuda_check.run(say)
        say(f"{record['checks']} checks passed")
    if options.only != "check":
        bandwidth = record["copy_bytes_per_second"] = copy_bandwidth()
        say(f"copy: {bandwidth / 1e12:.2f} TB/s")
        rows, steps = embedding_rows(bandwidth, peers=not options.no_peers)
        if options.only != "sweep":
            rows += loss_rows(bandwidth) + model_rows()
        if options.sweep or options.only == "sweep":
            library = ctypes.CDLL(str(ROOT / "esmm_fast" / "libesmm_fast_cuda.so"))
            rows += sweep(library, steps)
        record["rows"] = rows
        print(f"{'work':58}{'graph us':>10}{'eager us':>10}")
        shown = [r for r in rows if "choice" not in r]
        for work in dict.fromkeys(r["work"] for r in rows if "choice" in r):
            shown += [r for r in rows if r["work"] == work][:6]
        print(*map(text_of, shown), sep="\n")
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cuda.json").write_text(json.dumps(record, indent=1) + "\n")
    say(f"written: {folder / 'cuda.json'}")


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
