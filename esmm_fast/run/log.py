"""RunLog: metrics.jsonl, a line every 50 steps and for each evaluation; TensorBoard too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..staging import naming
from ..train import History, Step

LOG_STEPS = 50
"""Steps between two lines of metrics.jsonl."""


class RunLog:
    """The lines of a run.

    ``{"network", "epoch", "step", "impressions", "seconds", "lr", "loss"}``: the mean loss since
    the line before, and the learning rate of its last step.
    ``{"network", "epoch", "step", "valid"}``: an evaluation.

    Args:
        run: The run's directory; `metrics.jsonl` in it is continued.
        state: What `state` gave when the run was saved: the file is cut there. None: it is emptied.
        tensorboard: Also write events into `tensorboard/`.
    """

    def __init__(
        self, run: Path, state: Mapping[str, Any] | None = None, *, tensorboard: bool = False
    ) -> None:
        state = state or {"bytes": 0, "losses": [], "last": None, "steps": 0}
        self._path = path = run / "metrics.jsonl"
        self._file = path.open("r+b" if path.exists() else "w+b")
        if self._file.seek(0, os.SEEK_END) < state["bytes"]:
            raise ValueError(
                f"{path}: expected at least the {state['bytes']} bytes that it had when the run "
                f"was saved, got {self._file.tell()}"
            )
        self._file.truncate(state["bytes"])
        self._file.seek(0, os.SEEK_END)
        self._losses: list[float] = list(state["losses"])
        self._last = None if state["last"] is None else Step(*state["last"])
        self.steps_before = 0
        """Steps of the networks before; TensorBoard's axis goes on over all of them."""
        self._events = _event_writer(run / "tensorboard", state["steps"]) if tensorboard else None

    def close(self) -> None:
        """Ends the log; what was written is there."""
        with contextlib.suppress(OSError):  # of a line that was refused before
            self._file.close()
        if self._events is not None:
            self._events.close()

    def state(self, steps: int) -> dict[str, Any]:
        """Returns what continues this log, which is on the disk then; `steps` of the whole run."""
        self._file.flush()
        os.fsync(self._file.fileno())
        last = None if self._last is None else list(self._last)
        size = self._file.tell()
        return {"bytes": size, "losses": list(self._losses), "last": last, "steps": steps}

    def step(self, network: str, step: Step) -> None:
        """Takes note of a step."""
        self._losses.append(step.loss)
        self._last = step
        if step.step % LOG_STEPS == 0:
            self._flush(network, step)

    def evaluation(self, network: str, epoch: int, history: History) -> None:
        """Writes the steps since the last line, and an evaluation."""
        self.rest(network)
        step, result = history.valid_steps[-1], history.valid[-1]
        self._write({"network": network, "epoch": epoch, "step": step, "valid": result})
        values = {
            f"{network}/valid/{task}/{name}": value
            for task, metrics in {**result, **result.get("stages", {})}.items()
            if isinstance(metrics, dict)
            for name, value in metrics.items()
            if name in ("auc", "log_loss", "calibration")
        }
        self._event(values, step)

    def rest(self, network: str) -> None:
        """Writes the steps since the last line."""
        if self._losses and self._last is not None:
            self._flush(network, self._last)

    def _flush(self, network: str, step: Step) -> None:
        line = {
            "network": network,
            "epoch": step.epoch,
            "step": step.step,
            "impressions": step.impressions,
            "seconds": round(step.seconds, 3),
            "lr": step.lr,
            "loss": sum(self._losses) / len(self._losses),
        }
        self._write(line)
        self._losses.clear()
        self._event({f"{network}/{name}": line[name] for name in ("loss", "lr")}, step.step)

    def _write(self, line: dict[str, Any]) -> None:
        with naming(self._path):
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()

    def _event(self, values: Mapping[str, Any], step: int) -> None:
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, self.steps_before + step)
            self._events.flush()


def _event_writer(folder: Path, steps: int) -> Any:
    """Returns a writer of TensorBoard events; what was written of later steps before is void."""
    return event_writer_class()(str(folder), purge_step=steps + 1 if steps else None)


def event_writer_class() -> Any:
    """Returns tensorboardX's SummaryWriter, or raises ImportError with what to install."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard: expected the package tensorboardX, which is not installed: "
            "pip install 'esmm_fast[tensorboard]'"
        ) from error
    return SummaryWriter
