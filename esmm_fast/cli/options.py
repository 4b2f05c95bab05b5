"""What several commands' options are made of: kinds, the settings, --shard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..config import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

COUNT = click.IntRange(min=1)
EXISTING = click.Path(exists=True, path_type=Path)
FILE = click.Path(exists=True, allow_dash=True, path_type=Path)
PATH = click.Path(path_type=Path)
RATE = click.FloatRange(0, 1, min_open=True, max_open=True)


def _widths(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        return [int(width) for width in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected widths like 360,200,80, got {value!r}") from None


def shard(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    """Returns (i, N) of --shard i/N."""
    if value is None:
        return None
    from ..data.shards import parse_shard

    try:
        return parse_shard(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


_LABELS = "A conversion without a click: none (and), not trained on (drop), one (raw)."
_TABLE_OPTIMIZER = "lazy_adam moves the rows that a batch touches, adam all rows in every step."


def settings_options(command: Command) -> Command:
    """Adds the options of `config.Settings`; one that is not given leaves its setting alone."""
    whole = click.IntRange(min=0)
    options: list[tuple[str, Any, str]] = [
        ("epochs", COUNT, "Passes over the training set."),
        ("batch_size", COUNT, "Impressions per step."),
        ("lr", float, "Learning rate of tables and towers."),
        ("dim", COUNT, "Embedding dimension."),
        ("hidden", str, "Hidden layers of a tower."),
        ("init_std", float, "Standard deviation of the tables at the start."),
        ("min_count", COUNT, "Of a feature id, to get a row of its own."),
        ("group_limit", COUNT, "Neighbours kept together in shuffling."),
        ("labels", click.Choice(["and", "drop", "raw"]), _LABELS),
        ("table_optimizer", click.Choice(["lazy_adam", "adam"]), _TABLE_OPTIMIZER),
        ("warmup_steps", whole, "Steps over which the learning rate rises."),
        ("schedule", click.Choice(["constant", "linear", "cosine"]), "Of the learning rate."),
        ("final_lr_share", click.FloatRange(0, 1), "Share of lr that a schedule ends with."),
        ("seed", whole, "Of the start and of the order."),
    ]
    for name, kind, text in reversed(options):
        default = getattr(Settings(), name)
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        text += f" Default: {'all' if default is None else default}."
        callback = _widths if name == "hidden" else None
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, type=kind, callback=callback, help=text)(command)
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options that were given, so that the defaults stand in one place alone."""
    return {name: value for name, value in options.items() if value not in (None, ())}
