"""checkpoint: what is saved comes back, and a broken one is refused."""

import json
import math
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esmm_fast import ESMM
from esmm_fast.run import checkpoint


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
        "training.safetensors",
    ]
    found = checkpoint.load(path)
    assert (found.facts["epoch"], found.facts["batch"], found.facts["step"]) == (1, 17, 196)
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


def test_state_of_training_comes_back_to_the_bit(tmp_path: Path) -> None:
    model = networks(0)["esmm"]
    state = {
        "optimizers": [torch.optim.Adam(model.parameters()).state_dict()],
        "random": torch.get_rng_state(),
        "betas": (0.9, 0.1 + 0.2),
        "odd": {0: math.inf, "1": [None, True, "text"], "nested": {"tensor": torch.ones(())}},
        "marked": {"tensor": 3},
        "nothing": {},
    }
    checkpoint.save(tmp_path, {}, 1, training=state)
    found = checkpoint.latest(tmp_path).training()
    assert torch.equal(found.pop("random"), state.pop("random"))
    assert found["betas"] == (0.9, 0.30000000000000004)
    assert found == state
    with pytest.raises(TypeError, match=r"a\.1: expected tensors, numbers, .* got object"):
        checkpoint.save(tmp_path, {}, 1, training={"a": [1, object()]})


def test_the_last_ones_are_kept_and_the_newest_is_the_latest(tmp_path: Path) -> None:
    for step in (5, 100, 200):
        checkpoint.save(tmp_path, {"ctr": nn.Linear(1, 1)}, step, keep=2)
    (tmp_path / ".step-0000000900.part").mkdir()
    assert checkpoint.latest(tmp_path).step == 200
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-0000000100", "step-0000000200"]
    checkpoint.save(tmp_path, {"ctr": nn.Linear(1, 1)}, 10_000_000_000, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-10000000000"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    for note in ("first", "second", "third"):
        checkpoint.save(tmp_path, {note: nn.Linear(1, 1)}, 3, {"note": note})
        found = checkpoint.latest(tmp_path)
        assert found.facts["note"] == note and found.networks == (note,)
        assert len(list(tmp_path.iterdir())) == 1


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("step", [7, 8])  # one of the same step, and a later one
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [0]
    last = [0]

    def counted(real: Any, tear: bool = False) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == last[0]:
                for path in list(Path(arguments[0]).glob("*"))[:1] if tear else ():
                    path.unlink()  # half of the work is done
                raise Killed
            return real(*arguments, **options)

        return call

    def save(folder: Path, step: int, value: float) -> None:
        model = nn.Linear(1, 1)
        nn.init.constant_(model.weight, value)
        state = {"value": torch.full((3,), value)}
        checkpoint.save(folder, {"a": model}, step, {"value": value}, training=state)

    monkeypatch.setattr(checkpoint, "save_file", counted(checkpoint.save_file))
    monkeypatch.setattr(checkpoint, "sync", counted(checkpoint.sync))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree, tear=True))
    seen = set()
    for moment in range(1, 40):
        folder = tmp_path / str(moment)
        last[0] = 0
        save(folder, 7, 1.0)
        calls[0], last[0] = 0, moment
        try:
            save(folder, step, 2.0)
        except Killed:
            found = checkpoint.latest(folder)
            value = found.facts["value"]
            model = nn.Linear(1, 1)
            found.load_into({"a": model})
            assert model.weight.item() == value
            assert found.training()["value"].tolist() == [value] * 3
            seen.add(value)
        else:
            break
    assert seen == {1.0, 2.0} and moment > 8


def test_nothing_half_written_is_taken_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "sync", lambda path: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        checkpoint.save(tmp_path, {"a": nn.Linear(1, 1)}, 3, {})
    with pytest.raises(ValueError, match=r"expected a checkpoint step-\.\.\., found none"):
        checkpoint.latest(tmp_path)


def test_names_of_tensors_do_not_collide(tmp_path: Path) -> None:
    state = {
        "a.b": torch.tensor(1.0),
        "a": {"b": torch.tensor(2.0), 0: torch.tensor(3.0), "0": torch.tensor(4.0)},
        "a.b'": torch.tensor(5.0),
    }
    checkpoint.save(tmp_path, {}, 1, training=state)
    assert checkpoint.latest(tmp_path).training() == state
    with pytest.raises(ValueError, match="networks: expected other names than 'training', got it"):
        checkpoint.save(tmp_path, {"training": nn.Linear(1, 1)}, 2)


@pytest.mark.parametrize("name", ["checkpoint.json", "a.safetensors", "training.safetensors"])
@pytest.mark.parametrize("size", [0, 60, None])
def test_a_damaged_checkpoint_is_named_with_the_one_before(
    name: str, size: int | None, tmp_path: Path
) -> None:
    model = nn.Linear(20, 1)

    def everything() -> None:
        found = checkpoint.latest(tmp_path)
        found.load_into({"a": model})
        found.training()

    for step in (1, 2):
        checkpoint.save(tmp_path, {"a": model}, step, training={"t": torch.ones(9)}, keep=2)
        everything()
        file = tmp_path / f"step-{step:010d}" / name
        if step == 1:
            continue
        file.write_bytes(file.read_bytes()[: -7 if size is None else size])
        with pytest.raises(ValueError) as error:
            everything()
        assert str(error.value).startswith(f"{file}: expected the file as it was saved, got a dam")
        assert str(error.value).endswith("to go on from the one before it, step-0000000001")
        file.parent.rename(tmp_path / "away")
        everything()


def test_a_full_disk_names_the_checkpoint_and_keeps_the_one_before(tmp_path: Path) -> None:
    model = nn.Linear(300, 10)
    checkpoint.save(tmp_path, {"a": model}, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, state in ((5_000, ""), (15_000, "x" * 20_000)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # stands for a full disk
        try:
            with pytest.raises(OSError) as error:
                checkpoint.save(tmp_path, {"a": model}, 2, training=state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(error.value).startswith(f"{tmp_path}/step-0000000002: cannot be saved: ")
        assert "File too large" in str(error.value)
        assert [p.name for p in tmp_path.iterdir()] == ["step-0000000001"]


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
    with pytest.raises(ValueError, match="expected version 2, got 99"):
        checkpoint.load(path)
