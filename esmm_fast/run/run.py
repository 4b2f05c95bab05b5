"""A training run in its directory: begun, stopped, continued and read.

RUN = config.yaml (resolved) · vocabulary.arrow · checkpoints/ · metrics.jsonl · report.html
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from .. import __version__, config
from ..calibration import Slices
from ..catalogue import TRAINABLE, by_name
from ..config import RunConfig, Settings
from ..data.dataset import Dataset
from ..evaluation import SPACES, Truth, task_columns, task_metrics
from ..methods import Network, Trained, build_networks, fit_method
from ..run import checkpoint, memory
from ..samplers import common_rows_of
from ..schema import Schema
from ..staging import refuse_existing, staged_directory
from ..train import History
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
        say: Receives lines for the user: the memory of the tables, what is continued.

    Returns:
        What the report shows: `config`, `data`, `networks` (steps, impressions, seconds and loss
        curve of each) and, with a validation set, `valid` (see `evaluation.task_metrics`).

    Raises:
        FileExistsError: If `out` exists and is not to be continued.
        Interrupted: After a signal, with the state saved.
        MemoryError: If the tables do not fit.
        ValueError: If the datasets' fields differ, the method is unknown, or `out` holds the run of
            another config or of other data.
    """
    out = Path(out)
    going_on = resume and out.exists()
    run_config = _with_whole_paths(run_config)
    if going_on:
        _check_same_config(_saved_config(out), run_config, out)
    else:
        refuse_existing(out, " (--resume continues a run)")
    method = by_name(run_config.method, TRAINABLE)
    settings = run_config.settings
    dataset = Dataset(run_config.train)
    valid = None if run_config.valid is None else Dataset(run_config.valid)
    if valid is not None:
        check_same_fields(dataset.schema, valid.schema, run_config.train, run_config.valid)

    if going_on:
        vocabulary = Vocabulary.load(out / "vocabulary.arrow")
    else:
        vocabulary = Vocabulary.from_dataset(dataset, min_count=settings.min_count)
    needed = table_memory(
        tuple(method.networks.values()),
        vocabulary.sized(dataset.schema),
        settings,
        kept_copies=2 * (run_config.early_stopping is not None),
    )
    for line in needed.lines():
        say(line)
    needed.check(memory.available())
    if run_config.tensorboard:
        event_writer_class()
    if not going_on:
        with staged_directory(out) as staged:
            config.save(run_config, staged / "config.yaml")
            vocabulary.save(staged / "vocabulary.arrow")
            for path in (*staged.iterdir(), staged):
                checkpoint.sync(path)
    elif _saved_config(out) != run_config:
        config.save(run_config, out / "config.yaml")

    facts = {
        "esmm_fast": __version__,
        "method": method.name,
        "schema": msgspec.to_builtins(dataset.schema),
        "settings": msgspec.to_builtins(settings),
        "data": {name: _fingerprint(d) for name, d in (("train", dataset), ("valid", valid)) if d},
    }
    with Session(out, run_config, facts, say, begun_here=not going_on) as session:
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
        "networks": network_facts(trained),
    }
    if valid is not None:
        results["data"]["valid"] = counts(valid)
        results["valid"] = task_metrics(
            trained.predict(valid, vocabulary, settings, progress=progress)
        )
    return results


def table_memory(
    networks: Sequence[Network], schema: Schema, settings: Settings, kept_copies: int = 0
) -> memory.TableMemory:
    """Returns the memory that the tables of networks will take all at once.

    Args:
        networks: Of a method.
        schema: With table rows.
        settings: Dimension and optimizer.
        kept_copies: Copies of the parameters that training keeps beside them.
    """
    small = msgspec.structs.replace(settings, hidden=(1,))
    return memory.of_tables(
        lambda schema: [network.build(schema, small, 0) for network in networks],
        schema,
        settings.table_optimizer,
        kept_copies,
    )


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
            progress: Shows a bar.
        """
        check_same_fields(self.schema, dataset.schema, self.path, dataset.path)
        if truth is not None:
            truth.check_covers(dataset)
        slices = {field: Slices.of(dataset, field) for field in by}
        predictions = self.trained.predict(
            dataset, self.vocabulary, self.config.settings, progress=progress
        ).corrected(kept)
        result = task_metrics(predictions, truth)
        if slices:
            tasks = {task: task_columns(predictions, task) for task in SPACES if task in result}
            result["slices"] = {
                field: {task: each.calibration(*columns) for task, columns in tasks.items()}
                for field, each in slices.items()
            }
        return result


def counts(dataset: Dataset) -> dict[str, Any]:
    """Returns path, impressions, clicks, conversions (with click) and common rows of a dataset.

    Of a view all but `common_rows`, which is the directory's; `common_rows_used` is the view's.
    """
    labels = dataset.labels("and")
    return {
        "path": str(dataset.path),
        "impressions": len(dataset),
        "clicks": int(labels[:, 0].sum()),
        "conversions": int(labels[:, 1].sum()),
        "common_rows": len(dataset.common_rows),
        "common_rows_used": len(np.unique(common_rows_of(dataset))),
    }


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Returns what tells a dataset or view from others: its files' checksums, and a view's rows."""
    files = dataset.manifest["files"]
    identity = {name: files[name]["xxh64"] for name in sorted(files)}
    for name in ("selection", "impression_weights"):
        array = getattr(dataset, name)
        if array is not None:
            identity[name] = f"{len(array)} {zlib.crc32(array.tobytes()):08x}"
    return identity


class PeakMemory:
    """What `peak_memory` measured."""

    peak: int | None = None
    """Bytes resident at most; None where the system does not say."""


@contextlib.contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measures the greatest resident memory of the process inside a `with`, on Linux."""
    measured = PeakMemory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    except OSError:
        yield measured
        return
    yield measured
    status = Path("/proc/self/status").read_text()
    if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
        measured.peak = int(found[1]) * 1024


def network_facts(trained: Trained) -> dict[str, Any]:
    """Returns what the training of each network did, by name."""
    return {name: _facts(history) for name, history in trained.histories.items()}


def now() -> str:
    """Returns date and time with the zone, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Returns what the times depend on."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def check_same_fields(first: Schema, second: Schema, of_first: Any, of_second: Any) -> None:
    """Raises ValueError where two schemas have different fields, or one on different sides."""
    sides = [{f.name: f.side for f in schema.fields} for schema in (first, second)]
    for name in sides[0] | sides[1]:
        a, b = (side.get(name, "no such field") for side in sides)
        if a != b:
            raise ValueError(
                f"field {name!r}: expected the same in both, got {a} in {of_first}, "
                f"{b} in {of_second}"
            )


def _facts(history: History) -> dict[str, Any]:
    impressions, losses = history.loss_curve()
    return {
        "steps": history.steps,
        "impressions": history.impressions,
        "seconds": round(history.seconds, 3),
        "impressions_per_second": history.impressions_per_second,
        "loss_curve": {"impressions": impressions, "loss": losses},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
