"""A training run in its directory: begun, stopped, continued and read.

RUN = config.yaml (resolved) · vocabulary.arrow · checkpoints/ · metrics.jsonl · report.html
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .. import __version__, config
from ..calibration import Slices
from ..catalogue import TRAINABLE, by_name
from ..config import RunConfig
from ..data.dataset import Dataset
from ..data.facts import counts
from ..early_stopping import watches
from ..evaluation import SPACES, Truth, stage_columns, task_columns, task_metrics
from ..machine import available_memory, machine, now
from ..methods import Method, Trained, build_networks, fit_method
from ..run import checkpoint, memory
from ..schema import Schema, check_same_fields
from ..staging import check_place, refuse_existing, staged_directory, sync
from ..vocabulary import Vocabulary
from .log import event_writer_class
from .session import Session

UNBOUND = ("checkpoint_minutes", "keep_checkpoints", "tensorboard")
"""Keys of the config that may change when a run is continued."""


def train(
    run_config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains a method on a dataset, writes the run into `out`, and returns its results.

    What can be checked is checked before `out` is made. A run that ends early, however it ends,
    can be continued to the same bits: SIGINT and SIGTERM finish the step and save it, an error
    saves the last whole step, and after a kill the last checkpoint holds. Only where an error comes
    before the first step, `out` is removed again.

    Args:
        run_config: What is trained on what.
        out: RUN.
        resume: Continue the run in `out`, if there is one; else begin it.
        progress: Shows bars.
        say: Receives lines for the user: the memory it will take, what is continued.

    Returns:
        What the report shows: `config`, `data`, `networks` (steps, impressions, seconds and loss
        curve of each) and, with a validation set, `valid` (see `evaluation.task_metrics`).

    Raises:
        FileExistsError: If `out` exists and is not to be continued.
        Interrupted: After a signal, with the state saved.
        MemoryError: If it does not fit.
        ValueError: If the datasets' fields differ, the method is unknown or predicts nothing that
            early stopping watches, or `out` holds the run of another config or of other data.
    """
    out = Path(out)
    going_on = resume and out.exists()
    run_config = _with_whole_paths(run_config)
    if going_on:
        _check_same_config(_saved_config(out), run_config, out)
    else:
        refuse_existing(out, " (--resume continues a run)")
        check_place(out)
    if run_config.tensorboard:
        event_writer_class()
    method = by_name(run_config.method, TRAINABLE)
    settings = run_config.settings
    dataset = Dataset(run_config.train)
    valid = None if run_config.valid is None else Dataset(run_config.valid)
    _check_watched(run_config, method)
    if valid is not None:
        check_same_fields(dataset.schema, valid.schema, run_config.train, run_config.valid)

    if going_on:
        vocabulary = Vocabulary.load(out / "vocabulary.arrow")
    else:
        vocabulary = Vocabulary.from_dataset(
            dataset,
            settings.min_count,
            schema=dataset.schema.with_tables(rows=settings.rows),
        )
    needed = memory.training_memory(
        tuple(method.networks.values()),
        vocabulary.sized(dataset.schema),
        settings,
        kept_copies=2 * (run_config.early_stopping is not None),
    )
    for line in needed.lines():
        say(line)
    needed.check(available_memory())
    if not going_on:
        with staged_directory(out) as staged:
            config.save(run_config, staged / "config.yaml")
            vocabulary.save(staged / "vocabulary.arrow")
            for path in (*staged.iterdir(), staged):
                sync(path)

    facts = {
        "esmm_fast": __version__,
        "method": method.name,
        "schema": msgspec.to_builtins(dataset.schema),
        "settings": msgspec.to_builtins(settings),
        "data": {name: _fingerprint(d) for name, d in (("train", dataset), ("valid", valid)) if d},
    }
    with Session(out, run_config, facts, say, begun_here=not going_on) as session:
        if _saved_config(out) != run_config:
            config.save(run_config, out / "config.yaml")
        trained = fit_method(
            method,
            dataset,
            vocabulary,
            settings,
            valid=valid,
            prepare=session.prepare,
            progress=progress,
        )
        session.finish()
    results: dict[str, Any] = {
        "format": "esmm_fast run",
        "version": 1,
        "esmm_fast": __version__,
        "made": now(),
        "machine": machine(),
        "method": method.name,
        "title": method.title,
        "config": msgspec.to_builtins(run_config),
        "data": {"train": counts(dataset)},
        "networks": {name: history.facts() for name, history in trained.histories.items()},
    }
    if valid is not None:
        results["data"]["valid"] = counts(valid)
        results["valid"] = task_metrics(
            trained.predict(valid, vocabulary, settings, progress=progress)
        )
    return results


