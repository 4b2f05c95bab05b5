"""examples/: the plain PyTorch script and the changed one have the same loss curve."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from esmm_fast import ESMM
from esmm_fast.optim import LazyAdam

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ROWS = {"user": 50, "history": 120, "item": 120, "tags": 30}
LONGEST = {"user": 1, "history": 9, "item": 1, "tags": 4}
STEPS = 12


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Returns an example with smaller tables, so that the rows of a batch occur again."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FIELDS", ROWS)
    monkeypatch.setattr(module, "BATCH", 64)
    return module


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("before", monkeypatch)


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("after", monkeypatch)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet table of lists, some of them empty, with clicks and conversions."""
    random = np.random.default_rng(0)
    count = 64 * STEPS - 10  # the last batch is smaller
    columns: dict[str, Any] = {}
    for name, rows in ROWS.items():
        least = 1 if LONGEST[name] == 1 else 0
        lengths = random.integers(least, LONGEST[name], count, endpoint=True)
        columns[name] = [random.integers(rows, size=n).tolist() for n in lengths]
    click = random.random(count) < 0.3
    columns["click"] = click.astype(np.int64)
    columns["conversion"] = (random.random(count) < 0.3).astype(np.int64)  # some without a click
    out = tmp_path_factory.mktemp("examples") / "table.parquet"
    pa.parquet.write_table(pa.table(columns), out, row_group_size=100)
    return out


def same_start(before: ModuleType) -> tuple[Any, ESMM]:
    """Returns both scripts' models with the weights of the first."""
    torch.manual_seed(0)
    plain, ours = before.ESMM(), ESMM(ROWS, hidden=(200, 80))
    ours.load_state_dict(
        {
            "tables.weight": torch.cat([table.weight for table in plain.tables.values()]),
            **{f"towers.ctr.{name}": value for name, value in plain.ctr.state_dict().items()},
            **{f"towers.cvr.{name}": value for name, value in plain.cvr.state_dict().items()},
        }
    )
    return plain, ours


def losses(module: ModuleType, model: Any, path: Path, *optimizers: Any) -> list[float]:
    return list(module.train(model, pa.parquet.read_table(path), *optimizers))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {"lr": 1e-2}),
        (torch.optim.SGD, {"lr": 0.3, "momentum": 0.9}),
        (torch.optim.Adagrad, {"lr": 0.02}),
    ],
)
def test_an_ordinary_optimizer(
    before: ModuleType, after: ModuleType, path: Path, kind: Any, options: dict[str, float]
) -> None:
    plain, ours = same_start(before)
    expected = losses(before, plain, path, kind(plain.parameters(), **options))
    found = losses(after, ours, path, kind(ours.parameters(), **options))
    assert len(found) == STEPS
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert min(expected) < 0.8 * expected[0]
    weights = torch.cat([table.weight for table in plain.tables.values()])
    torch.testing.assert_close(ours.tables.weight, weights, rtol=1e-4, atol=1e-5)


def test_the_fused_optimizer_is_sparse_adam(
    before: ModuleType, after: ModuleType, path: Path
) -> None:
    plain, ours = same_start(before)
    for table in plain.tables.values():
        table.sparse = True
    sparse = torch.optim.SparseAdam(list(plain.tables.parameters()), lr=1e-2)
    towers = torch.optim.Adam([*plain.ctr.parameters(), *plain.cvr.parameters()], lr=1e-3)
    expected = losses(before, plain, path, sparse, towers)
    fused = LazyAdam(ours, lr=1e-2)
    found = losses(after, ours, path, fused, torch.optim.Adam(ours.tower_parameters(), lr=1e-3))
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.parametrize("name", ["before", "after"])
def test_run_as_a_script(name: str, path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert ran.returncode == 0, ran.stderr
    last = ran.stdout.splitlines()[-1].split()
    assert last[:3] == ["step", "2:", "loss"] and 0 < float(last[3]) < 2
