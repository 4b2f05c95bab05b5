"""The commands of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..config import RunConfig
from ..staging import refuse_existing
from .options import COUNT, EXISTING, PATH, settings_options
from .printing import echo_json, echo_metrics, echo_slices

_RUN = RunConfig(train="")  # the defaults


@click.command()
@click.option("--train", "train_set", type=EXISTING, help="Dataset to train on.")
@click.option("--valid", type=EXISTING, help="Dataset to evaluate after each epoch.")
@click.option("--config", "config_file", type=EXISTING, help="YAML; options override it.")
@click.option(
    "--method", help=f"{_RUN.method} (default), chain (K labels), ctr, ...; see `compare --help`."
)
@click.option("--out", type=PATH, required=True, help="RUN; must not exist without --resume.")
@click.option("--resume", is_flag=True, help="Continue RUN, to the same bits; begin it if missing.")
@click.option("--evaluate-steps", type=COUNT, help="Evaluate within an epoch too.")
@click.option("--patience", type=COUNT, help="Evaluations without improvement before stopping.")
@click.option("--stop-metric", help="What must improve, e.g. cvr.auc. Default: the log loss.")
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0),
    help=f"Default: {_RUN.checkpoint_minutes:g}.",
)
@click.option("--keep-checkpoints", type=COUNT, help=f"Default: {_RUN.keep_checkpoints}.")
@click.option("--tensorboard", is_flag=True, default=None, help="Write RUN/tensorboard too.")
@settings_options
def train(
    train_set: Path | None,
    valid: Path | None,
    config_file: Path | None,
    out: Path,
    resume: bool,
    patience: int | None,
    stop_metric: str | None,
    **options: Any,
) -> None:
    """Train one method on a dataset.

    A signal, an error or a kill ends a run that --resume continues.
    """
    if not resume:
        refuse_existing(out, " (--resume continues a run)")
    from .. import config

    given: dict[str, Any] = {"train": _text(train_set), "valid": _text(valid)}
    given |= {"early_stopping.patience": patience, "early_stopping.metric": stop_metric}
    of_run = {field for field in config.RunConfig.__struct_fields__}
    given |= {n if n in of_run else f"settings.{n}": value for n, value in options.items()}
    content = config.load(config_file) if config_file else {}
    if resume and out.exists():
        content = config.over(config.saved(out), content)
    if not (given["train"] or content.get("train")):
        raise click.UsageError("expected --train, or a --config with train in it")
    if not (given["valid"] or content.get("valid")):
        asked = {"patience": patience, "stop-metric": stop_metric}
        asked |= {"evaluate-steps": options["evaluate_steps"]}
        for option, value in asked.items():
            if value is not None:
                raise click.UsageError(f"--{option}: expected a validation set with it (--valid)")
    resolved = config.resolve(config.RunConfig, content, given, config_file)

    from ..comparison import report
    from ..run import run as runs

    results = runs.train(resolved, out, resume=resume, progress=True, say=click.echo)
    report.write(results, out / "report.html")
    for name, network in results["networks"].items():
        click.echo(
            f"{name}: {network['steps']:,} steps, {network['impressions']:,} impressions "
            f"in {network['seconds']:.1f} s"
        )
    if "valid" in results:
        echo_metrics(results["valid"])
    click.echo(out / "report.html")


_KEPT = click.option(
    "--unclicked-kept",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    help="Share of the unclicked impressions that the training set kept: corrects the pCTR.",
)


@click.command()
@click.argument("run", type=EXISTING)
@click.argument("dataset", type=EXISTING)
@click.option("--truth", type=EXISTING, help="Parquet file with sample_id, pctr and pcvr.")
@click.option("--by", multiple=True, help="Field, for the calibration by feature id; repeatable.")
@click.option("--top", type=COUNT, default=10, show_default=True, help="Slices shown of each.")
@_KEPT
@click.option("--json", "as_json", is_flag=True, help="Print JSON: all metrics, all slices.")
def evaluate(
    run: Path,
    dataset: Path,
    truth: Path | None,
    by: tuple[str, ...],
    top: int,
    unclicked_kept: float,
    as_json: bool,
) -> None:
    """Evaluate a run on a dataset.

    CTR over all, CVR over clicked, CTCVR over all impressions, with the model's own pCTR.
    """
    from ..data.dataset import Dataset
    from ..evaluation import Truth
    from ..run.run import Run

    loaded = Run.load(run)
    known = None if truth is None else Truth.load(truth)
    options: dict[str, Any] = {"kept": unclicked_kept, "by": by, "top": None if as_json else top}
    result = loaded.evaluate(Dataset(dataset), known, **options, progress=True)
    if as_json:
        echo_json(result)
    else:
        echo_metrics(result)
        for field, tasks in result.get("slices", {}).items():
            echo_slices(field, tasks)


@click.command()
@click.argument("run", type=EXISTING)
@click.argument("dataset", type=EXISTING)
@click.option("--out", type=PATH, required=True, help="New Parquet file; its folders are made.")
@_KEPT
def predict(run: Path, dataset: Path, out: Path, unclicked_kept: float) -> None:
    """Write pctr, pcvr and pctcvr (a chain: every stage) of every impression, by sample_id."""
    refuse_existing(out)
    from ..data.dataset import Dataset
    from ..run.predict import write_predictions
    from ..run.run import Run

    count = write_predictions(
        Run.load(run), Dataset(dataset), out, kept=unclicked_kept, progress=True
    )
    click.echo(f"{count:,} impressions -> {out}")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
