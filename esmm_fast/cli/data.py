"""The commands that make and read logs and datasets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..data.published import RATES
from .options import COUNT, EXISTING, FILE, PATH, RATE, given, shard
from .printing import (
    echo_impression,
    echo_json,
    echo_mapping,
    echo_published,
    echo_rejected,
)


@click.command()
@click.argument("out", type=PATH)
@click.option("--impressions", type=COUNT, required=True, help="Of the training half.")
@click.option("--test-impressions", type=COUNT, help="Default: as in the public log.")
@click.option("--ctr", type=RATE, help=f"Mean P(click). Default: {RATES['ctr']:.3g}, as published.")
@click.option("--cvr", type=RATE, help=f"Mean P(conversion | click). Default: {RATES['cvr']:.3g}.")
@click.option("--seed", type=click.IntRange(min=0), required=True)
@click.option("--threads", type=COUNT, help="Does not change a byte of the result.")
def synth(out: Path, **options: Any) -> None:
    """Write a synthetic log into OUT.

    The format is the public one; the true pCTR and pCVR of every impression lie beside it.
    """
    from ..data.synth import synth as run

    run(out, **given(options), progress=sys.stderr.isatty())
    click.echo(out)


@click.command()
@click.argument("log", type=EXISTING, nargs=-1)
@click.option("--skeleton", type=FILE, multiple=True, help="Instead of LOG; repeatable; -: stdin.")
@click.option(
    "--common",
    type=FILE,
    multiple=True,
    help="Common rows of --skeleton or --table; without it, --skeleton's hold no features.",
)
@click.option("--table", type=EXISTING, multiple=True, help="Parquet, Arrow; needs --schema.")
@click.option("--out", type=PATH, help="LOG: OUT/train and OUT/test; --skeleton: the dataset.")
@click.option("--schema", type=EXISTING, help="YAML: the fields and the spelling of your own log.")
@click.option("--threads", type=COUNT)
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="At a bad line: stop, leaving nothing behind, or leave it out and count it by reason.",
)
@click.option("--rejects", type=PATH, help="Receives the lines that --on-error skip leaves out.")
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
    from ..data.prepare_log import prepare as run

    options = given(options | {"skeleton": skeleton, "table": table})
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


@click.command()
@click.argument("shards", type=EXISTING, nargs=-1, required=True, metavar="SHARD...")
@click.option("--out", type=PATH, required=True, help="The dataset.")
def merge(shards: tuple[Path, ...], out: Path) -> None:
    """Join the shards of a log (prepare --shard), all of them, in any order, into its dataset."""
    from ..data.merge_shards import merge_shards

    echo_rejected("", merge_shards(shards, out, progress=True).manifest["rejected"])
    click.echo(out)


@click.command()
@click.argument("dataset", type=EXISTING)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--verify", is_flag=True, help="Also check the files against their checksums.")
def info(dataset: Path, as_json: bool, verify: bool) -> None:
    """Say what a dataset, or a shard of one, holds."""
    from ..data.dataset import Dataset
    from ..data.manifest import is_shard
    from ..data.shards import Shard

    facts = (Shard if is_shard(dataset) else Dataset)(dataset).info(verify=verify)
    if as_json:
        echo_json(facts)
        return
    published = facts.pop("published", None)
    echo_mapping(facts)
    if published:
        echo_published(published)


@click.command()
@click.argument("dataset", type=EXISTING)
@click.option("-n", type=COUNT, default=5, show_default=True)
def head(dataset: Path, n: int) -> None:
    """Print the first impressions of a dataset."""
    from ..data.dataset import Dataset

    for impression in Dataset(dataset).head(n):
        echo_impression(impression)


@click.command()
@click.argument("dataset", type=EXISTING)
@click.option("--out", type=PATH, required=True)
def dump(dataset: Path, out: Path) -> None:
    """Write a dataset as a raw log again."""
    from ..data.dataset import Dataset

    Dataset(dataset).dump(out)
    click.echo(out)
