"""The esmm-fast command: parses options and calls the rest, which is imported when it is needed."""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from . import __version__
from .cli_options import COUNT, settings_options, shard
from .interruption import Interrupted
from .printing import (
    echo_impression,
    echo_json,
    echo_mapping,
    echo_metrics,
    echo_published,
    echo_rejected,
    echo_slices,
)
from .staging import refuse_existing

Command = TypeVar("Command", bound=Callable[..., Any])

_EXISTING = click.Path(exists=True, path_type=Path)
_FILE = click.Path(exists=True, allow_dash=True, path_type=Path)
_PATH = click.Path(path_type=Path)
_RATE = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="esmm-fast")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Entire-space CTR/CVR models, from the raw log to the report.

    LOG: the files of a raw log. DATASET: what `prepare` makes of one half of it. RUN: what
    `train` makes. --debug can stand anywhere.
    """


@cli.command()
@click.option("--out", type=_PATH, default=Path("quickstart"), show_default=True)
@click.option("--impressions", type=COUNT, default=200_000, show_default=True)
@click.option("--test-impressions", type=COUNT, help="Default: half of --impressions.")
@click.option("--ctr", type=_RATE, default=0.1, show_default=True, help="Published: 0.0389.")
@click.option("--cvr", type=_RATE, default=0.1, show_default=True, help="Published: 0.00535.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def quickstart(out: Path, **options: Any) -> None:
    """Run the whole way on a small synthetic log.

    Makes a log, prepares it, compares BASE and ESMM on it, and writes the report. The rates are
    raised, so that a small log holds enough conversions to tell methods apart. The last line is the
    report's path.
    """
    from .quickstart import quickstart as run

    path = run(out, **options, progress=True, say=click.echo)
    click.echo(f"\n{path.resolve()}")


@cli.command()
@click.argument("out", type=_PATH)
@click.option("--impressions", type=COUNT, required=True, help="Of the training half.")
@click.option("--test-impressions", type=COUNT, help="Default: as in the public log.")
@click.option("--ctr", type=_RATE, help="Mean P(click). Default: as published, 0.0389.")
@click.option("--cvr", type=_RATE, help="Mean P(conversion | click). Default: 0.00535.")
@click.option("--seed", type=click.IntRange(min=0), required=True)
@click.option("--threads", type=COUNT, help="Does not change a byte of the result.")
def synth(out: Path, **options: Any) -> None:
    """Write a synthetic log into OUT.

    The format is the public one; the true pCTR and pCVR of every impression lie beside it.
    """
    from .synth import synth as run

    run(out, **_given(options), progress=sys.stderr.isatty())
    click.echo(out)


@cli.command()
@click.argument("log", type=_EXISTING, nargs=-1)
@click.option("--skeleton", type=_FILE, multiple=True, help="Instead of LOG; repeatable; -: stdin.")
@click.option(
    "--common",
    type=_FILE,
    multiple=True,
    help="Common rows of --skeleton or --table; without it, --skeleton's hold no features.",
)
@click.option("--table", type=_EXISTING, multiple=True, help="Parquet, Arrow; needs --schema.")
@click.option("--out", type=_PATH, help="LOG: OUT/train and OUT/test; --skeleton: the dataset.")
@click.option("--schema", type=_EXISTING, help="YAML: the fields and the spelling of your own log.")
@click.option("--threads", type=COUNT)
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="At a bad line: stop, leaving nothing behind, or leave it out and count it by reason.",
)
@click.option("--rejects", type=_PATH, help="Receives the lines that --on-error skip leaves out.")
@click.option("--check", is_flag=True, help="Read everything, list the anomalies, write nothing.")
@click.option("--shard", callback=shard, help="i/N: only part i of N of each file; see merge.")
def prepare(
    log: tuple[Path, ...],
    skeleton: tuple[Path, ...],
    table: tuple[Path, ...],
    out: Path | None,
    check: bool,
    **options: Any,
) -> None:
    """Turn a raw log into datasets.

    LOG: a directory with the files of the log or with its archives, or the archives themselves
    (sample_train.tar.gz sample_test.tar.gz), read as they are. The exit status of --check is 1 if
    a line is bad.
    """
    if sum(map(bool, (log, skeleton, table))) != 1:
        raise click.UsageError("expected LOG, --skeleton or --table, one of them")
    if out is None and not check:
        raise click.UsageError("expected --out (only --check writes nothing)")
    if table and not options["schema"]:
        raise click.UsageError("expected --schema with --table: it says what the columns mean")
    if options["rejects"] and (options["on_error"] != "skip" or check):
        raise click.UsageError("expected --on-error skip with --rejects, and no --check")
    from .prepare_log import prepare as run

    options = _given(options | {"skeleton": skeleton, "table": table})
    result = run(log or None, out=out, check=check, **options, progress=True)
    if check:
        facts: Any = result
        echo_mapping(facts)
        reports = [facts] if "impressions" in facts else facts.values()
        if bad := sum(e["count"] for report in reports for e in report["errors"].values()):
            raise ValueError(f"{bad:,} bad lines, listed above under errors")
        return
    halves: Any = result if isinstance(result, dict) else {"": result}
    for half, dataset in () if "shard" in options else halves.items():
        echo_rejected(half, dataset.manifest["rejected"])
        if skeleton and not options.get("common") and dataset.schema.common:
            click.echo("no --common was given: the common rows hold no features", err=True)
    click.echo(out)


@cli.command()
@click.argument("shards", type=_EXISTING, nargs=-1, required=True, metavar="SHARD...")
@click.option("--out", type=_PATH, required=True, help="The dataset.")
def merge(shards: tuple[Path, ...], out: Path) -> None:
    """Join the shards of a log (prepare --shard), all of them, in any order, into its dataset."""
    from .merge_shards import merge_shards

    echo_rejected("", merge_shards(shards, out, progress=True).manifest["rejected"])
    click.echo(out)


@cli.command()
@click.argument("dataset", type=_EXISTING)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--verify", is_flag=True, help="Also check the files against their checksums.")
def info(dataset: Path, as_json: bool, verify: bool) -> None:
    """Say what a dataset, or a shard of one, holds."""
    from .dataset import Dataset
    from .manifest import is_shard
    from .shards import Shard

    facts = (Shard if is_shard(dataset) else Dataset)(dataset).info(verify=verify)
    if as_json:
        echo_json(facts)
        return
    published = facts.pop("published", None)
    echo_mapping(facts)
    if published:
        echo_published(published)


@cli.command()
@click.argument("dataset", type=_EXISTING)
@click.option("-n", type=COUNT, default=5, show_default=True)
def head(dataset: Path, n: int) -> None:
    """Print the first impressions of a dataset."""
    from .dataset import Dataset

    for impression in Dataset(dataset).head(n):
        echo_impression(impression)


@cli.command()
@click.argument("dataset", type=_EXISTING)
@click.option("--out", type=_PATH, required=True)
def dump(dataset: Path, out: Path) -> None:
    """Write a dataset as a raw log again."""
    from .dataset import Dataset

    Dataset(dataset).dump(out)
    click.echo(out)


@cli.command()
@click.option("--train", "train_set", type=_EXISTING, help="Dataset to train on.")
@click.option("--valid", type=_EXISTING, help="Dataset to evaluate after each epoch.")
@click.option("--config", "config_file", type=_EXISTING, help="YAML; options override it.")
@click.option("--method", help="esmm (default), ctr, base, aman-10, ...; see `compare`.")
@click.option("--out", type=_PATH, required=True, help="RUN; must not exist without --resume.")
@click.option("--resume", is_flag=True, help="Continue RUN, to the same bits; begin it if missing.")
@click.option("--evaluate-steps", type=COUNT, help="Evaluate within an epoch too.")
@click.option("--patience", type=COUNT, help="Evaluations without improvement before stopping.")
@click.option("--stop-metric", help="What must improve, e.g. cvr.auc. Default: the log loss.")
@click.option("--checkpoint-minutes", type=click.FloatRange(min=0), help="Default: 10.")
@click.option("--keep-checkpoints", type=COUNT, help="Default: 2.")
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
    from . import config

    given: dict[str, Any] = {"train": _text(train_set), "valid": _text(valid)}
    given |= {"early_stopping.patience": patience, "early_stopping.metric": stop_metric}
    of_run = {field for field in config.RunConfig.__struct_fields__}
    given |= {n if n in of_run else f"settings.{n}": value for n, value in options.items()}
    content = config.load(config_file) if config_file else {}
    if resume and out.exists():
        content = config.over(config.saved(out), content)
    if not (given["train"] or content.get("train")):
        raise click.UsageError("expected --train, or a --config with train in it")
    resolved = config.resolve(config.RunConfig, content, given, config_file)

    from . import report, runs

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


@cli.command()
@click.argument("run", type=_EXISTING)
@click.argument("dataset", type=_EXISTING)
@click.option("--truth", type=_EXISTING, help="Parquet file with sample_id, pctr and pcvr.")
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
    from .dataset import Dataset
    from .runs import Run
    from .train import Truth

    loaded = Run.load(run)
    known = None if truth is None else Truth.load(truth)
    result = loaded.evaluate(Dataset(dataset), known, kept=unclicked_kept, by=by, progress=True)
    if as_json:
        echo_json(result)
    else:
        echo_metrics(result)
        for field, tasks in result.get("slices", {}).items():
            echo_slices(field, tasks, top)


@cli.command()
@click.argument("run", type=_EXISTING)
@click.argument("dataset", type=_EXISTING)
@click.option("--out", type=_PATH, required=True, help="New Parquet file; its folders are made.")
@_KEPT
def predict(run: Path, dataset: Path, out: Path, unclicked_kept: float) -> None:
    """Write pctr, pcvr and pctcvr of every impression, by sample_id."""
    refuse_existing(out)
    from .dataset import Dataset
    from .predict import write_predictions
    from .runs import Run

    count = write_predictions(
        Run.load(run), Dataset(dataset), out, kept=unclicked_kept, progress=True
    )
    click.echo(f"{count:,} impressions -> {out}")


def _shares(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        shares = [float(share) for share in value.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 100 for share in shares):
        raise click.BadParameter(f"expected percents like 1,20,40,100, got {value!r}")
    return shares


@cli.command()
@click.option("--train", "train_set", type=_EXISTING, required=True, help="Dataset.")
@click.option("--test", "test_set", type=_EXISTING, required=True, help="Dataset.")
@click.option(
    "--methods", default="base,esmm", show_default=True, help="Names; all: the paper's seven."
)
@click.option("--repeats", type=COUNT, default=10, show_default=True)
@click.option("--truth", type=_EXISTING, help="Truth of the test set, where it is synthetic.")
@click.option("--holdout", type=click.FloatRange(0, 0.5), default=0.0, help="Share, end of train.")
@click.option("--select", type=click.Choice(["test", "valid"]), default="test", show_default=True)
@click.option("--train-shares", callback=_shares, help="Percents of groups, e.g. 1,20,40,100.")
@click.option("--out", type=_PATH, required=True, help="New, or a comparison to go on with.")
@settings_options
def compare(
    train_set: Path,
    test_set: Path,
    methods: str,
    truth: Path | None,
    holdout: float,
    select: str,
    train_shares: list[float] | None,
    repeats: int,
    out: Path,
    **settings: Any,
) -> None:
    """Compare methods by the protocol of the paper.

    Writes each finished run into OUT at once: the same command goes on where it was stopped. The
    best setting of a grid (aman, oversampling) is looked for on the test set, as in the paper, or
    with --select valid on a held-out end of the training set.
    """
    from . import config, experiment, report, results
    from .dataset import Dataset
    from .train import Truth

    names = [name.strip() for name in methods.split(",")]
    options: dict[str, Any] = {
        "repeats": repeats,
        "settings": config.resolve(config.Settings, {}, settings),
        "truth": None if truth is None else Truth.load(truth),
        "out": out,
        "holdout": holdout,
        "select": select,
        "progress": True,
        "say": click.echo,
    }
    sets = Dataset(train_set), Dataset(test_set)
    if train_shares is None:
        found = experiment.compare(*sets, names, **options)
    else:
        found = experiment.compare_shares(*sets, names, train_shares, **options)
    found["synthetic"] = experiment.synthetic_parameters(truth)
    found["command"] = _command_line()
    results.write(found, out)
    click.echo(f"\n{results.markdown(found)}")
    click.echo(report.write(found, out / "report.html"))


def _command_line() -> str:
    """Returns the command as it was typed."""
    import shlex

    return shlex.join(["esmm-fast", *(click.get_current_context().find_root().obj or sys.argv[1:])])


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command and exits: 0 done, 1 failure, 2 usage, 130 and 143 after a signal."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    signal.signal(signal.SIGTERM, _terminate)
    try:
        given = [a for a in arguments if a != "--debug"]
        cli.main(list(given), prog_name="esmm-fast", standalone_mode=False, obj=given)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption):
            error = _without_far_guesses(error)
        context = getattr(error, "ctx", None)
        hint = f" ({context.command_path} --help lists what there is)" if context else ""
        click.echo(f"Error: {_one_line(error.format_message())}{hint}", err=True)
        sys.exit(error.exit_code)
    except Interrupted as error:
        click.echo(error, err=True)
        sys.exit(128 + error.number)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        click.echo(f"Error: {_readable(error)}", err=True)
        sys.exit(1)
    sys.exit(0)


def _without_far_guesses(error: click.NoSuchOption) -> click.NoSuchOption:
    near = {option.lstrip("-"): option for option in error.possibilities or ()}
    found = difflib.get_close_matches(error.option_name.lstrip("-"), near)
    guesses = [near[name] for name in found]
    return click.NoSuchOption(error.option_name, error.message, guesses, error.ctx)


def _terminate(signal_number: int, frame: object) -> NoReturn:
    sys.exit(128 + signal_number)


def _readable(error: Exception) -> str:
    """Returns an error as one line; one that was not foreseen with its kind and a hint."""
    message = _one_line(error.args[0] if isinstance(error, KeyError) and error.args else error)
    foreseen = (ValueError, OSError, ArithmeticError, ImportError, MemoryError, TypeError)
    message = message or "out of memory" * isinstance(error, MemoryError)
    if isinstance(error, foreseen) and message:
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options that were given, so that the defaults stand in one place alone."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
