"""Session: what one process does for a run around its training: restore, log, save, stop."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from .. import _library
from ..config import RunConfig
from ..early_stopping import watches
from ..run import checkpoint
from ..staging import lock
from ..train import Training
from .interruption import Interrupted, Interruption
from .log import RunLog


class Session:
    """The training of a run in this process, from its last checkpoint to its next end.

    Entered, it notes SIGINT and SIGTERM; left by an error, it saves the last whole step, or
    removes a run that it began and in which no step was done.

    Args:
        run: Directory with config.yaml and vocabulary.arrow.
        run_config: How often to save, what to keep.
        facts: What every checkpoint says besides: method, schema, settings, `data`.
        say: Receives lines for the user.
        begun_here: This process made the run.

    Raises:
        FileExistsError: Another process is training the run.
        ValueError: The checkpoint is of other data.
    """

    def __init__(
        self,
        run: Path,
        run_config: RunConfig,
        facts: Mapping[str, Any],
        say: Callable[[str], None],
        begun_here: bool,
    ) -> None:
        self.run, self.config, self.say, self.begun_here = run, run_config, say, begun_here
        self._lock = lock(run, f"{run}: another process is training this run")
        self.facts = {**facts, "machine": _what_bits_depend_on()}
        self.folder = run / "checkpoints"
        self.trainings: dict[str, Training] = {}
        self.interruption = Interruption()
        self._saved: tuple[int, bool] | None = None  # step and whether finished
        self._saved_at = time.monotonic()
        self._restored: checkpoint.Checkpoint | None = None
        self._states: dict[str, Any] = {}
        try:
            self.log = self._restore()
        except BaseException:
            os.close(self._lock)
            raise

    def _restore(self) -> RunLog:
        """Reads the last checkpoint, if there is one; returns the log as it was there."""
        log = None
        if checkpoint.exists(self.folder):
            self._restored = checkpoint.latest(self.folder)
            self._check(self._restored)
            self._saved = (self._restored.step, bool(self._restored.facts["finished"]))
            state = self._restored.training()
            self._states, log = state["networks"], state["log"]
        return RunLog(self.run, log, tensorboard=self.config.tensorboard)

    @property
    def steps(self) -> int:
        """Steps done in the run, of all networks."""
        return sum(training.history.steps for training in self.trainings.values())

    def _check(self, restored: checkpoint.Checkpoint) -> None:
        facts = restored.facts
        if facts["data"] != self.facts["data"]:
            known = facts["data"]
            changed = next(n for n, sums in self.facts["data"].items() if sums != known.get(n))
            raise ValueError(
                f"{changed}: expected the dataset that {self.run} was begun with, got another "
                f"content in {getattr(self.config, changed)}"
            )
        self.say(f"continues at step {restored.step:,} of {restored.path}")
        for name, value in self.facts["machine"].items():
            if facts["machine"][name] != value:
                self.say(
                    f"{name}: {facts['machine'][name]} when it was saved, {value} now: "
                    "the results are not the same to the last bit"
                )

    def __enter__(self) -> Session:
        self.interruption.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, Exception) and not isinstance(error, Interrupted):
                self._keep_what_there_is(error)
        finally:
            self.log.close()
            self.interruption.__exit__()
            os.close(self._lock)

    def _keep_what_there_is(self, error: Exception) -> None:
        if self.begun_here and not self.steps:
            shutil.rmtree(self.run)
            return
        step_saved = 0 if self._saved is None else self._saved[0]
        whole = all(training.whole for training in self.trainings.values())
        if not isinstance(error, OSError) and whole and self.steps > step_saved:
            self.save()

    def prepare(self, name: str, training: Training) -> None:
        """Makes a network's training part of the run: restores, logs and saves it."""
        self.log.steps_before = self.steps
        training.early_stopping = watches(self.config.early_stopping, training.model)
        training.evaluate_steps = self.config.evaluate_steps
        training.on_step = partial(self.log.step, name)
        training.on_evaluation = lambda history: self.log.evaluation(name, training.epoch, history)
        training.on_epoch = lambda epoch, history: self.log.rest(name)
        training.between = self.between
        self.trainings[name] = training
        if self._restored is not None and name in self._states:
            self._restored.load_network(name, training.model)
            training.load_state_dict(self._states.pop(name))

    def between(self) -> None:
        """Saves where it is time; saves and raises Interrupted where a signal came."""
        if self.interruption.number is not None:
            path = self.save()
            raise Interrupted(
                self.interruption.number,
                f"stopped after step {self.steps:,}, saved in {path}; "
                f"esmm-fast train --resume --out {self.run} goes on",
            )
        if time.monotonic() - self._saved_at >= 60 * self.config.checkpoint_minutes:
            self.save()

    def finish(self) -> None:
        """Saves the networks at the end; a signal that came late is then granted."""
        self.save(finished=True)
        if self.interruption.number is not None:
            raise Interrupted(
                self.interruption.number,
                f"training is done and saved; esmm-fast train --resume --out {self.run} writes "
                "the report",
            )

    def save(self, *, finished: bool = False) -> Path:
        """Writes a checkpoint, unless the last one says the same, and returns its path."""
        if self._saved == (self.steps, finished):
            return checkpoint.latest(self.folder).path
        states = {name: training.state_dict() for name, training in self.trainings.items()}
        path = checkpoint.save(
            self.folder,
            {name: training.model for name, training in self.trainings.items()},
            self.steps,
            {**self.facts, "finished": finished},
            training={"networks": states, "log": self.log.state(self.steps)},
            keep=self.config.keep_checkpoints,
        )
        self._saved, self._saved_at = (self.steps, finished), time.monotonic()
        return path


def _what_bits_depend_on() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "instruction set": _library.isa(),
        "torch": str(torch.__version__),
    }
