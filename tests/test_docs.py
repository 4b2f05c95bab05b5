"""The Python examples of README and docs/ run as they stand."""

from __future__ import annotations

import functools
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from esmm_fast import prepare
from esmm_fast.data.synth import synth

ROOT = Path(__file__).resolve().parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


def run(page: str, text: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(text, str(ROOT / page), "exec"), names)
    return names


OWN_LOOP = "docs/own-loop.md"
FIRST, *OTHERS = blocks(OWN_LOOP)


@pytest.fixture
def eager_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces as it does, but starts no C++ compiler, which takes half a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("text", OTHERS, ids=[f"block {i}" for i in range(1, len(OTHERS) + 1)])
def test_own_loop(
    text: str,
    eager_graphs: None,
    one_process: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run(OWN_LOOP, text, run(OWN_LOOP, FIRST, {}))


def test_readme_training_and_towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    synth("log", impressions=600, test_impressions=300, ctr=0.3, cvr=0.3, seed=0)
    (readme,) = blocks("README.md")
    names = run("README.md", readme, {})
    assert set(names["result"]) >= {"ctr", "cvr", "ctcvr"}
    (towers,) = blocks("docs/towers.md")
    assert run("docs/towers.md", towers, names)["model"].towers.sizes == (2, 3, 80)
    (training,) = blocks("docs/training.md")
    prepare("log", out="data")
    assert "warmup=100" in training  # of a log of 100,000 impressions
    run("docs/training.md", training.replace("warmup=100", "warmup=2"), {})
