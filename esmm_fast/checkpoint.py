"""Checkpoints: the networks of a method as safetensors, and the position of training beside them.

A checkpoint is a folder `step-0000000196/` with `<network>.safetensors` for each network and
`checkpoint.json`. It is written beside and renamed, so that one that exists is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its state, and its tensors when they are asked for."""

    path: Path
    state: dict[str, Any]
    """What was given to `save`: the position of training and what else is needed to go on."""

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks."""
        return tuple(self.state["networks"])

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
            try:
                network.load_state_dict(load_file(_file(self.path, name)))
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{_file(self.path, name)}: {reason}") from error


def save(
    folder: str | Path, networks: Mapping[str, nn.Module], step: int, state: Mapping[str, Any]
) -> Path:
    """Writes a checkpoint into `folder` and returns its path; one of the same step is replaced.

    Args:
        folder: RUN/checkpoints; made where it is missing.
        networks: By name; their state_dicts must hold tensors alone.
        step: Steps of training done, which names the checkpoint.
        state: Whatever JSON can hold.
    """
    folder = Path(folder)
    final = folder / f"step-{step:010d}"
    partial = folder / f".{final.name}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, network in networks.items():
        save_file(_tensors(name, network), _file(partial, name))
    content = {
        "format": "esmm_fast checkpoint",
        "version": VERSION,
        "step": step,
        "networks": list(networks),
        **state,
    }
    (partial / "checkpoint.json").write_text(json.dumps(content, indent=1) + "\n")
    for path in (*partial.iterdir(), partial):
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _sync(folder)
    return final


def load(path: str | Path) -> Checkpoint:
    """Returns the checkpoint at `path`.

    Raises:
        ValueError: If there is none, or one of a version that this package does not know.
    """
    path = Path(path)
    try:
        state = json.loads((path / "checkpoint.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: expected a checkpoint, got no checkpoint.json") from None
    if state.get("version") != VERSION:
        raise ValueError(f"{path}: expected version {VERSION}, got {state.get('version')}")
    return Checkpoint(path, state)


def latest(folder: str | Path) -> Checkpoint:
    """Returns the checkpoint of the most steps in `folder`.

    Raises:
        ValueError: If there is none.
    """
    folder = Path(folder)
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    steps = sorted(name for name in names if re.fullmatch(r"step-\d{10,}", name))
    if not steps:
        raise ValueError(f"{folder}: expected a checkpoint step-..., found none")
    return load(folder / max(steps, key=lambda name: int(name.removeprefix("step-"))))


def _file(path: Path, network: str) -> Path:
    return path / f"{network}.safetensors"


def _tensors(name: str, network: nn.Module) -> dict[str, Tensor]:
    tensors = {}
    for key, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}.{key}: expected a tensor, got {type(value).__name__}")
        tensors[key] = value.detach().cpu().contiguous()
    return tensors


def _sync(path: Path) -> None:
    """Makes the operating system write a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
