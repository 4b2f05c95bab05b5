"""The commands of the comparison: quickstart and compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..data.published import RATES
from .options import COUNT, EXISTING, PATH, RATE, settings_options

_PUBLISHED = {name: f"Published: {rate:.3g}." for name, rate in RATES.items()}


@click.command()
@click.option("--out", type=PATH, default=Path("quickstart"), show_default=True)
@click.option("--impressions", type=COUNT, default=200_000, show_default=True)
@click.option("--test-impressions", type=COUNT, help="Default: half of --impressions.")
@click.option("--ctr", type=RATE, default=0.1, show_default=True, help=_PUBLISHED["ctr"])
@click.option("--cvr", type=RATE, default=0.1, show_default=True, help=_PUBLISHED["cvr"])
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def quickstart(out: Path, **options: Any) -> None:
    """Run the whole way on a small synthetic log.

    Makes a log, prepares it, compares BASE and ESMM on it, and writes the report. The rates are
    raised, so that a small log holds enough conversions to tell methods apart. The last line is the
    report's path.
    """
    from ..quickstart import quickstart as run

    path = run(out, **options, progress=True, say=click.echo)
    click.echo(f"\n{path.resolve()}")


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


@click.command()
@click.option("--train", "train_set", type=EXISTING, required=True, help="Dataset.")
@click.option("--test", "test_set", type=EXISTING, required=True, help="Dataset.")
@click.option(
    "--methods", default="base,esmm", show_default=True, help="METHODS; all: the paper's seven."
)
@click.option("--repeats", type=COUNT, default=10, show_default=True)
@click.option("--truth", type=EXISTING, help="Truth of the test set, where it is synthetic.")
@click.option("--holdout", type=click.FloatRange(0, 0.5), default=0.0, help="Share, end of train.")
@click.option("--select", type=click.Choice(["test", "valid"]), default="test", show_default=True)
@click.option("--train-shares", callback=_shares, help="Percents of groups, e.g. 1,20,40,100.")
@click.option("--out", type=PATH, required=True, help="New, or a comparison to go on with.")
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

    \b
    METHODS: base, aman (aman-10, -20, -50, -100), oversampling (oversampling-2, -3,
    -5, -10), unbias, division, esmm-ns, esmm. Later ones: multi-ipw, multi-dr,
    escm2-ips, escm2-dr. For as many steps as esmm: base-steps, oversampling-steps
    (oversampling-2-steps, ...), unbias-steps; steps: all of these.
    """
    from .. import config
    from ..comparison import experiment, report, results
    from ..data.dataset import Dataset
    from ..evaluation import Truth

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
