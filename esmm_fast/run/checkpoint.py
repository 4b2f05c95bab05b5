"""Checkpoints: networks and the state of their training, as safetensors and JSON.

A checkpoint is a folder `step-0000000196/`:

    <network>.safetensors   the parameters of each network
    training.safetensors    the tensors of the training's state (optimizers, losses, random numbers)
    checkpoint.json         all the rest, and where in it those tensors belong

It is written beside, synced and renamed, so that one that exists is whole, whenever the process
ends. A second one of the same step is `step-0000000196.1`, and the first is removed after it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..staging import sync
from .nested import join_tensors, split_tensors

VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its facts, and its tensors when they are asked for."""

    path: Path
    facts: dict[str, Any]
    """What was given to `save`, with `step` and `networks`."""

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks."""
        return tuple(self.facts["networks"])

    @property
    def step(self) -> int:
        """Steps of training before it, of all networks together."""
        return int(self.facts["step"])

    def load_into(self, networks: Mapping[str, nn.Module]) -> None:
        """Loads the parameters of every network.

        Raises:
            ValueError: If the networks are not those that were saved, or a shape differs.
        """
        if sorted(networks) != sorted(self.networks):
            raise ValueError(
                f"{self.path}: expected networks {sorted(networks)}, got {sorted(self.networks)}"
            )
        for name, network in networks.items():
            self.load_network(name, network)

    def load_network(self, name: str, network: nn.Module) -> None:
        """Loads the parameters of one network."""
        path = _file(self.path, name)
        tensors = _tensors(path)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{path}: {' '.join(str(error).split())}") from error

    def training(self) -> Any:
        """Returns the state of training that was given to `save`; its tensors are copies."""
        path = _file(self.path, "training")
        tensors = {n: t.clone() for n, t in _tensors(path).items()}
        try:
            return join_tensors(self.facts["training"], tensors)
        except KeyError as error:
            raise _broken(path, f"no tensor {error}") from error


def save(
    folder: str | Path,
    networks: Mapping[str, nn.Module],
    step: int,
    facts: Mapping[str, Any] | None = None,
    *,
    training: Any = None,
    keep: int = 1,
) -> Path:
    """Writes a checkpoint into `folder` and returns its path; removes those that are too old.

    Args:
        folder: RUN/checkpoints; made where it is missing.
        networks: By name; their state_dicts must hold tensors alone.
        step: Steps of training done, which names the checkpoint.
        facts: Whatever JSON can hold.
        training: State of training: tensors, numbers, texts and None, nested in dicts, lists and
            tuples.
        keep: Steps that are kept, the newest ones.

    Raises:
        ValueError: A network is named "training", as the file beside the networks' is.
        TypeError: What is to be saved is nothing that can be.
        OSError: Naming the checkpoint, where it cannot be written (the disk is full); what was
            there stays.
    """
    if "training" in networks:
        raise ValueError("networks: expected other names than 'training', got it")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = _found(folder)
    name = f"step-{step:010d}"
    if same := [number for at, number, _ in before if at == step]:
        name += f".{max(same) + 1}"
    partial = folder / f".{name}.part"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(partial, networks, step, facts or {}, training)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)  # it takes room, where there may be none
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OSError(f"{folder / name}: cannot be saved: {reason}") from error
    partial.rename(folder / name)
    sync(folder)
    _remove_old(folder, keep)
    return folder / name


def _write(
    partial: Path,
    networks: Mapping[str, nn.Module],
    step: int,
    facts: Mapping[str, Any],
    training: Any,
) -> None:
    """Writes the files of a checkpoint into a folder, onto the disk."""
    partial.mkdir()
    for network_name, network in networks.items():
        save_file(_parameters(network_name, network), _file(partial, network_name))
    plain, tensors = split_tensors(training)
    save_file(tensors, _file(partial, "training"))
    content = {
        "format": "esmm_fast checkpoint",
        "version": VERSION,
        "step": step,
        "networks": list(networks),
        **facts,
        "training": plain,
    }
    (partial / "checkpoint.json").write_text(json.dumps(content, allow_nan=False) + "\n")
    for path in (*partial.iterdir(), partial):
        sync(path)


def load(path: str | Path) -> Checkpoint:
    """Returns the checkpoint at `path`.

    Raises:
        ValueError: If there is none, a damaged one, or one of a version that this package does not
            know.
    """
    path = Path(path)
    try:
        facts = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: expected a checkpoint, got no checkpoint.json") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise _broken(path / "checkpoint.json", str(error)) from error
    if not isinstance(facts, dict):
        raise _broken(path / "checkpoint.json", type(facts).__name__)
    if facts.get("version") != VERSION:
        raise ValueError(f"{path}: expected version {VERSION}, got {facts.get('version')}")
    return Checkpoint(path, facts)


def exists(folder: str | Path) -> bool:
    """Returns whether there is a checkpoint in `folder`."""
    return bool(_found(Path(folder)))


def latest(folder: str | Path) -> Checkpoint:
    """Returns the newest checkpoint in `folder`.

    Raises:
        ValueError: If there is none.
    """
    if not (found := _found(Path(folder))):
        raise ValueError(f"{folder}: expected a checkpoint step-..., found none")
    return load(found[-1][2])


def _found(folder: Path) -> list[tuple[int, int, Path]]:
    """Returns (step, number, path) of every checkpoint, the newest last."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := re.fullmatch(r"step-(\d{10,})(?:\.(\d+))?", path.name):
            found.append((int(match[1]), int(match[2] or 0), path))
    return sorted(found)


def _remove_old(folder: Path, keep: int) -> None:
    """Removes all but the newest checkpoint of each of the last `keep` steps, and leftovers."""
    newest = {step: path for step, _, path in _found(folder)}
    kept = set(list(newest.values())[-keep:])
    for _, _, path in _found(folder):
        if path not in kept:
            gone = folder / f".{path.name}.part"  # half removed it must not look whole
            path.rename(gone)
    for path in folder.glob(".step-*.part"):
        shutil.rmtree(path)


def _file(path: Path, name: str) -> Path:
    return path / f"{name}.safetensors"


def _tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file, mapped and not read."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, FileNotFoundError) as error:
        raise _broken(path, str(error)) from error


def _broken(path: Path, got: str) -> ValueError:
    """Returns the error of a file of a checkpoint that is not as it was written."""
    message = f"{path}: expected the file as it was saved, got a damaged one ({got})"
    found = [other for _, _, other in _found(path.parent.parent)]
    if path.parent in found[1:]:
        before = found[found.index(path.parent) - 1]
        message += f"; move {path.parent} away to go on from the one before it, {before.name}"
    return ValueError(message)


def _parameters(name: str, network: nn.Module) -> dict[str, Tensor]:
    tensors = {}
    for key, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}.{key}: expected a tensor, got {type(value).__name__}")
        tensors[key] = value.detach().cpu().contiguous()
    return tensors