def _saved_config(run: Path) -> RunConfig:
    return config.resolve(RunConfig, config.saved(run))


def _check_same_config(saved: RunConfig, asked: RunConfig, run: Path) -> None:
    """Raises ValueError where a run would be continued as another one."""
    for key, (there, here) in config.differences(saved, asked).items():
        if key not in UNBOUND:
            raise ValueError(
                f"{key}: {run} was begun with {there!r}, got {here!r}: a run is continued as it "
                "was begun; choose another --out for another one"
            )


def _check_watched(run_config: RunConfig, method: Method) -> None:
    """Raises ValueError where no network of a method predicts what early stopping watches."""
    stopping = run_config.early_stopping
    makers = [network.model for network in method.networks.values()]
    if stopping is not None and not any(watches(stopping, maker) for maker in makers):
        known = dict.fromkeys(t for maker in makers for t in getattr(maker, "predicts", ()))
        raise ValueError(
            f"early_stopping.metric: expected one of {', '.join(known)}, which the networks of "
            f"{method.name} predict, got {stopping.metric!r}"
        )


def _with_whole_paths(run_config: RunConfig) -> RunConfig:
    """Returns the config with paths that mean the same in every working directory."""
    return msgspec.structs.replace(
        run_config,
        train=os.path.abspath(run_config.train),
        valid=None if run_config.valid is None else os.path.abspath(run_config.valid),
    )


def _fingerprint(dataset: Dataset) -> dict[str, str]:
    """Returns the checksums of a dataset's files, as its manifest has them."""
    return {name: file["xxh64"] for name, file in dataset.manifest["files"].items()}


@dataclass
class Run:
    """A run, ready to predict with the parameters of its last checkpoint."""

    path: Path
    config: RunConfig
    schema: Schema
    vocabulary: Vocabulary
    trained: Trained

    @staticmethod
    def load(path: str | Path) -> Run:
        """Returns the run in a directory.

        Raises:
            ValueError: If it is no run, or holds no checkpoint of all its networks.
        """
        path = Path(path)
        run_config = _saved_config(path)
        if not checkpoint.exists(path / "checkpoints"):
            raise ValueError(
                f"{path}: this run ended before its first checkpoint; "
                f"esmm-fast train --resume --out {path} does it again"
            )
        saved = checkpoint.latest(path / "checkpoints")
        method = by_name(saved.facts["method"], TRAINABLE)
        if missing := sorted(set(method.networks) - set(saved.networks)):
            raise ValueError(
                f"{path}: this run ended before it trained {', '.join(missing)}; "
                f"esmm-fast train --resume --out {path} goes on"
            )
        schema = msgspec.convert(saved.facts["schema"], Schema)
        settings = config.resolve(config.Settings, saved.facts["settings"])
        vocabulary = Vocabulary.load(path / "vocabulary.arrow")
        networks = build_networks(method, schema, vocabulary, settings, settings.seed)
        saved.load_into(networks)
        return Run(path, run_config, schema, vocabulary, Trained(method, schema, networks))

    def evaluate(
        self,
        dataset: Dataset,
        truth: Truth | None = None,
        *,
        kept: float = 1.0,
        by: Sequence[str] = (),
        top: int | None = None,
        progress: bool = False,
    ) -> dict[str, Any]:
        """Returns the metrics of the run's own predictions; see `evaluation.task_metrics`.

        Args:
            dataset: Fields as in the run's training set.
            truth: The true probabilities, where they are known.
            kept: Share of the unclicked impressions that the run's training set kept; see
                `calibration.undo_down_sampling`.
            by: Fields; for each, `slices.<field>.<task>` holds the calibration by feature id, see
                `calibration.Slices`.
            top: As many slices of each at most, the largest ones; None: all.
            progress: Shows a bar.
        """
        check_same_fields(self.schema, dataset.schema, self.path, dataset.path)
        if truth is not None and self.trained.method.stages:
            raise ValueError(
                "truth: it holds pctr and pcvr; a chain predicts its labels, "
                f"{', '.join(self.schema.labels)}"
            )
        if truth is not None:
            truth.check_covers(dataset)
        slices = {field: Slices.of(dataset, field) for field in by}
        predictions = self.trained.predict(
            dataset, self.vocabulary, self.config.settings, progress=progress
        ).corrected(kept)
        result = task_metrics(predictions, truth)
        if slices:
            tasks = {task: task_columns(predictions, task) for task in SPACES if task in result}
            for name, (_, *columns, rows) in stage_columns(predictions).items():
                tasks[name] = (*columns, rows if isinstance(rows, np.ndarray) else None)
            result["slices"] = {
                field: {task: each.calibration(*columns, top) for task, columns in tasks.items()}
                for field, each in slices.items()
            }
        return result
