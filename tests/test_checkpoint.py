"""checkpoint: what is saved comes back, and a broken one is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from esmm_fast import ESMM, checkpoint


def networks(seed: int) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {
        "esmm": ESMM({"item": 20}, dim=4, hidden=(8,), seed=seed),
        "ctr": nn.Linear(3, 2),
    }


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_networks_and_state_come_back(tmp_path: Path) -> None:
    saved = networks(0)
    path = checkpoint.save(tmp_path, saved, 196, {"epoch": 1, "batch": 17})
    assert path == tmp_path / "step-0000000196"
    assert sorted(p.name for p in path.iterdir()) == [
        "checkpoint.json",
        "ctr.safetensors",
        "esmm.safetensors",
    ]
    found = checkpoint.load(path)
    assert (found.state["epoch"], found.state["batch"], found.state["step"]) == (1, 17, 196)
    assert found.networks == ("esmm", "ctr")
    fresh = networks(1)
    assert not same(fresh["esmm"], saved["esmm"])
    found.load_into(fresh)
    assert all(same(fresh[name], saved[name]) for name in saved)


def test_trained_tables_come_back(tmp_path: Path) -> None:
    from esmm_fast.optim import LazyAdam

    model = networks(0)["esmm"]
    LazyAdam(model)  # the weight is a strided view beside the optimizer's state from here on
    checkpoint.save(tmp_path, {"esmm": model}, 1, {})
    fresh = networks(1)["esmm"]
    checkpoint.latest(tmp_path).load_into({"esmm": fresh})
    assert torch.equal(fresh.tables.weight, model.tables.weight)


def test_latest_has_the_most_steps(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        checkpoint.save(tmp_path, {"ctr": nn.Linear(1, 1)}, step, {})
    (tmp_path / ".step-0000000900.part").mkdir()
    assert checkpoint.latest(tmp_path).state["step"] == 100


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"a": nn.Linear(1, 1)}, 3, {"note": "first"})
    checkpoint.save(tmp_path, {"b": nn.Linear(1, 1)}, 3, {"note": "second"})
    found = checkpoint.latest(tmp_path)
    assert found.state["note"] == "second" and found.networks == ("b",)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000000003"]


def test_nothing_half_written_is_taken_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_sync", lambda path: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        checkpoint.save(tmp_path, {"a": nn.Linear(1, 1)}, 3, {})
    with pytest.raises(ValueError, match=r"expected a checkpoint step-\.\.\., found none"):
        checkpoint.latest(tmp_path)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found none"):
        checkpoint.latest(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"got no checkpoint\.json"):
        checkpoint.load(tmp_path)
    path = checkpoint.save(tmp_path, {"a": nn.Linear(2, 1)}, 1, {})
    with pytest.raises(ValueError, match=r"expected networks \['b'\], got \['a'\]"):
        checkpoint.load(path).load_into({"b": nn.Linear(2, 1)})
    with pytest.raises(ValueError, match=r"a\.safetensors: .*size mismatch"):
        checkpoint.load(path).load_into({"a": nn.Linear(3, 1)})
    content = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps({**content, "version": 99}))
    with pytest.raises(ValueError, match="expected version 1, got 99"):
        checkpoint.load(path)
