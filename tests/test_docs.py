"""The Python examples of README and docs/ run as they stand."""

from __future__ import annotations

import functools
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from esmm_fast import EntireSpaceChain, Vocabulary, prepare
from esmm_fast.data.synth import synth

pytest_plugins = ("synthetic_log",)

ROOT = Path(__file__).resolve().parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


def run(page: str, text: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(text, str(ROOT / page), "exec"), names)
    return names


def run_all(page: str, names: dict[str, Any]) -> dict[str, Any]:
    """Returns the names that a page's examples leave, one after the other."""
    for text in blocks(f"docs/{page}"):
        run(f"docs/{page}", text, names)
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


def test_readme_and_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    synth("log", impressions=600, test_impressions=300, ctr=0.3, cvr=0.3, seed=0)
    (readme,) = blocks("README.md")
    names = run("README.md", readme, {})
    assert set(names["result"]) >= {"ctr", "cvr", "ctcvr"}
    (training,) = blocks("docs/training.md")
    prepare("log", out="data")
    assert "warmup=100" in training  # of a log of 100,000 impressions
    run("docs/training.md", training.replace("warmup=100", "warmup=2"), {})


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_stages(in_a_folder):
    known = run_all("stages.md", {})
    model, out = known["model"], known["out"]
    assert list(model.towers) == ["click", "cart", "order"]
    assert torch.allclose(out.probabilities[:, 2], out.stage_probabilities.prod(1))
    assert known["train"].common_rows.num_rows <= 50_000


def test_towers(in_a_folder, synthetic_log):
    train = synthetic_log.train
    known = run_all("towers.md", {"train": train, "vocabulary": Vocabulary.from_dataset(train)})
    assert known["history"].steps == 2
    for name in ("MixtureOfExperts", "LayeredExtraction"):
        check_towers(known[name], known["vocabulary"], train)


def check_towers(towers: Any, vocabulary: Any, train: Any) -> None:
    """A gradient reaches every parameter, and the loss is that of the products, for K = 2 and 3."""
    batch = next(iter(train.batches(64, vocabulary=vocabulary, group_limit=1)))
    for stages in (2, 3):
        batch.labels = torch.ones(64, stages)
        model = EntireSpaceChain(
            vocabulary.sized(train.schema),
            ("a", "b", "c")[:stages],
            label_columns=range(stages),
            dim=4,
            init_std=1.0,
            towers=lambda *sizes, k=stages: towers(*sizes, stages=k),
        )
        out = model(batch)
        assert out.logits.shape == (64, stages)
        loss = model.loss(out, batch)
        expected = -out.probabilities.log().sum(1).mean()
        torch.testing.assert_close(loss, expected)
        loss.backward()
        for name, parameter in model.towers.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name
