"""A training run in its directory: config, vocabulary, checkpoints and metrics.

RUN = config.yaml (resolved) · vocabulary.arrow · checkpoints/ · metrics.jsonl · report.html
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from . import __version__, checkpoint, config
from .catalogue import TRAINABLE, by_name
from .config import RunConfig
from .dataset import Dataset
from .methods import Trained, build_networks, fit_method
from .samplers import common_rows_of
from .schema import Schema
from .train import History, Step, Truth, task_metrics
from .vocabulary import Vocabulary

LOG_STEPS = 50
"""Steps between two lines of metrics.jsonl."""


def train(run_config: RunConfig, out: str | Path, *, progress: bool = False) -> dict[str, Any]:
    """Trains a method on a dataset, writes the run into `out`, and returns its results.

    The results hold what the report shows: `config`, `data`, `networks` (steps, impressions,
    seconds and loss curve of each) and, with a validation set, `valid` (see `train.task_metrics`).

    Raises:
        FileExistsError: If `out` exists.
        ValueError: If the datasets' fields differ, or the method is unknown.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out}: expected no run there yet, but it exists")
    method = by_name(run_config.method, TRAINABLE)
    settings = run_config.settings
    dataset = Dataset(run_config.train)
    valid = None if run_config.valid is None else Dataset(run_config.valid)
    if valid is not None:
        check_same_fields(dataset.schema, valid.schema, run_config.train, run_config.valid)

    vocabulary = Vocabulary.from_dataset(dataset, min_count=settings.min_count)
    out.mkdir(parents=True)
    config.save(run_config, out / "config.yaml")
    vocabulary.save(out / "vocabulary.arrow")
    with _Log(out / "metrics.jsonl") as log:
        trained = fit_method(
            method,
            dataset,
            vocabulary,
            settings,
            valid=valid,
            on_step=log.step,
            on_epoch=log.epoch,
            progress=progress,
        )
    checkpoint.save(
        out / "checkpoints",
        trained.networks,
        trained.steps,
        {
            "esmm_fast": __version__,
            "method": method.name,
            "schema": msgspec.to_builtins(dataset.schema),
            "settings": msgspec.to_builtins(settings),
        },
    )
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


@dataclass
class Run:
    """A finished run, ready to predict."""

    path: Path
    config: RunConfig
    schema: Schema
    vocabulary: Vocabulary
    trained: Trained

    @staticmethod
    def load(path: str | Path) -> Run:
        """Returns the run in a directory, with the parameters of its last checkpoint.

        Raises:
            ValueError: If it is no run, or holds no checkpoint.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise ValueError(f"{path}: expected a run, found no config.yaml")
        run_config = config.resolve(RunConfig, config.load(path / "config.yaml"))
        saved = checkpoint.latest(path / "checkpoints")
        method = by_name(saved.state["method"], TRAINABLE)
        schema = msgspec.convert(saved.state["schema"], Schema)
        settings = config.resolve(config.Settings, saved.state["settings"])
        vocabulary = Vocabulary.load(path / "vocabulary.arrow")
        networks = build_networks(method, schema, vocabulary, settings, settings.seed)
        saved.load_into(networks)
        return Run(path, run_config, schema, vocabulary, Trained(method, schema, networks))

    def evaluate(
        self, dataset: Dataset, truth: Truth | None = None, *, progress: bool = False
    ) -> dict[str, Any]:
        """Returns the metrics of the run's own predictions; see `train.task_metrics`."""
        check_same_fields(self.schema, dataset.schema, self.path, dataset.path)
        predictions = self.trained.predict(
            dataset, self.vocabulary, self.config.settings, progress=progress
        )
        return task_metrics(predictions, truth)


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


class _Log:
    """metrics.jsonl: a line every LOG_STEPS steps and one for each epoch."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._losses: list[float] = []

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def step(self, network: str, step: Step) -> None:
        self._losses.append(step.loss)
        if step.step % LOG_STEPS == 0:
            self._flush(network, step.epoch, step.step, step.impressions, step.seconds)

    def epoch(self, network: str, epoch: int, history: History) -> None:
        if self._losses:
            self._flush(network, epoch, history.steps, history.impressions, history.seconds)
        if history.valid:
            self._write({"network": network, "epoch": epoch, "valid": history.valid[-1]})

    def _flush(self, network: str, epoch: int, step: int, impressions: int, seconds: float) -> None:
        self._write(
            {
                "network": network,
                "epoch": epoch,
                "step": step,
                "impressions": impressions,
                "seconds": round(seconds, 3),
                "loss": sum(self._losses) / len(self._losses),
            }
        )
        self._losses.clear()
