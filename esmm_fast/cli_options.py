"""Types and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

EXISTING = click.Path(exists=True, path_type=Path)
FILE = click.Path(exists=True, allow_dash=True, path_type=Path)
PATH = click.Path(path_type=Path)
RATE = click.FloatRange(0, 1, min_open=True, max_open=True)
COUNT = click.IntRange(min=1)

KEPT = click.option(
    "--unclicked-kept",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    help="Share of the unclicked impressions that the training set kept: corrects the pCTR.",
)


def widths(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    """Returns the numbers of --hidden."""
    if value is None:
        return None
    try:
        return [int(width) for width in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected widths like 360,200,80, got {value!r}") from None


def shares_of(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    """Returns the percents of --train-shares."""
    if value is None:
        return None
    try:
        shares = [float(share) for share in value.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 100 for share in shares):
        raise click.BadParameter(f"expected percents like 1,20,40,100, got {value!r}")
    return shares


def shard(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    """Returns (i, N) of --shard i/N."""
    if value is None:
        return None
    from .shards import parse_shard

    try:
        return parse_shard(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def settings_options(command: Command) -> Command:
    """Adds the options of `config.Settings`; one that is not given leaves its setting alone."""
    options = [
        click.option("--epochs", type=COUNT),
        click.option("--batch-size", type=COUNT),
        click.option("--lr", type=float, help="Learning rate of tables and towers."),
        click.option("--dim", type=COUNT, help="Embedding dimension."),
        click.option("--hidden", callback=widths, help="Hidden layers, e.g. 360,200,80."),
        click.option("--init-std", type=float),
        click.option("--min-count", type=COUNT, help="Of a feature id, to get a row of its own."),
        click.option("--group-limit", type=COUNT, help="Neighbours kept together in shuffling."),
        click.option("--labels", type=click.Choice(["and", "drop", "raw"])),
        click.option("--table-optimizer", type=click.Choice(["lazy_adam", "adam"])),
        click.option("--warmup-steps", type=click.IntRange(min=0)),
        click.option("--schedule", type=click.Choice(["constant", "linear", "cosine"])),
        click.option("--final-lr-share", type=click.FloatRange(0, 1)),
        click.option("--seed", type=click.IntRange(min=0)),
    ]
    for option in reversed(options):
        command = option(command)
    return command
