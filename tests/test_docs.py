"""The Python examples of docs/stages.md and docs/towers.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from esmm_fast import EntireSpaceChain, Vocabulary

pytest_plugins = ("synthetic_log",)

DOCS = Path(__file__).resolve().parent.parent / "docs"


def run_examples(page: str, known: dict[str, Any]) -> dict[str, Any]:
    """Returns the names that a page's Python examples leave, one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, str(DOCS / page), "exec"), known)
    return known


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_stages(in_a_folder):
    known = run_examples("stages.md", {})
    model, out = known["model"], known["out"]
    assert list(model.towers) == ["click", "cart", "order"]
    assert torch.allclose(out.probabilities[:, 2], out.stage_probabilities.prod(1))
    assert known["train"].common_rows.num_rows <= 50_000


def test_towers(in_a_folder, synthetic_log):
    train = synthetic_log.train
    known = run_examples(
        "towers.md", {"train": train, "vocabulary": Vocabulary.from_dataset(train)}
    )
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
